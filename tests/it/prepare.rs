//! The preparation of a model in a file: choices by statistics, by structure and by measurement, and their reproducibility.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::calib::{ChannelStats, SampleRows, Statistics};
use tcq4::gguf::{Plan, Source, Writer};
use tcq4::model::{Arch, InputGroup, Producer, Shape, groups};
use tcq4::quant::{
    Activations, Applied, Apply, Grounds, Order, Orders, Prepared, Salience, Scales, Settings, Transform, prepare,
};
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::NoProgress;

use crate::support::Dir;
use crate::support::tiny_model::TinyModel;

const ROWS: usize = 48;

/// A model with two chunks in the stream, three in the feed-forward network, and shared value heads.
fn tiny(experts: u64) -> TinyModel {
    TinyModel { width: 512, feed_forward: 768, heads: 8, kv_heads: 2, layers: 2, experts, ..TinyModel::default() }
}

/// Every matrix of the blocks that is quantised.
fn targets(source: &Source) -> BTreeSet<String> {
    let wanted = source
        .tensors()
        .iter()
        .filter(|t| t.name.starts_with("blk.") && t.dims.len() > 1 && !t.name.contains("gate_inp"));
    wanted.map(|tensor| tensor.name.clone()).collect()
}

fn settings(source: &Source, scales: Scales, orders: Orders, apply: Apply) -> Settings {
    let codec = Codec::new(Encoder::Default);
    Settings { targets: targets(source), scales, orders, apply, activations: Activations::None, codec }
}

fn run(source: &Source, statistics: Option<&Statistics>, settings: &Settings) -> Prepared {
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    prepare(source, &read, statistics, settings, &NoProgress).unwrap()
}

fn input_groups(source: &Source) -> Vec<InputGroup> {
    let shapes = source.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
    groups(shapes, &Arch::from_metadata(source.metadata()))
}

fn gain(source: &Source, group: &InputGroup) -> Vec<f32> {
    let mut gain = vec![1.0; group.columns as usize];
    if let Some(name) = group.key.strip_suffix("_in").map(|stem| format!("{stem}_norm.weight")) {
        source.read_rows(source.tensor(&name).unwrap(), 0, &mut gain).unwrap();
    }
    gain
}

/// Statistics as if a text had been seen: normed inputs behind the norms, elsewhere channels of very different strength.
fn statistics(source: &Source) -> Statistics {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut statistics = Statistics { chunk_count: 1, chunk_size: 512, ..Statistics::default() };
    for group in input_groups(source).iter().filter(|group| group.key != "output") {
        let columns = group.columns as usize;
        let gain = gain(source, group);
        let strength: Vec<f32> = (0..columns).map(|_| random.random_range(-2.0f32..2.0).exp()).collect();
        let mut rows = SampleRows { columns, ..SampleRows::default() };
        let experts = source
            .tensor(&group.readers[0])
            .unwrap()
            .matrices()
            .max(source.tensor(group.readers.last().unwrap()).unwrap().matrices());
        for row in 0..ROWS {
            let raw: Vec<f32> = strength.iter().map(|s| s * random.random_range(-1.0f32..1.0)).collect();
            let rms = (raw.iter().map(|v| v * v).sum::<f32>() / columns as f32).sqrt();
            rows.matrix.push(row as u32 % experts as u32);
            rows.data.extend(raw.iter().zip(&gain).map(|(v, g)| v / rms * g));
        }
        let rows = Arc::new(rows);
        for name in &group.readers {
            let matrices = source.tensor(name).unwrap().matrices() as usize;
            statistics.entries.insert(name.clone(), sums(&rows, matrices));
        }
        statistics.groups.push(group.readers.clone());
    }
    statistics
}

fn sums(rows: &Arc<SampleRows>, matrices: usize) -> ChannelStats {
    let mut stats = ChannelStats::new(matrices, rows.columns);
    for (matrix, row) in rows.iter() {
        let base = if matrices == 1 { 0 } else { matrix as usize };
        stats.counts[base] += 1;
        for (at, &x) in (base * rows.columns..).zip(row) {
            stats.abs_max[at] = stats.abs_max[at].max(x.abs());
            (stats.min[at], stats.max[at]) = (stats.min[at].min(x), stats.max[at].max(x));
            stats.sum_abs[at] += f64::from(x.abs());
            stats.sum_sq[at] += f64::from(x) * f64::from(x);
        }
    }
    let mut shared = (**rows).clone();
    if matrices == 1 {
        shared.matrix.fill(0);
    }
    stats.rows = Some(if matrices == 1 { Arc::new(shared) } else { Arc::clone(rows) });
    stats
}

fn write(dir: &Dir, model: &TinyModel) -> Source {
    let path = dir.file("model.gguf");
    model.write(&path);
    Source::open(&path).unwrap()
}

#[test]
fn scales_and_orders_by_statistics() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let statistics = statistics(&source);
    let prepared = run(
        &source,
        Some(&statistics),
        &settings(&source, Scales::ClosedForm, Orders::Fixed(Order::Zigzag), Apply::Runtime),
    );
    assert!(prepared.notices.is_empty(), "{:?}", prepared.notices);
    assert_eq!(prepared.groups.len(), 8);
    for group in &prepared.groups {
        assert_eq!(
            (group.grounds, group.order, group.applied),
            (Grounds::Statistics, Order::Zigzag, Some(Applied::Runtime))
        );
        let scale = group.scale.as_ref().unwrap();
        assert!(scale.min < 0.9 && scale.max > 1.1 && group.unscaled.is_none(), "{group:?}");
    }
    assert_eq!(prepared.runtime_orders().keys().cloned().collect::<BTreeSet<_>>(), targets(&source));
    let norm = &prepared.transforms["blk.0.attn_norm.weight"];
    assert!(norm.column_scale.is_some() && norm.columns.is_none(), "norms are scaled and keep their order");
    let (q, k) = (&prepared.transforms["blk.0.attn_q.weight"], &prepared.transforms["blk.0.attn_k.weight"]);
    assert_eq!((&q.columns, &q.column_scale), (&k.columns, &k.column_scale), "one group, one choice");
    let a = norm.column_scale.as_ref().unwrap();
    assert!(a.iter().zip(q.column_scale.as_ref().unwrap()).all(|(a, c)| (a * c - 1.0).abs() < 1e-6));
}

#[test]
fn measured_choices_beat_the_model_as_it_is() {
    let dir = Dir::new();
    for experts in [0, 4] {
        let folder = Dir::new();
        let source = write(&folder, &tiny(experts));
        let statistics = statistics(&source);
        let awq = Scales::Awq { salience: Salience::MeanSq, steps: 10 };
        let mut settings = settings(&source, awq, Orders::Auto, Apply::Runtime);
        settings.activations = Activations::Int4;
        let prepared = run(&source, Some(&statistics), &settings);
        for group in &prepared.groups {
            let scale = group.scale.as_ref().unwrap();
            assert_eq!(scale.tried.len(), 11);
            let (least, plain) = (group.error.unwrap(), scale.tried[0].error);
            assert!(least < 0.9 * plain, "{}: {least} with, {plain} without", group.group);
            assert!(scale.alpha.unwrap() > 0.0 && !group.orders_tried.is_empty());
            assert!(group.orders_tried.iter().all(|tried| tried.error >= least / 1.0101));
        }
        serde_json::to_string(&prepared).unwrap();
    }
    drop(dir);
}

#[test]
fn without_statistics_the_structure_gives_orders_and_says_so() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(4));
    let prepared = run(&source, None, &settings(&source, Scales::None, Orders::Fixed(Order::Rrs), Apply::Runtime));
    assert!(prepared.groups.iter().all(|group| group.grounds == Grounds::Structure && group.scale.is_none()));
    assert_eq!(prepared.runtime_orders().len(), targets(&source).len());
    assert!(prepared.transforms.values().all(|transform| transform.column_scale.is_none() && transform.runtime_perm));
    let gains = gain(&source, &input_groups(&source)[0]);
    let order = prepared.transforms["blk.0.attn_q.weight"].columns.as_ref().unwrap();
    let sorted: Vec<f32> = order.indices().iter().map(|&channel| gains[channel as usize]).collect();
    assert!(sorted.is_sorted_by(|a, b| a >= b), "behind a norm the gains decide");
}

#[test]
fn folded_orders_need_no_runtime() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(4));
    let statistics = statistics(&source);
    let fold = |orders| run(&source, Some(&statistics), &settings(&source, Scales::ClosedForm, orders, Apply::Fold));
    let prepared = fold(Orders::Fixed(Order::Zigzag));
    assert!(prepared.runtime_orders().is_empty());
    assert!(prepared.notices.iter().any(|notice| notice.contains("adapters")), "{:?}", prepared.notices);
    let transform = |name: &str| &prepared.transforms[name];
    let stream = transform("token_embd.weight").columns.as_ref().unwrap();
    for name in [
        "output.weight",
        "output_norm.weight",
        "blk.1.ffn_gate_inp.weight",
        "blk.0.attn_v.weight",
        "blk.1.ffn_up_exps.weight",
    ] {
        assert_eq!(transform(name).columns.as_ref(), Some(stream), "{name}");
    }
    assert_eq!(transform("blk.0.attn_output.weight").row_order.as_ref(), Some(stream));
    let down = transform("blk.0.ffn_down_exps.weight").columns.as_ref().unwrap();
    assert_eq!(&transform("blk.0.ffn_up_exps.weight").row_order.as_ref().unwrap().indices()[..768], down.indices());
    let measured = fold(Orders::Auto);
    assert!(measured.runtime_orders().is_empty());
    assert!(measured.groups.iter().all(|group| !group.orders_tried.is_empty()));
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let statistics = statistics(&source);
    let awq = Scales::Awq { salience: Salience::MeanAbs, steps: 4 };
    let settings = settings(&source, awq, Orders::Auto, Apply::Runtime);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let prepared = pool.install(|| run(&source, Some(&statistics), &settings));
        (prepared.transforms, serde_json::to_string(&prepared.groups).unwrap())
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn statistics_of_another_model_are_refused() {
    let (dir, other) = (Dir::new(), Dir::new());
    let source = write(&dir, &tiny(0));
    let larger = write(&other, &TinyModel { width: 256, ..tiny(0) });
    let settings = settings(&source, Scales::ClosedForm, Orders::Fixed(Order::None), Apply::Runtime);
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    let error = prepare(&source, &read, Some(&statistics(&larger)), &settings, &NoProgress).unwrap_err();
    assert_eq!(
        dir.message(&error),
        "model.gguf: these statistics are of another model: `blk.0.attn_k.weight` was measured as 1 x 256 channels and has 1 x 512"
    );
    let strange = Statistics {
        entries: BTreeMap::from([("else.weight".into(), ChannelStats::new(1, 4))]),
        ..Statistics::default()
    };
    let error = prepare(&source, &read, Some(&strange), &settings, &NoProgress).unwrap_err();
    assert!(dir.message(&error).contains("none of the tensors"), "{error}");
}

/// The same model under the name of an architecture that nobody knows.
fn renamed(from: &Source, path: &Path) -> Source {
    let mut metadata = from.metadata().clone();
    metadata.set("general.architecture", "novel");
    let plan = Plan::new(&metadata, from.tensors().iter().map(tcq4::gguf::TensorInfo::spec).collect(), 32).unwrap();
    let writer = Writer::create(path, &plan, false, &[]).unwrap();
    from.tensors().iter().enumerate().for_each(|(at, tensor)| writer.copy(at, from, tensor).unwrap());
    writer.commit().unwrap();
    Source::open(path).unwrap()
}

#[test]
fn an_unknown_architecture_gets_the_norms_that_the_statistics_prove() {
    let dir = Dir::new();
    let known = write(&dir, &tiny(0));
    let mut statistics = statistics(&known);
    let source = renamed(&known, &dir.file("novel.gguf"));
    let scaled = |statistics: Option<&Statistics>| {
        let prepared = run(
            &source,
            statistics,
            &settings(&source, Scales::ClosedForm, Orders::Fixed(Order::Zigzag), Apply::Runtime),
        );
        assert!(prepared.notices[0].contains("`novel`"), "{:?}", prepared.notices);
        let keys: Vec<String> = prepared.groups.iter().filter(|g| g.scale.is_some()).map(|g| g.group.clone()).collect();
        (keys, prepared.transforms)
    };
    let (keys, transforms) = scaled(Some(&statistics));
    assert_eq!(keys, ["blk.0.attn_in", "blk.0.ffn_in", "blk.1.attn_in", "blk.1.ffn_in"]);
    assert!(transforms["blk.1.ffn_norm.weight"].column_scale.is_some());
    assert!(transforms.values().filter(|transform: &&Transform| transform.row_scale.is_some()).count() == 0);
    assert!(scaled(None).0.is_empty(), "nothing is proved without statistics");
    statistics.groups[0].push("blk.0.ffn_up.weight".into());
    let entry = statistics.entries.get_mut("blk.1.ffn_gate.weight").unwrap();
    Arc::make_mut(entry.rows.as_mut().unwrap()).data[5] += 30.0;
    assert_eq!(
        scaled(Some(&statistics)).0,
        ["blk.0.ffn_in", "blk.1.attn_in"],
        "a further reader, a row that is not normed"
    );
}

#[test]
fn orders_from_a_file_are_taken_as_they_are() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let order = tcq4::math::Permutation::new(&(0..512).rev().collect::<Vec<i64>>()).unwrap();
    let given = BTreeMap::from([
        ("blk.0.attn_q.weight".to_string(), order.clone()),
        ("token_embd.weight".to_string(), order.clone()),
    ]);
    let prepared = run(&source, None, &settings(&source, Scales::None, Orders::Given(given), Apply::Runtime));
    assert_eq!(
        prepared.runtime_orders(),
        BTreeMap::from([("blk.0.attn_q.weight".to_string(), order)]),
        "only what becomes TCQ4"
    );
    let values = input_groups(&source).into_iter().find(|group| group.key == "blk.0.attn_out").unwrap();
    assert!(matches!(values.producer, Producer::Values { heads: 8, kv_heads: 2, length: 64, .. }));
}
