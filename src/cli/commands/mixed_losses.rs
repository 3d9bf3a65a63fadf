//! What roundings cost, for the choices of mixed precision: output errors on sample rows, and divergences where the model runs.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::mixed::{CHUNKS, Mixed, PROBES};
use super::statistics::Run;
use crate::convert::{Conversion, PlannedTensor};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, TensorInfo};
use crate::quant::Simulation;
use crate::quant::evidence::Weights;
use crate::quant::{
    Activations, Candidate, Candidates, GroupLoss, GroupOutcome, InputRounding, Sampler, Sensitivity, kind_of,
    runs_of_kinds, spread_over,
};
use crate::util::progress::Progress;

/// What GPTQ leaves of the output error of the nearest codes: .28 (attention outputs) to .62 (down projections) on SmolLM2-135M, .45 in the mean.
pub(super) const GPTQ: f64 = 0.45;
/// Types that linear layers may take instead of TCQ4, besides the one they have.
const LARGER: [GgmlType; 3] = [GgmlType::Q5_K, GgmlType::Q6_K, GgmlType::Q8_0];

/// Inputs that are rounded together to see what the model loses.
struct Unit<'a> {
    kind: &'a str,
    tensors: &'a [String],
    /// Relative output error; in proportion to it what is measured of several units together is divided between them.
    error: f64,
}

impl Mixed<'_> {
    /// What each group loses: by output errors, and by divergences where the model runs.
    pub(super) fn measured_losses(&self, groups: &[GroupOutcome], path: Activations) -> Result<Vec<GroupLoss>> {
        let mut losses = self.group_losses(groups, path)?;
        if let Some(run) = self.runs() {
            let units: Vec<Unit<'_>> = losses
                .iter()
                .map(|loss| Unit { kind: kind_of(&loss.group), tensors: &loss.tensors, error: loss.error })
                .collect();
            let klds = self.klds(run, &units, path)?;
            losses.iter_mut().zip(klds).for_each(|(loss, kld)| loss.kld = Some(kld));
        }
        Ok(losses)
    }

    /// The divergence of the model when the input of each unit alone is rounded; neighbours of a kind are measured together where there are many.
    fn klds(&self, run: &Run<'_>, units: &[Unit<'_>], path: Activations) -> Result<Vec<f64>> {
        let kinds: Vec<&str> = units.iter().map(|unit| unit.kind).collect();
        let together = runs_of_kinds(&kinds, PROBES);
        let probe = |of: &Vec<usize>| self.probe(of.iter().flat_map(|&at| units[at].tensors), path);
        let probes = together.iter().map(probe).collect();
        let mut klds = vec![0.0; units.len()];
        for (of, kld) in together.iter().zip(run.probe(probes, CHUNKS)?) {
            let errors: Vec<f64> = of.iter().map(|&at| units[at].error).collect();
            let parts = spread_over(kld.value.max(0.0), &errors);
            of.iter().zip(parts).for_each(|(&at, part)| klds[at] = part);
        }
        Ok(klds)
    }

    /// What each type loses in each linear layer.
    pub(super) fn type_losses(&self, plan: &Conversion) -> Result<Vec<Candidates>> {
        let planned: Vec<&PlannedTensor> = plan.tensors.iter().filter(|tensor| tensor.is_tcq4()).collect();
        let tensors: Vec<&TensorInfo> = planned.iter().filter_map(|tensor| self.source.tensor(&tensor.name)).collect();
        let own = self.recipe.activations;
        let path = if matches!(own, Activations::None | Activations::Int8) { Activations::Int4Group32 } else { own };
        let inputs = self.sensitivities(&tensors, &[path, own])?;
        let worth = self.worth(&inputs, path)?;
        let sampler = self.sampler()?;
        let one = |(input, &worth): (&Sensitivity, &f64)| {
            let Some(tensor) = self.source.tensor(&input.tensor) else { return Ok(None) };
            let Some(planned) = planned.iter().find(|planned| planned.name == tensor.name) else { return Ok(None) };
            let types = LARGER.into_iter().chain([tensor.ty].into_iter().filter(|ty| ty.is_float()));
            let types: Vec<(GgmlType, u64)> = [GgmlType::TCQ4_K32]
                .into_iter()
                .chain(types)
                .filter_map(|ty| Some((ty, plan.bytes_as(self.source, planned, ty)?)))
                .collect();
            let only: Vec<GgmlType> = types.iter().map(|(ty, _)| *ty).collect();
            let Some(found) = sampler.types(tensor, &only)? else { return Ok(None) };
            let candidate = |(&(ty, bytes), &weights): (&(GgmlType, u64), &f64)| {
                let error = if ty == GgmlType::TCQ4_K32 { self.rounding * weights + input.errors[1] } else { weights };
                Candidate { ty: ty.to_string(), bytes, error, loss: worth * error }
            };
            let candidates = types.iter().zip(&found.errors).map(candidate).collect();
            Ok(Some(Candidates {
                tensor: tensor.name.clone(),
                weights: tensor.elements(),
                sensitivity: worth,
                candidates,
            }))
        };
        let found = inputs.par_iter().zip(&worth).map(one).collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What the model loses for each unit of a tensor's output error.
    fn worth(&self, inputs: &[Sensitivity], path: Activations) -> Result<Vec<f64>> {
        let Some(run) = self.runs() else { return Ok(inputs.iter().map(|input| input.influence).collect()) };
        let units: Vec<Unit<'_>> = inputs
            .iter()
            .map(|input| Unit {
                kind: kind_of(&input.tensor),
                tensors: std::slice::from_ref(&input.tensor),
                error: input.errors[0],
            })
            .collect();
        let klds = self.klds(run, &units, path)?;
        let worth = |(kld, input): (f64, &Sensitivity)| if input.errors[0] > 0.0 { kld / input.errors[0] } else { 0.0 };
        Ok(klds.into_iter().zip(inputs).map(worth).collect())
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

    fn sampler(&self) -> Result<Sampler<'_>> {
        let Some(statistics) = self.statistics else {
            return Err(Error::Usage {
                message: "mixed precision needs statistics of the activations".into(),
                hint: Some("pass --stats FILE, made by `tcq4 calibrate --stats`, or use `tcq4 convert`".into()),
            });
        };
        let weights = Weights { source: self.source, read: self.read };
        Ok(Sampler { weights, statistics, transforms: self.transforms, codec: self.codec })
    }

    /// What `paths` cost in the outputs of each tensor, as far as there are sample rows.
    fn sensitivities(&self, tensors: &[&TensorInfo], paths: &[Activations]) -> Result<Vec<Sensitivity>> {
        let sampler = self.sampler()?;
        let found = tensors.par_iter().map(|tensor| sampler.inputs(tensor, paths)).collect::<Result<Vec<_>>>()?;
        let mut found: Vec<Sensitivity> = found.into_iter().flatten().collect();
        sampler.weigh(&mut found)?;
        Ok(found)
    }

    /// Multiply-adds of a tensor for one token; of a stack of experts those that a token uses.
    pub(super) fn multiply_adds(&self, name: &str) -> u64 {
        let Some(tensor) = self.source.tensor(name) else { return 0 };
        let (metadata, matrices) = (self.source.metadata(), tensor.matrices().max(1));
        let arch = metadata.get_str("general.architecture").unwrap_or_default();
        let used = metadata.get_u64(&format!("{arch}.expert_used_count")).unwrap_or(matrices);
        tensor.elements() / matrices * used.clamp(1, matrices)
    }
}
