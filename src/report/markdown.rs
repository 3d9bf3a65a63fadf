//! Results as Markdown, for issues, wikis and model cards. Tables only; plots are elsewhere.

use std::fmt::Write;

use crate::eval::{Analysis, Comparison, DatasetResult, Rule, ScoreDivergence};

/// A comparison of models: results, averages, win counts, the models, and what follows from it.
pub fn comparison(found: &Comparison, timestamp: &str) -> String {
    let mut text = String::from("# Comparison of models\n\n");
    let settings = &found.settings;
    let _ = writeln!(
        text,
        "{timestamp}, baseline `{}`. Positive differences mean that the candidate is worse. {} Intervals hold {} % of {} resamples of the chunks \
         (seed {}).",
        found.baseline,
        rule(settings.rule),
        number(100.0 * settings.confidence),
        settings.resamples,
        settings.seed
    );
    text += "\n## Results\n\n| data set | candidate | baseline perplexity | candidate perplexity | difference | interval | winner |\n";
    text += "| --- | --- | --: | --: | --: | --: | --- |\n";
    for result in &found.dataset_results {
        text += &result_row(found, result);
    }
    text += &divergences(found);
    text += "\n## Average\n\nEvery data set counts the same; the difference is that of the geometric means.\n\n";
    text += "| candidate | baseline perplexity | candidate perplexity | difference | interval |\n| --- | --: | --: | --: | --: |\n";
    for analysis in &found.analysis {
        let [low, high] = analysis.avg_delta_pct_interval;
        let _ = writeln!(
            text,
            "| {} | {:.4} | {:.4} | {:+.2} % | {low:+.2} to {high:+.2} % |",
            cell(&analysis.candidate),
            analysis.avg_baseline,
            analysis.avg_candidate,
            analysis.avg_delta_pct
        );
    }
    text += "\n## Win count\n\n| candidate | candidate wins | baseline wins | ties |\n| --- | --: | --: | --: |\n";
    for analysis in &found.analysis {
        let Analysis { candidate, candidate_wins, baseline_wins, ties, .. } = analysis;
        let _ = writeln!(text, "| {} | {candidate_wins} | {baseline_wins} | {ties} |", cell(candidate));
    }
    text += "\n## Models compared\n\n| model | file | bytes | bits a weight |\n| --- | --- | --: | --: |\n";
    for model in &found.models {
        let (name, path) = (cell(&model.name), cell(&model.path.display().to_string()));
        let _ = writeln!(text, "| {name} | {path} | {} | {:.3} |", model.bytes, model.bits_per_weight);
    }
    text += "\n## Recommendation\n\n";
    for analysis in &found.analysis {
        let _ = writeln!(text, "- {}", verdict(found, analysis));
    }
    text
}

/// The distances from the baseline, where they were measured.
fn divergences(found: &Comparison) -> String {
    let mut rows = found.divergences().peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let head = "\n## Divergence from the baseline\n\n| data set | candidate | KL divergence | same top token |\n| --- | --- | --: | --: |\n";
    let row = |(dataset, candidate, d): (&str, &str, ScoreDivergence)| {
        let (kld, top) = (d.kld, d.same_top);
        format!(
            "| {} | {} | {:.6} ± {:.6} | {:.3} ± {:.3} % |\n",
            cell(dataset),
            cell(candidate),
            kld.value,
            kld.error,
            100.0 * top.value,
            100.0 * top.error
        )
    };
    head.to_owned() + &rows.map(row).collect::<String>()
}

fn result_row(found: &Comparison, result: &DatasetResult) -> String {
    let error = |model: &str| found.score(&result.dataset, model).map_or(f64::NAN, |score| score.error);
    let [low, high] = result.delta_pct_interval;
    format!(
        "| {} | {} | {:.4} ± {:.4} | {:.4} ± {:.4} | {:+.2} % | {low:+.2} to {high:+.2} % | {} |\n",
        cell(&result.dataset),
        cell(&result.candidate),
        result.baseline_perplexity,
        error(&found.baseline),
        result.candidate_perplexity,
        error(&result.candidate),
        result.delta_pct,
        result.winner.as_deref().map_or("tie".into(), cell)
    )
}

/// The rule in words.
fn rule(rule: Rule) -> String {
    match rule {
        Rule::Interval => "A model wins where the interval of the difference excludes zero.".into(),
        Rule::Fixed { margin } => {
            format!("A model wins where the perplexities differ by more than {}.", number(margin))
        }
    }
}

/// What a comparison with one candidate says, in a sentence.
pub fn verdict(found: &Comparison, analysis: &Analysis) -> String {
    let Analysis { candidate, candidate_wins, baseline_wins, ties, .. } = analysis;
    let sets = found.datasets_tested.len();
    let counts =
        format!("{candidate} wins {candidate_wins}, {} wins {baseline_wins}, {ties} tied of {sets}", found.baseline);
    match &analysis.winner {
        Some(winner) => format!("{winner} is better ({counts})"),
        None if *ties == sets => {
            format!("no difference between {} and {candidate} is proved ({counts})", found.baseline)
        }
        None => format!("neither {} nor {candidate} is better throughout ({counts})", found.baseline),
    }
}

/// A number without needless digits.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text that does not end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{CompareSettings, Contender, Score, compare};

    fn found(rule: Rule, differences: [f64; 2]) -> Comparison {
        let model = |name: &str, bytes| Contender {
            name: name.into(),
            path: format!("{name}.gguf").into(),
            bytes,
            bits_per_weight: 4.625,
            decoded: false,
        };
        let score = |nll: f64| Score {
            perplexity: nll.exp(),
            error: 0.5,
            nll,
            tokens: 510,
            chunks: 2,
            ctx: 512,
            chunk_nll: vec![nll; 2],
            divergence: None,
        };
        let scores = vec![vec![score(2.0), score(3.0)], vec![score(2.0 + differences[0]), score(3.0 + differences[1])]];
        let settings = CompareSettings { seed: 7, confidence: 0.95, resamples: 100, rule };
        let sets = vec!["a|b".into(), "c".into()];
        compare(vec![model("f16", 100), model("tcq4", 30)], sets, scores, settings).unwrap()
    }

    #[test]
    fn says_everything_once_and_escapes_cells() {
        insta::assert_snapshot!(comparison(&found(Rule::Interval, [0.01, 0.0]), "2026-01-02T03:04:05Z"));
    }

    #[test]
    fn verdicts() {
        let verdict = |differences| {
            let found = found(Rule::Interval, differences);
            super::verdict(&found, &found.analysis[0])
        };
        assert_eq!(verdict([0.01, 0.0]), "f16 is better (tcq4 wins 0, f16 wins 1, 1 tied of 2)");
        assert_eq!(verdict([-0.01, -0.02]), "tcq4 is better (tcq4 wins 2, f16 wins 0, 0 tied of 2)");
        assert!(verdict([0.0, 0.0]).starts_with("no difference between f16 and tcq4 is proved"));
        assert!(verdict([0.1, -0.1]).starts_with("neither f16 nor tcq4 is better throughout"));
    }
}
