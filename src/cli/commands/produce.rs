//! What `convert` and `quantize` share: show the plan, prepare, encode, write, and say what was done.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::effort::{Effort, TextPasses, Times};
use super::mixed::{self, Choices, Mixed};
use super::{done_text, mixed_losses, plan_text};
use crate::calib::Statistics;
use crate::cli::args::ProductionArgs;
use crate::cli::device::{Device, DeviceUse};
use crate::cli::{Outcome, Session, settings};
use crate::convert::{
    CalibrationValue, Codes, Compensation, Consumption, Conversion, Converted, Job, MomentsUse, Noise, Part,
    Provenance, SecondMoments, Sequential, TensorLoss, convert, convert_part, output_metadata,
};
use crate::device::TileEncoder;
use crate::error::{Class, ConvertError, Result};
use crate::gguf::{Plan, Source};
use crate::math::Permutation;
use crate::quant::recipe::RoundingRule;
use crate::quant::step::Needs;
use crate::quant::{ActAware, Prepared, ReadRows, Recipe, Settings, StepRecord, TypeChoices, prepare};
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;
use crate::util::shard::Shard;
use crate::util::units::Elapsed;

/// A model on its way to a file.
pub(super) struct Production<'a> {
    pub(super) session: &'a Session,
    pub(super) source: &'a Source,
    pub(super) output: &'a Path,
    pub(super) args: &'a ProductionArgs,
    /// Files read besides the model, which no output may replace.
    pub(super) inputs: &'a [PathBuf],
    /// How weights are prepared and rounded.
    pub(super) recipe: &'a Recipe,
    /// How much of it is written, and what becomes of the source.
    pub(super) way: Way<'a>,
}

/// How a model goes to a file.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// All of it.
    Whole,
    /// Some of its tensors.
    Part(Shard),
    /// All of it, deleting the source shard by shard.
    Consuming(&'a Consumption),
}

impl Way<'_> {
    /// The part that is written, if not all is.
    fn shard(self) -> Option<String> {
        if let Self::Part(shard) = self { Some(shard.to_string()) } else { None }
    }
}

/// What is known about the model's activations.
#[derive(Default)]
pub(super) struct Evidence<'a> {
    pub(super) statistics: Option<Statistics>,
    /// Where the statistics lie, if in a file.
    pub(super) statistics_file: Option<String>,
    pub(super) orders: Option<BTreeMap<String, Permutation>>,
    /// Where second moments come from.
    pub(super) moments: Option<&'a dyn SecondMoments>,
    /// How blocks are quantised in sequence, if they are.
    pub(super) sequential: Option<Sequential<'a>>,
    /// The model with its text, where it can be run.
    pub(super) run: Option<&'a super::statistics::Run<'a>>,
}

#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    converted: &'a Converted,
    bits_per_weight: f64,
    seconds: f64,
    plan: &'a Conversion,
    prepared: &'a Prepared,
    /// The types that `--target-bpw` chose, and why.
    types: Option<&'a TypeChoices>,
    /// The inputs that were marked for another activation path, and why.
    act_aware: Option<&'a ActAware>,
    /// What encoded the tiles.
    device: &'a DeviceUse,
    /// What is known about the calibration text.
    text: Option<serde_json::Value>,
    /// Which part of the tensors was written, if not all were.
    shard: Option<String>,
}

impl Production<'_> {
    /// Plans, shows the plan with what it takes, and refuses what can be refused before any work. `None` if only the plan was wanted. `text` is
    /// what will run through the model; `time` is asked for the times only if they are wanted.
    pub(super) fn plan(
        &self,
        text: Option<TextPasses>,
        time: impl FnOnce(&Conversion) -> Result<Times>,
    ) -> Result<Option<Conversion>> {
        mixed::check(self.args, self.recipe)?;
        let plan = Conversion::new(self.source, &settings::plan_settings(&self.args.types, self.recipe))?;
        mixed::check_plan(self.args, self.recipe, self.source, (self.output, &plan))?;
        let mut effort = Effort::new(self.source, &plan, self.recipe, text);
        if self.args.out.dry_run {
            if self.args.out.timed {
                effort.times = Some(time(&plan)?);
            }
            let kept = mixed::kept_types(self.args, self.recipe, self.source, (self.output, &plan))?;
            let plan = kept.as_ref().map_or(Cow::Borrowed(&plan), |kept| Cow::Owned(kept.plan(self.source, &plan)));
            self.session.printer.text(&plan_text::full(self.source, &plan, &effort));
            if let Some(kept) = &kept {
                self.session.printer.text(&kept.text());
            } else if self.recipe.target().is_some() {
                let note = "types for --target-bpw are chosen after calibration: no sensitivities are kept yet";
                self.session.progress.note(note);
            }
            let types = kept.as_ref().map(|kept| &kept.chosen);
            let (bytes, bits) = (plan.bytes(), plan.bits());
            let record = json!({
                "plan": plan, "bytes": bytes, "bits_per_weight": bits, "types": types, "recipe": self.recipe, "effort": effort
            });
            self.session.printer.record("plan", record);
        } else {
            self.session.printer.text(&plan_text::summary(self.source, &plan, &effort));
        }
        if self.args.types.strict {
            refuse_substitutions(self.source, &plan)?;
        }
        if self.args.out.dry_run {
            return Ok(None);
        }
        let inputs: Vec<&Path> = self.source.shards().chain(self.inputs.iter().map(PathBuf::as_path)).collect();
        for path in self.outputs(&plan)? {
            let own = matches!(self.way, Way::Consuming(consumption) if consumption.has_made(&path));
            check_target(&path, self.args.out.force || own, &inputs)?;
        }
        if let Some(path) = mixed::kept_at(self.args, self.recipe, self.output) {
            settings::check_side_output(&path, self.output, true, self.source, self.inputs)?;
        }
        Ok(Some(plan))
    }

    /// The files that will be written: the output, or its shards.
    fn outputs(&self, plan: &Conversion) -> Result<Vec<PathBuf>> {
        if matches!(self.way, Way::Part(_)) {
            return Ok(vec![self.output.to_path_buf()]);
        }
        let target = settings::target(self.output, &self.args.out, self.source);
        let alignment = self.source.alignment();
        let layout = Plan::sharded(self.source.metadata(), plan.specs(), alignment, &target.sharding, plan.dialect());
        Ok(layout.map_err(|e| e.at(self.output))?.paths(self.output))
    }

    /// The transforms of all tensors: those of an interrupted run, where weights that they were chosen by may be gone.
    fn prepare(&self, read: &ReadRows<'_>, statistics: Option<&Statistics>, settings: &Settings) -> Result<Prepared> {
        if let Way::Consuming(consumption) = self.way
            && let Some(transforms) = consumption.transforms(self.source)?
        {
            return Ok(Prepared { transforms, ..Prepared::default() });
        }
        prepare(self.source, read, statistics, settings, &self.session.progress)
    }

    /// Encodes and writes what this way asks for.
    fn write(&self, job: &Job<'_>) -> Result<Converted> {
        let (target, progress) = (settings::target(self.output, &self.args.out, self.source), &self.session.progress);
        match self.way {
            Way::Whole => convert(job, &target, progress),
            Way::Consuming(consumption) => consumption.convert(job, &target, progress),
            Way::Part(shard) => {
                let part = Part::of(self.source, job.plan, shard);
                let (some, all) = (part.tensors.len(), job.plan.tensors.len());
                self.session.printer.text(&format!("part {shard}: {some} of {all} tensors"));
                convert_part(job, &target, &part, progress)
            }
        }
    }

    /// Prepares, encodes and writes.
    pub(super) fn finish(&self, plan: &Conversion, evidence: Evidence<'_>) -> Outcome {
        let started = Instant::now();
        let recipe = &Recipe {
            layer_batch: evidence.sequential.as_ref().map_or(self.recipe.layer_batch, |sequential| sequential.blocks),
            ..self.recipe.clone()
        };
        let codec = self.session.codec(recipe.encoder)?;
        let calibration = calibration_keys(&evidence);
        let statistics = evidence.statistics.as_ref();
        let orders_given = evidence.orders.is_some();
        let settings = recipe.settings(settings::targets(plan), evidence.orders, codec);
        let read = |tensor: &_, first, out: &mut [f32]| crate::convert::read_rows(self.source, tensor, first, out);
        let prepared = self.prepare(&read, statistics, &settings)?;
        for notice in &prepared.notices {
            self.session.progress.note(notice);
        }
        let codes = codes(recipe, statistics, (evidence.moments, evidence.sequential));
        let record = recipe.to_record(orders_given).to_string();
        let mixed = Mixed {
            session: self.session,
            source: self.source,
            statistics,
            transforms: &prepared.transforms,
            codec,
            recipe,
            args: self.args,
            read: &read,
            output: self.output,
            record: recipe.clone().unmixed().to_record(orders_given).to_string(),
            rounding: if recipe.feeds_back() && matches!(codes, Codes::Gptq(_)) { mixed_losses::GPTQ } else { 1.0 },
            run: evidence.run,
        };
        let Choices { plan, types, act_aware } = mixed.choose(plan, &prepared.groups)?;
        let plan = plan.as_ref();
        let provenance = Provenance { encoder: recipe.encoder, recipe: record, calibration };
        let mut metadata = output_metadata(self.source, plan, &prepared.transforms, &provenance);
        if let Some(chosen) = &act_aware {
            mixed::marks(chosen).write(&mut metadata);
        }
        let transforms = &prepared.transforms;
        let Device { gpu, use_: device } = self.session.encoding_device(&self.args.device, recipe.encoder)?;
        let encoder = gpu.as_deref().map(|gpu| TileEncoder::new(gpu, recipe.encoder)).transpose()?;
        let job = Job {
            source: self.source,
            plan,
            transforms,
            codec,
            device: encoder.as_ref().map(|encoder| encoder as _),
            codes,
            statistics,
            metadata,
        };
        let mut converted = self.write(&job)?;
        converted.record_steps(&prepared, recipe, orders_given, statistics.is_some());
        let seconds = started.elapsed();
        let bits = plan.bits();
        self.session.printer.text(&done_text::full(&converted, bits, Elapsed(seconds)));
        let record = Record {
            converted: &converted,
            bits_per_weight: bits,
            seconds: seconds.as_secs_f64(),
            plan,
            prepared: &prepared,
            types: types.as_ref(),
            act_aware: act_aware.as_ref(),
            device: &device,
            text: statistics.and_then(super::statistics::composition),
            shard: self.way.shard(),
        };
        self.session.printer.record("convert", record);
        let fell_back = device.fell_back() || fell_back(&converted.losses);
        Ok(if self.args.types.strict && fell_back { Class::Strict.code() } else { 0 })
    }
}

/// How codes are chosen, by the recipe and by what is known.
fn codes<'a>(
    recipe: &Recipe,
    statistics: Option<&'a Statistics>,
    (moments, sequential): (Option<&'a dyn SecondMoments>, Option<Sequential<'a>>),
) -> Codes<'a> {
    match (recipe.rounding, statistics, moments) {
        (_, _, Some(moments)) if recipe.needs().covers(Needs::SECOND_MOMENTS) => Codes::Gptq(Compensation {
            moments,
            rounding: recipe.moves(),
            damp: recipe.damp,
            act_order: recipe.act_order,
            noise: statistics.filter(|_| recipe.rounding == RoundingRule::Gptaq).map(|statistics| Noise {
                statistics,
                path: recipe.activations,
                share: recipe.shrink as f32,
            }),
            memory: recipe.memory.0,
            sequential,
        }),
        (RoundingRule::Greedy, Some(statistics), _) => Codes::Greedy(statistics),
        _ => Codes::Nearest,
    }
}

/// Whether a step was not done as asked, or rows were narrowed for want of memory.
fn fell_back(losses: &[TensorLoss]) -> bool {
    let narrowed = |loss: &TensorLoss| loss.moments.as_ref().is_some_and(MomentsUse::is_fallback);
    losses.iter().any(narrowed) || losses.iter().flat_map(|loss| &loss.steps).any(StepRecord::fell_back)
}

/// Prints a recipe as TOML that `--recipe` reads.
pub(super) fn print_recipe(session: &Session, recipe: &Recipe) {
    session.printer.text(recipe.to_toml().trim_end());
    session.printer.record("recipe", json!({ "recipe": recipe }));
}

/// Refuses a plan that takes another type where TCQ4 should be.
pub(super) fn refuse_substitutions(source: &Source, plan: &Conversion) -> Result<()> {
    let Some(first) = plan.substitutions().next() else { return Ok(()) };
    Err(ConvertError::Substitution {
        path: source.path().to_path_buf(),
        count: plan.substitutions().count(),
        tensor: first.name.clone(),
        problem: first.reason.to_string(),
    }
    .into())
}

/// What the file says about its calibration: our keys, and those that llama-quantize writes after using an imatrix.
fn calibration_keys(evidence: &Evidence<'_>) -> Vec<(String, CalibrationValue)> {
    let Some(statistics) = &evidence.statistics else { return Vec::new() };
    let first = statistics.datasets.first().cloned().unwrap_or_default();
    let entries = statistics.entries.len() as u32;
    let mut keys = vec![
        ("tcq4.calibration.datasets", CalibrationValue::Texts(statistics.datasets.clone())),
        ("tcq4.calibration.chunk_count", CalibrationValue::Number(statistics.chunk_count)),
        ("tcq4.calibration.chunk_size", CalibrationValue::Number(statistics.chunk_size)),
        ("quantize.imatrix.dataset", CalibrationValue::Text(first)),
        ("quantize.imatrix.entries_count", CalibrationValue::Number(entries)),
        ("quantize.imatrix.chunks_count", CalibrationValue::Number(statistics.chunk_count)),
    ];
    if let Some(file) = &evidence.statistics_file {
        keys.push(("quantize.imatrix.file", CalibrationValue::Text(file.clone())));
    }
    let notes = statistics.notes.iter();
    let notes = notes.map(|(note, value)| (format!("tcq4.calibration.{note}"), CalibrationValue::Text(value.clone())));
    keys.into_iter().map(|(key, value)| (key.to_string(), value)).chain(notes).collect()
}
