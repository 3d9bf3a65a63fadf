//! The choices of mixed precision as text.

use std::collections::BTreeMap;

use crate::cli::table::Table;
use crate::quant::{ActAware, TypeChoices, kind_of};

/// The choice, one line for each kind of input.
pub(super) fn inputs(chosen: &ActAware) -> String {
    let measured = chosen.groups.iter().any(|group| group.loss.kld.is_some());
    let total: u64 = chosen.groups.iter().map(|group| group.loss.multiply_adds).sum();
    let mut order: Vec<&str> = Vec::new();
    let mut kinds: BTreeMap<&str, (usize, usize, u64, u64, f64, f64)> = BTreeMap::new();
    for group in &chosen.groups {
        let kind = kind_of(&group.loss.group);
        if !order.contains(&kind) {
            order.push(kind);
        }
        let int8 = group.path != chosen.path;
        let sum = kinds.entry(kind).or_default();
        sum.0 += 1;
        sum.1 += usize::from(int8);
        sum.2 += group.loss.multiply_adds;
        sum.3 += if int8 { group.loss.multiply_adds } else { 0 };
        sum.4 += group.loss.loss();
        sum.5 += if int8 { group.loss.loss_int8() } else { group.loss.loss() };
    }
    let percent = |part: f64, of: f64| if of > 0.0 { 100.0 * part / of } else { 0.0 };
    let mut table =
        Table::new(&["input", ">count", ">int8", ">multiply-adds %", ">of them int8 %", ">loss %", ">left %"]);
    for kind in order {
        let (count, int8, all, marked, loss, left) = kinds[kind];
        table.row([
            kind.to_owned(),
            count.to_string(),
            int8.to_string(),
            format!("{:.1}", percent(all as f64, total as f64)),
            format!("{:.1}", percent(marked as f64, all as f64)),
            format!("{:.1}", percent(loss, chosen.loss_before)),
            format!("{:.1}", percent(left, chosen.loss_before)),
        ]);
    }
    let what = if measured {
        let (before, after) = (chosen.loss_before, chosen.loss_after);
        format!("KL divergence by single inputs, added up: {before:.4} -> {after:.4}")
    } else {
        let left = percent(chosen.loss_after, chosen.loss_before);
        format!("loss by output errors on sample rows: {left:.1} % of it is left")
    };
    let share = 100.0 * chosen.share;
    format!("{share:.1} % of the multiply-adds take INT8 and the others {}; {what}\n{}", chosen.path, table.render())
}

/// Every tensor that had a choice.
pub(super) fn every_type(chosen: &TypeChoices) -> String {
    let mut table = Table::new(&["tensor", "type", ">bits", ">output error %", ">sensitivity", ">gain per bit"]);
    for tensor in &chosen.tensors {
        table.row([
            tensor.tensor.clone(),
            tensor.chosen.ty.clone(),
            format!("{:.3}", tensor.bits),
            format!("{:.4}", 100.0 * tensor.chosen.error),
            format!("{:.4}", tensor.sensitivity),
            tensor.gain_per_bit.map_or(String::new(), |gain| format!("{gain:.4}")),
        ]);
    }
    format!("{}\n\n{}", table.render(), totals(chosen))
}

/// One line for each kind of tensor and type.
pub(super) fn types(chosen: &TypeChoices) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    let mut sums: BTreeMap<(usize, &str), (usize, f64, f64)> = BTreeMap::new();
    for tensor in &chosen.tensors {
        let kind = kind_of(&tensor.tensor);
        let place = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            kinds.push(kind);
            kinds.len() - 1
        });
        let sum = sums.entry((place, tensor.chosen.ty.as_str())).or_default();
        *sum = (sum.0 + 1, sum.1 + tensor.sensitivity, sum.2 + tensor.gain_per_bit.unwrap_or(0.0));
    }
    let mut table = Table::new(&["tensors", "type", ">count", ">mean sensitivity", ">mean gain per bit"]);
    for ((place, ty), (count, sensitivity, gain)) in sums {
        let mean = |sum: f64| format!("{:.4}", sum / count as f64);
        table.row([kinds[place].to_owned(), ty.to_owned(), count.to_string(), mean(sensitivity), mean(gain)]);
    }
    format!("{}\n{}", totals(chosen), table.render())
}

fn totals(chosen: &TypeChoices) -> String {
    let left = if chosen.loss_smallest > 0.0 { 100.0 * chosen.loss / chosen.loss_smallest } else { 0.0 };
    let gap = chosen.loss - chosen.lower_bound;
    let proof = if gap <= 1e-9 * chosen.loss {
        "the least possible".to_owned()
    } else {
        format!("at most {gap:.2e} more than the least possible")
    };
    format!(
        "{:.4} bits a weight of {}; the loss of the weights, by single tensors, is {left:.1} % of that of the smallest types, {proof}",
        chosen.bpw, chosen.target_bpw,
    )
}
