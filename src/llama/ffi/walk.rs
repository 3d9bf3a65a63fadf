//! Where a graph must be stopped so that the input of a multiplication can be changed before it runs.
//!
//! ggml asks node by node and computes everything up to the first node that is wanted. An input can be changed at the question for its
//! multiplication only if all nodes before are computed, that is if the node before was wanted. Which nodes those are is learnt from the
//! first graph of each kind, in which every node is wanted; graphs of one kind have the same nodes in the same order, and that is checked.

use std::collections::{BTreeSet, HashMap};

/// Tokens and outputs of a graph: what its list of nodes depends on.
pub(super) type Kind = (usize, usize);

/// The position in a running graph, and the stops of all kinds of graphs so far.
#[derive(Debug, Default)]
pub(super) struct Walk {
    known: HashMap<Kind, BTreeSet<usize>>,
    /// The graph that runs: its kind, the stops that it must make or, in the first of its kind, those that were found needed.
    kind: Kind,
    stops: BTreeSet<usize>,
    learning: bool,
    /// Nodes asked for so far, and the last of them at which the graph was stopped.
    asked: usize,
    stopped_at: Option<usize>,
}

impl Walk {
    /// A graph begins; `stops` says whether anybody will need to stop before nodes.
    pub(super) fn begin(&mut self, kind: Kind, stops: bool) {
        let known = self.known.get(&kind);
        self.learning = stops && known.is_none();
        self.stops = known.filter(|_| stops).cloned().unwrap_or_default();
        (self.kind, self.asked, self.stopped_at) = (kind, 0, None);
    }

    /// The graph ran to its end (or to where it is always left): what was learnt holds for all of its kind.
    pub(super) fn end(&mut self) {
        if self.learning {
            self.known.insert(self.kind, std::mem::take(&mut self.stops));
        }
    }

    /// The next node is asked for. Returns whether the graph must stop behind it for the sake of the one after.
    pub(super) fn ask(&mut self) -> bool {
        self.asked += 1;
        self.learning || self.stops.contains(&(self.asked - 1))
    }

    /// Whether everything before the node that is asked for is computed. In the first graph of a kind this also keeps that it was needed.
    pub(super) fn all_before_is_done(&mut self) -> bool {
        let Some(before) = self.asked.checked_sub(2) else { return true };
        if self.learning {
            self.stops.insert(before);
        }
        self.stopped_at == Some(before)
    }

    /// The graph has stopped behind the node last asked for.
    pub(super) fn stopped(&mut self) {
        self.stopped_at = self.asked.checked_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a graph of `nodes` nodes and returns where it stops, if all before each of `rewritten` is computed when it is asked for.
    fn run(walk: &mut Walk, kind: Kind, nodes: usize, rewritten: &[usize]) -> Option<Vec<usize>> {
        walk.begin(kind, true);
        let mut stops = Vec::new();
        for node in 0..nodes {
            let mut stop = walk.ask();
            if rewritten.contains(&node) {
                if !walk.all_before_is_done() {
                    return None;
                }
                stop = true;
            }
            if stop {
                walk.stopped();
                stops.push(node);
            }
        }
        walk.end();
        Some(stops)
    }

    #[test]
    fn the_first_graph_of_a_kind_stops_everywhere_and_the_others_where_needed() {
        let mut walk = Walk::default();
        assert_eq!(run(&mut walk, (8, 4), 6, &[0, 3]), Some(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(run(&mut walk, (8, 4), 6, &[0, 3]), Some(vec![0, 2, 3]));
        assert_eq!(run(&mut walk, (4, 4), 6, &[0, 3]).unwrap().len(), 6);
        assert_eq!(run(&mut walk, (8, 4), 6, &[0, 3]), Some(vec![0, 2, 3]));
    }

    #[test]
    fn a_graph_with_other_nodes_is_noticed() {
        let mut walk = Walk::default();
        run(&mut walk, (8, 4), 6, &[3]).unwrap();
        assert_eq!(run(&mut walk, (8, 4), 7, &[4]), None);
    }

    #[test]
    fn a_graph_that_failed_teaches_nothing() {
        let mut walk = Walk::default();
        walk.begin((8, 4), true);
        walk.ask();
        assert_eq!(run(&mut walk, (8, 4), 3, &[2]), Some(vec![0, 1, 2]));
    }
}
