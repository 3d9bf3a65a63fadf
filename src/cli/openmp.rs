//! Lets OpenMP's threads sleep instead of spin between llama.cpp's operations. Only the commands that run a model need it.
//!
//! A spinning thread waits for one that other work keeps from its core: on a machine with a load of 5, calibration took 41 and 55 s spinning
//! and 12 and 10 s sleeping; on an idle one both took the same.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The variables by which a user says how threads wait.
const SETTINGS: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];

/// Starts the program anew with OpenMP told to sleep, unless the user said how threads wait: the library reads its settings before `main`.
/// Returns if that is not needed or not possible.
pub(super) fn sleep_while_waiting() {
    if !cfg!(all(feature = "llama", target_os = "linux")) || SETTINGS.iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    let mut arguments = env::args_os();
    let (Ok(program), Some(name)) = (env::current_exe(), arguments.next()) else { return };
    let error = Command::new(program).arg0(name).args(arguments).env(SETTINGS[0], "passive").exec();
    tracing::info!("cannot start anew with {}=passive: {error}", SETTINGS[0]);
}
