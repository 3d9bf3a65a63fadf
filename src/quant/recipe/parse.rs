//! Reads recipe files: TOML, in which every key and every value is checked. What is wrong is told with its line, its key and what is allowed.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Changes;
use crate::error::{self, RecipeError, Result};
use crate::gguf::GgmlType;
use crate::util::units::parse_bytes;

/// The largest file that is read as a recipe.
const MOST_BYTES: u64 = 1 << 20;

impl Changes {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// A file that cannot be read, and what [`Changes::parse`] refuses.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::metadata(path).map_err(error::Error::io(path, "open"))?.len();
        if bytes > MOST_BYTES {
            return Err(RecipeError::TooLarge { path: path.to_path_buf(), bytes, most: MOST_BYTES }.into());
        }
        let text = std::fs::read(path).map_err(error::Error::io(path, "read"))?;
        let text = String::from_utf8(text).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|&byte| byte == b'\n').count();
            let problem = "the file is not UTF-8 text, as TOML is".to_owned();
            RecipeError::Invalid { path: path.to_path_buf(), line, key: None, problem }
        })?;
        Self::parse(&text, path)
    }

    /// Reads a recipe of the file `path`, which is only named in errors.
    ///
    /// # Errors
    /// Text that is not TOML, unknown keys, values of another type or beyond what the key takes: [`RecipeError::Invalid`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let line = text[start..].lines().next().unwrap_or_default();
            let key = line.split_once('=').map(|(key, _)| key.trim().to_owned());
            let problem = match (error.message(), &key) {
                ("wanted string or table", Some(key)) => words_of(key),
                (message, _) => message.to_owned(),
            };
            RecipeError::Invalid {
                path: path.to_path_buf(),
                line: 1 + text[..at].matches('\n').count(),
                // What serde says of unknown keys names them already.
                key: key.filter(|key| !key.is_empty() && !problem.starts_with("unknown field")),
                problem,
            }
            .into()
        })
    }
}

/// What a key takes that takes one of some words, as serde says it of a word that is none of them.
fn words_of(key: &str) -> String {
    let refusal = toml::from_str::<Changes>(&format!("{key} = \"\"")).err();
    let message = refusal.map(|error| error.message().to_owned()).unwrap_or_default();
    message.split_once(", ").map_or("expected a word in quotes", |(_, words)| words).to_owned()
}

/// Bytes of memory, written as people do: `4GiB`, `512M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub u64);

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| self.0 > 0 && self.0.trailing_zeros() >= *bits) {
            Some((bits, unit)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        quoted(deserializer)
    }
}

impl Quoted for Memory {
    const EXPECTED: &'static str = "a size in quotes, for instance \"4G\" or \"512MiB\"";

    fn read(text: &str) -> Option<Self> {
        parse_bytes(text).map(Self)
    }
}

/// A tensor type, or `auto` for the one that fits its shape: Q6_K, or Q8_0 where columns are no multiple of 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeOrAuto(pub Option<GgmlType>);

impl fmt::Display for TypeOrAuto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(ty) => f.write_str(&ty.to_string().to_lowercase()),
            None => f.write_str("auto"),
        }
    }
}

impl Serialize for TypeOrAuto {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TypeOrAuto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        quoted(deserializer)
    }
}

impl Quoted for TypeOrAuto {
    const EXPECTED: &'static str = "`auto` or a tensor type, for instance \"q6_k\"";

    fn read(text: &str) -> Option<Self> {
        if text == "auto" { Some(Self(None)) } else { text.parse().ok().map(|ty| Self(Some(ty))) }
    }
}

/// A value that stands in quotes.
trait Quoted: Sized {
    /// What it may be, for messages.
    const EXPECTED: &'static str;

    /// Reads what is in the quotes.
    fn read(text: &str) -> Option<Self>;
}

fn quoted<'de, T: Quoted, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Text<T>(PhantomData<T>);

    impl<T: Quoted> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            T::read(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Text(PhantomData))
}

/// Reads a whole number from `LEAST` to `MOST`.
pub(super) fn whole<'de, D: Deserializer<'de>, const LEAST: u32, const MOST: u32>(
    deserializer: D,
) -> Result<Option<u32>, D::Error> {
    struct Whole<const LEAST: u32, const MOST: u32>;

    impl<const LEAST: u32, const MOST: u32> Visitor<'_> for Whole<LEAST, MOST> {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number from {LEAST} to {MOST}")
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<u32, E> {
            let whole = u32::try_from(value).ok().filter(|value| (LEAST..=MOST).contains(value));
            whole.ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
        }
    }

    deserializer.deserialize_i64(Whole::<LEAST, MOST>).map(Some)
}

/// Finite numbers from 0 on, below `below` if that is finite.
struct Real {
    below: f64,
}

impl Visitor<'_> for Real {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of 0 or more")?;
        if self.below.is_finite() { write!(f, " and below {}", self.below) } else { Ok(()) }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
        let fits = (0.0..self.below).contains(&value);
        if fits { Ok(value) } else { Err(E::invalid_value(Unexpected::Float(value), &self)) }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
        self.visit_f64(value as f64)
    }
}

/// Reads a share: a finite number of 0 or more.
pub(super) fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    deserializer.deserialize_f64(Real { below: f64::INFINITY }).map(Some)
}

/// Reads a part of a whole: 0 or more, and below 1.
pub(super) fn part<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    deserializer.deserialize_f64(Real { below: 1.0 }).map(Some)
}
