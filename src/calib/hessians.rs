//! Sums the second moment of every wanted input of a model's weights while text runs through it, each input once however many weights read it.
//!
//! All experts of a layer share one matrix for an input: a row counts once for each expert that it is routed to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::hessian::Hessian;
use super::run::{CalibrationOptions, context};
use crate::corpus::Corpus;
use crate::corpus::chunks::Chunks;
use crate::llama::{Capture, InputId, Logits, Model, Node, Observer, Rewriter, Watch};
use crate::math::products::LANES;
use crate::util::progress::{Progress, Unit};
use crate::{Error, Result};

/// What makes two nodes one input: same values, same routing.
type Key = (InputId, Option<InputId>);

/// Runs the text of [`super::calibrate`], all chunks that it sums up, and gives the second moments of the inputs of `weights` as far as the model
/// reads them; weights with the same input share one. A `rewriter` takes part in the passes: what it changes is measured as it was for everybody but
/// the multiplications that it is changed for.
///
/// # Errors
/// As [`super::calibrate`].
pub fn second_moments(
    model: &Model,
    corpus: &Corpus,
    options: &CalibrationOptions,
    weights: &BTreeSet<String>,
    mut rewriter: Option<&mut dyn Rewriter>,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Arc<Hessian>>> {
    let chunks = Chunks::of(model, corpus, options.ctx)?;
    let plan = chunks.plan(options.samples, options.selection);
    let mut context = context(model, options)?;
    let mut hessians =
        Hessians { weights, sums: Vec::new(), by_weight: HashMap::new(), seen: HashMap::new(), offsets: Vec::new() };
    progress.begin("second moments", plan.summed.len() as u64 * u64::from(options.ctx), Unit::Tokens);
    for &chunk in &plan.summed {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        context.clear();
        let rewriter: Option<&mut dyn Rewriter> = match &mut rewriter {
            Some(rewriter) => Some(&mut **rewriter),
            None => None,
        };
        let watch = Watch { observer: Some(&mut hessians), rewriter };
        context.decode_watched(&chunks.get(chunk), Logits::None, watch)?;
        progress.advance(u64::from(options.ctx));
    }
    progress.end();
    Ok(hessians.finish())
}

/// An observer that sums second moments.
struct Hessians<'a> {
    weights: &'a BTreeSet<String>,
    sums: Vec<Hessian>,
    by_weight: HashMap<String, usize>,
    seen: HashMap<Key, usize>,
    offsets: Vec<Vec<usize>>,
}

impl Hessians<'_> {
    fn finish(self) -> BTreeMap<String, Arc<Hessian>> {
        let shared: Vec<Arc<Hessian>> = self.sums.into_iter().map(Arc::new).collect();
        self.by_weight.into_iter().map(|(weight, index)| (weight, Arc::clone(&shared[index]))).collect()
    }
}

impl Observer for Hessians<'_> {
    fn begin_graph(&mut self, _tokens: usize) {
        self.seen.clear();
    }

    fn wants(&mut self, node: &Node<'_>) -> bool {
        if !self.weights.contains(node.weight) || !node.columns.is_multiple_of(LANES) || node.rows == 0 {
            return false;
        }
        let key = (node.input, node.routing);
        if let Some(&index) = self.seen.get(&key) {
            self.by_weight.entry(node.weight.to_owned()).or_insert(index);
            return false;
        }
        let index = self.by_weight.get(node.weight).copied().unwrap_or_else(|| {
            self.sums.push(Hessian::new(node.columns));
            self.by_weight.insert(node.weight.to_owned(), self.sums.len() - 1);
            self.sums.len() - 1
        });
        self.seen.insert(key, index);
        true
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        let Some(&index) = self.by_weight.get(node.weight) else { return Ok(()) };
        self.offsets.clear();
        self.offsets.resize_with(node.matrices.max(1), Vec::new);
        input.rows_by_matrix(node, &mut self.offsets);
        for offsets in self.offsets.iter().filter(|offsets| !offsets.is_empty()) {
            self.sums[index].add(input.data, offsets);
        }
        Ok(())
    }
}
