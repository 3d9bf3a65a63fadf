//! Conversions in parts: whatever their number, parts make the bytes of one run; what does not belong together is refused. Needs no llama.cpp.

use std::time::Duration;

use tcq4::calib::Shard;
use tcq4::convert::{Conversion, Part, PlanSettings};
use tcq4::gguf::{GgmlType, Sharding, Source};

use crate::support::mount::Mount;
use crate::support::{Dir, skip, tiny_model::TinyModel};

/// Types that need no llama.cpp.
const PLAIN: &str = "--output-type f16 --embedding-type f16";

fn models() -> [TinyModel; 3] {
    [
        TinyModel { layers: 3, ..TinyModel::default() },
        TinyModel { layers: 2, experts: 4, ..TinyModel::default() },
        TinyModel { layers: 1, output: false, ty: GgmlType::BF16, width: 512, ..TinyModel::default() },
    ]
}

/// Writes all parts of a model and merges them, the last one first.
fn in_parts(dir: &Dir, line: &str, count: u32, output: &str) {
    let parts: Vec<String> = (1..=count).rev().map(|number| format!("{output}.{number}")).collect();
    for (part, number) in parts.iter().zip((1..=count).rev()) {
        dir.tcq4(&line.replace("OUT", part).replace("SHARD", &format!("--shard {number}/{count}"))).ok();
    }
    dir.tcq4(&format!("merge {} -o {output}", parts.join(" "))).ok();
}

#[test]
fn parts_make_the_bytes_of_one_run() {
    for (index, model) in models().iter().enumerate() {
        let dir = Dir::new();
        model.write(&dir.file("m.gguf"));
        for (setting, counts) in [
            ("", &[1, 2, 3, 40][..]),
            ("--order balanced --perm-apply fold", &[2]),
            ("--compat llama.cpp-rrs --scales none --encoder parity", &[3]),
        ] {
            let line = format!("quantize m.gguf OUT {PLAIN} {setting} SHARD");
            dir.tcq4(&line.replace("OUT", "whole.gguf --force").replace("SHARD", "")).ok();
            for &count in counts {
                let output = format!("{index}-{count}-{}.gguf", setting.len());
                in_parts(&dir, &line, count, &output);
                assert!(dir.read(&output) == dir.read("whole.gguf"), "model {index}, `{setting}`, {count} parts");
            }
        }
    }
}

#[test]
fn the_whole_is_divided_into_files_as_one_run_does() {
    let dir = Dir::new();
    TinyModel::default().write_sharded(&dir.file("m.gguf"), &Sharding::Counts(vec![4, 9, 5]));
    for (name, option, files) in [("max", "--split-max-size 400K", 2), ("keep", "--keep-split", 3)] {
        let line = format!("quantize m-00001-of-00003.gguf OUT {PLAIN} {option} SHARD");
        dir.tcq4(&line.replace("OUT", &format!("{name}-whole.gguf")).replace("SHARD", "")).ok();
        in_parts(&dir, &line, 2, &format!("{name}-parts.gguf"));
        let of = |what: &str| {
            let names = dir.names().into_iter().filter(|file| file.starts_with(&format!("{name}-{what}-0")));
            names.map(|file| dir.read(&file)).collect::<Vec<_>>()
        };
        assert!(of("whole").len() >= files && of("whole") == of("parts"), "{name}: {}", of("whole").len());
    }
}

#[test]
fn a_part_is_a_sound_file_of_its_tensors() {
    let dir = Dir::new();
    models()[0].write(&dir.file("m.gguf"));
    let source = Source::open(&dir.file("m.gguf")).unwrap();
    let plan = Conversion::new(&source, &PlanSettings::default()).unwrap();
    let parts: Vec<Part> = (0..3).map(|index| Part::of(&source, &plan, Shard { index, count: 3 })).collect();
    let mut all: Vec<usize> = parts.iter().flat_map(|part| part.tensors.clone()).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..plan.tensors.len()), "each tensor once");
    let bytes = |part: &Part| part.tensors.iter().map(|&at| plan.tensors[at].source_bytes).sum::<u64>();
    let (all, largest) = (plan.tensors.iter().map(|t| t.source_bytes).sum::<u64>(), 3 * 512 * 1024);
    assert!(parts.iter().all(|part| bytes(part).abs_diff(all / 3) <= largest), "about equal");
    // Tensors with one input stay together.
    let home = |name: &str| {
        let at = plan.tensors.iter().position(|tensor| tensor.name == name).unwrap();
        parts.iter().position(|part| part.tensors.contains(&at)).unwrap()
    };
    for [a, b] in [["attn_q", "attn_v"], ["attn_k", "attn_v"], ["ffn_gate", "ffn_up"]] {
        assert_eq!(home(&format!("blk.1.{a}.weight")), home(&format!("blk.1.{b}.weight")));
    }
    dir.tcq4(&format!("quantize m.gguf part {PLAIN} --shard 2/3")).ok();
    let part = Source::open(&dir.file("part")).unwrap();
    let expected: Vec<&str> = parts[1].tensors.iter().map(|&at| plan.tensors[at].name.as_str()).collect();
    assert!(part.tensors().iter().map(|tensor| tensor.name.as_str()).eq(expected));
    dir.tcq4("verify part")
        .fails(3, "error: part: it holds only part 2/3 of a model\nhint: put all parts together with `tcq4 merge`");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dir = Dir::new();
    models()[0].write(&dir.file("m.gguf"));
    TinyModel { seed: 2, ..models()[0].clone() }.write(&dir.file("other.gguf"));
    let part = |file: &str, line: &str| _ = dir.tcq4(&format!("quantize {line} {file} {PLAIN}")).ok();
    part("a", "--shard 1/3 m.gguf");
    part("b", "--shard 2/3 m.gguf");
    part("c", "--shard 3/3 m.gguf");
    part("of-two", "--shard 2/2 m.gguf");
    part("recipe", "--shard 2/3 --encoder parity m.gguf");
    part("source", "--shard 2/3 other.gguf");
    part("split", "--shard 2/3 --split-max-size 1M m.gguf");
    part("whole", "m.gguf");
    let same = "\nhint: make all parts with one version, from one model, with the same options";
    let all = "\nhint: make these with --shard, and give all parts to one `tcq4 merge`";
    dir.tcq4("merge a c -o out").fails(3, &format!("error: a: expected 3 parts, got 2: missing 2/3{all}"));
    dir.tcq4("merge b -o out").fails(3, &format!("error: b: expected 3 parts, got 1: missing 1/3, 3/3{all}"));
    dir.tcq4("merge a b c b -o out").fails(3, "error: b: part 2/3 is b too\nhint: give each part once");
    dir.tcq4("merge a of-two -o out")
        .fails(3, &format!("error: of-two: this part is of another number of parts: expected 3 as in a, got 2{same}"));
    dir.tcq4("merge a recipe c -o out").fails_like(3, "error: recipe: this part is of another recipe: expected {");
    dir.tcq4("merge a source c -o out").fails_like(3, "error: source: this part is of another source (XXH3 of `");
    // Parts other than the first do not read all of the source: what of it they have read is compared.
    dir.tcq4("quantize other.gguf first --output-type f16 --embedding-type f16 --shard 1/3").ok();
    dir.tcq4("merge c first b -o out").fails_like(3, "error: c: this part is of another source (XXH3 of `");
    dir.tcq4("merge a split c -o out")
        .fails_like(3, "error: split: this part is of another value of `tcq4.part.sharding`: expected ");
    dir.tcq4("merge a whole -o out").fails(
        3,
        "error: whole: expected a part of a model as in a, got a file that is no part\nhint: put together files of one kind",
    );
    dir.tcq4("merge a none -o out").fails_like(3, "error: none: cannot open");
    dir.tcq4("merge a b c -o a --force").fails_like(3, "error: a: this output is the same file as the input a");
    dir.write("out", b"mine");
    dir.tcq4("merge a b c -o out").fails_like(3, "error: out: the file exists already");
    dir.tcq4("merge a b c -o out --force").ok();
    dir.tcq4("verify out --against m.gguf").ok();
    for bad in ["0/2", "3/2", "2", "1/0"] {
        assert_eq!(dir.tcq4(&format!("quantize m.gguf x --shard {bad}")).code, Some(2), "{bad}");
    }
}

#[test]
fn a_damaged_part_is_found_out_and_named() {
    let dir = Dir::new();
    models()[0].write(&dir.file("m.gguf"));
    for number in [1, 2] {
        dir.tcq4(&format!("quantize m.gguf {number} {PLAIN} --shard {number}/2")).ok();
    }
    let good = dir.read("2");
    let mut bad = good.clone();
    let middle = bad.len() - 1000;
    bad[middle] ^= 1;
    dir.write("2", &bad);
    dir.tcq4("merge 1 2 -o out").fails_like(3, "error: 2: `");
    dir.write("2", &good[..good.len() / 2]);
    dir.tcq4("merge 1 2 -o out").fails_like(3, "error: 2: ");
    dir.write("2", b"");
    dir.tcq4("merge 1 2 -o out").fails_like(3, "error: 2: ");
    dir.write("2", &good);
    dir.tcq4("merge 1 2 -o out").ok();
}

/// A sharded model to give up, and what it becomes.
fn sharded(dir: &Dir) -> Vec<u8> {
    let model = TinyModel { layers: 3, feed_forward: 1024, ..TinyModel::default() };
    model.write_sharded(&dir.file("m.gguf"), &Sharding::Counts(vec![7, 8, 8]));
    dir.tcq4(&format!("quantize m-00001-of-00003.gguf whole.gguf {PLAIN}")).ok();
    let whole = dir.read("whole.gguf");
    std::fs::remove_file(dir.file("whole.gguf")).unwrap();
    whole
}

const GIVE_UP: &str =
    "quantize m-00001-of-00003.gguf out.gguf --output-type f16 --embedding-type f16 --delete-source-shards";

#[test]
fn the_source_is_given_up_on_the_way() {
    let dir = Dir::new();
    let whole = sharded(&dir);
    dir.tcq4(GIVE_UP).ok();
    assert_eq!(dir.names(), ["out.gguf"], "neither source nor leftovers");
    assert!(dir.read("out.gguf") == whole);
}

#[test]
fn giving_up_goes_on_after_kills() {
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (mut killed, mut halfway) = (0, 0);
    for _ in 0..6 {
        let dir = Dir::new();
        let whole = sharded(&dir);
        for _ in 0..50 {
            if dir.file("out.gguf").exists() {
                break;
            }
            let mut child = dir.start(&format!("{GIVE_UP} --isa scalar"));
            std::thread::sleep(Duration::from_millis(random.random_range(5..120)));
            child.kill().unwrap();
            killed += u32::from(!child.wait().unwrap().success());
            let gone = |number: u32| !dir.file(&format!("m-0000{number}-of-00003.gguf")).exists();
            halfway += u32::from(gone(1) && !gone(3));
        }
        if !dir.file("out.gguf").exists() {
            dir.tcq4(GIVE_UP).ok();
        }
        assert!(dir.read("out.gguf") == whole);
    }
    assert!(killed > 6, "{killed} kills");
    if halfway == 0 {
        skip("no kill came between two shards");
    }
}

/// Stops a run when all of the source is given up, and the output is not there yet.
fn stopped_before_the_end(dir: &Dir) -> bool {
    let mut child = dir.start(GIVE_UP);
    let last = dir.file(".m-00003-of-00003.gguf.consumed");
    while !last.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    last.exists() && !dir.file("out.gguf").exists()
}

#[test]
fn what_a_kill_after_the_end_leaves_is_removed() {
    let mut found = None;
    for _ in 0..10 {
        let dir = Dir::new();
        let whole = sharded(&dir);
        if stopped_before_the_end(&dir) {
            found = Some((dir, whole));
            break;
        }
    }
    let Some((dir, whole)) = found else { return skip("no kill came before the output was put together") };
    let mut left: Vec<String> = dir.names().into_iter().filter(|name| name != "out.gguf.partial").collect();
    let parts = std::fs::read_dir(dir.file("out.gguf.partial")).unwrap();
    left.extend(parts.map(|entry| format!("out.gguf.partial/{}", entry.unwrap().file_name().to_str().unwrap())));
    let bytes: Vec<Vec<u8>> = left.iter().map(|name| dir.read(name)).collect();
    dir.tcq4(GIVE_UP).ok();
    assert!(dir.read("out.gguf") == whole);
    let restore = |skipped: &str| {
        std::fs::create_dir(dir.file("out.gguf.partial")).unwrap();
        for (name, bytes) in left.iter().zip(&bytes).filter(|(name, _)| !name.contains(skipped)) {
            dir.write(name, bytes);
        }
    };
    // Before the clean-up began: the output is known by the hashes of its tensors, any other file is not touched.
    restore("nothing");
    dir.write("out.gguf", b"mine");
    dir.tcq4(GIVE_UP).fails_like(3, "error: out.gguf: the file exists already");
    dir.write("out.gguf", &whole);
    dir.tcq4(GIVE_UP).ok();
    assert_eq!(dir.names(), ["out.gguf"]);
    // In the midst of it: what is left does not make a model any more.
    restore("00002");
    std::fs::rename(dir.file("out.gguf.partial/source.json"), dir.file("out.gguf.partial/finished")).unwrap();
    dir.tcq4(&format!("{GIVE_UP} --dry-run")).fails_like(3, "error: ");
    assert!(dir.tcq4(GIVE_UP).ok().stdout.starts_with("out.gguf: it was complete"));
    assert_eq!(dir.names(), ["out.gguf"]);
    assert!(dir.read("out.gguf") == whole);
}

#[test]
fn giving_up_is_refused_where_it_would_lose_something() {
    let dir = Dir::new();
    sharded(&dir);
    models()[0].write(&dir.file("single.gguf"));
    let leave_out = "\nhint: leave out --delete-source-shards, or name a model in shards that are files of their own";
    dir.tcq4("quantize single.gguf out.gguf --delete-source-shards")
        .fails(3, &format!("error: single.gguf: cannot be deleted on the way: it is no shard of several{leave_out}"));
    let second = dir.file("m-00002-of-00003.gguf");
    std::fs::hard_link(&second, dir.file("kept.gguf")).unwrap();
    let named = "error: m-00002-of-00003.gguf: cannot be deleted on the way: ";
    dir.tcq4(GIVE_UP).fails(3, &format!("{named}its file has other names too{leave_out}"));
    std::fs::remove_file(&second).unwrap();
    std::os::unix::fs::symlink("kept.gguf", &second).unwrap();
    dir.tcq4(GIVE_UP).fails(3, &format!("{named}it is a link, and not the file itself{leave_out}"));
    std::fs::remove_file(&second).unwrap();
    std::fs::rename(dir.file("kept.gguf"), &second).unwrap();
    // A run that was killed after its first shard goes on with its own options only.
    std::fs::create_dir(dir.file("out.gguf.partial")).unwrap();
    let before: Vec<Vec<u8>> = (1..=3).map(|number| dir.read(&format!("m-0000{number}-of-00003.gguf"))).collect();
    dir.write(
        "out.gguf.partial/source.json",
        br#"{"fingerprint": "of another", "hashes": {"sha256": "0", "tensors": []}}"#,
    );
    dir.tcq4(GIVE_UP)
        .fails_like(3, "error: out.gguf.partial: cannot go on: it is of another source: expected one with the fingerprint of another, got ");
    for (number, bytes) in (1..=3).zip(&before) {
        assert!(dir.read(&format!("m-0000{number}-of-00003.gguf")) == *bytes);
    }
}

#[test]
fn a_disk_without_room_for_both_takes_it_only_when_the_source_goes() {
    let model = TinyModel { layers: 3, feed_forward: 3072, ..TinyModel::default() };
    let bytes: u64 = model.tensors().iter().map(|spec| spec.dims.iter().product::<u64>() * 2).sum();
    let Some(disk) = Mount::tmpfs(&format!("size={}", bytes * 118 / 100)) else {
        return skip("no small disk can be mounted here (needs root)");
    };
    let dir = Dir::new();
    model.write_sharded(&disk.path.join("m.gguf"), &Sharding::Counts(vec![6, 6, 6, 7]));
    let place = disk.path.display();
    let line = format!("quantize {place}/m-00001-of-00004.gguf {place}/out.gguf {PLAIN}");
    let full = format!("error: {place}/out.gguf: cannot reserve the space for this file: the disk is full: ");
    dir.tcq4(&line).fails_like(1, &full);
    dir.tcq4(&format!("{line} --delete-source-shards")).ok();
    let left: Vec<_> = std::fs::read_dir(&disk.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["out.gguf"]);
    dir.tcq4(&format!("verify {place}/out.gguf")).ok();
}
