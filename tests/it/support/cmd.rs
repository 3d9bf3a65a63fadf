//! Runs the binary as a user types it: `dir.tcq4("inspect MODEL --json").ok()`. Words are divided at blanks; MODEL, CALIBRATION and EVALUATION
//! stand for the fixtures; other paths lie in the folder of the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

#[cfg(feature = "llama")]
use serde_json::Value;

use super::Dir;

/// The path of a file under `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// What a run of the binary left behind.
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    line: String,
    before: Vec<String>,
    after: Vec<String>,
}

impl Dir {
    /// Prepares a run in this folder, on one thread.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcq4"));
        command.args(line.split_whitespace().map(|word| match word {
            "MODEL" => fixture("models/tiny-llama-f16.gguf"),
            "CALIBRATION" => fixture("text/calibration.txt"),
            "EVALUATION" => fixture("text/evaluation.txt"),
            word => word.into(),
        }));
        for variable in [
            "TCQ4_DATA_DIR",
            "TCQ4_OFFLINE",
            "TCQ4_DATA_MIRROR",
            "HF_HUB_OFFLINE",
            "HF_HOME",
            "HF_HUB_CACHE",
            "HF_ENDPOINT",
        ] {
            command.env_remove(variable);
        }
        command.env_remove("TCQ4_ISA").env_remove("TCQ4_LOG").env("TCQ4_THREADS", "1").current_dir(self.path());
        command
    }

    /// Runs the binary in this folder, on one thread.
    pub fn tcq4(&self, line: &str) -> Done {
        self.finish(line, &mut self.command(line))
    }

    /// Runs it with an environment variable.
    pub fn tcq4_with(&self, variable: &str, value: &str, line: &str) -> Done {
        self.finish(&format!("{variable}={value} {line}"), self.command(line).env(variable, value))
    }

    /// Starts it and goes on.
    pub fn start(&self, line: &str) -> Child {
        let mut command = self.command(line);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary")
    }

    /// Reads a file of this folder.
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads a JSON file of this folder.
    #[cfg(feature = "llama")]
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn finish(&self, line: &str, command: &mut Command) -> Done {
        let before = self.names();
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("the binary");
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("UTF-8");
            let here = text.replace(&format!("{}/", self.path().display()), "");
            here.replace(&format!("{}/", env!("CARGO_MANIFEST_DIR")), "")
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        assert!(!stderr.contains("panicked"), "`{line}` panicked: {stderr}");
        Done { code: status.code(), stdout, stderr, line: line.to_owned(), before, after: self.names() }
    }
}

impl Done {
    /// Checks that the run did its work.
    #[track_caller]
    pub fn ok(self) -> Done {
        assert_eq!(self.code, Some(0), "`{}`: {}", self.line, self.stderr);
        self
    }

    /// Checks that the run ended with this code and these last lines, and left every file name as it was.
    #[track_caller]
    pub fn fails(self, code: i32, message: &str) {
        assert_eq!((self.code, self.error()), (Some(code), message), "`{}`: {}", self.line, self.stderr);
        assert_eq!(self.after, self.before, "`{}` left files", self.line);
    }

    /// As [`Done::fails`], with a message that only begins like this.
    #[track_caller]
    pub fn fails_like(self, code: i32, message: &str) {
        assert_eq!(self.code, Some(code), "`{}`: {}", self.line, self.stderr);
        assert!(self.error().starts_with(message), "`{}`: {}", self.line, self.stderr);
        assert_eq!(self.after, self.before, "`{}` left files", self.line);
    }

    /// The error and its hint: everything from the line on that begins with "error: ".
    pub fn error(&self) -> &str {
        let begin = self.stderr.match_indices("error: ").find(|(at, _)| *at == 0 || self.stderr[..*at].ends_with('\n'));
        begin.map_or("", |(at, _)| self.stderr[at..].trim_end())
    }

    /// Checks the head of the run's JSON record and gives the record.
    #[cfg(feature = "llama")]
    #[track_caller]
    pub fn record(self, name: &str) -> Value {
        let done = self.ok();
        let record: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("`{}`: {e}", done.line));
        assert_eq!(record["record"], name);
        assert_eq!(record["record_version"], 1);
        assert_eq!(record["tcq4"], env!("CARGO_PKG_VERSION"));
        record
    }
}

/// Does what Ctrl-C does.
pub fn interrupt(child: &Child) {
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
    assert!(signalled.is_ok(), "no kill command");
}
