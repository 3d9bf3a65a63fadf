//! The figures of one tensor: how it was rounded, and which channels carry the error.

use super::super::common::{chart, figure, series};
use super::super::weights::density;
use super::cloud;
use crate::analysis::record::TensorDetail;
use crate::report::plot::{Axis, Figure, Shape};

/// The figures of a tensor in the panel of its input.
pub(super) fn tensor_figures(t: &TensorDetail) -> Vec<Option<Figure>> {
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
        "Plain rounding is level between −½ and ½; the search for the best step makes a hill of it.",
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
