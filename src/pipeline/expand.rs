//! From a batch file to jobs: patterns become files, templates become outputs, presets with their overrides become recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::places::Places;
use super::spec::{Calibration, Gates, Model, Spec, Types};
use crate::error::{Error, PipelineError, Result};
use crate::gguf::ShardName;

/// What presets are built in.
const BUILT_IN: [&str; 3] = ["fast", "balanced", "best"];
/// What says in the name of a source that its weights are not quantised.
pub(super) const SOURCE_TYPES: [&str; 3] = ["f16", "bf16", "f32"];

/// A repository of the hub, and the file that is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HubModel {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The file, or a pattern.
    pub file: String,
}

/// Where the model of a job comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// The hub.
    Hub(HubModel),
    /// A pattern that no file matches.
    Nothing(String),
}

/// One model with one preset, as the batch file asks for it.
#[derive(Debug, Clone)]
pub struct Task {
    /// What it is called: `NAME/PRESET`.
    pub name: String,
    /// The model.
    pub origin: Origin,
    /// The preset's name.
    pub preset: String,
    /// The recipe as TOML, for `--recipe`.
    pub recipe: String,
    /// The calibration text.
    pub calibration: Calibration,
    /// What the output must reach.
    pub gates: Gates,
    /// Which tensor becomes what.
    pub types: Types,
    /// The file to write.
    pub output: PathBuf,
}

/// Gives the jobs of a batch in the order of its file. Relative paths are of the current folder. What a pattern finds of the batch's own outputs
/// and state is no model.
///
/// # Errors
/// Presets that are not there, placeholders that mean nothing, patterns that are none, a gate without its texts, two jobs that would write one file.
pub fn expand(spec: &Spec) -> Result<Vec<Task>> {
    let (mut tasks, mut found) = (Vec::new(), BTreeSet::new());
    for model in spec.model.iter().map(toml::Spanned::get_ref) {
        let presets = model.presets.as_ref().unwrap_or(&spec.presets);
        let first = tasks.len();
        for origin in origins(model)? {
            for preset in presets {
                tasks.push(task(spec, model, &origin, preset)?);
            }
        }
        if is_pattern(model) {
            found.extend(first..tasks.len());
        }
    }
    let mut tasks = without_own(tasks, &found, Path::new(&spec.state))?;
    let several = products(&tasks)?.into_values().find(|writers| writers.len() > 1);
    if let Some(writers) = several {
        return Err(same_output(&tasks, &writers));
    }
    name_apart(&mut tasks);
    Ok(tasks)
}

/// Leaves out those of the tasks `found` by patterns whose model is written by another, or is part of the state.
fn without_own(tasks: Vec<Task>, found: &BTreeSet<usize>, state: &Path) -> Result<Vec<Task>> {
    let (own, state) = (products(&tasks)?, absolute(state)?);
    let is_own = |task: &Task| match &task.origin {
        Origin::File(path) => absolute(path).is_ok_and(|path| own.contains_key(&path) || path.starts_with(&state)),
        Origin::Hub(_) | Origin::Nothing(_) => false,
    };
    let all = tasks.into_iter().enumerate();
    Ok(all.filter(|(index, task)| !(found.contains(index) && is_own(task))).map(|(_, task)| task).collect())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path, "find"))
}

/// All files that the jobs may write, with the jobs that would.
fn products(tasks: &[Task]) -> Result<BTreeMap<PathBuf, Vec<usize>>> {
    let mut names: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
    for (index, task) in tasks.iter().enumerate() {
        for name in Places::of(&absolute(&task.output)?).all() {
            names.entry(name.to_path_buf()).or_default().push(index);
        }
    }
    Ok(names)
}

fn same_output(tasks: &[Task], writers: &[usize]) -> Error {
    let name = |at: usize| tasks[writers[at]].name.clone();
    PipelineError::SameOutput { output: tasks[writers[1]].output.clone(), first: name(0), second: name(1) }.into()
}

/// Gives jobs of one name, as those of `m-f16.gguf` and `m-bf16.gguf`, names that tell them apart.
fn name_apart(tasks: &mut [Task]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for task in &*tasks {
        *counts.entry(task.name.clone()).or_default() += 1;
    }
    for task in tasks.iter_mut().filter(|task| counts[&task.name] > 1) {
        // Outputs differ.
        task.name = task.output.display().to_string();
    }
}

fn task(spec: &Spec, model: &Model, origin: &Origin, preset: &str) -> Result<Task> {
    let stem = stem(origin);
    let name = model.name.clone().unwrap_or_else(|| without_type(&stem).to_owned());
    let template = model.output.as_ref().unwrap_or(&spec.output);
    let output = fill(template, &[("name", name.as_str()), ("stem", stem.as_str()), ("preset", preset)])?;
    let gates = model.gates.over(&spec.gates);
    if gates.evaluates() && gates.texts.as_ref().is_none_or(Vec::is_empty) {
        return Err(PipelineError::NoTexts { model: name }.into());
    }
    Ok(Task {
        name: format!("{name}/{preset}"),
        origin: origin.clone(),
        preset: preset.to_owned(),
        recipe: recipe(spec, model, preset)?,
        calibration: model.calibration.over(&spec.calibration),
        gates,
        types: model.types.over(&spec.types),
        output: output.into(),
    })
}

/// The recipe of a preset, with the model's own choices over it.
fn recipe(spec: &Spec, model: &Model, preset: &str) -> Result<String> {
    let mut table = match spec.preset.get(preset) {
        Some(own) => own.clone(),
        None if BUILT_IN.contains(&preset) => toml::Table::from_iter([("preset".to_owned(), preset.into())]),
        None => return Err(PipelineError::UnknownPreset { name: preset.to_owned() }.into()),
    };
    table.extend(model.options.clone().unwrap_or_default());
    // A flat table of plain values that were read from TOML, in the order of their keys.
    let sorted: BTreeMap<String, toml::Value> = table.into_iter().collect();
    Ok(toml::to_string(&sorted).unwrap_or_default())
}

fn origins(model: &Model) -> Result<Vec<Origin>> {
    if let Some(repository) = &model.hf {
        let revision = model.revision.clone().unwrap_or_else(|| "main".to_owned());
        let file = model.file.clone().unwrap_or_else(|| "*.gguf".to_owned());
        return Ok(vec![Origin::Hub(HubModel { repository: repository.clone(), revision, file })]);
    }
    let pattern = model.path.clone().unwrap_or_default();
    let files = if is_pattern(model) { matches(&pattern)? } else { vec![PathBuf::from(&pattern)] };
    if files.is_empty() {
        return Ok(vec![Origin::Nothing(pattern)]);
    }
    Ok(files.into_iter().map(Origin::File).collect())
}

/// Whether files are looked for, and not one is named.
fn is_pattern(model: &Model) -> bool {
    model.path.as_ref().is_some_and(|path| !Path::new(path).exists())
}

/// The files of a pattern, sorted; of a sharded model the first shard.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let wrong = |problem: String| PipelineError::Pattern { pattern: pattern.to_owned(), problem };
    let paths = glob::glob(pattern).map_err(|error| wrong(error.to_string()))?;
    let paths = paths.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    Ok(first_shards(paths))
}

/// Leaves out all shards but the first one found of each model.
pub(super) fn first_shards(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
    for path in paths {
        let model = ShardName::parse(&path).map(|shard| (shard.prefix, shard.count));
        if model.is_none_or(|model| seen.insert(model)) {
            kept.push(path);
        }
    }
    kept
}

/// What a model is called: its file without its ending and number of a shard, or its repository.
fn stem(origin: &Origin) -> String {
    let name = match origin {
        Origin::File(path) => match ShardName::parse(path) {
            Some(shard) => shard.prefix.file_name().map(std::ffi::OsStr::to_os_string),
            None => path.file_stem().map(std::ffi::OsStr::to_os_string),
        },
        Origin::Hub(model) => return model.repository.rsplit('/').next().unwrap_or_default().to_owned(),
        Origin::Nothing(pattern) => return pattern.clone(),
    };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// A name without the type of the source at its end.
fn without_type(stem: &str) -> &str {
    let Some((name, ty)) = stem.rsplit_once(['-', '.', '_']) else { return stem };
    let known = SOURCE_TYPES.iter().any(|known| ty.eq_ignore_ascii_case(known));
    if known && !name.is_empty() { name } else { stem }
}

/// Fills a template in.
fn fill(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let end = rest[open..].find('}').map_or(rest.len(), |end| open + end);
        let placeholder = &rest[open + 1..end];
        let Some((_, value)) = values.iter().find(|(name, _)| *name == placeholder) else {
            let (template, placeholder) = (template.to_owned(), placeholder.to_owned());
            return Err(PipelineError::Placeholder { template, placeholder }.into());
        };
        text += &rest[..open];
        text += value;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(text + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(text: &str) -> Result<Vec<Task>> {
        expand(&Spec::parse(text, Path::new("b.toml")).unwrap())
    }

    #[test]
    fn names_lose_shards_and_types() {
        let names = |path: &str| {
            let stem = stem(&Origin::File(path.into()));
            without_type(&stem).to_owned()
        };
        assert_eq!(names("a/m-f16.gguf"), "m");
        assert_eq!(names("m-7B.BF16-00001-of-00003.gguf"), "m-7B");
        assert_eq!(names("f16.gguf"), "f16");
        assert_eq!(names("m-1-of-2.gguf"), "m-1-of-2");
        let files = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf"].map(PathBuf::from).to_vec();
        assert_eq!(first_shards(files), ["a-00001-of-00002.gguf", "b.gguf"].map(PathBuf::from));
    }

    #[test]
    fn a_pattern_finds_no_products_of_the_batch() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        for name in ["m-f16", "n", "m-fast", "n-fast.unchecked", "n-best.rejected", "state/s"] {
            std::fs::write(dir.path().join(name.to_owned() + ".gguf"), "").unwrap();
        }
        let text = format!(
            "state = \"{root}/state\"\npresets = [\"fast\", \"best\"]\noutput = \"{root}/./{{name}}-{{preset}}.gguf\"\n\
             [[model]]\npath = \"{root}/**/*.gguf\""
        );
        let names: Vec<String> = tasks(&text).unwrap().into_iter().map(|task| task.name).collect();
        assert_eq!(names, ["m/fast", "m/best", "n/fast", "n/best"]);
        // Named as a file it is one, whatever it is.
        let named = format!("{text}\n[[model]]\npath = \"{root}/m-fast.gguf\"");
        assert_eq!(tasks(&named).unwrap().len(), 6);
    }

    #[test]
    fn jobs_have_names_of_their_own() {
        let text = "presets = [\"fast\"]\noutput = \"{stem}.x\"\n[[model]]\npath = \"m-f16\"\n[[model]]\npath = \"m-bf16\"\n[[model]]\nhf = \"a/b\"";
        let names: Vec<String> = tasks(text).unwrap().into_iter().map(|task| task.name).collect();
        assert_eq!(names, ["m-f16.x", "m-bf16.x", "b/fast"]);
    }

    #[test]
    fn every_model_meets_every_preset() {
        let text = "presets = [\"fast\", \"mine\"]\noutput = \"out/{name}_{preset}.gguf\"\n[preset.mine]\npreset = \"best\"\nrefine = 1\n\
            [[model]]\nhf = \"own/m\"\nname = \"x\"\n[model.options]\nrefine = 3\n[[model]]\nhf = \"own/n\"\npresets = [\"best\"]";
        let found = tasks(text).unwrap();
        let outputs: Vec<_> = found.iter().map(|task| task.output.to_str().unwrap()).collect();
        assert_eq!(outputs, ["out/x_fast.gguf", "out/x_mine.gguf", "out/n_best.gguf"]);
        assert_eq!(found[1].recipe, "preset = \"best\"\nrefine = 3\n");
        assert_eq!(found[2].recipe, "preset = \"best\"\n");
    }

    #[test]
    fn what_cannot_be_filled_in_is_refused() {
        let error = |text: &str| tasks(text).unwrap_err().to_string();
        assert_eq!(
            error("output = \"{nam}.gguf\"\n[[model]]\nhf = \"a/b\""),
            "output `{nam}.gguf`: unknown placeholder {nam}"
        );
        let two = "output = \"x.gguf\"\n[[model]]\nhf = \"a/b\"\n[[model]]\nhf = \"a/c\"";
        assert_eq!(error(two), "x.gguf: the output of two jobs, b/balanced and c/balanced");
        let same =
            "[[model]]\nhf = \"a/b\"\noutput = \"x.gguf\"\n[[model]]\nhf = \"a/c\"\noutput = \"./x.unchecked.gguf\"";
        assert_eq!(error(same), "./x.unchecked.gguf: the output of two jobs, b/balanced and c/balanced");
        let gate = "[gates]\nmax-kld = 1\n[[model]]\nhf = \"a/b\"";
        assert_eq!(error(gate), "b: `max-kld` is measured on `texts` of [gates], and there are none");
        assert!(error("presets = [\"bset\"]\n[[model]]\nhf = \"a/b\"").starts_with("preset `bset` is neither"));
    }
}
