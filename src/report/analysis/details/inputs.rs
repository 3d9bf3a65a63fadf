//! The panel of an input and of the tensors that read it.

use super::super::common::{chart, figure, pairs, panel_id, series};
use super::super::steps::words;
use super::super::weights::density;
use super::tensors::tensor_figures;
use super::{cloud, cumulative, line};
use crate::analysis::Analysis;
use crate::analysis::record::{
    AlphaPoint, BlockMaxima, ChannelCurves, GroupDetail, GroupRow, SortedCurves, Step, TensorDetail,
};
use crate::report::page::Panel;
use crate::report::plot::{Axis, Figure, Series, Shape, short};

/// Columns of a block.
const BLOCK: usize = 256;

/// The panel of an input with the largest output error of its tensors.
pub(super) fn panel(analysis: &Analysis, detail: &GroupDetail) -> Option<(f32, Panel)> {
    let group = analysis.groups.iter().find(|group| group.key == detail.key)?;
    let key = &detail.key;
    let mut figures = Vec::new();
    if let Some(channels) = &detail.channels {
        figures.extend([Some(channel_curve(key, channels)), scale_curve(key, channels), block_energy(key, channels)]);
    }
    figures.push(detail.sorted.as_ref().map(|sorted| sorted_figure(key, sorted)));
    if !detail.block_maxima.is_empty() {
        figures.extend([
            Some(maxima_histogram(key, &detail.block_maxima)),
            Some(maxima_course(key, 256, &detail.block_maxima)),
            Some(maxima_course(key, 32, &detail.block_maxima)),
        ]);
    }
    figures.push(alpha_curve(key, detail));
    let tensors: Vec<&TensorDetail> =
        analysis.tensor_details.iter().filter(|tensor| group.tensors.contains(&tensor.name)).collect();
    figures.extend(tensors.iter().flat_map(|tensor| tensor_figures(tensor)));
    let worst = analysis.tensors.iter().filter(|tensor| group.tensors.contains(&tensor.name));
    let worst = worst.filter_map(|tensor| tensor.output.map(|output| output.assumed)).fold(0.0, f32::max);
    let panel = Panel {
        id: panel_id(key),
        layer: group.layer.map(|layer| layer.to_string()).unwrap_or_default(),
        name: group.kind.clone(),
        words: group_words(group, worst),
        figures: figures.into_iter().flatten().collect(),
        tables: Vec::new(),
    };
    panel.figures.iter().any(|figure| !figure.is_empty()).then_some((worst, panel))
}

fn group_words(group: &GroupRow, worst: f32) -> String {
    let read = format!("{} channels, read by {}.", group.columns, group.tensors.join(", "));
    let error = if worst > 0.0 { format!(" Largest output error {}.", short(f64::from(worst))) } else { String::new() };
    let scale = match (group.scale_range, &group.unscaled) {
        (Some([low, high]), _) => format!(" Scales from {} to {}.", short(low.into()), short(high.into())),
        (None, Some(why)) => format!(" Unscaled: {why}."),
        (None, None) => " Unscaled.".to_owned(),
    };
    let applied = group.applied.as_ref().map(|applied| format!(" ({applied})")).unwrap_or_default();
    format!("{read}{error}{scale} Order: {}{applied}.", group.order)
}

fn root(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value.max(0.0).sqrt()).collect()
}

/// The three sizes of channels over `x`, in one unit.
fn sizes(x: &[f32], mean_abs: &[f32], mean_sq: &[f32], abs_max: &[f32]) -> Vec<Series> {
    let all = [("max|x|", abs_max.to_vec()), ("√E[x²]", root(mean_sq)), ("E|x|", mean_abs.to_vec())];
    let all = all.into_iter().filter(|(_, values)| !values.is_empty());
    all.map(|(name, values)| series(name, line(&pairs(x, &values)))).collect()
}

/// What a curve at the bottom edge means, where there is one.
fn zeros(abs_max: &[f32]) -> &'static str {
    if abs_max.contains(&0.0) { " At the bottom edge are channels that were 0 for every token." } else { "" }
}

fn channel_curve(key: &str, c: &ChannelCurves) -> Figure {
    let channel: Vec<f32> = c.channel.iter().map(|channel| *channel as f32).collect();
    let parts = sizes(&channel, &c.mean_abs, &c.mean_sq, &c.abs_max);
    let many = if c.bucket > 1 {
        format!(" Each point stands for {} neighbours, the one with the largest E[x²].", c.bucket)
    } else {
        String::new()
    };
    let plot = chart(Axis::whole("Channel"), Axis::log("activation"), parts);
    figure(
        &format!("channels.{key}"),
        "Size of the channels",
        &format!("In the model's own order.{many}{}", zeros(&c.abs_max)),
        plot,
    )
}

fn sorted_figure(key: &str, s: &SortedCurves) -> Figure {
    let rank: Vec<f32> = s.rank.iter().map(|rank| *rank as f32).collect();
    let parts = sizes(&rank, &s.mean_abs, &s.mean_sq, &s.abs_max);
    let plot = chart(Axis::whole("Rank"), Axis::log("activation"), parts);
    figure(
        &format!("sorted.{key}"),
        "Size of the channels, sorted",
        &format!(
            "Each quantity by itself, largest first: a steep start means few channels dominate.{}",
            zeros(&s.abs_max)
        ),
        plot,
    )
}

fn scale_curve(key: &str, c: &ChannelCurves) -> Option<Figure> {
    if c.scale.is_empty() {
        return None;
    }
    let plot =
        chart(Axis::log("√E[x²]"), Axis::log("channel scale"), vec![series("", cloud(&root(&c.mean_sq), &c.scale))]);
    Some(figure(
        &format!("scales.{key}"),
        "Channel scale over size",
        "Falling: large channels are made smaller before rounding, their weights larger.",
        plot,
    ))
}

/// The energy of every block of 256 channels before and after ordering; only where every channel is known.
fn block_energy(key: &str, c: &ChannelCurves) -> Option<Figure> {
    if c.place.is_empty() || c.bucket != 1 || c.place.len() != c.mean_sq.len() || c.mean_sq.len() < 2 * BLOCK {
        return None;
    }
    let mut energy = vec![[0f64; 2]; c.mean_sq.len().div_ceil(BLOCK)];
    for (channel, (square, place)) in c.mean_sq.iter().zip(&c.place).enumerate() {
        let scale = c.scale.get(channel).map_or(1.0, |scale| f64::from(*scale));
        let value = f64::from(*square) * scale * scale;
        energy[channel / BLOCK][0] += value;
        energy.get_mut(*place as usize / BLOCK)?[1] += value;
    }
    let total: f64 = energy.iter().map(|pair| pair[0]).sum();
    let bars = |part: usize| Shape::Bars(energy.iter().map(|pair| pair[part] / total).collect());
    let names = (0..energy.len()).map(|block| block.to_string()).collect();
    let parts = vec![series("own order", bars(0)), series("ordered", bars(1))];
    let plot =
        chart(Axis::named("Block of 256 channels", names), Axis::linear("share of the energy").including(0.0), parts);
    Some(figure(
        &format!("blocks.{key}"),
        "Energy of the blocks",
        "After scaling. Even bars let every block use its steps well.",
        plot,
    ))
}

fn maxima_histogram(key: &str, maxima: &[BlockMaxima]) -> Figure {
    let wanted = [Step::Plain, Step::RotatedPlain, Step::Rotated];
    let chosen = wanted.into_iter().filter_map(|step| maxima.iter().find(|row| row.step == step));
    let parts = chosen.map(|row| series(words(row.step), density(&row.of_256))).collect();
    let plot = chart(Axis::linear("max|x| of 256, in rms"), Axis::linear("density").including(0.0), parts);
    figure(&format!("maxima.{key}"), "Block maxima", "The further left and the narrower, the better INT4 fits.", plot)
}

fn maxima_course(key: &str, block: u32, maxima: &[BlockMaxima]) -> Figure {
    let of = |row: &BlockMaxima| cumulative(if block == 256 { &row.of_256 } else { &row.of_32 });
    let parts = maxima.iter().map(|row| series(words(row.step), line(&of(row)))).collect();
    let plot =
        chart(Axis::linear(&format!("max|x| of {block}, in rms")), Axis::linear("share below").including(0.0), parts);
    let title = format!("Block maxima of {block} after each step");
    figure(&format!("maxima_{block}.{key}"), &title, "Cumulative: a curve further left has smaller maxima.", plot)
}

fn alpha_curve(key: &str, detail: &GroupDetail) -> Option<Figure> {
    let of = |value: fn(&AlphaPoint) -> f32| {
        let points = detail.alpha_curve.iter().map(|point| (f64::from(point.alpha), f64::from(value(point))));
        line(&points.collect::<Vec<_>>())
    };
    let parts = vec![series("all rounded", of(|p| p.error)), series("weights only", of(|p| p.error_weights_only))];
    let plot = chart(Axis::linear("α"), Axis::log("relative output error"), parts);
    (!detail.alpha_curve.is_empty()).then(|| {
        figure(
            &format!("alpha.{key}"),
            "Output error over AWQ's exponent",
            "The lowest point is the best α; α = 0 is no scale.",
            plot,
        )
    })
}
