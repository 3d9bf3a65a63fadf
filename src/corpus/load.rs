//! Brings sources together: finds or fetches each, reads it, samples it by its rule, renders conversations.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::cache::Store;
use super::catalogue::{self, Dataset, Format, Origin, Purpose};
use super::read::{Sample, Shape, read_samples, read_text};
use super::rules::{Rule, Sizes};
use super::source::{Place, SourceSpec, check_weights};
use super::{ChatTemplate, Corpus, Cut, Part, fetch as fetching};
use crate::Result;
use crate::error::CorpusError;
use crate::gguf::Source;
use crate::util::progress::Progress;

/// What loading depends on besides the sources.
#[derive(Debug, Clone)]
pub struct LoadOptions<'a> {
    /// Where data sets lie.
    pub store: Store,
    /// The column or key of the text: a name, or numbers of CSV columns joined with `+`, counted from 1.
    pub text_column: Option<String>,
    /// Whether plain text may spell control tokens too. Conversations always do.
    pub parse_special: bool,
    /// Seed of the random choices.
    pub seed: u64,
    /// Tokens of a chunk.
    pub ctx: usize,
    /// Chunks wanted, for rules that stop when there are enough.
    pub chunks: usize,
    /// The model whose chat template renders conversations.
    pub model: Option<&'a Source>,
}

impl Default for LoadOptions<'_> {
    /// Files alone: data sets are looked for in a folder `datasets`, and not fetched.
    fn default() -> Self {
        Self {
            store: Store { offline: true, ..Store::new("datasets") },
            text_column: None,
            parse_special: false,
            seed: 42,
            ctx: 512,
            chunks: 128,
            model: None,
        }
    }
}

impl LoadOptions<'_> {
    fn sizes(&self) -> Sizes {
        // Calibration holds out one chunk for each 32.
        Sizes { chunks: self.chunks + self.chunks.div_ceil(32), ctx: self.ctx, seed: self.seed }
    }
}

/// Loads `specs`, in order. Data sets give their part for `purpose`.
///
/// Without weights all samples make one text. With weights each source is cut into chunks on its own
/// ([`super::chunks::Chunks::of`]), and its share of the chunks is its share of the weights.
///
/// # Errors
/// Weights for some sources only; a data set that cannot be had; a file that cannot be read or is not what its name says; a conversation that
/// the model's template does not take; no text in all of them.
pub fn load(specs: &[SourceSpec], purpose: Purpose, options: &LoadOptions, progress: &dyn Progress) -> Result<Corpus> {
    check_weights(specs)?;
    let mut loader = Loader { options, progress, template: None, corpus: Corpus::default() };
    for spec in specs {
        match &spec.place {
            Place::File(path) => loader.add_file(spec, path)?,
            Place::Dataset(set) => loader.add_dataset(spec, set, purpose)?,
        }
    }
    loader.corpus.checked()
}

/// Fetches a data set's part, if it is not here, and says where it lies.
///
/// # Errors
/// As [`load`].
pub fn fetch(set: &Dataset, purpose: Purpose, options: &LoadOptions, progress: &dyn Progress) -> Result<PathBuf> {
    let part = set.part(purpose);
    let name = part_name(set, part.split);
    fetching::obtain(&options.store, &name, part, part.rule, &options.sizes(), progress)
}

/// Where a data set's part lies, if it is here. Of a data set that is taken from the head of a stream, any sample counts.
pub fn is_here(set: &Dataset, purpose: Purpose, store: &Store) -> Option<PathBuf> {
    fetching::present(store, set.part(purpose))
}

fn part_name(set: &Dataset, split: &str) -> String {
    format!("{} ({split})", set.name)
}

struct Loader<'a> {
    options: &'a LoadOptions<'a>,
    progress: &'a dyn Progress,
    template: Option<ChatTemplate>,
    corpus: Corpus,
}

impl Loader<'_> {
    fn add_file(&mut self, spec: &SourceSpec, path: &Path) -> Result<()> {
        let rule = spec.rule.unwrap_or(Rule::Raw);
        let shape = Shape::of(path, self.options.text_column.as_deref());
        let sizes = self.options.sizes();
        let samples = match shape {
            Shape::Text => rule.divide(read_text(path)?, false, &sizes),
            shape => rule.select(self.rendered(path, &shape, |_| true, usize::MAX)?, &sizes),
        };
        self.corpus.begin(self.part(spec, rule, path));
        self.add_samples(samples)
    }

    fn add_dataset(&mut self, spec: &SourceSpec, set: &'static Dataset, purpose: Purpose) -> Result<()> {
        let part = set.part(purpose);
        let rule = spec.rule.unwrap_or(part.rule);
        let sizes = self.options.sizes();
        let name = part_name(set, part.split);
        let path = fetching::obtain(&self.options.store, &name, part, rule, &sizes, self.progress)?;
        let enough = match part.origin {
            Origin::Stream { .. } => rule.enough(&sizes),
            _ => usize::MAX,
        };
        let samples = match part.format {
            Format::Text => rule.divide(read_text(&path)?, true, &sizes),
            Format::JsonLines => {
                let shape = Shape::JsonLines { column: None };
                rule.select(self.rendered(&path, &shape, |text| rule.wants(text, &sizes), enough)?, &sizes)
            }
            Format::Csv(columns) => {
                let shape = Shape::CsvNumbered { columns: columns.to_vec() };
                rule.select(self.rendered(&path, &shape, |_| true, usize::MAX)?, &sizes)
            }
        };
        let from = Part { split: Some(part.split), licence: Some(set.licence), ..self.part(spec, rule, &path) };
        self.corpus.begin(from);
        self.add_samples(samples)
    }

    fn part(&self, spec: &SourceSpec, rule: Rule, path: &Path) -> Part {
        let cut = match rule {
            Rule::Windows => Cut::Windows { wanted: self.options.sizes().chunks, seed: self.options.seed },
            _ => Cut::Stream,
        };
        Part {
            name: spec.name(),
            file: Some(path.to_path_buf()),
            rule: rule.name(),
            weight: spec.weight,
            cut,
            ..Part::default()
        }
    }

    /// Reads at most `enough` samples that are wanted, conversations as text.
    fn rendered(
        &mut self,
        path: &Path,
        shape: &Shape,
        wanted: impl Fn(&str) -> bool,
        enough: usize,
    ) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        let progress = self.progress;
        read_samples(path, shape, &mut |mut sample| {
            if progress.interrupted() {
                return Err(crate::Error::Interrupted);
            }
            if let Some(chat) = &sample.chat {
                let template = self.template(path, sample.line)?;
                sample.text = template.render(chat).map_err(|what| CorpusError::Template {
                    path: path.to_path_buf(),
                    line: sample.line,
                    model: self.model(),
                    what,
                })?;
            }
            if wanted(&sample.text) {
                samples.push(sample);
            }
            Ok(if samples.len() >= enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(samples)
    }

    /// The model's template, looked up when the first conversation comes.
    fn template(&mut self, path: &Path, line: Option<usize>) -> Result<&ChatTemplate> {
        if self.template.is_none() {
            self.template = self.options.model.and_then(|model| ChatTemplate::of(model.metadata()));
        }
        self.template
            .as_ref()
            .ok_or_else(|| CorpusError::NoTemplate { path: path.to_path_buf(), line, model: self.model() }.into())
    }

    fn model(&self) -> String {
        self.options.model.map_or_else(|| "no model".to_owned(), |model| model.path().display().to_string())
    }

    fn add_samples(&mut self, samples: Vec<Sample>) -> Result<()> {
        for sample in samples {
            let chat = sample.chat.is_some();
            self.corpus.add(&sample.text, chat || self.options.parse_special, chat)?;
        }
        Ok(())
    }
}

/// The data set of a name.
///
/// # Errors
/// [`CorpusError::UnknownSource`].
pub fn dataset(name: &str) -> Result<&'static Dataset> {
    catalogue::find(name).ok_or_else(|| {
        let known = catalogue::CATALOGUE.iter().map(|set| set.name).collect();
        CorpusError::UnknownSource { name: name.to_owned(), known }.into()
    })
}
