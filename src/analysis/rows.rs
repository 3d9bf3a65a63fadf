//! The plain facts of rows: names, shapes, types, what was chosen and why.

use super::analyze::Options;
use super::record::{GroupRow, Setup, TensorRow};
use super::subject::{Ground, Group, kind_of};
use crate::convert::{Reason, Recipe};
use crate::gguf::TensorInfo;
use crate::model::TensorName;
use crate::quant::{Applied, Grounds, Orders, Scales};

/// What was assumed.
pub(super) fn setup(ground: &Ground<'_>, options: &Options) -> Setup {
    let (statistics, settings) = (ground.job.statistics, ground.job.settings);
    let recipe = recipe(ground);
    let from_file = |own: String| if ground.job.converted.is_some() { "file".to_string() } else { own };
    let scales = match settings.scales {
        Scales::None => "none",
        Scales::ClosedForm => "closed-form",
        Scales::Awq { .. } => "awq",
    };
    let order = match &settings.orders {
        Orders::Fixed(order) => order.name(),
        Orders::Auto => "auto",
        Orders::Given(_) => "given",
    };
    Setup {
        statistics: statistics.and(options.statistics.clone()),
        datasets: statistics.map(|statistics| statistics.datasets.clone()).unwrap_or_default(),
        chunks: statistics.map_or(0, |statistics| statistics.chunk_count),
        chunk_tokens: statistics.map_or(0, |statistics| statistics.chunk_size),
        rows_held_out: statistics.is_some_and(|statistics| statistics.rows_held_out),
        complete: statistics.is_some_and(|statistics| statistics.entries.values().all(|entry| entry.complete)),
        activations: settings.activations.name().to_string(),
        scales: recipe.scales.unwrap_or_else(|| from_file(scales.to_string())),
        order: recipe.order.unwrap_or_else(|| from_file(order.to_string())),
        encoder: recipe.encoder.unwrap_or_else(|| from_file(settings.codec.encoder().to_string())),
        output_rows: options.output_rows as u32,
        sample_rows: options.sample_rows as u32,
        sample_experts: options.sample_experts as u32,
        tau: options.tau as f32,
        min_expert_tokens: options.threshold.tokens,
        min_expert_share: options.threshold.share.map(|share| share as f32),
    }
}

/// How the converted file says it was made; nothing without one.
fn recipe(ground: &Ground<'_>) -> Recipe {
    ground.job.converted.map(Recipe::of).unwrap_or_default()
}

/// What was chosen for a group.
pub(super) fn group_row(ground: &Ground<'_>, group: &Group) -> GroupRow {
    let reader = group.tensors.iter().find(|name| ground.tcq4.contains(*name));
    let transform = reader.map(|name| ground.transform(name));
    let recorded = transform.and_then(|transform| {
        let how = if transform.runtime_perm { Applied::Runtime } else { Applied::Folded };
        transform.columns.as_ref().map(|_| how)
    });
    let outcome = group.outcome.as_ref();
    let order = match (outcome, recorded) {
        // A common order of the residual stream is chosen for all its groups at once; only the transform knows it.
        (Some(outcome), _) => outcome.order.name().to_string(),
        (None, Some(_)) => recipe(ground).order.unwrap_or_else(|| "file".into()),
        (None, None) => "none".into(),
    };
    let range = |scale: &Vec<f32>| {
        let of = |pick: fn(f32, f32) -> f32| scale.iter().copied().reduce(pick).unwrap_or(1.0);
        [of(f32::min), of(f32::max)]
    };
    let grounds = |grounds| match grounds {
        Grounds::Statistics => "statistics",
        Grounds::Structure => "structure",
    };
    GroupRow {
        key: group.input.key.clone(),
        layer: group.layer,
        kind: kind_of(&group.input.key),
        tensors: group.tensors.clone(),
        columns: group.input.columns as u32,
        rows_seen: group.pooled.as_ref().map_or(0, |pooled| pooled.rows_seen),
        grounds: outcome.map_or_else(String::new, |outcome| grounds(outcome.grounds).to_string()),
        scale_range: group.scale.as_ref().map(range),
        unscaled: outcome.and_then(|outcome| outcome.unscaled.clone()),
        order,
        applied: recorded.map(|how| if how == Applied::Runtime { "runtime" } else { "folded" }.to_string()),
        unordered: outcome.and_then(|outcome| outcome.unordered.clone()),
        ..GroupRow::default()
    }
}

/// What becomes of a tensor.
pub(super) fn tensor_row(ground: &Ground<'_>, tensor: &TensorInfo) -> TensorRow {
    let planned = ground.planned(&tensor.name);
    let written = ground.job.converted.and_then(|file| Some((file, file.tensor(&tensor.name)?)));
    let (to, bytes) = match (&written, planned) {
        (Some((file, found)), _) => (file.type_name(found), found.bytes),
        (None, Some(planned)) => (planned.to.to_string(), planned.bytes),
        (None, None) => (tensor.ty.to_string(), tensor.bytes),
    };
    let as_planned = planned.filter(|planned| written.is_none() || planned.to.to_string() == to);
    TensorRow {
        name: tensor.name.clone(),
        layer: TensorName::parse(&tensor.name).block,
        kind: kind_of(&tensor.name),
        group: ground.group_of(&tensor.name).map(|group| group.input.key.clone()),
        rows: tensor.rows() / tensor.matrices().max(1),
        columns: tensor.columns(),
        matrices: tensor.matrices(),
        weights: tensor.elements(),
        from: ground.job.source.type_name(tensor),
        bits: (bytes as f64 * 8.0 / tensor.elements().max(1) as f64) as f32,
        reason: as_planned.map_or_else(|| "as in the file".to_string(), |planned| planned.reason.to_string()),
        substituted: as_planned.is_some_and(|planned| matches!(planned.reason, Reason::Substituted { .. })),
        to,
        ..TensorRow::default()
    }
}
