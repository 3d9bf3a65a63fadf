//! What is written is read back, by the crate's reader and by others: valid files of every kind.

use std::path::{Path, PathBuf};
use std::process::Command;

use ggus::GGuf;
use half::{bf16, f16};
use proptest::prelude::*;
use tcq4::gguf::{Dialect, GgmlType, Metadata, Plan, Sharding, Source, TensorInfo, TensorSpec, Value, Writer};
use tcq4::util::hash::sha256_hex;
use tcq4::util::progress::NoProgress;

use crate::support::Dir;
use crate::support::raw::{Raw, ty};
use crate::support::tiny_model::TinyModel;

/// Asserts that two models hold the same keys, byte for byte, and the same tensors with the same data.
fn assert_same(a: &Source, b: &Source) {
    assert_eq!(a.metadata(), b.metadata());
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (left, right) in a.tensors().iter().zip(b.tensors()) {
        assert_eq!(left.spec(), right.spec());
        assert!(a.data(left) == b.data(right), "the data of `{}` differs", left.name);
    }
}

/// Copies a model through plan and writer.
fn copy(source: &Source, path: &Path, sharding: &Sharding) {
    let specs = source.tensors().iter().map(TensorInfo::spec).collect();
    let plan = Plan::sharded(source.metadata(), specs, source.alignment(), sharding, source.dialect()).unwrap();
    let inputs: Vec<&Path> = source.shards().collect();
    let writer = Writer::create(path, &plan, false, &inputs).unwrap();
    for (index, tensor) in source.tensors().iter().enumerate() {
        writer.copy(index, source, tensor).unwrap();
    }
    writer.commit().unwrap();
}

/// Compares a file with what `ggus` reads in it. Only for types that `ggus` knows.
fn assert_ggus_agrees(source: &Source, path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let other = GGuf::new(&bytes).unwrap();
    assert_eq!(other.alignment as u64, source.alignment());
    let split = other.meta_kvs.keys().filter(|key| key.starts_with("split.")).count();
    assert_eq!(other.meta_kvs.len() - split, source.metadata().len());
    for (key, entry) in other.meta_kvs.iter().filter(|(key, _)| !key.starts_with("split.")) {
        assert_eq!(source.metadata().payload(key), Some(entry.value_bytes()), "{key}");
        assert_eq!(source.metadata().value_type(key).map(|ty| ty as u32), Some(entry.ty() as u32), "{key}");
    }
    for (name, entry) in &other.tensors {
        let (info, own) = (entry.to_info(), source.tensor(name).unwrap());
        assert_eq!((info.shape(), info.ty() as u32), (own.dims.as_slice(), own.ty.0), "{name}");
        assert!(other.data[info.offset()..][..info.nbytes()] == *source.data(own), "{name}");
    }
}

#[test]
fn a_model_is_read_as_it_was_written() {
    let (dir, model) = (Dir::new(), TinyModel::default());
    let path = dir.file("tiny.gguf");
    model.write(&path);
    let source = Source::open(&path).unwrap();
    assert_eq!(source.metadata(), &model.metadata());
    assert_eq!((source.version(), source.alignment(), source.dialect()), (3, 32, Dialect::Upstream));
    for (own, planned) in source.tensors().iter().zip(model.tensors()) {
        assert_eq!(own.spec(), planned);
        assert!(source.data(own) == model.data(&planned), "{}", own.name);
    }
    assert_eq!(source.tensor("output.weight").map(TensorInfo::rows), Some(259));
    assert!(source.tensor("output.weigh").is_none());
    assert_eq!(source.total_bytes(), std::fs::metadata(&path).unwrap().len());
    assert_ggus_agrees(&source, &path);
    assert_eq!(dir.names(), ["tiny.gguf"], "nothing else is left");
}

#[test]
fn experts_are_matrices_of_one_tensor() {
    let dir = Dir::new();
    let path = dir.file("moe.gguf");
    TinyModel { experts: 4, layers: 1, ..TinyModel::default() }.write(&path);
    let source = Source::open(&path).unwrap();
    let tensor = source.tensor("blk.0.ffn_down_exps.weight").unwrap();
    assert_eq!((tensor.columns(), tensor.rows(), tensor.matrices()), (512, 4 * 256, 4));
    assert_eq!(tensor.elements(), 512 * 1024);
    assert_ggus_agrees(&source, &path);
}

#[test]
fn the_hash_is_that_of_the_files_bytes() {
    let dir = Dir::new();
    let path = dir.file("tiny.gguf");
    TinyModel::default().write(&path);
    let hash = Source::open(&path).unwrap().sha256(&NoProgress).unwrap();
    assert_eq!(hash, sha256_hex(&std::fs::read(&path).unwrap()));
}

#[test]
fn version_2_is_read() {
    let dir = Dir::new();
    let mut raw = Raw::new().text("general.architecture", "llama").tensor("a", &[8], 0, 0).data(32);
    raw.version = 2;
    let source = Source::open(&dir.write("two.gguf", &raw.bytes())).unwrap();
    assert_eq!((source.version(), source.tensors().len()), (2, 1));
    assert_eq!(source.metadata().get_str("general.architecture").as_deref(), Some("llama"));
}

#[test]
fn rows_are_read_as_f32_from_every_float_type() {
    let dir = Dir::new();
    let values: Vec<f32> = (0..64).map(|index| (index as f32 - 20.0) / 8.0).collect();
    let specs: Vec<TensorSpec> =
        [("h", GgmlType::F16), ("b", GgmlType::BF16), ("f", GgmlType::F32), ("i", GgmlType::I8)]
            .map(|(name, ty)| TensorSpec { name: name.into(), dims: vec![8, 4, 2], ty })
            .to_vec();
    let plan = Plan::new(&Metadata::new(), specs, 32).unwrap();
    let path = dir.file("rows.gguf");
    let writer = Writer::create(&path, &plan, false, &[]).unwrap();
    let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    let brains: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    writer.write(0, 0, &halves).unwrap();
    writer.write(1, 0, &brains).unwrap();
    writer.write(2, 0, bytemuck::cast_slice(&values)).unwrap();
    writer.write(3, 0, &[0; 64]).unwrap();
    writer.commit().unwrap();
    let source = Source::open(&path).unwrap();
    for name in ["h", "b", "f"] {
        let tensor = source.tensor(name).unwrap();
        let mut rows = [0.0; 24];
        source.read_rows(tensor, 3, &mut rows).unwrap();
        assert_eq!(rows, values[24..48], "{name}");
        source.release(tensor, 0..tensor.bytes as usize);
        source.read_rows(tensor, 5, &mut rows).unwrap();
        assert_eq!(rows, values[40..64], "{name} after its pages were released");
    }
    let error = source.read_rows(source.tensor("i").unwrap(), 0, &mut [0.0; 8]).unwrap_err();
    assert_eq!(dir.message(&error), "rows.gguf: tensor `i` is i8, expected F16, BF16 or F32");
}

#[test]
fn text_that_is_not_utf8_is_carried_over() {
    let dir = Dir::new();
    let payload = [&3u64.to_le_bytes()[..], &[b'a', 0xff, b'b']].concat();
    let path = dir.write("odd.gguf", &Raw::new().key("odd", ty::STR, &payload).bytes());
    let source = Source::open(&path).unwrap();
    assert_eq!(source.metadata().get_str("odd").as_deref(), Some("a\u{fffd}b"));
    copy(&source, &dir.file("copy.gguf"), &Sharding::Single);
    assert_eq!(Source::open(&dir.file("copy.gguf")).unwrap().metadata().payload("odd"), Some(&payload[..]));
}

#[test]
fn unknown_types_are_values() {
    let dir = Dir::new();
    let raw = Raw::new().tensor("known", &[8], 0, 0).tensor("new", &[8], 200, 32).tensor("last", &[8], 0, 64);
    let source = Source::open(&dir.write("new.gguf", &raw.data(96).bytes())).unwrap();
    let tensor = source.tensor("new").unwrap();
    assert_eq!((tensor.ty, tensor.bytes, tensor.is_known()), (GgmlType(200), 0, false));
    assert_eq!(source.data(source.tensor("last").unwrap())[0], 64);
    let error = source.check_types().unwrap_err();
    assert_eq!(dir.message(&error), "new.gguf: tensor `new` has the unknown type 200");
    let specs = source.tensors().iter().map(TensorInfo::spec).collect();
    let error = Plan::new(source.metadata(), specs, 32).unwrap_err();
    assert_eq!(error.to_string(), "tensor `new` has the unknown type 200");
}

/// Id 42 is Q2_0 upstream (18 bytes in 64 values) and TCQ4_K32 in the fork (148 in 256).
#[test]
fn id_42_is_sized_by_keys_and_by_offsets() {
    let dir = Dir::new();
    let file = |keys: Raw, first: usize| {
        let raw = keys.tensor("a", &[256, 8], 42, 0).tensor("b", &[8], 0, first as u64).data(first + 32);
        let source = Source::open(&dir.write("clash.gguf", &raw.bytes())).unwrap();
        (source.dialect(), source.tensors()[0].bytes)
    };
    let keys = || Raw::new().key("tcq4.reorder.enabled", ty::BOOL, &[1]);
    assert_eq!(file(keys(), 1184), (Dialect::Fork, 1184));
    assert_eq!(file(Raw::new(), 576), (Dialect::Upstream, 576));
    assert_eq!(file(Raw::new(), 1184), (Dialect::Fork, 1184), "no keys, but the offsets prove it");
    assert_eq!(file(keys(), 576), (Dialect::Upstream, 576), "keys, but the offsets prove the contrary");
}

#[test]
fn alignment_is_kept() {
    let dir = Dir::new();
    let mut raw = Raw::new().u32("general.alignment", 64).tensor("a", &[3], 24, 0).tensor("b", &[3], 24, 64).data(67);
    raw.alignment = 64;
    let source = Source::open(&dir.write("wide.gguf", &raw.bytes())).unwrap();
    assert_eq!(source.alignment(), 64);
    copy(&source, &dir.file("copy.gguf"), &Sharding::Single);
    let copied = Source::open(&dir.file("copy.gguf")).unwrap();
    assert_same(&source, &copied);
    assert_eq!(copied.tensors()[1].offset() % 64, 0);
}

#[test]
fn shards_are_read_as_one_from_any_of_them() {
    let (dir, model) = (Dir::new(), TinyModel::default());
    model.write(&dir.file("whole.gguf"));
    model.write_sharded(&dir.file("part.gguf"), &Sharding::MaxBytes(400_000));
    let names: Vec<String> = dir.names().into_iter().filter(|name| name.starts_with("part")).collect();
    assert!(names.len() > 2 && names[0] == format!("part-00001-of-{:05}.gguf", names.len()), "{names:?}");
    let whole = Source::open(&dir.file("whole.gguf")).unwrap();
    for name in &names {
        let path = dir.file(name);
        let source = Source::open(&path).unwrap();
        assert_same(&whole, &source);
        assert_eq!((source.shards().len(), source.path()), (names.len(), path.as_path()));
        assert_ggus_agrees_on_shards(&source);
    }
    let largest = names.iter().map(|name| std::fs::metadata(dir.file(name)).unwrap().len()).max();
    assert!(largest <= Some(400_000));
}

fn assert_ggus_agrees_on_shards(source: &Source) {
    let paths: Vec<PathBuf> = source.shards().map(Path::to_path_buf).collect();
    for path in &paths {
        let bytes = std::fs::read(path).unwrap();
        let other = GGuf::new(&bytes).unwrap();
        for (name, entry) in &other.tensors {
            let (info, own) = (entry.to_info(), source.tensor(name).unwrap());
            assert!(other.data[info.offset()..][..info.nbytes()] == *source.data(own), "{name}");
        }
    }
    let names = paths.iter().map(|path| ggus::GGufFileName::try_from(path.as_path()).unwrap());
    let merged = ggus::GGufFileName::merge_shards(&names.collect::<Vec<_>>()).unwrap();
    assert_eq!(merged.to_string(), "part.gguf");
}

#[test]
fn the_division_of_the_source_can_be_kept() {
    let (dir, model) = (Dir::new(), TinyModel::default());
    model.write_sharded(&dir.file("part.gguf"), &Sharding::Counts(vec![0, 5, 16]));
    let source = Source::open(&dir.file("part-00002-of-00003.gguf")).unwrap();
    assert_eq!(source.shard_sizes()[..2], [0, 5]);
    copy(&source, &dir.file("copy.gguf"), &Sharding::Counts(source.shard_sizes()));
    for number in 1..=3 {
        let read = |name: &str| std::fs::read(dir.file(&format!("{name}-0000{number}-of-00003.gguf"))).unwrap();
        assert!(read("part") == read("copy"), "shard {number}");
    }
}

#[test]
fn a_limit_that_everything_fits_gives_one_plain_file() {
    let dir = Dir::new();
    TinyModel::default().write_sharded(&dir.file("whole.gguf"), &Sharding::MaxBytes(1 << 30));
    assert_eq!(dir.names(), ["whole.gguf"]);
    assert!(!Source::open(&dir.file("whole.gguf")).unwrap().metadata().contains("split.count"));
}

#[test]
fn the_header_is_rewritten_only_at_its_length() {
    let dir = Dir::new();
    let mut keys = Metadata::new();
    keys.set("hash", "0000");
    let specs = vec![TensorSpec { name: "a".into(), dims: vec![4], ty: GgmlType::I8 }];
    let plan = Plan::new(&keys, specs, 32).unwrap();
    let mut writer = Writer::create(&dir.file("a.gguf"), &plan, false, &[]).unwrap();
    writer.write(0, 0, b"data").unwrap();
    keys.set("hash", "00000");
    let error = writer.set_metadata(&keys).unwrap_err();
    assert_eq!(dir.message(&error), "a.gguf: the header would be 29 bytes long, 28 were planned");
    keys.set("hash", "abcd");
    writer.set_metadata(&keys).unwrap();
    let reread = writer.reread().unwrap();
    assert_eq!(reread.metadata().get_str("hash").as_deref(), Some("abcd"));
    assert_eq!(reread.data(&reread.tensors()[0]), b"data");
    writer.commit().unwrap();
    assert_same(&reread, &Source::open(&dir.file("a.gguf")).unwrap());
}

#[test]
fn plans_that_no_reader_would_accept_are_refused() {
    let spec = |name: &str, dims: &[u64], ty| TensorSpec { name: name.into(), dims: dims.to_vec(), ty };
    let message = |specs: Vec<TensorSpec>| Plan::new(&Metadata::new(), specs, 32).unwrap_err().to_string();
    assert_eq!(message(vec![spec("a", &[4], GgmlType::F32); 2]), "the tensor `a` occurs twice");
    assert_eq!(message(vec![spec("", &[4], GgmlType::F32)]), "the tensor name number 0 at offset 0 is empty");
    assert_eq!(
        message(vec![spec(&"n".repeat(64), &[4], GgmlType::F32)]),
        "a tensor name length of 64 at offset 0 passes the limit of 63"
    );
    assert_eq!(message(vec![spec("a", &[4, 0], GgmlType::F32)]), "tensor `a` has a dimension of 0: [4, 0]");
    assert_eq!(
        message(vec![spec("a", &[512, 12], GgmlType::TCQ4_K32)]),
        "tensor `a` of type tcq4_k32 has 12 rows, expected a multiple of 8"
    );
    let huge = || spec("a", &[1 << 40, 1 << 20], GgmlType::F32);
    let two = vec![huge(), TensorSpec { name: "b".into(), ..huge() }];
    assert_eq!(message(two), "tensor `b` is larger than any file: [1099511627776, 1048576]");
    let alignment = Plan::new(&Metadata::new(), vec![], 3).unwrap_err().to_string();
    assert_eq!(alignment, "key `general.alignment` is 3, expected a power of two from 8 to 2097152");
}

/// Types that `ggus` knows and sizes as ggml does (its IQ4_NL is wrong), with their block lengths, and ours.
const TYPES: [(GgmlType, u64); 8] = [
    (GgmlType::F32, 1),
    (GgmlType::F16, 1),
    (GgmlType::Q8_0, 32),
    (GgmlType::Q4_K, 256),
    (GgmlType::Q6_K, 256),
    (GgmlType::BF16, 1),
    (GgmlType::I64, 1),
    (GgmlType::TCQ4_K32, 256),
];

fn any_value() -> impl Strategy<Value = Value<'static>> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_filter("NaN is not equal to itself", |value| !value.is_nan()).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,30}".prop_map(Value::from),
        prop::collection::vec(any::<i32>(), 0..40).prop_map(|values| Value::from(values.as_slice())),
        prop::collection::vec(".{0,9}", 0..20).prop_map(|texts| Value::from(texts.as_slice())),
        prop::collection::vec(any::<bool>(), 0..20).prop_map(|bits| Value::from(bits.as_slice())),
    ]
}

prop_compose! {
    fn any_tensor()(
        kind in 0..TYPES.len(),
        columns in 1..4u64,
        rest in prop::collection::vec(1..4u64, 0..=3),
    ) -> (GgmlType, Vec<u64>) {
        let (ty, block) = TYPES[kind];
        let mut dims = vec![columns * block];
        dims.extend(rest);
        if ty == GgmlType::TCQ4_K32 {
            dims.resize(dims.len().max(2), 1);
            dims[1] *= 8;
        }
        (ty, dims)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_valid_model_survives_writing_and_reading(
        keys in prop::collection::btree_map("[a-z][a-z0-9_.]{0,20}", any_value(), 0..12),
        shapes in prop::collection::vec(any_tensor(), 0..8),
        alignment in prop::sample::select(vec![8u64, 32, 256]),
        sharding in prop::sample::select(vec![Sharding::Single, Sharding::MaxBytes(3000), Sharding::Counts(vec![1, 2, 3])]),
    ) {
        let mut metadata = Metadata::new();
        // Sorted last first, so that the order of the keys is not the sorted one.
        for (key, value) in keys.iter().rev().filter(|(key, _)| !key.starts_with("split.")) {
            metadata.set(key, value.clone());
        }
        metadata.set("general.alignment", alignment as u32);
        let specs: Vec<TensorSpec> = shapes
            .iter()
            .enumerate()
            .map(|(index, (ty, dims))| TensorSpec { name: format!("tensor.{index}"), dims: dims.clone(), ty: *ty })
            .collect();
        let plan = Plan::sharded(&metadata, specs.clone(), alignment, &sharding, Dialect::Upstream).unwrap();
        let dir = Dir::in_memory();
        let writer = Writer::create(&dir.file("any.gguf"), &plan, false, &[]).unwrap();
        let data = |index: usize| -> Vec<u8> { (0..plan.tensor_bytes(index)).map(|at| (at as usize * 7 + index) as u8).collect() };
        for index in 0..plan.len() {
            let bytes = data(index);
            let (front, back) = bytes.split_at(bytes.len() / 3);
            writer.write(index, front.len() as u64, back).unwrap();
            writer.write(index, 0, front).unwrap();
        }
        writer.commit().unwrap();
        let paths = plan.paths(&dir.file("any.gguf"));
        let source = Source::open(&paths[paths.len() / 2]).unwrap();
        prop_assert_eq!(source.metadata(), &metadata);
        prop_assert_eq!(source.total_bytes(), plan.total_bytes());
        for (index, tensor) in source.tensors().iter().enumerate() {
            prop_assert_eq!(&tensor.spec(), &specs[index]);
            prop_assert!(source.data(tensor) == data(index));
        }
        if paths.len() == 1 && shapes.iter().all(|(ty, _)| ty.0 <= 33) {
            assert_ggus_agrees(&source, &paths[0]);
        }
    }
}

/// A copy of a real model is the model: every byte, when its writer padded as ggml does.
#[test]
fn a_real_model_is_copied_byte_for_byte() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/tiny-llama-f16.gguf");
    let path = std::env::var_os("TCQ4_TEST_MODEL").map_or_else(|| PathBuf::from(fixture), PathBuf::from);
    let (dir, source) = (Dir::new(), Source::open(&path).unwrap());
    assert_ggus_agrees(&source, &path);
    copy(&source, &dir.file("copy.gguf"), &Sharding::Single);
    let copied = Source::open(&dir.file("copy.gguf")).unwrap();
    assert_eq!(source.sha256(&NoProgress).unwrap(), copied.sha256(&NoProgress).unwrap());
}

/// llama.cpp's own tools read what is written, in one file and in shards.
#[test]
#[ignore = "needs llama.cpp's programs; scripts/test.sh runs it where TCQ4_LLAMA_BIN names their folder"]
fn peer_llama_cpp_reads_what_is_written() {
    let tools = PathBuf::from(std::env::var_os("TCQ4_LLAMA_BIN").expect("TCQ4_LLAMA_BIN"));
    let (dir, model) = (Dir::new(), TinyModel::default());
    model.write(&dir.file("whole.gguf"));
    model.write_sharded(&dir.file("part.gguf"), &Sharding::Counts(vec![7, 7, 7]));
    let run = |tool: &str, arguments: &[&str]| {
        let output = Command::new(tools.join(tool)).args(arguments).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("llama-gguf-split", &["--merge", "part-00001-of-00003.gguf", "merged.gguf"]);
    let (whole, merged) = (Source::open(&dir.file("whole.gguf")), Source::open(&dir.file("merged.gguf")));
    let (whole, merged) = (whole.unwrap(), merged.unwrap());
    assert_eq!(whole.metadata(), merged.metadata());
    for tensor in whole.tensors() {
        assert!(whole.data(tensor) == merged.data(merged.tensor(&tensor.name).unwrap()), "{}", tensor.name);
    }
    run("llama-quantize", &["whole.gguf", "q8.gguf", "Q8_0", "1"]);
    let quantised = Source::open(&dir.file("q8.gguf")).unwrap();
    assert_eq!(quantised.tensor("blk.0.attn_q.weight").map(|tensor| tensor.ty), Some(GgmlType::Q8_0));
    run("llama-gguf-split", &["--split", "--split-max-tensors", "6", "whole.gguf", "theirs"]);
    let theirs = Source::open(&dir.file("theirs-00003-of-00004.gguf")).unwrap();
    assert_same(&whole, &theirs);
    TinyModel { experts: 4, ..TinyModel::default() }.write(&dir.file("moe.gguf"));
    for model in ["whole.gguf", "moe.gguf"] {
        run("llama-bench", &["-m", model, "-p", "8", "-n", "1", "-r", "1", "-t", "1"]);
    }
}
