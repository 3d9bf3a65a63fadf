//! Gives the space of a part of a file back to the file system while the file keeps its length: the part reads as zeros from then on.

use std::fs::File;
use std::io;
use std::ops::Range;

/// Punches a hole into `file`. Whole blocks are given back; what else lies in the range becomes zeros.
///
/// # Errors
/// What the operating system says; [`io::ErrorKind::Unsupported`] where neither it nor the file system can do this.
pub fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = || fallocate(file, flags, range.start, range.end - range.start);
        rustix::io::retry_on_intr(punch).map_err(io::Error::from)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_space_is_free_and_the_rest_is_as_it_was() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        match punch(&file, 100..(1 << 20) - 100) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            done => done.unwrap(),
        }
        assert!(file.metadata().unwrap().blocks() < before / 4);
        let mut all = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut all).unwrap();
        assert_eq!(all.len(), 1 << 20);
        assert!(all[..100].iter().chain(&all[(1 << 20) - 100..]).all(|&byte| byte == 7));
        assert!(all[100..(1 << 20) - 100].iter().all(|&byte| byte == 0));
    }
}
