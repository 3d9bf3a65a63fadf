//! A comparison as text for the terminal, at most 120 columns wide.

use crate::cli::table::Table;
use crate::eval::{Comparison, Rule};
use crate::report::markdown::verdict;
use crate::util::units::Bytes;

/// The longest name that is shown whole.
const NAME: usize = 20;

pub(super) fn render(found: &Comparison) -> String {
    let verdicts: Vec<String> = found.analysis.iter().map(|analysis| verdict(found, analysis)).collect();
    let last = verdicts.join("\n") + "\n" + &footnote(found);
    let parts = [Some(models(found)), Some(results(found)), divergences(found), Some(averages(found)), Some(last)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
}

fn models(found: &Comparison) -> String {
    let mut table = Table::new(&["model", ">size", ">bits a weight"]);
    for (index, model) in found.models.iter().enumerate() {
        let role = if index == 0 { " (baseline)" } else { "" };
        let size = Bytes(model.bytes).to_string();
        table.row([name(&model.name) + role, size, format!("{:.3}", model.bits_per_weight)]);
    }
    table.render()
}

fn results(found: &Comparison) -> String {
    let mut table = Table::new(&["data set", "model", ">perplexity", ">difference", ">interval", "winner"]);
    for dataset in &found.datasets_tested {
        let perplexity = |model: &str| {
            found.score(dataset, model).map_or_else(String::new, |s| format!("{:.4} ± {:.4}", s.perplexity, s.error))
        };
        let blank = String::new;
        table.row([name(dataset), name(&found.baseline), perplexity(&found.baseline), blank(), blank(), blank()]);
        for result in found.dataset_results.iter().filter(|result| &result.dataset == dataset) {
            table.row([
                String::new(),
                name(&result.candidate),
                perplexity(&result.candidate),
                format!("{:+.2} %", result.delta_pct),
                interval(result.delta_pct_interval),
                result.winner.as_deref().map_or("tie".into(), name),
            ]);
        }
    }
    table.render()
}

fn divergences(found: &Comparison) -> Option<String> {
    let mut table = Table::new(&["data set", "model", ">KL divergence", ">same top token"]);
    for (dataset, candidate, d) in found.divergences() {
        let kld = format!("{:.6} ± {:.6}", d.kld.value, d.kld.error);
        let top = format!("{:.3} ± {:.3} %", 100.0 * d.same_top.value, 100.0 * d.same_top.error);
        table.row([name(dataset), name(candidate), kld, top]);
    }
    found.divergences().next().map(|_| table.render())
}

fn averages(found: &Comparison) -> String {
    let mut table =
        Table::new(&["average", ">baseline", ">candidate", ">difference", ">interval", ">wins", ">losses", ">ties"]);
    for analysis in &found.analysis {
        table.row([
            name(&analysis.candidate),
            format!("{:.4}", analysis.avg_baseline),
            format!("{:.4}", analysis.avg_candidate),
            format!("{:+.2} %", analysis.avg_delta_pct),
            interval(analysis.avg_delta_pct_interval),
            analysis.candidate_wins.to_string(),
            analysis.baseline_wins.to_string(),
            analysis.ties.to_string(),
        ]);
    }
    table.render()
}

fn footnote(found: &Comparison) -> String {
    let confidence = 100.0 * found.settings.confidence;
    let wins = match found.settings.rule {
        Rule::Interval => "a model wins where its interval excludes zero".into(),
        Rule::Fixed { margin } => format!("a model wins by more than {margin} of perplexity"),
    };
    format!("differences are paired by chunk, + is worse than the baseline\n{confidence:.4} % intervals; {wins}")
        .replace(".0000 %", " %")
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{low:+.2} to {high:+.2} %")
}

/// A name, shortened in the middle if it is long.
fn name(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= NAME {
        return name.to_owned();
    }
    let (head, tail) = (NAME.div_ceil(2) - 1, NAME / 2);
    letters[..head].iter().chain(&['…']).chain(&letters[letters.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(name("short"), "short");
        let long = name(&("a".repeat(40) + "-q4_0"));
        assert!(long.chars().count() == NAME && long.starts_with("aaa") && long.ends_with("-q4_0"), "{long}");
    }
}
