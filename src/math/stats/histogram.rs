//! Histograms with bins of equal width, linear or logarithmic.

/// Where the bins of a histogram lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bins {
    /// `count` bins of equal width over `low..=high`.
    Linear {
        /// The lower edge of the first bin.
        low: f64,
        /// The upper edge of the last bin.
        high: f64,
        /// How many bins.
        count: usize,
    },
    /// `count` bins of equal ratio over `low..=high`, both positive.
    Log {
        /// The lower edge of the first bin.
        low: f64,
        /// The upper edge of the last bin.
        high: f64,
        /// How many bins.
        count: usize,
    },
}

/// Counts of values by bin: each bin holds its lower edge, the last one also its upper edge (as numpy has it).
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    bins: Bins,
    /// The edges, one more than bins, ascending.
    pub edges: Vec<f64>,
    /// How many values fell into each bin.
    pub counts: Vec<u64>,
    /// Values below the first edge (with logarithmic bins also zero and negative ones), and NaN.
    pub below: u64,
    /// Values above the last edge.
    pub above: u64,
}

impl Bins {
    /// Linear bins from the smallest to the largest value; of one value, or none, a unit around it.
    pub fn over(values: &[f64], count: usize) -> Self {
        let (low, high) = range(values.iter().copied());
        match low < high {
            true => Bins::Linear { low, high, count },
            false if low.is_finite() => Bins::Linear { low: low - 0.5, high: low + 0.5, count },
            false => Bins::Linear { low: 0.0, high: 1.0, count },
        }
    }

    /// Logarithmic bins from the smallest to the largest positive value; of one value, or none, a decade around it.
    pub fn over_log(values: &[f64], count: usize) -> Self {
        let (low, high) = range(values.iter().copied().filter(|&value| value > 0.0));
        match low < high {
            true => Bins::Log { low, high, count },
            false if low.is_finite() => Bins::Log { low: low / 10f64.sqrt(), high: low * 10f64.sqrt(), count },
            false => Bins::Log { low: 1.0, high: 10.0, count },
        }
    }

    fn parts(self) -> (f64, f64, usize, bool) {
        match self {
            Bins::Linear { low, high, count } => (low, high, count, false),
            Bins::Log { low, high, count } => (low, high, count, true),
        }
    }
}

/// The smallest and largest finite value; the empty range (∞, -∞) of none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite());
    finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

impl Histogram {
    /// A histogram of nothing yet.
    ///
    /// # Panics
    /// Unless there is at least one bin and `low < high`, both finite (and positive for logarithmic bins).
    pub fn new(bins: Bins) -> Self {
        let (low, high, count, log) = bins.parts();
        assert!(count > 0 && low.is_finite() && high.is_finite() && low < high && (!log || low > 0.0), "{bins:?}");
        let part = |i: usize| i as f64 / count as f64;
        let edge = |i: usize| match (i, log) {
            (0, _) => low,
            (i, _) if i == count => high,
            (i, false) => low + (high - low) * part(i),
            (i, true) => (low.ln() + (high / low).ln() * part(i)).exp(),
        };
        let edges = (0..=count).map(edge).collect();
        Self { bins, edges, counts: vec![0; count], below: 0, above: 0 }
    }

    /// The histogram of `values`.
    ///
    /// # Panics
    /// As [`Histogram::new`].
    pub fn of(values: impl IntoIterator<Item = f64>, bins: Bins) -> Self {
        let mut histogram = Self::new(bins);
        values.into_iter().for_each(|value| histogram.push(value));
        histogram
    }

    /// Counts one value.
    pub fn push(&mut self, value: f64) {
        let (low, high, count, log) = self.bins.parts();
        if value > high {
            self.above += 1;
            return;
        }
        if value.is_nan() || value < low {
            self.below += 1;
            return;
        }
        let part = if log { (value / low).ln() / (high / low).ln() } else { (value - low) / (high - low) };
        let mut bin = ((part * count as f64) as usize).min(count - 1);
        // The division rounds; the edges decide.
        while bin > 0 && value < self.edges[bin] {
            bin -= 1;
        }
        while bin + 1 < count && value >= self.edges[bin + 1] {
            bin += 1;
        }
        self.counts[bin] += 1;
    }

    /// Adds the counts of another with the same bins.
    ///
    /// # Panics
    /// If the bins differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.bins, other.bins);
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, theirs)| *own += theirs);
        self.below += other.below;
        self.above += other.above;
    }

    /// How many values there were, those outside the bins included.
    pub fn total(&self) -> u64 {
        self.below + self.above + self.counts.iter().sum::<u64>()
    }

    /// The density of each bin: its share of all values by its width; zeros of no values.
    pub fn density(&self) -> Vec<f64> {
        let total = self.total().max(1) as f64;
        self.counts.iter().zip(self.edges.windows(2)).map(|(&n, edge)| n as f64 / total / (edge[1] - edge[0])).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn worked_numbers() {
        // numpy: np.histogram([0.5, -1.25, 3, 2, 2, -0.75, 8.5, 0.125], bins=5)
        let values = [0.5, -1.25, 3.0, 2.0, 2.0, -0.75, 8.5, 0.125];
        let h = Histogram::of(values, Bins::over(&values, 5));
        assert_eq!(h.counts, [4, 2, 1, 0, 1]);
        assert!((h.edges[1] - 0.7).abs() < 1e-12 && h.edges[5] == 8.5);
        assert!((h.density()[0] - 0.5 / 1.95).abs() < 1e-12);
    }

    #[test]
    fn log_bins_are_decades_and_hold_their_lower_edge() {
        let h = Histogram::of(
            [1e-3, 1e-2, 0.5, 1.0, 0.0, -1.0, f64::NAN, 2.0],
            Bins::Log { low: 1e-3, high: 1.0, count: 3 },
        );
        assert_eq!((h.counts.as_slice(), h.below, h.above), (&[1u64, 1, 2][..], 3, 1));
    }

    #[test]
    fn nothing_and_one_value_have_bins_too() {
        assert_eq!(Histogram::of([3.0], Bins::over(&[3.0], 2)).counts, [0, 1]);
        assert_eq!(Histogram::of([], Bins::over(&[], 2)).total(), 0);
        assert_eq!(Histogram::of([0.0, 5.0], Bins::over_log(&[0.0, 5.0], 3)).counts.iter().sum::<u64>(), 1);
        assert_eq!(Histogram::new(Bins::over_log(&[-1.0], 3)).density(), [0.0; 3]);
    }

    proptest! {
        #[test]
        fn every_value_is_in_the_bin_between_its_edges(values in prop::collection::vec(1e-6f64..1e6, 1..80), count in 1usize..30) {
            for bins in [Bins::over(&values, count), Bins::over_log(&values, count)] {
                let mut naive = vec![0u64; count];
                let h = Histogram::of(values.iter().copied(), bins);
                for &value in &values {
                    let bin = (0..count).rev().find(|&bin| value >= h.edges[bin]).unwrap();
                    naive[bin] += 1;
                }
                prop_assert_eq!(&h.counts, &naive);
                prop_assert!(h.edges.windows(2).all(|edge| edge[0] < edge[1]));
                prop_assert_eq!(h.total(), values.len() as u64);
            }
        }
    }
}
