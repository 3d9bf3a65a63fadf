//! Compares models by what they scored on the same chunks of the same texts: paired differences, intervals, winners. Numbers in, numbers out.
//!
//! The first model is the baseline; each further one is a candidate. The difference of a chunk is the candidate's mean negative log-likelihood less
//! the baseline's; `exp` of their mean, less 1, is the relative difference of the perplexities. Intervals come from drawing chunks again (percentile
//! bootstrap), so what varies from chunk to chunk counts and what both models find hard cancels out. They take chunks for independent, are a little too
//! narrow for few chunks, and are not widened where many candidates or data sets are looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::{Score, ScoreDivergence};
use crate::error::CompareError;
use crate::math::stats::{Interval, Resamples, bootstrap_mean};

/// When one of two models wins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum Rule {
    /// Where the interval of the difference excludes zero.
    Interval,
    /// Where the perplexities differ by more than `margin`, whatever the uncertainty.
    Fixed {
        /// The margin, in perplexity.
        margin: f64,
    },
}

/// How models are compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CompareSettings {
    /// Seed of the resamples.
    pub seed: u64,
    /// The share of resamples that an interval holds, in 0..1.
    pub confidence: f64,
    /// How many resamples.
    pub resamples: usize,
    /// When a model wins.
    pub rule: Rule,
}

/// A model that takes part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contender {
    /// What it is called; no two have the same name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Bytes of the file, all shards together.
    pub bytes: u64,
    /// Bits a weight, over all tensors.
    pub bits_per_weight: f64,
    /// Whether TCQ4 tensors were decoded into a temporary copy.
    pub decoded: bool,
}

/// A candidate against the baseline on one data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetResult {
    /// The data set.
    pub dataset: String,
    /// The candidate.
    pub candidate: String,
    /// The baseline's perplexity.
    pub baseline_perplexity: f64,
    /// The candidate's perplexity.
    pub candidate_perplexity: f64,
    /// How much higher the candidate's perplexity is, in percent of the baseline's.
    pub delta_pct: f64,
    /// The interval of `delta_pct`.
    pub delta_pct_interval: [f64; 2],
    /// The model that wins; none for a tie.
    pub winner: Option<String>,
}

/// A candidate against the baseline on all data sets, each of which counts the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analysis {
    /// The candidate.
    pub candidate: String,
    /// The model that wins on more data sets; none if both win as many.
    pub winner: Option<String>,
    /// Data sets on which the baseline wins.
    pub baseline_wins: usize,
    /// Data sets on which the candidate wins.
    pub candidate_wins: usize,
    /// Data sets on which neither wins.
    pub ties: usize,
    /// The mean of the baseline's perplexities.
    pub avg_baseline: f64,
    /// The mean of the candidate's perplexities.
    pub avg_candidate: f64,
    /// How much higher the candidate's perplexity is in the geometric mean of the data sets, in percent.
    pub avg_delta_pct: f64,
    /// The interval of `avg_delta_pct`.
    pub avg_delta_pct_interval: [f64; 2],
}

/// Everything that a comparison found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// How it was made.
    #[serde(flatten)]
    pub settings: CompareSettings,
    /// The name of the model that the others are compared with.
    pub baseline: String,
    /// All models, the baseline first.
    pub models: Vec<Contender>,
    /// The data sets.
    pub datasets_tested: Vec<String>,
    /// Each candidate on each data set.
    pub dataset_results: Vec<DatasetResult>,
    /// Each candidate over all data sets.
    pub analysis: Vec<Analysis>,
    /// By data set, then by model.
    pub detailed_results: BTreeMap<String, BTreeMap<String, Score>>,
}

impl Comparison {
    /// What `model` scored on `dataset`.
    pub fn score(&self, dataset: &str, model: &str) -> Option<&Score> {
        self.detailed_results.get(dataset)?.get(model)
    }

    /// Data set, candidate and how far it is from the baseline there, where that was measured.
    pub fn divergences(&self) -> impl Iterator<Item = (&str, &str, ScoreDivergence)> {
        self.dataset_results.iter().filter_map(|result| {
            let divergence = self.score(&result.dataset, &result.candidate)?.divergence?;
            Some((result.dataset.as_str(), result.candidate.as_str(), divergence))
        })
    }
}

/// Compares `models`, the first of which is the baseline; `scores[m][d]` is what model `m` scored on data set `d`.
///
/// # Errors
/// [`CompareError::Chunks`] if two models ran different numbers of chunks of a data set, or none.
///
/// # Panics
/// If there is no model, or there are not as many scores as models and data sets.
pub fn compare(
    models: Vec<Contender>,
    datasets: Vec<String>,
    scores: Vec<Vec<Score>>,
    settings: CompareSettings,
) -> Result<Comparison, CompareError> {
    assert!(!models.is_empty() && scores.len() == models.len());
    assert!(scores.iter().all(|of_model| of_model.len() == datasets.len()));
    check_chunks(&models, &datasets, &scores)?;
    let (mut dataset_results, mut analysis) = (Vec::new(), Vec::new());
    for (candidate, theirs) in models.iter().zip(&scores).skip(1) {
        let pair = Pair { baseline: &models[0].name, candidate: &candidate.name, settings: &settings };
        let (results, resamples): (Vec<_>, Vec<_>) = datasets
            .iter()
            .zip(scores[0].iter().zip(theirs))
            .map(|(name, (base, own))| pair.on(name, base, own))
            .unzip();
        analysis.push(pair.over_all(&results, &scores[0], theirs, &resamples));
        dataset_results.extend(results);
    }
    let mut detailed_results: BTreeMap<String, BTreeMap<String, Score>> = BTreeMap::new();
    for (model, of_model) in models.iter().zip(scores) {
        for (dataset, score) in datasets.iter().zip(of_model) {
            detailed_results.entry(dataset.clone()).or_default().insert(model.name.clone(), score);
        }
    }
    let baseline = models[0].name.clone();
    Ok(Comparison {
        settings,
        baseline,
        models,
        datasets_tested: datasets,
        dataset_results,
        analysis,
        detailed_results,
    })
}

/// Pairs need as many chunks on both sides.
fn check_chunks(models: &[Contender], datasets: &[String], scores: &[Vec<Score>]) -> Result<(), CompareError> {
    for (model, of_model) in models.iter().zip(scores) {
        for (dataset, (score, base)) in datasets.iter().zip(of_model.iter().zip(&scores[0])) {
            let (expected, found) = (base.chunk_nll.len(), score.chunk_nll.len());
            if expected != found || found == 0 {
                let (model, dataset) = (model.path.clone(), dataset.clone());
                return Err(CompareError::Chunks { model, baseline: models[0].path.clone(), dataset, expected, found });
            }
        }
    }
    Ok(())
}

/// A candidate and the baseline.
struct Pair<'a> {
    baseline: &'a str,
    candidate: &'a str,
    settings: &'a CompareSettings,
}

impl Pair<'_> {
    /// Compares on one data set. The random stream is named after the data set alone: equal differences give equal intervals.
    fn on(&self, dataset: &str, base: &Score, own: &Score) -> (DatasetResult, Resamples) {
        let differences: Vec<f64> = own.chunk_nll.iter().zip(&base.chunk_nll).map(|(own, base)| own - base).collect();
        let stream = format!("comparison on {dataset}");
        let resamples = bootstrap_mean(&differences, self.settings.resamples, self.settings.seed, &stream);
        let interval = resamples.interval(self.settings.confidence);
        let mean = differences.iter().sum::<f64>() / differences.len() as f64;
        let result = DatasetResult {
            dataset: dataset.to_owned(),
            candidate: self.candidate.to_owned(),
            baseline_perplexity: base.perplexity,
            candidate_perplexity: own.perplexity,
            delta_pct: percent(mean),
            delta_pct_interval: percents(interval),
            winner: self.winner(interval, own.perplexity - base.perplexity),
        };
        (result, resamples)
    }

    fn winner(&self, interval: Interval, difference: f64) -> Option<String> {
        let candidate_is_worse = match self.settings.rule {
            Rule::Interval => interval.excludes(0.0).then_some(interval.low > 0.0),
            Rule::Fixed { margin } => (difference.abs() > margin).then_some(difference > 0.0),
        };
        candidate_is_worse.map(|worse| if worse { self.baseline } else { self.candidate }.to_owned())
    }

    fn over_all(&self, results: &[DatasetResult], base: &[Score], own: &[Score], resamples: &[Resamples]) -> Analysis {
        let wins = |name: &str| results.iter().filter(|result| result.winner.as_deref() == Some(name)).count();
        let mean = |scores: &[Score], of: fn(&Score) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
        let (baseline_wins, candidate_wins) = (wins(self.baseline), wins(self.candidate));
        let winner = match baseline_wins.cmp(&candidate_wins) {
            std::cmp::Ordering::Greater => Some(self.baseline.to_owned()),
            std::cmp::Ordering::Less => Some(self.candidate.to_owned()),
            std::cmp::Ordering::Equal => None,
        };
        let by_chunks =
            |scores: &[Score]| mean(scores, |score| score.chunk_nll.iter().sum::<f64>() / score.chunk_nll.len() as f64);
        Analysis {
            candidate: self.candidate.to_owned(),
            winner,
            baseline_wins,
            candidate_wins,
            ties: results.len() - baseline_wins - candidate_wins,
            avg_baseline: mean(base, |score| score.perplexity),
            avg_candidate: mean(own, |score| score.perplexity),
            avg_delta_pct: percent(by_chunks(own) - by_chunks(base)),
            avg_delta_pct_interval: percents(Resamples::averaged(resamples).interval(self.settings.confidence)),
        }
    }
}

/// The relative difference of two perplexities whose logarithms differ by `difference`, in percent.
fn percent(difference: f64) -> f64 {
    100.0 * difference.exp_m1()
}

fn percents(interval: Interval) -> [f64; 2] {
    let interval = interval.map(percent);
    [interval.low, interval.high]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: CompareSettings =
        CompareSettings { seed: 42, confidence: 0.95, resamples: 2000, rule: Rule::Interval };

    fn model(name: &str) -> Contender {
        let path = PathBuf::from(name);
        Contender { name: name.into(), path, bytes: 1, bits_per_weight: 4.0, decoded: false }
    }

    fn score(chunk_nll: Vec<f64>) -> Score {
        let nll = chunk_nll.iter().sum::<f64>() / chunk_nll.len() as f64;
        let chunks = chunk_nll.len() as u64;
        Score {
            perplexity: nll.exp(),
            error: 0.1,
            nll,
            tokens: 255 * chunks,
            chunks,
            ctx: 512,
            chunk_nll,
            divergence: None,
        }
    }

    /// Chunks of very different difficulty, the same for every model, plus what `extra` says.
    fn chunks(extra: impl Fn(u32) -> f64) -> Vec<f64> {
        (0..40).map(|i| 3.0 + (f64::from(i) * 1.3).sin() + extra(i)).collect()
    }

    fn run(scores: Vec<Vec<Score>>, rule: Rule) -> Comparison {
        let models = ["A", "B", "C"][..scores.len()].iter().map(|name| model(name)).collect();
        let datasets = (0..scores[0].len()).map(|i| format!("text {i}")).collect();
        compare(models, datasets, scores, CompareSettings { rule, ..SETTINGS }).unwrap()
    }

    #[test]
    fn pairing_sees_a_difference_far_below_the_spread_of_the_chunks() {
        let (a, b) = (chunks(|_| 0.0), chunks(|i| 0.01 + 0.02 * (f64::from(i) * 2.1).cos()));
        let difference: f64 = b.iter().zip(&a).map(|(b, a)| b - a).sum::<f64>() / 40.0;
        let found = run(vec![vec![score(a)], vec![score(b)]], Rule::Interval);
        let result = &found.dataset_results[0];
        assert_eq!(result.winner.as_deref(), Some("A"));
        assert!((result.delta_pct - 100.0 * (difference.exp() - 1.0)).abs() < 1e-9, "{result:?}");
        assert!(
            (result.delta_pct - 100.0 * (result.candidate_perplexity / result.baseline_perplexity - 1.0)).abs() < 1e-9
        );
        // Standard error of the mean difference: 0.02 / √2 / √40 = 0.22 %, so ±0.44 %.
        let [low, high] = result.delta_pct_interval;
        assert!(low > 0.0 && (0.7..1.05).contains(&(high - low)), "{result:?}");
        assert_eq!(found.analysis[0].winner.as_deref(), Some("A"));
    }

    #[test]
    fn a_difference_within_its_uncertainty_is_a_tie_whatever_the_means_say() {
        let (a, b) = (chunks(|_| 0.0), chunks(|i| 0.01 + 0.2 * (f64::from(i) * 2.1).cos()));
        let found = run(vec![vec![score(a.clone())], vec![score(b.clone())]], Rule::Interval);
        let result = &found.dataset_results[0];
        assert!(result.delta_pct > 0.5 && result.delta_pct_interval[0] < 0.0, "{result:?}");
        assert_eq!(result.winner, None);
        assert_eq!((found.analysis[0].ties, &found.analysis[0].winner), (1, &None));
        let fixed = run(vec![vec![score(a)], vec![score(b)]], Rule::Fixed { margin: 0.05 });
        assert_eq!(fixed.dataset_results[0].winner.as_deref(), Some("A"), "the fixed rule knows no uncertainty");
    }

    #[test]
    fn the_fixed_rule_asks_for_more_than_its_margin() {
        let exactly = |ppl: f64| score(vec![ppl.ln(); 3]);
        let winner = |b: f64, margin| {
            run(vec![vec![exactly(8.0)], vec![exactly(b)]], Rule::Fixed { margin }).dataset_results[0].winner.clone()
        };
        assert_eq!(winner(8.2, 0.05).as_deref(), Some("A"));
        assert_eq!(winner(7.8, 0.05).as_deref(), Some("B"));
        assert_eq!(winner(8.04, 0.05), None);
        assert_eq!(winner(8.2, 0.5), None);
    }

    #[test]
    fn wins_and_averages_over_data_sets() {
        let data = |extra: [f64; 3]| extra.map(|extra| score(chunks(move |_| extra))).to_vec();
        let found = run(vec![data([0.0; 3]), data([-0.1, 0.0, -0.02]), data([0.3, -0.1, 0.0])], Rule::Interval);
        let [b, c] = &found.analysis[..] else { panic!() };
        assert_eq!((b.winner.as_deref(), b.candidate_wins, b.baseline_wins, b.ties), (Some("B"), 2, 0, 1));
        assert_eq!((c.winner.as_deref(), c.candidate_wins, c.baseline_wins, c.ties), (None, 1, 1, 1));
        // The mean of the log ratios: -0.12 / 3 and 0.2 / 3.
        assert!((b.avg_delta_pct - 100.0 * (-0.04f64).exp_m1()).abs() < 1e-9, "{b:?}");
        assert!((c.avg_delta_pct_interval[1] - 100.0 * (0.2f64 / 3.0).exp_m1()).abs() < 1e-9, "{c:?}");
        let mean = |name: &str| {
            found.datasets_tested.iter().map(|d| found.score(d, name).unwrap().perplexity).sum::<f64>() / 3.0
        };
        assert!((b.avg_baseline - mean("A")).abs() < 1e-12 && (c.avg_candidate - mean("C")).abs() < 1e-12);
    }

    #[test]
    fn the_same_model_twice_ties_and_uneven_chunks_are_refused() {
        let same = run(vec![vec![score(chunks(|_| 0.0))]; 2], Rule::Interval);
        assert_eq!((same.dataset_results[0].delta_pct_interval, &same.dataset_results[0].winner), ([0.0, 0.0], &None));
        let uneven = vec![vec![score(vec![1.0; 3])], vec![score(vec![1.0; 4])]];
        let refused = compare(vec![model("A"), model("B")], vec!["t".into()], uneven, SETTINGS).unwrap_err();
        assert!(matches!(refused, CompareError::Chunks { expected: 3, found: 4, .. }), "{refused}");
    }
}
