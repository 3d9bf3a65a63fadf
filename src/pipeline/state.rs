//! What is known about a job from run to run: a small file for each output, and a lock beside it. It belongs to the machine, not to the outputs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::key::{Stamp, short};
use crate::error::{Error, PipelineError, Result};
use crate::util::atomic_file;
use crate::util::hash::sha256_hex;

/// The version of the files.
const VERSION: u32 = 1;

/// The folder of a batch's state.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    temporary: PathBuf,
}

impl Folder {
    /// Makes the folder and those in it. Temporary files come into it too, or below the folder that the user has for such.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(root: &Path, temporary: Option<PathBuf>) -> Result<Self> {
        let absolute = std::path::absolute(root).map_err(Error::io(root, "find"))?;
        let own = || format!("tcq4-batch-{}", short(&sha256_hex(absolute.as_os_str().as_encoded_bytes())));
        let temporary = temporary.map_or_else(|| root.join("temporary"), |folder| folder.join(own()));
        let parts = ["jobs", "hashes", "statistics", "recipes", "logs"].map(|part| root.join(part));
        for path in parts.iter().chain([&temporary]) {
            fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))?;
        }
        Ok(Self { root: root.to_path_buf(), temporary })
    }

    /// Where the hashes of sources are kept.
    pub fn hashes(&self) -> PathBuf {
        self.root.join("hashes")
    }

    /// The statistics of this name.
    pub fn statistics(&self, name: &str) -> PathBuf {
        self.root.join("statistics").join(format!("{name}.gguf"))
    }

    /// The second moments of this name.
    pub fn second_moments(&self, name: &str) -> PathBuf {
        self.root.join("statistics").join(format!("{name}.moments.gguf"))
    }

    /// What mixed precision found out for the job of this output key.
    pub fn sensitivities(&self, key: &str) -> PathBuf {
        self.root.join("statistics").join(format!("{}.sensitivities.json", short(key)))
    }

    /// Where the processes of a job put temporary files: whoever holds the lock of the job may clear it.
    pub fn temporary(&self, job: &Job) -> PathBuf {
        self.temporary.join(&job.id)
    }

    /// What the processes of a job said.
    pub fn log(&self, job: &Job) -> PathBuf {
        self.root.join("logs").join(format!("{}.log", job.id))
    }

    /// Writes a recipe, and gives its path.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn recipe(&self, text: &str) -> Result<PathBuf> {
        let path = self.root.join("recipes").join(short(&sha256_hex(text.as_bytes())) + ".toml");
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(path);
        }
        // Another run may write the same bytes at the same time: each has a file of its own until it is whole.
        let mut whole =
            tempfile::NamedTempFile::new_in(self.root.join("recipes")).map_err(Error::io(&path, "create"))?;
        whole.write_all(text.as_bytes()).map_err(Error::io(&path, "write"))?;
        whole.persist(&path).map_err(|e| Error::io(&path, "rename the finished file to")(e.error))?;
        Ok(path)
    }

    /// The job that writes `output`.
    ///
    /// # Errors
    /// A path that the operating system cannot make absolute.
    pub fn job(&self, output: &Path) -> Result<Job> {
        let absolute = std::path::absolute(output).map_err(Error::io(output, "find"))?;
        let id = short(&sha256_hex(absolute.as_os_str().as_encoded_bytes()));
        Ok(Job { path: self.root.join("jobs").join(format!("{id}.json")), id })
    }

    /// Takes the lock on statistics; `None` if another holds it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn lock_statistics(&self, name: &str) -> Result<Option<File>> {
        lock(&self.root.join("statistics").join(format!("{name}.lock")))
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Begun; what stands under the names beside the output's own is this job's.
    Begun,
    /// Written under a name beside its own, and still to pass the gates.
    Written,
    /// Done, with all gates passed.
    Done,
    /// A gate rejected it.
    Rejected,
    /// It failed.
    Failed,
}

/// What was found out about an output.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Numbers {
    /// Bytes of the file.
    pub bytes: Option<u64>,
    /// Bits a weight over the whole model.
    pub bits_per_weight: Option<f64>,
    /// Squared error of the TCQ4 weights relative to the squared weights, over all of them.
    pub weight_error: Option<f64>,
    /// KL divergence from the source in nats, with its standard error.
    pub kld: Option<(f64, f64)>,
    /// What the expert that saw least has seen, as a share of an even split.
    pub expert_share: Option<f64>,
    /// Steps that fell back, and tensors that took another type than TCQ4 where it should be.
    pub fallbacks: u64,
    /// Seconds of work, over all tries.
    pub seconds: f64,
    /// The most memory of one process, in bytes.
    pub peak_memory: u64,
    /// Tries.
    pub attempts: u32,
}

/// What the file of a job says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Known {
    version: u32,
    /// How far the job is.
    pub stage: Stage,
    /// What the output depends on.
    pub key: String,
    /// What the gates depend on.
    pub gates: String,
    /// The output, or what is to become it, as it was left.
    pub stamp: Option<Stamp>,
    /// The output as this job, or one before it, last published it.
    pub owned: Option<Stamp>,
    /// What was found out.
    pub numbers: Numbers,
    /// Why it failed or was rejected.
    pub message: Option<String>,
}

impl Known {
    /// The record of a job that depends on these keys.
    pub fn new(stage: Stage, key: &str, gates: &str) -> Self {
        let (key, gates) = (key.to_owned(), gates.to_owned());
        Self {
            version: VERSION,
            stage,
            key,
            gates,
            stamp: None,
            owned: None,
            numbers: Numbers::default(),
            message: None,
        }
    }

    /// Whether the file that was left is still there as it was.
    pub fn stands(&self) -> bool {
        self.stamp.as_ref().is_some_and(Stamp::holds)
    }

    /// Whether nothing is left to do where its keys are the same: it is there, or would be rejected for the same reason.
    pub fn is_over(&self) -> bool {
        match self.stage {
            Stage::Done => self.stands(),
            Stage::Rejected => true,
            Stage::Begun | Stage::Written | Stage::Failed => false,
        }
    }

    /// The file that was left, where it is now: a run may have ended between giving it its name and saying so.
    pub fn left(&self, output: &Path) -> Option<Stamp> {
        let stamp = self.stamp.as_ref()?;
        [stamp.clone(), Stamp { path: output.to_path_buf(), ..stamp.clone() }].into_iter().find(Stamp::holds)
    }

    /// Whether what lies under the output's name is this batch's.
    pub fn owns(&self, output: &Path) -> bool {
        let published = || self.left(output).is_some_and(|stamp| stamp.path == output);
        self.owned.as_ref().is_some_and(Stamp::holds) || (self.stage == Stage::Written && published())
    }
}

/// A job's place in the folder.
#[derive(Debug, Clone)]
pub struct Job {
    path: PathBuf,
    id: String,
}

impl Job {
    /// What is known.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load(&self) -> Result<Option<Known>> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(Error::io(&self.path, "read"))?,
        };
        let bad = |problem: String| PipelineError::State { path: self.path.clone(), problem };
        let known: Known = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if known.version != VERSION {
            return Err(bad(format!("version {}, expected {VERSION}", known.version)).into());
        }
        Ok(Some(known))
    }

    /// Keeps what is known.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn save(&self, known: &Known) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(known).map_err(|error| Error::io(&self.path, "write")(error.into()))?;
        atomic_file::write(&self.path, true, &[], &bytes)
    }

    /// Takes the job; `None` if another run has it. The lock goes with the value, or with the process.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn lock(&self) -> Result<Option<File>> {
        lock(&self.path.with_extension("lock"))
    }
}

fn lock(path: &Path) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path).map_err(Error::io(path, "create"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::io(path, "lock")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_taken_once_and_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(&dir.path().join("state"), None).unwrap();
        let job = folder.job(&dir.path().join("out.gguf")).unwrap();
        assert_eq!(job.load().unwrap(), None);
        let held = job.lock().unwrap();
        assert!(held.is_some() && job.lock().unwrap().is_none());
        drop(held);
        assert!(job.lock().unwrap().is_some());
        let mut known = Known::new(Stage::Done, "k", "g");
        fs::write(dir.path().join("out.gguf"), "bytes").unwrap();
        known.stamp = Stamp::of(&dir.path().join("out.gguf"));
        known.numbers.kld = Some((0.1 + 0.2, 1e-9));
        job.save(&known).unwrap();
        let loaded = job.load().unwrap().unwrap();
        assert_eq!(loaded, known);
        assert!(loaded.stands());
        fs::write(dir.path().join("out.gguf"), "other").unwrap();
        assert!(!loaded.stands(), "another time of change, whatever the size");
        fs::write(&job.path, "{}").unwrap();
        assert!(job.load().unwrap_err().to_string().contains("no state of a job: missing field"));
    }
}
