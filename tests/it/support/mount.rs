//! File systems mounted for one test: small disks, folders that cannot be written. Only root can mount; tests skip where it cannot be done.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::Dir;

/// A file system mounted for one test.
pub struct Mount {
    pub path: PathBuf,
    mounted: bool,
    _folder: Dir,
}

impl Mount {
    /// Mounts a file system in memory; gives nothing where that is not allowed.
    pub fn tmpfs(options: &str) -> Option<Mount> {
        let folder = Dir::new();
        let path = folder.path().to_path_buf();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then(|| Mount { path, mounted: true, _folder: folder })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(&self.path).status();
        }
    }
}

/// Makes a folder that cannot be written: a read-only mount for root, mode 555 for others.
pub fn dir_that_nobody_can_write() -> Option<Mount> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(mount) = Mount::tmpfs("ro,size=1m") {
        return Some(mount);
    }
    let folder = Dir::new();
    let path = folder.path().to_path_buf();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o555)).ok()?;
    // Root without the right to mount can write here all the same.
    std::fs::write(path.join("probe"), b"").is_err().then_some(Mount { path, mounted: false, _folder: folder })
}
