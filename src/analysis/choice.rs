//! Which groups, tensors and gates get curves.

use std::collections::BTreeSet;

use super::record::Analysis;
use super::subject::Ground;
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::model::TensorName;

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// The first, the middle and the last layer, and the one with the largest output error.
    #[default]
    Default,
    /// These.
    Only {
        /// Layers.
        layers: BTreeSet<u32>,
        /// Tensors, or groups by their key; `.weight` may be left out.
        names: BTreeSet<String>,
    },
}

impl Choice {
    /// Checks that everything it names is in the model.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first layer or tensor that is not.
    pub(super) fn check(&self, source: &Source) -> Result<()> {
        let Choice::Only { layers, names } = self else { return Ok(()) };
        let known: BTreeSet<u32> =
            source.tensors().iter().filter_map(|tensor| TensorName::parse(&tensor.name).block).collect();
        let path = source.path().display();
        if let Some(layer) = layers.iter().find(|layer| !known.contains(layer)) {
            let last = known.last().copied().unwrap_or(0);
            return Err(Error::Usage {
                message: format!("{path}: there is no layer {layer}"),
                hint: Some(format!("layers count from 0; the last one is {last}")),
            });
        }
        let tensor = |name: &str| source.tensor(name).is_some() || source.tensor(&format!("{name}.weight")).is_some();
        let group = |name: &str| TensorName::parse(&format!("{name}.weight")).block.is_some_and(|b| known.contains(&b));
        match names.iter().find(|name| !(tensor(name) || group(name) && is_group_kind(name))) {
            Some(name) => Err(Error::Usage {
                message: format!("{path}: there is no tensor `{name}`"),
                hint: Some("`tcq4 inspect --all` lists the tensors of a file".into()),
            }),
            None => Ok(()),
        }
    }
}

/// Whether a name ends like the key of a group that is no tensor's name.
fn is_group_kind(name: &str) -> bool {
    [".attn_in", ".attn_out", ".ffn_in"].iter().any(|kind| name.ends_with(kind))
}

/// What gets curves.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Groups, by key.
    pub(super) groups: BTreeSet<String>,
    /// Tensors, by name.
    pub(super) tensors: BTreeSet<String>,
}

impl Chosen {
    /// Resolves a choice.
    pub(super) fn new(choice: &Choice, ground: &Ground<'_>, analysis: &Analysis) -> Self {
        let default;
        let (layers, names) = match choice {
            Choice::Only { layers, names } => (layers, names.clone()),
            Choice::Default => {
                default = default_layers(ground, analysis);
                (&default, BTreeSet::new())
            }
        };
        let mut chosen = Self::default();
        let named =
            |name: &str| names.contains(name) || name.strip_suffix(".weight").is_some_and(|n| names.contains(n));
        for group in &ground.groups {
            let whole = group.layer.is_some_and(|layer| layers.contains(&layer)) || named(&group.input.key);
            if whole || group.tensors.iter().any(|name| named(name)) {
                chosen.groups.insert(group.input.key.clone());
            }
            let tensors = group.tensors.iter().filter(|name| whole || named(name));
            chosen.tensors.extend(tensors.cloned());
        }
        let others = ground.job.source.tensors().iter().filter(|tensor| named(&tensor.name));
        chosen.tensors.extend(others.map(|tensor| tensor.name.clone()));
        chosen
    }
}

fn default_layers(ground: &Ground<'_>, analysis: &Analysis) -> BTreeSet<u32> {
    let known: BTreeSet<u32> = ground.groups.iter().filter_map(|group| group.layer).collect();
    let known: Vec<u32> = known.into_iter().collect();
    let error = |row: &super::record::TensorRow| row.output.map(|output| output.assumed).or(row.error_rel);
    let worst = analysis.tensors.iter().filter_map(|row| Some((row.layer?, error(row)?))).fold(
        None,
        |worst: Option<(u32, f32)>, row| if worst.is_some_and(|w| w.1 >= row.1) { worst } else { Some(row) },
    );
    let middle = known.get(known.len() / 2);
    known.first().into_iter().chain(middle).chain(known.last()).copied().chain(worst.map(|(layer, _)| layer)).collect()
}
