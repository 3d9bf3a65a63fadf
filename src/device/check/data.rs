//! The data that kernels are checked on: random, and made to be difficult.

use rand::rngs::ChaCha8Rng;

use crate::util::random::{below, normal, shuffled, stream};

/// What values are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of the normal distribution.
    Normal,
    /// The same, with a few channels a thousand times as large.
    Spikes,
    /// Nothing but zeros, of either sign.
    Zeros,
    /// Below the smallest normal number.
    Denormals,
    /// Small whole numbers: rounding ties, and equal magnitudes of either sign.
    Ties,
    /// About 1e30, so that squares overflow.
    Huge,
    /// Normal, with single values that are NaN or infinite.
    NotFinite,
}

impl Kind {
    /// Kinds whose results are numbers in f32 and in f16.
    pub(super) const TAME: [Kind; 5] = [Kind::Normal, Kind::Spikes, Kind::Zeros, Kind::Denormals, Kind::Ties];
    /// All kinds.
    pub(super) const ALL: [Kind; 7] =
        [Kind::Normal, Kind::Spikes, Kind::Zeros, Kind::Denormals, Kind::Ties, Kind::Huge, Kind::NotFinite];

    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Normal => "normal",
            Kind::Spikes => "spikes",
            Kind::Zeros => "zeros",
            Kind::Denormals => "denormals",
            Kind::Ties => "ties",
            Kind::Huge => "huge",
            Kind::NotFinite => "not finite",
        }
    }
}

/// A stream of data with a name of its own.
pub(super) struct Data {
    random: ChaCha8Rng,
    seed: u64,
    name: String,
}

impl Data {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        Self { random: stream(&format!("kernels {name}"), seed), seed, name: name.to_owned() }
    }

    /// Values of tokens with `k` channels.
    pub(super) fn values(&mut self, kind: Kind, tokens: usize, k: usize) -> Vec<f32> {
        let spikes: Vec<usize> = (0..k.div_ceil(64)).map(|_| below(&mut self.random, k)).collect();
        let mut values: Vec<f32> = (0..tokens * k).map(|_| self.value(kind)).collect();
        match kind {
            Kind::Spikes => {
                let rows = values.chunks_exact_mut(k);
                rows.for_each(|row| spikes.iter().for_each(|&channel| row[channel] *= 1000.0));
            }
            Kind::NotFinite => {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let at = below(&mut self.random, values.len());
                    values[at] = bad;
                }
            }
            _ => {}
        }
        values
    }

    fn value(&mut self, kind: Kind) -> f32 {
        let random = &mut self.random;
        match kind {
            Kind::Normal | Kind::Spikes | Kind::NotFinite => normal(random) as f32,
            Kind::Zeros => {
                if below(random, 2) == 0 {
                    0.0
                } else {
                    -0.0
                }
            }
            Kind::Denormals => f32::from_bits((below(random, 2) as u32) << 31 | below(random, 1 << 23) as u32),
            Kind::Ties => below(random, 9) as f32 - 4.0,
            Kind::Huge => normal(random) as f32 * 1e30,
        }
    }

    /// A random order of `k` channels.
    pub(super) fn permutation(&mut self, k: usize) -> Vec<i32> {
        shuffled(k, &format!("kernels {} order", self.name), self.seed)
            .into_iter()
            .map(|channel| channel as i32)
            .collect()
    }

    /// Random numbers below `n`.
    pub(super) fn numbers(&mut self, count: usize, n: usize) -> Vec<i32> {
        (0..count).map(|_| below(&mut self.random, n) as i32).collect()
    }

    /// Random bits.
    pub(super) fn bits(&mut self) -> u32 {
        below(&mut self.random, 1 << 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_what_they_say() {
        let mut data = Data::new(1, "test");
        let all = |values: &[f32], of: fn(f32) -> bool| values.iter().all(|&value| of(value));
        assert!(all(&data.values(Kind::Denormals, 4, 256), |v| v.abs() < f32::MIN_POSITIVE));
        assert!(all(&data.values(Kind::Zeros, 4, 256), |v| v == 0.0));
        assert!(all(&data.values(Kind::Ties, 4, 256), |v| v.fract() == 0.0 && v.abs() <= 4.0));
        let spiky = data.values(Kind::Spikes, 4, 256);
        assert!(
            spiky.iter().filter(|v| v.abs() > 100.0).count() >= 4
                && spiky.iter().filter(|v| v.abs() < 10.0).count() > 900
        );
        assert!(!all(&data.values(Kind::NotFinite, 4, 256), f32::is_finite));
        let mut order = data.permutation(512);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(i, &at)| i == at as usize));
        assert_eq!(Data::new(7, "a").numbers(5, 1000), Data::new(7, "a").numbers(5, 1000));
        assert_ne!(Data::new(7, "a").numbers(5, 1000), Data::new(8, "a").numbers(5, 1000));
    }
}
