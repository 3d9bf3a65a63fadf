//! What `convert` and `quantize` share: show the plan, prepare, encode, write, and say what was done.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::effort::{Effort, TextPasses, Times};
use super::mixed::{self, Choices, Mixed};
use super::{mixed_losses, plan_text};
use crate::calib::Statistics;
use crate::cli::args::ProductionArgs;
use crate::cli::device::{DeviceUse, choose};
use crate::cli::{Outcome, Session, settings};
use crate::convert::{
    CalibrationValue, Codes, Compensation, Consumption, Conversion, Converted, Job, Measure, MomentsUse, Noise,
    OutputError, Part, Provenance, SecondMoments, Sequential, TensorLoss, convert, convert_part, output_metadata,
};
use crate::device::TileEncoder;
use crate::error::{Class, ConvertError, Result};
use crate::gguf::{Plan, Source};
use crate::math::Permutation;
use crate::quant::recipe::RoundingRule;
use crate::quant::step::{Kind, Needs};
use crate::quant::{ActAware, Prepared, Recipe, StepRecord, TypeChoices, prepare};
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;
use crate::util::shard::Shard;
use crate::util::units::{Bytes, Elapsed};

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
            check_target(&path, self.args.out.force, &inputs)?;
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
        let begun = match self.way {
            Way::Consuming(consumption) => consumption.transforms(self.source)?,
            _ => None,
        };
        let prepared = match begun {
            Some(transforms) => Prepared { transforms, ..Prepared::default() },
            None => prepare(self.source, &read, statistics, &settings, &self.session.progress)?,
        };
        for notice in &prepared.notices {
            self.session.progress.note(notice);
        }
        let codes = match (recipe.rounding, statistics, evidence.moments) {
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
                sequential: evidence.sequential,
            }),
            (RoundingRule::Greedy, Some(statistics), _) => Codes::Greedy(statistics),
            _ => Codes::Nearest,
        };
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
        let (gpu, device) = choose(self.session, &self.args.device, recipe.encoder)?;
        let encoder = gpu.as_ref().map(|gpu| TileEncoder::new(gpu, recipe.encoder)).transpose()?;
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
        let target = settings::target(self.output, &self.args.out, self.source);
        let mut converted = match self.way {
            Way::Whole => convert(&job, &target, &self.session.progress)?,
            Way::Consuming(consumption) => consumption.convert(&job, &target, &self.session.progress)?,
            Way::Part(shard) => {
                let part = Part::of(self.source, plan, shard);
                let (some, all) = (part.tensors.len(), plan.tensors.len());
                self.session.printer.text(&format!("part {shard}: {some} of {all} tensors"));
                convert_part(&job, &target, &part, &self.session.progress)?
            }
        };
        converted.record_steps(&prepared, recipe, orders_given, statistics.is_some());
        let seconds = started.elapsed();
        let bits = plan.bits();
        self.session.printer.text(&done(&converted, bits, Elapsed(seconds)));
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
            shard: if let Way::Part(shard) = self.way { Some(shard.to_string()) } else { None },
        };
        self.session.printer.record("convert", record);
        let fell_back = converted.losses.iter().flat_map(|loss| &loss.steps).any(StepRecord::fell_back);
        let narrowed = |loss: &TensorLoss| loss.moments.as_ref().is_some_and(MomentsUse::is_fallback);
        let fell_back = fell_back || device.fell_back() || converted.losses.iter().any(narrowed);
        Ok(if self.args.types.strict && fell_back { Class::Strict.code() } else { 0 })
    }
}

/// Prints a recipe as TOML that `--recipe` reads.
pub(super) fn print_recipe(session: &Session, recipe: &Recipe) {
    session.printer.text(recipe.to_toml().trim_end());
    session.printer.record("recipe", json!({ "recipe": recipe }));
}

fn refuse_substitutions(source: &Source, plan: &Conversion) -> Result<()> {
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

fn done(converted: &Converted, bits: f64, elapsed: Elapsed) -> String {
    let files = converted.outputs.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join("\n");
    let written = format!("{files}\n{}, {bits:.3} bits a weight, in {elapsed}", Bytes(converted.bytes));
    if converted.losses.is_empty() {
        return written;
    }
    let weights: u64 = converted.losses.iter().map(|l| l.weights).sum();
    let error = converted.losses.iter().map(|l| l.error_rel * l.weights as f64).sum::<f64>() / weights.max(1) as f64;
    let worst = converted.losses.iter().max_by(|a, b| a.error_rel.total_cmp(&b.error_rel));
    let worst = worst.map_or(String::new(), |TensorLoss { name, error_rel, .. }| {
        format!(", at most {:.3} % ({name})", error_rel * 100.0)
    });
    let text = format!(
        "{written}\n{}TCQ4 tensors: {}, relative squared error of the weights {:.3} %{worst}",
        fallbacks(&converted.losses),
        converted.losses.len(),
        error * 100.0,
    );
    text + &output_errors(&converted.losses) + &coverage(&converted.losses)
}

/// Experts that the text did not cover, and columns that were not weighed together.
fn coverage(losses: &[TensorLoss]) -> String {
    const NAMED: usize = 5;
    let used = || losses.iter().filter_map(|loss| Some((&loss.name, loss.moments.as_ref()?)));
    let blocks: Vec<_> = used().filter_map(|(name, moments)| Some((name, moments.columns_together?))).collect();
    let mut text = blocks.first().map_or(String::new(), |(name, columns)| {
        format!("\n{} tensors were rounded in blocks of {columns} columns, as memory allowed ({name} ..)", blocks.len())
    });
    let experts: Vec<_> = used().filter_map(|(name, moments)| Some((name, moments.experts.as_ref()?))).collect();
    if experts.is_empty() {
        return text;
    }
    let own = experts.iter().filter(|(_, experts)| experts.own).count();
    let starved: Vec<_> = experts.iter().filter(|(_, experts)| !experts.starved.is_empty()).collect();
    let fewest = experts.iter().flat_map(|(_, experts)| &experts.rows).min().copied().unwrap_or(0);
    text += &format!(
        "\nexperts: second moments of their own in {own} of {} tensors, fewest rows of one {fewest}; starved ones in {}",
        experts.len(),
        starved.len()
    );
    for (name, experts) in starved.iter().take(NAMED) {
        let list = experts.starved.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let (few, all) = (experts.starved.len(), experts.rows.len());
        text += &format!("\n  {name}: {few} of {all} saw fewer than {} rows: {list}", experts.floor);
    }
    if starved.len() > NAMED { text + "\n  .." } else { text }
}

/// A line for each fallback and its reason, with the number of tensors.
fn fallbacks(losses: &[TensorLoss]) -> String {
    let mut counts: BTreeMap<(Kind, &str, &str, &str), usize> = BTreeMap::new();
    for step in losses.iter().flat_map(|loss| &loss.steps) {
        if let Some(because) = &step.fallback {
            *counts.entry((step.step, step.asked, step.done, because)).or_default() += 1;
        }
    }
    let line = |((kind, asked, done, because), count): ((Kind, &str, &str, &str), usize)| {
        let what = kind.option().unwrap_or_default().trim_start_matches('-');
        let instead = if asked == done { asked.to_owned() } else { format!("{done} instead of {asked}") };
        format!("{what} {instead} for {count} tensors: {because}\n")
    };
    counts.into_iter().map(line).collect()
}

/// The mean error of the outputs, where codes were chosen by it.
fn output_errors(losses: &[TensorLoss]) -> String {
    let found: Vec<_> = losses.iter().filter_map(|loss| loss.output).collect();
    if found.is_empty() {
        return String::new();
    }
    let what = match found[0].measure {
        Measure::Mean => "mean outputs",
        Measure::SecondMoment => "outputs",
    };
    let mean = |of: fn(&OutputError) -> f64| 100.0 * found.iter().map(of).sum::<f64>() / found.len() as f64;
    let rest = match losses.len() - found.len() {
        0 => String::new(),
        n => format!("; {n} tensors took the nearest codes"),
    };
    let (nearest, chosen) = (mean(|e| e.nearest), mean(|e| e.compensated));
    format!(
        "\nrelative squared error of the {what}, mean over tensors: {nearest:.3} % with the nearest codes, {chosen:.3} % with these{rest}"
    )
}
