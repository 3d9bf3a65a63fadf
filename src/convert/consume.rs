//! Converts a model in shards where the disk has no room for it and the output together: each shard of the source is given up as soon as the part that
//! is made of it is written, read back and synced. What was given up cannot be had again, so everything that is needed to go on is on the disk before.
//!
//! A folder beside the output keeps the parts, one for each source shard, until they are put together. A shard that is given up loses its name first
//! (`.NAME.consumed`) and its bytes then, all but the header and what the fingerprint samples: so an interrupted run still opens the whole model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys::{hash_key, permutations_of};
use super::merge_parts::merge_parts;
use super::parts::{Description, Part, is_own};
use super::run::{Converted, Job, Target, convert_part_of};
use super::source_hashes::SourceHashes;
use super::{Conversion, record};
use crate::calib::store::{fingerprint, sampled};
use crate::error::{ConvertError, Error, Result};
use crate::gguf::{ShardName, Source};
use crate::quant::Transform;
use crate::util::atomic_file;
use crate::util::holes::punch;
use crate::util::progress::Progress;
use crate::util::shard::Shard;

/// What is known of the source, kept because it can only be found out while all of it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    fingerprint: String,
    hashes: SourceHashes,
}

/// A source that is given up shard by shard, and the folder that takes its place on the way.
#[derive(Debug)]
pub struct Consumption {
    folder: PathBuf,
    /// The shards under their own names.
    shards: Vec<PathBuf>,
}

impl Consumption {
    /// Opens the model of `path`, any of its shards, whether or not an interrupted run on the way to `output` has given up some of them.
    ///
    /// # Errors
    /// What [`Source::open`] refuses; a model in one file, and files that are not the only name of their bytes.
    pub fn open(path: &Path, output: &Path) -> Result<(Source, Self)> {
        let this = Self::new(path, output)?;
        let shards = &this.shards;
        let present = |shard: &PathBuf| {
            let rest = given_up(shard);
            if !shard.exists() && rest.exists() { rest } else { shard.clone() }
        };
        for shard in shards {
            match fs::symlink_metadata(shard) {
                Ok(kind) if !kind.is_file() => {
                    return Err(refuse(shard, "it is a link, and not the file itself").into());
                }
                Ok(kind) if kind.nlink() > 1 => return Err(refuse(shard, "its file has other names too").into()),
                _ => (),
            }
        }
        let source = if shards.iter().all(|shard| shard.exists()) {
            Source::open(path)?
        } else {
            Source::open_files(&shards.iter().map(present).collect::<Vec<_>>())?
        };
        Ok((source, this))
    }

    fn new(path: &Path, output: &Path) -> Result<Self> {
        let Some(name) = ShardName::parse(path).filter(|name| name.count > 1) else {
            return Err(refuse(path, "it is no shard of several").into());
        };
        let shards = (1..=name.count.min(crate::gguf::limits::MAX_SHARDS)).map(|n| name.path(n)).collect();
        let mut folder = output.as_os_str().to_os_string();
        folder.push(".partial");
        Ok(Self { folder: folder.into(), shards })
    }

    /// Removes what a run that was stopped after its output was complete has left behind; tells whether there was such a run.
    ///
    /// # Errors
    /// A model in one file; files that cannot be removed.
    pub fn clean_up(path: &Path, output: &Path) -> Result<bool> {
        let this = Self::new(path, output)?;
        let finished = this.finished_file().exists();
        if finished {
            this.forget()?;
        }
        Ok(finished)
    }

    fn part_file(&self, index: usize) -> PathBuf {
        self.folder.join(format!("part-{:05}", index + 1))
    }

    fn parts(&self) -> impl Iterator<Item = PathBuf> {
        (0..self.shards.len()).map(|index| self.part_file(index))
    }

    /// There from the moment on when the output is complete, until all else is removed.
    fn finished_file(&self) -> PathBuf {
        self.folder.join("finished")
    }

    fn known_file(&self) -> PathBuf {
        self.folder.join("source.json")
    }

    /// The transforms of an interrupted run, if one has finished a part: by then weights that they were chosen by may be gone.
    ///
    /// # Errors
    /// A part that is damaged.
    pub fn transforms(&self, source: &Source) -> Result<Option<BTreeMap<String, Transform>>> {
        let Some(part) = self.parts().find(|part| part.exists()) else {
            return Ok(None);
        };
        let part = Source::open(&part)?;
        Description::read(&part)?;
        let orders = permutations_of(&part, source)?;
        Ok(Some(record::read_of(&part, source, &orders)?))
    }

    /// Carries out a conversion, giving up one shard after the other.
    ///
    /// # Errors
    /// As [`super::convert`]; a run of other options than that which left the folder behind.
    pub fn convert(&self, job: &Job<'_>, target: &Target, progress: &dyn Progress) -> Result<Converted> {
        match fs::create_dir(&self.folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::io(&self.folder, "create the folder")(error));
            }
            _ => (),
        }
        let known = self.known(job.source, progress)?;
        let count = self.shards.len() as u32;
        let mut losses = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let tensors = job.source.tensors().iter().enumerate().filter(|(_, tensor)| tensor.shard() == index);
            let part = Part {
                shard: Shard { index: index as u32, count },
                tensors: tensors.map(|(place, _)| place).collect(),
            };
            let path = self.part_file(index);
            if path.exists() {
                self.check_part(&path, job, (&part, target))?;
            } else {
                let target = Target { path, force: false, sharding: target.sharding.clone() };
                losses.extend(convert_part_of(job, &target, &part, Some(&known.hashes), progress)?.losses);
            }
            give_up(job.source, (index, shard.as_path()))?;
        }
        let force = target.force || self.has_made(&target.path);
        let merged = merge_parts(&self.parts().collect::<Vec<_>>(), &target.path, force, progress)?;
        self.forget()?;
        let (outputs, bytes) = (merged.outputs, merged.bytes);
        Ok(Converted { outputs, bytes, source_sha256: Some(merged.source_sha256), losses })
    }

    /// What is known of the source: found out by the first run, checked by those after it.
    fn known(&self, source: &Source, progress: &dyn Progress) -> Result<Known> {
        let path = self.known_file();
        let fingerprint = fingerprint(source);
        if !path.exists() {
            if !self.shards.iter().all(|shard| shard.exists()) {
                return Err(
                    self.refuse("shards of the source are deleted, and what was made of them is not here".into())
                );
            }
            let known = Known { fingerprint, hashes: SourceHashes::all(source, progress)? };
            let json = serde_json::to_vec(&known).map_err(|e| Error::io(&path, "write")(e.into()))?;
            atomic_file::write(&path, false, &[], &json)?;
            return Ok(known);
        }
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        let known: Known = serde_json::from_slice(&bytes).map_err(|e| self.refuse(e.to_string()))?;
        if known.fingerprint != fingerprint {
            return Err(self.refuse(format!(
                "it is of another source: expected one with the fingerprint {}, got {fingerprint}",
                known.fingerprint
            )));
        }
        Ok(known)
    }

    fn refuse(&self, what: String) -> Error {
        ConvertError::Consumed { path: self.folder.clone(), what }.into()
    }

    /// Checks that a part of an earlier run is what this one would write, as far as its keys tell.
    fn check_part(&self, path: &Path, job: &Job<'_>, (part, target): (&Part, &Target)) -> Result<()> {
        let file = Source::open(path)?;
        Description::read(&file)?;
        let mut expected = job.metadata.clone();
        part.describe(&mut expected, &job.plan.specs(), &target.sharding);
        let hashes: BTreeSet<String> = job.plan.tensors.iter().map(|tensor| hash_key(&tensor.name)).collect();
        let compared = |key: &&str| !is_own(key) && !hashes.contains(*key) && !is_layout(key);
        let found = file.metadata();
        let odd = expected.keys().chain(found.keys()).filter(compared);
        match odd.into_iter().find(|key| expected.payload(key) != found.payload(key)) {
            Some(key) => Err(self.refuse(format!("it was made with other options: `{key}` differs"))),
            None => self.check_types(&file, job.plan, part),
        }
    }

    /// Checks the tensors of a part against the plan.
    fn check_types(&self, file: &Source, plan: &Conversion, part: &Part) -> Result<()> {
        let specs = plan.specs();
        let own = part.tensors.iter().map(|&at| &specs[at]);
        let same =
            own.clone().zip(file.tensors()).all(|(spec, found)| (&spec.name, spec.ty) == (&found.name, found.ty));
        if same && own.len() == file.tensors().len() {
            return Ok(());
        }
        Err(self.refuse("it was made with other options: the types of tensors differ".into()))
    }

    /// Whether the file at `output` is what an interrupted run has put together of the parts that are here.
    pub fn has_made(&self, output: &Path) -> bool {
        let Ok(output) = Source::open(output) else { return false };
        self.parts().all(|part| {
            let Ok(part) = Source::open(&part) else { return false };
            part.tensors().iter().map(|tensor| hash_key(&tensor.name)).all(|key| {
                let (made, found) = (part.metadata().get_str(&key), output.metadata().get_str(&key));
                made.is_some() && made == found
            })
        })
    }

    /// Removes everything that stood in for the source; what is left of it after an interruption, [`Consumption::clean_up`] removes.
    fn forget(&self) -> Result<()> {
        let (known, finished) = (self.known_file(), self.finished_file());
        match fs::rename(&known, &finished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&known, "rename")(error)),
            _ => sync_folder(&finished)?,
        }
        for path in self.shards.iter().map(|shard| given_up(shard)).chain(self.parts()).chain([finished]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&path, "remove")(error)),
                _ => (),
            }
        }
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.map_err(Error::io(&self.folder, "remove")),
        }
    }
}

fn refuse(path: &Path, what: &str) -> ConvertError {
    ConvertError::NotConsumable { path: path.into(), what: what.into() }
}

/// Whether a key is only about where tensors lie.
fn is_layout(key: &str) -> bool {
    key == "general.alignment"
}

/// The name of a shard that is given up.
fn given_up(shard: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(shard.file_name().unwrap_or_default());
    name.push(".consumed");
    shard.with_file_name(name)
}

/// Takes the name of a shard away, and then its bytes, all but the header and those that the fingerprint samples. Does nothing that is done already.
fn give_up(source: &Source, (index, shard): (usize, &Path)) -> Result<()> {
    let rest = given_up(shard);
    match fs::rename(shard, &rest) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(shard, "rename")(error)),
        _ => sync_folder(shard)?,
    }
    let file = OpenOptions::new().write(true).open(&rest).map_err(Error::io(&rest, "open"))?;
    for tensor in source.tensors().iter().filter(|tensor| tensor.shard() == index) {
        let kept = sampled(tensor.bytes as usize);
        for (before, after) in kept.iter().zip(&kept[1..]) {
            let range = tensor.offset() + before.end as u64..tensor.offset() + after.start as u64;
            punch(&file, range).map_err(Error::io(&rest, "free the space of"))?;
        }
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Err(Error::io(folder, "flush the folder")(error))
        }
        _ => Ok(()),
    }
}
