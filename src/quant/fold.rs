//! Folding: turns what was chosen for the input groups into the changes of every tensor that takes part.
//!
//! A scale goes into the makers of the activation and, inverted, into the columns of all its readers. An order goes into the readers' columns and
//! is either left to the runtime or folded into the makers' rows; in the residual stream one order serves all tensors. In real numbers the
//! model's function stays the same; what changes is the rounding of what is stored. Adapters, control vectors and vision encoders made for the
//! original model do not fit a folded one.

use std::collections::BTreeMap;

use super::transform::Transform;
use crate::math::Permutation;
use crate::model::mappings::{Family, Meets, meets_stream};
use crate::model::{Arch, Axis, InputGroup, Producer, Shape, Span, TensorName, mappings};

/// Collects the changes of a model's tensors.
#[derive(Debug)]
pub struct Folding<'a> {
    shapes: BTreeMap<&'a str, Shape<'a>>,
    transforms: BTreeMap<String, Transform>,
}

impl<'a> Folding<'a> {
    /// Begins with the tensors of a model, none of them changed.
    pub fn new(tensors: impl IntoIterator<Item = Shape<'a>>) -> Self {
        Self { shapes: tensors.into_iter().map(|shape| (shape.name, shape)).collect(), transforms: BTreeMap::new() }
    }

    /// The changes, by tensor; tensors that stay as they are do not occur.
    pub fn finish(self) -> BTreeMap<String, Transform> {
        self.transforms
    }

    /// Multiplies a group's activation by `scale`, channel by channel, and divides its readers' columns by it.
    ///
    /// # Panics
    /// If the group cannot be scaled ([`Producer::why_not_scaled`]), or `scale` has another length than the group has columns.
    pub fn scale(&mut self, group: &InputGroup, scale: &[f32]) {
        assert_eq!(scale.len() as u64, group.columns);
        let makers: Vec<f32> = match group.shared_makers() {
            None => scale.to_vec(),
            Some(shared) => {
                let mut makers = vec![1.0; shared.iter().max().map_or(0, |last| last + 1)];
                shared.iter().zip(scale).for_each(|(&maker, &factor)| makers[maker] = factor);
                makers
            }
        };
        let spans = match &group.producer {
            Producer::Norm(spans) | Producer::Values { spans, linear: true, .. } => spans,
            Producer::Ffn { linear, .. } if !linear.is_empty() => linear,
            other => panic!("{}: {}", group.key, other.why_not_scaled().unwrap_or_default()),
        };
        for span in spans {
            self.scale_span(span, &makers);
        }
        for reader in &group.readers {
            self.change(reader).scale_columns(scale.iter().map(|factor| 1.0 / factor));
        }
    }

    /// Multiplies the channels of one span.
    fn scale_span(&mut self, span: &Span, factors: &[f32]) {
        let shape = self.shapes[span.tensor.as_str()];
        let (first, len) = (span.first as usize, span.len as usize);
        let within = |i: usize| if (first..first + len).contains(&i) { factors[i - first] } else { 1.0 };
        let transform = self.change(&span.tensor);
        match span.axis {
            Axis::Columns => transform.scale_columns((0..shape.columns() as usize).map(within)),
            Axis::Rows => {
                let rows = shape.rows() as usize;
                transform.scale_rows((0..rows * shape.matrices() as usize).map(|row| within(row % rows)));
            }
        }
    }

    /// Leaves the order of one tensor's columns to the runtime.
    pub fn runtime_order(&mut self, tensor: &str, order: Permutation) {
        let transform = self.change(tensor);
        transform.columns = Some(order);
        transform.runtime_perm = true;
    }

    /// Folds an order of the channels that make a group's activation into their rows, and into the readers' columns. Where the values make it,
    /// the channels are those of the key-value heads, and the order must stay inside each head.
    ///
    /// # Panics
    /// If the group is not made by values or a feed-forward network, or the order is of another length.
    pub fn fold_order(&mut self, group: &InputGroup, order: &Permutation) {
        let columns = match &group.producer {
            Producer::Ffn { .. } => order.clone(),
            Producer::Values { heads, kv_heads, length, .. } => {
                spread(order, *heads as usize, *kv_heads as usize, *length as usize)
            }
            _ => panic!("{}: this activation's order cannot be folded", group.key),
        };
        for span in group.producer.spans() {
            self.order_span(span, order);
        }
        for reader in &group.readers {
            self.change(reader).columns = Some(columns.clone());
        }
    }

    /// Orders the channels of one span.
    fn order_span(&mut self, span: &Span, order: &Permutation) {
        assert_eq!(order.len() as u64, span.len);
        let shape = self.shapes[span.tensor.as_str()];
        let extent = if span.axis == Axis::Rows { shape.rows() } else { shape.columns() } as usize;
        let within: Vec<u32> = order.indices().iter().map(|&index| index + span.first as u32).collect();
        let place = |indices: &mut [i64], base: usize| {
            let part = &mut indices[base + span.first as usize..][..within.len()];
            part.iter_mut().zip(&within).for_each(|(to, &from)| *to = base as i64 + i64::from(from));
        };
        let transform = self.change(&span.tensor);
        match span.axis {
            Axis::Columns => edit(&mut transform.columns, extent, |indices| place(indices, 0)),
            Axis::Rows => edit(&mut transform.row_order, extent * shape.matrices() as usize, |indices| {
                (0..shape.matrices() as usize).for_each(|matrix| place(indices, matrix * extent));
            }),
        }
    }

    /// Orders the residual stream of the whole model.
    ///
    /// # Panics
    /// If [`stream_obstacle`] names an obstacle, or the order is of another length than the stream.
    pub fn fold_stream(&mut self, order: &Permutation) {
        let met: Vec<(String, Meets)> = self.shapes.keys().map(|name| ((*name).to_string(), meets(name))).collect();
        for (tensor, meets) in met {
            let shape = self.shapes[tensor.as_str()];
            let axis = match meets {
                Meets::Columns => Axis::Columns,
                Meets::Rows => Axis::Rows,
                Meets::Never => continue,
                Meets::Unknown => panic!("`{tensor}` may touch the residual stream"),
            };
            let len = if axis == Axis::Rows { shape.rows() } else { shape.columns() };
            self.order_span(&Span { tensor, axis, first: 0, len }, order);
        }
    }

    /// The transform of a tensor, made on first use.
    fn change(&mut self, tensor: &str) -> &mut Transform {
        self.transforms.entry(tensor.to_string()).or_default()
    }
}

/// Why the residual stream of this model cannot be ordered as a whole, if it cannot.
pub fn stream_obstacle<'a>(tensors: impl IntoIterator<Item = Shape<'a>>, arch: &Arch) -> Option<String> {
    match mappings::family(&arch.name) {
        None => return Some(format!("there is no table for the architecture `{}`", arch.name)),
        Some(Family { fixed_stream: Some(reason), .. }) => return Some((*reason).to_string()),
        Some(_) => {}
    }
    for shape in tensors {
        let extent = match meets(shape.name) {
            Meets::Never => continue,
            Meets::Unknown => {
                return Some(format!("`{}` has no known role and may touch the residual stream", shape.name));
            }
            Meets::Columns => shape.columns(),
            Meets::Rows => shape.rows(),
        };
        if extent != arch.embedding {
            return Some(format!(
                "`{}` has {extent} channels where the residual stream has {}",
                shape.name, arch.embedding
            ));
        }
    }
    None
}

/// Where the tensor of this name meets the residual stream.
fn meets(name: &str) -> Meets {
    let parsed = TensorName::parse(name);
    meets_stream(parsed.role, parsed.kind)
}

/// Edits the indices of an order that is the identity if it is not there yet.
fn edit(order: &mut Option<Permutation>, len: usize, change: impl FnOnce(&mut [i64])) {
    let mut indices: Vec<i64> = match order {
        Some(order) => order.indices().iter().map(|&index| i64::from(index)).collect(),
        None => (0..len as i64).collect(),
    };
    change(&mut indices);
    *order =
        Some(Permutation::new(&indices).expect("spans of one tensor do not overlap, and each is permuted in itself"));
}

/// What an order of the channels that make a group's activation is on the readers' columns.
pub(super) fn columns_order(group: &InputGroup, order: &Permutation) -> Permutation {
    match &group.producer {
        Producer::Values { heads, kv_heads, length, .. } => {
            spread(order, *heads as usize, *kv_heads as usize, *length as usize)
        }
        _ => order.clone(),
    }
}

/// The order of an attention output's channels, given that of the value rows: every query head takes the order of its key-value head.
fn spread(order: &Permutation, heads: usize, kv_heads: usize, length: usize) -> Permutation {
    assert_eq!(order.len(), kv_heads * length);
    let mut indices = Vec::with_capacity(heads * length);
    for head in 0..heads {
        let base = head / (heads / kv_heads) * length;
        let inside = |&index: &u32| (head * length) as i64 + i64::from(index) - base as i64;
        indices.extend(order.indices()[base..base + length].iter().map(inside));
    }
    Permutation::new(&indices).expect("the order stays inside each head")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_heads_take_the_order_of_their_key_value_head() {
        let order = Permutation::new(&[1, 0, 2, 3]).unwrap();
        assert_eq!(spread(&order, 4, 2, 2).indices(), [1, 0, 3, 2, 4, 5, 6, 7]);
    }

    #[test]
    fn spans_of_stacks_are_ordered_in_every_matrix() {
        let dims = [3u64, 4, 2];
        let mut folding = Folding::new([Shape { name: "blk.0.ffn_gate_up_exps.weight", dims: &dims }]);
        let span = Span { tensor: "blk.0.ffn_gate_up_exps.weight".into(), axis: Axis::Rows, first: 2, len: 2 };
        folding.order_span(&span, &Permutation::new(&[1, 0]).unwrap());
        folding.scale_span(&span, &[5.0, 7.0]);
        let transforms = folding.finish();
        let change = &transforms["blk.0.ffn_gate_up_exps.weight"];
        assert_eq!(change.row_order.as_ref().unwrap().indices(), [0, 1, 3, 2, 4, 5, 7, 6]);
        assert_eq!(change.row_scale.as_deref().unwrap(), [1.0, 1.0, 5.0, 7.0, 1.0, 1.0, 5.0, 7.0]);
    }

    #[test]
    fn names_what_is_in_the_way_of_the_stream() {
        let arch = Arch { name: "llama".into(), embedding: 4, ..Arch::default() };
        let shape = |name, dims| Shape { name, dims };
        assert_eq!(stream_obstacle([shape("token_embd.weight", &[4, 9])], &arch), None);
        assert!(stream_obstacle([shape("blk.0.mystery.weight", &[4, 4])], &arch).unwrap().contains("mystery"));
        assert!(stream_obstacle([shape("blk.0.ffn_down.weight", &[8, 5])], &arch).unwrap().contains("5 channels"));
        assert!(stream_obstacle([], &Arch { name: "qwen2vl".into(), ..arch.clone() }).unwrap().contains("vision"));
        assert!(stream_obstacle([], &Arch { name: "mamba".into(), ..arch }).unwrap().contains("mamba"));
    }
}
