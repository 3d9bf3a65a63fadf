//! Statistics of plain numbers: moments, quantiles, ranks, histograms, tests and the bootstrap.
//! Everything is computed in f64 in the order given, so the same values give the same bits; NaN in the input is NaN (or nonsense) in the output.

mod bootstrap;
mod histogram;
mod hypothesis;
mod moments;
mod quantile;
mod rank;
mod share;

pub use bootstrap::{Interval, Resamples, bootstrap_mean};
pub use histogram::{Bins, Histogram};
pub use hypothesis::{TestResult, ks_test, t_test};
pub use moments::{CoMoments, Moments, correlation, cosine};
pub use quantile::{median, percentile_f32, quantile, sorted};
pub use rank::{ranks, spearman};
pub use share::{linear_space, log_space, top_share};
