//! Memory as Linux tells it, of this machine and of processes. Elsewhere nothing is known.

use std::fs;
use std::path::Path;

/// The most memory that a process has had, in bytes; 0 where the system does not say. `self` is this process.
pub fn peak_memory(process: &str) -> u64 {
    kibibytes(Path::new("/proc").join(process).join("status").as_path(), "VmHWM:").unwrap_or(0)
}

/// Bytes of memory that are free for use, within the limit of the control group.
pub fn free_memory() -> u64 {
    let machine = kibibytes(Path::new("/proc/meminfo"), "MemAvailable:").unwrap_or(u64::MAX);
    machine.min(free_of_group(Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX))
}

/// What is left of the limit of a control group (version 2). Files that were read and can be forgotten take nothing.
fn free_of_group(group: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let forgettable = field(&group.join("memory.stat"), "inactive_file ").unwrap_or(0);
    let used = number("memory.current").unwrap_or(0).saturating_sub(forgettable);
    Some(number("memory.max")?.saturating_sub(used))
}

/// A field of a file of such lines: `VmHWM:     1234 kB`, in bytes.
fn kibibytes(path: &Path, name: &str) -> Option<u64> {
    field(path, name).map(|kibibytes| kibibytes.saturating_mul(1024))
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_the_process() {
        assert!(cfg!(not(target_os = "linux")) || peak_memory("self") > 1 << 20);
        assert_eq!(peak_memory("none"), 0);
        assert!(free_memory() > 0);
    }

    #[test]
    fn files_that_were_read_do_not_fill_a_control_group() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_of_group(dir.path()), None);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        assert_eq!(free_of_group(dir.path()), None, "no limit");
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        assert_eq!(free_of_group(dir.path()), Some(100));
        write("memory.stat", "anon 100\nfile 800\ninactive_file 700\n");
        assert_eq!(free_of_group(dir.path()), Some(800));
    }
}
