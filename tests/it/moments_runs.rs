//! Second moments measured on a model: shards of the text, experts, files between commands. Needs llama.cpp.

use bytemuck::Zeroable;
use serde_json::Value;
use tcq4::calib::input_moments::STARVED_BELOW;
use tcq4::calib::{
    CalibrationOptions, InputMoments, MomentsRequest, Shard, calibrate, calibrate_with_moments, second_moments, store,
};
use tcq4::corpus::Corpus;
use tcq4::gguf::Source;
use tcq4::llama::{Model, ModelOptions};
use tcq4::quant::Transform;
use tcq4::quant::rounding::{Curvature, Rounding, rotated, round_stripes};
use tcq4::tcq::{Codec, Encoder, Tile};
use tcq4::util::progress::NoProgress;

use crate::cli::{LITTLE, assert_same_tensors};
use crate::support::Dir;
use crate::support::cmd::fixture;
use crate::support::tiny_model::TinyModel;

const EXPERTS: u64 = 4;

struct Setup {
    _dir: Dir,
    model: Model,
    corpus: Corpus,
}

/// A model with experts, and a text.
fn setup(seed: u64) -> Setup {
    let dir = Dir::new();
    let path = dir.file("tiny.gguf");
    TinyModel { experts: EXPERTS, seed, ..TinyModel::default() }.write(&path);
    let model = Model::load(&path, &ModelOptions::default()).unwrap();
    let text = std::fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    Setup { _dir: dir, model, corpus: Corpus::from_text("text", &text).unwrap() }
}

fn options(samples: usize) -> CalibrationOptions {
    CalibrationOptions { ctx: 64, samples, rows: 16, threads: 1, ..CalibrationOptions::default() }
}

fn requests(per_matrix: bool) -> Vec<MomentsRequest> {
    let request = |names: &[&str], columns, matrices: usize| MomentsRequest {
        weights: names.iter().map(|name| format!("blk.1.{name}.weight")).collect(),
        columns,
        matrices,
        per_matrix: per_matrix && matrices > 1,
        blocks: Vec::new(),
    };
    vec![
        request(&["attn_q", "attn_k", "attn_v"], 256, 1),
        request(&["ffn_gate_exps", "ffn_up_exps"], 256, EXPERTS as usize),
        request(&["ffn_down_exps"], 512, EXPERTS as usize),
        request(&["not_there"], 256, 1),
    ]
}

fn measure(setup: &Setup, samples: usize, per_matrix: bool, shard: Shard) -> Vec<Option<InputMoments>> {
    second_moments(&setup.model, &setup.corpus, &options(samples), &requests(per_matrix), shard, None, &NoProgress)
        .unwrap()
}

fn assert_same(a: &[Option<InputMoments>], b: &[Option<InputMoments>]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.as_ref().map(|a| &a.rows), b.as_ref().map(|b| &b.rows));
        let sums = |moments: &InputMoments| {
            moments.blocks[0].sums.iter().map(|sum| (sum.sums().to_vec(), sum.unit(), sum.rows())).collect::<Vec<_>>()
        };
        assert!(a.as_ref().map(sums) == b.as_ref().map(sums));
    }
}

#[test]
fn shards_of_the_text_add_up_to_the_same_bits() {
    let setup = setup(1);
    let whole = measure(&setup, 12, true, Shard::WHOLE);
    assert!(whole[3].is_none() && whole[2].is_some());
    for count in [2, 5, 12] {
        let mut merged: Vec<Option<InputMoments>> = vec![None; whole.len()];
        // The last shard first: order must not matter.
        for index in (0..count).rev() {
            for (all, part) in merged.iter_mut().zip(measure(&setup, 12, true, Shard { index, count })) {
                match (all.as_mut(), part) {
                    (Some(all), Some(part)) => {
                        all.rows.iter_mut().zip(&part.rows).for_each(|(all, rows)| *all += rows);
                        let sums = all.blocks[0].sums.iter_mut().zip(&part.blocks[0].sums);
                        sums.for_each(|(all, sum)| all.merge(sum).unwrap());
                    }
                    (None, part) => *all = part,
                    (Some(_), None) => (),
                }
            }
        }
        assert_same(&merged, &whole);
    }
}

#[test]
fn one_run_of_the_text_gives_what_two_give() {
    let setup = setup(1);
    let (options, requests) = (CalibrationOptions { threads: 2, ..options(6) }, requests(true));
    let (statistics, moments) =
        calibrate_with_moments(&setup.model, &setup.corpus, "x", &options, &requests, &NoProgress).unwrap();
    assert_eq!(statistics, calibrate(&setup.model, &setup.corpus, "x", &options, &NoProgress).unwrap());
    assert_same(&moments, &measure(&setup, 6, true, Shard::WHOLE));
    // Rows of experts, the diagonal and the sum over experts are those of the statistics.
    let entry = &statistics.entries["blk.1.ffn_down_exps.weight"];
    let (own, shared) = (moments[2].as_ref().unwrap(), measure(&setup, 6, false, Shard::WHOLE));
    let shared = shared[2].as_ref().unwrap();
    assert_eq!((&own.rows, &shared.rows), (&entry.counts, &entry.counts));
    for channel in [0, 100, 511] {
        for (expert, sum) in own.blocks[0].sums.iter().enumerate() {
            let expected = entry.sum_sq[expert * 512 + channel];
            assert!((sum.at(channel, channel) - expected).abs() <= 1e-5 * expected, "{expert}, {channel}");
        }
        let of = |moments: &InputMoments| -> f64 { moments.blocks[0].sums.iter().map(|sum| sum.at(3, channel)).sum() };
        assert!((of(own) - of(shared)).abs() < 1e-3, "{channel}");
    }
}

/// What weights of one expert lose in output on rows that were not calibrated on, relative, with codes chosen by each of several second moments.
fn held_out_errors(hessians: &[Vec<f32>], held_out: &[f32], columns: usize, seed: u64) -> Vec<f64> {
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
    const ROWS: usize = 32;
    let codec = Codec::new(Encoder::Default);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut weights: Vec<f32> = (0..ROWS * columns).map(|_| random.random_range(-1.0f32..1.0)).collect();
    let mut tiles = vec![Tile::zeroed(); ROWS / 8 * columns / 256];
    for (rows, tiles) in weights.chunks_exact_mut(8 * columns).zip(tiles.chunks_exact_mut(columns / 256)) {
        codec.encode_rows(rows, columns, tiles).unwrap();
    }
    let turn = |hessian: &[f32]| rotated(hessian, columns, &Transform::default(), codec);
    let held_out = turn(held_out);
    let energy = |rows: &dyn Fn(usize, usize) -> f64| -> f64 {
        let row = |row: usize| -> f64 {
            let of = |i: usize| (0..columns).map(|j| f64::from(held_out[i * columns + j]) * rows(row, j)).sum::<f64>();
            (0..columns).map(|i| rows(row, i) * of(i)).sum()
        };
        (0..ROWS).map(row).sum()
    };
    let whole = energy(&|row, column| f64::from(weights[row * columns + column]));
    let rounding = Rounding { feedback: true, descents: 2, refit: true };
    hessians
        .iter()
        .map(|hessian| {
            let mut tiles = tiles.clone();
            let curvature = Curvature::new(&turn(hessian), columns, 0.01, true).unwrap();
            round_stripes(&weights, &mut tiles, &curvature, rounding);
            let value =
                |row: usize, column: usize| tiles[row / 8 * columns / 256 + column / 256].value(row % 8, column % 256);
            energy(&|row, column| f64::from(weights[row * columns + column] - value(row, column))) / whole
        })
        .collect()
}

/// Experts of an untrained model see much the same: their own second moments must not cost anything where rows are few.
#[test]
fn blended_second_moments_of_experts_hold_on_other_text() {
    const WAYS: [&str; 5] = ["shared", "own", "own unless starved", "blended by K/4", "blended by K"];
    for samples in [8, 64] {
        let setup = setup(3);
        let all = measure(&setup, 2 * samples, true, Shard::WHOLE);
        let (train, held_out) = (
            measure(&setup, 2 * samples, true, Shard { index: 0, count: 2 }),
            measure(&setup, 2 * samples, true, Shard { index: 1, count: 2 }),
        );
        assert!(all[1].is_some());
        for (input, columns) in [(1, 256usize), (2, 512)] {
            let (train, held_out) = (train[input].as_ref().unwrap(), held_out[input].as_ref().unwrap());
            let channels: Vec<u32> = (0..columns as u32).collect();
            let mut sums = [0.0; WAYS.len()];
            for expert in 0..EXPERTS as usize {
                let rows = train.rows[expert] as f64;
                let floor = columns as f64 / STARVED_BELOW as f64;
                let starved = if rows < floor { rows / floor } else { 1.0 };
                let weights = [0.0, 1.0, starved, rows / (rows + floor), rows / (rows + columns as f64)];
                let hessians: Vec<Vec<f32>> =
                    weights.iter().map(|&own| train.mean(&channels, Some((expert, own))).unwrap()).collect();
                let test = held_out.mean(&channels, Some((expert, 1.0))).unwrap();
                let errors = held_out_errors(&hessians, &test, columns, expert as u64);
                sums.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error / EXPERTS as f64);
            }
            println!(
                "{samples} chunks of 64, {columns} channels, rows {:?}: {:?}",
                train.rows,
                WAYS.iter().zip(sums).collect::<Vec<_>>()
            );
            let [shared, own, .., blended] = sums;
            assert!(blended < 1.05 * shared.min(own), "{samples}, {columns}: {sums:?}");
        }
    }
}

#[test]
fn second_moments_go_through_a_file() {
    let dir = Dir::new();
    let line = format!("convert MODEL {LITTLE} --rounding gptq");
    dir.tcq4(&format!("{line} -o live.gguf --stats stats.gguf")).ok();
    dir.tcq4(&format!("{line} -o kept.gguf --second-moments moments.gguf")).ok();
    assert_same_tensors(&dir, "live.gguf", "kept.gguf");
    // Measured in several runs of the text: the same file.
    dir.tcq4(&format!("{line} -o more.gguf --second-moments batches.gguf --memory 12M")).ok();
    assert!(dir.read("moments.gguf") == dir.read("batches.gguf"));
    let done = dir.tcq4(&format!("{line} -o again.gguf --second-moments moments.gguf")).ok();
    assert!(done.stderr.contains("moments.gguf: second moments of this run are there, and used"), "{}", done.stderr);
    assert_same_tensors(&dir, "live.gguf", "again.gguf");
    dir.tcq4("quantize MODEL file.gguf --stats stats.gguf --rounding gptq --second-moments moments.gguf").ok();
    assert_same_tensors(&dir, "live.gguf", "file.gguf");
    dir.tcq4(&format!("calibrate -m MODEL -o perms.json -c EVALUATION {LITTLE} --second-moments c.gguf")).ok();
    dir.tcq4("quantize MODEL c-out.gguf --perms perms.json --rounding gptq --second-moments c.gguf").ok();
    dir.tcq4("verify c-out.gguf --against MODEL").ok();
    dir.tcq4(&format!("{line} -o x.gguf --second-moments moments.gguf --seed 7"))
        .fails_like(3, "error: moments.gguf: these second moments are of another text or setting: expected ");
    dir.tcq4("quantize MODEL x.gguf --rounding gptq").fails_like(2, "error: --rounding gptq needs second moments");
    dir.tcq4("quantize MODEL x.gguf --rounding gptq --second-moments stats.gguf").fails_like(
        3,
        "error: stats.gguf: expected second moments (general.type `tcq4.second-moments`), got `imatrix`",
    );
    dir.tcq4("quantize MODEL x.gguf --second-moments moments.gguf")
        .fails_like(2, "error: --second-moments is of no use");
    dir.tcq4("merge moments.gguf c.gguf -o m.gguf").fails_like(3, "error: c.gguf: these second moments are of another");
    dir.tcq4("merge moments.gguf moments.gguf -o m.gguf").fails_like(3, "error: moments.gguf: chunk 0 of the text");
    let record = dir.tcq4("merge stats.gguf stats.gguf -o m.gguf --json").record("merge");
    assert_eq!((&record["kind"], &record["chunks"]), (&Value::from("statistics"), &Value::from(4)));
    dir.tcq4("merge stats.gguf none.gguf -o n.gguf").fails_like(3, "error: none.gguf: cannot open");
}

#[test]
fn experts_are_reported() {
    let dir = Dir::new();
    let model = TinyModel { experts: EXPERTS, layers: 1, ..TinyModel::default() };
    model.write(&dir.file("m.gguf"));
    assert!(Source::open(&dir.file("m.gguf")).is_ok_and(|source| !store::fingerprint(&source).is_empty()));
    let line = "convert m.gguf -c EVALUATION -n 4 --ctx 32 --rounding gptq";
    let done = dir.tcq4(&format!("{line} -o a.gguf")).ok();
    assert!(
        done.stdout.contains("experts: second moments of their own in 3 of 3 tensors, fewest rows"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("saw fewer than 128 rows: 0, 1"), "{}", done.stdout);
    let done = dir.tcq4(&format!("{line} -o b.gguf --memory 6M")).ok();
    assert!(
        done.stdout.contains("WARNING: 5.7 MiB of memory do not suffice for second moments of each expert"),
        "{}",
        done.stdout
    );
    let record = dir.tcq4(&format!("{line} -o c.gguf --json")).record("convert");
    let loss = record["losses"].as_array().unwrap().iter().find(|loss| loss["name"] == "blk.0.ffn_up_exps.weight");
    let experts = &loss.unwrap()["moments"]["experts"];
    assert_eq!((&experts["own"], &experts["floor"]), (&Value::from(true), &Value::from(64)));
    assert_eq!(experts["rows"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 4 * 32 * 2);
}
