//! `tcq4 convert`: the main job in one go.

use std::path::Path;
use std::time::Instant;

use super::effort::{Effort, TextPasses, Times};
use super::mixed;
use super::moments::{self, Kept, Moments};
use super::produce::{Evidence, Production, Way, print_recipe, refuse_substitutions};
use super::statistics::{self, Keep, Run};
use crate::calib::Statistics;
use crate::cli::args::ConvertArgs;
use crate::cli::settings::{self, Choices, Setting};
use crate::cli::{Outcome, Session, data};
use crate::convert::{
    Checkpoint, Conversion, SecondMoments, Sequential, layer_batch, moments_requests, sequential_cost, single_run,
    time_encoding,
};
use crate::corpus::SourceSpec;
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::quant::{Needs, Recipe};

pub(in crate::cli) fn run(session: &Session, args: &ConvertArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let method = &args.production.method;
    let recipe = settings::recipe(&choices_of(args), Setting::of(&source, true))?;
    let Some(output) = args.output.as_deref().filter(|_| !args.production.out.print_recipe) else {
        print_recipe(session, &recipe);
        return Ok(0);
    };
    let specs = data::sources(&args.calibration.calibration)?;
    let mut inputs = data::files(&specs);
    inputs.extend(method.recipe.clone());
    let production = Production {
        session,
        source: &source,
        output,
        args: &args.production,
        inputs: &inputs,
        recipe: &recipe,
        way: Way::Whole,
    };
    let work = Work { session, source: &source, args, specs: &specs, recipe: &recipe };
    let Some(plan) = production.plan(work.text(), |plan| work.times(plan))? else { return Ok(0) };
    if let Some(path) = &args.stats {
        settings::check_side_output(path, output, args.production.out.force, &source, &inputs)?;
    }
    let kept = args.second_moments.as_deref();
    if kept.is_some() && !recipe.needs().covers(Needs::SECOND_MOMENTS) {
        return Err(useless_moments().into());
    }
    if kept.is_some() && recipe.sequential {
        return Err(other_moments().into());
    }
    if let Some(path) = kept.filter(|path| !path.exists() || args.production.out.force) {
        settings::check_side_output(path, output, args.production.out.force, &source, &inputs)?;
    }
    plan.check_encoders()?; // before the long part
    if recipe.sequential {
        work.checkpoint(output).check(args.production.out.force)?;
    }
    if work.text().is_none() {
        return production.finish(&plan, Evidence::default());
    }
    let run = work.open()?;
    let (statistics, moments) = work.measure(&run, &plan)?;
    if let Some(path) = &args.stats {
        statistics::save(path, &statistics, args.production.out.force, &source)?;
        work.keep().forget()?;
    }
    let statistics_file = args.stats.as_ref().map(|path| path.display().to_string());
    let sequential = work.sequential(&run, (&plan, output));
    let moments = moments.as_ref().map(as_dyn);
    let evidence =
        Evidence { statistics: Some(statistics), statistics_file, orders: None, moments, sequential, run: Some(&run) };
    production.finish(&plan, evidence)
}

fn choices_of(args: &ConvertArgs) -> Choices<'_> {
    Choices {
        method: &args.production.method,
        rounding: Some(&args.rounding),
        // With statistics kept, an interrupted run of the text can go on, whatever comes after it.
        keeps_statistics: args.stats.is_some(),
        sequential: Some(&args.sequential),
        production: Some(&args.production),
        samples: args.calibration.samples,
    }
}

/// What a conversion will take, found out without writing anything.
pub(super) struct Outlook {
    pub(super) source: Source,
    pub(super) recipe: Recipe,
    pub(super) plan: Conversion,
    pub(super) effort: Effort,
    /// Whether text runs through the model.
    pub(super) runs_text: bool,
}

/// Refuses what can be refused before any work, and says what the work takes.
pub(super) fn outlook(session: &Session, args: &ConvertArgs, timed: bool) -> Result<Outlook> {
    let source = Source::open(&args.model)?;
    let recipe = settings::recipe(&choices_of(args), Setting::of(&source, true))?;
    mixed::check(&args.production, &recipe)?;
    let plan = Conversion::new(&source, &settings::plan_settings(&args.production.types, &recipe))?;
    if let Some(output) = &args.output {
        mixed::check_plan(&args.production, &recipe, &source, (output.as_path(), &plan))?;
    }
    plan.check_encoders()?;
    if args.production.types.strict {
        refuse_substitutions(&source, &plan)?;
    }
    let specs = data::sources(&args.calibration.calibration)?;
    let work = Work { session, source: &source, args, specs: &specs, recipe: &recipe };
    let mut effort = Effort::new(&source, &plan, &recipe, work.text());
    if timed {
        effort.times = Some(work.times(&plan)?);
    }
    let runs_text = work.text().is_some();
    Ok(Outlook { source, recipe, plan, effort, runs_text })
}

fn as_dyn<'m>(moments: &'m Moments<'_>) -> &'m dyn SecondMoments {
    moments
}

/// What is said about a file of second moments that nothing reads.
pub(super) fn useless_moments() -> Error {
    Error::Usage {
        message: "--second-moments is of no use without GPTQ".into(),
        hint: Some("pass --rounding gptq, or leave it out".into()),
    }
}

/// What is said about a file of second moments where others are measured.
fn other_moments() -> Error {
    Error::Usage {
        message: "--second-moments keeps those of the model before it is quantised, and --sequential measures others"
            .into(),
        hint: Some("leave one of them out".into()),
    }
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
    /// The text that runs through the model; none where the recipe needs nothing of it and nothing is kept.
    fn text(&self) -> Option<TextPasses> {
        let wanted = self.recipe.needs() != Needs::NOTHING || self.args.stats.is_some() || self.recipe.mixes();
        let Recipe { samples: chunks, .. } = *self.recipe;
        wanted.then_some(TextPasses { statistics: true, chunks, ctx: self.args.calibration.ctx })
    }

    /// The statistics, and where second moments come from if they are needed.
    fn measure<'r>(&self, run: &'r Run<'r>, plan: &Conversion) -> Result<(Statistics, Option<Moments<'r>>)> {
        if !self.recipe.needs().covers(Needs::SECOND_MOMENTS) {
            return Ok((run.statistics()?, None));
        }
        let (model, memory) = ((self.source, plan), self.recipe.memory.0);
        let (statistics, moments) = match &self.args.second_moments {
            None if self.recipe.sequential => (run.statistics()?, Moments::measured_anew(run)),
            None => moments::measure(run, model, memory)?,
            Some(path) => {
                let kept = Kept { path, force: self.args.production.out.force, memory };
                let (statistics, file) = kept.measure(self.session, run, model)?;
                (statistics, Moments::File(file))
            }
        };
        Ok((statistics, Some(moments)))
    }

    /// Reads the text and loads the model. Sample rows are kept for steps that measure by them, and in statistics files, for whatever is made of
    /// them later.
    fn open(&self) -> Result<Run<'a>> {
        let rows = self.recipe.needs().covers(Needs::ROWS) || self.args.stats.is_some() || self.recipe.mixes();
        let Recipe { samples, activations, encoder, sequential, .. } = *self.recipe;
        let behind = if sequential { Some((activations, self.session.codec(encoder)?)) } else { None };
        let text = &self.args.calibration;
        let keep = self.keep();
        let run = Run::open(self.session, self.source, text, self.specs, samples, &keep, behind)?;
        let run = run.on(self.session.device(&self.args.production.device)?.summer()?);
        Ok(if rows { run } else { run.without_rows() })
    }

    /// An interrupted run of the text goes on where its statistics are kept, if that is wanted.
    fn keep(&self) -> Keep {
        match &self.args.stats {
            Some(path) if self.args.sequential.resume => Keep::beside(path, true),
            _ => Keep::in_memory(),
        }
    }

    /// Where a sequential conversion keeps what is done.
    fn checkpoint(&self, output: &Path) -> Checkpoint {
        let mut folder = output.as_os_str().to_os_string();
        folder.push(".partial");
        Checkpoint { folder: folder.into(), resume: self.args.sequential.resume }
    }

    /// How the conversion is done in sequence, if it is.
    fn sequential<'r>(&self, stream: &'r Run<'_>, (plan, output): (&Conversion, &Path)) -> Option<Sequential<'r>> {
        let Recipe { sequential, layer_batch: blocks, memory, .. } = *self.recipe;
        let blocks = || if blocks > 0 { blocks } else { layer_batch(self.source, plan, memory.0) };
        sequential.then(|| Sequential { stream, blocks: blocks(), checkpoint: self.checkpoint(output) })
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
            let memory = self.recipe.memory.0;
            for batch in moments_requests(self.source, plan, memory) {
                seconds += pass(run.time(Some(&batch))?);
            }
            if self.recipe.sequential {
                // Every batch runs the text up to its own blocks: half of the model on the average.
                let (runs, _) = sequential_cost(self.source, plan, self.recipe.layer_batch, memory);
                seconds += runs.saturating_sub(1) as f64 * pass(run.time(Some(&[]))?) / 2.0;
            } else if single_run(self.source, plan, memory).is_some() {
                seconds -= pass(run.time(Some(&[]))?); // the model runs once for both
            }
        }
        Ok(Times { text_seconds: seconds, encoding })
    }
}
