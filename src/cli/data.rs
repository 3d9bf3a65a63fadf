//! Sources of text as the user names them, resolved: which are files, where data sets lie, what the environment says.

use std::env;
use std::path::{Path, PathBuf};

use super::Session;
use super::args::{DataArgs, StoreArgs};
use crate::corpus::cache::FetchOptions;
use crate::corpus::{Corpus, LoadOptions, Purpose, SourceSpec, Store, load};
use crate::error::{Error, Result};
use crate::gguf::Source;

/// Chunks, tokens of a chunk and seed of evaluation texts: the usual rules depend on the seed alone.
const DEFAULTS: (usize, u32, u64) = (128, 512, 42);

/// Reads the sources of a command line.
///
/// # Errors
/// A word that is neither a file nor a data set.
pub(super) fn sources(texts: &[String]) -> Result<Vec<SourceSpec>> {
    texts.iter().map(|text| SourceSpec::parse(text)).collect()
}

/// The files among them, which no output may replace.
pub(super) fn files(specs: &[SourceSpec]) -> Vec<PathBuf> {
    specs.iter().filter_map(SourceSpec::path).map(PathBuf::from).collect()
}

/// How sources are loaded for `model`, `chunks` of `ctx` tokens.
pub(super) fn load_options<'a>(
    args: &DataArgs,
    model: &'a Source,
    chunks: usize,
    ctx: u32,
    seed: u64,
) -> LoadOptions<'a> {
    LoadOptions {
        store: store(&args.store),
        text_column: args.text_column.clone(),
        parse_special: args.parse_special,
        seed,
        ctx: ctx as usize,
        chunks,
        model: Some(model),
    }
}

/// Loads what a model is measured on: files and data sets, each a text of its own, with its name.
///
/// # Errors
/// A weight, which means nothing here; what cannot be had or read.
pub(super) fn evaluation(
    session: &Session,
    files: &[PathBuf],
    datasets: &[String],
    args: &DataArgs,
    model: &Path,
) -> Result<Vec<(PathBuf, Corpus)>> {
    let mut specs: Vec<SourceSpec> = files.iter().map(SourceSpec::file).collect();
    specs.extend(sources(datasets)?);
    if let Some(spec) = specs.iter().find(|spec| spec.weight.is_some()) {
        let hint = Some("weights are for calibration; here each text is measured on its own".into());
        return Err(Error::Usage { message: format!("`{}` has a weight", spec.name()), hint });
    }
    let source = Source::open(model)?;
    let options = load_options(args, &source, DEFAULTS.0, DEFAULTS.1, DEFAULTS.2);
    let load = |spec: &SourceSpec| {
        let corpus = load(std::slice::from_ref(spec), Purpose::Evaluation, &options, &session.progress)?;
        Ok((PathBuf::from(spec.name()), corpus))
    };
    specs.iter().map(load).collect()
}

/// Where data sets lie. The variables of Hugging Face's own tools are respected.
pub(super) fn store(args: &StoreArgs) -> Store {
    let cache = user_cache();
    let own = cache.as_ref().map_or_else(|| "datasets".into(), |cache| cache.join("tcq4/datasets"));
    let hub = folder("HF_HUB_CACHE")
        .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| cache.map(|cache| cache.join("huggingface/hub")));
    let text = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
    let hub_offline = text("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value));
    Store {
        folder: args.data_dir.clone().unwrap_or(own),
        hub,
        offline: args.offline || hub_offline,
        fetch: FetchOptions {
            mirror: args.data_mirror.clone().filter(|mirror| !mirror.is_empty()),
            hugging_face: text("HF_ENDPOINT"),
            ..FetchOptions::default()
        },
    }
}

/// The folder for what can be made or fetched again, as the XDG base directories have it.
pub(super) fn user_cache() -> Option<PathBuf> {
    folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
}

/// The folder that an environment variable names, if it is set.
pub(super) fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// What Hugging Face's tools take for yes.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}
