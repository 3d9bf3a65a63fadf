//! What `convert` and `quantize` share: show the plan, prepare, encode, write, and say what was done.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::mixed::{self, Choices, Mixed};
use super::{mixed_losses, plan_text};
use crate::calib::Statistics;
use crate::cli::args::ProductionArgs;
use crate::cli::{Outcome, Session, settings};
use crate::convert::{
    CalibrationValue, Codes, Compensation, Conversion, Converted, Job, Measure, OutputError, Provenance, TensorLoss,
    convert, output_metadata,
};
use crate::error::{Class, ConvertError, Result};
use crate::gguf::{Plan, Source};
use crate::math::Permutation;
use crate::quant::{ActAware, Prepared, TypeChoices, prepare};
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;
use crate::util::units::{Bytes, Elapsed};

/// A model on its way to a file.
pub(super) struct Production<'a> {
    pub(super) session: &'a Session,
    pub(super) source: &'a Source,
    pub(super) output: &'a Path,
    pub(super) args: &'a ProductionArgs,
    /// Files read besides the model, which no output may replace.
    pub(super) inputs: &'a [PathBuf],
    /// What second moments may take, where codes are chosen by them.
    pub(super) moments: Option<u64>,
}

/// How codes are chosen; what by is in the evidence.
#[derive(Default)]
pub(super) enum Choice<'a> {
    #[default]
    Nearest,
    Greedy,
    Gptq(Compensation<'a>),
}

/// What is known about the model's activations.
#[derive(Default)]
pub(super) struct Evidence<'a> {
    pub(super) statistics: Option<Statistics>,
    /// Where the statistics lie, if in a file.
    pub(super) statistics_file: Option<String>,
    pub(super) orders: Option<BTreeMap<String, Permutation>>,
    /// How codes are chosen.
    pub(super) choice: Choice<'a>,
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
    /// What is known about the calibration text.
    text: Option<serde_json::Value>,
}

impl Production<'_> {
    /// Plans, shows the plan, and refuses what can be refused before any work. `None` if only the plan was wanted.
    pub(super) fn plan(&self) -> Result<Option<Conversion>> {
        mixed::check(self.args)?;
        let plan = Conversion::new(self.source, &settings::plan_settings(&self.args.types))?;
        mixed::check_plan(self.args, self.source, self.output, &plan)?;
        if self.args.out.dry_run {
            let kept = mixed::kept_types(self.args, self.source, self.output, &plan)?;
            let plan = kept.as_ref().map_or(Cow::Borrowed(&plan), |kept| Cow::Owned(kept.plan(self.source, &plan)));
            self.session.printer.text(&plan_text::full(self.source, &plan, self.moments));
            if let Some(kept) = &kept {
                self.session.printer.text(&kept.text());
            } else if self.args.mixed.target_bpw.is_some() {
                self.session
                    .progress
                    .note("types for --target-bpw are chosen after calibration: no sensitivities are kept yet");
            }
            let types = kept.as_ref().map(|kept| &kept.chosen);
            let (bytes, bits) = (plan.bytes(), plan.bits());
            let record = json!({ "plan": plan, "types": types, "bytes": bytes, "bits_per_weight": bits });
            self.session.printer.record("plan", record);
        } else {
            self.session.printer.text(&plan_text::summary(self.source, &plan, self.moments));
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
        if let Some(path) = mixed::kept_at(self.args, self.output) {
            settings::check_side_output(&path, self.output, true, self.source, self.inputs)?;
        }
        Ok(Some(plan))
    }

    /// The files that will be written: the output, or its shards.
    fn outputs(&self, plan: &Conversion) -> Result<Vec<PathBuf>> {
        let target = settings::target(self.output, &self.args.out, self.source);
        let alignment = self.source.alignment();
        let layout = Plan::sharded(self.source.metadata(), plan.specs(), alignment, &target.sharding, plan.dialect());
        Ok(layout.map_err(|e| e.at(self.output))?.paths(self.output))
    }

    /// Prepares, encodes and writes.
    pub(super) fn finish(&self, plan: &Conversion, evidence: Evidence<'_>) -> Outcome {
        let started = Instant::now();
        let codec = self.session.codec(self.args.method.encoder)?;
        let calibration = calibration_keys(&evidence);
        let statistics = evidence.statistics.as_ref();
        let settings =
            settings::method_settings(&self.args.method, plan, statistics.is_some(), evidence.orders.clone(), codec)?;
        let read = |tensor: &_, first, out: &mut [f32]| crate::convert::read_rows(self.source, tensor, first, out);
        let prepared = prepare(self.source, &read, statistics, &settings, &self.session.progress)?;
        for notice in &prepared.notices {
            self.session.progress.note(notice);
        }
        let codes = match (evidence.choice, statistics) {
            (Choice::Gptq(compensation), _) => Codes::Gptq(compensation),
            (Choice::Greedy, Some(statistics)) => Codes::Greedy(statistics),
            (Choice::Nearest | Choice::Greedy, _) => Codes::Nearest,
        };
        let recipe = settings::recipe(&settings, &codes);
        let mixed = Mixed {
            session: self.session,
            source: self.source,
            statistics,
            transforms: &prepared.transforms,
            codec,
            args: self.args,
            read: &read,
            output: self.output,
            recipe: recipe.clone(),
            rounding: if matches!(codes, Codes::Gptq(_)) { mixed_losses::GPTQ } else { 1.0 },
            run: evidence.run,
        };
        let Choices { plan, types, act_aware } = mixed.choose(plan, &prepared.groups)?;
        let plan = plan.as_ref();
        let provenance = Provenance { encoder: self.args.method.encoder, recipe, calibration };
        let mut metadata = output_metadata(self.source, plan, &prepared.transforms, &provenance);
        if let Some(chosen) = &act_aware {
            mixed::marks(chosen).write(&mut metadata);
        }
        let job = Job { source: self.source, plan, transforms: &prepared.transforms, codec, codes, metadata };
        let target = settings::target(self.output, &self.args.out, self.source);
        let converted = convert(&job, &target, &self.session.progress)?;
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
            text: statistics.and_then(super::statistics::composition),
        };
        self.session.printer.record("convert", record);
        let fell_back = prepared.groups.iter().any(|g| g.unscaled.is_some() || g.unordered.is_some());
        Ok(if self.args.types.strict && fell_back { Class::Strict.code() } else { 0 })
    }
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
        "{written}\nTCQ4 tensors: {}, relative squared error of the weights {:.3} %{worst}",
        converted.losses.len(),
        error * 100.0,
    );
    text + &output_errors(&converted.losses)
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
        n => format!("; {n} tensors whose inputs were not seen took the nearest codes"),
    };
    let (nearest, chosen) = (mean(|e| e.nearest), mean(|e| e.compensated));
    format!(
        "\nrelative squared error of the {what}, mean over tensors: {nearest:.3} % with the nearest codes, {chosen:.3} % with these{rest}"
    )
}
