//! How evenly the calibration text was routed to the experts of a layer, and which of them saw too little.

use std::collections::BTreeMap;

use super::record::ExpertRow;
use crate::calib::Statistics;
use crate::gguf::{Source, TensorInfo};
use crate::model::{Kind, Role, TensorName};

/// What an expert must have seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Threshold {
    /// Token rows, at least.
    pub tokens: Option<u64>,
    /// Share of an even split (1 / experts), at least.
    pub share: Option<f64>,
}

/// One row for each layer with experts; of the stacks that read the same activation the first one that the statistics know is counted. A layer
/// that they do not know has seen nothing.
pub fn coverage(source: &Source, statistics: &Statistics, threshold: Threshold) -> Vec<ExpertRow> {
    let mut stacks: BTreeMap<u32, Vec<&TensorInfo>> = BTreeMap::new();
    for tensor in source.tensors() {
        let name = TensorName::parse(&tensor.name);
        let stack = matches!(name.role, Role::FfnGateExps | Role::FfnUpExps | Role::FfnGateUpExps | Role::FfnDownExps);
        if let (Some(layer), true, Kind::Weight) = (name.block, stack, name.kind) {
            stacks.entry(layer).or_default().push(tensor);
        }
    }
    let one = |(layer, stacks): (u32, Vec<&TensorInfo>)| {
        let known = stacks.iter().find_map(|tensor| Some((*tensor, statistics.entries.get(&tensor.name)?)));
        let unseen = || (stacks[0], vec![0; stacks[0].matrices() as usize]);
        let (tensor, counts) = known.map_or_else(unseen, |(tensor, entry)| (tensor, entry.counts.clone()));
        row(layer, &tensor.name, &counts, threshold)
    };
    stacks.into_iter().map(one).collect()
}

/// The numbers of one layer.
pub fn row(layer: u32, tensor: &str, tokens: &[u64], threshold: Threshold) -> ExpertRow {
    let total: u64 = tokens.iter().sum();
    let experts = tokens.len() as f64;
    let share = |count: u64| count as f64 * experts / total as f64;
    let least = threshold.tokens.unwrap_or(0).max(u64::from(threshold.share.is_none()));
    let starves = |&count: &u64| {
        let unfair = threshold.share.is_some_and(|wanted| total == 0 || share(count) < wanted);
        count < least || unfair
    };
    let extreme = |pick: fn(u64, u64) -> u64| tokens.iter().copied().reduce(pick).filter(|_| total > 0);
    let entropy: f64 = tokens.iter().filter(|&&n| n > 0).map(|&n| n as f64 / total as f64).map(|p| -p * p.ln()).sum();
    let balance = if tokens.len() > 1 { entropy / experts.ln() } else { 1.0 };
    ExpertRow {
        layer,
        tensor: tensor.to_string(),
        tokens: tokens.to_vec(),
        total,
        starved: (0..).zip(tokens).filter(|(_, count)| starves(count)).map(|(expert, _)| expert).collect(),
        min_share: extreme(u64::min).map(|count| share(count) as f32),
        max_share: extreme(u64::max).map(|count| share(count) as f32),
        balance: (total > 0).then_some(balance as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let found = row(3, "t", &[50, 50, 0, 100], Threshold::default());
        assert_eq!((found.total, found.starved), (200, vec![2]));
        assert_eq!((found.min_share, found.max_share), (Some(0.0), Some(2.0)));
        assert!((found.balance.unwrap() - 0.75).abs() < 1e-6, "1.5 of 2 bits");
    }

    #[test]
    fn thresholds_join() {
        let starved = |tokens, share| row(0, "t", &[10, 40, 150], Threshold { tokens, share }).starved;
        assert_eq!(starved(Some(11), None), [0]);
        assert_eq!(starved(Some(41), None), [0, 1]);
        assert_eq!(starved(None, Some(0.5)), [0], "0.15, 0.6, 2.25 of an even split");
        assert_eq!(starved(Some(100), Some(0.01)), [0, 1]);
        assert_eq!(starved(Some(0), Some(0.0)), [0u32; 0]);
    }

    #[test]
    fn an_unrouted_layer_starves_everywhere() {
        for threshold in [Threshold::default(), Threshold { share: Some(0.1), tokens: None }] {
            let found = row(0, "t", &[0, 0], threshold);
            assert_eq!((found.starved, found.balance, found.min_share), (vec![0, 1], None, None));
        }
    }
}
