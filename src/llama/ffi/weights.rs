//! Where the weights of a loaded model lie, learnt from the graph of a single token, and how they are overwritten.
//! llama.cpp's C interface has no way to a tensor by its name.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::log;
use super::node::tensor_name;
use crate::Result;
use crate::error::LlamaError;

/// The weights of one model by their names in the file.
#[derive(Debug, Default)]
pub(super) struct Weights(BTreeMap<String, NonNull<sys::ggml_tensor>>);

// SAFETY: the pointers lead into the model, which llama-cpp-2 declares free to move between and to be shared by threads; through them is written
// only while the model is borrowed exclusively.
unsafe impl Send for Weights {}
// SAFETY: as above; a shared reference gives no way to the tensors.
unsafe impl Sync for Weights {}

impl Weights {
    /// Runs a single token and notes the weights that its graph reads.
    ///
    /// # Safety
    /// The model is alive, and the result is used only while it is.
    pub(super) unsafe fn find(model: *mut sys::llama_model) -> Result<Self> {
        let mut weights = Self::default();
        // SAFETY: a pure function that returns a struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        (params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max) = (1, 1, 1, 1);
        (params.n_threads, params.n_threads_batch, params.no_perf) = (1, 1, true);
        params.op_offload = false; // would read copies
        params.cb_eval = Some(on_node);
        params.cb_eval_user_data = std::ptr::from_mut(&mut weights).cast::<c_void>();
        log::forget();
        // SAFETY: the model is alive; the context is freed before `weights` goes.
        let context = unsafe { sys::llama_init_from_model(model, params) };
        if context.is_null() {
            return Err(LlamaError::Context { reason: log::reason() }.into());
        }
        let mut token = 0;
        // SAFETY: the context is alive, the batch points to one token during the call, and nobody else uses the context.
        let status = unsafe {
            let status = sys::llama_decode(context, sys::llama_batch_get_one(&raw mut token, 1));
            sys::llama_free(context);
            status
        };
        if status == 0 { Ok(weights) } else { Err(LlamaError::Decode { status, reason: log::reason() }.into()) }
    }

    /// Overwrites bytes of a weight; false if there is none of this name.
    ///
    /// # Safety
    /// The model that the weights were found in is alive, and no graph of it runs.
    pub(super) unsafe fn write(&mut self, weight: &str, offset: usize, bytes: &[u8]) -> Result<bool> {
        let Some(tensor) = self.0.get(weight) else { return Ok(false) };
        // SAFETY: a tensor of the living model.
        let size = unsafe { sys::ggml_nbytes(tensor.as_ptr()) };
        if offset.checked_add(bytes.len()).is_none_or(|end| end > size) {
            return Err(LlamaError::Weight { tensor: weight.to_owned(), what: "it is shorter in the model" }.into());
        }
        // SAFETY: the range was checked; the buffer is no mapped file (see `model_params`), so it may be written.
        unsafe { sys::ggml_backend_tensor_set(tensor.as_ptr(), bytes.as_ptr().cast::<c_void>(), offset, bytes.len()) };
        Ok(true)
    }

    /// Notes the operands of a node that are weights: tensors in buffers of weights, not the copies that a backend makes of them.
    ///
    /// # Safety
    /// `node` is a node of a live graph.
    unsafe fn note(&mut self, node: &sys::ggml_tensor) {
        for &operand in &node.src {
            // SAFETY: operands of a live node are live tensors or null, and so are their buffers.
            let weight = unsafe {
                NonNull::new(operand).filter(|operand| {
                    let operand = operand.as_ref();
                    operand.op == sys::GGML_OP_NONE
                        && !operand.buffer.is_null()
                        && sys::ggml_backend_buffer_get_usage(operand.buffer) == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS
                })
            };
            // SAFETY: as above.
            if let Some((weight, name)) = weight.and_then(|w| Some((w, tensor_name(unsafe { w.as_ref() })?))) {
                self.0.entry(name.to_owned()).or_insert(weight);
            }
        }
    }
}

/// ggml's `ggml_backend_sched_eval_callback`; `data` are the [`Weights`]. Wants no node, so the graph runs as if nobody watched.
unsafe extern "C" fn on_node(node: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: called from within the one decode of `find`, with what was registered there; the tensor is a node of the graph being computed.
    unsafe {
        if let (true, Some(weights), Some(node)) = (ask, data.cast::<Weights>().as_mut(), node.as_ref()) {
            weights.note(node);
        }
    }
    !ask
}
