//! What becomes of every tensor: decided from names, shapes and settings alone, before anything is read or written.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use regex::Regex;
use serde::Serialize;

use crate::error::{ConvertError, Result};
use crate::gguf::{Dialect, GgmlType, Source, TensorInfo, TensorSpec};
use crate::llama;
use crate::model::{Kind, Role, TensorName};
use crate::tcq;

/// A tensor type chosen by the user for the names that a regular expression matches.
#[derive(Debug, Clone)]
pub struct TypeRule {
    /// Searched for anywhere in the tensor name.
    pub pattern: Regex,
    /// The type that matching tensors take.
    pub ty: GgmlType,
}

/// The choices that decide a plan.
#[derive(Debug, Clone)]
pub struct PlanSettings {
    /// Type of the token embedding; `None` picks Q6_K, or Q8_0 where columns are no multiple of 256.
    pub embedding_type: Option<GgmlType>,
    /// Type of the output head (a tied embedding counts as one); `None` as above.
    pub output_type: Option<GgmlType>,
    /// Type of linear layers that do not fit TCQ4_K32.
    pub fallback: GgmlType,
    /// The user's own choices for matrices; the first match wins.
    pub rules: Vec<TypeRule>,
    /// Whether tensors that are quantised already may be decoded and quantised again.
    pub allow_requantize: bool,
    /// Whether TCQ4 tensors are written under the fork's type id.
    pub fork_ids: bool,
}

impl Default for PlanSettings {
    fn default() -> Self {
        Self {
            embedding_type: None,
            output_type: None,
            fallback: GgmlType::Q8_0,
            rules: Vec::new(),
            allow_requantize: false,
            fork_ids: false,
        }
    }
}

/// Why a tensor takes its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A linear layer that fits the tile.
    Linear,
    /// The token embedding.
    Embedding,
    /// The output head.
    OutputHead,
    /// The token embedding of a model without an output head of its own.
    TiedHead,
    /// Not a linear layer: kept as it is.
    Kept,
    /// The user's `--tensor-type`.
    Rule,
    /// Chosen by sensitivity, for `--target-bpw`.
    Budget,
    /// A substitution: the wanted type does not fit this shape.
    Substituted {
        /// The type that was wanted.
        wanted: String,
        /// What does not fit, for instance "576 columns are no multiple of 256".
        because: String,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Linear => f.write_str("linear layer"),
            Reason::Embedding => f.write_str("token embedding"),
            Reason::OutputHead => f.write_str("output head"),
            Reason::TiedHead => f.write_str("embedding, tied to the output head"),
            Reason::Kept => f.write_str("kept"),
            Reason::Rule => f.write_str("--tensor-type"),
            Reason::Budget => f.write_str("--target-bpw"),
            Reason::Substituted { wanted, because } => write!(f, "instead of {wanted}: {because}"),
        }
    }
}

/// What becomes of one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedTensor {
    /// The tensor's name.
    pub name: String,
    /// Its dimensions in ggml's order, columns first.
    pub dims: Vec<u64>,
    /// The type it has.
    #[serde(serialize_with = "as_name")]
    pub from: GgmlType,
    /// The type it takes.
    #[serde(serialize_with = "as_name")]
    pub to: GgmlType,
    /// Why.
    pub reason: Reason,
    /// Its size in the source, in bytes.
    pub source_bytes: u64,
    /// Its size in the output, in bytes.
    pub bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn as_name<S: serde::Serializer>(ty: &GgmlType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(ty)
}

impl PlannedTensor {
    /// The number of weights.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bits a weight in the output.
    pub fn bits(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elements() as f64
    }

    /// Whether it becomes TCQ4.
    pub fn is_tcq4(&self) -> bool {
        self.to == GgmlType::TCQ4_K32
    }
}

/// Whether a tensor of `file` is TCQ4, under our id or, in a file of its dialect, the fork's.
pub fn is_tcq4(file: &Source, tensor: &TensorInfo) -> bool {
    tensor.ty == GgmlType::TCQ4_K32 || (tensor.ty == GgmlType::FORK_TCQ4_K32 && file.dialect() == Dialect::Fork)
}

/// The plan of a whole model, tensors in the order of the source.
#[derive(Debug, Clone, Serialize)]
pub struct Conversion {
    /// One entry a tensor.
    pub tensors: Vec<PlannedTensor>,
    /// Whether TCQ4 tensors are written under the fork's type id.
    pub fork_ids: bool,
    /// Whether tensors that are quantised already may be decoded and quantised again.
    #[serde(skip)]
    pub allow_requantize: bool,
}

impl Conversion {
    /// Plans `source` by `settings`.
    ///
    /// # Errors
    /// A source tensor of a type of unknown size; one that is TCQ4 already; one that is quantised otherwise and would have to change, without
    /// [`allow_requantize`](PlanSettings::allow_requantize).
    pub fn new(source: &Source, settings: &PlanSettings) -> Result<Self> {
        source.check_types()?;
        let tied = source.tensor("output.weight").is_none();
        let plan = |tensor: &TensorInfo| plan_tensor(source, tensor, tied, settings);
        let tensors = source.tensors().iter().map(plan).collect::<Result<_>>()?;
        Ok(Self { tensors, fork_ids: settings.fork_ids, allow_requantize: settings.allow_requantize })
    }

    /// Checks that every type of the plan that ggml has to write can be written by it, so that long work can be refused before it begins.
    ///
    /// # Errors
    /// Types that this build cannot write, or that need an importance matrix.
    pub fn check_encoders(&self) -> Result<()> {
        let written = self.tensors.iter().filter(|t| t.to != t.from && !t.to.is_float() && !t.is_tcq4()).map(|t| t.to);
        for ty in written.collect::<BTreeSet<_>>() {
            let Some(layout) = ty.layout() else { continue };
            let zeros = vec![0.0; layout.block as usize];
            llama::quantize_rows(ty.0, &zeros, zeros.len(), None, &mut vec![0; layout.bytes as usize])?;
        }
        Ok(())
    }

    /// Whose meaning the type ids have in the output.
    pub fn dialect(&self) -> Dialect {
        if self.fork_ids { Dialect::Fork } else { Dialect::Upstream }
    }

    /// Names, shapes and types as they are written.
    pub fn specs(&self) -> Vec<TensorSpec> {
        let ty = |t: &PlannedTensor| if t.is_tcq4() && self.fork_ids { GgmlType::FORK_TCQ4_K32 } else { t.to };
        self.tensors.iter().map(|t| TensorSpec { name: t.name.clone(), dims: t.dims.clone(), ty: ty(t) }).collect()
    }

    /// Bytes of a tensor of the plan in another type; `None` if that cannot hold it.
    pub fn bytes_as(&self, source: &Source, tensor: &PlannedTensor, ty: GgmlType) -> Option<u64> {
        let info = source.tensor(&tensor.name)?;
        let fits = misfit(info, ty, self.fork_ids).is_none();
        ty.row_bytes(info.columns()).filter(|_| fits)?.checked_mul(info.rows())
    }

    /// The plan with other types for some tensors; types that do not fit a tensor change nothing.
    #[must_use]
    pub fn with_types(&self, source: &Source, types: &BTreeMap<String, GgmlType>) -> Self {
        let mut plan = self.clone();
        for tensor in &mut plan.tensors {
            let Some(&ty) = types.get(&tensor.name).filter(|ty| **ty != tensor.to) else { continue };
            let Some(bytes) = self.bytes_as(source, tensor, ty) else { continue };
            (tensor.to, tensor.bytes, tensor.reason) = (ty, bytes, Reason::Budget);
        }
        plan
    }

    /// The tensors that take another type than the one meant for them.
    pub fn substitutions(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors.iter().filter(|t| matches!(t.reason, Reason::Substituted { .. }))
    }

    /// Bytes that the substitutions cost over the types meant for them.
    pub fn substitution_bytes(&self) -> i64 {
        let cost = |t: &PlannedTensor| {
            let Reason::Substituted { wanted, .. } = &t.reason else { return 0 };
            let meant = wanted.parse::<GgmlType>().ok().and_then(GgmlType::layout);
            meant.map_or(0, |meant| t.bytes as i64 - (t.elements() / meant.block * meant.bytes) as i64)
        };
        self.tensors.iter().map(cost).sum()
    }

    /// The number of weights.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::elements).sum()
    }

    /// Tensor bytes in the output, padding and metadata not included.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Bits a weight over the whole output.
    pub fn bits(&self) -> f64 {
        self.bytes() as f64 * 8.0 / self.elements().max(1) as f64
    }
}

fn plan_tensor(source: &Source, tensor: &TensorInfo, tied: bool, settings: &PlanSettings) -> Result<PlannedTensor> {
    if is_tcq4(source, tensor) {
        let path = source.path().to_path_buf();
        return Err(ConvertError::AlreadyTcq4 { path, tensor: tensor.name.clone() }.into());
    }
    let (wanted, reason) = wanted_type(tensor, tied, settings);
    let (to, reason) = fit(tensor, wanted, reason, settings);
    if to != tensor.ty && !tensor.ty.is_float() && !settings.allow_requantize {
        let path = source.path().to_path_buf();
        return Err(
            ConvertError::AlreadyQuantized { path, tensor: tensor.name.clone(), ty: tensor.ty.to_string() }.into()
        );
    }
    let bytes = to.row_bytes(tensor.columns()).and_then(|row| row.checked_mul(tensor.rows()));
    let bytes = if to == tensor.ty { tensor.bytes } else { bytes.unwrap_or(tensor.bytes) };
    Ok(PlannedTensor {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        from: tensor.ty,
        to,
        reason,
        source_bytes: tensor.bytes,
        bytes,
    })
}

/// The type that a tensor takes if it fits, by the user's rules and its role.
fn wanted_type(tensor: &TensorInfo, tied: bool, settings: &PlanSettings) -> (GgmlType, Reason) {
    let name = TensorName::parse(&tensor.name);
    if tensor.dims.len() < 2 || name.kind != Kind::Weight {
        // No rule changes norms and biases (those of experts are matrices): llama.cpp's kernels take them as they are, and abort on others.
        return (tensor.ty, Reason::Kept);
    }
    if let Some(rule) = settings.rules.iter().find(|r| r.pattern.is_match(&tensor.name)) {
        return (rule.ty, Reason::Rule);
    }
    let large = if tensor.columns().is_multiple_of(tcq::CHUNK as u64) { GgmlType::Q6_K } else { GgmlType::Q8_0 };
    match name.role {
        Role::TokenEmbd if tied => {
            (settings.output_type.or(settings.embedding_type).unwrap_or(large), Reason::TiedHead)
        }
        Role::TokenEmbd => (settings.embedding_type.unwrap_or(large), Reason::Embedding),
        Role::Output => (settings.output_type.unwrap_or(large), Reason::OutputHead),
        role if is_linear(role, name.block.is_some(), &tensor.name) => (GgmlType::TCQ4_K32, Reason::Linear),
        _ => (tensor.ty, Reason::Kept),
    }
}

/// Parts of names of matrices that no matrix multiplication of the block reads, or that are too sensitive: llama-quantize keeps them too.
const KEPT: &[&str] = &[
    "norm",
    "conv",
    "time_mix",
    "attn_rel_b",
    "altup",
    "laurel",
    "per_layer",
    "ssm_a",
    "ssm_d",
    "nextn",
    "indexer",
    "_inp",
];

/// Whether a matrix is the weight of a linear layer. One of unknown role counts as one if it belongs to a block and is none of [`KEPT`].
fn is_linear(role: Role, in_block: bool, name: &str) -> bool {
    use Role::{
        AttnKNorm, AttnNorm, AttnPostNorm, AttnQNorm, AttnSinks, FfnNorm, FfnPostNorm, OutputNorm, Rope, Router,
        RouterBias, SharedRouter,
    };
    match role {
        Role::Unknown => in_block && !KEPT.iter().any(|part| name.contains(part)),
        OutputNorm
        | AttnNorm
        | AttnQNorm
        | AttnKNorm
        | AttnPostNorm
        | FfnNorm
        | FfnPostNorm
        | Role::TokenEmbd
        | Role::Output
        | Rope
        | AttnSinks
        | Router
        | RouterBias
        | SharedRouter => false,
        _ => true,
    }
}

/// The wanted type where the shape allows it; else the fallback, Q8_0, or the type it has.
fn fit(tensor: &TensorInfo, wanted: GgmlType, reason: Reason, settings: &PlanSettings) -> (GgmlType, Reason) {
    let misfit = |ty| misfit(tensor, ty, settings.fork_ids);
    let Some(because) = misfit(wanted) else { return (wanted, reason) };
    let to = [settings.fallback, GgmlType::Q8_0].into_iter().find(|&ty| misfit(ty).is_none()).unwrap_or(tensor.ty);
    (to, Reason::Substituted { wanted: wanted.to_string(), because })
}

/// The ids that llama.cpp-rrs took for types of its own; upstream gave them to others.
const FORK_OWN_IDS: RangeInclusive<u32> = 40..=tcq::FORK_GGML_TYPE_ID;

/// Why `ty` cannot hold this tensor, if it cannot.
fn misfit(tensor: &TensorInfo, ty: GgmlType, fork_ids: bool) -> Option<String> {
    if fork_ids && FORK_OWN_IDS.contains(&ty.0) {
        return Some(format!("llama.cpp-rrs has another type under id {}", ty.0));
    }
    if ty == tensor.ty {
        return None;
    }
    let Some(layout) = ty.layout() else { return Some(format!("{ty} has no known layout")) };
    if !tensor.columns().is_multiple_of(layout.block) {
        return Some(format!("{} columns are no multiple of {}", tensor.columns(), layout.block));
    }
    let rows = tensor.dims.get(1).copied().unwrap_or(1);
    if ty == GgmlType::TCQ4_K32 && !rows.is_multiple_of(tcq::TILE_ROWS as u64) {
        return Some(format!("{rows} rows are no multiple of {}", tcq::TILE_ROWS));
    }
    None
}
