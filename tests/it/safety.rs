//! Outputs are safe: nothing is replaced unasked, nothing half-written ever has the final name, whatever happens in between.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tcq4::gguf::{Dialect, GgmlType, Metadata, Plan, Sharding, Source, TensorSpec, Writer};
use tcq4::util::atomic_file::{self, AtomicFile};
use tcq4::{Class, Error};

use crate::support::mount::{Mount, dir_that_nobody_can_write};
use crate::support::{Dir, skip};

/// The environment of the child process: the output that it writes, and the file that tells its parent that it is in the middle of it.
const CHILD_OUTPUT: &str = "TCQ4_TEST_CHILD_OUTPUT";
const CHILD_READY: &str = "TCQ4_TEST_CHILD_READY";

/// Plans two tensors of `bytes` bytes each.
fn plan(bytes: u64, sharding: &Sharding) -> Plan {
    let spec = |name: &str| TensorSpec { name: name.into(), dims: vec![bytes], ty: GgmlType::I8 };
    let specs = vec![spec("first"), spec("second")];
    Plan::sharded(&Metadata::new(), specs, 32, sharding, Dialect::Upstream).unwrap()
}

/// Writes an output whose tensors are filled with `fill`.
fn write_all(path: &Path, fill: u8, force: bool) -> Result<(), Error> {
    let plan = plan(1024, &Sharding::Single);
    let writer = Writer::create(path, &plan, force, &[])?;
    writer.write(0, 0, &[fill; 1024])?;
    writer.write(1, 0, &[fill; 1024])?;
    writer.commit()
}

/// Gives the byte that fills both tensors of an output.
fn fill_of(path: &Path) -> u8 {
    let source = Source::open(path).unwrap();
    let first = source.data(&source.tensors()[0])[0];
    assert!(source.tensors().iter().all(|tensor| source.data(tensor).iter().all(|byte| *byte == first)));
    first
}

#[test]
fn existing_outputs_are_refused_without_force() {
    let dir = Dir::new();
    let path = dir.file("out.gguf");
    write_all(&path, 1, false).unwrap();
    let error = write_all(&path, 2, false).unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: the file exists already");
    assert_eq!(error.hint().as_deref(), Some("choose another name, or pass --force to replace it"));
    assert_eq!((error.class(), fill_of(&path)), (Class::Refused, 1));
    write_all(&path, 3, true).unwrap();
    assert_eq!(fill_of(&path), 3);
    assert_eq!(dir.names(), ["out.gguf"]);
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let dir = Dir::new();
    let path = dir.file("out.gguf");
    let plan = plan(64, &Sharding::Single);
    let writer = Writer::create(&path, &plan, false, &[]).unwrap();
    writer.write(0, 0, &[1; 64]).unwrap();
    writer.write(1, 0, &[1; 64]).unwrap();
    dir.write("out.gguf", b"somebody else's");
    let error = writer.commit().unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: the file exists already");
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody else's");
    assert_eq!(dir.names(), ["out.gguf"]);
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    let dir = Dir::new();
    let input = dir.file("in.gguf");
    write_all(&input, 7, false).unwrap();
    std::os::unix::fs::symlink(&input, dir.file("symbolic.gguf")).unwrap();
    std::fs::hard_link(&input, dir.file("hard.gguf")).unwrap();
    std::fs::create_dir(dir.file("sub")).unwrap();
    let plan = plan(64, &Sharding::Single);
    for name in ["in.gguf", "symbolic.gguf", "hard.gguf", "sub/../in.gguf"] {
        let error = Writer::create(&dir.file(name), &plan, true, &[&input]).unwrap_err();
        assert_eq!(dir.message(&error), format!("{name}: this output is the same file as the input in.gguf"));
        assert_eq!(error.class(), Class::Refused);
    }
    assert_eq!(fill_of(&input), 7);
}

#[test]
fn an_output_that_is_a_shard_of_the_input_is_refused() {
    let dir = Dir::new();
    let sharded = plan(64, &Sharding::Counts(vec![1, 1]));
    let write = |force, inputs: &[&Path]| {
        let writer = Writer::create(&dir.file("m.gguf"), &sharded, force, inputs)?;
        writer.write(0, 0, &[1; 64])?;
        writer.write(1, 0, &[2; 64])?;
        writer.commit()
    };
    write(false, &[]).unwrap();
    let source = Source::open(&dir.file("m-00001-of-00002.gguf")).unwrap();
    let inputs: Vec<&Path> = source.shards().collect();
    let single = plan(64, &Sharding::Single);
    let error = Writer::create(&dir.file("m-00002-of-00002.gguf"), &single, true, &inputs).unwrap_err();
    let expected = "m-00002-of-00002.gguf: this output is the same file as the input m-00002-of-00002.gguf";
    assert_eq!(dir.message(&error), expected);
    let error = write(true, &inputs).unwrap_err();
    assert!(dir.message(&error).starts_with("m-00001-of-00002.gguf: this output is the same file as the input"));
    write(true, &[]).unwrap();
    assert_eq!(dir.names(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    assert_eq!(source.data(&source.tensors()[1])[0], 2, "the old files stay mapped");
}

#[test]
fn a_missing_folder_is_named() {
    let dir = Dir::new();
    let error = write_all(&dir.file("none/out.gguf"), 1, false).unwrap_err();
    assert_eq!(dir.message(&error), "none: cannot open the output folder: No such file or directory (os error 2)");
    let file = dir.write("file", b"");
    let error = write_all(&file.join("out.gguf"), 1, false).unwrap_err();
    assert!(
        dir.message(&error).starts_with("file/out.gguf: cannot") || dir.message(&error).starts_with("file: cannot")
    );
}

#[test]
fn folders_and_devices_are_never_replaced() {
    let dir = Dir::new();
    std::fs::create_dir(dir.file("out.gguf")).unwrap();
    let error = write_all(&dir.file("out.gguf"), 1, true).unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: cannot write to: is a directory");
    let error = write_all(Path::new("/dev/null"), 1, true).unwrap_err();
    assert_eq!(error.to_string(), "/dev/null: cannot replace: it is neither a file nor a link");
}

#[test]
fn an_unwritable_folder_is_reported() {
    let (dir, mount) = (Dir::new(), dir_that_nobody_can_write());
    let Some(folder) = mount.as_ref().map(|mount| mount.path.clone()) else {
        return skip("no read-only folder can be made here");
    };
    let error = write_all(&folder.join("out.gguf"), 1, false).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}/out.gguf: cannot create: ", folder.display())), "{error}");
    drop((mount, dir));
}

#[test]
fn a_full_disk_is_found_before_the_work() {
    let Some(disk) = Mount::tmpfs("size=1m") else {
        return skip("no small disk can be mounted here (needs root)");
    };
    let path = disk.path.join("out.gguf");
    write_all(&path, 1, false).unwrap();
    let error = Writer::create(&path, &plan(1 << 20, &Sharding::Single), true, &[]).unwrap_err();
    let message = error.to_string();
    let start =
        format!("{}: cannot reserve the space for this file: the disk is full: 2097280 bytes needed, ", path.display());
    assert!(message.starts_with(&start) && message.ends_with(" free"), "{message}");
    assert!(error.hint().is_some_and(|hint| hint.starts_with("free some space")));
    assert_eq!((error.class(), fill_of(&path)), (Class::Failed, 1));
    let names: Vec<_> = std::fs::read_dir(&disk.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["out.gguf"]);
    let error = atomic_file::write(&disk.path.join("perms.json"), false, &[], &vec![b' '; 2 << 20]).unwrap_err();
    assert!(error.to_string().contains("perms.json: cannot write to: No space left on device"), "{error}");
    assert!(!disk.path.join("perms.json").exists() && !disk.path.join(".perms.json.part").exists());
}

#[test]
fn an_incomplete_output_is_not_committed() {
    let dir = Dir::new();
    let path = dir.file("out.gguf");
    let writer = Writer::create(&path, &plan(64, &Sharding::Single), false, &[]).unwrap();
    writer.write(0, 0, &[1; 64]).unwrap();
    let error = writer.write(1, 60, &[1; 5]).unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: tensor `second`: 5 bytes at 60 pass its end at 64");
    let error = writer.write(1, u64::MAX, &[1; 5]).unwrap_err();
    assert!(dir.message(&error).ends_with("5 bytes at 18446744073709551615 pass its end at 64"));
    writer.write(1, 32, &[1; 32]).unwrap();
    assert_eq!(dir.names(), [".out.gguf.part"]);
    let error = writer.commit().unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: tensor `second`: 32 bytes were written, 64 planned");
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn a_link_under_the_name_is_replaced_not_followed() {
    let dir = Dir::new();
    let target = dir.write("target", b"untouched");
    std::os::unix::fs::symlink(&target, dir.file("out.gguf")).unwrap();
    std::os::unix::fs::symlink(&target, dir.file(".other.gguf.part")).unwrap();
    write_all(&dir.file("out.gguf"), 5, true).unwrap();
    assert!(dir.file("out.gguf").symlink_metadata().unwrap().is_file());
    let error = write_all(&dir.file("other.gguf"), 5, false).unwrap_err();
    assert!(dir.message(&error).starts_with("other.gguf: cannot create: "), "a link in place of the temporary file");
    assert_eq!(std::fs::read(target).unwrap(), b"untouched");
}

#[test]
fn two_runs_do_not_write_one_output_together() {
    let dir = Dir::new();
    let path = dir.file("out.gguf");
    let plan = plan(64, &Sharding::Single);
    let first = Writer::create(&path, &plan, true, &[]).unwrap();
    let error = Writer::create(&path, &plan, true, &[]).unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: another run is writing this file");
    assert_eq!(error.class(), Class::Refused);
    drop(first);
    assert_eq!(dir.names(), [""; 0]);
    write_all(&path, 9, false).unwrap();
}

/// Many runs that race for one name: each either finishes whole or is told why not, and the file is always one run's.
#[test]
fn racing_runs_leave_one_whole_file() {
    let dir = Dir::new();
    let path = dir.file("out.gguf");
    let finished: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (1..=4u8)
            .map(|fill| {
                let path = &path;
                scope.spawn(move || (0..25).filter(|_| write_all(path, fill, true).is_ok()).count())
            })
            .collect();
        while !runs.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            if path.exists() {
                assert!((1..=4).contains(&fill_of(&path)));
            }
        }
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert!(finished > 0 && (1..=4).contains(&fill_of(&path)));
    assert_eq!(dir.names(), ["out.gguf"]);
}

#[test]
fn shards_appear_together() {
    let dir = Dir::new();
    let sharded = plan(64, &Sharding::Counts(vec![1, 1]));
    let writer = Writer::create(&dir.file("m.gguf"), &sharded, false, &[]).unwrap();
    writer.write(0, 0, &[1; 64]).unwrap();
    writer.write(1, 0, &[1; 64]).unwrap();
    assert_eq!(dir.names(), [".m-00001-of-00002.gguf.part", ".m-00002-of-00002.gguf.part"]);
    assert_eq!(writer.reread().unwrap().tensors().len(), 2);
    dir.write("m-00001-of-00002.gguf", b"somebody else's");
    let error = writer.commit().unwrap_err();
    assert_eq!(dir.message(&error), "m-00001-of-00002.gguf: the file exists already");
    assert_eq!(dir.names(), ["m-00001-of-00002.gguf"], "the second shard, renamed first, is taken back");
}

/// Kills a run in the middle of writing; the old output is whole, and the next run works.
#[test]
fn a_killed_run_leaves_the_old_output() {
    let dir = Dir::new();
    let path = dir.file("out.gguf");
    write_all(&path, 1, false).unwrap();
    let old = std::fs::read(&path).unwrap();
    let mut child = start_child(&path, &dir.file("ready"));
    let error = write_all(&path, 2, true).unwrap_err();
    assert_eq!(dir.message(&error), "out.gguf: another run is writing this file", "from another process too");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(std::fs::read(&path).unwrap() == old);
    assert_eq!(dir.names(), [".out.gguf.part", "out.gguf", "ready"], "a kill leaves the temporary file");
    assert!(Source::open(&dir.file(".out.gguf.part")).is_ok_and(|part| part.data(&part.tensors()[1])[0] == 0));
    write_all(&path, 2, true).unwrap();
    assert_eq!(fill_of(&path), 2);
    assert_eq!(dir.names(), ["out.gguf", "ready"], "the next run has used it up");
}

/// Starts this test binary again as a run that stops in the middle of writing, and waits until it is there.
fn start_child(path: &Path, ready: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "safety::child_that_stops_in_the_middle", "--ignored"]);
    command.env(CHILD_OUTPUT, path).env(CHILD_READY, ready).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let begun = Instant::now();
    while !ready.exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the child did not start writing");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
#[ignore = "the child of `a_killed_run_leaves_the_old_output`, not a test of its own"]
fn child_that_stops_in_the_middle() {
    let (Some(path), Some(ready)) = (std::env::var_os(CHILD_OUTPUT), std::env::var_os(CHILD_READY)) else {
        return skip("only started by its parent");
    };
    let plan = plan(1 << 20, &Sharding::Single);
    let writer = Writer::create(Path::new(&path), &plan, true, &[]).unwrap();
    writer.write(0, 0, &vec![9; 1 << 20]).unwrap();
    std::fs::write(ready, b"").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn small_files_are_written_with_the_same_care() {
    let dir = Dir::new();
    let path = dir.file("perms.json");
    atomic_file::write(&path, false, &[], b"{}").unwrap();
    let error = atomic_file::write(&path, false, &[], b"[]").unwrap_err();
    assert_eq!(dir.message(&error), "perms.json: the file exists already");
    atomic_file::write(&path, true, &[], b"[]").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"[]");
    let dropped = AtomicFile::create(&path, true, &[]).unwrap();
    dropped.write_at(b"never seen", 0).unwrap();
    drop(dropped);
    assert_eq!((std::fs::read(&path).unwrap(), dir.names()), (b"[]".to_vec(), vec!["perms.json".to_owned()]));
}
