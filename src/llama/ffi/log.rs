//! llama.cpp's log, sent to `tracing`; the last error lines are kept to explain a failure. One log for the whole process.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use llama_cpp_sys_2 as sys;

/// Error lines kept.
const KEPT: usize = 16;

struct State {
    /// A line that has not ended yet, and its level.
    open: String,
    level: sys::ggml_log_level,
    errors: VecDeque<String>,
}

static STATE: Mutex<State> =
    Mutex::new(State { open: String::new(), level: sys::GGML_LOG_LEVEL_INFO, errors: VecDeque::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes over llama.cpp's and ggml's log.
pub(super) fn install() {
    // SAFETY: the callback is a plain function without captured data and lives for ever.
    unsafe {
        sys::llama_log_set(Some(on_log), std::ptr::null_mut());
        sys::ggml_log_set(Some(on_log), std::ptr::null_mut());
    }
}

/// Forgets the error lines so far.
pub(super) fn forget() {
    state().errors.clear();
}

/// The first of the kept error lines that says more than that something failed, without the function names before it.
pub(super) fn reason() -> String {
    let errors = std::mem::take(&mut state().errors);
    let lines: Vec<&str> = errors.iter().map(|line| strip(line)).collect();
    let telling = lines.iter().find(|line| !line.starts_with("failed to load model")).or(lines.first());
    telling.map_or_else(|| "it gave no reason".to_owned(), |line| (*line).to_owned())
}

/// Removes leading `function_name: ` and the announcement that an error follows.
fn strip(line: &str) -> &str {
    let mut rest = line.trim();
    while let Some((head, tail)) = rest.split_once(": ") {
        let is_name = !head.is_empty() && head.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
        if !is_name && head != "error loading model" {
            break;
        }
        rest = tail;
    }
    rest
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _data: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A subscriber that panics must not unwind into C++.
    let _ = std::panic::catch_unwind(|| take(level, &text));
}

fn take(level: sys::ggml_log_level, text: &str) {
    let mut ended = Vec::new();
    {
        let mut state = state();
        if level != sys::GGML_LOG_LEVEL_CONT {
            state.level = level;
        }
        state.open.push_str(text);
        while let Some(end) = state.open.find('\n') {
            let line: String = state.open.drain(..=end).collect();
            let line = line.trim_end().to_owned();
            if state.level == sys::GGML_LOG_LEVEL_ERROR && !line.is_empty() {
                if state.errors.len() == KEPT {
                    state.errors.pop_back();
                }
                state.errors.push_back(line.clone());
            }
            ended.push((state.level, line));
        }
    }
    for (level, line) in ended.into_iter().filter(|(_, line)| !line.is_empty()) {
        match level {
            sys::GGML_LOG_LEVEL_ERROR => tracing::error!(target: "llama.cpp", "{line}"),
            sys::GGML_LOG_LEVEL_WARN => tracing::warn!(target: "llama.cpp", "{line}"),
            sys::GGML_LOG_LEVEL_INFO => tracing::debug!(target: "llama.cpp", "{line}"),
            _ => tracing::trace!(target: "llama.cpp", "{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_names_are_stripped() {
        let line = "llama_model_load: error loading model: missing tensor 'blk.0.attn_q.weight'";
        assert_eq!(strip(line), "missing tensor 'blk.0.attn_q.weight'");
        assert_eq!(strip("tensor 'x' has offset 3, expected 0"), "tensor 'x' has offset 3, expected 0");
    }
}
