//! What AWQ calls salient: every choice through the preparation of a model, what replaces it where statistics lack something, and PRAQ against numpy.

use std::collections::BTreeSet;
use std::process::Command;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use tcq4::calib::{ChannelStats, Statistics};
use tcq4::gguf::Source;
use tcq4::model::Function;
use tcq4::quant::salience::praq::{THRESHOLD, inputs, normalised, relative, softmax};
use tcq4::quant::salience::{Output, robust};
use tcq4::quant::{Activations, Apply, GroupOutcome, Order, Orders, Prepared, Salience, Scales, Settings, prepare};
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::NoProgress;

use crate::support::evidence::{statistics, uneven};
use crate::support::tiny_model::TinyModel;
use crate::support::{Dir, python_with_numpy, skip};

const STEPS: u32 = 4;

fn source(dir: &Dir, experts: u64) -> Source {
    let model =
        TinyModel { width: 256, feed_forward: 512, heads: 4, kv_heads: 2, layers: 1, experts, ..TinyModel::default() };
    let path = dir.file("model.gguf");
    model.write(&path);
    Source::open(&path).unwrap()
}

fn prepared(source: &Source, statistics: &Statistics, salience: Salience) -> Prepared {
    let wanted = |name: &str| name.starts_with("blk.") && !name.contains("gate_inp");
    let matrices = source.tensors().iter().filter(|t| t.dims.len() > 1 && wanted(&t.name));
    let settings = Settings {
        targets: matrices.map(|tensor| tensor.name.clone()).collect::<BTreeSet<String>>(),
        scales: Scales::Awq { salience, steps: STEPS },
        orders: Orders::Fixed(Order::None),
        apply: Apply::Runtime,
        activations: Activations::Int4,
        codec: Codec::new(Encoder::Default),
    };
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    prepare(source, &read, Some(statistics), &settings, &NoProgress).unwrap()
}

fn group<'a>(prepared: &'a Prepared, key: &str) -> &'a GroupOutcome {
    prepared.groups.iter().find(|group| group.group == key).unwrap()
}

fn error_unscaled(prepared: &Prepared, key: &str) -> f64 {
    group(prepared, key).scale.as_ref().unwrap().tried[0].error
}

#[test]
fn every_choice_is_followed_and_recorded() {
    for experts in [0, 4] {
        let dir = Dir::new();
        let source = source(&dir, experts);
        let statistics = statistics(&source, 48, uneven);
        for salience in Salience::ALL {
            let found = prepared(&source, &statistics, salience);
            assert!(found.notices.is_empty(), "{salience:?}: {:?}", found.notices);
            for group in &found.groups {
                let scale = group.scale.as_ref().unwrap();
                assert_eq!((scale.salience, &scale.fallback), (Some(salience), &None), "{}", group.group);
                assert_eq!(scale.tried.len(), STEPS as usize + 1);
                let least = scale.tried.iter().map(|tried| tried.error).fold(f64::INFINITY, f64::min);
                let chosen = scale.tried.iter().find(|tried| Some(tried.candidate) == scale.alpha).unwrap();
                assert!(chosen.error == least && least.is_finite());
            }
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let again = one.install(|| prepared(&source, &statistics, salience));
            assert_eq!((again.groups, again.transforms), (found.groups, found.transforms), "{salience:?}");
        }
    }
}

#[test]
fn weights_of_outputs_and_noise_change_what_is_measured_where_they_should() {
    let dir = Dir::new();
    let source = source(&dir, 0);
    let statistics = statistics(&source, 48, uneven);
    let error = |salience, key: &str| error_unscaled(&prepared(&source, &statistics, salience), key);
    let plain = |key: &str| error(Salience::MeanAbs, key);
    assert_eq!(error(Salience::Praq, "blk.0.ffn_in"), plain("blk.0.ffn_in"), "PRAQ weighs no outputs");
    for salience in [Salience::GwhPraq, Salience::GwhBlend] {
        assert_eq!(error(salience, "blk.0.attn_in"), plain("blk.0.attn_in"), "attention counts alike");
        assert_ne!(error(salience, "blk.0.ffn_in"), plain("blk.0.ffn_in"));
        assert_ne!(error(salience, "blk.0.ffn_down"), plain("blk.0.ffn_down"));
    }
    assert_ne!(error(Salience::FastPraq, "blk.0.attn_in"), plain("blk.0.attn_in"));
    let (with, without) = (error(Salience::RobustPraq, "blk.0.attn_in"), plain("blk.0.attn_in"));
    assert!(with != without && (with - without).abs() < 0.2 * without, "a little noise: {with} {without}");
}

/// Changes the statistics of every tensor.
fn with(statistics: &Statistics, change: impl Fn(&str, &mut ChannelStats)) -> Statistics {
    let mut other = statistics.clone();
    other.entries.iter_mut().for_each(|(name, entry)| change(name, entry));
    other
}

#[test]
fn what_statistics_lack_is_replaced_and_said() {
    let dir = Dir::new();
    let source = source(&dir, 0);
    let full = statistics(&source, 48, uneven);
    let squares = with(&full, |_, entry| (entry.complete, entry.ranged) = (false, false));
    let scale = |statistics: &Statistics, salience| {
        let found = prepared(&source, statistics, salience);
        (group(&found, "blk.0.ffn_in").scale.clone().unwrap(), found.notices)
    };
    let (l1, notices) = scale(&squares, Salience::MeanAbs);
    assert_eq!(l1.salience, Some(Salience::MeanSq));
    assert_eq!(l1.fallback.unwrap(), "the statistics have no sums of |x|: E[x²] instead");
    assert_eq!(notices, ["4 input groups: the statistics have no sums of |x|: E[x²] instead"]);
    assert_eq!(l1.tried, scale(&full, Salience::MeanSq).0.tried, "as if l2 had been asked for");
    assert_eq!(scale(&squares, Salience::Max).0.salience, Some(Salience::MeanSq));
    assert_eq!(scale(&squares, Salience::GwhPraq).0.salience, Some(Salience::GwhPraq));
    assert!(scale(&squares, Salience::GwhPraq).0.fallback.is_some());
    let unranged = with(&full, |_, entry| entry.ranged = false);
    let (range, _) = scale(&unranged, Salience::Range);
    assert_eq!((range.salience, range.fallback.is_some()), (Some(Salience::Max), true));
    assert_eq!(range.tried, scale(&full, Salience::Max).0.tried);

    let rowless = with(&full, |_, entry| entry.rows = None);
    let (praq, notices) = scale(&rowless, Salience::Praq);
    assert_eq!((praq.salience, praq.alpha), (None, None));
    assert_eq!(praq.fallback.unwrap(), "no sample rows to search on: the closed form instead of praq");
    assert_eq!(notices, ["4 input groups have no sample rows to search on: their scale is the closed form"]);
    let partly = with(&full, |name, entry| entry.rows = entry.rows.take().filter(|_| !name.contains("ffn_up")));
    let (praq, notices) = scale(&partly, Salience::Praq);
    assert_eq!(praq.salience, Some(Salience::Praq));
    assert_eq!(praq.fallback.unwrap(), "`blk.0.ffn_up.weight` has no sample rows and takes no part");
    assert_eq!(notices, ["1 input groups: some importances could not be measured (see the record)"]);
}

const TOKENS: usize = 64;
const ROWS: usize = 40;
const COLUMNS: usize = 96;

/// The importances from their definitions. Reads x, w and b; writes a file for each result.
const PRAQ: &str = "
import sys, numpy as np
folder, tokens, rows, columns = sys.argv[1], *map(int, sys.argv[2:5])
read = lambda name, shape: np.fromfile(f'{folder}/{name}', dtype='<f4').astype(np.float64).reshape(shape)
def write(name, values):
    np.asarray(values, dtype='<f8').tofile(f'{folder}/{name}')
X, W, b = read('x', (tokens, columns)), read('w', (rows, columns)), read('b', rows)
Z = X @ W.T + b
sigmoid = lambda v: 1 / (1 + np.exp(-v))
o = np.concatenate([np.abs(Z * sigmoid(Z)).mean(axis=0)[:rows // 2], np.abs(Z).mean(axis=0)[rows // 2:]])
imp = o @ np.abs(W)
write('inputs', imp)
write('normalised', 0.1 + 9.9 * (imp - imp.min()) / (imp.max() - imp.min()))
write('relative', o / o.mean())
e = np.exp(o / 2 - (o / 2).max())
write('softmax', e / e.sum() * rows)
mu, sd = Z.mean(axis=0), Z.std(axis=0)
noise = np.abs(X).mean() * np.abs(W).mean(axis=1) * 0.2
write('fast', sigmoid(3 * (mu + 3 * sd + noise + 3)) * (np.abs(Z).mean(axis=0) + sd))
";

#[test]
fn importances_agree_with_numpy() {
    let Some(python) = python_with_numpy() else {
        skip("neither TCQ4_PYTHON nor python3 has numpy");
        return;
    };
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut uniform = |len: usize| (0..len).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<f32>>();
    let (x, w) = (uniform(TOKENS * COLUMNS), uniform(ROWS * COLUMNS));
    let bias: Vec<f32> = uniform(ROWS).iter().map(|b| 8.0 * b - 4.0).collect();
    let dir = Dir::new();
    for (name, values) in [("x", &x), ("w", &w), ("b", &bias)] {
        dir.write(name, bytemuck::cast_slice(values));
    }
    let shape = [TOKENS, ROWS, COLUMNS].map(|n| n.to_string());
    let done = Command::new(&python).args(["-c", PRAQ]).arg(dir.path()).args(shape).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let check = |name: &str, found: &[f64]| {
        let expected: Vec<f64> = dir.read(name).as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        let largest = expected.iter().fold(0.0f64, |max, v| max.max(v.abs()));
        assert_eq!(found.len(), expected.len(), "{name}");
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * largest;
        assert!(found.iter().zip(&expected).all(near), "{name}: {found:?} {expected:?}");
    };
    let after = |row: usize| (row < ROWS / 2).then_some(Function::Silu);
    let importance = inputs(&w, COLUMNS, std::slice::from_ref(&x), Some(&bias), after);
    check("inputs", &importance);
    check("normalised", &normalised(&importance).unwrap());
    let twice = inputs(&w, COLUMNS, &[x.clone(), x.clone()], Some(&bias), after);
    assert!(twice.iter().zip(&importance).all(|(a, b)| (a - b).abs() < 1e-9 * b), "draws are averaged");
    let z = |row: usize| -> Vec<f32> {
        let w = &w[row * COLUMNS..][..COLUMNS];
        x.chunks(COLUMNS).map(|x| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>() + bias[row]).collect()
    };
    let magnitudes: Vec<f64> =
        (0..ROWS).map(|row| tcq4::quant::salience::praq::magnitude(&z(row), after(row))).collect();
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
    check("relative", &wide(relative(&magnitudes)));
    check("softmax", &wide(softmax(&magnitudes, 2.0)));
    let input_magnitude = x.iter().map(|&x| f64::from(x.abs())).sum::<f64>() / x.len() as f64;
    let fast = |row: usize| Output::of(&z(row), &w[row * COLUMNS..][..COLUMNS]).importance(input_magnitude, THRESHOLD);
    check("fast", &(0..ROWS).map(fast).collect::<Vec<f64>>());
    // A channel's importance goes with it, and noise of a hundredth hardly moves it.
    let turned = |m: &[f32]| -> Vec<f32> {
        m.chunks(COLUMNS).flat_map(|row| row[5..].iter().chain(&row[..5]).copied()).collect()
    };
    let moved = inputs(&turned(&w), COLUMNS, &[turned(&x)], Some(&bias), after);
    assert!((0..COLUMNS).all(|j| (moved[j] - importance[(j + 5) % COLUMNS]).abs() < 1e-5 * importance[0]));
    let noisy = inputs(&w, COLUMNS, &robust::draws(&x, "test"), Some(&bias), after);
    assert!(noisy != importance && noisy.iter().zip(&importance).all(|(a, b)| (a - b).abs() < 0.01 * b));
}
