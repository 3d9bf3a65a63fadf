//! Pre- and post-activations of feed-forward networks: what the activation function suppresses, and which dead channels rounding could wake.

use super::describe::{histogram, mean, moments, percentile, short, spearman};
use super::record::{GateChannels, GateDetail, GateRow, Moments, SaliencyRow};
use super::saliency::saliency;
use crate::math::stats;
use crate::model::Function;
use crate::quant::salience::Output;

/// Bins of the histograms of pre- and post-activations.
const BINS: usize = 100;
/// Standard deviation above which a channel with a negative mean is volatile.
const VOLATILE: f64 = 2.0;

/// The pre-activations of one matrix: of its channels, one after the other, each over all `tokens` rows.
#[derive(Debug, Clone, Default)]
pub struct Pre {
    /// The matrix (expert).
    pub matrix: u32,
    /// The index of the first output row in its matrix.
    pub first: u32,
    /// Sample rows.
    pub tokens: usize,
    /// Z, channel after channel.
    pub z: Vec<f32>,
    /// mean|w| of each channel.
    pub weight_magnitude: Vec<f32>,
    /// mean|X| over the sample rows.
    pub input_magnitude: f64,
}

/// One channel's numbers.
struct Channel<'a> {
    matrix: u32,
    index: u32,
    z: &'a [f32],
    moments: Moments,
    weight: f32,
    awq: f64,
    praq: f64,
}

/// All channels of a gate, measured.
pub struct Gate<'a> {
    channels: Vec<Channel<'a>>,
    function: Function,
    tau: f64,
    high_weight: f64,
}

impl<'a> Gate<'a> {
    /// Measures the channels of all matrices.
    pub fn new(parts: &'a [Pre], function: Function, tau: f64) -> Self {
        let channel = |part: &'a Pre, (i, z): (usize, &'a [f32])| {
            let (moments, weight) = (moments(z), part.weight_magnitude[i]);
            let awq = mean(z.iter().map(|&z| f64::from(z).abs()));
            let output = Output {
                mean: f64::from(moments.mean),
                std: f64::from(moments.std),
                magnitude: awq,
                weight: f64::from(weight),
            };
            let praq = output.importance(part.input_magnitude, tau);
            Channel { matrix: part.matrix, index: part.first + i as u32, z, moments, weight, awq, praq }
        };
        let of = |part: &'a Pre| {
            part.z.chunks_exact(part.tokens.max(1)).enumerate().map(move |(i, z)| channel(part, (i, z)))
        };
        let channels: Vec<Channel<'a>> = parts.iter().flat_map(of).collect();
        let mut weights: Vec<f32> = channels.iter().map(|channel| channel.weight).collect();
        weights.sort_by(f32::total_cmp);
        Self { high_weight: f64::from(percentile(&weights, 75.0)), channels, function, tau }
    }

    /// Whether anything was measured.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    fn dead(&self, channel: &Channel<'_>) -> bool {
        f64::from(channel.moments.mean) < self.tau
    }

    fn risky(&self, channel: &Channel<'_>) -> bool {
        self.dead(channel) && f64::from(channel.moments.mean) + 3.0 * f64::from(channel.moments.std) > self.tau
    }

    fn critical(&self, channel: &Channel<'_>) -> bool {
        self.risky(channel) && f64::from(channel.weight) > self.high_weight
    }

    /// All of Z, or of f(Z).
    fn values(&self, after: bool) -> Vec<f32> {
        let all = self.channels.iter().flat_map(|channel| channel.z).copied();
        if after { all.filter_map(|z| self.function.apply(z)).collect() } else { all.collect() }
    }

    fn post(&self) -> Option<Vec<f32>> {
        (self.function != Function::Unknown).then(|| self.values(true))
    }

    /// mean|f(Z)| / mean|Z| over the channels with a negative mean.
    fn suppression(&self) -> Option<f32> {
        let of = || self.channels.iter().filter(|c| c.moments.mean < 0.0).flat_map(|c| c.z).copied();
        let before: f64 = of().map(|z| f64::from(z.abs())).sum();
        let after: f64 = of().filter_map(|z| self.function.apply(z)).map(|y| f64::from(y.abs())).sum();
        (self.function != Function::Unknown && before > 0.0).then(|| (after / before) as f32)
    }

    /// The summary row.
    pub fn row(&self, tensor: &str, layer: u32, sample_rows: u32, matrices: u32) -> GateRow {
        let z = self.values(false);
        let share = |below: f64| z.iter().filter(|&&z| f64::from(z) < below).count() as f64 / z.len().max(1) as f64;
        let count = |of: &dyn Fn(&Channel<'_>) -> bool| self.channels.iter().filter(|&c| of(c)).count() as u32;
        let volatile = |c: &Channel<'_>| c.moments.mean < 0.0 && f64::from(c.moments.std) > VOLATILE;
        let (awq, praq) = self.importances();
        GateRow {
            tensor: tensor.to_string(),
            layer,
            function: self.function.name().to_string(),
            sample_rows,
            channels: self.channels.len() as u32,
            matrices,
            pre: moments(&z),
            post: self.post().map(|post| moments(&post)),
            negative_share: share(0.0) as f32,
            below_tau_share: share(self.tau) as f32,
            negative_channels: count(&|c| c.moments.mean < 0.0),
            volatile_channels: count(&volatile),
            dead_channels: count(&|c| self.dead(c)),
            risky_channels: count(&|c| self.risky(c)),
            high_weight: self.high_weight as f32,
            critical_channels: count(&|c| self.critical(c)),
            suppression: self.suppression(),
            spearman_awq_praq: spearman(&awq, &praq).map(|rho| rho as f32),
        }
    }

    /// Both importances of every channel.
    fn importances(&self) -> (Vec<f64>, Vec<f64>) {
        self.channels.iter().map(|channel| (channel.awq, channel.praq)).unzip()
    }

    /// Channels and distributions, of at most `most` channels; `saliency` as [`Gate::salient`] gave it.
    pub fn detail(&self, tensor: &str, most: usize, saliency: Vec<SaliencyRow>) -> GateDetail {
        let over = |values: &[f32]| {
            let range = moments(values);
            histogram(values.iter().copied(), range.min, range.max, BINS)
        };
        GateDetail {
            tensor: tensor.to_string(),
            pre: over(&self.values(false)),
            post: self.post().map(|post| over(&post)),
            channels: self.table(most),
            saliency,
        }
    }

    /// The table of the channels with the largest FastRPRAQ importance, ascending by channel.
    fn table(&self, most: usize) -> GateChannels {
        let (awq, praq) = self.importances();
        let mut shown: Vec<usize> = super::importance::descending(&praq).into_iter().take(most).collect();
        shown.sort_unstable();
        let stacked = self.channels.iter().any(|channel| channel.matrix != self.channels[0].matrix);
        let of = |value: &dyn Fn(&Channel<'_>) -> f32| {
            shown.iter().map(|&i| short(f64::from(value(&self.channels[i])))).collect()
        };
        let at = |values: Vec<f64>| -> Vec<f32> { shown.iter().map(|&i| short(values[i])).collect() };
        let mut sorted = shown.iter().map(|&i| {
            let mut z = self.channels[i].z.to_vec();
            z.sort_by(f32::total_cmp);
            [5.0, 25.0, 50.0, 75.0, 95.0].map(|p| percentile(&z, p))
        });
        let percentiles: Vec<[f32; 5]> = sorted.by_ref().collect();
        let column = |i: usize| percentiles.iter().map(|p| short(f64::from(p[i]))).collect::<Vec<f32>>();
        let below = |channel: &Channel<'_>, limit: f64| {
            (channel.z.iter().filter(|&&z| f64::from(z) < limit).count() as f64 / channel.z.len() as f64) as f32
        };
        let [p05, p25, p50, p75, p95] = std::array::from_fn(column);
        let flags =
            |c: &Channel<'_>| u8::from(self.dead(c)) | u8::from(self.risky(c)) << 1 | u8::from(self.critical(c)) << 2;
        GateChannels {
            total: self.channels.len() as u32,
            matrix: if stacked { shown.iter().map(|&i| self.channels[i].matrix).collect() } else { Vec::new() },
            channel: shown.iter().map(|&i| self.channels[i].index).collect(),
            mean: of(&|c| c.moments.mean),
            std: of(&|c| c.moments.std),
            min: of(&|c| c.moments.min),
            max: of(&|c| c.moments.max),
            p05,
            p25,
            p50,
            p75,
            p95,
            negative_ratio: of(&|c| below(c, 0.0)),
            dead_ratio: of(&|c| below(c, self.tau)),
            weight_magnitude: of(&|c| c.weight),
            awq_importance: at(awq.clone()),
            praq_importance: at(praq.clone()),
            awq_normalized: at(normalized(&awq)),
            praq_normalized: at(normalized(&praq)),
            awq_rank: at(descending_ranks(&awq)),
            praq_rank: at(descending_ranks(&praq)),
            flags: shown.iter().map(|&i| flags(&self.channels[i])).collect(),
        }
    }

    /// The `count` channels with the largest E|Z|, each as its place among all, matrix, index and pre-activations.
    pub fn salient(&self, count: usize) -> Vec<(u32, u32, &[f32])> {
        let (awq, _) = self.importances();
        let largest = super::importance::descending(&awq).into_iter().take(count);
        largest.map(|i| &self.channels[i]).map(|c| (c.matrix, c.index, c.z)).collect()
    }

    /// How the gradient of SiLU is spread over the weights of one channel of [`Gate::salient`]; none unless f is SiLU.
    pub fn gradient(&self, matrix: u32, channel: u32, z: &[f32], x: &[f32], weights: &[f32]) -> Option<SaliencyRow> {
        (self.function == Function::Silu).then(|| saliency(matrix, channel, z, x, weights))
    }
}

/// Maps values linearly onto 0..=1; zeros if they are all alike.
fn normalized(values: &[f64]) -> Vec<f64> {
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    values.iter().map(|v| if high > low { (v - low) / (high - low) } else { 0.0 }).collect()
}

/// Ranks from 1, the largest.
fn descending_ranks(values: &[f64]) -> Vec<f64> {
    stats::ranks(values).into_iter().map(|rank| values.len() as f64 + 1.0 - rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f32, b: f64) {
        assert!((f64::from(a) - b).abs() <= 6e-5 * b.abs().max(1.0), "{a} is not {b}");
    }

    /// Four channels over four rows: alive, dead, dead and awake now and then (risky), the same with the largest weights (critical).
    fn parts() -> Vec<Pre> {
        let z = [[1.0, 2.0, 3.0, 4.0], [-9.0, -9.5, -10.0, -9.5], [-9.0, -9.0, 1.0, -9.0], [-9.0, -9.0, -9.0, 1.0]];
        vec![Pre {
            matrix: 0,
            first: 0,
            tokens: 4,
            z: z.concat(),
            weight_magnitude: vec![0.1, 0.2, 0.3, 0.8],
            input_magnitude: 0.5,
        }]
    }

    #[test]
    fn dead_risky_and_critical_channels() {
        let parts = parts();
        let gate = Gate::new(&parts, Function::Silu, -3.0);
        let row = gate.row("blk.5.ffn_gate.weight", 5, 4, 1);
        assert_eq!((row.channels, row.negative_channels, row.dead_channels), (4, 3, 3));
        assert_eq!((row.volatile_channels, row.risky_channels, row.critical_channels), (2, 2, 1));
        close(row.high_weight, 0.425); // between .3 and .8
        close(row.negative_share, 10.0 / 16.0);
        close(row.below_tau_share, 10.0 / 16.0);
        close(row.pre.mean, (10.0 - 38.0 - 26.0 - 26.0) / 16.0);
        assert_eq!((row.pre.min, row.pre.max), (-10.0, 4.0));
        let silu = |z: f64| z / (1.0 + (-z).exp());
        let (mut before, mut after) = (0.0, 0.0);
        for &z in &parts[0].z[4..] {
            before += f64::from(z).abs();
            after += silu(f64::from(z)).abs();
        }
        close(row.suppression.unwrap(), after / before);
        close(row.post.unwrap().max, silu(4.0));
    }

    #[test]
    fn importances_by_the_formula() {
        let parts = parts();
        let gate = Gate::new(&parts, Function::Silu, -3.0);
        let table = gate.detail("t", 10, Vec::new()).channels;
        assert_eq!((table.total, table.channel.as_slice(), table.matrix.len()), (4, [0, 1, 2, 3].as_slice(), 0));
        for (i, z) in parts[0].z.chunks(4).enumerate() {
            let z: Vec<f64> = z.iter().map(|&z| f64::from(z)).collect();
            let mean = z.iter().sum::<f64>() / 4.0;
            let std = (z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / 4.0).sqrt();
            let noise = 0.5 * f64::from(parts[0].weight_magnitude[i]) * 0.2;
            let risk = 1.0 / (1.0 + (-3.0 * (mean + 3.0 * std + noise + 3.0)).exp());
            let magnitude = z.iter().map(|z| z.abs()).sum::<f64>() / 4.0 + std;
            close(table.praq_importance[i], risk * magnitude);
            close(table.awq_importance[i], magnitude - std);
            close(table.mean[i], mean);
            close(table.std[i], std);
        }
        assert_eq!(table.awq_rank, [4.0, 1.0, 2.5, 2.5]);
        assert_eq!((table.awq_normalized[0], table.awq_normalized[1]), (0.0, 1.0));
        assert_eq!(table.flags, [0, 1, 3, 7]);
        assert_eq!((table.p50[0], table.p25[0], table.dead_ratio[2]), (2.5, 1.75, 0.75));
    }

    #[test]
    fn only_the_most_important_channels_are_listed() {
        let parts = parts();
        let table = Gate::new(&parts, Function::Silu, -3.0).detail("t", 2, Vec::new()).channels;
        assert_eq!((table.channel.as_slice(), table.total), ([2, 3].as_slice(), 4));
        let salient = Gate::new(&parts, Function::Silu, -3.0).salient(1)[0].1;
        assert_eq!(salient, 1);
    }

    #[test]
    fn an_unknown_function_says_nothing_about_what_comes_after() {
        let parts = parts();
        let gate = Gate::new(&parts, Function::Unknown, -3.0);
        let row = gate.row("t", 0, 4, 1);
        assert_eq!((row.post, row.suppression, row.function.as_str()), (None, None, "unknown"));
        assert!(gate.detail("t", 1, Vec::new()).post.is_none());
        assert!(Gate::new(&[], Function::Silu, -3.0).is_empty());
    }
}
