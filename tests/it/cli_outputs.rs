//! Outputs of the binary are safe, whatever happens: what is refused, and what is left behind. The writer itself is tested in `safety`.

use std::process::Child;
use std::time::{Duration, Instant};

use tcq4::util::atomic_file::AtomicFile;

use crate::support::cmd::interrupt;
use crate::support::mount::{Mount, dir_that_nobody_can_write};
use crate::support::{Dir, skip, tiny_model::TinyModel};

/// Quantises without llama.cpp: the embedding of the fixture keeps its type.
const QUANTIZE: &str = "quantize MODEL out.gguf --output-type f16";

#[test]
fn output_exists() {
    let dir = Dir::new();
    let exists = |name: &str| {
        format!("error: {name}: the file exists already\nhint: choose another name, or pass --force to replace it")
    };
    for name in ["out.gguf", "perms.json"] {
        dir.write(name, b"mine");
    }
    dir.tcq4(QUANTIZE).fails(3, &exists("out.gguf"));
    dir.tcq4("convert MODEL -o out.gguf").fails(3, &exists("out.gguf"));
    dir.tcq4("perms -m MODEL -o perms.json").fails(3, &exists("perms.json"));
    dir.tcq4("calibrate -m MODEL -o perms.json -c EVALUATION").fails(3, &exists("perms.json"));
    dir.tcq4("calibrate -m MODEL -o new.json -c EVALUATION --stats out.gguf").fails(3, &exists("out.gguf"));
    dir.tcq4("convert MODEL -o new.gguf --stats out.gguf").fails(3, &exists("out.gguf"));
    assert_eq!((dir.read("out.gguf"), dir.read("perms.json")), (b"mine".to_vec(), b"mine".to_vec()));
    dir.tcq4(&format!("{QUANTIZE} --force")).ok();
    dir.tcq4("dequantize out.gguf out.gguf").fails(
        3,
        "error: out.gguf: this output is the same file as the input out.gguf\nhint: choose another output name",
    );
    dir.tcq4("dequantize out.gguf perms.json").fails(3, &exists("perms.json"));
}

#[test]
fn output_is_input() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    let before = dir.read("m.gguf");
    std::os::unix::fs::symlink("m.gguf", dir.file("symbolic.gguf")).unwrap();
    std::fs::hard_link(dir.file("m.gguf"), dir.file("hard.gguf")).unwrap();
    for (input, output) in
        [("m.gguf", "m.gguf"), ("m.gguf", "symbolic.gguf"), ("symbolic.gguf", "hard.gguf"), ("hard.gguf", "./m.gguf")]
    {
        let message = format!(
            "error: {output}: this output is the same file as the input {input}\nhint: choose another output name"
        );
        dir.tcq4(&format!("quantize {input} {output} --force")).fails(3, &message);
        dir.tcq4(&format!("convert {input} -o {output} --force")).fails(3, &message);
        dir.tcq4(&format!("perms -m {input} -o {output} --force")).fails(3, &message);
        dir.tcq4(&format!("calibrate -m {input} -o {output} --force")).fails(3, &message);
    }
    assert!(dir.read("m.gguf") == before);
}

#[test]
fn output_is_a_side_input() {
    let dir = Dir::new();
    dir.tcq4("perms -m MODEL -o perms.json").ok();
    dir.write("stats.gguf", b"never read");
    dir.write("text.txt", b"never read");
    let refused = |line: &str, file: &str| {
        let message = format!(
            "error: {file}: this output is the same file as the input {file}\nhint: choose another output name"
        );
        let before = dir.read(file);
        dir.tcq4(line).fails(3, &message);
        assert!(dir.read(file) == before, "`{line}`");
    };
    refused("quantize MODEL perms.json --perms perms.json --force", "perms.json");
    refused("perms -m MODEL --stats stats.gguf -o stats.gguf --force", "stats.gguf");
    refused("calibrate -m MODEL -c text.txt -o text.txt --force", "text.txt");
    refused("calibrate -m MODEL -c text.txt -o new.json --stats text.txt --force", "text.txt");
    refused("convert MODEL -c text.txt -o text.txt --force", "text.txt");
    refused("convert MODEL -c text.txt -o new.gguf --stats text.txt --force", "text.txt");
}

#[test]
fn two_outputs_of_one_name() {
    let dir = Dir::new();
    let message = "error: new and ./new are one file, for two outputs\nhint: choose another name for one of them";
    dir.tcq4("calibrate -m MODEL -c EVALUATION -o new --stats ./new").fails(2, message);
    dir.tcq4("convert MODEL -o new --stats ./new").fails(2, message);
}

#[test]
fn missing_output_folder() {
    let dir = Dir::new();
    dir.write("file", b"");
    let missing = "error: none: cannot open the output folder: No such file or directory (os error 2)";
    let no_folder = "error: file: cannot open the output folder: Not a directory (os error 20)";
    for line in [
        "quantize MODEL PLACE/o",
        "convert MODEL -o PLACE/o",
        "perms -m MODEL -o PLACE/o",
        "calibrate -m MODEL -o PLACE/o",
    ] {
        dir.tcq4(&line.replace("PLACE", "none")).fails(3, missing);
        dir.tcq4(&line.replace("PLACE", "file")).fails(3, no_folder);
    }
    std::fs::create_dir(dir.file("folder")).unwrap();
    dir.tcq4("quantize MODEL folder --force").fails(3, "error: folder: cannot write to: is a directory");
}

#[test]
fn unwritable_folder() {
    let Some(mount) = dir_that_nobody_can_write() else { return skip("no read-only folder can be made here") };
    let dir = Dir::new();
    let place = mount.path.display();
    for line in [
        format!("quantize MODEL {place}/o"),
        format!("convert MODEL -o {place}/o"),
        format!("convert MODEL -o o --stats {place}/o"),
        format!("perms -m MODEL -o {place}/o"),
    ] {
        dir.tcq4(&line).fails_like(1, &format!("error: {place}/o: cannot create: "));
    }
}

#[test]
fn full_disk() {
    let Some(disk) = Mount::tmpfs("size=1m") else {
        return skip("no small disk can be mounted here (needs root)");
    };
    let dir = Dir::new();
    let place = disk.path.display();
    let left = || std::fs::read_dir(&disk.path).unwrap().count();
    let done = dir.tcq4(&format!("quantize MODEL {place}/out.gguf --output-type f16"));
    assert!(
        done.error()
            .ends_with("hint: free some space, or write to another disk; nothing was left under the final name")
    );
    done.fails_like(1, &format!("error: {place}/out.gguf: cannot reserve the space for this file: the disk is full: "));
    assert_eq!(left(), 0);
    std::fs::write(disk.path.join("ballast"), vec![1; (1 << 20) - 8192]).unwrap();
    dir.tcq4(&format!("perms -m MODEL -o {place}/perms.json --order rrs"))
        .fails_like(1, &format!("error: {place}/perms.json: cannot write to: No space left on device"));
    assert_eq!(left(), 1);
}

/// Starts a slow run that replaces `out.gguf`, and waits until it writes.
fn start_writing(dir: &Dir) -> Child {
    let model = TinyModel { width: 512, feed_forward: 3072, layers: 2, ..TinyModel::default() };
    model.write(&dir.file("m.gguf"));
    dir.write("out.gguf", b"the old one");
    let mut child = dir.start(SLOW);
    let begun = Instant::now();
    while !dir.file(".out.gguf.part").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "it never wrote");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

const SLOW: &str = "quantize m.gguf out.gguf --output-type f16 --embedding-type f16 --isa scalar --force";

#[test]
fn killed_while_writing() {
    let dir = Dir::new();
    let mut child = start_writing(&dir);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the run ended before it was killed");
    assert_eq!(dir.read("out.gguf"), b"the old one");
    assert_eq!(dir.names(), [".out.gguf.part", "m.gguf", "out.gguf"]);
    dir.tcq4(SLOW).ok();
    dir.tcq4("verify out.gguf --against m.gguf").ok();
    assert_eq!(dir.names(), ["m.gguf", "out.gguf"], "the next run has used the leftover up");
}

#[test]
fn interrupted_while_writing() {
    let dir = Dir::new();
    let mut child = start_writing(&dir);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(dir.read("out.gguf"), b"the old one");
    assert_eq!(dir.names(), ["m.gguf", "out.gguf"]);
}

#[test]
fn two_runs_with_one_output() {
    let dir = Dir::new();
    let other = AtomicFile::create(&dir.file("out.gguf"), false, &[]).unwrap();
    let message = "error: out.gguf: another run is writing this file\n\
                   hint: wait until it is done, or choose another output name";
    dir.tcq4(QUANTIZE).fails(3, message);
    dir.tcq4("perms -m MODEL -o out.gguf").fails(3, message);
    drop(other);
    dir.tcq4(QUANTIZE).ok();
}
