//! The batch file: TOML in which every key and every value is checked; what is wrong is told with its line. It opens no model.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, PipelineError, Result};
use crate::quant::recipe::{Changes, Memory};

/// The largest file that is read as a batch.
const MOST_BYTES: u64 = 1 << 20;

/// A batch as its file says it. `O` is what stands in tables of recipe keys: checked choices, or the table as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spec<O = toml::Table> {
    /// The template of the outputs: `{name}`, `{stem}` and `{preset}` are filled in.
    #[serde(default = "default_output")]
    pub output: String,
    /// The presets that every model is converted with, built in or of `preset`.
    #[serde(default = "default_presets")]
    pub presets: Vec<String>,
    /// Where the state of jobs, shared statistics and logs are kept.
    #[serde(default = "default_state")]
    pub state: String,
    /// What becomes of the jobs after one that failed.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What becomes of an output that a gate rejects.
    #[serde(default)]
    pub rejected: Rejected,
    /// Further tries of a job whose failure may pass: the network, a full disk, a process that was killed.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// Seconds before the second try; each further one waits twice as long.
    #[serde(default = "default_pause")]
    pub retry_pause: Limit,
    /// Jobs at a time.
    pub jobs: Option<u32>,
    /// Memory of all jobs that run at a time.
    pub memory: Option<Memory>,
    /// Bytes that all jobs may write.
    pub disk: Option<Memory>,
    /// Presets of the file's own: keys of `--recipe`.
    #[serde(default = "BTreeMap::new")]
    pub preset: BTreeMap<String, O>,
    /// What every model is calibrated on.
    #[serde(default)]
    pub calibration: Calibration,
    /// What every output must reach.
    #[serde(default)]
    pub gates: Gates,
    /// Which tensor becomes what.
    #[serde(default)]
    pub types: Types,
    /// The models.
    pub model: Vec<toml::Spanned<Model<O>>>,
}

/// A number that is neither negative nor infinite, and one at all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Limit(f64);

impl Limit {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl From<Limit> for f64 {
    fn from(limit: Limit) -> f64 {
        limit.0
    }
}

impl TryFrom<f64> for Limit {
    type Error = String;

    fn try_from(number: f64) -> std::result::Result<Self, String> {
        let fits = number.is_finite() && number >= 0.0;
        if fits { Ok(Self(number)) } else { Err(format!("{number} is no number from 0 up")) }
    }
}

/// What becomes of the jobs after one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// They are run.
    #[default]
    Continue,
    /// They are not begun.
    Stop,
}

/// What becomes of an output that a gate rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rejected {
    /// It stays, as `NAME.rejected`.
    #[default]
    Keep,
    /// It is removed.
    Remove,
}

/// One entry of models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Model<O = toml::Table> {
    /// A file or a pattern (`models/*.gguf`); of a sharded model any shard.
    pub path: Option<String>,
    /// A repository of the hub: `owner/name`.
    pub hf: Option<String>,
    /// The branch, tag or commit of the repository.
    pub revision: Option<String>,
    /// The file of the repository, or a pattern.
    pub file: Option<String>,
    /// What `{name}` becomes.
    pub name: Option<String>,
    /// In place of the batch's presets.
    pub presets: Option<Vec<String>>,
    /// In place of the batch's template.
    pub output: Option<String>,
    /// Keys of `--recipe` that replace those of each preset.
    pub options: Option<O>,
    /// Keys that replace those of the batch's calibration.
    #[serde(default)]
    pub calibration: Calibration,
    /// Keys that replace those of the batch's gates.
    #[serde(default)]
    pub gates: Gates,
    /// Keys that replace those of the batch's types.
    #[serde(default)]
    pub types: Types,
}

/// Declares a table all of whose keys may be left out, and how one replaces another.
macro_rules! table {
    ($(#[doc = $about:literal])+ $table:ident { $($(#[doc = $doc:literal])+ $name:ident: $type:ty;)+ }) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $table {
            $($(#[doc = $doc])+ #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$type>,)+
        }

        impl $table {
            /// This table where it says something, `base` elsewhere.
            #[must_use]
            pub fn over(&self, base: &Self) -> Self {
                Self { $($name: self.$name.clone().or_else(|| base.$name.clone()),)+ }
            }
        }
    };
}

table! {
    /// The calibration text and how it runs.
    Calibration {
        /// `SRC[@RULE][:WEIGHT]`, as `--calibration` takes them; none for the text that ships with the program.
        sources: Vec<String>;
        /// Chunks of the text, at most; by the preset if nothing is said.
        samples: u32;
        /// Tokens of a chunk.
        ctx: u32;
        /// Seed of every random choice.
        seed: u64;
        /// Column or key that holds the text.
        text_column: String;
        /// Whether the text may spell control tokens.
        parse_special: bool;
    }
}

table! {
    /// What an output must reach.
    Gates {
        /// KL divergence from the source, at most, in nats.
        max_kld: Limit;
        /// Bits a weight over the whole model, at most.
        max_bits: Limit;
        /// What every expert must have seen of the calibration text, as a share of an even split.
        min_expert_share: Limit;
        /// The texts that the divergence is measured on: files or data sets.
        texts: Vec<String>;
        /// Chunks of each text, at most.
        chunks: u32;
        /// Tokens of a chunk.
        ctx: u32;
    }
}

table! {
    /// Which tensor becomes what.
    Types {
        /// Whether substitutions are refused.
        strict: bool;
        /// The type of linear layers that do not fit TCQ4_K32.
        fallback: String;
        /// `REGEX=TYPE`, as `--tensor-type` takes them.
        tensor_types: Vec<String>;
        /// Whether a source may be quantised already.
        allow_requantize: bool;
    }
}

impl Gates {
    /// Whether the output must be run.
    pub fn evaluates(&self) -> bool {
        self.max_kld.is_some()
    }

    /// Whether there is any gate.
    pub fn is_empty(&self) -> bool {
        self.max_kld.is_none() && self.max_bits.is_none() && self.min_expert_share.is_none()
    }
}

fn default_output() -> String {
    "{name}-{preset}.gguf".to_owned()
}

fn default_presets() -> Vec<String> {
    vec!["balanced".to_owned()]
}

fn default_state() -> String {
    ".tcq4-batch".to_owned()
}

fn default_retries() -> u32 {
    2
}

fn default_pause() -> Limit {
    Limit(1.0)
}

impl Spec {
    /// Reads a batch file.
    ///
    /// # Errors
    /// A file that cannot be read, and what [`Spec::parse`] refuses.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::metadata(path).map_err(Error::io(path, "open"))?.len();
        if bytes > MOST_BYTES {
            return Err(PipelineError::TooLarge { path: path.to_path_buf(), bytes, most: MOST_BYTES }.into());
        }
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let text = String::from_utf8(text).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|&byte| byte == b'\n').count();
            invalid(path, line, None, "the file is not UTF-8 text, as TOML is")
        })?;
        Self::parse(&text, path)
    }

    /// Reads a batch of the file `path`, which is only named in errors.
    ///
    /// # Errors
    /// Text that is not TOML, unknown keys, values that a key does not take, models that say neither or both of `path` and `hf`.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        parse::<Spec<Changes>>(text, path)?; // recipe keys are checked where their lines are known
        let spec: Spec = parse(text, path)?;
        for model in &spec.model {
            if let Some(problem) = problem_of(model.get_ref()) {
                return Err(invalid(path, line_at(text, model.span().start), None, problem).into());
            }
        }
        Ok(spec)
    }
}

/// The line of a byte, from 1.
fn line_at(text: &str, at: usize) -> usize {
    1 + text[..at.min(text.len())].matches('\n').count()
}

/// What does not go together in an entry of models.
fn problem_of(model: &Model) -> Option<&'static str> {
    match (&model.path, &model.hf) {
        (None, None) => Some("a model needs `path` or `hf`"),
        (Some(_), Some(_)) => Some("a model has either `path` or `hf`"),
        (Some(_), None) if model.revision.is_some() || model.file.is_some() => {
            Some("`revision` and `file` belong to `hf`")
        }
        (None, Some(name)) if name.split('/').filter(|part| !part.is_empty()).count() != 2 => {
            Some("`hf` is owner/name")
        }
        _ => None,
    }
}

fn invalid(path: &Path, line: usize, key: Option<String>, problem: &str) -> PipelineError {
    PipelineError::Invalid { path: path.to_path_buf(), line, key, problem: problem.to_owned() }
}

fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        let key = line.split_once('=').map(|(key, _)| key.trim().to_owned());
        let message = error.message();
        // What serde says of unknown keys names them already.
        let key = key.filter(|key| !key.is_empty() && !message.starts_with("unknown field"));
        invalid(path, line_at(text, at), key, message).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Spec::parse(text, Path::new("b.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_small_file_is_enough() {
        let spec = Spec::parse("[[model]]\npath = \"m.gguf\"", Path::new("b.toml")).unwrap();
        assert_eq!((spec.output.as_str(), &spec.presets[..]), ("{name}-{preset}.gguf", &["balanced".to_owned()][..]));
        assert_eq!((spec.retries, spec.on_failure, spec.gates.is_empty()), (2, OnFailure::Continue, true));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let model = "[[model]]\npath = \"m\"\n";
        for (text, line, key) in [
            (format!("colour = 1\n{model}"), 1, "colour"),
            (format!("{model}[model.options]\nordr = \"auto\"\n"), 4, "ordr"),
            (format!("[gates]\nmax-kld = 0.1\nmax-ppl = 3\n{model}"), 3, "max-ppl"),
            (format!("[preset.mine]\npreset = \"best\"\nrounds = 3\n{model}"), 3, "rounds"),
            (format!("{model}presset = []\n"), 3, "presset"),
        ] {
            let start = format!("b.toml: line {line}: unknown field `{key}`");
            assert!(error(&text).starts_with(&start), "{}", error(&text));
        }
    }

    #[test]
    fn wrong_values_are_told_with_key_and_line() {
        assert!(error("retries = \"many\"\n[[model]]\npath = \"m\"").starts_with("b.toml: line 1: `retries`: "));
        assert!(
            error("[[model]]\npath = \"m\"\n[model.options]\nsamples = 0").starts_with("b.toml: line 4: `samples`: ")
        );
        assert!(error("memory = 4\n[[model]]\npath = \"m\"").contains("a size in quotes"));
        assert!(error("a = [").starts_with("b.toml: line 1: "));
        for value in ["nan", "-1", "inf"] {
            let text = format!("[gates]\nmax-bits = {value}\n[[model]]\npath = \"m\"");
            assert!(error(&text).starts_with("b.toml: line 2: `max-bits`: "), "{}", error(&text));
            let text = format!("retry-pause = {value}\n[[model]]\npath = \"m\"");
            assert!(error(&text).starts_with("b.toml: line 1: `retry-pause`: "), "{}", error(&text));
        }
    }

    #[test]
    fn a_model_has_one_origin() {
        assert_eq!(error("\n[[model]]\nname = \"x\""), "b.toml: line 2: a model needs `path` or `hf`");
        let two = "[[model]]\npath = \"m\"\n[[model]]\npath = \"m\"\nhf = \"a/b\"";
        assert_eq!(error(two), "b.toml: line 3: a model has either `path` or `hf`");
        assert_eq!(error("\n[[ model ]]\nname = \"x\""), "b.toml: line 2: a model needs `path` or `hf`");
        assert_eq!(error("model = [\n{ name = \"x\" }]"), "b.toml: line 2: a model needs `path` or `hf`");
        assert_eq!(error("[[model]]\nhf = \"a\""), "b.toml: line 1: `hf` is owner/name");
        assert!(error("output = \"x\"").contains("missing field `model`"));
    }

    #[test]
    fn a_table_replaces_key_by_key() {
        let base = Calibration { samples: Some(8), ctx: Some(64), ..Calibration::default() };
        let own = Calibration { ctx: Some(32), seed: Some(7), ..Calibration::default() };
        let expected = Calibration { samples: Some(8), ctx: Some(32), seed: Some(7), ..Calibration::default() };
        assert_eq!(own.over(&base), expected);
    }
}
