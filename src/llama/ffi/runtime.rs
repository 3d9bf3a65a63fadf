//! Models and contexts by their raw pointers: created, used and freed here. The model comes from llama-cpp-2; the context cannot,
//! because that crate has no way to set the graph-eval callback.

use std::ffi::{CString, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::hook::{Hook, on_node};
use super::log;
use super::weights::Weights;
use crate::error::LlamaError;
use crate::llama::{ContextOptions, Model, ModelOptions, Watch};
use crate::{Error, Result};

/// `LlamaModel` is `repr(transparent)` over the pointer; if it ever is not, this stops the build.
const _: () = assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>());

/// One load at a time, so that the kept log lines belong to it.
static LOADING: Mutex<()> = Mutex::new(());

fn backend() -> Result<&'static LlamaBackend> {
    static BACKEND: OnceLock<Option<LlamaBackend>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        log::install();
        LlamaBackend::init().ok()
    });
    backend
        .as_ref()
        .ok_or_else(|| LlamaError::Context { reason: "another part of this process has initialised it".into() }.into())
}

/// A model that llama.cpp has loaded.
#[derive(Debug)]
pub(in crate::llama) struct RawModel {
    inner: LlamaModel,
    /// Where its weights lie, once somebody asked.
    weights: Option<Weights>,
}

impl RawModel {
    pub(in crate::llama) fn load(path: &Path, options: &ModelOptions) -> Result<Self> {
        let gpu_layers = options.gpu_layers;
        let backend = backend()?;
        if gpu_layers > 0 && !backend.supports_gpu_offload() {
            return Err(LlamaError::NoGpu { layers: gpu_layers }.into());
        }
        let _one = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        log::forget();
        let missing = || LlamaError::Load { path: path.to_path_buf(), reason: "its path has a NUL".into() };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| missing())?;
        // SAFETY: a NUL-terminated name and parameters from the defaults; the backend is initialised.
        let model = unsafe { sys::llama_model_load_from_file(name.as_ptr(), model_params(*options)) };
        let Some(model) = NonNull::new(model) else {
            return Err(LlamaError::Load { path: path.to_path_buf(), reason: log::reason() }.into());
        };
        // SAFETY: `repr(transparent)` over a non-null pointer to the model (its size is asserted above), which it frees when dropped.
        let inner = unsafe { std::mem::transmute::<NonNull<sys::llama_model>, LlamaModel>(model) };
        Ok(Self { inner, weights: None })
    }

    /// The safe wrapper, for everything that it can do.
    pub(in crate::llama) fn inner(&self) -> &LlamaModel {
        &self.inner
    }

    /// Replaces bytes of a weight; false if there is none of this name.
    pub(in crate::llama) fn replace(&mut self, weight: &str, offset: usize, bytes: &[u8]) -> Result<bool> {
        let model = self.pointer();
        let weights = match &mut self.weights {
            Some(weights) => weights,
            // SAFETY: the model is alive, and the weights are kept no longer than it.
            none => none.insert(unsafe { Weights::find(model) }?),
        };
        // SAFETY: the model is borrowed for writing, so there is no context of it, and it is alive with its weights.
        unsafe { weights.write(weight, offset, bytes) }
    }

    fn pointer(&self) -> *mut sys::llama_model {
        // SAFETY: `repr(transparent)` over a non-null pointer to the model (its size is asserted above).
        unsafe { *std::ptr::from_ref(&self.inner).cast::<*mut sys::llama_model>() }
    }
}

/// Whether a watched graph runs to its end, for the sake of its logits.
#[derive(Debug, Clone, Copy)]
pub(in crate::llama) struct ToTheEnd(pub(in crate::llama) bool);

/// A context, its batch and the hook that its callback works on.
pub(in crate::llama) struct RawContext<'m> {
    context: NonNull<sys::llama_context>,
    batch: sys::llama_batch,
    capacity: usize,
    /// From `Box::into_raw`; C++ holds the same pointer, so it is never turned into a lasting reference.
    hook: *mut Hook,
    model: PhantomData<&'m Model>,
}

impl fmt::Debug for RawContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawContext")
            .field("context", &self.context)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl<'m> RawContext<'m> {
    pub(in crate::llama) fn new(model: &'m Model, options: &ContextOptions) -> Result<Self> {
        backend()?;
        let too_many =
            |_| LlamaError::Context { reason: format!("{} tokens are too many for one batch", options.batch) };
        let capacity = i32::try_from(options.batch.max(1)).map_err(too_many)?;
        let hook = Box::into_raw(Box::new(Hook::default()));
        let params = context_params(options, model.gpu_layers > 0, hook);
        log::forget();
        // SAFETY: the model is alive for 'm; the hook outlives the context (see Drop).
        let context = unsafe { sys::llama_init_from_model(model.raw.pointer(), params) };
        let Some(context) = NonNull::new(context) else {
            // SAFETY: nobody else has the hook: there is no context.
            drop(unsafe { Box::from_raw(hook) });
            return Err(LlamaError::Context { reason: log::reason() }.into());
        };
        // SAFETY: a batch of tokens (no embeddings), one sequence per token; freed in Drop.
        let batch = unsafe { sys::llama_batch_init(capacity, 0, 1) };
        Ok(Self { context, batch, capacity: capacity as usize, hook, model: PhantomData })
    }

    /// Runs `tokens` at `position` and after. If the context has a callback, `watch` takes part in the graph, of which there must be one only:
    /// it is left early unless it is to run to its end.
    ///
    /// # Panics
    /// If there are more tokens than the batch holds.
    pub(in crate::llama) fn decode(
        &mut self,
        tokens: &[i32],
        position: usize,
        output: impl Fn(usize) -> bool,
        watch: Option<(Watch<'_>, ToTheEnd)>,
    ) -> Result<()> {
        assert!(tokens.len() <= self.capacity, "the caller checks the batch size");
        for (i, &token) in tokens.iter().enumerate() {
            // SAFETY: i < capacity, for which llama_batch_init allocated every one of these arrays.
            unsafe {
                *self.batch.token.add(i) = token;
                *self.batch.pos.add(i) = (position + i) as i32;
                *self.batch.n_seq_id.add(i) = 1;
                **self.batch.seq_id.add(i) = 0;
                *self.batch.logits.add(i) = i8::from(output(i));
            }
        }
        self.batch.n_tokens = tokens.len() as i32;
        log::forget();
        if let Some((watch, ToTheEnd(to_the_end))) = watch {
            let outputs = (0..tokens.len()).filter(|&i| output(i)).count();
            // SAFETY: no decode is running, so C++ does not use the hook now.
            unsafe { &mut *self.hook }.arm(watch, (tokens.len(), outputs), to_the_end);
        }
        // SAFETY: context and batch are alive; the callback keeps panics on this side.
        let status = unsafe { sys::llama_decode(self.context.as_ptr(), self.batch) };
        // SAFETY: the decode is over; as above.
        unsafe { &mut *self.hook }.disarm()?;
        if status == 0 { Ok(()) } else { Err(Error::from(LlamaError::Decode { status, reason: log::reason() })) }
    }

    /// The first `len` logits of the last decode.
    pub(in crate::llama) fn logits(&mut self, len: usize) -> &[f32] {
        if len == 0 {
            return &[];
        }
        // SAFETY: llama.cpp keeps rows of vocabulary size for the outputs of the last batch, which is what `len` counts, until the
        // next call that takes `&mut self`.
        unsafe {
            let logits = sys::llama_get_logits(self.context.as_ptr());
            if logits.is_null() { &[] } else { std::slice::from_raw_parts(logits, len) }
        }
    }

    pub(in crate::llama) fn clear(&mut self) {
        // SAFETY: the context is alive; a model without memory gives null, which llama.cpp takes as nothing to do.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), true) };
    }
}

impl Drop for RawContext<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, freed once, the hook after the context that points to it.
        unsafe {
            sys::llama_batch_free(self.batch);
            sys::llama_free(self.context.as_ptr());
            drop(Box::from_raw(self.hook));
        }
    }
}

fn model_params(options: ModelOptions) -> sys::llama_model_params {
    // SAFETY: pure functions, one that returns a struct by value.
    let (mut params, amx) = unsafe { (sys::llama_model_default_params(), sys::ggml_cpu_has_amx_int8() != 0) };
    params.n_gpu_layers = i32::try_from(options.gpu_layers).unwrap_or(i32::MAX);
    // Compilers may drop what ggml stores for `ldtilecfg` (GCC 12 does: its header names 8 of the 64 bytes as read), which then faults.
    params.use_extra_bufts = !amx;
    if options.writable {
        // A mapped file cannot be written, and repacked weights have another layout than the file's.
        params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        params.lazy_mode = sys::LLAMA_LAZY_MODE_OFF;
        params.use_extra_bufts = false;
    }
    params
}

fn context_params(options: &ContextOptions, gpu: bool, hook: *mut Hook) -> sys::llama_context_params {
    let threads = options.resolved_threads() as i32;
    // SAFETY: a pure function that returns a struct by value.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = options.ctx;
    params.n_batch = options.batch;
    params.n_ubatch = options.ubatch;
    params.n_seq_max = 1;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.no_perf = true;
    params.offload_kqv = gpu;
    params.op_offload = gpu;
    if options.observe {
        params.cb_eval = Some(on_node);
        params.cb_eval_user_data = hook.cast::<c_void>();
    }
    params
}
