//! From a batch file to jobs: patterns become files, templates become outputs, presets with their overrides become recipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::spec::{Calibration, Gates, Model, Spec, Types};
use crate::error::{PipelineError, Result};

/// What presets are built in.
const BUILT_IN: [&str; 3] = ["fast", "balanced", "best"];
/// Endings of names that say of what type the source is, which an output no longer is.
const SOURCE_TYPES: [&str; 3] = ["f16", "bf16", "f32"];

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

/// Gives the jobs of a batch in the order of its file. Relative paths are of the current folder.
///
/// # Errors
/// Presets that are not there, placeholders that mean nothing, patterns that are none, two jobs with one output.
pub fn expand(spec: &Spec) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for model in &spec.model {
        let presets = model.presets.as_ref().unwrap_or(&spec.presets);
        for origin in origins(model)? {
            for preset in presets {
                tasks.push(task(spec, model, &origin, preset)?);
            }
        }
    }
    let mut outputs: BTreeMap<&Path, &str> = BTreeMap::new();
    for task in &tasks {
        if let Some(first) = outputs.insert(&task.output, &task.name) {
            let (output, first, second) = (task.output.clone(), first.to_owned(), task.name.clone());
            return Err(PipelineError::SameOutput { output, first, second }.into());
        }
    }
    Ok(tasks)
}

fn task(spec: &Spec, model: &Model, origin: &Origin, preset: &str) -> Result<Task> {
    let stem = stem(origin);
    let name = model.name.clone().unwrap_or_else(|| without_type(&stem).to_owned());
    let template = model.output.as_ref().unwrap_or(&spec.output);
    let output = fill(template, &[("name", name.as_str()), ("stem", stem.as_str()), ("preset", preset)])?;
    Ok(Task {
        name: format!("{name}/{preset}"),
        origin: origin.clone(),
        preset: preset.to_owned(),
        recipe: recipe(spec, model, preset)?,
        calibration: model.calibration.over(&spec.calibration),
        gates: model.gates.over(&spec.gates),
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
    let files = if Path::new(&pattern).exists() { vec![PathBuf::from(&pattern)] } else { matches(&pattern)? };
    if files.is_empty() {
        return Ok(vec![Origin::Nothing(pattern)]);
    }
    Ok(files.into_iter().map(Origin::File).collect())
}

/// The files of a pattern, sorted; of a sharded model the first shard.
fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let wrong = |problem: String| PipelineError::Pattern { pattern: pattern.to_owned(), problem };
    let paths = glob::glob(pattern).map_err(|error| wrong(error.to_string()))?;
    let paths = paths.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    Ok(first_shards(paths))
}

/// Leaves out all shards but the first of each model.
pub(super) fn first_shards(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
    for path in paths {
        let name = path.to_string_lossy().into_owned();
        if seen.insert(shard_stem(name.strip_suffix(".gguf").unwrap_or(&name)).to_owned()) {
            kept.push(path);
        }
    }
    kept
}

/// A name without `-00001-of-00003`.
fn shard_stem(stem: &str) -> &str {
    let Some((rest, count)) = stem.rsplit_once("-of-") else { return stem };
    let Some((base, index)) = rest.rsplit_once('-') else { return stem };
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if number(index) && number(count) { base } else { stem }
}

fn stem(origin: &Origin) -> String {
    let name = match origin {
        Origin::File(path) => path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        Origin::Hub(model) => return model.repository.rsplit('/').next().unwrap_or_default().to_owned(),
        Origin::Nothing(pattern) => pattern.clone(),
    };
    shard_stem(&name).to_owned()
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
        assert!(error("presets = [\"bset\"]\n[[model]]\nhf = \"a/b\"").starts_with("preset `bset` is neither"));
    }
}
