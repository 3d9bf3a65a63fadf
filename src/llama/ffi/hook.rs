//! The graph-eval callback: turns raw graph nodes into [`Node`] and [`Capture`], and keeps errors and panics from crossing into C++.
//!
//! ggml asks about each node in graph order, computes up to the first wanted one, and calls again with its inputs still in memory
//! (the allocator reuses them only for later nodes).

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as sys;

use crate::error::LlamaError;
use crate::llama::{Capture, Experts, InputId, Node, Observer, Op};
use crate::{Error, Result};

/// What the callback works on; owned by the context, reached by C++ through a raw pointer.
pub(super) struct Hook {
    observer: Option<*mut dyn Observer>,
    failure: Option<Error>,
    /// The last node wanted in this graph, and in the first one: where a graph may be left.
    last_wanted: String,
    leave_after: Option<String>,
    /// Host copies of what lies on a device.
    input: Vec<f32>,
    raw_ids: Vec<u8>,
    ids: Vec<i32>,
}

impl Hook {
    pub(super) fn new() -> Self {
        Self {
            observer: None,
            failure: None,
            last_wanted: String::new(),
            leave_after: None,
            input: Vec::new(),
            raw_ids: Vec::new(),
            ids: Vec::new(),
        }
    }

    /// Lets `observer` watch until [`Self::disarm`].
    pub(super) fn arm(&mut self, observer: &mut dyn Observer) {
        let pointer: *mut (dyn Observer + '_) = observer;
        // SAFETY: only the lifetime changes; `disarm` drops the pointer before the borrow ends.
        #[expect(clippy::transmute_ptr_to_ptr, reason = "a cast may not lengthen the lifetime of a trait object")]
        let pointer =
            unsafe { std::mem::transmute::<*mut (dyn Observer + '_), *mut (dyn Observer + 'static)>(pointer) };
        self.observer = Some(pointer);
        self.last_wanted.clear();
    }

    /// Ends the watch; returns what went wrong in it.
    pub(super) fn disarm(&mut self) -> Result<()> {
        self.observer = None;
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.leave_after.is_none() && !self.last_wanted.is_empty() {
            self.leave_after = Some(self.last_wanted.clone());
        }
        Ok(())
    }

    /// The answer to ggml's question whether to stop after `tensor`.
    ///
    /// # Safety
    /// `tensor` is a node of a live graph.
    unsafe fn ask(&mut self, tensor: &sys::ggml_tensor) -> bool {
        let Some(observer) = self.observer else { return false };
        if self.failure.is_some() {
            return true; // stop at once; `observe` then ends the graph
        }
        // SAFETY: passed on from the caller.
        let Some(raw) = (unsafe { RawNode::new(tensor) }) else { return false };
        let node = raw.node();
        // SAFETY: `arm` was given a live observer, and nothing else uses it before `disarm`.
        let wanted = guard(|| Ok(unsafe { &mut *observer }.wants(&node)));
        match wanted {
            Ok(true) => {
                node.weight.clone_into(&mut self.last_wanted);
                true
            }
            Ok(false) => false,
            Err(failure) => {
                self.failure = Some(failure);
                true
            }
        }
    }

    /// Hands the input of `tensor` to the observer; false leaves the graph.
    ///
    /// # Safety
    /// `tensor` is a node of a live graph, computed, with its inputs untouched.
    unsafe fn observe(&mut self, tensor: &sys::ggml_tensor) -> bool {
        // SAFETY: passed on from the caller.
        let (Some(observer), Some(raw), None) = (self.observer, unsafe { RawNode::new(tensor) }, &self.failure) else {
            return false;
        };
        let node = raw.node();
        let outcome = guard(|| {
            // SAFETY: the inputs of a computed node are allocated and of the size their shape says.
            let capture = unsafe { raw.capture(&mut self.input, &mut self.raw_ids, &mut self.ids) }?;
            // SAFETY: as in `ask`.
            unsafe { &mut *observer }.observe(&node, &capture)
        });
        match outcome {
            Ok(()) => self.leave_after.as_deref() != Some(node.weight),
            Err(failure) => {
                self.failure = Some(failure);
                false
            }
        }
    }
}

/// Runs Rust code below C++ frames: a panic becomes an error.
fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(LlamaError::Panicked { message: panic_message(panic.as_ref()) }.into()))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// ggml's `ggml_backend_sched_eval_callback`; `data` is the [`Hook`].
pub(super) unsafe extern "C" fn on_node(tensor: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the context registered a Hook that lives as long as itself, and C++ calls from within a decode only, one at a time;
    // the tensor is a node of the graph being computed.
    unsafe {
        let (Some(hook), Some(tensor)) = (data.cast::<Hook>().as_mut(), tensor.as_ref()) else { return false };
        if ask { hook.ask(tensor) } else { hook.observe(tensor) }
    }
}

/// A multiplication node with its operands resolved.
struct RawNode<'t> {
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
    unsafe fn new(tensor: &'t sys::ggml_tensor) -> Option<Self> {
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

    fn node(&self) -> Node<'t> {
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
    unsafe fn capture<'b>(
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

/// The tensor's name, free of backend decoration: `CUDA0#blk.0.attn_q.weight#0` is `blk.0.attn_q.weight`.
fn tensor_name(tensor: &sys::ggml_tensor) -> Option<&str> {
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
