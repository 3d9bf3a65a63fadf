//! Bad files are refused with a message that says what and where, without a panic and without much memory.
//! Most cases crashed some other reader; the identifiers are those of the reports.

use std::path::Path;

use tcq4::gguf::Source;
use tcq4::{Class, Error};

use crate::support::Dir;
use crate::support::alloc::peak;
use crate::support::raw::{Raw, array, string, ty};
use crate::support::tiny_model::TinyModel;

/// What opening a file may allocate beyond twice its length: paths, messages, the file handle.
pub const ALLOWANCE: u64 = 64 << 10;

/// Opens `path` and asserts that it took little memory.
pub fn open_measured(path: &Path, length: u64) -> Result<Source, Error> {
    let (opened, most) = peak(|| Source::open(path));
    assert!(most <= 2 * length + ALLOWANCE, "{most} bytes allocated for a file of {length}");
    opened
}

/// Gives the message with which a file of these bytes is refused.
fn refusal_of(bytes: &[u8]) -> String {
    let dir = Dir::in_memory();
    let error = open_measured(&dir.write("bad.gguf", bytes), bytes.len() as u64).expect_err("a refusal");
    assert_eq!(error.class(), Class::Refused);
    let message = dir.message(&error);
    message.strip_prefix("bad.gguf: ").expect("the file's name").to_owned()
}

fn refusal(raw: &Raw) -> String {
    refusal_of(&raw.bytes())
}

/// A sound file with keys of several types and three tensors.
pub fn sound() -> Raw {
    Raw::new()
        .text("general.architecture", "llama")
        .u32("general.alignment", 32)
        .key("some.flags", ty::ARRAY, &array(ty::BOOL, 3, &[1, 0, 1]))
        .key("some.words", ty::ARRAY, &array(ty::STR, 2, &[string(b"ab"), string(b"")].concat()))
        .key("some.numbers", ty::ARRAY, &array(ty::I32, 2, &[0; 8]))
        .key("some.u64", ty::U64, &[9; 8])
        .tensor("a.weight", &[8, 2], 0, 0)
        .tensor("b.weight", &[32, 3], 8, 64)
        .tensor("c.weight", &[256, 8], 80, 192)
        .data(192 + 1184)
}

#[test]
fn the_sound_file_is_sound() {
    let (dir, bytes) = (Dir::new(), sound().bytes());
    let source = open_measured(&dir.write("good.gguf", &bytes), bytes.len() as u64).unwrap();
    assert_eq!((source.metadata().len(), source.tensors().len()), (6, 3));
}

#[test]
fn missing_file() {
    let dir = Dir::new();
    let error = Source::open(&dir.file("none.gguf")).unwrap_err();
    assert_eq!(dir.message(&error), "none.gguf: cannot open: No such file or directory (os error 2)");
    assert_eq!(error.class(), Class::Refused);
}

#[test]
fn directory() {
    let dir = Dir::new();
    std::fs::create_dir(dir.file("model.gguf")).unwrap();
    let error = Source::open(&dir.file("model.gguf")).unwrap_err();
    assert_eq!(dir.message(&error), "model.gguf: cannot open: is a directory");
    assert_eq!(error.class(), Class::Refused);
}

#[test]
fn device() {
    let error = Source::open(Path::new("/dev/zero")).unwrap_err();
    assert_eq!(error.to_string(), "/dev/zero: not a regular file");
}

#[test]
fn empty_file() {
    assert_eq!(refusal_of(b""), "the file is empty");
}

#[test]
fn wrong_magic() {
    let expected = "not a GGUF file: it starts with [50, 4b, 03, 04], expected \"GGUF\"";
    assert_eq!(refusal_of(b"PK\x03\x04 a zip archive, for instance"), expected);
    assert_eq!(refusal_of(b"GGM"), "not a GGUF file: it starts with [47, 47, 4d], expected \"GGUF\"");
}

#[test]
fn big_endian() {
    for version in [2u32, 3] {
        let raw = Raw { version: version.swap_bytes(), ..sound() };
        let expected = format!("a big-endian GGUF file (version {version}); only little-endian files are read");
        assert_eq!(refusal(&raw), expected);
    }
}

#[test]
fn version_1_and_99_and_0() {
    let version = |version| refusal(&Raw { version, ..sound() });
    assert_eq!(version(1), "GGUF version 1 is not read, only versions 2 and 3");
    assert_eq!(version(99), "GGUF version 99 is unknown, only versions 2 and 3 are read");
    assert_eq!(version(0), "GGUF version 0 is unknown, only versions 2 and 3 are read");
}

/// Cuts the sound file at every byte: only the last tensor's end makes it whole.
#[test]
fn truncated_everywhere() {
    let bytes = sound().bytes();
    for length in 0..bytes.len() {
        refusal_of(&bytes[..length]);
    }
}

#[test]
fn truncated_at_every_section() {
    let bytes = sound().bytes();
    let cut = |length: usize| refusal_of(&bytes[..length]);
    assert_eq!(cut(2), "the file ends inside the magic: 4 bytes needed at offset 0, 2 left");
    assert_eq!(cut(6), "the file ends inside the version: 4 bytes needed at offset 4, 2 left");
    assert_eq!(cut(12), "the file ends inside the header: 8 bytes needed at offset 8, 4 left");
    assert_eq!(cut(24), "the file claims 3 tensors, but the 0 bytes left at offset 24 hold at most 0");
    let few = Raw { tensor_count: Some(0), ..sound() }.bytes();
    let cut_keys = |length: usize| refusal_of(&few[..length]);
    assert_eq!(cut_keys(100), "the file claims 6 keys, but the 76 bytes left at offset 24 hold at most 5");
}

#[test]
fn truncated_in_keys_and_tensors() {
    let one = |raw: Raw, missing: usize| {
        let bytes = raw.header();
        refusal_of(&bytes[..bytes.len() - missing])
    };
    let long_key = || Raw::new().u32(&"k".repeat(40), 1);
    assert_eq!(one(long_key(), 30), "the file ends inside a key: 40 bytes needed at offset 32, 18 left");
    assert_eq!(one(long_key(), 6), "the file ends inside a value type: 4 bytes needed at offset 72, 2 left");
    assert_eq!(one(long_key(), 1), "the file ends inside a value: 4 bytes needed at offset 76, 3 left");
    let text = Raw::new().text("text", "twelve bytes");
    assert_eq!(one(text, 2), "the file ends inside a string: 12 bytes needed at offset 48, 10 left");
    let words = array(ty::STR, 2, &[string(b"first"), string(b"second")].concat());
    let words = Raw::new().key("words", ty::ARRAY, &words);
    assert_eq!(one(words, 3), "the file ends inside a string in an array: 6 bytes needed at offset 74, 3 left");
    let tensor = || Raw::new().tensor("tensor", &[8, 8], 0, 0);
    assert_eq!(one(tensor(), 41), "the file claims 1 tensors, but the 5 bytes left at offset 24 hold at most 0");
    assert_eq!(
        one(tensor(), 21),
        "the file ends inside the dimensions of a tensor: 16 bytes needed at offset 42, 7 left"
    );
    assert_eq!(one(tensor(), 10), "the file ends inside a tensor type: 4 bytes needed at offset 58, 2 left");
    assert_eq!(one(tensor(), 1), "the file ends inside a tensor offset: 8 bytes needed at offset 62, 7 left");
    let expected = "tensor `tensor`: its 256 bytes at offset 96 pass the end of the file at 70";
    assert_eq!(one(tensor(), 0), expected);
}

/// CVE-2024-21836, CVE-2024-25664 and others: counts whose product with a size wraps.
#[test]
fn counts_near_2_to_the_64() {
    for count in [u64::MAX, u64::MAX / 25 + 1, 1 << 60] {
        let tensors = refusal(&Raw { tensor_count: Some(count), ..sound() });
        let rest = "bytes left at offset 24 hold at most";
        assert!(tensors.starts_with(&format!("the file claims {count} tensors, but the")) && tensors.contains(rest));
        let keys = refusal(&Raw { key_count: Some(count), ..sound() });
        assert!(keys.starts_with(&format!("the file claims {count} keys, but the")) && keys.contains(rest));
    }
}

/// Counts that the file could hold, but that no model has.
#[test]
fn counts_beyond_the_limits() {
    let wide = || Raw::new().data(2_000_000);
    assert_eq!(
        refusal(&Raw { tensor_count: Some(65_537), ..wide() }),
        "a tensor count of 65537 at offset 8 passes the limit of 65536"
    );
    assert_eq!(
        refusal(&Raw { key_count: Some(65_537), ..wide() }),
        "a key count of 65537 at offset 16 passes the limit of 65536"
    );
}

/// CVE-2024-23496, CVE-2024-21825: string and array lengths whose sum with the offset wraps.
#[test]
fn lengths_near_2_to_the_64() {
    let huge = u64::MAX.to_le_bytes();
    let key = Raw::new().key_bytes(&[&huge[..], &[0; 20]].concat());
    let expected = "the file ends inside a key: 18446744073709551615 bytes needed at offset 32, 20 left";
    assert_eq!(refusal(&key), expected);
    let text = Raw::new().key("t", ty::STR, &huge);
    let expected = "the file ends inside a string: 18446744073709551615 bytes needed at offset 45, 0 left";
    assert_eq!(refusal(&text), expected);
    let numbers = Raw::new().key("n", ty::ARRAY, &array(ty::U64, u64::MAX / 8 + 1, &[0; 16]));
    let expected =
        "the file claims 2305843009213693952 array elements, but the 16 bytes left at offset 49 hold at most 2";
    assert_eq!(refusal(&numbers), expected);
    let words = Raw::new().key("w", ty::ARRAY, &array(ty::STR, 1 << 61, &[0; 16]));
    assert_eq!(refusal(&words), expected);
    let name = Raw::new().tensor_bytes(&[&huge[..], &[0; 20]].concat());
    let expected = "the file ends inside a tensor name: 18446744073709551615 bytes needed at offset 32, 20 left";
    assert_eq!(refusal(&name), expected);
}

/// llama.cpp #25596: a zero dimension divided by (SIGFPE).
#[test]
fn zero_dimensions() {
    for dims in [&[0u64][..], &[8, 0], &[0, 8], &[8, 8, 0], &[8, 8, 8, 0]] {
        let raw = Raw::new().tensor("t", dims, 0, 0).data(64);
        assert_eq!(refusal(&raw), format!("tensor `t` has a dimension of 0: {dims:?}"));
    }
}

/// CVE-2024-21802, CVE-2026-33298: dimensions whose product, or whose size in bytes, wraps to something small.
#[test]
fn overflowing_dimensions() {
    for dims in
        [&[1u64 << 62, 4][..], &[1 << 32, 1 << 32], &[u64::MAX, 2], &[1 << 63], &[3, 1 << 62, 1, 4], &[1 << 62, 1]]
    {
        let raw = Raw::new().tensor("t", dims, 0, 0).data(64);
        assert_eq!(refusal(&raw), format!("tensor `t` is larger than any file: {dims:?}"));
    }
}

/// CVE-2025-53630 and its bypass CVE-2026-27940: the sum of sizes, or its padding, wraps.
#[test]
fn overflowing_sums() {
    let half = 1u64 << 60;
    let raw = Raw::new().tensor("a", &[half], 26, 0).tensor("b", &[half * 2 - 8], 27, half * 4).data(64);
    assert_eq!(refusal(&raw), format!("tensor `b` is larger than any file: [{}]", half * 2 - 8));
    let raw = Raw::new().tensor("a", &[32], 24, u64::MAX - 31).data(64);
    assert_eq!(
        refusal(&raw),
        "tensor `a`: its data starts at offset 18446744073709551584, expected 0: the file has a hole"
    );
    let raw = Raw::new().tensor("a", &[(1 << 62) - 1], 25, 0).data(64);
    let expected = "tensor `a`: its 9223372036854775806 bytes at offset 64 pass the end of the file at 128";
    assert_eq!(refusal(&raw), expected);
}

#[test]
fn too_many_dimensions() {
    let raw = Raw::new().tensor("t", &[1; 5], 0, 0).data(64);
    assert_eq!(refusal(&raw), "a dimension count of 5 at offset 33 passes the limit of 4");
    let raw = Raw::new().tensor_bytes(&[string(b"t"), u32::MAX.to_le_bytes().to_vec(), vec![0; 60]].concat());
    assert_eq!(refusal(&raw), "a dimension count of 4294967295 at offset 33 passes the limit of 4");
}

/// Ollama GO-2025-3559 and others: a division by an alignment of 0.
#[test]
fn alignment_0_and_3_and_others() {
    for value in [0u32, 1, 3, 4, 48, 1 << 22, u32::MAX] {
        let raw = Raw::new().u32("general.alignment", value).tensor("t", &[8], 0, 0).data(64);
        let expected = format!("key `general.alignment` is {value}, expected a power of two from 8 to 2097152");
        assert_eq!(refusal(&raw), expected);
    }
}

/// llama.cpp #26946: aborted on an alignment that is no u32.
#[test]
fn alignment_of_wrong_type() {
    let number = Raw::new().key("general.alignment", ty::U64, &32u64.to_le_bytes());
    assert_eq!(refusal(&number), "key `general.alignment` is a u64, expected a u32");
    let text = Raw::new().text("general.alignment", "32");
    assert_eq!(refusal(&text), "key `general.alignment` is a string, expected a u32");
}

#[test]
fn duplicate_tensor_names() {
    let raw = Raw::new().tensor("t", &[8], 0, 0).tensor("u", &[8], 0, 32).tensor("t", &[8], 0, 64).data(96);
    assert_eq!(refusal(&raw), "the tensor `t` occurs twice");
}

#[test]
fn bad_tensor_names() {
    let named = |name: &[u8]| refusal(&Raw::new().tensor_named(name, &[8], 0, 0).data(32));
    assert_eq!(named(b""), "the tensor name number 0 at offset 24 is empty");
    assert_eq!(named(&[0xff, 0xfe]), "the tensor name at offset 32 is not UTF-8");
    assert_eq!(named(&[b'n'; 64]), "a tensor name length of 64 at offset 24 passes the limit of 63");
}

/// llama.cpp #24446: aborted on an empty key.
#[test]
fn empty_and_duplicate_keys() {
    assert_eq!(refusal(&Raw::new().u32("a", 1).u32("", 1)), "the key number 1 at offset 41 is empty");
    assert_eq!(refusal(&Raw::new().u32("a", 1).u32("b", 1).u32("a", 1)), "the key `a` occurs twice");
}

#[test]
fn bad_keys() {
    let odd = Raw::new().key_bytes(&[string(&[0xc3, 0x28]), ty::U8.to_le_bytes().to_vec(), vec![1]].concat());
    assert_eq!(refusal(&odd), "the key at offset 32 is not UTF-8");
    let long = Raw::new().u32(&"k".repeat(65_536), 1);
    assert_eq!(refusal(&long), "a key length of 65536 at offset 24 passes the limit of 65535");
}

/// gguf-py recursed without bound on nested arrays.
#[test]
fn nested_arrays() {
    let inner = array(ty::ARRAY, 1, &array(ty::U8, 1, &[1]));
    assert_eq!(refusal(&Raw::new().key("n", ty::ARRAY, &inner)), "key `n`: an array of arrays at offset 37");
}

/// llama.cpp #19856: a negative type id indexed a table.
#[test]
fn unknown_value_types() {
    let key = Raw::new().key("k", 13, &[0; 8]);
    assert_eq!(refusal(&key), "key `k`: unknown value type 13 at offset 33");
    let elements = Raw::new().key("k", ty::ARRAY, &array(u32::MAX, 1, &[0; 8]));
    assert_eq!(refusal(&elements), "key `k`: unknown value type 4294967295 at offset 37");
}

#[test]
fn bools_that_are_neither() {
    assert_eq!(refusal(&Raw::new().key("k", ty::BOOL, &[2])), "key `k`: a bool with the value 2 at offset 37");
    let flags = array(ty::BOOL, 3, &[1, 0, 255]);
    let expected = "key `k`: a bool with the value 255 at offset 51";
    assert_eq!(refusal(&Raw::new().key("k", ty::ARRAY, &flags)), expected);
}

#[test]
fn overlapping_tensors() {
    let raw = Raw::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64);
    assert_eq!(refusal(&raw), "tensor `b`: its data at offset 32 overlaps `a`, which ends at 64");
    let raw = Raw::new().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(64);
    assert_eq!(refusal(&raw), "tensor `b`: its data at offset 0 overlaps `a`, which ends at 32");
}

#[test]
fn misaligned_tensors() {
    let raw = Raw::new().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 40).data(128);
    assert_eq!(refusal(&raw), "tensor `b`: its data offset 40 is not a multiple of the alignment 32");
}

#[test]
fn holes_between_tensors() {
    let raw = Raw::new().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 64).data(128);
    assert_eq!(refusal(&raw), "tensor `b`: its data starts at offset 64, expected 32: the file has a hole");
}

/// CVE-2026-7482: a quantiser read past the end of the file and wrote what it found there into its output.
#[test]
fn out_of_range_tensors() {
    let raw = Raw::new().tensor("a", &[8], 0, 0).tensor("b", &[64], 0, 32).data(64);
    let expected = "tensor `b`: its 256 bytes at offset 128 pass the end of the file at 160";
    assert_eq!(refusal(&raw), expected);
    let unknown = Raw::new().tensor("a", &[8], 0, 0).tensor("n", &[8], 200, 32).tensor("b", &[8], 0, 1 << 40).data(64);
    assert!(refusal(&unknown).starts_with("tensor `b`: its 32 bytes at offset 1099511"));
}

#[test]
fn ragged_tensors() {
    let raw = Raw::new().tensor("t", &[48, 2], 8, 0).data(256);
    assert_eq!(refusal(&raw), "tensor `t` of type q8_0 has 48 columns, expected a multiple of 32");
    let raw = Raw::new().tensor("t", &[256, 12], 80, 0).data(4096);
    assert_eq!(refusal(&raw), "tensor `t` of type tcq4_k32 has 12 rows, expected a multiple of 8");
}

/// The worst files within the limits: as many of the smallest things as fit.
#[test]
fn crowded_files_take_no_more_memory_than_promised() {
    let dir = Dir::new();
    let mut tensors = Raw::new();
    for index in 0..20_000u64 {
        tensors = tensors.tensor(&format!("{index:x}"), &[1], 24, 32 * index);
    }
    let bytes = tensors.data(32 * 20_000).bytes();
    open_measured(&dir.write("tensors.gguf", &bytes), bytes.len() as u64).unwrap();
    let mut keys = Raw::new();
    for index in 0..20_000 {
        keys = keys.key(&format!("general.key.number.{index}"), ty::U8, &[1]);
    }
    let bytes = keys.bytes();
    open_measured(&dir.write("keys.gguf", &bytes), bytes.len() as u64).unwrap();
}

/// Writes the tiny model in three shards and gives their names.
fn shards(dir: &Dir, name: &str, model: &TinyModel) -> Vec<String> {
    let counts = tcq4::gguf::Sharding::Counts(vec![7, 7, 7]);
    model.write_sharded(&dir.file(&format!("{name}.gguf")), &counts);
    (1..=3).map(|number| format!("{name}-0000{number}-of-00003.gguf")).collect()
}

#[test]
fn missing_shards() {
    let dir = Dir::new();
    let names = shards(&dir, "m", &TinyModel::default());
    std::fs::remove_file(dir.file(&names[1])).unwrap();
    for present in [&names[0], &names[2]] {
        let error = Source::open(&dir.file(present)).unwrap_err();
        assert_eq!(dir.message(&error), format!("{present}: shard 2 of 3 is missing: m-00002-of-00003.gguf"));
        assert_eq!(error.class(), Class::Refused);
    }
}

#[test]
fn renamed_shards() {
    let dir = Dir::new();
    let names = shards(&dir, "m", &TinyModel::default());
    std::fs::rename(dir.file(&names[1]), dir.file("model.gguf")).unwrap();
    let error = Source::open(&dir.file("model.gguf")).unwrap_err();
    let expected = "model.gguf: the file is shard 2 of 3, but its name does not end with `-00002-of-00003.gguf`";
    assert_eq!(dir.message(&error), expected);
}

#[test]
fn mixed_shards() {
    let dir = Dir::new();
    let names = shards(&dir, "m", &TinyModel::default());
    let open = || dir.message(&Source::open(&dir.file(&names[0])).unwrap_err());
    let sound = std::fs::read(dir.file(&names[1])).unwrap();

    std::fs::copy(dir.file(&names[2]), dir.file(&names[1])).unwrap();
    assert_eq!(open(), format!("{}: this shard belongs to another model: `split.no` is 2, expected 1", names[1]));

    let deeper = shards(&dir, "other", &TinyModel { layers: 3, ..TinyModel::default() });
    std::fs::copy(dir.file(&deeper[1]), dir.file(&names[1])).unwrap();
    let expected = "this shard belongs to another model: `split.tensors.count` is 30, expected 21";
    assert_eq!(open(), format!("{}: {expected}", names[1]));

    let split = |raw: Raw, count: u16| {
        let raw =
            raw.u16("split.no", 1).u16("split.count", count).key("split.tensors.count", ty::I32, &21u32.to_le_bytes());
        dir.write(&names[1], &raw.bytes());
    };
    split(Raw::new(), 4);
    assert_eq!(open(), format!("{}: this shard belongs to another model: `split.count` is 4, expected 3", names[1]));
    split(Raw::new(), 3);
    let expected = "the number of tensors in all shards is 14, expected 21";
    assert_eq!(open(), format!("{}: this shard belongs to another model: {expected}", names[0]));

    let mut raw = Raw::new().text("general.architecture", "qwen2").tensor("output_norm.weight", &[8], 0, 0);
    for index in 1..7u64 {
        raw = raw.tensor(&format!("other.{index}"), &[8], 0, 32 * index);
    }
    split(raw.clone().data(256), 3);
    let expected = "the home of tensor `output_norm.weight` is this shard too, expected only";
    assert_eq!(open(), format!("{}: this shard belongs to another model: {expected} {}", names[2], names[1]));

    let mut raw = Raw::new().text("general.architecture", "qwen2");
    for index in 0..7u64 {
        raw = raw.tensor(&format!("other.{index}"), &[8], 0, 32 * index);
    }
    split(raw.data(256), 3);
    let expected = "`general.architecture` is Str(\"qwen2\"), expected Str(\"llama\")";
    assert_eq!(open(), format!("{}: this shard belongs to another model: {expected}", names[1]));

    std::fs::write(dir.file(&names[1]), sound).unwrap();
    Source::open(&dir.file(&names[0])).unwrap();
}

#[test]
fn shard_counts_without_end() {
    let dir = Dir::new();
    let raw = Raw::new().u16("split.no", 0).key("split.count", ty::U64, &u64::MAX.to_le_bytes());
    let error = Source::open(&dir.write("m-00001-of-00002.gguf", &raw.bytes())).unwrap_err();
    let expected = "a shard count of 18446744073709551615 at offset 0 passes the limit of 65535";
    assert_eq!(dir.message(&error), format!("m-00001-of-00002.gguf: {expected}"));
}
