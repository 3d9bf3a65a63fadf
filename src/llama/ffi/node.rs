//! Multiplications of a raw graph as [`Node`], [`Capture`] and [`Input`]: operands, names, shapes, strides, and memory on any backend.

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

use crate::Result;
use crate::error::LlamaError;
use crate::llama::rewrite::Input;
use crate::llama::{Capture, Experts, InputId, Node, Op};

/// A multiplication node with its operands resolved.
pub(super) struct RawNode<'t> {
    op: Op,
    name: &'t str,
    weight: &'t sys::ggml_tensor,
    input: &'t sys::ggml_tensor,
    ids: Option<&'t sys::ggml_tensor>,
}

impl<'t> RawNode<'t> {
    /// The node, if it is a multiplication of an f32 input.
    ///
    /// # Safety
    /// `tensor` is a node of a live graph.
    pub(super) unsafe fn new(tensor: &'t sys::ggml_tensor) -> Option<Self> {
        let op = match tensor.op {
            sys::GGML_OP_MUL_MAT => Op::MulMat,
            sys::GGML_OP_MUL_MAT_ID => Op::MulMatId,
            _ => return None,
        };
        // SAFETY: operands of a live node are live tensors or null.
        let (weight, input, ids) =
            unsafe { (tensor.src[0].as_ref()?, tensor.src[1].as_ref()?, tensor.src[2].as_ref()) };
        let name = tensor_name(weight)?;
        (input.type_ == sys::GGML_TYPE_F32).then_some(Self { op, name, weight, input, ids })
    }

    pub(super) fn node(&self) -> Node<'t> {
        let size = |tensor: &sys::ggml_tensor, i: usize| usize::try_from(tensor.ne[i]).unwrap_or(0);
        Node {
            op: self.op,
            weight: self.name,
            columns: size(self.weight, 0),
            weight_rows: size(self.weight, 1),
            matrices: size(self.weight, 2) * size(self.weight, 3),
            input: identity(self.input),
            routing: self.ids.map(identity),
            rows: size(self.input, 1) * size(self.input, 2) * size(self.input, 3),
        }
    }

    /// The input in host memory.
    ///
    /// # Safety
    /// The node is computed, its inputs are allocated.
    pub(super) unsafe fn capture<'b>(
        &self,
        copy: &'b mut Vec<f32>,
        raw_ids: &mut Vec<u8>,
        ids: &'b mut Vec<i32>,
    ) -> Result<Capture<'b>>
    where
        't: 'b,
    {
        let unsupported = |what| LlamaError::Layout { tensor: self.name.to_owned(), what };
        let (shape, strides) = extent(self.input).ok_or_else(|| unsupported("an input with unaligned strides"))?;
        let len = span(shape, strides);
        // SAFETY: passed on; `len` elements is what shape and strides reach.
        let data =
            unsafe { host_slice(self.input, len, copy) }.ok_or_else(|| unsupported("an input without memory"))?;
        let experts = match (self.op, self.ids) {
            (Op::MulMat, _) => None,
            (Op::MulMatId, None) => return Err(unsupported("expert multiplication without expert ids").into()),
            (Op::MulMatId, Some(tensor)) => {
                // SAFETY: passed on.
                let used = unsafe { copy_ids(tensor, raw_ids, ids) }
                    .ok_or_else(|| unsupported("expert ids of another type"))?;
                let matrices = self.weight.ne[2];
                let sound = ids.iter().all(|&id| i64::from(id) >= 0 && i64::from(id) < matrices);
                if !sound || used == 0 || ids.len() / used != shape[2] || shape[3] != 1 || shape[1] == 0 {
                    return Err(unsupported("expert ids that do not fit the input").into());
                }
                Some(Experts { ids, used })
            }
        };
        Ok(Capture { data, shape, strides, experts })
    }
}

/// The values of an input before it was changed, on their way back.
#[derive(Debug, Default)]
pub(super) struct Saved {
    original: Vec<f32>,
    changed: Vec<f32>,
}

impl RawNode<'_> {
    /// Lets `change` work on the input, and keeps what it was in `saved` for [`Self::restore`].
    ///
    /// # Safety
    /// All nodes before this one are computed, its input is allocated, and no graph runs during the call.
    pub(super) unsafe fn change(
        &self,
        saved: &mut Saved,
        change: impl FnOnce(&mut Input<'_>) -> Result<()>,
    ) -> Result<()> {
        let unsupported = |what| LlamaError::Layout { tensor: self.name.to_owned(), what };
        let (shape, strides) = extent(self.input).ok_or_else(|| unsupported("an input with unaligned strides"))?;
        let len = span(shape, strides);
        // SAFETY: passed on; `len` elements is what shape and strides reach.
        let original = unsafe { host_slice(self.input, len, &mut saved.changed) };
        let original = original.ok_or_else(|| unsupported("an input without memory"))?;
        saved.original.clear();
        saved.original.extend_from_slice(original);
        saved.changed.clone_from(&saved.original);
        let input = Input::new(&mut saved.changed, shape, strides);
        change(&mut input.ok_or_else(|| unsupported("an input whose rows overlap"))?)?;
        // SAFETY: passed on; as many values as were read.
        unsafe { write_back(self.input, &saved.changed) };
        Ok(())
    }

    /// Puts back what [`Self::change`] kept.
    ///
    /// # Safety
    /// This node is computed, none after it is, and `saved` is from its own change.
    pub(super) unsafe fn restore(&self, saved: &Saved) {
        // SAFETY: passed on; as many values as were read.
        unsafe { write_back(self.input, &saved.original) };
    }
}

/// Writes the span of a tensor.
///
/// # Safety
/// The tensor is allocated, f32, and its span has as many elements as there are `values`.
unsafe fn write_back(tensor: &sys::ggml_tensor, values: &[f32]) {
    if !values.is_empty() {
        let tensor = std::ptr::from_ref(tensor).cast_mut();
        // SAFETY: passed on; ggml takes a plain pointer and changes only the data, which no Rust reference covers.
        unsafe { sys::ggml_backend_tensor_set(tensor, values.as_ptr().cast::<c_void>(), 0, size_of_val(values)) };
    }
}

/// The tensor's name, free of backend decoration: `CUDA0#blk.0.attn_q.weight#0` is `blk.0.attn_q.weight`.
pub(super) fn tensor_name(tensor: &sys::ggml_tensor) -> Option<&str> {
    let bytes = bytemuck::cast_slice::<_, u8>(&tensor.name);
    let end = bytes.iter().position(|&b| b == 0)?;
    let name = std::str::from_utf8(&bytes[..end]).ok()?;
    Some(name.split_once('#').map_or(name, |(_, rest)| rest.split('#').next().unwrap_or(rest)))
}

/// The tensor whose values these are: sees through reshapes, which move nothing.
fn identity(tensor: &sys::ggml_tensor) -> InputId {
    let mut root = tensor;
    while root.op == sys::GGML_OP_RESHAPE {
        // SAFETY: the operand of a live reshape node is a live tensor or null.
        match unsafe { root.src[0].as_ref() } {
            Some(source) => root = source,
            None => break,
        }
    }
    InputId(std::ptr::from_ref(root) as usize)
}

/// Shape and strides in elements of four bytes; `None` if they do not fit that.
fn extent(tensor: &sys::ggml_tensor) -> Option<([usize; 4], [usize; 4])> {
    let (mut shape, mut strides) = ([0; 4], [0; 4]);
    for i in 0..4 {
        shape[i] = usize::try_from(tensor.ne[i]).ok()?;
        strides[i] = tensor.nb[i] / 4;
        if !tensor.nb[i].is_multiple_of(4) {
            return None;
        }
    }
    (strides[0] == 1).then_some((shape, strides))
}

/// Elements from the first to one past the last.
fn span(shape: [usize; 4], strides: [usize; 4]) -> usize {
    if shape.contains(&0) { 0 } else { (0..4).map(|i| (shape[i] - 1) * strides[i]).sum::<usize>() + 1 }
}

/// The tensor's `len` values, in place where they lie in host memory, else copied.
///
/// # Safety
/// The tensor is allocated, f32, and `len` is its span.
unsafe fn host_slice<'b>(tensor: &'b sys::ggml_tensor, len: usize, copy: &'b mut Vec<f32>) -> Option<&'b [f32]> {
    // SAFETY: a view's source is a live tensor; the buffer belongs to one of them.
    unsafe {
        let buffer = tensor.view_src.as_ref().map_or(tensor.buffer, |source| source.buffer);
        if buffer.is_null() || tensor.data.is_null() {
            return None;
        }
        if sys::ggml_backend_buffer_is_host(buffer) {
            return Some(std::slice::from_raw_parts(tensor.data.cast::<f32>(), len));
        }
        copy.resize(len, 0.0);
        sys::ggml_backend_tensor_get(tensor, copy.as_mut_ptr().cast::<c_void>(), 0, len * size_of::<f32>());
        Some(copy)
    }
}

/// Copies expert ids (a strided view, on any backend) to `ids`, token after token; returns how many there are per token.
///
/// # Safety
/// The tensor is allocated.
unsafe fn copy_ids(tensor: &sys::ggml_tensor, raw: &mut Vec<u8>, ids: &mut Vec<i32>) -> Option<usize> {
    let (used, tokens) = (usize::try_from(tensor.ne[0]).ok()?, usize::try_from(tensor.ne[1]).ok()?);
    if tensor.type_ != sys::GGML_TYPE_I32 || used == 0 || tokens == 0 {
        return None;
    }
    let bytes = (tokens - 1) * tensor.nb[1] + (used - 1) * tensor.nb[0] + size_of::<i32>();
    raw.resize(bytes, 0);
    // SAFETY: `bytes` ends with the last element of the tensor.
    unsafe { sys::ggml_backend_tensor_get(tensor, raw.as_mut_ptr().cast::<c_void>(), 0, bytes) };
    ids.clear();
    for token in 0..tokens {
        for slot in 0..used {
            let at = token * tensor.nb[1] + slot * tensor.nb[0];
            ids.push(i32::from_ne_bytes(raw[at..at + 4].try_into().ok()?));
        }
    }
    Some(used)
}
