//! The command lines of a job's processes: exactly what a user could type, so that every output can be made again by hand.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::expand::Task;

/// Files that a conversion uses or leaves for others of the same model and text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shared {
    /// Statistics.
    pub statistics: Option<PathBuf>,
    /// Second moments.
    pub second_moments: Option<PathBuf>,
}

/// How the output is made. All ways give the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The text runs, and what is measured is kept where `Shared` says.
    Convert(Shared),
    /// What was measured is there.
    Quantize(Shared),
}

/// Words of one command.
struct Words(Vec<OsString>);

impl Words {
    fn word(&mut self, word: impl Into<OsString>) {
        self.0.push(word.into());
    }

    fn option(&mut self, name: &str, value: Option<impl Into<OsString>>) {
        if let Some(value) = value {
            self.word(name);
            self.word(value);
        }
    }

    fn flag(&mut self, name: &str, set: Option<bool>) {
        if set == Some(true) {
            self.word(name);
        }
    }
}

/// What makes `output` of the model. The recipe lies in a file; `sensitivities` is kept only by recipes of mixed precision.
pub fn produce(
    task: &Task,
    model: &Path,
    recipe: &Path,
    output: &Path,
    way: &Way,
    sensitivities: Option<&Path>,
) -> Vec<OsString> {
    let mut words = Words(Vec::new());
    let shared = match way {
        Way::Convert(shared) => {
            words.word("convert");
            words.word(model);
            words.option("--output", Some(output));
            calibration(&mut words, task);
            words.flag("--resume", Some(shared.statistics.is_some()));
            shared
        }
        Way::Quantize(shared) => {
            words.word("quantize");
            words.word(model);
            words.word(output);
            shared
        }
    };
    words.option("--recipe", Some(recipe));
    words.option("--stats", shared.statistics.as_ref());
    words.option("--second-moments", shared.second_moments.as_ref());
    words.option("--sensitivities", sensitivities);
    types(&mut words, task);
    words.word("--force");
    words.0
}

/// As [`produce`] for a conversion that begins with nothing, to plan by.
pub fn plan(task: &Task, model: &Path, recipe: &Path, output: &Path) -> Vec<OsString> {
    produce(task, model, recipe, output, &Way::Convert(Shared::default()), None)
}

fn calibration(words: &mut Words, task: &Task) {
    let text = &task.calibration;
    for source in text.sources.iter().flatten() {
        words.option("--calibration", Some(source));
    }
    words.option("--samples", text.samples.map(|n| n.to_string()));
    words.option("--ctx", text.ctx.map(|n| n.to_string()));
    words.option("--seed", text.seed.map(|n| n.to_string()));
    words.option("--text-column", text.text_column.as_ref());
    words.flag("--parse-special", text.parse_special);
}

fn types(words: &mut Words, task: &Task) {
    let types = &task.types;
    words.flag("--strict", types.strict);
    words.option("--fallback", types.fallback.as_ref());
    for rule in types.tensor_types.iter().flatten() {
        words.option("--tensor-type", Some(rule));
    }
    words.flag("--allow-requantize", types.allow_requantize);
}

/// What measures the divergence of `output` from the model.
pub fn evaluate(task: &Task, model: &Path, output: &Path) -> Vec<OsString> {
    let mut words = Words(Vec::new());
    words.word("eval");
    words.word(output);
    words.option("--reference", Some(model));
    for text in task.gates.texts.iter().flatten() {
        words.option("--dataset", Some(text));
    }
    words.option("--chunks", task.gates.chunks.map(|n| n.to_string()));
    words.option("--ctx", task.gates.ctx.map(|n| n.to_string()));
    words.0
}
