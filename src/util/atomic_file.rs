//! Writes a file that appears under its name complete or not at all. It does not decide what is written.
//!
//! The bytes go to `.NAME.part` in the same folder, which is locked while this program holds it, and are renamed at the end. So
//! * a kill, a crash, a full disk or an error leaves whatever stood under the name before; the next run reuses the `.part` file;
//! * two runs that write one output do not mix: the second is refused while the first runs;
//! * without `force`, a file that appears under the name in the meantime is not replaced either;
//! * a program that has the old file open or mapped keeps the old one: the name is moved, the bytes are not touched.
//!
//! A symbolic link under the name is replaced by the file, not followed.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, ModelError, Result};

/// How often a temporary file that vanishes under us is looked for again before giving up.
const LOCK_ATTEMPTS: usize = 16;

/// An output under its temporary name. Dropped without [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temp: PathBuf,
    folder: File,
    file: File,
    force: bool,
    published: bool,
}

impl AtomicFile {
    /// Begins the output `path`.
    ///
    /// Refuses an existing file without `force`, a folder or device with it, a path that is one of `inputs` (also through links of either kind),
    /// and an output that another run is writing.
    pub fn create(path: &Path, force: bool, inputs: &[&Path]) -> Result<AtomicFile> {
        check_target(path, force, inputs)?;
        let Some(name) = path.file_name() else {
            return Err(Error::io(path, "write to")(io::ErrorKind::InvalidFilename.into()));
        };
        let folder = open_folder(folder_of(path))?;
        let mut temp_name = std::ffi::OsString::from(".");
        temp_name.push(name);
        temp_name.push(".part");
        let temp = path.with_file_name(temp_name);
        let file = open_locked(path, &temp)?;
        let output = AtomicFile { path: path.to_path_buf(), temp, folder, file, force, published: false };
        output.file.set_len(0).map_err(Error::io(path, "write to"))?;
        Ok(output)
    }

    /// Gives the final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the path under which the bytes lie until they are committed.
    pub fn temp_path(&self) -> &Path {
        &self.temp
    }

    /// Makes the file `bytes` long, with the space reserved on the disk where the file system can do that.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        match allocate(&self.file, bytes) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let _ = self.file.set_len(0);
                Err(Error::io(&self.path, "reserve the space for this file")(full(&self.file, bytes)))
            }
            Err(error) => Err(Error::io(&self.path, "reserve the space for this file")(error)),
        }
    }

    /// Writes `bytes` at `offset`; may be called from many threads.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(Error::io(&self.path, "write to"))
    }

    /// Waits until the bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path, "flush to the disk"))
    }

    /// Waits until the bytes are on the disk and gives the file its name.
    pub fn commit(self) -> Result<()> {
        self.sync()?;
        self.publish()
    }

    /// Gives the file its name; for several outputs that were all [`AtomicFile::sync`]ed before.
    pub fn publish(mut self) -> Result<()> {
        move_to(&self.temp, &self.path, self.force)?;
        self.published = true;
        sync_folder(&self.folder, &self.path)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.published {
            // We hold the lock, so the name is ours; if it cannot be removed, the next run reuses it.
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// Writes `bytes` as the file `path`, with the guarantees of this module.
pub fn write(path: &Path, force: bool, inputs: &[&Path], bytes: &[u8]) -> Result<()> {
    let file = AtomicFile::create(path, force, inputs)?;
    file.write_at(bytes, 0)?;
    file.commit()
}

/// Gives a complete file of the same folder the name `path`, and waits until the disk has it. Without `force`, a file of that name is not replaced.
pub fn rename(file: &Path, path: &Path, force: bool) -> Result<()> {
    let folder = open_folder(folder_of(path))?;
    move_to(file, path, force)?;
    sync_folder(&folder, path)
}

fn move_to(file: &Path, path: &Path, force: bool) -> Result<()> {
    let renamed = if force { fs::rename(file, path) } else { rename_new(file, path) };
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => ModelError::OutputExists { path: path.to_path_buf() }.into(),
        _ => Error::io(path, "rename the finished file to")(error),
    })
}

fn sync_folder(folder: &File, path: &Path) -> Result<()> {
    match folder.sync_all() {
        // Some network file systems cannot flush folders; the file itself is complete.
        Err(error) if !matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Err(Error::io(path, "flush the folder of")(error))
        }
        _ => Ok(()),
    }
}

/// Checks that an output is none of the files that it is made of, through whatever links.
pub fn check_inputs(path: &Path, inputs: &[&Path]) -> Result<()> {
    let input = inputs.iter().find(|input| same_file(path, input));
    input.map_or(Ok(()), |input| {
        Err(ModelError::OutputIsInput { path: path.to_path_buf(), input: input.to_path_buf() }.into())
    })
}

/// Checks that an output could be created at `path`, so that long work can be refused before it begins.
pub fn check_target(path: &Path, force: bool, inputs: &[&Path]) -> Result<()> {
    check_inputs(path, inputs)?;
    let Ok(existing) = fs::symlink_metadata(path) else { return check_folder(path) };
    if existing.is_dir() {
        return Err(Error::io(path, "write to")(io::ErrorKind::IsADirectory.into()));
    }
    if !force {
        return Err(ModelError::OutputExists { path: path.to_path_buf() }.into());
    }
    if !(existing.is_file() || existing.is_symlink()) {
        let other = io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a link");
        return Err(Error::io(path, "replace")(other));
    }
    check_folder(path)
}

/// Checks that the folder of `path` is one, and can be written.
fn check_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    open_folder(folder)?;
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| Error::io(path, "create")(e.into()))
}

/// The folder that a file lies in, as its path says it; `.` where that says nothing.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn open_folder(folder: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::DIRECTORY.bits() as i32);
    options.open(folder).map_err(Error::io(folder, "open the output folder"))
}

/// Tells whether two paths lead to one existing file, through whatever links.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => same_inode(&a, &b),
        _ => false,
    }
}

fn same_inode(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Opens and locks the temporary file of `path`.
///
/// Between opening and locking, the run that held it may have renamed or removed it: then our lock is on a file that is no longer this name's,
/// possibly on a finished output, and must not be touched. So the name is compared with the open file after locking.
fn open_locked(path: &Path, temp: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    for _ in 0..LOCK_ATTEMPTS {
        let file = options.open(temp).map_err(Error::io(path, "create"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ModelError::OutputBusy { path: path.to_path_buf() }.into()),
            Err(TryLockError::Error(error)) => return Err(Error::io(path, "lock")(error)),
        }
        let opened = file.metadata().map_err(Error::io(path, "create"))?;
        if fs::symlink_metadata(temp).is_ok_and(|named| named.is_file() && same_inode(&named, &opened)) {
            return Ok(file);
        }
    }
    Err(ModelError::OutputBusy { path: path.to_path_buf() }.into())
}

/// Reserves space, or only sets the length where the file system cannot reserve.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if bytes > 0 {
        let reserve = || rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        match rustix::io::retry_on_intr(reserve) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    file.set_len(bytes)
}

/// Describes a full disk.
fn full(file: &File, needed: u64) -> io::Error {
    let free = rustix::fs::fstatvfs(file).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let free = free.map_or_else(|_| "too few".to_owned(), |free| free.to_string());
    io::Error::new(io::ErrorKind::StorageFull, format!("the disk is full: {needed} bytes needed, {free} free"))
}

/// Renames without replacing. File systems that cannot do that in one step get a hard link, those without links a look before the rename.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        other => return other.map_err(io::Error::from),
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) if fs::symlink_metadata(to).is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}
