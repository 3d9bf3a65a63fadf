//! What each step did to each tensor: put together from what the preparation chose and what the encoding measured.

use std::collections::BTreeMap;

use super::compensate::Measure;
use super::run::{Converted, TensorLoss};
use crate::quant::permute::Order;
use crate::quant::recipe::RoundingRule;
use crate::quant::step::{Needs, Step, StepRecord};
use crate::quant::{Grounds, GroupOutcome, Prepared, Recipe};
use crate::tcq::Encoder;

/// Why codes are the nearest although others were asked for.
const NOT_SEEN: &str = "its input was not seen in the text, or what was measured of it is of no use";
/// Why GPTAQ is GPTQ.
const NO_ROWS: &str = "there are no sample rows to measure the rounding of activations on";
/// Why numbers behind a choice are estimates.
const ESTIMATED: &str = "no statistics of this input: estimated from the weights";

impl Converted {
    /// Records what each step of `recipe` did to every TCQ4 tensor. `orders_given` says that a file gave the orders in place of the recipe's rule,
    /// `measured` that there were statistics.
    pub fn record_steps(&mut self, prepared: &Prepared, recipe: &Recipe, orders_given: bool, measured: bool) {
        let of_group = |group| prepared_steps(group, recipe, measured);
        let by_tensor: BTreeMap<&str, &GroupOutcome> = prepared
            .groups
            .iter()
            .flat_map(|group| group.tensors.iter().map(move |name| (name.as_str(), group)))
            .collect();
        for loss in &mut self.losses {
            let mut steps = by_tensor.get(loss.name.as_str()).copied().map_or_else(Vec::new, of_group);
            if orders_given && let Some(order) = steps.get_mut(1) {
                let permuted = prepared.transforms.get(&loss.name).is_some_and(|t| t.runtime_order().is_some());
                (order.asked, order.done, order.fallback) = ("given", if permuted { "given" } else { "none" }, None);
            }
            steps.extend(encoding_steps(loss, recipe));
            loss.steps = steps;
        }
    }
}

/// The steps on the input group.
fn prepared_steps(group: &GroupOutcome, recipe: &Recipe, measured: bool) -> Vec<StepRecord> {
    let estimated = measured && group.grounds == Grounds::Structure;
    let record = |step: &dyn Step, record: StepRecord| match &record.fallback {
        None if estimated && step.needs().covers(Needs::CHANNELS) => {
            let done = record.done;
            record.instead(done, ESTIMATED)
        }
        _ => record,
    };
    let steps = recipe.steps();
    let [scale, order] = [steps[0].as_ref(), steps[1].as_ref()];
    vec![record(scale, scale_record(scale, group)), record(order, order_record(order, group))]
}

fn scale_record(step: &dyn Step, group: &GroupOutcome) -> StepRecord {
    let mut record = StepRecord::of(step);
    match (&group.scale, &group.unscaled) {
        (None, Some(reason)) => record.instead("none", reason),
        (Some(scale), _) if step.needs().covers(Needs::ROWS) && scale.alpha.is_none() => {
            record.instead("closed-form", "there are no sample rows to search on")
        }
        (Some(scale), _) => {
            record.alpha = scale.alpha;
            record.fallback.clone_from(&scale.fallback);
            let error_of =
                |alpha: f64| scale.tried.iter().find(|tried| tried.candidate == alpha).map(|tried| tried.error);
            match scale.alpha.and_then(error_of) {
                Some(after) => record.measured("sample-rows", error_of(0.0), after),
                None => record,
            }
        }
        (None, None) => record,
    }
}

fn order_record(step: &dyn Step, group: &GroupOutcome) -> StepRecord {
    let mut record = StepRecord::of(step);
    record.done = group.order.name();
    if let Some(reason) = &group.unordered {
        return record.instead("none", reason);
    }
    let error_of =
        |order: Order| group.orders_tried.iter().find(|tried| tried.candidate == order).map(|tried| tried.error);
    match error_of(group.order) {
        Some(after) => record.measured("sample-rows", error_of(Order::None), after),
        None if step.needs().covers(Needs::ROWS) && group.order != Order::None => {
            let done = record.done;
            record.instead(done, "there are no sample rows to choose an order by")
        }
        None => record,
    }
}

/// The steps on rows.
fn encoding_steps(loss: &TensorLoss, recipe: &Recipe) -> [StepRecord; 3] {
    let steps = recipe.steps();
    let [rotate, encode, round] = [2, 3, 4].map(|at: usize| StepRecord::of(steps[at].as_ref()));
    let encode = match loss.output {
        None if recipe.encoder == Encoder::Weighted => encode.instead("default", NOT_SEEN),
        _ => encode,
    };
    match &loss.output {
        None if recipe.rounding != RoundingRule::Nearest => {
            let encode = encode.measured("weights", None, loss.error_rel);
            [rotate, encode, round.instead("nearest", NOT_SEEN)]
        }
        None => [rotate, encode.measured("weights", None, loss.error_rel), round],
        Some(output) => {
            let measure = match output.measure {
                Measure::Mean => "mean",
                Measure::SecondMoment => "second-moment",
            };
            let round = round.measured(measure, Some(output.nearest), output.compensated);
            let round = match output.noise {
                false if recipe.rounding == RoundingRule::Gptaq => round.instead("gptq", NO_ROWS),
                _ => round,
            };
            let round = match output.damping.filter(|damping| damping.retries > 0) {
                Some(damping) => {
                    let done = round.done;
                    round.instead(
                        done,
                        format!("damping was raised to {:e}: the second moment had no factor", damping.share),
                    )
                }
                None => round,
            };
            [rotate, encode, round]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::recipe::{BALANCED, BEST, FAST, OrderRule, ScaleRule};
    use crate::quant::{Applied, Measured, ScaleOutcome};

    const MEASURED: Recipe = Recipe { scales: ScaleRule::Awq, order: OrderRule::Auto, ..BALANCED };

    fn group() -> GroupOutcome {
        GroupOutcome {
            group: "g".into(),
            tensors: vec!["t".into()],
            columns: 256,
            grounds: Grounds::Statistics,
            scale: None,
            unscaled: None,
            order: Order::None,
            applied: None,
            unordered: None,
            orders_tried: Vec::new(),
            error: None,
        }
    }

    fn scale(alpha: Option<f64>, tried: &[(f64, f64)]) -> ScaleOutcome {
        let tried = tried.iter().map(|&(candidate, error)| Measured { candidate, error }).collect();
        ScaleOutcome { salience: None, fallback: None, alpha, min: 0.5, max: 2.0, tried }
    }

    /// Step by step: asked, done, fallback.
    fn told(records: &[StepRecord]) -> Vec<(&str, &str, Option<&str>)> {
        records.iter().map(|record| (record.asked, record.done, record.fallback.as_deref())).collect()
    }

    #[test]
    fn what_was_measured_is_told() {
        let tried = [Order::None, Order::Zigzag]
            .map(|candidate| Measured { candidate, error: if candidate == Order::None { 0.4 } else { 0.2 } });
        let group = GroupOutcome {
            scale: Some(scale(Some(0.5), &[(0.0, 0.3), (0.5, 0.1), (1.0, 0.2)])),
            order: Order::Zigzag,
            applied: Some(Applied::Runtime),
            orders_tried: tried.to_vec(),
            ..group()
        };
        let records = prepared_steps(&group, &MEASURED, true);
        assert_eq!(told(&records), [("awq", "awq", None), ("auto", "zigzag", None)]);
        assert_eq!((records[0].alpha, records[0].before, records[0].after), (Some(0.5), Some(0.3), Some(0.1)));
        assert_eq!((records[1].alpha, records[1].before, records[1].after), (None, Some(0.4), Some(0.2)));
        assert!(!records.iter().any(StepRecord::fell_back));
    }

    #[test]
    fn what_could_not_be_done_is_told_with_its_reason() {
        let fixed = GroupOutcome { unscaled: Some("a".into()), unordered: Some("b".into()), ..group() };
        let records = prepared_steps(&fixed, &BALANCED, true);
        assert_eq!(told(&records), [("closed-form", "none", Some("a")), ("zigzag", "none", Some("b"))]);
        assert!(records.iter().all(StepRecord::fell_back));
        let no_rows = GroupOutcome { scale: Some(scale(None, &[])), order: Order::Zigzag, ..group() };
        let records = prepared_steps(&no_rows, &MEASURED, true);
        assert!(matches!(told(&records)[..], [("awq", "closed-form", Some(_)), ("auto", "zigzag", Some(_))]));
        let estimated = GroupOutcome {
            grounds: Grounds::Structure,
            order: Order::Zigzag,
            scale: Some(scale(None, &[])),
            ..group()
        };
        let closed = [("closed-form", "closed-form", Some(ESTIMATED)), ("zigzag", "zigzag", Some(ESTIMATED))];
        assert_eq!(told(&prepared_steps(&estimated, &BALANCED, true)), closed);
        assert!(prepared_steps(&estimated, &BALANCED, false).iter().all(|record| record.fallback.is_none()));
    }

    #[test]
    fn tensors_that_codes_were_not_chosen_for_are_told() {
        let loss = TensorLoss {
            name: "t".into(),
            error_rel: 0.01,
            weights: 256,
            output: None,
            moments: None,
            steps: Vec::new(),
        };
        let nearest = encoding_steps(&loss, &FAST);
        assert_eq!(told(&nearest)[1..], [("default", "default", None), ("nearest", "nearest", None)]);
        assert_eq!(nearest[1].after, Some(0.01));
        assert_eq!(told(&encoding_steps(&loss, &BALANCED))[2], ("greedy", "nearest", Some(NOT_SEEN)));
        assert_eq!(told(&encoding_steps(&loss, &BEST))[2], ("gptq", "nearest", Some(NOT_SEEN)));
    }
}
