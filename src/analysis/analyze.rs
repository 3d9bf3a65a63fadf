//! The whole analysis: every section for every layer, curves for the chosen ones.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::alpha;
use super::choice::{Choice, Chosen};
use super::describe::add_histogram;
use super::experts::{Threshold, coverage};
use super::importance::{curves, importance};
use super::layers::Found;
use super::preactivations::GateTensor;
use super::record::{Analysis, CHANNELS, GroupDetail, GroupRow, ModelFacts, Section, TensorRow, VERSION};
use super::rows::{group_row, setup, tensor_row};
use super::sample::Extent;
use super::similarity::{Energy, cosine, matrices};
use super::steps::{Measured, block_maxima, steps};
use super::subject::{Ground, Group, Job};
use super::unmeasured::Gaps;
use crate::error::{Error, Result};
use crate::gguf::TensorInfo;
use crate::tcq::CHUNK;
use crate::util::progress::{Progress, Unit};

/// How much is looked at, and what counts as bad.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Which groups get curves.
    pub choice: Choice,
    /// Output rows of each matrix that errors look at, at most; whole stripes of 8.
    pub output_rows: usize,
    /// Sample rows of each matrix, at most.
    pub sample_rows: usize,
    /// Experts of each stack, at most.
    pub sample_experts: usize,
    /// Steps of AWQ's exponent; one more points.
    pub alpha_steps: u32,
    /// τ: below it a pre-activation counts as dead.
    pub tau: f64,
    /// What an expert must have seen.
    pub threshold: Threshold,
    /// Where the statistics come from, for the record.
    pub statistics: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            choice: Choice::Default,
            output_rows: 64,
            sample_rows: 128,
            sample_experts: 4,
            alpha_steps: 20,
            tau: -3.0,
            threshold: Threshold::default(),
            statistics: None,
        }
    }
}

/// Analyses a model.
///
/// # Errors
/// Statistics or a converted file of another model; weights that cannot be read or encoded; a choice that names nothing; [`Error::Interrupted`].
pub fn analyze(job: Job<'_>, options: &Options, progress: &dyn Progress) -> Result<Analysis> {
    options.choice.check(job.source)?;
    let extent =
        Extent { output_rows: options.output_rows, sample_rows: options.sample_rows, experts: options.sample_experts };
    let ground = Ground::new(job, extent, progress)?;
    let mut gaps = Gaps::default();
    let mut analysis = Analysis {
        version: VERSION,
        model: facts(&ground),
        setup: setup(&ground, options),
        notices: ground.notices.clone(),
        ..Analysis::default()
    };
    analysis.groups = groups(&ground, &mut gaps, progress)?;
    add_similarity(&ground, &mut analysis, &mut gaps);
    add_tensors(&ground, &mut analysis, &mut gaps, progress)?;
    add_gates(&ground, options, &mut analysis, &mut gaps, progress)?;
    match job.statistics {
        Some(statistics) => analysis.experts = coverage(job.source, statistics, options.threshold),
        None if ground.arch.experts > 0 => gaps.whole(Section::Experts, "there are no statistics"),
        None => {}
    }
    let chosen = Chosen::new(&options.choice, &ground, &analysis);
    add_details(&ground, options, &chosen, &mut analysis, &mut gaps, progress)?;
    analysis.unmeasured = gaps.into_list();
    Ok(analysis)
}

fn facts(ground: &Ground<'_>) -> ModelFacts {
    let source = ground.job.source;
    let text = |key: &str| source.metadata().get_str(key).map(std::borrow::Cow::into_owned).unwrap_or_default();
    let bytes = |file: &crate::gguf::Source| file.tensors().iter().map(|tensor| tensor.bytes).sum();
    ModelFacts {
        path: source.first_shard().display().to_string(),
        name: text("general.name"),
        architecture: ground.arch.name.clone(),
        layers: ground.arch.blocks as u32,
        experts: ground.arch.experts as u32,
        weights: source.tensors().iter().map(TensorInfo::elements).sum(),
        source_bytes: bytes(source),
        bytes: ground.job.converted.map_or_else(|| ground.job.plan.bytes(), bytes),
        converted: ground.job.converted.map(|file| file.first_shard().display().to_string()),
    }
}

/// Runs `work` on every item, on all threads; results in the order of the items.
fn each<I: Sync, T: Send>(
    items: &[I],
    label: &str,
    progress: &dyn Progress,
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    progress.begin(label, items.len() as u64, Unit::Items);
    let one = |item: &I| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let done = work(item)?;
        progress.advance(1);
        Ok(done)
    };
    let done = items.par_iter().map(one).collect();
    progress.end();
    done
}

/// Why the steps of a group cannot be measured, if they cannot.
fn why_no_steps(ground: &Ground<'_>, group: &Group, rows: &[f32]) -> Option<String> {
    if ground.job.statistics.is_none() {
        Some("there are no statistics".into())
    } else if rows.is_empty() {
        Some("the statistics hold no sample rows of it".into())
    } else if !group.input.columns.is_multiple_of(CHUNK as u64) {
        Some(format!("{} channels are no multiple of {CHUNK}", group.input.columns))
    } else {
        None
    }
}

/// The steps of a group, or why there are none.
fn group_steps(ground: &Ground<'_>, group: &Group) -> std::result::Result<(Vec<Measured>, u32), String> {
    let rows = ground.rows(group);
    let columns = group.input.columns as usize;
    if let Some(reason) = why_no_steps(ground, group, &rows) {
        return Err(reason);
    }
    let count = (rows.len() / columns) as u32;
    Ok((steps(&rows, columns, ground.preparation(group), ground.job.settings.codec), count))
}

fn groups(ground: &Ground<'_>, gaps: &mut Gaps, progress: &dyn Progress) -> Result<Vec<GroupRow>> {
    let found = each(&ground.groups, "activations", progress, |group| Ok(group_steps(ground, group)))?;
    let mut rows = Vec::new();
    for (group, steps) in ground.groups.iter().zip(found) {
        let mut row = group_row(ground, group);
        match &group.pooled {
            Some(pooled) => row.importance = Some(importance(pooled)),
            None if ground.job.statistics.is_none() => gaps.whole(Section::Importance, "there are no statistics"),
            None => gaps.add(Section::Importance, "the statistics saw no rows of it", &group.input.key),
        }
        match steps {
            Ok((steps, count)) => {
                row.sample_rows = count;
                row.steps = steps.into_iter().map(|step| step.row).collect();
            }
            Err(reason) if ground.job.statistics.is_none() => gaps.whole(Section::Steps, &reason),
            Err(reason) => gaps.add(Section::Steps, &reason, &group.input.key),
        }
        rows.push(row);
    }
    Ok(rows)
}

fn add_similarity(ground: &Ground<'_>, analysis: &mut Analysis, gaps: &mut Gaps) {
    let mut kinds: BTreeMap<String, Vec<Energy<'_>>> = BTreeMap::new();
    for (group, row) in ground.groups.iter().zip(&mut analysis.groups) {
        let (Some(layer), Some(pooled)) = (group.layer, &group.pooled) else { continue };
        let layers = kinds.entry(row.kind.clone()).or_default();
        let before = layers.last().and_then(|(_, energy)| cosine(energy, &pooled.mean_sq));
        row.similarity_previous = before.map(|cosine| cosine as f32);
        layers.push((layer, &pooled.mean_sq));
    }
    analysis.similarity = matrices(&kinds);
    if analysis.similarity.is_empty() {
        let reason = if ground.job.statistics.is_some() {
            "fewer than two layers of one kind were measured"
        } else {
            "there are no statistics"
        };
        gaps.whole(Section::Similarity, reason);
    }
}

fn add_tensors(ground: &Ground<'_>, analysis: &mut Analysis, gaps: &mut Gaps, progress: &dyn Progress) -> Result<()> {
    let tensors: Vec<&TensorInfo> =
        ground.job.source.tensors().iter().filter(|tensor| tensor.dims.len() > 1 && tensor.rows() > 1).collect();
    let measure = |tensor: &&TensorInfo| -> Result<Option<Found>> {
        if ground.tcq4.contains(&tensor.name) { ground.measure(tensor).map(Some) } else { Ok(None) }
    };
    let found = each(&tensors, "weights and outputs", progress, measure)?;
    for (tensor, found) in tensors.into_iter().zip(found) {
        let mut row = tensor_row(ground, tensor);
        match found {
            Some(found) => {
                add_histogram(&mut analysis.rounding_histogram, &found.histogram);
                note_gaps(ground, &found, &tensor.name, gaps);
                fill(&mut row, found);
            }
            None if row.substituted => {
                gaps.add(Section::Rounding, &format!("it is {}, not TCQ4", row.to), &tensor.name);
                gaps.add(Section::Output, &format!("it is {}, not TCQ4", row.to), &tensor.name);
            }
            None => {}
        }
        analysis.tensors.push(row);
    }
    Ok(())
}

fn fill(row: &mut TensorRow, found: Found) {
    row.measured_on = Some(found.measured_on);
    row.error_rel = Some(found.error_rel as f32);
    row.output = found.output;
    row.rounding = Some(found.rounding);
    row.split = found.split;
}

/// Says what a measured tensor lacks.
fn note_gaps(ground: &Ground<'_>, found: &Found, name: &str, gaps: &mut Gaps) {
    let none = ground.job.statistics.is_none();
    let mut missing = |section, what: &str| {
        if none { gaps.whole(section, "there are no statistics") } else { gaps.add(section, what, name) }
    };
    if found.output.is_none() {
        let what = if found.measured_on.sample_rows == 0 {
            "the statistics hold no sample rows of it"
        } else {
            "its outputs are zero on every sample row"
        };
        missing(Section::Output, what);
    }
    if found.split.is_none() {
        missing(Section::Split, "the statistics saw no rows of it");
    }
}

fn add_gates(
    ground: &Ground<'_>,
    options: &Options,
    analysis: &mut Analysis,
    gaps: &mut Gaps,
    progress: &dyn Progress,
) -> Result<()> {
    let gates = ground.gates();
    if gates.is_empty() {
        gaps.whole(
            Section::Gates,
            &format!("no tensor of `{}` is known to enter an activation function", ground.arch.name),
        );
        return Ok(());
    }
    if ground.job.statistics.is_none() {
        gaps.whole(Section::Gates, "there are no statistics");
        return Ok(());
    }
    let rows = each(&gates, "activation functions", progress, |gate| ground.gate_row(gate, options.tau))?;
    for (gate, row) in gates.iter().zip(rows) {
        match row {
            Some(row) => analysis.gates.push(row),
            None => gaps.add(Section::Gates, "the statistics hold too few sample rows of it", &gate.tensor.name),
        }
    }
    Ok(())
}

fn add_details(
    ground: &Ground<'_>,
    options: &Options,
    chosen: &Chosen,
    analysis: &mut Analysis,
    gaps: &mut Gaps,
    progress: &dyn Progress,
) -> Result<()> {
    let groups: Vec<&Group> = ground.groups.iter().filter(|group| chosen.groups.contains(&group.input.key)).collect();
    analysis.group_details = each(&groups, "curves of groups", progress, |group| group_detail(ground, group))?;
    let tensors: Vec<&TensorInfo> =
        ground.job.source.tensors().iter().filter(|t| chosen.tensors.contains(&t.name)).collect();
    let measured: Vec<&TensorInfo> = tensors.iter().copied().filter(|t| ground.tcq4.contains(&t.name)).collect();
    analysis.tensor_details = each(&measured, "curves of tensors", progress, |tensor| ground.tensor_detail(tensor))?;
    let gates: Vec<GateTensor<'_>> =
        ground.gates().into_iter().filter(|gate| chosen.tensors.contains(&gate.tensor.name)).collect();
    let most = if options.choice == Choice::Default { CHANNELS } else { usize::MAX };
    let detail = |gate: &GateTensor<'_>| ground.gate_detail(gate, options.tau, most);
    analysis.gate_details = each(&gates, "curves of gates", progress, detail)?.into_iter().flatten().collect();
    add_alpha(ground, options, &groups, analysis, gaps, progress)
}

fn group_detail(ground: &Ground<'_>, group: &Group) -> Result<GroupDetail> {
    let mut detail = GroupDetail { key: group.input.key.clone(), ..GroupDetail::default() };
    if let Some(pooled) = &group.pooled {
        let preparation = ground.preparation(group);
        let (channels, sorted) = curves(pooled, &ground.weight_sq(group)?, preparation.scale, preparation.order);
        (detail.channels, detail.sorted) = (Some(channels), Some(sorted));
    }
    if let Ok((steps, _)) = group_steps(ground, group) {
        detail.block_maxima = block_maxima(&steps);
    }
    Ok(detail)
}

fn add_alpha(
    ground: &Ground<'_>,
    options: &Options,
    groups: &[&Group],
    analysis: &mut Analysis,
    gaps: &mut Gaps,
    progress: &dyn Progress,
) -> Result<()> {
    let has_rows = |group: &&&Group| why_no_steps(ground, group, &ground.rows(group)).is_none();
    let able: Vec<&&Group> = groups.iter().filter(has_rows).collect();
    let tensors: BTreeSet<String> =
        able.iter().flat_map(|group| &group.tensors).filter(|name| ground.tcq4.contains(*name)).cloned().collect();
    progress.begin("AWQ exponents", groups.len() as u64, Unit::Items);
    let found = alpha::curves(&ground.job, tensors, options.alpha_steps, progress)?;
    progress.end();
    if ground.job.statistics.is_none() {
        gaps.whole(Section::Alpha, "there are no statistics");
        return Ok(());
    }
    for (group, detail) in groups.iter().zip(&mut analysis.group_details) {
        let row = analysis.groups.iter_mut().find(|row| row.key == group.input.key);
        match (found.get(&group.input.key), row) {
            (Some(Ok(curve)), Some(row)) => {
                row.alpha = Some(curve.row.clone());
                detail.alpha_curve.clone_from(&curve.points);
            }
            (Some(Err(reason)), _) => gaps.add(Section::Alpha, reason, &group.input.key),
            _ => gaps.add(Section::Alpha, "there is nothing to measure on", &group.input.key),
        }
    }
    Ok(())
}
