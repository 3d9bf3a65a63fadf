//! One input group at a time: its evidence, its scale and its order.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::evidence::{Estimates, Evidence, Weights, estimated, measured};
use super::fold::columns_order;
use super::objective::{Emphasis, Objective, SAMPLE_ROWS, sample_of};
use super::outcome::{Applied, Grounds, GroupOutcome, Measured, ScaleOutcome};
use super::permute::{Channels, Order, permutation, permutation_in_spans};
use super::salience::measure::Found;
use super::salience::weigh::Gates;
use super::scale::{awq, closed_form, pooled};
use super::settings::{Apply, Orders, Scales, Settings};
use super::step::Needs;
use crate::calib::{SampleRows, Statistics};
use crate::error::Result;
use crate::gguf::TensorInfo;
use crate::math::Permutation;
use crate::model::{InputGroup, Producer};
use crate::tcq::CHUNK;

/// Experts of a layer whose output is measured.
const EXPERTS: usize = 4;
/// Errors that differ by less than this share are taken for equal: other sample rows would turn them round.
const NOISE: f64 = 0.01;

/// What was found out about a group.
pub(super) struct Study {
    pub(super) evidence: Evidence,
    /// What AWQ's search follows, if there is one.
    salience: Option<Found>,
    pub(super) scale: Option<Vec<f32>>,
    /// The order of the channels that make the activation (of its columns, where the runtime applies it).
    pub(super) order: Option<Permutation>,
    pub(super) outcome: GroupOutcome,
}

/// Weights that multiply the same sample rows.
struct Part<'a> {
    rows: &'a Arc<SampleRows>,
    expert: Option<u32>,
    x: Vec<f32>,
    weights: Vec<f32>,
    /// How much each weight row's output counts.
    importance: Vec<f32>,
    weighted: bool,
}

impl<'a> Part<'a> {
    fn new(rows: &'a Arc<SampleRows>, expert: Option<u32>) -> Self {
        let x = sampled_rows(rows, expert);
        Self { rows, expert, x, weights: Vec::new(), importance: Vec::new(), weighted: false }
    }

    /// Adds weight rows; they count alike if there is no `importance`.
    fn add(&mut self, weights: Vec<f32>, columns: usize, importance: Option<Vec<f32>>) {
        self.weighted |= importance.is_some();
        self.importance.extend(importance.unwrap_or_else(|| vec![1.0; weights.len() / columns]));
        self.weights.extend(weights);
    }
}

/// Everything that the studies of all groups share.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) weights: Weights<'a>,
    pub(super) statistics: Option<&'a Statistics>,
    pub(super) estimates: &'a Estimates,
    pub(super) settings: &'a Settings,
    pub(super) gates: &'a Gates,
    /// Why the residual stream keeps its order, if it does (only where orders are folded).
    pub(super) stream: Option<&'a str>,
}

impl Ground<'_> {
    /// Studies one group.
    pub(super) fn study(&self, group: &InputGroup) -> Result<Study> {
        let tensors: Vec<String> =
            group.readers.iter().filter(|name| self.settings.targets.contains(*name)).cloned().collect();
        // Where nothing is chosen, a pass over all weights would only cost time.
        let columns = group.columns as usize;
        let chooses = self.settings.chooses();
        let weight_sq = if chooses { self.weights.weight_sq(&tensors)? } else { vec![1.0; columns] };
        let evidence = match self.statistics.and_then(|statistics| measured(statistics, &tensors, &weight_sq)) {
            Some(evidence) => evidence,
            None if !chooses => estimated(vec![1.0; columns], weight_sq),
            None => estimated(self.weights.estimate(group, self.estimates)?, weight_sq),
        };
        let outcome = GroupOutcome {
            group: group.key.clone(),
            tensors,
            columns: group.columns,
            grounds: evidence.grounds,
            scale: None,
            unscaled: None,
            order: Order::None,
            applied: None,
            unordered: None,
            orders_tried: Vec::new(),
            error: None,
        };
        let mut study = Study { evidence, salience: None, scale: None, order: None, outcome };
        let steps = self.settings.steps();
        let measures = steps.iter().any(|step| step.needs().covers(Needs::ROWS));
        let objective = if measures { self.objective(group, &study.outcome.tensors)? } else { None };
        study.salience = self.followed_salience(group, objective.is_some(), &study)?;
        let mut bench = Bench { ground: self, group, objective: objective.as_ref(), study: &mut study };
        for step in steps {
            step.prepare(&mut bench);
        }
        Ok(study)
    }

    /// Makes the objective of a group from its sample rows; nothing where there are none.
    pub(super) fn objective(&self, group: &InputGroup, tensors: &[String]) -> Result<Option<Objective>> {
        let Some(statistics) = self.statistics else { return Ok(None) };
        let columns = group.columns as usize;
        if !columns.is_multiple_of(CHUNK) {
            return Ok(None);
        }
        let mut parts: Vec<Part<'_>> = Vec::new();
        for name in tensors {
            let Some(tensor) = self.weights.source.tensor(name) else { continue };
            let Some(rows) = statistics.entries.get(name).and_then(|entry| entry.rows.as_ref()) else { continue };
            for expert in experts(tensor, rows) {
                let weights = sampled_weights(self.weights, tensor, expert.unwrap_or(0))?;
                let known = parts.iter().position(|part| Arc::ptr_eq(part.rows, rows) && part.expert == expert);
                let at = known.unwrap_or_else(|| {
                    parts.push(Part::new(rows, expert));
                    parts.len() - 1
                });
                let part = &mut parts[at];
                let importance = self.output_weights(tensor, expert.unwrap_or(0), &weights, &part.x)?;
                part.add(weights, columns, importance);
            }
        }
        let mut objective = Objective::new(columns, self.settings.codec, self.settings.activations);
        for part in parts {
            let seen = self.seen(&part.x, &format!("{} {}", group.key, part.expert.unwrap_or(0)));
            let importance = part.weighted.then_some(part.importance);
            objective.add_weighted(part.x, part.weights, Emphasis { seen, importance });
        }
        Ok(Some(objective).filter(|objective| !objective.is_empty()))
    }

    /// Chooses the scale.
    fn choose_scale(&self, scales: Scales, group: &InputGroup, objective: Option<&Objective>, study: &mut Study) {
        if scales == Scales::None {
            return;
        }
        if let Some(reason) = group.producer.why_not_scaled() {
            study.outcome.unscaled = Some(reason.to_string());
            return;
        }
        let channels = &study.evidence.channels;
        let shared = group.shared_makers();
        let spread = |makers: Vec<f32>| match &shared {
            None => makers,
            Some(shared) => shared.iter().map(|&maker| makers[maker]).collect(),
        };
        let pool = |values: &[f64]| match &shared {
            None => values.to_vec(),
            Some(shared) => pooled(values, shared, makers_of(shared)),
        };
        let mut outcome =
            ScaleOutcome { salience: None, fallback: None, alpha: None, min: 1.0, max: 1.0, tried: Vec::new() };
        let scale =
            if let (Scales::Awq { steps, .. }, Some(objective), Some(found)) = (scales, objective, &study.salience) {
                (outcome.salience, outcome.fallback) = (Some(found.followed), found.fallback.clone());
                let salience = pool(&found.values);
                self.search(group, objective, channels, steps, &mut outcome, |alpha| spread(awq(&salience, alpha)))
            } else {
                if let Scales::Awq { salience, .. } = scales {
                    outcome.fallback =
                        Some(format!("no sample rows to search on: the closed form instead of {}", salience.name()));
                }
                spread(closed_form(&pool(&channels.mean_sq), &pool(&channels.weight_sq)))
            };
        let range = |pick: fn(f32, f32) -> f32| scale.iter().copied().fold(1.0, pick);
        (outcome.min, outcome.max) = (range(f32::min), range(f32::max));
        study.outcome.scale = Some(outcome);
        study.scale = Some(scale).filter(|scale| scale.iter().any(|&factor| factor != 1.0));
    }

    /// AWQ's search: the first of the exponents with the least error, in the order that each scale would get.
    fn search(
        &self,
        group: &InputGroup,
        objective: &Objective,
        channels: &Channels,
        steps: u32,
        outcome: &mut ScaleOutcome,
        scale_of: impl Fn(f64) -> Vec<f32>,
    ) -> Vec<f32> {
        let order = match &self.settings.orders {
            Orders::Fixed(order) => *order,
            Orders::Auto => Order::Zigzag,
            Orders::Given(_) => Order::None,
        };
        let steps = steps.max(1);
        let tried = &mut outcome.tried;
        for step in 0..=steps {
            let alpha = f64::from(step) / f64::from(steps);
            let scale = scale_of(alpha);
            let permutation = self.possible(group, order, &channels.scaled(&scale));
            let columns = permutation.as_ref().map(|order| self.on_columns(group, order));
            tried.push(Measured { candidate: alpha, error: objective.error(Some(&scale), columns.as_ref()) });
        }
        let best = tried.iter().min_by(|a, b| a.error.total_cmp(&b.error)).map_or(0.0, |best| best.candidate);
        outcome.alpha = Some(best);
        scale_of(best)
    }

    /// Chooses the order, unless the residual stream chooses it for the group.
    fn choose_order(&self, orders: &Orders, group: &InputGroup, objective: Option<&Objective>, study: &mut Study) {
        study.outcome.unordered = self.why_fixed(group).filter(|_| *orders != Orders::Fixed(Order::None));
        if study.outcome.unordered.is_some() || self.waits_for_stream(group) {
            return;
        }
        let scale = study.scale.clone();
        let channels = scale
            .as_ref()
            .map_or_else(|| study.evidence.channels.clone(), |scale| study.evidence.channels.scaled(scale));
        let chosen = match (orders, objective) {
            (Orders::Given(_), _) => return,
            (Orders::Fixed(order), _) => *order,
            (Orders::Auto, None) => Order::Zigzag,
            (Orders::Auto, Some(objective)) => {
                for order in Order::ALL {
                    let permutation = self.possible(group, order, &channels);
                    if order == Order::None || permutation.is_some() {
                        let columns = permutation.as_ref().map(|order| self.on_columns(group, order));
                        let error = objective.error(scale.as_deref(), columns.as_ref());
                        study.outcome.orders_tried.push(Measured { candidate: order, error });
                    }
                }
                let best = simplest(&study.outcome.orders_tried);
                study.outcome.error = best.map(|best| best.error);
                best.map_or(Order::None, |best| best.candidate)
            }
        };
        study.order = self.possible(group, chosen, &channels);
        if study.order.is_some() {
            study.outcome.order = chosen;
            study.outcome.applied =
                Some(if self.settings.apply == Apply::Fold { Applied::Folded } else { Applied::Runtime });
        }
    }

    /// Why a group keeps its order, if it must.
    fn why_fixed(&self, group: &InputGroup) -> Option<String> {
        let reason = match (&group.producer, self.settings.apply) {
            (_, Apply::Runtime) | (Producer::Values { .. } | Producer::Ffn { .. }, _) => return None,
            (Producer::Unknown { reason }, _) => reason,
            (Producer::Norm(_) | Producer::Stream, _) if group.in_stream => return self.stream.map(str::to_string),
            _ => "it is not known whether this activation's channels are those of the residual stream",
        };
        Some(reason.to_string())
    }

    /// Whether the group's order is that of the residual stream.
    pub(super) fn waits_for_stream(&self, group: &InputGroup) -> bool {
        self.settings.apply == Apply::Fold && group.in_stream && self.stream.is_none()
    }

    /// The permutation that an order gives this group: of its columns, or of the channels that make them if it is folded into value heads.
    fn possible(&self, group: &InputGroup, order: Order, channels: &Channels) -> Option<Permutation> {
        match (&group.producer, self.settings.apply) {
            (Producer::Values { length, .. }, Apply::Fold) => {
                permutation_in_spans(order, &maker_channels(group, channels), *length as usize)
            }
            _ => permutation(order, channels),
        }
    }

    /// What an order of the makers is on the columns.
    fn on_columns(&self, group: &InputGroup, order: &Permutation) -> Permutation {
        if self.settings.apply == Apply::Fold { columns_order(group, order) } else { order.clone() }
    }
}

/// The weight rows of one matrix that take part in the objective.
pub(super) fn sampled_weights(weights: Weights<'_>, tensor: &TensorInfo, matrix: u32) -> Result<Vec<f32>> {
    let (columns, rows) = (tensor.columns() as usize, (tensor.rows() / tensor.matrices()) as usize);
    let mut values = vec![0.0; sample_of(rows).count() * columns];
    for (row, into) in sample_of(rows).zip(values.chunks_exact_mut(columns)) {
        (weights.read)(tensor, u64::from(matrix) * rows as u64 + row as u64, into)?;
    }
    Ok(values)
}

/// One input group on which steps are taken, one after the other.
pub struct Bench<'a> {
    ground: &'a Ground<'a>,
    group: &'a InputGroup,
    objective: Option<&'a Objective>,
    study: &'a mut Study,
}

impl Bench<'_> {
    /// Chooses the scale, and records it.
    pub(super) fn choose_scale(&mut self, scales: Scales) {
        self.ground.choose_scale(scales, self.group, self.objective, self.study);
    }

    /// Chooses the order for the scale that was chosen, and records it.
    pub(super) fn choose_order(&mut self, orders: &Orders) {
        self.ground.choose_order(orders, self.group, self.objective, self.study);
    }
}

/// The first candidate whose error is the least, or within [`NOISE`] of it.
pub(super) fn simplest<T>(tried: &[Measured<T>]) -> Option<&Measured<T>> {
    let least = tried.iter().map(|candidate| candidate.error).fold(f64::INFINITY, f64::min);
    tried.iter().find(|candidate| candidate.error <= least * (1.0 + NOISE))
}

/// The number of makers.
fn makers_of(shared: &[usize]) -> usize {
    shared.iter().max().map_or(0, |last| last + 1)
}

/// The numbers of the channels that make an activation, where several columns have the same maker.
fn maker_channels(group: &InputGroup, channels: &Channels) -> Channels {
    let Some(shared) = group.shared_makers() else { return channels.clone() };
    let pool = |values: &[f64]| pooled(values, &shared, makers_of(&shared));
    Channels {
        abs_max: pool(&channels.abs_max),
        mean_sq: pool(&channels.mean_sq),
        weight_sq: pool(&channels.weight_sq),
    }
}

/// The matrices of a tensor that are measured: its only one (`None`), or the experts with most sample rows, by number.
pub(super) fn experts(tensor: &TensorInfo, rows: &SampleRows) -> Vec<Option<u32>> {
    if tensor.matrices() == 1 {
        return vec![None];
    }
    let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
    rows.matrix
        .iter()
        .filter(|&&expert| u64::from(expert) < tensor.matrices())
        .for_each(|&expert| *seen.entry(expert).or_default() += 1);
    let mut experts: Vec<(u32, usize)> = seen.into_iter().collect();
    experts.sort_by_key(|&(expert, count)| (std::cmp::Reverse(count), expert));
    experts.into_iter().take(EXPERTS).map(|(expert, _)| Some(expert)).collect()
}

/// At most [`SAMPLE_ROWS`] sample rows of a matrix, evenly spread.
pub(super) fn sampled_rows(rows: &SampleRows, expert: Option<u32>) -> Vec<f32> {
    let of: Vec<&[f32]> =
        rows.iter().filter(|(matrix, _)| expert.is_none_or(|expert| *matrix == expert)).map(|(_, row)| row).collect();
    let count = of.len().min(SAMPLE_ROWS);
    (0..count).flat_map(|i| of[i * of.len() / count]).copied().collect()
}

/// Whether the evidence is measured.
pub(super) fn is_measured(study: &Study) -> bool {
    study.evidence.grounds == Grounds::Statistics
}
