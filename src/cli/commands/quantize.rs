//! `tcq4 quantize`: quantises with given statistics or permutations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::effort::Times;
use super::produce::{Evidence, Production, print_recipe};
use super::statistics;
use crate::calib::perms;
use crate::cli::args::QuantizeArgs;
use crate::cli::settings::{self, Setting};
use crate::cli::{Outcome, Session};
use crate::convert::time_encoding;
use crate::gguf::Source;
use crate::quant::Needs;
use crate::util::progress::Progress;

pub(in crate::cli) fn run(session: &Session, args: &QuantizeArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let method = &args.production.method;
    let setting = Setting::of(&source, args.stats.is_some());
    let recipe = settings::recipe(method, Some(&args.rounding), None, setting)?;
    let Some(output) = args.output.as_deref().filter(|_| !args.production.out.print_recipe) else {
        print_recipe(session, &recipe);
        return Ok(0);
    };
    let in_statistics = Needs::CHANNELS | Needs::MEANS | Needs::ROWS;
    settings::check_needs(&recipe, if args.stats.is_some() { in_statistics } else { Needs::NOTHING })?;
    let inputs: Vec<PathBuf> = args.stats.iter().chain(&args.perms).chain(&method.recipe).cloned().collect();
    let production =
        Production { session, source: &source, output, args: &args.production, inputs: &inputs, recipe: &recipe };
    let mut evidence = Evidence::default();
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
