//! Mixed precision for `convert` and `quantize`: finds out what suffers, lets the library choose, and says what was chosen and why.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::statistics::Run;
use crate::calib::Statistics;
use crate::cli::Session;
use crate::cli::args::{MixedArgs, ProductionArgs};
use crate::cli::table::Table;
use crate::cli::values::{Compat, SensitivityArg};
use crate::convert::{Marks, read_rows};
use crate::error::{Error, Result};
use crate::eval::Simulation;
use crate::gguf::{Source, TensorInfo};
use crate::quant::evidence::Weights;
use crate::quant::{
    ActAware, Activations, GroupLoss, GroupOutcome, InputRounding, Sampler, Sensitivity, Transform, kind_of,
    runs_of_kinds, spread_over,
};
use crate::tcq::Codec;
use crate::util::progress::Progress;

/// Chunks that each probe runs over.
const CHUNKS: usize = 2;
/// Probes at most: neighbouring layers share one where there are more inputs.
const PROBES: usize = 128;

/// A conversion whose scales and orders are chosen.
pub(super) struct Mixed<'a> {
    pub(super) session: &'a Session,
    pub(super) source: &'a Source,
    pub(super) statistics: Option<&'a Statistics>,
    pub(super) transforms: &'a BTreeMap<String, Transform>,
    pub(super) codec: Codec,
    pub(super) args: &'a ProductionArgs,
    /// The model with its text, where it can be run.
    pub(super) run: Option<&'a Run<'a>>,
}

/// Refuses options that do not go together.
pub(super) fn check(args: &ProductionArgs) -> Result<()> {
    let usage = |message: &str, hint: &str| Err(Error::Usage { message: message.into(), hint: Some(hint.into()) });
    if args.mixed.act_aware.is_none() {
        return Ok(());
    }
    if matches!(args.method.activations, Activations::None | Activations::Int8) {
        let hint = "pass the path of your run time: --activations int4-group32, int4 or int4-fork";
        return usage("--act-aware is about INT4 activations, and --activations says there are none", hint);
    }
    if args.types.compat == Some(Compat::LlamaCppRrs) {
        return usage("llama.cpp-rrs rounds every activation to INT4 and reads no marks", "leave out --act-aware");
    }
    Ok(())
}

/// The marks of the chosen paths.
pub(super) fn marks(chosen: &ActAware) -> Marks {
    let tensors = chosen.marked().map(|(tensor, path)| (tensor.to_owned(), path)).collect();
    Marks { default: Some(chosen.path), tensors }
}

impl Mixed<'_> {
    fn options(&self) -> &MixedArgs {
        &self.args.mixed
    }

    /// Whether the model runs to find out what suffers.
    fn runs(&self) -> Option<&Run<'_>> {
        self.run.filter(|_| self.options().sensitivity != Some(SensitivityArg::Estimate))
    }

    /// Chooses the inputs that take INT8, if that was asked for.
    pub(super) fn act_aware(&self, groups: &[GroupOutcome]) -> Result<Option<ActAware>> {
        let Some(share) = self.options().act_aware else { return Ok(None) };
        let path = self.args.method.activations;
        let mut losses = self.group_losses(groups, path)?;
        if let Some(run) = self.runs() {
            let kinds: Vec<&str> = losses.iter().map(|loss| kind_of(&loss.group)).collect();
            let together = runs_of_kinds(&kinds, PROBES);
            let probe = |run: &Vec<usize>| self.probe(run.iter().flat_map(|&at| &losses[at].tensors), path);
            let probes = together.iter().map(probe).collect();
            for (of, kld) in together.iter().zip(run.probe(probes, CHUNKS)?) {
                let estimates: Vec<f64> = of.iter().map(|&at| losses[at].estimate).collect();
                let parts = spread_over(kld.value, &estimates);
                of.iter().zip(parts).for_each(|(&at, part)| losses[at].kld = Some(part));
            }
        }
        let chosen = ActAware::choose(path, losses, share.0);
        self.session.printer.text(&render(&chosen));
        Ok(Some(chosen))
    }

    /// The inputs of `tensors` rounded, all others exact.
    fn probe<'t>(&self, tensors: impl Iterator<Item = &'t String>, path: Activations) -> Simulation {
        let way = |name: &String| (name.clone(), InputRounding::before(path, self.transforms.get(name)));
        Simulation::of(self.codec, tensors.map(way))
    }

    /// What each group loses by its output errors, in the order of the model.
    fn group_losses(&self, groups: &[GroupOutcome], path: Activations) -> Result<Vec<GroupLoss>> {
        let tensors: Vec<&TensorInfo> =
            groups.iter().flat_map(|group| &group.tensors).filter_map(|name| self.source.tensor(name)).collect();
        let found = self.sensitivities(&tensors, &[path, Activations::Int8])?;
        let of: BTreeMap<&str, &Sensitivity> = found.iter().map(|one| (one.tensor.as_str(), one)).collect();
        let mut unknown = 0;
        let mut losses = Vec::new();
        for group in groups {
            let known: Vec<&&Sensitivity> = group.tensors.iter().filter_map(|name| of.get(name.as_str())).collect();
            unknown += usize::from(known.is_empty());
            let mean = |at: usize| known.iter().map(|one| one.errors[at]).sum::<f64>() / known.len().max(1) as f64;
            losses.push(GroupLoss {
                group: group.group.clone(),
                tensors: group.tensors.clone(),
                multiply_adds: group.tensors.iter().map(|name| self.multiply_adds(name)).sum(),
                error: mean(0),
                error_int8: mean(1),
                estimate: known.iter().map(|one| one.errors[0] * one.influence).sum(),
                kld: None,
            });
        }
        if unknown > 0 {
            let all = groups.len();
            let note = format!("{unknown} of {all} inputs have no sample rows: nothing is estimated for them");
            self.session.progress.note(&note);
        }
        Ok(losses)
    }

    /// What `paths` cost in the outputs of each tensor, as far as there are sample rows.
    fn sensitivities(&self, tensors: &[&TensorInfo], paths: &[Activations]) -> Result<Vec<Sensitivity>> {
        let Some(statistics) = self.statistics else {
            return Err(Error::Usage {
                message: "mixed precision needs statistics of the activations".into(),
                hint: Some("pass --stats FILE, made by `tcq4 calibrate --stats`, or use `tcq4 convert`".into()),
            });
        };
        let read = |tensor: &_, first, out: &mut [f32]| read_rows(self.source, tensor, first, out);
        let weights = Weights { source: self.source, read: &read };
        let sampler = Sampler { weights, statistics, transforms: self.transforms, codec: self.codec };
        let found = tensors.par_iter().map(|tensor| sampler.inputs(tensor, paths)).collect::<Result<Vec<_>>>()?;
        let mut found: Vec<Sensitivity> = found.into_iter().flatten().collect();
        sampler.weigh(&mut found)?;
        Ok(found)
    }

    /// Multiply-adds of a tensor for one token; of a stack of experts those that a token uses.
    fn multiply_adds(&self, name: &str) -> u64 {
        let Some(tensor) = self.source.tensor(name) else { return 0 };
        let (metadata, matrices) = (self.source.metadata(), tensor.matrices().max(1));
        let arch = metadata.get_str("general.architecture").unwrap_or_default();
        let used = metadata.get_u64(&format!("{arch}.expert_used_count")).unwrap_or(matrices);
        tensor.elements() / matrices * used.clamp(1, matrices)
    }
}

/// The choice, one line for each kind of input.
fn render(chosen: &ActAware) -> String {
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
