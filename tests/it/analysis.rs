//! The analysis of models made in code, against naive computations of the same numbers.

use std::sync::Arc;

use tcq4::analysis::experts::Threshold;
use tcq4::analysis::record::{Section, Step, TensorRow};
use tcq4::analysis::{Analysis, Choice, Job, Options, analyze};
use tcq4::calib::Statistics;
use tcq4::convert::{
    Codes, Conversion, Job as Conversions, PlanSettings, Provenance, Target, convert, output_metadata, verify_against,
};
use tcq4::gguf::{GgmlType, Sharding, Source};
use tcq4::quant::{Activations, Apply, Order, Orders, Scales, Settings, prepare};
use tcq4::tcq::{CHUNK, Codec, Encoder, TILE_ROWS, Tile};
use tcq4::util::progress::NoProgress;

use crate::support::Dir;
use crate::support::evidence::{statistics, uneven};
use crate::support::tiny_model::TinyModel;

const ROWS: usize = 40;

fn tiny(experts: u64) -> TinyModel {
    TinyModel { width: 512, feed_forward: 768, heads: 8, kv_heads: 2, layers: 2, experts, ..TinyModel::default() }
}

fn write(dir: &Dir, model: &TinyModel) -> Source {
    let path = dir.file("model.gguf");
    model.write(&path);
    Source::open(&path).unwrap()
}

fn plan(source: &Source) -> Conversion {
    let keep = Some(GgmlType::F16);
    let settings =
        PlanSettings { embedding_type: keep, output_type: keep, fallback: GgmlType::F16, ..PlanSettings::default() };
    Conversion::new(source, &settings).unwrap()
}

fn settings(plan: &Conversion, has_statistics: bool) -> Settings {
    Settings {
        targets: plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect(),
        scales: if has_statistics { Scales::ClosedForm } else { Scales::None },
        orders: Orders::Fixed(if has_statistics { Order::Zigzag } else { Order::None }),
        apply: Apply::Runtime,
        activations: Activations::Int8,
        codec: Codec::new(Encoder::Default),
    }
}

fn run(source: &Source, statistics: Option<&Statistics>, converted: Option<&Source>, options: &Options) -> Analysis {
    let plan = plan(source);
    let settings = settings(&plan, statistics.is_some());
    analyze(Job { source, plan: &plan, settings: &settings, statistics, converted }, options, &NoProgress).unwrap()
}

/// Everything is looked at.
fn whole() -> Options {
    Options { output_rows: 1 << 20, alpha_steps: 4, ..Options::default() }
}

fn tensor<'a>(analysis: &'a Analysis, name: &str) -> &'a TensorRow {
    analysis.tensors.iter().find(|row| row.name == name).unwrap()
}

fn weights(source: &Source, name: &str) -> Vec<f32> {
    let info = source.tensor(name).unwrap();
    let mut values = vec![0.0; info.elements() as usize];
    source.read_rows(info, 0, &mut values).unwrap();
    values
}

#[track_caller]
fn close(found: f32, expected: f64, tolerance: f64) {
    assert!((f64::from(found) - expected).abs() <= tolerance * expected.abs().max(1e-9), "{found} is not {expected}");
}

fn reasons(analysis: &Analysis, section: Section) -> Vec<&str> {
    analysis.unmeasured.iter().filter(|gap| gap.section == section).map(|gap| gap.reason.as_str()).collect()
}

/// The output errors of one tensor by the definition: transform, encode, round, decode and multiply, everything in the scaled domain.
fn naive_outputs(source: &Source, statistics: &Statistics, name: &str) -> [f64; 4] {
    let settings = settings(&plan(source), true);
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    let prepared = prepare(source, &read, Some(statistics), &settings, &NoProgress).unwrap();
    let transform = &prepared.transforms[name];
    let (info, codec) = (source.tensor(name).unwrap(), settings.codec);
    let columns = info.columns() as usize;
    let own = weights(source, name);
    let mut stored = vec![0.0; own.len()];
    transform.apply(columns, 0, &mut stored, |row, into| source.read_rows(info, row as u64, into)).unwrap();
    let mut tiles = vec![<Tile as bytemuck::Zeroable>::zeroed(); columns / CHUNK];
    for stripe in stored.chunks_mut(TILE_ROWS * columns) {
        codec.encode_rows(stripe, columns, &mut tiles).unwrap();
        codec.decode_rows(&tiles, columns, stripe);
    }
    let paths = [Activations::None, Activations::Int8, Activations::Int4, Activations::Int4Group32];
    let (mut errors, mut energy) = ([0.0; 4], 0.0);
    for (_, x) in statistics.entries[name].rows.as_ref().unwrap().iter() {
        let order = transform.columns.as_ref().unwrap().indices();
        let inverse = transform.column_scale.as_ref().unwrap();
        let prepared: Vec<f32> = order.iter().map(|&j| x[j as usize] / inverse[j as usize]).collect();
        let rounded = paths.map(|path| {
            let mut values = prepared.clone();
            codec.fwht(&mut values);
            path.round(&mut values);
            codec.fwht(&mut values);
            values
        });
        for (row, (own, stored)) in own.chunks(columns).zip(stored.chunks(columns)).enumerate() {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let factor = transform.row_scale.as_ref().map_or(1.0, |scale| f64::from(scale[row]));
            let wanted = dot(x, own);
            energy += wanted * wanted;
            for (error, x) in errors.iter_mut().zip(&rounded) {
                *error += (dot(x, stored) / factor - wanted).powi(2);
            }
        }
    }
    errors.map(|error| error / energy)
}

#[test]
fn output_errors_are_the_definition() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let statistics = statistics(&source, ROWS, uneven);
    let analysis = run(&source, Some(&statistics), None, &whole());
    for name in ["blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.1.ffn_up.weight", "blk.1.ffn_down.weight"] {
        let row = tensor(&analysis, name);
        let (found, expected) = (row.output.unwrap(), naive_outputs(&source, &statistics, name));
        let all = [found.weights_only, found.int8, found.int4, found.int4_group32];
        for (found, expected) in all.into_iter().zip(expected) {
            close(found, expected, 2e-3);
        }
        assert_eq!(found.assumed, found.int8);
        assert!(found.weights_only < found.int8 && found.int8 < found.int4_group32 && found.int4_group32 < found.int4);
        let split = row.split.as_ref().unwrap().output.unwrap();
        let outputs = f64::from(split.mse_important + split.mse_other);
        close(split.mse_total, outputs, 0.2); // the two parts are hardly correlated
        assert!((split.mean_total - split.mean_important - split.mean_other).abs() < 1e-6);
    }
}

#[test]
fn groups_show_what_the_statistics_hold() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    // One channel of the down projection's input is 300 times as large as the others.
    let statistics = statistics(&source, ROWS, |key, j, random| {
        uneven("", 0, random) * if key == "blk.1.ffn_down" && j == 123 { 300.0 } else { 1.0 }
    });
    let analysis = run(&source, Some(&statistics), None, &Options { alpha_steps: 4, ..Options::default() });
    assert_eq!(analysis.groups.len(), 8);
    let row = analysis.groups.iter().find(|row| row.key == "blk.1.ffn_down").unwrap();
    let entry = &statistics.entries["blk.1.ffn_down.weight"];
    let total: f64 = entry.sum_sq.iter().sum();
    let importance = row.importance.as_ref().unwrap();
    close(importance.mean_sq.top_1, entry.sum_sq[123] / total, 1e-6);
    close(importance.mean_abs.unwrap().top_1, entry.sum_abs[123] / entry.sum_abs.iter().sum::<f64>(), 1e-6);
    assert_eq!((row.layer, row.kind.as_str(), row.columns, row.rows_seen), (Some(1), "ffn_down", 768, ROWS as u64));
    assert_eq!((row.sample_rows, row.grounds.as_str(), row.order.as_str()), (ROWS as u32, "statistics", "zigzag"));
    let steps: Vec<Step> = row.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, Step::ALL);
    // As it is, the spike buries its 255 neighbours; the scale tames it, the rotation spreads it.
    let [plain, scaled, ordered, rotated, bare] = &row.steps[..] else { panic!("five steps") };
    assert!(plain.victims_256 > 0.3 && scaled.victims_256 < 0.25, "{} {}", plain.victims_256, scaled.victims_256);
    assert!(rotated.crest_256 < 5.0 && plain.crest_256 > 5.0 && bare.crest_256 > rotated.crest_256 - 1.0);
    assert!((scaled.crest_32 - ordered.crest_32).abs() < 1.0);
    let detail = analysis.group_details.iter().find(|detail| detail.key == row.key).unwrap();
    let channels = detail.channels.as_ref().unwrap();
    assert_eq!((channels.bucket, channels.channel.len(), channels.place.len()), (1, 768, 768));
    let norm: f64 = weights(&source, "blk.1.ffn_down.weight")
        .chunks(768)
        .map(|row| f64::from(row[123]) * f64::from(row[123]))
        .sum();
    close(channels.weight_sq[123], norm, 6e-5);
    assert!(channels.scale[123] < 0.2);
    let alpha = row.alpha.as_ref().unwrap();
    assert_eq!((detail.alpha_curve.len(), detail.alpha_curve[4].alpha), (5, 1.0));
    assert_eq!(alpha.error_unscaled, detail.alpha_curve[0].error);
    assert!(alpha.best_error <= alpha.error_unscaled && alpha.error_closed_form < alpha.error_unscaled);
    assert!(detail.alpha_curve.iter().all(|point| point.error_weights_only <= point.error));
    assert_eq!(analysis.similarity.len(), 4);
    assert!(analysis.groups.iter().filter(|row| row.layer == Some(1)).all(|row| row.similarity_previous.is_some()));
}

#[test]
fn gates_are_the_products_of_rows_and_weights() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let statistics = statistics(&source, ROWS, uneven);
    let analysis = run(&source, Some(&statistics), None, &Options { tau: -1.5, alpha_steps: 1, ..Options::default() });
    assert_eq!(analysis.gates.len(), 2);
    let name = "blk.1.ffn_gate.weight";
    let rows = statistics.entries[name].rows.as_ref().unwrap();
    let z: Vec<Vec<f64>> = weights(&source, name)
        .chunks(512)
        .map(|w| {
            let dot = |x: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
            rows.iter().map(|(_, x)| dot(x)).collect()
        })
        .collect();
    let row = &analysis.gates[1];
    let all: Vec<f64> = z.concat();
    assert_eq!((row.tensor.as_str(), row.channels, row.sample_rows, row.function.as_str()), (name, 768, 40, "silu"));
    close(row.negative_share, all.iter().filter(|z| **z < 0.0).count() as f64 / all.len() as f64, 1e-3);
    close(row.below_tau_share, all.iter().filter(|z| **z < -1.5).count() as f64 / all.len() as f64, 1e-2);
    close(row.pre.std, (all.iter().map(|z| z * z).sum::<f64>() / all.len() as f64).sqrt(), 1e-2);
    let means: Vec<f64> = z.iter().map(|z| z.iter().sum::<f64>() / ROWS as f64).collect();
    assert_eq!(row.negative_channels as usize, means.iter().filter(|mean| **mean < 0.0).count());
    let detail = analysis.gate_details.iter().find(|detail| detail.tensor == name).unwrap();
    assert_eq!((detail.channels.channel.len(), detail.saliency.len()), (768, 10));
    for (found, expected) in detail.channels.mean.iter().zip(&means) {
        assert!((f64::from(*found) - expected).abs() < 1e-3);
    }
    assert_eq!(detail.pre.counts.iter().sum::<u64>(), all.len() as u64);
}

/// Converts with everything that the statistics give.
fn converted(dir: &Dir, source: &Source, statistics: &Statistics, apply: Apply) -> (Source, Vec<(String, f64)>) {
    let plan = plan(source);
    let settings = Settings { apply, ..settings(&plan, true) };
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    let prepared = prepare(source, &read, Some(statistics), &settings, &NoProgress).unwrap();
    let recipe = r#"{"scales":"closed-form","order":"zigzag"}"#.to_string();
    let provenance = Provenance { encoder: Encoder::Default, recipe, calibration: Vec::new() };
    let metadata = output_metadata(source, &plan, &prepared.transforms, &provenance);
    let job = Conversions {
        source,
        plan: &plan,
        transforms: &prepared.transforms,
        codec: settings.codec,
        device: None,
        codes: Codes::Nearest,
        statistics: None,
        metadata,
    };
    let path = dir.file("converted.gguf");
    let target = Target { path: path.clone(), force: true, sharding: Sharding::Single };
    let losses = convert(&job, &target, &NoProgress).unwrap().losses;
    (Source::open(&path).unwrap(), losses.into_iter().map(|loss| (loss.name, loss.error_rel)).collect())
}

#[test]
fn a_converted_file_and_encoding_in_memory_agree() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let statistics = statistics(&source, ROWS, uneven);
    for apply in [Apply::Runtime, Apply::Fold] {
        let (file, losses) = converted(&dir, &source, &statistics, apply);
        let from_file = run(&source, Some(&statistics), Some(&file), &whole());
        assert_eq!((from_file.setup.order.as_str(), from_file.setup.scales.as_str()), ("zigzag", "closed-form"));
        let verified = verify_against(&file, &source, Codec::new(Encoder::Default), &NoProgress).unwrap();
        for (name, loss) in &losses {
            let row = tensor(&from_file, name);
            assert_eq!(
                (row.to.as_str(), row.measured_on.as_ref().unwrap().weights.as_str()),
                ("tcq4_k32", "converted")
            );
            close(row.error_rel.unwrap(), *loss, 1e-4);
            let verified = verified.tensors.iter().find(|t| t.name == *name).unwrap();
            close(row.error_rel.unwrap(), verified.error_rel.unwrap(), 1e-3);
        }
        if apply == Apply::Runtime {
            let in_memory = run(&source, Some(&statistics), None, &whole());
            for (a, b) in in_memory.tensors.iter().zip(&from_file.tensors) {
                assert_eq!((&a.name, a.error_rel, a.output), (&b.name, b.error_rel, b.output));
                assert_eq!((&a.rounding, &a.split), (&b.rounding, &b.split));
            }
            for (a, b) in in_memory.groups.iter().zip(&from_file.groups) {
                assert_eq!(
                    (&a.key, &a.steps, &a.scale_range, &a.applied),
                    (&b.key, &b.steps, &b.scale_range, &b.applied)
                );
                assert_eq!(a.order, b.order);
            }
        }
    }
}

#[test]
fn roundings_count_every_weight_looked_at() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let analysis = run(&source, None, None, &Options { output_rows: 24, ..Options::default() });
    let row = tensor(&analysis, "blk.0.ffn_down.weight");
    let rounding = row.rounding.as_ref().unwrap();
    assert_eq!(rounding.weights, 24 * 768);
    assert_eq!(rounding.rounded_up + rounding.rounded_down + rounding.exact + rounding.no_step, rounding.weights);
    assert!(rounding.in_steps.mean > 0.2 && rounding.in_steps.mean < 0.3, "uniform errors have the mean ¼");
    let total: u64 =
        analysis.tensors.iter().filter_map(|row| row.rounding.as_ref()).map(|r| r.weights - r.no_step).sum();
    let histogram = analysis.rounding_histogram.as_ref().unwrap();
    assert_eq!(histogram.counts.iter().sum::<u64>() + histogram.below + histogram.above, total);
}

#[test]
fn without_statistics_every_section_says_why() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(2));
    let analysis = run(&source, None, None, &Options::default());
    for section in [
        Section::Importance,
        Section::Steps,
        Section::Alpha,
        Section::Split,
        Section::Output,
        Section::Gates,
        Section::Similarity,
        Section::Experts,
    ] {
        assert_eq!(reasons(&analysis, section), ["there are no statistics"], "{section:?}");
    }
    assert!(analysis.tensors.iter().any(|row| row.error_rel.is_some() && row.output.is_none()));
    assert!(analysis.groups.iter().all(|row| row.importance.is_none() && row.steps.is_empty()));
}

#[test]
fn a_file_of_llama_imatrix_measures_what_it_can() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let mut statistics = statistics(&source, ROWS, uneven);
    for entry in statistics.entries.values_mut() {
        (entry.complete, entry.rows) = (false, None);
        entry.sum.fill(0.0);
        entry.sum_abs.fill(0.0);
        entry.abs_max.fill(0.0);
    }
    let analysis = run(&source, Some(&statistics), None, &Options::default());
    assert!(!analysis.setup.complete);
    for row in &analysis.groups {
        let importance = row.importance.as_ref().unwrap();
        assert!(importance.mean_sq.top_10 > 0.0 && importance.mean_abs.is_none() && importance.signed_mean.is_none());
        assert!(row.steps.is_empty() && row.alpha.is_none() && row.scale_range.is_some());
    }
    assert_eq!(reasons(&analysis, Section::Steps), ["the statistics hold no sample rows of it"]);
    assert_eq!(reasons(&analysis, Section::Output), ["the statistics hold no sample rows of it"]);
    assert_eq!(reasons(&analysis, Section::Gates), ["the statistics hold too few sample rows of it"]);
    assert!(reasons(&analysis, Section::Importance).is_empty());
    let split = tensor(&analysis, "blk.0.ffn_up.weight").split.as_ref().unwrap();
    assert!(split.output.is_none() && split.channel_ratio.is_some() && split.abs_ks.p.is_some());
    assert!(analysis.similarity.len() == 4 && analysis.group_details[0].block_maxima.is_empty());
}

#[test]
fn experts_are_counted_and_measured_apart() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(4));
    let mut statistics = statistics(&source, ROWS, uneven);
    for (name, entry) in &mut statistics.entries {
        if name.starts_with("blk.1.") && entry.matrices == 4 {
            entry.counts[2] = 1;
        }
    }
    let threshold = Threshold { tokens: Some(2), share: None };
    let options = Options { threshold, sample_experts: 2, alpha_steps: 1, ..whole() };
    let analysis = run(&source, Some(&statistics), None, &options);
    assert_eq!(analysis.experts.iter().map(|row| row.starved.clone()).collect::<Vec<_>>(), [vec![], vec![2]]);
    assert_eq!(analysis.experts[0].tokens, [10, 10, 10, 10]);
    close(analysis.experts[1].min_share.unwrap(), 4.0 / 31.0, 1e-6);
    let row = tensor(&analysis, "blk.0.ffn_up_exps.weight");
    let measured = row.measured_on.as_ref().unwrap();
    assert_eq!((measured.matrices, measured.sample_rows, measured.output_rows), (2, 20, 2 * 768));
    assert!(row.output.unwrap().int8 > 0.0 && row.matrices == 4);
    let gate = &analysis.gates[0];
    assert_eq!((gate.matrices, gate.channels, gate.sample_rows), (2, 2 * 768, 20));
    let detail = &analysis.gate_details[0].channels;
    assert_eq!((detail.total, detail.channel.len(), detail.matrix.len()), (2 * 768, 1024, 1024));
}

#[test]
fn degenerate_models_are_analysed_all_the_same() {
    let dir = Dir::new();
    // 384 channels: nothing that reads the stream fits a chunk; the feed-forward network's 512 do.
    let model = TinyModel { width: 384, feed_forward: 512, heads: 4, kv_heads: 2, layers: 2, ..TinyModel::default() };
    let path = dir.file("model.gguf");
    let zeros = |name: &str, data: &mut [u8]| {
        if name == "blk.0.ffn_down.weight" {
            data.fill(0);
        }
    };
    model.write_edited(&path, &Sharding::Single, zeros);
    let source = Source::open(&path).unwrap();
    let mut statistics = statistics(&source, ROWS, uneven);
    let entry = statistics.entries.get_mut("blk.1.ffn_down.weight").unwrap();
    entry.counts.fill(0);
    entry.rows = Some(Arc::default());
    let analysis = run(&source, Some(&statistics), None, &Options::default());
    let zero = tensor(&analysis, "blk.0.ffn_down.weight");
    assert_eq!((zero.error_rel, zero.output), (Some(0.0), None));
    assert!(reasons(&analysis, Section::Output).contains(&"its outputs are zero on every sample row"));
    let unseen = analysis.groups.iter().find(|row| row.key == "blk.1.ffn_down").unwrap();
    assert!(unseen.importance.is_none() && unseen.rows_seen == 0 && unseen.grounds == "structure");
    assert_eq!(reasons(&analysis, Section::Importance), ["the statistics saw no rows of it"]);
    let narrow = analysis.groups.iter().find(|row| row.key == "blk.0.attn_in").unwrap();
    assert!(narrow.importance.is_some() && narrow.steps.is_empty());
    assert!(reasons(&analysis, Section::Steps).contains(&"384 channels are no multiple of 256"));
    let substituted = tensor(&analysis, "blk.0.attn_q.weight");
    assert!(substituted.substituted && substituted.error_rel.is_none());
    assert!(substituted.reason.contains("384 columns"), "{}", substituted.reason);
    let json = serde_json::to_string(&analysis).unwrap();
    assert_eq!(serde_json::from_str::<Analysis>(&json).unwrap(), analysis, "no number is lost, none is infinite");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(2));
    let statistics = statistics(&source, ROWS, uneven);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = Options { alpha_steps: 1, ..Options::default() };
        serde_json::to_string(&pool.install(|| run(&source, Some(&statistics), None, &options))).unwrap()
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn only_what_was_chosen_gets_curves() {
    let dir = Dir::new();
    let source = write(&dir, &tiny(0));
    let statistics = statistics(&source, ROWS, uneven);
    let choose = |layers: &[u32], names: &[&str]| Choice::Only {
        layers: layers.iter().copied().collect(),
        names: names.iter().map(ToString::to_string).collect(),
    };
    let found = |choice| {
        let analysis = run(&source, Some(&statistics), None, &Options { choice, alpha_steps: 1, ..Options::default() });
        let groups: Vec<String> = analysis.group_details.iter().map(|detail| detail.key.clone()).collect();
        let gates: Vec<String> = analysis.gate_details.iter().map(|detail| detail.tensor.clone()).collect();
        (groups, analysis.tensor_details.len(), gates)
    };
    let (groups, tensors, gates) = found(choose(&[1], &[]));
    assert_eq!(groups, ["blk.1.attn_in", "blk.1.attn_out", "blk.1.ffn_in", "blk.1.ffn_down"]);
    assert_eq!((tensors, gates), (7, vec!["blk.1.ffn_gate.weight".to_string()]));
    let (groups, tensors, gates) = found(choose(&[], &["blk.0.ffn_gate", "blk.1.ffn_down.weight", "blk.0.attn_in"]));
    assert_eq!(groups, ["blk.0.attn_in", "blk.0.ffn_in", "blk.1.ffn_down"]);
    assert_eq!((tensors, gates), (5, vec!["blk.0.ffn_gate.weight".to_string()]));
    let plan = plan(&source);
    let settings = settings(&plan, true);
    let job = Job { source: &source, plan: &plan, settings: &settings, statistics: Some(&statistics), converted: None };
    for (choice, message) in [
        (choose(&[7], &[]), "there is no layer 7"),
        (choose(&[], &["blk.0.nothing"]), "there is no tensor `blk.0.nothing`"),
    ] {
        let error = analyze(job, &Options { choice, ..Options::default() }, &NoProgress).unwrap_err();
        assert!(error.to_string().ends_with(message), "{error}");
    }
}
