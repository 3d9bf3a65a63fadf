//! Section with panels: everything about one input with its tensors, or about one gate.

use std::collections::BTreeSet;

use super::common::{chart, figure, pairs, panel_id, series};
use super::gates::top_channels;
use super::steps::words;
use super::weights::density;
use crate::analysis::Analysis;
use crate::analysis::record::{
    BlockMaxima, ChannelCurves, GateDetail, GroupDetail, GroupRow, Histogram, SortedCurves, Step, TensorDetail,
};
use crate::report::page::{Block, Choice, Panel, Section};
use crate::report::plot::{Axis, Figure, Series, Shape, short, thin};

/// Points of a curve in a panel: two for each CSS pixel of a chart's width would not be seen.
const CURVE: usize = 256;
/// Points of a cloud.
const CLOUD: usize = 240;
/// Points of a cloud that are kept for being the lowest, and as many for being the highest.
const EXTREMES: usize = 8;
/// Channels in a panel's table.
const TOP: usize = 10;
/// Columns of a block.
const BLOCK: usize = 256;

/// Section: panels of chosen inputs and gates.
pub(super) fn section(analysis: &Analysis) -> Section {
    let groups = analysis.group_details.iter().filter_map(|detail| group_panel(analysis, detail));
    let mut groups: Vec<(f32, Panel)> = groups.collect();
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    let gates = analysis.gate_details.iter().map(|detail| gate_panel(analysis, detail));
    let panels = alternate(groups.into_iter().map(|(_, panel)| panel).collect(), gates.collect());
    Section {
        id: "details".into(),
        title: "Inputs and tensors in detail".into(),
        words: vec!["Everything about one input and the tensors that read it, or about one gate. Choose a layer and a name, or come here from the tables above. The panel shown first has the largest output error. Curves of many channels are thinned; every stretch keeps its lowest and highest point.".into()],
        blocks: vec![Block::Choice(Choice { id: "panels".into(), panels })],
        ..Section::default()
    }
}

/// Takes from both lists in turn, so that neither is lost where there is room for few.
fn alternate(first: Vec<Panel>, second: Vec<Panel>) -> Vec<Panel> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        match (first.next(), second.next()) {
            (None, None) => return all,
            (a, b) => all.extend(a.into_iter().chain(b)),
        }
    }
}

/// The panel of an input with the largest output error of its tensors.
fn group_panel(analysis: &Analysis, detail: &GroupDetail) -> Option<(f32, Panel)> {
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

fn line(points: &[(f64, f64)]) -> Shape {
    Shape::Line(thin(points, CURVE))
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

fn channel_curve(key: &str, c: &ChannelCurves) -> Figure {
    let channel: Vec<f32> = c.channel.iter().map(|channel| *channel as f32).collect();
    let parts = sizes(&channel, &c.mean_abs, &c.mean_sq, &c.abs_max);
    let many = if c.bucket > 1 {
        format!(" Each point stands for {} neighbours, the one with the largest E[x²].", c.bucket)
    } else {
        String::new()
    };
    let plot = chart(Axis::linear("Channel"), Axis::log("activation"), parts);
    figure(&format!("channels.{key}"), "Size of the channels", &format!("In the model's own order.{many}"), plot)
}

fn sorted_figure(key: &str, s: &SortedCurves) -> Figure {
    let rank: Vec<f32> = s.rank.iter().map(|rank| *rank as f32).collect();
    let parts = sizes(&rank, &s.mean_abs, &s.mean_sq, &s.abs_max);
    let plot = chart(Axis::linear("Rank"), Axis::log("activation"), parts);
    figure(
        &format!("sorted.{key}"),
        "Size of the channels, sorted",
        "Each quantity by itself, largest first: a steep start means few channels dominate.",
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

/// The cumulative shares of a histogram at the upper ends of its bins.
fn cumulative(histogram: &Histogram) -> Vec<(f64, f64)> {
    let total = histogram.counts.iter().sum::<u64>() + histogram.below + histogram.above;
    let width = f64::from(histogram.high - histogram.low) / histogram.counts.len().max(1) as f64;
    let mut below = histogram.below;
    let start = (f64::from(histogram.low), below as f64 / total.max(1) as f64);
    let rest = histogram.counts.iter().enumerate().map(|(bin, count)| {
        below += count;
        (f64::from(histogram.low) + width * (bin + 1) as f64, below as f64 / total.max(1) as f64)
    });
    std::iter::once(start).chain(rest).collect()
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
    let of = |value: fn(&crate::analysis::record::AlphaPoint) -> f32| {
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

/// Points at evenly spread ranks of their first number, and the ones with the most extreme second: thinned as a curve, a cloud would look
/// like two bands.
fn cloud(x: &[f32], y: &[f32]) -> Shape {
    let mut points = pairs(x, y);
    points.retain(|(x, y)| x.is_finite() && y.is_finite());
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() <= CLOUD {
        return Shape::Points(points);
    }
    let mut by_height: Vec<usize> = (0..points.len()).collect();
    by_height.sort_by(|a, b| points[*a].1.total_cmp(&points[*b].1));
    let ends = by_height.iter().take(EXTREMES).chain(by_height.iter().rev().take(EXTREMES)).copied();
    let even = (0..CLOUD).map(|i| i * (points.len() - 1) / (CLOUD - 1));
    let kept: BTreeSet<usize> = even.chain(ends).collect();
    Shape::Points(kept.into_iter().map(|place| points[place]).collect())
}

fn tensor_figures(t: &TensorDetail) -> Vec<Option<Figure>> {
    let name = t.name.trim_end_matches(".weight");
    let rounding = chart(
        Axis::linear("rounding error, in steps"),
        Axis::linear("density").including(0.0),
        vec![series("", density(&t.rounding))],
    );
    let of = |what: &str| format!("{what} of {name}");
    let mut figures = vec![Some(figure(
        &format!("rounding.{name}"),
        &of("Rounding errors"),
        "Level between −½ and ½ is plain rounding.",
        rounding,
    ))];
    if t.mean_sq.is_empty() {
        return figures;
    }
    let errors = chart(
        Axis::log("E[x²] of the channel"),
        Axis::log("output error of the channel"),
        vec![series("", cloud(&t.mean_sq, &t.channel_mse))],
    );
    let weights = chart(
        Axis::log("E[x²] of the channel"),
        Axis::linear("ΔW").including(0.0),
        vec![
            series("mean |ΔW|", cloud(&t.mean_sq, &t.delta_mean_abs)),
            series("mean ΔW", cloud(&t.mean_sq, &t.delta_mean)),
        ],
    );
    figures.push(Some(figure(
        &format!("channel_error.{name}"),
        &of("Error by channel"),
        "E[x²] times the mean square of ΔW: rising means that important channels carry the error.",
        errors,
    )));
    figures.push(Some(figure(
        &format!("weight_error.{name}"),
        &of("Weights' error by importance"),
        "Falling magnitudes: important channels are kept more exactly. The signed mean should stay at 0.",
        weights,
    )));
    figures.push(halves(name, t));
    figures
}

/// The weights' error of the important half of the channels and of the others, as boxes.
fn halves(name: &str, t: &TensorDetail) -> Option<Figure> {
    let mut order: Vec<usize> = (0..t.mean_sq.len().min(t.delta_mean_abs.len())).collect();
    order.sort_by(|a, b| t.mean_sq[*b].total_cmp(&t.mean_sq[*a]));
    let (important, other) = order.split_at(order.len() / 2);
    let five = |places: &[usize]| five_numbers(places.iter().map(|place| t.delta_mean_abs[*place]).collect());
    let boxes = vec![five(important)?, five(other)?];
    let names = vec!["important half".to_owned(), "other half".to_owned()];
    let plot = chart(
        Axis::named("", names),
        Axis::linear("mean |ΔW| of a channel").including(0.0),
        vec![series("", Shape::Boxes(boxes))],
    );
    Some(figure(
        &format!("halves.{name}"),
        &format!("Weights' error of {name} by half"),
        "Boxes from the lower to the upper quartile, lines to the extremes.",
        plot,
    ))
}

fn five_numbers(mut values: Vec<f32>) -> Option<[f64; 5]> {
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| {
        let place = share * last as f64;
        let (low, rest) = (values[place.floor() as usize], place.fract());
        f64::from(low) + rest * f64::from(values[place.ceil() as usize] - low)
    };
    Some([0.0, 0.25, 0.5, 0.75, 1.0].map(at))
}

fn gate_panel(analysis: &Analysis, detail: &GateDetail) -> Panel {
    let row = analysis.gates.iter().find(|gate| gate.tensor == detail.tensor);
    let name = detail.tensor.trim_end_matches(".weight");
    let kind = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, kind)| kind);
    let words = row.map(|gate| {
        let n = gate.channels;
        format!(
            "{n} output channels before {}: {} with a negative mean, {} dead, {} risky, {} critical.",
            gate.function, gate.negative_channels, gate.dead_channels, gate.risky_channels, gate.critical_channels
        )
    });
    Panel {
        id: panel_id(&detail.tensor),
        layer: row.map(|gate| gate.layer.to_string()).unwrap_or_default(),
        name: format!("{kind}, output channels"),
        words: words.unwrap_or_default(),
        figures: gate_figures(detail, name, analysis.setup.tau),
        tables: vec![top_channels(detail, TOP)],
    }
}

fn gate_figures(detail: &GateDetail, name: &str, tau: f32) -> Vec<Figure> {
    let c = &detail.channels;
    let tau = || series("τ", Shape::Upright(f64::from(tau)));
    let both = |shape: fn(&Histogram) -> Shape| {
        let after = detail.post.iter().map(|post| series("after", shape(post)));
        std::iter::once(series("before", shape(&detail.pre))).chain(after).collect::<Vec<_>>()
    };
    let mut distribution = both(density);
    distribution.push(tau());
    let mut course = both(|histogram| line(&cumulative(histogram)));
    course.push(tau());
    let spread = vec![series("channels", cloud(&c.mean, &c.std)), tau()];
    let (value, density_axis) = (|| Axis::linear("value"), Axis::log("density"));
    vec![
        figure(
            &format!("distribution.{name}"),
            "Distribution before and after",
            "All values; the vertical scale is logarithmic so that the tails are seen.",
            chart(value(), density_axis, distribution),
        ),
        figure(
            &format!("cumulative.{name}"),
            "Cumulative distribution",
            "Share of the values below.",
            chart(value(), Axis::linear("share below").including(0.0), course),
        ),
        figure(
            &format!("channel_means.{name}"),
            "Mean and spread of the channels",
            "Left of τ a channel is dead; high above it is wide enough to wake.",
            chart(Axis::linear("mean of Z"), Axis::linear("standard deviation").including(0.0), spread),
        ),
        figure(
            &format!("importances.{name}"),
            "Two importances of the channels",
            "Each point is one output channel; far from the diagonal AWQ and PRAQ disagree.",
            chart(
                Axis::linear("AWQ importance, normalised"),
                Axis::linear("PRAQ importance, normalised"),
                vec![series("", cloud(&c.awq_normalized, &c.praq_normalized))],
            ),
        ),
        saliency(detail, name),
    ]
}

fn saliency(detail: &GateDetail, name: &str) -> Figure {
    let curve = |row: &crate::analysis::record::SaliencyRow| {
        let last = row.gradient.len().saturating_sub(1).max(1) as f64;
        let points = row.gradient.iter().enumerate();
        let points: Vec<_> = points.map(|(rank, value)| (100.0 * rank as f64 / last, f64::from(*value))).collect();
        series(&format!("channel {}", row.channel), line(&points))
    };
    let parts = detail.saliency.iter().take(5).map(curve).collect();
    let plot = chart(Axis::linear("weights, % of the row, sorted"), Axis::log("E[(f'(z)·x)²]"), parts);
    figure(
        &format!("saliency.{name}"),
        "How the gradient is spread over the weights",
        "The five channels with the largest E|Z|; a steep start means few weights matter.",
        plot,
    )
}
