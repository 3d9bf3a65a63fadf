//! Which inputs leave the INT4 path for INT8 because they suffer most on it. The losses come from elsewhere; here they are weighed against the work.

use serde::{Deserialize, Serialize};

use super::activation::Activations;
use super::allocate::{Choice, allocate};

/// What one input group loses on a path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupLoss {
    /// The input group.
    pub group: String,
    /// Its quantised tensors.
    pub tensors: Vec<String>,
    /// Multiply-adds a token.
    pub multiply_adds: u64,
    /// Squared error of the outputs relative to their squares, mean over the tensors, weights exact.
    pub error: f64,
    /// The same with INT8.
    pub error_int8: f64,
    /// The loss of the model that the output errors suggest; comparable between groups, in no unit.
    pub estimate: f64,
    /// KL divergence of the model in nats when this input alone is rounded, where that was measured; of inputs measured together the part that
    /// falls to this one by its error.
    pub kld: Option<f64>,
}

impl GroupLoss {
    /// The loss on the path: measured, or estimated where nothing was measured.
    pub fn loss(&self) -> f64 {
        self.kld.unwrap_or(self.estimate)
    }

    /// The loss that INT8 leaves: as much less as the error of the outputs.
    pub fn loss_int8(&self) -> f64 {
        if self.error > 0.0 { self.loss() * (self.error_int8 / self.error).min(1.0) } else { self.loss() }
    }
}

/// One group with its path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupPath {
    /// What it loses.
    #[serde(flatten)]
    pub loss: GroupLoss,
    /// What it takes.
    pub path: Activations,
    /// Loss that INT8 would save for each share of all multiply-adds that the group has.
    pub gain_per_share: f64,
}

/// The paths of all groups.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ActAware {
    /// The path of those that keep it.
    pub path: Activations,
    /// The share of the multiply-adds that may take INT8.
    pub allowed: f64,
    /// The share that does.
    pub share: f64,
    /// The sum of the groups' losses on the path.
    pub loss_before: f64,
    /// The same with the chosen paths.
    pub loss_after: f64,
    /// Every group, in the order of the model.
    pub groups: Vec<GroupPath>,
}

impl ActAware {
    /// Lets those groups take INT8 whose losses fall most in sum, while their multiply-adds are at most `allowed` of all: a knapsack, solved exactly.
    pub fn choose(path: Activations, losses: Vec<GroupLoss>, allowed: f64) -> Self {
        let total: u64 = losses.iter().map(|loss| loss.multiply_adds).sum();
        let item = |loss: &GroupLoss| {
            vec![
                Choice { size: 0, loss: loss.loss() },
                Choice { size: loss.multiply_adds, loss: loss.loss_int8().min(loss.loss()) },
            ]
        };
        let items: Vec<Vec<Choice>> = losses.iter().map(item).collect();
        let budget = (total as f64 * allowed.clamp(0.0, 1.0)).floor() as u64;
        let chosen = allocate(&items, budget).map_or_else(|_| vec![0; items.len()], |found| found.chosen);
        let part = |multiply_adds: u64| multiply_adds as f64 / total.max(1) as f64;
        let group = |(loss, choice): (GroupLoss, usize)| GroupPath {
            gain_per_share: (loss.loss() - loss.loss_int8()) / part(loss.multiply_adds.max(1)),
            path: if choice == 1 { Activations::Int8 } else { path },
            loss,
        };
        let groups: Vec<GroupPath> = losses.into_iter().zip(chosen).map(group).collect();
        let int8 = |group: &&GroupPath| group.path == Activations::Int8;
        let left = |group: &GroupPath| if int8(&group) { group.loss.loss_int8() } else { group.loss.loss() };
        Self {
            path,
            allowed,
            share: part(groups.iter().filter(int8).map(|group| group.loss.multiply_adds).sum()),
            loss_before: groups.iter().map(|group| group.loss.loss()).sum(),
            loss_after: groups.iter().map(left).sum(),
            groups,
        }
    }

    /// The tensors that take another path than the others.
    pub fn marked(&self) -> impl Iterator<Item = (&str, Activations)> {
        let marked = self.groups.iter().filter(|group| group.path != self.path);
        marked.flat_map(|group| group.loss.tensors.iter().map(|tensor| (tensor.as_str(), group.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(group: &str, multiply_adds: u64, estimate: f64, kld: Option<f64>) -> GroupLoss {
        let tensors = vec![format!("{group}.a"), format!("{group}.b")];
        GroupLoss { group: group.into(), tensors, multiply_adds, error: 0.01, error_int8: 0.0001, estimate, kld }
    }

    #[test]
    fn the_best_groups_within_the_share_take_int8() {
        let losses = vec![loss("a", 50, 9.0, None), loss("b", 30, 6.0, None), loss("c", 20, 3.9, None)];
        let found = ActAware::choose(Activations::Int4, losses.clone(), 0.5);
        let paths = |found: &ActAware| found.groups.iter().map(|group| group.path).collect::<Vec<_>>();
        // b and c save 9.9 together, a alone 9.
        assert_eq!(paths(&found), [Activations::Int4, Activations::Int8, Activations::Int8]);
        assert_eq!(found.marked().map(|(name, _)| name).collect::<Vec<_>>(), ["b.a", "b.b", "c.a", "c.b"]);
        assert!((found.share - 0.5).abs() < 1e-12 && (found.loss_before - 18.9).abs() < 1e-12);
        assert!((found.loss_after - (9.0 + 0.06 + 0.039)).abs() < 1e-12, "{found:?}");
        assert!((found.groups[1].gain_per_share - 0.99 * 6.0 / 0.3).abs() < 1e-9);
        assert!(
            paths(&ActAware::choose(Activations::Int4, losses.clone(), 0.19)).iter().all(|p| *p == Activations::Int4)
        );
        assert_eq!(ActAware::choose(Activations::Int4, losses, 1.0).marked().count(), 6);
    }

    #[test]
    fn what_was_measured_counts_and_not_what_was_estimated() {
        let losses = vec![loss("a", 50, 9.0, Some(0.01)), loss("b", 50, 6.0, Some(0.02))];
        let found = ActAware::choose(Activations::Int4, losses, 0.5);
        assert_eq!(found.marked().next(), Some(("b.a", Activations::Int8)));
        assert!(ActAware::choose(Activations::Int4, Vec::new(), 0.5).groups.is_empty());
    }
}
