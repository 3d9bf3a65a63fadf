//! Sums second moments of inputs while text runs through the model, each input once however many weights read it.
//!
//! Rows that are routed to several experts count once for each of them. What the sums count ([`Unit`]) is settled by the first chunk of the whole run,
//! which every shard runs for this: so shards can be added up exactly.

use std::collections::HashMap;

use super::hessian::{OutOfRange, USUAL_UNIT, Unit};
use super::input_moments::{InputMoments, MomentsRequest};
use super::run::{CalibrationOptions, context};
use super::summer::Summer;
use crate::corpus::Corpus;
use crate::corpus::chunks::Chunks;
use crate::error::MomentsError;
use crate::llama::{Capture, Logits, Model, Node, Observer, Rewriter, Watch};
use crate::util::progress::{Progress, Unit as Counted};
use crate::util::shard::Shard;
use crate::{Error, Result};

/// Runs a shard of the text of [`super::calibrate`], all chunks that it sums up, and gives the second moments of the inputs in the order of the requests;
/// `None` for those that no graph of the model reads. Merged over all shards they are those of one run, bit for bit. A `rewriter` takes part in the passes:
/// what it changes is measured as it was for everybody but the multiplications that it is changed for.
///
/// # Errors
/// As [`super::calibrate`]; [`MomentsError::OutOfRange`].
pub fn second_moments(
    model: &Model,
    corpus: &Corpus,
    options: &CalibrationOptions,
    requests: &[MomentsRequest],
    shard: Shard,
    mut rewriter: Option<&mut dyn Rewriter>,
    progress: &dyn Progress,
) -> Result<Vec<Option<InputMoments>>> {
    let chunks = Chunks::of(model, corpus, options.ctx)?;
    let plan = chunks.plan(options.samples, options.selection);
    let mut context = context(model, options)?;
    let mut hessians = Hessians::new(requests, options.summer.clone());
    let places: Vec<usize> = (0..plan.summed.len()).filter(|&place| place == 0 || shard.has(place)).collect();
    progress.begin("second moments", places.len() as u64 * u64::from(options.ctx), Counted::Tokens);
    for place in places {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        hessians.begin_chunk(place == 0, shard.has(place));
        context.clear();
        let rewriter: Option<&mut dyn Rewriter> = match &mut rewriter {
            Some(rewriter) => Some(&mut **rewriter),
            None => None,
        };
        let watch = Watch { observer: Some(&mut hessians), rewriter };
        context.decode_watched(&chunks.get(plan.summed[place]), Logits::None, watch)?;
        progress.advance(u64::from(options.ctx));
    }
    progress.end();
    Ok(hessians.finish())
}

/// An observer that sums second moments.
pub(super) struct Hessians<'a> {
    requests: &'a [MomentsRequest],
    by_weight: HashMap<&'a str, usize>,
    slots: Vec<Slot>,
    /// Whether the graph that is running settles units, and whether it is summed.
    settles: bool,
    sums: bool,
    offsets: Vec<Vec<usize>>,
    summer: Summer,
}

/// What is known about one input.
#[derive(Default, Clone)]
struct Slot {
    unit: Option<Unit>,
    moments: Option<InputMoments>,
    /// Whether the running graph has given it already.
    seen: bool,
}

impl<'a> Hessians<'a> {
    pub(super) fn new(requests: &'a [MomentsRequest], summer: Summer) -> Self {
        let named =
            |(index, request): (usize, &'a MomentsRequest)| request.weights.iter().map(move |w| (w.as_str(), index));
        Self {
            requests,
            by_weight: requests.iter().enumerate().flat_map(named).collect(),
            slots: vec![Slot::default(); requests.len()],
            settles: true,
            sums: true,
            offsets: Vec::new(),
            summer,
        }
    }

    /// Says whether the next chunk is the first of the whole run, and whether it is summed.
    pub(super) fn begin_chunk(&mut self, first: bool, sums: bool) {
        (self.settles, self.sums) = (first, sums);
    }

    pub(super) fn finish(self) -> Vec<Option<InputMoments>> {
        self.slots.into_iter().map(|slot| slot.moments).collect()
    }
}

impl Observer for Hessians<'_> {
    fn begin_graph(&mut self, _tokens: usize) {
        self.slots.iter_mut().for_each(|slot| slot.seen = false);
    }

    fn wants(&mut self, node: &Node<'_>) -> bool {
        let Some(&index) = self.by_weight.get(node.weight) else { return false };
        let request = &self.requests[index];
        if (node.columns, node.matrices) != (request.columns, request.matrices) || node.rows == 0 {
            return false;
        }
        let slot = &mut self.slots[index];
        let wanted = self.sums || (self.settles && slot.unit.is_none());
        wanted && !std::mem::replace(&mut slot.seen, true)
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        let Some(&index) = self.by_weight.get(node.weight) else { return Ok(()) };
        let (request, slot) = (&self.requests[index], &mut self.slots[index]);
        self.offsets.clear();
        self.offsets.resize_with(request.matrices, Vec::new);
        input.rows_by_matrix(node, &mut self.offsets);
        let settles = self.settles;
        let all = self.offsets.iter().flatten().copied();
        let unit = *slot.unit.get_or_insert_with(|| match settles {
            true => Unit::of(input.data, all, request.columns),
            false => USUAL_UNIT,
        });
        if !self.sums {
            return Ok(());
        }
        let moments = slot.moments.get_or_insert_with(|| request.begin(unit));
        let out_of_range = |OutOfRange| MomentsError::OutOfRange { tensor: node.weight.to_owned() };
        for (matrix, offsets) in self.offsets.iter().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
            moments.rows[matrix] += offsets.len() as u64;
            for block in &mut moments.blocks {
                let owner = if block.sums.len() > 1 { matrix } else { 0 };
                let (sum, channels) = (&mut block.sums[owner], block.channels.as_deref());
                let added = match self.summer.products(input.data, offsets, sum.columns(), channels)? {
                    Some(products) => sum.add_products(offsets.len(), &products),
                    None => sum.add(input.data, offsets, channels),
                };
                added.map_err(out_of_range)?;
            }
        }
        Ok(())
    }
}
