//! Batches of a sequential conversion that are done, kept in a folder beside the output until it is finished, so that a run that was killed goes on
//! as if it had never stopped. For this machine and this version only.
//!
//! Layout of a file, little endian: the bytes of its runs of rows, one behind the other; a footer (JSON); its length, its XXH3 and a magic.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::compensate::{Measure, OutputSums};
use super::rows::{Used, Written};
use super::units::RowUnit;
use crate::error::{ConvertError, Error, Result};
use crate::quant::rounding::Damping;
use crate::tcq::Loss;
use crate::util::atomic_file::AtomicFile;

const MAGIC: [u8; 8] = *b"TCQ4SEQ1";
/// Length, hash and magic.
const TRAILER: u64 = 24;
/// No footer is longer: that of 60 thousand million weights in one batch is not.
const MOST_FOOTER: u64 = 64 << 20;
/// What the names of our files begin with.
const PREFIX: &str = "batch-";

/// Where a conversion keeps what is done.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// A folder of its own; its parent exists.
    pub folder: PathBuf,
    /// Whether to go on from what is there, if anything is, or to begin anew.
    pub resume: bool,
}

impl Checkpoint {
    /// Refuses to begin anew where something is kept, unless by `force`.
    ///
    /// # Errors
    /// [`ConvertError::LeftOver`].
    pub fn check(&self, force: bool) -> Result<()> {
        let batch = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        };
        let kept = fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.any(batch));
        if self.resume || force || !kept {
            return Ok(());
        }
        Err(ConvertError::LeftOver { path: self.folder.clone() }.into())
    }

    /// Removes everything of ours.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn forget(&self) -> Result<()> {
        empty(&self.folder)?;
        match fs::remove_dir(&self.folder) {
            // Somebody keeps other things there.
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => Ok(()),
            removed => removed.map_err(Error::io(&self.folder, "remove")),
        }
    }
}

/// The folder of one run.
pub(super) struct Folder<'a> {
    path: &'a Path,
    /// What the results depend on.
    run: String,
}

#[derive(Serialize, Deserialize)]
struct Footer {
    run: String,
    batch: usize,
    units: Vec<Kept>,
    used: Used,
}

/// A run of rows; sums as the bits of their f64, which text would not keep.
#[derive(Serialize, Deserialize)]
struct Kept {
    tensor: usize,
    first: u64,
    rows: u64,
    digest: u64,
    loss: [u64; 2],
    /// Sums of squared outputs and errors, the share of damping, and the retries.
    output: Option<([u64; 4], u32, bool)>,
}

impl Kept {
    fn new(unit: RowUnit, written: &Written) -> Self {
        let Written { digest, loss, output } = written;
        let sums = |damping: Damping| {
            let bits = [output.energy, output.nearest, output.compensated, damping.share].map(f64::to_bits);
            (bits, damping.retries, output.noise)
        };
        Self {
            tensor: unit.tensor,
            first: unit.first,
            rows: unit.rows,
            digest: *digest,
            loss: [loss.error_sq, loss.weight_sq].map(f64::to_bits),
            output: output.damping.map(sums),
        }
    }

    fn written(&self) -> Written {
        let [error_sq, weight_sq] = self.loss.map(f64::from_bits);
        let sums = |(bits, retries, noise): ([u64; 4], u32, bool)| {
            let [energy, nearest, compensated, share] = bits.map(f64::from_bits);
            let (measure, damping) = (Some(Measure::SecondMoment), Some(Damping { share, retries }));
            OutputSums { energy, nearest, compensated, measure, noise, damping }
        };
        let output = self.output.map(sums).unwrap_or_default();
        Written { digest: self.digest, loss: Loss { error_sq, weight_sq }, output }
    }
}

impl<'a> Folder<'a> {
    /// Makes the folder if it is not there, and empties it of what another run left unless that is to be continued.
    pub(super) fn open(checkpoint: &'a Checkpoint, run: String) -> Result<Self> {
        let folder = Self { path: &checkpoint.folder, run };
        match DirBuilder::new().mode(0o700).create(folder.path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(folder.path).map_err(Error::io(folder.path, "open"))?.is_dir() {
                    return Err(refuse(folder.path, "it is no folder"));
                }
                if !checkpoint.resume {
                    empty(folder.path)?;
                }
            }
            made => made.map_err(Error::io(folder.path, "create the folder"))?,
        }
        Ok(folder)
    }

    fn file(&self, batch: usize) -> PathBuf {
        self.path.join(format!("{PREFIX}{:04}", batch + 1))
    }

    /// Begins the file of a batch with `bytes` of rows.
    pub(super) fn begin(&self, batch: usize, bytes: u64) -> Result<AtomicFile> {
        let file = AtomicFile::create(&self.file(batch), true, &[])?;
        file.reserve(bytes)?;
        Ok(file)
    }

    /// Ends the file of a batch, whose rows are `bytes` long: it is on the disk when this returns.
    pub(super) fn finish(
        &self,
        file: AtomicFile,
        batch: usize,
        bytes: u64,
        (units, used): (impl Iterator<Item = (RowUnit, Written)>, Used),
    ) -> Result<()> {
        let units = units.map(|(unit, written)| Kept::new(unit, &written)).collect();
        let footer = Footer { run: self.run.clone(), batch, units, used };
        let mut end = serde_json::to_vec(&footer).map_err(|e| Error::io(file.path(), "write")(e.into()))?;
        let (len, hash) = (end.len() as u64, xxh3_64(&end));
        end.extend(len.to_le_bytes().into_iter().chain(hash.to_le_bytes()).chain(MAGIC));
        file.write_at(&end, bytes)?;
        file.commit()
    }

    /// Opens the file of a batch that should have these runs of rows, of so many bytes each; `None` if it is not done.
    pub(super) fn load(&self, batch: usize, units: &[(RowUnit, u64)]) -> Result<Option<Done>> {
        let path = self.file(batch);
        // What lies there may be anything: a link is not followed, and a pipe must not keep us waiting.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(Error::io(&path, "open"))?,
        };
        let metadata = file.metadata().map_err(Error::io(&path, "read"))?;
        if !metadata.is_file() {
            return Err(refuse(&path, "it is no file"));
        }
        let damaged = || refuse(&path, "it is damaged");
        let footer = read_footer(&file, metadata.len()).map_err(Error::io(&path, "read"))?.ok_or_else(damaged)?;
        let (footer, rows): (Footer, u64) = (serde_json::from_slice(&footer.0).map_err(|_| damaged())?, footer.1);
        if footer.run != self.run {
            return Err(refuse(&path, "it is of another model, text, or setting"));
        }
        let same = |(kept, (unit, _)): (&Kept, &(RowUnit, u64))| {
            (kept.tensor, kept.first, kept.rows) == (unit.tensor, unit.first, unit.rows)
        };
        let fits = footer.batch == batch
            && footer.units.len() == units.len()
            && footer.units.iter().zip(units).all(same)
            && units.iter().map(|(_, bytes)| bytes).sum::<u64>() == rows;
        if !fits {
            return Err(damaged());
        }
        Ok(Some(Done { path, file, units: footer.units, used: footer.used, places: places(units) }))
    }

    /// The file of a batch was taken away after it was written.
    pub(super) fn vanished(&self, batch: usize) -> Error {
        Error::io(&self.file(batch), "open")(ErrorKind::NotFound.into())
    }
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        // An empty folder is of no use; one with something in it stays.
        let _ = fs::remove_dir(self.path);
    }
}

/// What lies there cannot be continued.
fn refuse(path: &Path, what: &str) -> Error {
    ConvertError::Checkpoint { path: path.to_path_buf(), what: what.to_owned() }.into()
}

/// Removes our files from a folder.
fn empty(folder: &Path) -> Result<()> {
    let all = || -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.strip_prefix('.').unwrap_or(&name).starts_with(PREFIX) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    match all() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::io(folder, "empty")),
    }
}

/// The footer of a file of `len` bytes, and the bytes of rows before it; `None` if they are not what they should be.
fn read_footer(file: &File, len: u64) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut trailer = [0; TRAILER as usize];
    let Some(end) = len.checked_sub(TRAILER) else { return Ok(None) };
    file.read_exact_at(&mut trailer, end)?;
    let [length, hash, magic]: [u64; 3] = bytemuck::pod_read_unaligned(&trailer);
    let rows = end.checked_sub(length).filter(|_| length <= MOST_FOOTER && magic.to_le_bytes() == MAGIC);
    let Some(rows) = rows else { return Ok(None) };
    let mut footer = vec![0; length as usize];
    file.read_exact_at(&mut footer, rows)?;
    Ok((xxh3_64(&footer) == hash).then_some((footer, rows)))
}

/// Where runs of rows of so many bytes lie, one behind the other.
pub(super) fn places(units: &[(RowUnit, u64)]) -> Vec<(u64, u64)> {
    let place = |at: &mut u64, &(_, bytes): &(RowUnit, u64)| {
        *at += bytes;
        Some((*at - bytes, bytes))
    };
    units.iter().scan(0, place).collect()
}

/// A batch that is done.
pub(super) struct Done {
    path: PathBuf,
    file: File,
    units: Vec<Kept>,
    /// What the codes were chosen by.
    pub(super) used: Used,
    places: Vec<(u64, u64)>,
}

impl Done {
    /// What was kept of a run of rows, counted within the batch, and its bytes.
    ///
    /// # Errors
    /// Bytes that are not those that were written.
    pub(super) fn read(&self, index: usize) -> Result<(Written, Vec<u8>)> {
        let (offset, len) = self.places[index];
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::io(&self.path, "read"))?;
        let written = self.units[index].written();
        if xxh3_64(&bytes) != written.digest {
            return Err(refuse(&self.path, "it is damaged"));
        }
        Ok((written, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: [(RowUnit, u64); 2] =
        [(RowUnit { tensor: 3, first: 0, rows: 8 }, 5), (RowUnit { tensor: 3, first: 8, rows: 8 }, 4)];

    fn written(bytes: &[u8], damped: bool) -> Written {
        let mut output = OutputSums::default();
        if damped {
            (output.energy, output.nearest, output.compensated) = (1.0 / 3.0, 0.1, f64::MIN_POSITIVE);
            output.measure = Some(Measure::SecondMoment);
            output.damping = Some(Damping { share: 0.1, retries: 2 });
        }
        Written { digest: xxh3_64(bytes), loss: Loss { error_sq: 0.1 + 0.2, weight_sq: 7.0 }, output }
    }

    fn save(folder: &Folder<'_>) {
        let file = folder.begin(1, 9).unwrap();
        file.write_at(b"eight", 0).unwrap();
        file.write_at(b"four", 5).unwrap();
        let written = [written(b"eight", true), written(b"four", false)];
        folder.finish(file, 1, 9, (UNITS.map(|(unit, _)| unit).into_iter().zip(written), Used::new())).unwrap();
    }

    fn everything(folder: &Folder<'_>) -> Result<Vec<(Written, Vec<u8>)>> {
        let done = folder.load(1, &UNITS)?.ok_or_else(|| refuse(folder.path, "nothing"))?;
        (0..2).map(|index| done.read(index)).collect()
    }

    #[test]
    fn a_batch_comes_back_bit_for_bit_and_only_for_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint { folder: dir.path().join("out.partial"), resume: true };
        let folder = Folder::open(&checkpoint, "run".into()).unwrap();
        assert!(folder.load(1, &UNITS).unwrap().is_none());
        save(&folder);
        let all = everything(&folder).unwrap();
        assert_eq!((&all[0].1[..], &all[1].1[..]), (&b"eight"[..], &b"four"[..]));
        assert_eq!(format!("{:?}", all[0].0), format!("{:?}", written(b"eight", true)));
        assert_eq!(format!("{:?}", all[1].0), format!("{:?}", written(b"four", false)));
        assert!(folder.load(0, &UNITS).unwrap().is_none());
        assert!(folder.load(1, &UNITS[..1]).is_err());
        let other = Folder::open(&checkpoint, "other".into()).unwrap();
        assert!(other.load(1, &UNITS).err().unwrap().to_string().ends_with("another model, text, or setting"));
        assert!(checkpoint.check(false).is_ok());
        let anew = Checkpoint { resume: false, ..checkpoint.clone() };
        assert!(anew.check(false).is_err() && anew.check(true).is_ok());
        assert!(Folder::open(&anew, "run".into()).unwrap().load(1, &UNITS).unwrap().is_none(), "begun anew");
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint { folder: dir.path().join("out.partial"), resume: true };
        let folder = Folder::open(&checkpoint, "run".into()).unwrap();
        save(&folder);
        let path = folder.file(1);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert!(everything(&folder).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(everything(&folder).is_err(), "cut at {at}");
        }
        for len in [u64::MAX, MOST_FOOTER + 1, 0] {
            let mut bad = good.clone();
            let at = bad.len() - TRAILER as usize;
            bad[at..at + 8].copy_from_slice(&len.to_le_bytes());
            fs::write(&path, &bad).unwrap();
            assert!(everything(&folder).is_err(), "a footer of {len}");
        }
    }

    #[test]
    fn only_our_files_are_removed_and_only_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint { folder: dir.path().join("out.partial"), resume: true };
        let folder = Folder::open(&checkpoint, "run".into()).unwrap();
        save(&folder);
        std::os::unix::fs::symlink(folder.file(1), folder.file(0)).unwrap();
        assert!(folder.load(0, &UNITS).is_err(), "a link");
        fs::write(folder.path.join("notes.txt"), "mine").unwrap();
        checkpoint.forget().unwrap();
        let left: Vec<_> = fs::read_dir(folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        fs::remove_file(folder.path.join("notes.txt")).unwrap();
        fs::create_dir(folder.file(1)).unwrap();
        assert!(folder.load(1, &UNITS).is_err(), "a folder");
        fs::remove_dir(folder.file(1)).unwrap();
        checkpoint.forget().unwrap();
        fs::write(&checkpoint.folder, "a file").unwrap();
        assert!(Folder::open(&checkpoint, "run".into()).is_err());
    }
}
