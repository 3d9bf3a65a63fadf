//! The plan as text: tensor by tensor, or one line for each kind of tensor.

use std::collections::BTreeMap;

use super::effort::Effort;
use crate::cli::table::{Table, count};
use crate::convert::{Conversion, PlannedTensor};
use crate::gguf::Source;
use crate::util::units::Bytes;

/// Where a kind stands, its name, its type before and after, and the reason.
type Kind = (usize, String, String, String, String);

/// Every tensor, then the sums and what the work needs.
pub(super) fn full(source: &Source, plan: &Conversion, effort: &Effort) -> String {
    let mut table = Table::new(&["tensor", ">shape", "from", "to", ">bits", ">bytes", "reason"]);
    for tensor in &plan.tensors {
        let shape = tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let (from, to) = (tensor.from.to_string(), tensor.to.to_string());
        let bits = format!("{:.3}", tensor.bits());
        table.row([
            tensor.name.clone(),
            shape,
            from,
            to,
            bits,
            Bytes(tensor.bytes).to_string(),
            tensor.reason.to_string(),
        ]);
    }
    format!("{}\n\n{}", table.render(), totals(source, plan, effort))
}

/// One line for all tensors whose names differ only in the number of their block, then the sums.
pub(super) fn summary(source: &Source, plan: &Conversion, effort: &Effort) -> String {
    let mut kinds: BTreeMap<Kind, (u64, u64, u64)> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for tensor in &plan.tensors {
        let name = kind(tensor);
        let place = order.iter().position(|known| *known == name).unwrap_or_else(|| {
            order.push(name.clone());
            order.len() - 1
        });
        let key = (place, name, tensor.from.to_string(), tensor.to.to_string(), tensor.reason.to_string());
        let sum = kinds.entry(key).or_default();
        *sum = (sum.0 + 1, sum.1 + tensor.elements(), sum.2 + tensor.bytes);
    }
    let mut table = Table::new(&["tensors", ">count", "from", "to", ">bits", ">bytes", "reason"]);
    for ((_, name, from, to, reason), (tensors, elements, bytes)) in kinds {
        let bits = bytes as f64 * 8.0 / elements.max(1) as f64;
        table.row([name, tensors.to_string(), from, to, format!("{bits:.3}"), Bytes(bytes).to_string(), reason]);
    }
    format!("{}\n\n{}", table.render(), totals(source, plan, effort))
}

/// The name with the block's number left open.
fn kind(tensor: &PlannedTensor) -> String {
    let number = tensor
        .name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .filter(|(n, _)| n.parse::<u32>().is_ok());
    number.map_or_else(|| tensor.name.clone(), |(_, rest)| format!("blk.*.{rest}"))
}

fn totals(source: &Source, plan: &Conversion, effort: &Effort) -> String {
    let mut text = format!(
        "{} weights: {} -> {} ({:.3} bits a weight). Disk {}\n{}",
        count(plan.elements()),
        Bytes(source.total_bytes()),
        Bytes(plan.bytes()),
        plan.bits(),
        Bytes(plan.bytes()),
        effort.lines(),
    );
    let substitutions = plan.substitutions().count();
    if substitutions > 0 {
        let extra = plan.substitution_bytes();
        let bits = extra as f64 * 8.0 / plan.elements() as f64;
        text += &format!(
            "\n{substitutions} tensors cannot be TCQ4 and take another type: {bits:+.3} bits a weight over the whole model"
        );
    }
    text
}
