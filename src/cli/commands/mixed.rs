//! Mixed precision for `convert` and `quantize`: finds out what suffers, lets the library choose, and says what was chosen and why.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::mixed_text;
use super::statistics::Run;
use crate::calib::Statistics;
use crate::cli::Session;
use crate::cli::args::ProductionArgs;
use crate::cli::values::Compat;
use crate::convert::sensitivities::{Part, Sensitivities};
use crate::convert::{Conversion, Marks};
use crate::error::{Error, MixedError, Result};
use crate::gguf::{GgmlType, Source};
use crate::quant::recipe::SensitivityRule;
use crate::quant::{
    ActAware, Activations, Candidates, GroupOutcome, ReadRows, Recipe, Transform, TypeChoice, TypeChoices, Whole,
};
use crate::tcq::Codec;
use crate::util::progress::Progress;

/// Chunks that each probe runs over.
pub(super) const CHUNKS: usize = 1;
/// Probes at most: neighbouring layers share one where there are more inputs.
pub(super) const PROBES: usize = 64;

/// What was chosen.
pub(super) struct Choices<'p> {
    /// The plan with the chosen types.
    pub(super) plan: Cow<'p, Conversion>,
    pub(super) types: Option<TypeChoices>,
    pub(super) act_aware: Option<ActAware>,
}

/// A conversion whose scales and orders are chosen.
pub(super) struct Mixed<'a> {
    pub(super) session: &'a Session,
    pub(super) source: &'a Source,
    pub(super) statistics: Option<&'a Statistics>,
    pub(super) transforms: &'a BTreeMap<String, Transform>,
    pub(super) codec: Codec,
    pub(super) recipe: &'a Recipe,
    pub(super) args: &'a ProductionArgs,
    /// How rows of the model are read.
    pub(super) read: &'a ReadRows<'a>,
    /// The file that is made.
    pub(super) output: &'a Path,
    /// How it is made, in a line.
    pub(super) record: String,
    /// What the rounding of codes leaves of the output errors that the nearest codes have.
    pub(super) rounding: f64,
    /// The model with its text, where it can be run.
    pub(super) run: Option<&'a Run<'a>>,
}

/// Refuses options that do not go together.
pub(super) fn check(args: &ProductionArgs, recipe: &Recipe) -> Result<()> {
    let usage = |message: &str, hint: &str| Err(Error::Usage { message: message.into(), hint: Some(hint.into()) });
    if args.mixed.sensitivities.is_some() && !recipe.mixes() {
        return usage("--sensitivities is for --target-bpw and --act-aware", "leave it out, or pass one of them");
    }
    if recipe.marked_share().is_none() {
        return Ok(());
    }
    if matches!(recipe.activations, Activations::None | Activations::Int8) {
        let hint = "pass the path of your run time: --activations int4-group32, int4 or int4-fork";
        return usage("--act-aware is about INT4 activations, and --activations says there are none", hint);
    }
    if args.types.compat == Some(Compat::LlamaCppRrs) {
        return usage("llama.cpp-rrs rounds every activation to INT4 and reads no marks", "leave out --act-aware");
    }
    Ok(())
}

/// Where sensitivities are kept.
fn file_of(args: &ProductionArgs, output: &Path) -> PathBuf {
    let beside = || {
        let mut name = output.as_os_str().to_os_string();
        name.push(".sensitivities.json");
        name.into()
    };
    args.mixed.sensitivities.clone().unwrap_or_else(beside)
}

/// The file that sensitivities go to, if there will be any.
pub(super) fn kept_at(args: &ProductionArgs, recipe: &Recipe, output: &Path) -> Option<PathBuf> {
    recipe.mixes().then(|| file_of(args, output))
}

/// Refuses a target that no choice can meet, and a file of sensitivities that cannot be used, before any work.
pub(super) fn check_plan(
    args: &ProductionArgs,
    recipe: &Recipe,
    source: &Source,
    (output, plan): (&Path, &Conversion),
) -> Result<()> {
    if let Some(wanted) = recipe.target().filter(|target| *target < plan.bits()) {
        let path = source.path().to_path_buf();
        return Err(MixedError::Budget { path, wanted, least: plan.bits() }.into());
    }
    if recipe.mixes() {
        Sensitivities::load(&file_of(args, output), source)?;
    }
    Ok(())
}

/// Types that kept sensitivities lead to.
pub(super) struct KeptTypes {
    pub(super) chosen: TypeChoices,
    settings: String,
}

impl KeptTypes {
    pub(super) fn plan(&self, source: &Source, plan: &Conversion) -> Conversion {
        planned(source, plan, &self.chosen)
    }

    /// Every choice, and how the sensitivities were measured.
    pub(super) fn text(&self) -> String {
        format!("{}\nsensitivities: {}", mixed_text::every_type(&self.chosen), self.settings)
    }
}

/// The choice of types for a plan that is only shown; `None` where no sensitivities are kept.
pub(super) fn kept_types(
    args: &ProductionArgs,
    recipe: &Recipe,
    source: &Source,
    (output, plan): (&Path, &Conversion),
) -> Result<Option<KeptTypes>> {
    let Some(target) = recipe.target() else { return Ok(None) };
    let Some(kept) = Sensitivities::load(&file_of(args, output), source)?.tensors else { return Ok(None) };
    let chosen = choose_types(source, plan, &kept.losses, target)?;
    Ok(Some(KeptTypes { chosen, settings: kept.settings }))
}

/// Chooses types by losses; tensors that the plan does not make TCQ4 keep theirs.
fn choose_types(source: &Source, plan: &Conversion, losses: &[Candidates], target: f64) -> Result<TypeChoices> {
    let planned: BTreeMap<&str, u64> =
        plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| (t.name.as_str(), t.bytes)).collect();
    let open: Vec<Candidates> = losses.iter().filter(|of| planned.contains_key(of.tensor.as_str())).cloned().collect();
    let smallest: u64 = open.iter().map(|of| planned[of.tensor.as_str()]).sum();
    let whole = Whole { weights: plan.elements(), fixed_bytes: plan.bytes() - smallest };
    let path = source.path().to_path_buf();
    Ok(TypeChoices::choose(&open, whole, target).map_err(|least| MixedError::Budget { path, wanted: target, least })?)
}

/// The plan with the chosen types.
fn planned(source: &Source, plan: &Conversion, chosen: &TypeChoices) -> Conversion {
    let ty = |choice: &TypeChoice| Some((choice.tensor.clone(), choice.chosen.ty.parse::<GgmlType>().ok()?));
    plan.with_types(source, &chosen.tensors.iter().filter_map(ty).collect())
}

/// The marks of the chosen paths.
pub(super) fn marks(chosen: &ActAware) -> Marks {
    let tensors = chosen.marked().map(|(tensor, path)| (tensor.to_owned(), path)).collect();
    Marks { default: Some(chosen.path), tensors }
}

impl Mixed<'_> {
    /// Whether the model runs to find out what suffers.
    pub(super) fn runs(&self) -> Option<&Run<'_>> {
        self.run.filter(|_| self.recipe.sensitivity != SensitivityRule::Estimate)
    }

    /// Makes all choices that were asked for; what was measured for them is kept.
    pub(super) fn choose<'p>(&self, plan: &'p Conversion, groups: &[GroupOutcome]) -> Result<Choices<'p>> {
        if !self.recipe.mixes() {
            return Ok(Choices { plan: Cow::Borrowed(plan), types: None, act_aware: None });
        }
        let path = file_of(self.args, self.output);
        let known = Sensitivities::load(&path, self.source)?;
        let mut cache = known.clone();
        let types = self.types(plan, &mut cache)?;
        let plan = types.as_ref().map_or(Cow::Borrowed(plan), |types| Cow::Owned(planned(self.source, plan, types)));
        let act_aware = self.act_aware(&plan, groups, &mut cache)?;
        if cache != known {
            cache.save(&path, &self.source.shards().collect::<Vec<_>>())?;
            self.session.progress.note(&format!("sensitivities are kept in {}", path.display()));
        }
        Ok(Choices { plan, types, act_aware })
    }

    /// What the losses of a part depend on, in a line.
    fn settings(&self, part: &str) -> String {
        let notes = self.statistics.map(|statistics| {
            let note = |name: &str| statistics.notes.get(name).cloned().unwrap_or_default();
            let (chunks, size) = (statistics.chunk_count, statistics.chunk_size);
            format!("text {}, {}, {chunks} chunks of {size}", note("text.xxh3"), note("selection"))
        });
        let method =
            if self.runs().is_some() { format!("kld, {PROBES} probes, {CHUNKS} chunks") } else { "estimate".into() };
        format!("{part} by {method}; {}; {}", notes.unwrap_or_default(), self.record)
    }

    /// What is kept under the same settings, or measured anew.
    fn kept_or<T: Clone>(
        &self,
        kept: &mut Option<Part<T>>,
        part: &str,
        measure: impl FnOnce() -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let settings = self.settings(part);
        match kept {
            Some(kept) if kept.settings == settings => Ok(kept.losses.clone()),
            _ => {
                if kept.is_some() {
                    self.session
                        .progress
                        .note(&format!("sensitivities of {part} were measured with other settings: measured again"));
                }
                let losses = measure()?;
                *kept = Some(Part { settings, losses: losses.clone() });
                Ok(losses)
            }
        }
    }

    /// Chooses the inputs that take INT8, if that was asked for.
    fn act_aware(
        &self,
        plan: &Conversion,
        groups: &[GroupOutcome],
        cache: &mut Sensitivities,
    ) -> Result<Option<ActAware>> {
        let Some(share) = self.recipe.marked_share() else { return Ok(None) };
        let path = self.recipe.activations;
        let mut losses = self.kept_or(&mut cache.inputs, "inputs", || self.measured_losses(groups, path))?;
        let tcq4: BTreeSet<&str> = plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.as_str()).collect();
        for loss in &mut losses {
            let before = loss.tensors.len();
            loss.tensors.retain(|name| tcq4.contains(name.as_str()));
            // Tensors of larger types read the input as it is.
            let left = loss.tensors.len() as f64 / before.max(1) as f64;
            loss.multiply_adds = loss.tensors.iter().map(|name| self.multiply_adds(name)).sum();
            loss.estimate *= left;
            loss.kld = loss.kld.map(|kld| kld * left);
        }
        losses.retain(|loss| !loss.tensors.is_empty());
        let chosen = ActAware::choose(path, losses, share);
        self.session.printer.text(&mixed_text::inputs(&chosen));
        Ok(Some(chosen))
    }

    /// Chooses types, if a target was given.
    fn types(&self, plan: &Conversion, cache: &mut Sensitivities) -> Result<Option<TypeChoices>> {
        let Some(target) = self.recipe.target() else { return Ok(None) };
        let losses = self.kept_or(&mut cache.tensors, "tensors", || self.type_losses(plan))?;
        let chosen = choose_types(self.source, plan, &losses, target)?;
        self.session.printer.text(&mixed_text::types(&chosen));
        Ok(Some(chosen))
    }
}
