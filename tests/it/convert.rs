//! Conversion below the command line: transforms, types and refusals, on files made in code.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use tcq4::convert::{
    Codes, Conversion, Job, PlanSettings, Provenance, Reason, Target, TypeRule, convert, dequantize, output_metadata,
    verify,
};
use tcq4::gguf::{GgmlType, Metadata, Plan, Sharding, Source, TensorSpec, Writer};
use tcq4::math::Permutation;
use tcq4::quant::Transform;
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::{NoProgress, Progress, Unit};
use tcq4::{Class, Result};

use crate::support::Dir;
use crate::support::raw::Raw;
use crate::support::tiny_model::TinyModel;

/// Everything as it is but for the linear layers, so that no encoder of ggml is needed.
fn plain_settings() -> PlanSettings {
    let keep = Some(GgmlType::F16);
    PlanSettings { embedding_type: keep, output_type: keep, fallback: GgmlType::F16, ..PlanSettings::default() }
}

fn rule(pattern: &str, ty: GgmlType) -> TypeRule {
    TypeRule { pattern: Regex::new(pattern).unwrap(), ty }
}

fn run(
    source: &Source,
    output: &Path,
    settings: &PlanSettings,
    transforms: &BTreeMap<String, Transform>,
    progress: &dyn Progress,
) -> Result<()> {
    let plan = Conversion::new(source, settings)?;
    let provenance = Provenance { encoder: Encoder::Default, recipe: "{}".into(), calibration: Vec::new() };
    let metadata = output_metadata(source, &plan, transforms, &provenance);
    let job = Job {
        source,
        plan: &plan,
        transforms,
        codec: Codec::new(Encoder::Default),
        device: None,
        codes: Codes::Nearest,
        statistics: None,
        metadata,
    };
    let target = Target { path: output.to_path_buf(), force: false, sharding: Sharding::Single };
    convert(&job, &target, progress).map(|_| ())
}

fn rows(source: &Source, name: &str) -> Vec<f32> {
    let tensor = source.tensor(name).unwrap();
    let mut values = vec![0.0; tensor.elements() as usize];
    source.read_rows(tensor, 0, &mut values).unwrap();
    values
}

/// Writes a model of one tensor.
fn one_tensor(path: &Path, spec: TensorSpec, fill: u8) -> Source {
    let mut keys = Metadata::new();
    keys.set("general.architecture", "llama");
    let plan = Plan::new(&keys, vec![spec], 32).unwrap();
    let writer = Writer::create(path, &plan, false, &[]).unwrap();
    writer.write(0, 0, &vec![fill; plan.tensor_bytes(0) as usize]).unwrap();
    writer.commit().unwrap();
    Source::open(path).unwrap()
}

#[test]
fn a_runtime_order_is_left_out_where_the_tensor_takes_another_type() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("in.gguf"));
    let source = Source::open(&dir.file("in.gguf")).unwrap();
    let order = Permutation::new(&(0..256).rev().collect::<Vec<i64>>()).unwrap();
    let transform = Transform { columns: Some(order), runtime_perm: true, ..Transform::default() };
    let names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"];
    let transforms = names.map(|name| (name.to_string(), transform.clone())).into();
    let settings = PlanSettings { rules: vec![rule("attn_q", GgmlType::F32)], ..plain_settings() };
    let path = dir.file("out.gguf");
    run(&source, &path, &settings, &transforms, &NoProgress).unwrap();
    let file = Source::open(&path).unwrap();
    assert_eq!(rows(&file, names[0]), rows(&source, names[0]), "nothing undoes an order of F32 columns");
    let verification = verify(&file, Codec::new(Encoder::Default), &NoProgress).unwrap();
    assert_eq!(verification.permutations, 1, "attn_k only");
    let plain = dir.file("plain.gguf");
    dequantize(&file, &plain, GgmlType::F32, false, Codec::new(Encoder::Default), &NoProgress).unwrap();
    let (back, original) = (rows(&Source::open(&plain).unwrap(), names[1]), rows(&source, names[1]));
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
    let error = sum(&mut back.iter().zip(&original).map(|(a, b)| a - b)) / sum(&mut original.iter().copied());
    assert!(error < 0.02, "{error}");
}

#[test]
fn a_quantised_tensor_is_not_changed_unasked() {
    let dir = Dir::new();
    let name = "token_embd.weight";
    let spec = TensorSpec { name: name.into(), dims: vec![256, 8], ty: GgmlType::Q8_0 };
    let source = one_tensor(&dir.file("in.gguf"), spec, 0);
    let settings = PlanSettings { output_type: Some(GgmlType::Q8_0), ..PlanSettings::default() };
    let path = dir.file("out.gguf");
    let scaled = Transform { column_scale: Some(vec![2.0; 256]), ..Transform::default() };
    let error = run(&source, &path, &settings, &[(name.to_string(), scaled)].into(), &NoProgress).unwrap_err();
    let expected = "in.gguf: tensor `token_embd.weight` is q8_0 already, expected F16, BF16 or F32";
    assert_eq!((dir.message(&error).as_str(), error.class()), (expected, Class::Refused));
    assert_eq!(dir.names(), ["in.gguf"]);
    run(&source, &path, &settings, &BTreeMap::new(), &NoProgress).unwrap();
}

#[test]
fn a_type_of_unknown_size_is_refused_before_anything_is_allocated() {
    let dir = Dir::new();
    let bytes = Raw::new().tensor("blk.0.attn_q.weight", &[1 << 40, 8], 200, 0).data(32).bytes();
    let source = Source::open(&dir.write("in.gguf", &bytes)).unwrap();
    let settings = PlanSettings { allow_requantize: true, ..plain_settings() };
    let error = Conversion::new(&source, &settings).unwrap_err();
    assert!(
        dir.message(&error).starts_with("in.gguf: tensor `blk.0.attn_q.weight` has the unknown type 200"),
        "{error}"
    );
}

#[test]
fn rules_leave_the_biases_of_experts_alone() {
    let dir = Dir::new();
    let spec = TensorSpec { name: "blk.0.ffn_up_exps.bias".into(), dims: vec![256, 4], ty: GgmlType::F32 };
    let source = one_tensor(&dir.file("in.gguf"), spec, 0);
    let settings = PlanSettings { rules: vec![rule("ffn_up", GgmlType::Q8_0)], ..plain_settings() };
    let plan = Conversion::new(&source, &settings).unwrap();
    assert_eq!((plan.tensors[0].to, &plan.tensors[0].reason), (GgmlType::F32, &Reason::Kept));
}

#[test]
fn what_a_substitution_costs_is_counted_from_the_type_that_was_meant() {
    let dir = Dir::new();
    let spec = TensorSpec { name: "token_embd.weight".into(), dims: vec![576, 8], ty: GgmlType::F16 };
    let source = one_tensor(&dir.file("in.gguf"), spec, 0);
    let plan =
        Conversion::new(&source, &PlanSettings { output_type: Some(GgmlType::Q6_K), ..plain_settings() }).unwrap();
    assert_eq!(plan.substitutions().count(), 1);
    assert_eq!(plan.substitution_bytes(), 576 * 8 * 2 - 576 * 8 / 256 * 210);
}

#[test]
fn types_under_ids_of_the_fork_are_not_written_for_it() {
    let dir = Dir::new();
    let spec = TensorSpec { name: "blk.0.attn_q.weight".into(), dims: vec![256, 8], ty: GgmlType::F16 };
    let source = one_tensor(&dir.file("in.gguf"), spec, 0);
    for fork_ids in [false, true] {
        let rules = vec![rule("attn_q", GgmlType::Q2_0)];
        let plan = Conversion::new(&source, &PlanSettings { rules, fork_ids, ..plain_settings() }).unwrap();
        let expected = if fork_ids { GgmlType::F16 } else { GgmlType::Q2_0 };
        assert_eq!((plan.tensors[0].to, plan.substitutions().count()), (expected, usize::from(fork_ids)));
    }
}

#[test]
fn an_infinite_scale_of_the_early_format_is_found() {
    let dir = Dir::new();
    let mut block = [0u8; 148];
    block[128..130].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    let mut keys = Metadata::new();
    keys.set("tcq4.reorder.enabled", false);
    let spec = TensorSpec { name: "blk.0.attn_q.weight".into(), dims: vec![256, 8], ty: GgmlType::FORK_TCQ4_K32 };
    let plan = Plan::new(&keys, vec![spec], 32).unwrap();
    let writer = Writer::create(&dir.file("early.gguf"), &plan, false, &[]).unwrap();
    writer.write(0, 0, &block.repeat(8)).unwrap();
    writer.commit().unwrap();
    let file = Source::open(&dir.file("early.gguf")).unwrap();
    let codec = Codec::new(Encoder::Default);
    let error = dequantize(&file, &dir.file("out.gguf"), GgmlType::F32, false, codec, &NoProgress).unwrap_err();
    let expected = "early.gguf: `blk.0.attn_q.weight`: row block at row 0, column 0 has scale inf and offset 0";
    assert_eq!(dir.message(&error), expected);
    assert_eq!(verify(&file, codec, &NoProgress).unwrap_err().to_string(), error.to_string());
    assert_eq!(dir.names(), ["early.gguf"]);
}

/// A user who wants to stop.
struct Stopped;

impl Progress for Stopped {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self) {}
    fn note(&self, _message: &str) {}
    fn interrupted(&self) -> bool {
        true
    }
}

#[test]
fn everything_long_can_be_interrupted_and_leaves_nothing() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("in.gguf"));
    let source = Source::open(&dir.file("in.gguf")).unwrap();
    let (path, nothing) = (dir.file("out.gguf"), BTreeMap::new());
    let error = run(&source, &path, &plain_settings(), &nothing, &Stopped).unwrap_err();
    assert_eq!((error.class(), dir.names()), (Class::Interrupted, vec!["in.gguf".to_string()]));
    run(&source, &path, &plain_settings(), &nothing, &NoProgress).unwrap();
    let (file, codec) = (Source::open(&path).unwrap(), Codec::new(Encoder::Default));
    assert_eq!(verify(&file, codec, &Stopped).unwrap_err().class(), Class::Interrupted);
    let error = dequantize(&file, &dir.file("back.gguf"), GgmlType::F16, false, codec, &Stopped).unwrap_err();
    assert_eq!((error.class(), dir.names()), (Class::Interrupted, vec!["in.gguf".to_string(), "out.gguf".to_string()]));
}
