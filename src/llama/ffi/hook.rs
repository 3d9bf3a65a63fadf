//! The graph-eval callback: lets an observer see and a rewriter change what enters multiplications, and keeps errors and panics from
//! crossing into C++.
//!
//! ggml asks about each node in graph order, computes up to the first wanted one, and calls again with its inputs still in memory
//! (the allocator reuses them only for later nodes). Inputs are changed at the question (see `walk`) and put back at the second call.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as sys;

use super::node::{RawNode, Saved};
use super::walk::{Kind, Walk};
use crate::error::LlamaError;
use crate::llama::{Observer, Rewriter, Watch};
use crate::{Error, Result};

/// What the callback works on; owned by the context, reached by C++ through a raw pointer.
#[derive(Default)]
pub(super) struct Hook {
    observer: Option<*mut dyn Observer>,
    rewriter: Option<*mut dyn Rewriter>,
    failure: Option<Error>,
    walk: Walk,
    /// What is to be done once the node last asked for is computed.
    watching: bool,
    changed: bool,
    /// Whether the graph may be left: behind the last node that was of interest in the first graph.
    to_the_end: bool,
    last_wanted: String,
    leave_after: Option<String>,
    /// Host copies of what lies on a device, and of what was changed.
    saved: Saved,
    input: Vec<f32>,
    raw_ids: Vec<u8>,
    ids: Vec<i32>,
}

impl Hook {
    /// Lets `watch` take part in a graph of this kind until [`Self::disarm`]. Unless it is to run `to_the_end`, it is left as soon as
    /// nobody wants anything more of it.
    pub(super) fn arm(&mut self, watch: Watch<'_>, kind: Kind, to_the_end: bool) {
        let Watch { observer, rewriter } = watch;
        self.walk.begin(kind, rewriter.is_some());
        // SAFETY: only the lifetimes change; `disarm` drops the pointers before the borrows end.
        unsafe {
            self.observer = observer
                .map(|o| std::ptr::from_mut(std::mem::transmute::<&mut dyn Observer, &'static mut dyn Observer>(o)));
            self.rewriter = rewriter
                .map(|r| std::ptr::from_mut(std::mem::transmute::<&mut dyn Rewriter, &'static mut dyn Rewriter>(r)));
        }
        (self.watching, self.changed, self.to_the_end) = (false, false, to_the_end);
        self.last_wanted.clear();
    }

    /// Ends the watch; returns what went wrong in it.
    pub(super) fn disarm(&mut self) -> Result<()> {
        let armed = self.observer.take().is_some() | self.rewriter.take().is_some();
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if armed {
            self.walk.end();
            if !self.to_the_end && self.leave_after.is_none() && !self.last_wanted.is_empty() {
                self.leave_after = Some(self.last_wanted.clone());
            }
        }
        Ok(())
    }

    /// The answer to ggml's question whether to stop after `tensor`.
    ///
    /// # Safety
    /// `tensor` is a node of a live graph.
    unsafe fn ask(&mut self, tensor: &sys::ggml_tensor) -> bool {
        if self.observer.is_none() && self.rewriter.is_none() {
            return false;
        }
        if self.failure.is_some() {
            return true; // stop at once; `observe` then ends the graph
        }
        let stop = self.walk.ask();
        // SAFETY: passed on from the caller.
        let Some(raw) = (unsafe { RawNode::new(tensor) }) else { return stop };
        // SAFETY: as above; the walk is at this node.
        match guard(|| unsafe { self.prepare(&raw) }) {
            Ok(()) => stop || self.watching || self.changed,
            Err(failure) => {
                self.failure = Some(failure);
                true
            }
        }
    }

    /// Asks those who take part about a multiplication, and has its input changed.
    ///
    /// # Safety
    /// `raw` is the node of a live graph that ggml asks for.
    unsafe fn prepare(&mut self, raw: &RawNode<'_>) -> Result<()> {
        let node = raw.node();
        if node.rows == 0 {
            return Ok(()); // nothing enters where no token is an output
        }
        // SAFETY: `arm` was given live references, and nothing else uses them before `disarm`.
        let (observer, rewriter) = unsafe { (self.observer.map(|o| &mut *o), self.rewriter.map(|r| &mut *r)) };
        self.watching = observer.is_some_and(|observer| observer.wants(&node));
        if let Some(rewriter) = rewriter
            && rewriter.rewrites(&node)
        {
            if !self.walk.all_before_is_done() {
                return Err(LlamaError::GraphChanged { tensor: node.weight.to_owned() }.into());
            }
            // SAFETY: everything before is computed, as was just checked; ggml waits for our answer.
            unsafe { raw.change(&mut self.saved, |input| rewriter.rewrite(&node, input)) }?;
            self.changed = true;
        }
        if self.watching || self.changed {
            node.weight.clone_into(&mut self.last_wanted);
        }
        Ok(())
    }

    /// Shows the input of `tensor` to the observer and puts back what was changed; false leaves the graph.
    ///
    /// # Safety
    /// `tensor` is the node last asked for, computed, with its inputs untouched.
    unsafe fn observe(&mut self, tensor: &sys::ggml_tensor) -> bool {
        if self.failure.is_some() {
            return false;
        }
        self.walk.stopped();
        // SAFETY: passed on from the caller.
        let Some(raw) = (unsafe { RawNode::new(tensor) }) else { return true };
        let (watching, changed) = (std::mem::take(&mut self.watching), std::mem::take(&mut self.changed));
        // SAFETY: as above.
        let shown = if watching { guard(|| unsafe { self.show(&raw) }) } else { Ok(()) };
        if changed {
            // SAFETY: the node is computed and was changed when it was asked for.
            unsafe { raw.restore(&self.saved) };
        }
        match shown {
            Ok(()) => {
                self.to_the_end || !(watching || changed) || self.leave_after.as_deref() != Some(raw.node().weight)
            }
            Err(failure) => {
                self.failure = Some(failure);
                false
            }
        }
    }

    /// Hands the input of a computed node to the observer.
    ///
    /// # Safety
    /// As [`Self::observe`].
    unsafe fn show(&mut self, raw: &RawNode<'_>) -> Result<()> {
        let Some(observer) = self.observer else { return Ok(()) };
        // SAFETY: the inputs of a computed node are allocated and of the size their shape says.
        let capture = unsafe { raw.capture(&mut self.input, &mut self.raw_ids, &mut self.ids) }?;
        // SAFETY: as in `prepare`.
        unsafe { &mut *observer }.observe(&raw.node(), &capture)
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
