//! Checks of what calibration measures, and of run-time smoothing.

use super::data::Kind;
use super::{MOMENT, Output, Run, SUM};
use crate::device::launch_calibration::Rows;
use crate::device::oracle;
use crate::error::DeviceError;

/// Tokens and channels.
const SHAPES: [Rows; 3] = [Rows { tokens: 1, k: 256 }, Rows { tokens: 67, k: 512 }, Rows { tokens: 300, k: 768 }];

/// Kinds whose sums of squares are numbers in f32.
const KINDS: [Kind; 4] = [Kind::Normal, Kind::Spikes, Kind::Zeros, Kind::Ties];

pub(super) fn check(run: &mut Run<'_>) -> Result<(), DeviceError> {
    for rows in SHAPES {
        for kind in KINDS {
            let about = format!("{}, {} x {}", kind.name(), rows.tokens, rows.k);
            let x = run.data("calibration").values(kind, rows.tokens, rows.k);
            if run.wants(&["tcq4_statistics", "tcq4_statistics_merge"]) {
                statistics(run, &about, &x, rows)?;
            }
            if run.wants(&["tcq4_gram"]) {
                gram(run, &about, &x, rows)?;
            }
            if run.wants(&["tcq4_channel_max", "tcq4_smooth_rank", "tcq4_smooth_scales", "tcq4_smooth_round"]) {
                smooth(run, &about, &x, rows)?;
            }
        }
    }
    Ok(())
}

/// A channel of all tokens.
fn channel(x: &[f32], rows: Rows, at: usize) -> impl Iterator<Item = f32> + Clone {
    x.iter().skip(at).step_by(rows.k).copied()
}

fn statistics(run: &mut Run<'_>, about: &str, x: &[f32], rows: Rows) -> Result<(), DeviceError> {
    let k = rows.k;
    let start = [vec![0.0f32; k], vec![f32::INFINITY; k], vec![f32::NEG_INFINITY; k]].concat();
    let mut sums = run.queue.upload(&vec![0.0f64; 2 * k])?;
    let mut ranges = run.queue.upload(&start)?;
    let on_device = run.queue.upload(x)?;
    // Twice: the second call adds to what the first one left.
    for _ in 0..2 {
        run.queue.statistics(&on_device, rows, &mut sums, &mut ranges)?;
    }
    let sum = |of: fn(f64) -> f64| {
        (0..k).map(move |at| {
            let values = channel(x, rows, at).map(|value| of(f64::from(value)));
            (2.0 * values.clone().sum::<f64>(), 2.0 * values.map(f64::abs).sum::<f64>())
        })
    };
    let found = run.queue.download(&sums)?;
    let expected = sum(|value| value).chain(sum(|value| value * value));
    run.within(("tcq4_statistics_merge", about, "sums"), SUM, expected, (&found, false))?;
    let fold = |start: f32, of: fn(f32, f32) -> f32| (0..k).map(move |at| channel(x, rows, at).fold(start, of));
    let largest = fold(0.0, |max, value| max.max(value.abs()));
    let ends = fold(f32::INFINITY, f32::min).chain(fold(f32::NEG_INFINITY, f32::max));
    // Of two zeros either may be the extreme.
    let expected: Vec<f32> = largest.chain(ends).map(|value| value + 0.0).collect();
    run.exact(("tcq4_statistics", about, "ranges"), &expected, &Output { buffer: ranges, len: 3 * k }, |value| {
        value + 0.0
    })
}

fn gram(run: &mut Run<'_>, about: &str, x: &[f32], rows: Rows) -> Result<(), DeviceError> {
    let k = rows.k;
    let mut moments = run.queue.upload(&vec![1.0f64; k * k])?;
    let on_device = run.queue.upload(x)?;
    run.queue.gram(&on_device, rows, &mut moments)?;
    let found = run.queue.download(&moments)?;
    let mut expected = vec![0.0f64; k * k];
    for token in x.chunks_exact(k) {
        for (i, row) in expected.chunks_exact_mut(k).enumerate() {
            let own = f64::from(token[i]);
            row[..=i].iter_mut().zip(token).for_each(|(sum, &other)| *sum += own * f64::from(other));
        }
    }
    let norm = |at: usize| expected[at * k + at].sqrt();
    let lower = (0..k).flat_map(|i| (0..=i).map(move |j| (i, j)));
    // What was there before is part of the result, and keeps zeros from being compared with nothing.
    let pairs = lower.clone().map(|(i, j)| (expected[i * k + j] + 1.0, norm(i) * norm(j) + f64::EPSILON));
    let found: Vec<f64> = lower.map(|(i, j)| found[i * k + j]).collect();
    run.within(("tcq4_gram", about, "lower triangle"), MOMENT, pairs, (&found, false))
}

fn smooth(run: &mut Run<'_>, about: &str, x: &[f32], rows: Rows) -> Result<(), DeviceError> {
    let Rows { tokens, k } = rows;
    let max: Vec<f32> =
        (0..k).map(|at| channel(x, rows, at).fold(0.0, |max: f32, value| max.max(value.abs()))).collect();
    let bits: Vec<u32> = max.iter().map(|value| value.to_bits()).collect();
    let on_device = run.queue.upload(x)?;
    let mut found_max = run.queue.upload(&vec![0u32; k])?;
    run.queue.channel_max(&on_device, rows, &mut found_max)?;
    let (mut order, mut scales) = (run.poisoned(k)?, run.poisoned(k)?);
    run.queue.smooth(&found_max, k, &mut order.buffer, &mut scales.buffer)?;
    let (mut codes, mut token_scales, mut y) =
        (run.poisoned(tokens * k)?, run.poisoned(tokens)?, run.poisoned(tokens * k)?);
    let outputs = (&mut codes.buffer, &mut token_scales.buffer);
    run.queue.smooth_round((&on_device, &scales.buffer), rows, outputs, Some(&mut y.buffer))?;

    let (expected_order, expected_scales) = oracle::smooth(&max);
    let rounded: Vec<_> = x.chunks_exact(k).map(|row| oracle::smooth_round(row, &expected_scales)).collect();
    run.exact(("tcq4_channel_max", about, "max"), &bits, &Output { buffer: found_max, len: k }, |value| value)?;
    run.exact(("tcq4_smooth_rank", about, "order"), &expected_order, &order, |value| value)?;
    run.exact(("tcq4_smooth_scales", about, "scales"), &expected_scales, &scales, |value| value)?;
    let expected: Vec<i8> = rounded.iter().flat_map(|(codes, ..)| codes).copied().collect();
    run.exact(("tcq4_smooth_round", about, "codes"), &expected, &codes, |value| value)?;
    let expected: Vec<f32> = rounded.iter().map(|(_, scale, _)| *scale).collect();
    run.exact(("tcq4_smooth_round", about, "token scales"), &expected, &token_scales, |value| value)?;
    // A code of 0 may stand for either zero.
    let expected: Vec<f32> = rounded.iter().flat_map(|(.., values)| values).copied().collect();
    run.exact(("tcq4_smooth_round", about, "y"), &expected, &y, |value| value + 0.0)
}
