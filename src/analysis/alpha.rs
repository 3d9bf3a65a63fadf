//! Error over AWQ's exponent, beside the closed form and no scale: measured by the very objective that `convert` chooses with.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{AlphaPoint, AlphaRow};
use super::subject::Job;
use crate::error::Result;
use crate::quant::{Activations, Apply, GroupOutcome, Measured, Order, Orders, Salience, Scales, Settings, prepare};
use crate::util::progress::{Progress, Unit};

/// What was measured of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// In brief.
    pub row: AlphaRow,
    /// Point by point.
    pub points: Vec<AlphaPoint>,
}

/// What became of a group: its curve, or why there is none.
pub type Outcome = std::result::Result<Curve, String>;

/// Measures the groups of some tensors, by key, over `steps` + 1 exponents. The order follows the settings; it is applied at run time here.
///
/// # Errors
/// Those of [`prepare`].
pub fn curves(
    job: &Job<'_>,
    tensors: BTreeSet<String>,
    steps: u32,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Outcome>> {
    if tensors.is_empty() || job.statistics.is_none() {
        return Ok(BTreeMap::new());
    }
    let base = Settings { targets: tensors, apply: Apply::Runtime, ..job.settings.clone() };
    let grid = Scales::Awq { salience: Salience::MeanSq, steps };
    let run = |scales, orders: Orders, activations| -> Result<Vec<GroupOutcome>> {
        let settings = Settings { scales, orders, activations, ..base.clone() };
        let read = |tensor: &_, first, out: &mut [f32]| crate::convert::read_rows(job.source, tensor, first, out);
        Ok(prepare(job.source, &read, job.statistics, &settings, &Unseen(progress))?.groups)
    };
    let order = base.orders.clone();
    let with = run(grid, order.clone(), base.activations)?;
    let without =
        if base.activations == Activations::None { with.clone() } else { run(grid, order.clone(), Activations::None)? };
    let closed = run(Scales::ClosedForm, Orders::Auto, base.activations)?;
    let one = |((with, without), closed): ((&GroupOutcome, &GroupOutcome), &GroupOutcome)| {
        (with.group.clone(), curve(with, without, closed, &order))
    };
    Ok(with.iter().zip(&without).zip(&closed).map(one).collect())
}

fn curve(with: &GroupOutcome, without: &GroupOutcome, closed: &GroupOutcome, orders: &Orders) -> Outcome {
    if let Some(reason) = &with.unscaled {
        return Err(reason.clone());
    }
    let tried = |outcome: &GroupOutcome| outcome.scale.as_ref().map_or_else(Vec::new, |scale| scale.tried.clone());
    let (tried, plain) = (tried(with), tried(without));
    let (Some(first), Some(closed)) = (tried.first(), error_in_order(&closed.orders_tried, orders)) else {
        return Err("no sample rows to measure on".into());
    };
    let best = tried.iter().fold(first, |best, point| if point.error < best.error { point } else { best });
    let point = |(point, plain): (&Measured<f64>, &Measured<f64>)| AlphaPoint {
        alpha: point.candidate as f32,
        error: point.error as f32,
        error_weights_only: plain.error as f32,
    };
    Ok(Curve {
        row: AlphaRow {
            best_alpha: best.candidate as f32,
            best_error: best.error as f32,
            error_unscaled: first.error as f32,
            error_closed_form: closed as f32,
        },
        points: tried.iter().zip(&plain).map(point).collect(),
    })
}

/// The error in the order that the settings give a group; where that order changes nothing, as it is.
fn error_in_order(tried: &[Measured<Order>], orders: &Orders) -> Option<f64> {
    let of = |order: Order| tried.iter().find(|candidate| candidate.candidate == order).map(|found| found.error);
    match orders {
        Orders::Fixed(order) => of(*order),
        Orders::Auto => of(Order::Zigzag),
        Orders::Given(_) => None,
    }
    .or_else(|| of(Order::None))
}

/// Work inside a phase that the progress shows already.
struct Unseen<'a>(&'a dyn Progress);

impl Progress for Unseen<'_> {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self) {}
    fn note(&self, message: &str) {
        self.0.note(message);
    }
    fn interrupted(&self) -> bool {
        self.0.interrupted()
    }
}
