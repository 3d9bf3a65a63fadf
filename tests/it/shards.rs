//! Calibration in parts, and conversions by what it measures: the bytes of one run, whatever the number of parts. Needs llama.cpp.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::cmd::fixture;
use crate::support::{Dir, python_with_numpy, skip, tiny_model::TinyModel};

/// Calibrates in parts, merges them in another order than theirs, and compares with one run.
fn same_as_one_run(dir: &Dir, model: &str, setting: &str, counts: &[u32]) {
    let run = format!("calibrate -m {model} {setting}");
    dir.tcq4(&format!("{run} -o perms.json --stats one.gguf --second-moments one-moments.gguf --force")).ok();
    for &count in counts {
        for number in 1..=count {
            let files = format!("--stats s{number} --second-moments m{number} --force");
            dir.tcq4(&format!("{run} --shard {number}/{count} {files}")).ok();
        }
        let mut order: Vec<u32> = (1..=count).collect();
        order.rotate_left(count as usize / 2);
        let list = |what: &str| order.iter().map(|number| format!("{what}{number}")).collect::<Vec<_>>().join(" ");
        dir.tcq4(&format!("merge {} -o merged.gguf --force", list("s"))).ok();
        assert!(dir.read("merged.gguf") == dir.read("one.gguf"), "statistics, {model}, {setting}, {count} parts");
        dir.tcq4(&format!("merge {} -o merged-moments.gguf --force", list("m"))).ok();
        let same = dir.read("merged-moments.gguf") == dir.read("one-moments.gguf");
        assert!(same, "second moments, {model}, {setting}, {count} parts");
    }
}

#[test]
fn parts_of_the_text_make_the_bytes_of_one_run() {
    let dir = Dir::new();
    // Rows from chunks that are held out; more parts than chunks.
    same_as_one_run(&dir, "MODEL", "-c CALIBRATION -n 5 --ctx 64", &[1, 2, 3, 5, 9]);
    dir.tcq4("perms -m MODEL --stats merged.gguf -o merged.json").ok();
    assert!(dir.read("merged.json") == dir.read("perms.json"), "permutations");
}

#[test]
fn parts_of_experts_make_the_bytes_of_one_run() {
    let dir = Dir::new();
    TinyModel { experts: 4, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    // Its vocabulary makes long texts slow.
    dir.write("t.txt", &std::fs::read(fixture("text/calibration.txt")).unwrap()[..6000]);
    same_as_one_run(&dir, "m.gguf", "-c t.txt -n 7 --ctx 32", &[2, 4]);
}

#[test]
fn parts_of_the_whole_text_make_the_bytes_of_one_run() {
    let dir = Dir::new();
    // No chunk is left to hold out: sample rows come from the chunks that are summed.
    dir.write("t.txt", &std::fs::read(fixture("text/calibration.txt")).unwrap()[..3000]);
    let run = "calibrate -m MODEL -c t.txt -n 1000 --ctx 64";
    dir.tcq4(&format!("{run} -o perms.json --stats one.gguf")).ok();
    for number in 1..=3 {
        dir.tcq4(&format!("{run} --shard {number}/3 --stats s{number}")).ok();
    }
    dir.tcq4("merge s1 s2 s3 -o merged.gguf").ok();
    assert!(dir.read("merged.gguf") == dir.read("one.gguf"));
}

#[test]
fn conversions_by_measurements_in_parts_make_the_bytes_of_one_run() {
    let dir = Dir::new();
    let files = "--stats s.gguf --second-moments m.gguf";
    dir.tcq4(&format!("calibrate -m MODEL -c CALIBRATION -n 3 --ctx 64 -o p.json {files}")).ok();
    for (name, setting) in [
        ("greedy", "--stats s.gguf"),
        ("gptq", "--stats s.gguf --second-moments m.gguf --rounding gptq"),
        ("little-memory", "--stats s.gguf --second-moments m.gguf --rounding gptq --memory 2M"),
        ("awq", "--stats s.gguf --scales awq --alpha-grid 2 --rounding nearest"),
        ("perms", "--perms p.json"),
        ("types", "--stats s.gguf --target-bpw 6"),
    ] {
        dir.tcq4(&format!("quantize MODEL {name}.gguf {setting}")).ok();
        for number in 1..=3 {
            dir.tcq4(&format!("quantize MODEL {name}.{number} {setting} --shard {number}/3")).ok();
        }
        dir.tcq4(&format!("merge {name}.1 {name}.2 {name}.3 -o {name}.merged")).ok();
        assert!(dir.read(&format!("{name}.merged")) == dir.read(&format!("{name}.gguf")), "{name}");
    }
    let merged = dir.tcq4("merge greedy.3 greedy.2 greedy.1 -o again.gguf --json").record("merge");
    assert_eq!((&merged["kind"], &merged["merged"]["parts"]), (&Value::from("model"), &Value::from(3)));
}

#[test]
fn parts_of_other_runs_are_refused() {
    let dir = Dir::new();
    TinyModel::default().write(&dir.file("m.gguf"));
    let part = |file: &str, line: &str| _ = dir.tcq4(&format!("calibrate {line} --stats {file}")).ok();
    part("a", "-m MODEL -c CALIBRATION -n 4 --ctx 32 --shard 1/2");
    part("b", "-m MODEL -c CALIBRATION -n 4 --ctx 32 --shard 2/2");
    part("seed", "-m MODEL -c CALIBRATION -n 4 --ctx 32 --shard 2/2 --seed 7");
    part("text", "-m MODEL -c EVALUATION -n 4 --ctx 32 --shard 2/2");
    part("model", "-m m.gguf -c CALIBRATION -n 4 --ctx 32 --shard 2/2");
    part("whole", "-m MODEL -c CALIBRATION -n 4 --ctx 32 -o p.json");
    dir.tcq4("merge a seed -o o").fails_like(3, "error: seed: this part is of another setting: expected model ");
    dir.tcq4("merge a text -o o").fails_like(3, "error: text: this part is of another text: expected ");
    dir.tcq4("merge a model -o o").fails_like(3, "error: model: this part is of another model: expected ");
    dir.tcq4("merge a whole -o o").fails(
        3,
        "error: whole: expected a part of statistics as in a, got a file that is no part\nhint: put together files of one kind",
    );
    dir.tcq4("merge a a -o o").fails(3, "error: a: part 1/2 is a too\nhint: give each part once");
    dir.tcq4("merge b -o o").fails(
        3,
        "error: b: expected 2 parts, got 1: missing 1/2\nhint: make these with --shard, and give all parts to one `tcq4 merge`",
    );
    let mut bad = dir.read("b");
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    dir.write("bad", &bad);
    dir.tcq4("merge a bad -o o")
        .fails(3, "error: bad: not a usable part: it is damaged\nhint: make it again with --shard");
    dir.tcq4("perms -m MODEL --stats a -o x.json").fails_like(3, "error: a: ");
    dir.tcq4("calibrate -m MODEL -c CALIBRATION --shard 1/2").fails(
        2,
        "error: --shard writes a part of statistics or second moments\nhint: add --stats FILE, --second-moments FILE, or both",
    );
}

#[test]
fn a_killed_part_goes_on() {
    let dir = Dir::new();
    let line = "calibrate -m MODEL -c CALIBRATION -n 8 --ctx 256 --shard 1/2 --stats part";
    let mut child = dir.start(line);
    std::thread::sleep(Duration::from_millis(300));
    crate::support::cmd::interrupt(&child);
    let code = child.wait().unwrap().code();
    let resumed = dir.file("part.partial").exists();
    dir.tcq4(&format!("{line} --resume --force")).ok();
    dir.tcq4("calibrate -m MODEL -c CALIBRATION -n 8 --ctx 256 --shard 1/2 --stats fresh").ok();
    assert!(dir.read("part") == dir.read("fresh"));
    if code != Some(130) || !resumed {
        skip("the run was over, or had not begun, when it was interrupted");
    }
}

/// The folder of snakemake and of the Python that runs it.
fn snakemake() -> Option<std::path::PathBuf> {
    let beside = python_with_numpy().and_then(|python| Some(std::path::Path::new(&python).parent()?.join("snakemake")));
    let named = std::env::var_os("TCQ4_SNAKEMAKE").map(std::path::PathBuf::from);
    let works = |path: &std::path::PathBuf| {
        Command::new(path).arg("--version").output().is_ok_and(|done| done.status.success())
    };
    [named, beside, Some("snakemake".into())].into_iter().flatten().find(works)
}

#[test]
fn snakemake_drives_parts_and_retries_killed_ones() {
    use std::os::unix::fs::PermissionsExt;
    let Some(snakemake) = snakemake() else {
        return skip("no snakemake: scripts/setup.sh --tests installs it");
    };
    let dir = Dir::new();
    // The first try of the first part of each step is killed on the way, or ends as if it had been.
    let binary = env!("CARGO_BIN_EXE_tcq4");
    let flaky = format!(
        "#!/bin/sh\ncase \"$*\" in *'--shard 1/2'*)\n  if mkdir killed-$1 2>/dev/null; then\n    {binary} \"$@\" & pid=$!\n    sleep 0.02; kill -KILL $pid; wait $pid\n    exit 137\n  fi;;\nesac\nexec {binary} \"$@\"\n"
    );
    let script = dir.write("tcq4", flaky.as_bytes());
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let [model, calibration, evaluation] =
        ["models/tiny-llama-f16.gguf", "text/calibration.txt", "text/evaluation.txt"]
            .map(|name| fixture(name).display().to_string());
    let config = format!(
        "models: {{tiny: {model}}}\ncalibration: [{calibration}]\nsamples: 3\nctx: 64\nshards: 2\nquantize: ''\neval: -d {evaluation} --ctx 64 --chunks 2\noutput: results\ntcq4: {}\n",
        script.display()
    );
    let config = dir.write("config.yaml", config.as_bytes());
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let begun = Instant::now();
    let done = Command::new(snakemake)
        .args(["--snakefile".as_ref(), root.join("workflow/Snakefile").as_os_str()])
        .args(["--workflow-profile".as_ref(), root.join("workflow/profiles/local").as_os_str()])
        .args(["--configfile".as_ref(), config.as_os_str(), "--directory".as_ref(), dir.path().as_os_str()])
        .env("XDG_CACHE_HOME", dir.file("cache"))
        .env("TCQ4_THREADS", "1")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{log}");
    assert!(dir.file("killed-calibrate").exists() && dir.file("killed-quantize").exists(), "{log}");
    assert!(log.contains("Trying to restart job"), "{log}");
    eprintln!("snakemake took {:.1} s", begun.elapsed().as_secs_f64());
    let run = "calibrate -m MODEL -c CALIBRATION -n 3 --ctx 64 -o p.json --stats one.gguf";
    dir.tcq4(run).ok();
    assert!(dir.read("results/tiny.stats.gguf") == dir.read("one.gguf"));
    dir.tcq4("quantize MODEL one-model.gguf --stats results/tiny.stats.gguf").ok();
    assert!(dir.read("results/tiny.gguf") == dir.read("one-model.gguf"));
    assert_eq!(dir.json("results/tiny.verify.json")["record"], "verify");
    assert_eq!(dir.json("results/tiny.eval.json")["record"], "eval");
}

/// The commands of the Kubernetes manifest, as the pods run them, in the order of the file.
#[test]
fn the_commands_of_the_kubernetes_jobs_convert_a_model() {
    let Some(python) = python_with_yaml() else { return skip("no Python with yaml") };
    let dir = Dir::new();
    std::fs::copy(fixture("models/tiny-llama-f16.gguf"), dir.file("model-f16.gguf")).unwrap();
    std::fs::write(dir.file("calibration.txt"), &std::fs::read(fixture("text/calibration.txt")).unwrap()[..6000])
        .unwrap();
    let program = "import sys, yaml\nfor job in yaml.safe_load_all(open(sys.argv[1])):\n    spec = job['spec']; box = spec['template']['spec']['containers'][0]\n    assert box['command'] == ['sh', '-ec'] and job['metadata']['labels']['step'] == job['metadata']['name']\n    for index in range(spec.get('completions', 1)):\n        print(f\"export JOB_COMPLETION_INDEX={index}; {box['args'][0]}\")\n";
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("workflow/kubernetes.yaml");
    let listed = Command::new(python).args(["-c", program]).arg(manifest).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let commands = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(commands.lines().count(), 10, "{commands}");
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_tcq4")).parent().unwrap();
    let path = std::env::join_paths(
        [folder.to_path_buf()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    for command in commands.lines() {
        let done =
            Command::new("sh").args(["-ec", command]).current_dir(dir.path()).env("PATH", &path).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    }
    dir.tcq4("calibrate -m model-f16.gguf -c calibration.txt -n 128 -o p.json --stats one.gguf").ok();
    assert!(dir.read("stats.gguf") == dir.read("one.gguf"));
    dir.tcq4("quantize model-f16.gguf one-model.gguf --stats stats.gguf").ok();
    assert!(dir.read("model-tcq4.gguf") == dir.read("one-model.gguf"));
}

fn python_with_yaml() -> Option<std::ffi::OsString> {
    let beside = snakemake().and_then(|path| Some(path.parent()?.join("python").into_os_string()));
    let has = |python: &std::ffi::OsString| {
        Command::new(python).args(["-c", "import yaml"]).output().is_ok_and(|done| done.status.success())
    };
    beside.into_iter().chain(["python3".into()]).find(has)
}
