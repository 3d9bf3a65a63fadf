//! Arguments resolved into the plain settings of the library: nothing is left open here, and nothing is done yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::args::{MethodArgs, OutputArgs, ProductionArgs, RoundingArgs, SequentialArgs, TypeArgs};
use super::values::Compat;
use crate::convert::{Conversion, PlanSettings, Target, TypeRule};
use crate::error::{Error, Result};
use crate::gguf::{Sharding, Source};
use crate::model::Arch;
use crate::quant::recipe::{Memory, Preset, RoundingRule, TypeOrAuto};
use crate::quant::{Changes, Needs, Recipe};
use crate::tcq::Encoder;
use crate::util::atomic_file::{check_target, same_file};

/// What becomes of the tensors.
pub(super) fn plan_settings(types: &TypeArgs, recipe: &Recipe) -> PlanSettings {
    PlanSettings {
        embedding_type: recipe.embedding_type.0,
        output_type: recipe.output_type.0,
        fallback: types.fallback,
        rules: types.tensor_types.iter().map(|r| TypeRule { pattern: r.pattern.clone(), ty: r.ty }).collect(),
        allow_requantize: types.allow_requantize,
        fork_ids: types.compat == Some(Compat::LlamaCppRrs),
    }
}

/// The options of a command that choose its recipe.
#[derive(Clone, Copy)]
pub(super) struct Choices<'a> {
    pub(super) method: &'a MethodArgs,
    pub(super) rounding: Option<&'a RoundingArgs>,
    pub(super) sequential: Option<&'a SequentialArgs>,
    pub(super) production: Option<&'a ProductionArgs>,
    pub(super) samples: Option<u32>,
    /// Whether statistics are measured and kept in a file.
    pub(super) keeps_statistics: bool,
}

impl<'a> Choices<'a> {
    /// Those of a command that takes no others.
    pub(super) fn of(method: &'a MethodArgs) -> Self {
        Self { method, rounding: None, sequential: None, production: None, samples: None, keeps_statistics: false }
    }
}

/// What the command line says of the recipe.
fn changes(choices: &Choices<'_>) -> Changes {
    let Choices { method, rounding, sequential, production, samples, .. } = *choices;
    let of_rounding = rounding.map(|rounding| Changes {
        preset: rounding.preset.map(Into::into),
        rounding: rounding.rounding.map(Into::into),
        damp: rounding.damp.map(|damp| damp.0),
        act_order: (rounding.act_order || rounding.no_act_order).then_some(rounding.act_order),
        shrink: rounding.shrink.map(|share| share.0),
        refine: rounding.refine,
        memory: rounding.memory.map(|size| Memory(size.0)),
        ..Changes::default()
    });
    Changes {
        scales: method.scales.map(Into::into),
        salience: method.salience.map(Into::into),
        alpha_grid: method.alpha_grid,
        order: method.order.map(Into::into),
        perm_apply: method.perm_apply.map(Into::into),
        activations: method.activations,
        encoder: method.encoder,
        sequential: sequential.filter(|sequential| sequential.sequential).map(|_| true),
        layer_batch: sequential.and_then(|sequential| sequential.layer_batch),
        embedding_type: production.and_then(|made| made.types.embedding_type).map(|ty| TypeOrAuto(Some(ty))),
        output_type: production.and_then(|made| made.types.output_type).map(|ty| TypeOrAuto(Some(ty))),
        target_bpw: production.and_then(|made| made.mixed.target_bpw).map(|bits| bits.0),
        act_aware: production.and_then(|made| made.mixed.act_aware).map(|share| share.0),
        sensitivity: production.and_then(|made| made.mixed.sensitivity).map(Into::into),
        samples,
        ..of_rounding.unwrap_or_default()
    }
}

/// What is known about a model before its recipe is resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// Whether it has experts.
    pub(super) experts: bool,
    /// Whether its token embedding is its output head.
    pub(super) tied: bool,
    /// Whether there are, or will be, statistics of its activations.
    pub(super) statistics: bool,
}

impl Setting {
    /// That of `source`.
    pub(super) fn of(source: &Source, statistics: bool) -> Self {
        let experts = Arch::from_metadata(source.metadata()).experts > 0;
        Self { experts, tied: source.tensor("output.weight").is_none(), statistics }
    }
}

/// Resolves the recipe: that of the preset, changed by the recipe file, changed by the command line. Without statistics there is nothing to scale
/// by, and no order unless one is asked for.
///
/// # Errors
/// A recipe file that cannot be read; choices that do not go together.
pub(super) fn recipe(choices: &Choices<'_>, setting: Setting) -> Result<Recipe> {
    let file = choices.method.recipe.as_deref().map(Changes::read).transpose()?.unwrap_or_default();
    let line = changes(choices);
    let base = line.preset.or(file.preset).unwrap_or(Preset::Balanced).recipe(setting.experts);
    let base = if setting.statistics { base } else { base.without_statistics() };
    let mut recipe = base.with(&file).with(&line);
    let of_embedding = line.embedding_type.or(file.embedding_type);
    if setting.tied && of_embedding.is_some() && line.output_type.or(file.output_type).is_none() {
        recipe.output_type = TypeOrAuto(None); // one tensor: what was said of it goes before the preset's head
    }
    let chosen = line.rounding.or(file.rounding).is_some() || line.preset.or(file.preset).is_some();
    if recipe.encoder != Encoder::Default && !chosen {
        recipe.rounding = RoundingRule::Nearest;
    }
    if recipe.rounding != RoundingRule::Nearest && recipe.encoder == Encoder::Parity {
        return Err(Error::Usage {
            message: "GPTQ and greedy rounding choose other codes than `--encoder parity` stands for".into(),
            hint: Some("leave out --encoder parity, or pass --rounding nearest".into()),
        });
    }
    if recipe.rounding == RoundingRule::Greedy && recipe.encoder == Encoder::Weighted {
        return Err(Error::Usage {
            message: "greedy rounding does without the second moments that `--encoder weighted` needs".into(),
            hint: Some("pass --rounding gptq or --rounding nearest".into()),
        });
    }
    let sequel = choices
        .sequential
        .is_some_and(|sequential| (sequential.resume && !choices.keeps_statistics) || sequential.layer_batch.is_some());
    if sequel && !recipe.sequential {
        return Err(Error::Usage {
            message: "--layer-batch is of --sequential, and --resume of --sequential or --stats".into(),
            hint: Some("add --sequential, or leave them out".into()),
        });
    }
    if recipe.sequential && !recipe.needs().covers(Needs::SECOND_MOMENTS) {
        return Err(Error::Usage {
            message: "--sequential measures what only GPTQ rounds by".into(),
            hint: Some("add --rounding gptq or --preset best".into()),
        });
    }
    Ok(recipe)
}

/// Refuses a recipe with a step that cannot do without something that is not `available`.
///
/// # Errors
/// The first such step.
pub(super) fn check_needs(recipe: &Recipe, available: Needs) -> Result<()> {
    let steps = recipe.steps();
    let Some(step) = steps.iter().find(|step| !available.covers(step.requires())) else { return Ok(()) };
    let missing = step.requires().without(available);
    let hint = if missing.covers(Needs::SECOND_MOMENTS) {
        "pass --second-moments FILE, made by `tcq4 calibrate --second-moments`, or use `tcq4 convert`, which runs the model"
    } else {
        "pass --stats FILE, made by `tcq4 calibrate --stats` or llama-imatrix, or use `tcq4 convert`"
    };
    Err(Error::Usage {
        message: format!("{} {} needs {missing} of the activations", step.kind().option().unwrap_or(""), step.choice()),
        hint: Some(hint.into()),
    })
}

/// The tensors that become TCQ4.
pub(super) fn targets(plan: &Conversion) -> BTreeSet<String> {
    plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect()
}

/// Checks an output that is written besides `main`: it must be another file, and none of the inputs.
///
/// # Errors
/// What [`check_target`] refuses, and one file for both.
pub(super) fn check_side_output(
    side: &Path,
    main: &Path,
    force: bool,
    source: &Source,
    inputs: &[PathBuf],
) -> Result<()> {
    let inputs: Vec<&Path> = source.shards().chain(inputs.iter().map(PathBuf::as_path)).collect();
    check_target(side, force, &inputs)?;
    let folder =
        |path: &Path| path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let same_name = side.file_name() == main.file_name() && same_file(&folder(side), &folder(main));
    if same_name || same_file(side, main) {
        return Err(Error::Usage {
            message: format!("{} and {} are one file, for two outputs", main.display(), side.display()),
            hint: Some("choose another name for one of them".into()),
        });
    }
    Ok(())
}

/// Where the output goes and how it is divided.
pub(super) fn target(output: &Path, out: &OutputArgs, source: &Source) -> Target {
    let sharding = match out.split_max_size {
        Some(size) => Sharding::MaxBytes(size.0),
        None if out.keep_split => Sharding::Counts(source.shard_sizes()),
        None => Sharding::Single,
    };
    Target { path: output.to_path_buf(), force: out.force, sharding }
}
