//! Input groups: the tensors that read one activation, and the tensors that make it.
//!
//! A group whose maker cannot be named with certainty has [`Producer::Unknown`] with the reason, and is neither scaled nor folded; it can still
//! be permuted at run time, because that needs nobody's help.

use std::collections::BTreeMap;

use super::arch::Arch;
use super::mappings::{BY_NAME, Family, Input, Rule, family};
use super::name::{Kind, Role, TensorName, spell};

/// A tensor's name and shape; `dims[0]` is the number of columns, as in GGUF.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// The name.
    pub name: &'a str,
    /// The extents, fastest first.
    pub dims: &'a [u64],
}

impl Shape<'_> {
    /// The number of columns.
    pub fn columns(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// The rows of one matrix.
    pub fn rows(&self) -> u64 {
        self.dims.get(1).copied().unwrap_or(1)
    }

    /// The number of matrices: experts, or 1.
    pub fn matrices(&self) -> u64 {
        self.dims.iter().skip(2).product()
    }
}

/// Along which dimension a tensor holds the channels of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Rows of a weight matrix.
    Rows,
    /// Dimension 0 of a bias or gain.
    Columns,
}

/// The part of a tensor that makes an activation, channel by channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The tensor.
    pub tensor: String,
    /// Where the channels lie.
    pub axis: Axis,
    /// The index of the first channel (within each matrix of a stack).
    pub first: u64,
    /// The number of channels.
    pub len: u64,
}

/// What makes an activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Producer {
    /// A norm: its gain, and its bias if it has one.
    Norm(Vec<Span>),
    /// The residual stream itself.
    Stream,
    /// The attention: value rows (and bias); query head `h` reads key-value head `h * kv_heads / heads`.
    Values {
        /// The value rows, `kv_heads * length` of them.
        spans: Vec<Span>,
        /// Query heads.
        heads: u64,
        /// Key and value heads.
        kv_heads: u64,
        /// Channels of a head.
        length: u64,
        /// Whether the values can be scaled (they are not clamped).
        linear: bool,
    },
    /// A feed-forward network.
    Ffn {
        /// The rows (and biases) of the linear factor; empty if there is none.
        linear: Vec<Span>,
        /// The rows (and biases) of everything inside a nonlinearity.
        nonlinear: Vec<Span>,
    },
    /// Not known with certainty.
    Unknown {
        /// Why not.
        reason: String,
    },
}

impl Producer {
    /// Why the channels cannot be scaled exactly, if they cannot.
    pub fn why_not_scaled(&self) -> Option<&str> {
        match self {
            Producer::Stream => Some("the residual stream is read without a norm between"),
            Producer::Values { linear: false, .. } => Some("the values are clamped"),
            Producer::Ffn { linear, .. } if linear.is_empty() => Some("a nonlinearity makes this activation"),
            Producer::Unknown { reason } => Some(reason),
            _ => None,
        }
    }

    /// All spans whose channels are those of the activation.
    pub fn spans(&self) -> impl Iterator<Item = &Span> {
        let (first, second): (&[Span], &[Span]) = match self {
            Producer::Norm(spans) | Producer::Values { spans, .. } => (spans, &[]),
            Producer::Ffn { linear, nonlinear } => (linear, nonlinear),
            Producer::Stream | Producer::Unknown { .. } => (&[], &[]),
        };
        first.iter().chain(second)
    }
}

/// The tensors that read one activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputGroup {
    /// A name: `blk.3.ffn_down`; for what stands alone, the tensor's name.
    pub key: String,
    /// The weights whose columns read it; those that are never quantised (routers) among them.
    pub readers: Vec<String>,
    /// The number of channels.
    pub columns: u64,
    /// What makes it.
    pub producer: Producer,
    /// Whether its channels are those of the residual stream.
    pub in_stream: bool,
}

impl InputGroup {
    /// The maker of each channel where several channels have the same one (query heads that share a key-value head).
    pub fn shared_makers(&self) -> Option<Vec<usize>> {
        match &self.producer {
            Producer::Values { heads, kv_heads, length, .. } if heads != kv_heads => {
                let channel = |column| (column / length / (heads / kv_heads) * length + column % length) as usize;
                Some((0..self.columns).map(channel).collect())
            }
            _ => None,
        }
    }
}

/// The tensors of a model by name, each with its parsed name.
type Index<'a> = BTreeMap<&'a str, (TensorName, Shape<'a>)>;

/// Finds the input groups of a model, in the order of the blocks, the output head last.
pub fn groups<'a>(tensors: impl IntoIterator<Item = Shape<'a>>, arch: &Arch) -> Vec<InputGroup> {
    let index: Index<'a> =
        tensors.into_iter().map(|shape| (shape.name, (TensorName::parse(shape.name), shape))).collect();
    let family = family(&arch.name);
    let mut blocks: Vec<u32> = index.values().filter_map(|(name, _)| name.block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let mut found = Vec::new();
    for block in blocks {
        block_groups(&index, arch, family, block, &mut found);
    }
    found.extend(output_group(&index, family, arch));
    found
}

/// The groups of one block: those of the rules, then every other matrix on its own.
fn block_groups(index: &Index<'_>, arch: &Arch, family: Option<&Family>, block: u32, found: &mut Vec<InputGroup>) {
    let members: Vec<_> = index.values().filter(|(name, _)| name.block == Some(block)).collect();
    let stranger = members.iter().find(|(name, _)| name.role == Role::Unknown || name.kind == Kind::Other);
    let doubt = match (family, stranger) {
        (None, _) => Some(format!("there is no table for the architecture `{}`", arch.name)),
        (_, Some((_, shape))) => Some(format!("`{}` has no known role and may touch this activation", shape.name)),
        _ => None,
    };
    for rule in family.map_or(BY_NAME, |family| family.rules) {
        let readers: Vec<Shape<'_>> = members
            .iter()
            .filter(|(name, _)| name.kind == Kind::Weight && rule.readers.contains(&name.role))
            .map(|(_, s)| *s)
            .collect();
        let Some(columns) = readers.first().map(Shape::columns) else { continue };
        if readers.iter().any(|reader| reader.columns() != columns) {
            let reason = "its readers differ in their number of columns".to_string();
            found.extend(readers.iter().map(|reader| alone(reader, reason.clone())));
            continue;
        }
        let input = rule.inputs.iter().find(|input| exists(index, block, **input));
        let producer = match (&doubt, input) {
            (Some(reason), _) => Producer::Unknown { reason: reason.clone() },
            (None, None) => {
                Producer::Unknown { reason: "the tensors that should make this activation are not in the file".into() }
            }
            (None, Some(&input)) => resolve(index, arch, block, input, columns),
        };
        let in_stream = doubt.is_none() && matches!(input, Some(Input::Norm(_) | Input::Stream));
        let key = format!("blk.{block}.{}", rule.key);
        found.push(InputGroup { key, readers: names(&readers), columns, producer, in_stream });
    }
    let rules = family.map_or(BY_NAME, |family| family.rules);
    let covered = |role: Role| rules.iter().any(|rule: &Rule| rule.readers.contains(&role));
    for (name, shape) in members {
        if name.kind == Kind::Weight && shape.dims.len() >= 2 && !covered(name.role) && shape.rows() > 1 {
            found.push(alone(shape, "no rule says what makes its input".into()));
        }
    }
}

/// A group of one tensor about which nothing is known.
fn alone(shape: &Shape<'_>, reason: String) -> InputGroup {
    let readers = vec![shape.name.to_string()];
    InputGroup {
        key: shape.name.to_string(),
        readers,
        columns: shape.columns(),
        producer: Producer::Unknown { reason },
        in_stream: false,
    }
}

/// The names of some tensors.
fn names(shapes: &[Shape<'_>]) -> Vec<String> {
    shapes.iter().map(|shape| shape.name.to_string()).collect()
}

/// The group of the output head; none for a tied embedding, whose rows are looked up as well as multiplied.
fn output_group(index: &Index<'_>, family: Option<&Family>, arch: &Arch) -> Option<InputGroup> {
    let (_, head) = index.get("output.weight")?;
    let stranger = index
        .values()
        .find(|(name, _)| name.block.is_none() && (name.role == Role::Unknown || name.kind == Kind::Other));
    let producer = match (family, stranger) {
        (None, _) => Producer::Unknown { reason: format!("there is no table for the architecture `{}`", arch.name) },
        (_, Some((_, shape))) => Producer::Unknown { reason: format!("`{}` may read this activation too", shape.name) },
        _ => norm(index, None, Role::OutputNorm, head.columns()),
    };
    let in_stream = matches!(producer, Producer::Norm(_));
    Some(InputGroup {
        key: "output".into(),
        readers: vec![head.name.to_string()],
        columns: head.columns(),
        producer,
        in_stream,
    })
}

/// Whether the tensors of an input are in the file.
fn exists(index: &Index<'_>, block: u32, input: Input) -> bool {
    let has = |role| spell(Some(block), role, "weight").is_some_and(|name| index.contains_key(name.as_str()));
    match input {
        Input::Norm(role) | Input::GatedFused(role) | Input::Plain(role) => has(role),
        Input::Stream => true,
        Input::Values => has(Role::AttnV) || has(Role::AttnQkv),
        Input::Gated { gate, up } | Input::Clamped { gate, up } => has(gate) && has(up),
    }
}

/// Turns an input of the tables into the spans of this block's tensors, or says what does not fit.
fn resolve(index: &Index<'_>, arch: &Arch, block: u32, input: Input, columns: u64) -> Producer {
    let whole = |role| rows(index, block, role, 0, columns, columns);
    let up_is_linear = !arch.clamps_up;
    let ffn = |linear: Option<Vec<Span>>, nonlinear: Option<Vec<Span>>| match (linear, nonlinear) {
        (Some(linear), Some(nonlinear)) if up_is_linear => Producer::Ffn { linear, nonlinear },
        (Some(linear), Some(nonlinear)) => {
            Producer::Ffn { linear: Vec::new(), nonlinear: [nonlinear, linear].concat() }
        }
        _ => Producer::Unknown { reason: format!("the rows that make this activation are not {columns}") },
    };
    match input {
        Input::Norm(role) => norm(index, Some(block), role, columns),
        Input::Stream => Producer::Stream,
        Input::Values => values(index, arch, block, columns),
        Input::Gated { gate, up } => ffn(whole(up), whole(gate)),
        Input::GatedFused(up) => {
            let half = |first| rows(index, block, up, first, columns, 2 * columns);
            ffn(half(columns), half(0))
        }
        Input::Clamped { gate, up } => match (whole(gate), whole(up)) {
            (Some(gate), Some(up)) => Producer::Ffn { linear: Vec::new(), nonlinear: [gate, up].concat() },
            _ => ffn(None, None),
        },
        Input::Plain(up) => ffn(Some(Vec::new()), whole(up)),
    }
}

/// The gain, and the bias if there is one, of a norm.
fn norm(index: &Index<'_>, block: Option<u32>, role: Role, columns: u64) -> Producer {
    let mut spans = Vec::new();
    for suffix in ["weight", "bias"] {
        let Some(shape) = spell(block, role, suffix).and_then(|name| index.get(name.as_str()).map(|(_, shape)| *shape))
        else {
            continue;
        };
        if shape.columns() != columns || shape.dims.iter().skip(1).any(|&extent| extent != 1) {
            return Producer::Unknown { reason: format!("`{}` does not hold {columns} gains", shape.name) };
        }
        spans.push(Span { tensor: shape.name.to_string(), axis: Axis::Columns, first: 0, len: columns });
    }
    match spans.first() {
        Some(span) if span.tensor.ends_with(".weight") => Producer::Norm(spans),
        _ => Producer::Unknown { reason: "the norm before it has no gain".into() },
    }
}

/// Rows `first..first + len` of each matrix of a weight of `total` rows, and the same of its bias; nothing if the shapes differ.
fn rows(index: &Index<'_>, block: u32, role: Role, first: u64, len: u64, total: u64) -> Option<Vec<Span>> {
    let (_, weight) = index.get(spell(Some(block), role, "weight")?.as_str())?;
    if weight.rows() != total {
        return None;
    }
    let mut spans = vec![Span { tensor: weight.name.to_string(), axis: Axis::Rows, first, len }];
    if let Some((_, bias)) = index.get(spell(Some(block), role, "bias")?.as_str()) {
        if bias.columns() != total {
            return None;
        }
        spans.push(Span { tensor: bias.name.to_string(), axis: Axis::Columns, first, len });
    }
    Some(spans)
}

/// The value rows behind an attention's output, in a matrix of their own or behind those of q and k.
fn values(index: &Index<'_>, arch: &Arch, block: u32, columns: u64) -> Producer {
    let unknown = |reason: &str| Producer::Unknown { reason: reason.into() };
    let Some(heads) = arch.heads(block) else { return unknown("the metadata do not say how many heads there are") };
    if heads.query.checked_mul(heads.value_length) != Some(columns) {
        return unknown("the heads' number and length do not give its number of channels");
    }
    let len = heads.kv * heads.value_length;
    let has = |role, suffix| spell(Some(block), role, suffix).is_some_and(|name| index.contains_key(name.as_str()));
    let spans = if has(Role::AttnQkv, "weight") {
        let first =
            heads.query.saturating_mul(heads.key_length).saturating_add(heads.kv.saturating_mul(heads.key_length));
        let mut spans = rows(index, block, Role::AttnQkv, first, len, first.saturating_add(len));
        if let (Some(spans), Some(name)) = (&mut spans, spell(Some(block), Role::AttnV, "bias")) {
            // A fused matrix may come with separate biases.
            if index.contains_key(name.as_str()) && spans.len() == 1 {
                spans.push(Span { tensor: name, axis: Axis::Columns, first: 0, len });
            }
        }
        spans
    } else {
        rows(index, block, Role::AttnV, 0, len, len)
    };
    match spans {
        Some(spans) => Producer::Values {
            spans,
            heads: heads.query,
            kv_heads: heads.kv,
            length: heads.value_length,
            linear: !arch.clamps_values,
        },
        None => unknown("the number of value rows does not fit the heads"),
    }
}
