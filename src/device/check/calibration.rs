//! Checks of what calibration measures, and of run-time smoothing.

use super::data::Kind;
use super::{Output, Run};
use crate::device::launch_calibration::{Rows, gram_len, statistics_len};
use crate::device::oracle;
use crate::device::row_sums::SUMMED_ROWS;
use crate::error::DeviceError;

/// Tokens and channels.
const SHAPES: [Rows; 3] = [Rows { tokens: 1, k: 256 }, Rows { tokens: 67, k: 512 }, Rows { tokens: 300, k: 768 }];
/// Tokens and channels that fill no block.
const ODD: Rows = Rows { tokens: 45, k: 416 };

/// Kinds whose sums of squares are numbers in f32.
const KINDS: [Kind; 4] = [Kind::Normal, Kind::Spikes, Kind::Zeros, Kind::Ties];

pub(super) fn check(run: &mut Run<'_>) -> Result<(), DeviceError> {
    for rows in SHAPES.into_iter().chain([ODD]) {
        for kind in KINDS {
            let about = format!("{}, {} x {}", kind.name(), rows.tokens, rows.k);
            let x = run.data("calibration").values(kind, rows.tokens, rows.k);
            if run.wants(&["tcq4_statistics"]) {
                statistics(run, &about, &x, rows)?;
            }
            if run.wants(&["tcq4_gram"]) {
                gram(run, &about, &x, rows)?;
            }
            let smoothing = ["tcq4_channel_max", "tcq4_smooth_rank", "tcq4_smooth_scales", "tcq4_smooth_round"];
            if rows != ODD && run.wants(&smoothing) {
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
    let mut sums = run.poisoned(statistics_len(rows))?;
    let on_device = run.queue.upload(x)?;
    run.queue.statistics(&on_device, rows, &mut sums.buffer)?;
    let mut expected = Vec::new();
    for block in x.chunks(SUMMED_ROWS * k) {
        let fold = |start: f32, with: fn(f32, f32) -> f32| -> Vec<f32> {
            (0..k)
                .map(|at| block.iter().skip(at).step_by(k).fold(start, |so_far, &value| with(so_far, value)))
                .collect()
        };
        expected.extend(fold(f32::INFINITY, |min, value| if value < min { value } else { min }));
        expected.extend(fold(f32::NEG_INFINITY, |max, value| if value > max { value } else { max }));
        expected.extend(fold(0.0, |sum, value| sum + value));
        expected.extend(fold(0.0, |sum, value| sum + value.abs()));
        expected.extend(fold(0.0, |sum, value| sum + value * value));
    }
    run.exact(("tcq4_statistics", about, "sums"), &expected, &sums, |value| value)
}

fn gram(run: &mut Run<'_>, about: &str, x: &[f32], rows: Rows) -> Result<(), DeviceError> {
    let k = rows.k;
    let mut moments = run.poisoned(gram_len(k))?;
    let on_device = run.queue.upload(x)?;
    run.queue.gram(&on_device, rows, &mut moments.buffer)?;
    let mut whole = vec![0.0f32; k * k];
    for token in x.chunks_exact(k) {
        for (sums, &own) in whole.chunks_exact_mut(k).zip(token) {
            sums.iter_mut().zip(token).for_each(|(sum, &other)| *sum += own * other);
        }
    }
    let of_row = |(i, row): (usize, &'_ [f32])| row[i / 32 * 32..].to_vec();
    let expected: Vec<f32> = whole.chunks_exact(k).enumerate().flat_map(of_row).collect();
    run.exact(("tcq4_gram", about, "upper triangle"), &expected, &moments, |value| value)
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
