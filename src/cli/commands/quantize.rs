//! `tcq4 quantize`: quantises with given statistics or permutations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::convert::useless_moments;
use super::effort::Times;
use super::moments::{self, Moments};
use super::produce::{Evidence, Production, Way, print_recipe};
use super::statistics;
use crate::calib::perms;
use crate::cli::args::QuantizeArgs;
use crate::cli::settings::{self, Choices, Setting};
use crate::cli::{Outcome, Session};
use crate::convert::{Consumption, time_encoding};
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::quant::Needs;
use crate::util::progress::Progress;

pub(in crate::cli) fn run(session: &Session, args: &QuantizeArgs) -> Outcome {
    if clean_up(session, args)? {
        return Ok(0);
    }
    let (source, consumption) = open(args)?;
    let method = &args.production.method;
    let setting = Setting::of(&source, args.stats.is_some());
    let choices = Choices { rounding: Some(&args.rounding), production: Some(&args.production), ..Choices::of(method) };
    let recipe = settings::recipe(&choices, setting)?;
    if recipe.sequential {
        return Err(Error::Usage {
            message: "a sequential recipe needs the model to run".into(),
            hint: Some("use `tcq4 convert`, or leave `sequential` out of the recipe".into()),
        }
        .into());
    }
    let Some(output) = args.output.as_deref().filter(|_| !args.production.out.print_recipe) else {
        print_recipe(session, &recipe);
        return Ok(0);
    };
    let in_statistics = Needs::CHANNELS | Needs::MEANS | Needs::ROWS;
    let known = if args.stats.is_some() { in_statistics } else { Needs::NOTHING };
    let gptq = recipe.needs().covers(Needs::SECOND_MOMENTS);
    if args.second_moments.is_some() && !gptq {
        return Err(useless_moments().into());
    }
    let known = if args.second_moments.is_some() { known | Needs::SECOND_MOMENTS } else { known };
    settings::check_needs(&recipe, known)?;
    let inputs: Vec<PathBuf> =
        args.stats.iter().chain(&args.perms).chain(&args.second_moments).chain(&method.recipe).cloned().collect();
    if consumption.is_some() && recipe.mixes() {
        return Err(Error::Usage {
            message: "--delete-source-shards cannot choose types: weights that they are chosen by are gone after an interruption".into(),
            hint: Some("leave target_bpw and act_aware out of the recipe, or choose types with --tensor-type".into()),
        }
        .into());
    }
    let way = match (args.shard, &consumption) {
        (Some(shard), _) => Way::Part(shard),
        (None, Some(consumption)) => Way::Consuming(consumption),
        (None, None) => Way::Whole,
    };
    let production =
        Production { session, source: &source, output, args: &args.production, inputs: &inputs, recipe: &recipe, way };
    let moments = match &args.second_moments {
        Some(path) => Some(Moments::File(moments::load(session, path, &source)?)),
        None => None,
    };
    let mut evidence = Evidence { moments: moments.as_ref().map(|moments| moments as _), ..Evidence::default() };
    if let Some(path) = &args.stats {
        evidence.statistics = Some(statistics::load(path, &source)?);
        evidence.statistics_file = Some(path.display().to_string());
    }
    if let Some(path) = &args.perms {
        let file = perms::load(path)?;
        file.check(path, |name| source.tensor(name).map(crate::gguf::TensorInfo::columns))?;
        evidence.orders = Some(if file.reorder_enabled { file.permutations } else { BTreeMap::new() });
    }
    let times = |plan: &_| {
        let encoding = time_encoding(&source, plan, &recipe, session.codec(recipe.encoder)?)?;
        Ok(Times { text_seconds: 0.0, encoding })
    };
    let Some(plan) = production.plan(None, times)? else { return Ok(0) };
    let is_used = |name: &str| plan.tensors.iter().any(|t| t.name == name && t.is_tcq4());
    let unused = evidence.orders.iter().flatten().filter(|(name, _)| !is_used(name)).count();
    if unused > 0 {
        session
            .progress
            .note(&format!("{unused} permutations are of tensors that do not become TCQ4, and are left out"));
    }
    production.finish(&plan, evidence)
}

/// Removes what a run left behind that was stopped after its output was complete; tells whether there was one.
fn clean_up(session: &Session, args: &QuantizeArgs) -> Result<bool> {
    let out = &args.production.out;
    let asked = args.delete_source_shards && !out.dry_run && !out.print_recipe;
    let Some(output) = args.output.as_deref().filter(|_| asked) else { return Ok(false) };
    if !Consumption::clean_up(&args.model, output)? {
        return Ok(false);
    }
    let text = "it was complete; what the interrupted run had left behind is removed";
    session.printer.text(&format!("{}: {text}", output.display()));
    session.printer.record("clean-up", json!({ "output": output }));
    Ok(true)
}

/// Opens the model, for deletion on the way if that is wanted.
fn open(args: &QuantizeArgs) -> Result<(Source, Option<Consumption>)> {
    match &args.output {
        Some(output) if args.delete_source_shards => {
            let (source, consumption) = Consumption::open(&args.model, output)?;
            Ok((source, Some(consumption)))
        }
        _ => Ok((Source::open(&args.model)?, None)),
    }
}
