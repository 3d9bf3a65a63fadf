//! `tcq4 convert`: the main job in one go.

use std::collections::BTreeSet;
use std::time::Instant;

use super::effort::{TextPasses, Times};
use super::produce::{Evidence, Production, print_recipe};
use super::statistics::{self, Keep, Run};
use crate::cli::args::ConvertArgs;
use crate::cli::settings::{self, Setting};
use crate::cli::{Outcome, Session, data};
use crate::convert::{Conversion, compensation_cost, time_encoding};
use crate::corpus::SourceSpec;
use crate::error::Result;
use crate::gguf::Source;
use crate::quant::{Needs, Recipe};

pub(in crate::cli) fn run(session: &Session, args: &ConvertArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let method = &args.production.method;
    let recipe = settings::recipe(method, Some(&args.rounding), args.calibration.samples, Setting::of(&source, true))?;
    let Some(output) = args.output.as_deref().filter(|_| !args.production.out.print_recipe) else {
        print_recipe(session, &recipe);
        return Ok(0);
    };
    let specs = data::sources(&args.calibration.calibration)?;
    let mut inputs = data::files(&specs);
    inputs.extend(method.recipe.clone());
    let production =
        Production { session, source: &source, output, args: &args.production, inputs: &inputs, recipe: &recipe };
    let work = Work { session, source: &source, args, specs: &specs, recipe: &recipe };
    let Some(plan) = production.plan(work.text(), |plan| work.times(plan))? else { return Ok(0) };
    if let Some(path) = &args.stats {
        settings::check_side_output(path, output, args.production.out.force, &source, &inputs)?;
    }
    plan.check_encoders()?; // before the long part
    if work.text().is_none() {
        return production.finish(&plan, Evidence::default());
    }
    let run = work.open()?;
    let statistics = run.statistics()?;
    if let Some(path) = &args.stats {
        statistics::save(path, &statistics, args.production.out.force, &source)?;
    }
    let statistics_file = args.stats.as_ref().map(|path| path.display().to_string());
    let evidence =
        Evidence { statistics: Some(statistics), statistics_file, orders: None, moments: Some(&run), run: Some(&run) };
    production.finish(&plan, evidence)
}

/// What has to be measured, and with what.
struct Work<'a> {
    session: &'a Session,
    source: &'a Source,
    args: &'a ConvertArgs,
    specs: &'a [SourceSpec],
    recipe: &'a Recipe,
}

impl<'a> Work<'a> {
    /// Whether bits are given out by what is measured on sample rows.
    fn mixes(&self) -> bool {
        self.args.production.mixed.any()
    }

    /// The text that runs through the model; none where the recipe needs nothing of it and nothing is kept.
    fn text(&self) -> Option<TextPasses> {
        let wanted = self.recipe.needs() != Needs::NOTHING || self.args.stats.is_some() || self.mixes();
        let Recipe { samples: chunks, .. } = *self.recipe;
        wanted.then_some(TextPasses { statistics: true, chunks, ctx: self.args.calibration.ctx })
    }

    /// Reads the text and loads the model. Sample rows are kept for steps that measure by them, and in statistics files, for whatever is made of
    /// them later.
    fn open(&self) -> Result<Run<'a>> {
        let rows = self.recipe.needs().covers(Needs::ROWS) || self.args.stats.is_some() || self.mixes();
        let samples = self.recipe.samples;
        let run =
            Run::open(self.session, self.source, &self.args.calibration, self.specs, samples, &Keep::in_memory())?;
        Ok(if rows { run } else { run.without_rows() })
    }

    /// Times a sample of everything: loading, one chunk of each kind of pass, some rows.
    fn times(&self, plan: &Conversion) -> Result<Times> {
        let codec = self.session.codec(self.recipe.encoder)?;
        let encoding = time_encoding(self.source, plan, self.recipe, codec)?;
        let Some(text) = self.text() else { return Ok(Times { text_seconds: 0.0, encoding }) };
        let started = Instant::now();
        let run = self.open()?;
        run.time(None)?; // reads the weights from the disk, as every later chunk need not
        let begin = started.elapsed().as_secs_f64();
        let chunks = f64::from(text.chunks);
        let pass = |(begin, chunk): (f64, f64)| begin + chunks * chunk;
        let mut seconds = begin + pass(run.time(None)?);
        if self.recipe.needs().covers(Needs::SECOND_MOMENTS) {
            let (passes, _) = compensation_cost(self.source, plan, self.recipe.memory.0);
            // All inputs are summed once; where that takes several passes, the model runs that much more often.
            seconds += pass(run.time(Some(&settings::targets(plan)))?);
            seconds += (passes.max(1) - 1) as f64 * pass(run.time(Some(&BTreeSet::new()))?);
        }
        Ok(Times { text_seconds: seconds, encoding })
    }
}
