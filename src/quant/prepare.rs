//! The one entry of the pipeline: from a model and what is known about it to the changes of every tensor before it is encoded.
//!
//! Nothing is written here, and no weight is changed: the result says what to do while tensors are read.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::evidence::{Estimates, ReadRows, Weights};
use super::fold::{Folding, stream_obstacle};
use super::generic::prove_norms;
use super::outcome::{Applied, GroupOutcome, Measured};
use super::permute::{Channels, Order, permutation};
use super::salience::weigh::Gates;
use super::settings::{Apply, Orders, Scales, Settings};
use super::study::{Ground, Study, is_measured, simplest};
use super::transform::Transform;
use crate::calib::Statistics;
use crate::error::{Error, ModelError, Result};
use crate::gguf::{Source, TensorInfo};
use crate::math::Permutation;
use crate::model::mappings::family;
use crate::model::{Arch, InputGroup, Producer, Shape, groups};
use crate::util::progress::{Progress, Unit};

/// The result of the preparation.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Prepared {
    /// What happens to each tensor; tensors that stay as they are do not occur.
    #[serde(skip)]
    pub transforms: BTreeMap<String, Transform>,
    /// What was chosen for each group with a quantised tensor.
    pub groups: Vec<GroupOutcome>,
    /// What the user should know.
    pub notices: Vec<String>,
}

impl Prepared {
    /// The order that the runtime applies to each tensor's activations.
    pub fn runtime_orders(&self) -> BTreeMap<String, Permutation> {
        let orders = self
            .transforms
            .iter()
            .filter_map(|(name, transform)| Some((name.clone(), transform.runtime_order()?.clone())));
        orders.collect()
    }
}

/// Chooses scales and orders for `source`, whose rows `read` gives (`Source::read_rows`, or the same behind a dequantiser).
///
/// # Errors
/// If the statistics are of another model, weights cannot be read, or the user interrupts.
pub fn prepare(
    source: &Source,
    read: &ReadRows<'_>,
    statistics: Option<&Statistics>,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Prepared> {
    let weights = Weights { source, read };
    let arch = Arch::from_metadata(source.metadata());
    let mut all = groups(shapes(source), &arch);
    let mut notices = Vec::new();
    if let Some(statistics) = statistics {
        check_statistics(source, statistics, settings)?;
    }
    if family(&arch.name).is_none() {
        notices.push(without_table(&mut all, weights, statistics, &arch)?);
    }
    let obstacle = match settings.apply {
        Apply::Fold => stream_obstacle(shapes(source), &arch),
        Apply::Runtime => None,
    };
    let estimates = estimates(&all, weights)?;
    let gates = Gates::new(&all, &arch);
    let ground =
        Ground { weights, statistics, estimates: &estimates, settings, gates: &gates, stream: obstacle.as_deref() };
    let wanted: Vec<&InputGroup> =
        all.iter().filter(|group| group.readers.iter().any(|name| settings.targets.contains(name))).collect();
    progress.begin("choosing scales and orders", wanted.len() as u64, Unit::Items);
    let mut studies = studies(&ground, &wanted, progress)?;
    let stream =
        if settings.apply == Apply::Fold { choose_stream(&ground, &wanted, &mut studies, progress)? } else { None };
    progress.end();
    notices.extend(notes(&studies, &ground, stream.is_some()));
    let transforms = fold(source, settings, &wanted, &studies, stream.as_ref());
    Ok(Prepared { transforms, groups: studies.into_iter().map(|study| study.outcome).collect(), notices })
}

/// The shapes of a model's tensors.
fn shapes(source: &Source) -> impl Iterator<Item = Shape<'_>> {
    source.tensors().iter().map(|tensor: &TensorInfo| Shape { name: &tensor.name, dims: &tensor.dims })
}

/// Refuses statistics that know none of the tensors, or know them with other shapes.
fn check_statistics(source: &Source, statistics: &Statistics, settings: &Settings) -> Result<()> {
    let other = |what: String| ModelError::StatisticsOfAnotherModel { path: source.path().to_path_buf(), what };
    for (name, entry) in &statistics.entries {
        let Some(tensor) = source.tensor(name) else { continue };
        let (columns, matrices) = (tensor.columns(), tensor.matrices());
        if (entry.columns as u64, entry.matrices as u64) != (columns, matrices) {
            let what = format!(
                "`{name}` was measured as {} x {} channels and has {matrices} x {columns}",
                entry.matrices, entry.columns
            );
            return Err(other(what).into());
        }
    }
    if !settings.targets.is_empty() && !settings.targets.iter().any(|name| statistics.entries.contains_key(name)) {
        return Err(other("they know none of the tensors that are to be quantised".into()).into());
    }
    Ok(())
}

/// Does what can be done without a table: norms that the statistics prove. Returns what to tell the user.
fn without_table(
    all: &mut [InputGroup],
    weights: Weights<'_>,
    statistics: Option<&Statistics>,
    arch: &Arch,
) -> Result<String> {
    let proved = statistics.map_or_else(|| Ok(Vec::new()), |statistics| prove_norms(all, weights, statistics))?;
    let total = all.len();
    Ok(format!(
        "the architecture `{}` is in no mapping table: {} of {total} input groups can be scaled, because the statistics prove the norm before them",
        arch.name,
        proved.len()
    ))
}

/// What is thought of the activations behind norms, by reader.
fn estimates(all: &[InputGroup], weights: Weights<'_>) -> Result<Estimates> {
    let mut known = Estimates::new();
    for group in all {
        if let Producer::Norm(spans) = &group.producer {
            let energy = weights.behind_norm(spans)?;
            known.extend(group.readers.iter().map(|reader| (reader.clone(), energy.clone())));
        }
    }
    Ok(known)
}

/// Studies all groups, in parallel.
fn studies(ground: &Ground<'_>, wanted: &[&InputGroup], progress: &dyn Progress) -> Result<Vec<Study>> {
    let one = |group: &&InputGroup| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let study = ground.study(group)?;
        progress.advance(1);
        Ok(study)
    };
    wanted.par_iter().map(one).collect()
}

/// Chooses one order for the residual stream, by the contributions of its channels to all groups that read it.
fn choose_stream(
    ground: &Ground<'_>,
    wanted: &[&InputGroup],
    studies: &mut [Study],
    progress: &dyn Progress,
) -> Result<Option<Permutation>> {
    let members: Vec<usize> = (0..wanted.len()).filter(|&at| ground.waits_for_stream(wanted[at])).collect();
    let Some(channels) = common(&members, wanted, studies) else { return Ok(None) };
    let chosen = match &ground.settings.orders {
        Orders::Fixed(order) => *order,
        Orders::Given(_) => return Ok(None),
        Orders::Auto => {
            let measured = measure_stream(ground, wanted, studies, &members, &channels, progress)?;
            let best = simplest(&measured).map(|best| best.candidate);
            for &at in &members {
                studies[at].outcome.orders_tried.clone_from(&measured);
            }
            best.unwrap_or(Order::Zigzag)
        }
    };
    let order = permutation(chosen, &channels);
    if order.is_some() {
        for at in members {
            studies[at].outcome.order = chosen;
            studies[at].outcome.applied = Some(Applied::Folded);
        }
    }
    Ok(order)
}

/// One set of numbers for the channels of the stream: each group's contributions, relative to their mean, added up.
fn common(members: &[usize], wanted: &[&InputGroup], studies: &[Study]) -> Option<Channels> {
    let columns = wanted[*members.first()?].columns as usize;
    let mut sums = Channels { abs_max: vec![0.0; columns], mean_sq: vec![0.0; columns], weight_sq: vec![0.0; columns] };
    let mut add = |studied: &Channels| {
        let relative = |values: &[f64], into: &mut [f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            if mean > 0.0 {
                values.iter().zip(into).for_each(|(value, sum)| *sum += value / mean);
            }
        };
        relative(&studied.abs_max, &mut sums.abs_max);
        relative(&studied.contribution(), &mut sums.mean_sq);
    };
    for &at in members {
        let study = &studies[at];
        match &study.scale {
            Some(scale) => add(&study.evidence.channels.scaled(scale)),
            None => add(&study.evidence.channels),
        }
    }
    sums.weight_sq.clone_from(&sums.mean_sq);
    Some(sums)
}

/// The mean error of the stream's groups under each order; nothing without sample rows.
fn measure_stream(
    ground: &Ground<'_>,
    wanted: &[&InputGroup],
    studies: &[Study],
    members: &[usize],
    channels: &Channels,
    progress: &dyn Progress,
) -> Result<Vec<Measured<Order>>> {
    let candidates: Vec<(Order, Option<Permutation>)> = Order::ALL
        .into_iter()
        .map(|order| (order, permutation(order, channels)))
        .filter(|(order, permutation)| *order == Order::None || permutation.is_some())
        .collect();
    let one = |&at: &usize| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let study = &studies[at];
        let objective = ground.objective(wanted[at], &study.outcome.tensors)?;
        let errors = |objective: super::objective::Objective| {
            let error =
                |(_, order): &(Order, Option<Permutation>)| objective.error(study.scale.as_deref(), order.as_ref());
            candidates.iter().map(error).collect::<Vec<f64>>()
        };
        Ok(objective.map(errors))
    };
    let errors: Vec<Vec<f64>> =
        members.par_iter().map(one).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    if errors.is_empty() {
        return Ok(Vec::new());
    }
    let mean = |candidate: usize| errors.iter().map(|group| group[candidate]).sum::<f64>() / errors.len() as f64;
    Ok(candidates.iter().enumerate().map(|(i, (order, _))| Measured { candidate: *order, error: mean(i) }).collect())
}

/// Puts all choices together.
fn fold(
    source: &Source,
    settings: &Settings,
    wanted: &[&InputGroup],
    studies: &[Study],
    stream: Option<&Permutation>,
) -> BTreeMap<String, Transform> {
    let mut folding = Folding::new(shapes(source));
    for (group, study) in wanted.iter().zip(studies) {
        if let Some(scale) = &study.scale {
            folding.scale(group, scale);
        }
        match (&study.order, settings.apply) {
            (Some(order), Apply::Fold) => folding.fold_order(group, order),
            (Some(order), Apply::Runtime) => {
                for name in &study.outcome.tensors {
                    folding.runtime_order(name, order.clone());
                }
            }
            (None, _) => {}
        }
    }
    if let Some(order) = stream {
        folding.fold_stream(order);
    }
    if let Orders::Given(given) = &settings.orders {
        for (name, order) in
            given.iter().filter(|(name, order)| settings.targets.contains(*name) && !order.is_identity())
        {
            folding.runtime_order(name, order.clone());
        }
    }
    folding.finish()
}

/// What the user should know about the choices as a whole.
fn notes(studies: &[Study], ground: &Ground<'_>, stream: bool) -> Vec<String> {
    let settings = ground.settings;
    let mut notes = Vec::new();
    let unscaled = studies.iter().filter(|study| study.outcome.unscaled.is_some()).count();
    if unscaled > 0 {
        notes.push(format!(
            "{unscaled} of {} input groups stay unscaled: what makes them cannot be scaled exactly",
            studies.len()
        ));
    }
    let estimated = studies.iter().filter(|study| !is_measured(study)).count();
    if ground.statistics.is_some() && estimated > 0 {
        notes.push(format!(
            "{estimated} of {} input groups have no statistics: estimated from the weights instead",
            studies.len()
        ));
    }
    let searched =
        studies.iter().filter(|study| study.outcome.scale.as_ref().is_some_and(|scale| scale.alpha.is_some())).count();
    let scaled = studies.iter().filter(|study| study.outcome.scale.is_some()).count();
    if matches!(settings.scales, Scales::Awq { .. }) && searched < scaled {
        notes.push(format!(
            "{} input groups have no sample rows to search on: their scale is the closed form",
            scaled - searched
        ));
    }
    notes.extend(saliences(studies));
    let unmeasured =
        studies.iter().filter(|study| study.outcome.applied.is_some() && study.outcome.orders_tried.is_empty()).count();
    if settings.orders == Orders::Auto && unmeasured > 0 {
        notes.push(format!("{unmeasured} input groups have no sample rows to choose an order by: zigzag"));
    }
    if let (Some(obstacle), true) = (ground.stream, settings.orders != Orders::Fixed(Order::None)) {
        notes.push(format!("the residual stream keeps its order: {obstacle}"));
    }
    if stream {
        notes.push("the residual stream has another order: adapters, control vectors and vision encoders of the original do not fit".into());
    }
    notes
}

/// Where AWQ followed something else than it was asked to, or part of it: each reason once. The names of tensors would make every reason another.
fn saliences(studies: &[Study]) -> Vec<String> {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for scale in
        studies.iter().filter_map(|study| study.outcome.scale.as_ref()).filter(|scale| scale.salience.is_some())
    {
        let Some(reason) = &scale.fallback else { continue };
        let reason =
            if reason.contains('`') { "some importances could not be measured (see the record)" } else { reason };
        *reasons.entry(reason).or_default() += 1;
    }
    reasons.into_iter().map(|(reason, count)| format!("{count} input groups: {reason}")).collect()
}
