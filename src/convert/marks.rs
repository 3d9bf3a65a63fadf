//! Which activation path each tensor asks of a runtime: `tcq4.activations`, the path of the file, and `tcq4.<tensor>.activations`, that of a tensor
//! that suffers too much on it. A runtime may ignore both; [`super::verify()`] refuses marks that none could follow.

use std::collections::BTreeMap;

use serde::Serialize;

use super::is_tcq4;
use crate::error::{ConvertError, Result};
use crate::gguf::{Metadata, Source, TensorInfo};
use crate::model::{Arch, Shape, groups};
use crate::quant::Activations;

/// `tcq4.activations`: string, a name of [`Activations`].
const KEY: &str = "tcq4.activations";

/// The key of a tensor's own path: string.
fn tensor_key(tensor: &str) -> String {
    format!("tcq4.{tensor}.activations")
}

/// The marks of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Marks {
    /// The path of every TCQ4 tensor that has none of its own; `None` leaves it to the runtime.
    pub default: Option<Activations>,
    /// Tensors with a path of their own.
    pub tensors: BTreeMap<String, Activations>,
}

impl Marks {
    /// Writes the marks into the metadata of a file.
    pub fn write(&self, metadata: &mut Metadata) {
        if let Some(path) = self.default {
            metadata.set(KEY, path.name());
        }
        for (tensor, path) in &self.tensors {
            metadata.set(&tensor_key(tensor), path.name());
        }
    }

    /// Reads the marks of a file; a file without any has none.
    ///
    /// # Errors
    /// Marks that name no path, or belong to a tensor that the file lacks or that is not TCQ4.
    pub fn read(file: &Source) -> Result<Self> {
        let metadata = file.metadata();
        let default = metadata.contains(KEY).then(|| path(file, KEY)).transpose()?;
        let marked = metadata.keys().filter_map(|key| key.strip_prefix("tcq4.")?.strip_suffix(".activations"));
        let one = |tensor: &str| {
            let key = tensor_key(tensor);
            match file.tensor(tensor) {
                None => Err(damaged(file, &key, "the file has no such tensor".into())),
                Some(info) if !is_tcq4(file, info) => {
                    let problem = format!("the tensor is {}, and only TCQ4 tensors have rounded inputs", info.ty);
                    Err(damaged(file, &key, problem))
                }
                Some(_) => Ok((tensor.to_owned(), path(file, &key)?)),
            }
        };
        Ok(Self { default, tensors: marked.map(one).collect::<Result<_>>()? })
    }

    /// The path of a tensor, where the file says one.
    pub fn of(&self, tensor: &str) -> Option<Activations> {
        self.tensors.get(tensor).copied().or(self.default)
    }
}

fn damaged(file: &Source, key: &str, problem: String) -> crate::Error {
    ConvertError::Damaged { path: file.path().to_path_buf(), tensor: key.to_owned(), problem }.into()
}

fn path(file: &Source, key: &str) -> Result<Activations> {
    let text = file.metadata().get_str(key).ok_or_else(|| damaged(file, key, "it is not a string".into()))?;
    text.parse().map_err(|problem| damaged(file, key, problem))
}

/// Checks the marks of a file: an activation is rounded once, so the TCQ4 tensors that read one must agree.
///
/// # Errors
/// As [`Marks::read`], and tensors of one input with different paths.
pub(super) fn check(file: &Source) -> Result<Marks> {
    let marks = Marks::read(file)?;
    let shapes = file.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
    for group in groups(shapes, &Arch::from_metadata(file.metadata())) {
        let tcq4 = |name: &&String| file.tensor(name).is_some_and(|tensor: &TensorInfo| is_tcq4(file, tensor));
        let readers: Vec<&String> = group.readers.iter().filter(tcq4).collect();
        let Some((first, others)) = readers.split_first() else { continue };
        if let Some(other) = others.iter().find(|other| marks.of(other) != marks.of(first)) {
            let name = |tensor: &str| marks.of(tensor).map_or("no path", Activations::name);
            let problem = format!("{} for an input that `{first}` reads with {}", name(other), name(first));
            return Err(damaged(file, &tensor_key(other), problem));
        }
    }
    Ok(marks)
}
