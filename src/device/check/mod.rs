//! Runs every kernel on random and on adversarial data and compares what it gives with the CPU. Outputs are poisoned before, and memory behind them
//! is looked at after.
//!
//! Says what differs; that it must not, and what happens then, is for the caller.

mod activations;
mod calibration;
mod data;
mod experts;
mod products;
mod weights;

use serde::Serialize;

use self::data::Data;
use super::gpu::{Buffer, Gpu, Plain, Queue};
use super::kernels::find;
use crate::error::DeviceError;

/// How far a kernel may be from the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerance {
    /// Its name.
    pub name: &'static str,
    /// The largest difference, relative to what `of` says.
    pub value: f64,
    /// What differences are relative to.
    pub of: &'static str,
}

/// No difference at all.
pub const EXACT: Tolerance = Tolerance { name: "exact", value: 0.0, of: "" };
/// f32 additions of a product in another order, and steps that are rounded once more.
pub const PRODUCT: Tolerance = Tolerance { name: "product", value: 4e-6, of: "the magnitudes of its terms" };
/// 16 additions in f32, the rest in f64.
pub const SUM: Tolerance = Tolerance { name: "sum", value: 1e-6, of: "the magnitudes of its terms" };
/// The additions of a call in f32.
pub const MOMENT: Tolerance = Tolerance { name: "second moment", value: 4e-6, of: "the norms of its two channels" };
/// Squared errors, added up in f32.
pub const LOSS: Tolerance = Tolerance { name: "loss", value: 1e-5, of: "the loss" };

/// What became of one output of a kernel.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The kernel.
    pub kernel: &'static str,
    /// What it was given.
    pub data: String,
    /// The output that was compared.
    pub output: &'static str,
    /// How far it may be off.
    pub tolerance: Tolerance,
    /// Values compared.
    pub values: usize,
    /// Values beyond the tolerance.
    pub wrong: usize,
    /// The largest difference, in units of the tolerance (1 is just allowed); where none is allowed, the share of values that differ.
    pub worst: f64,
    /// Whether bytes behind the output were changed.
    pub overrun: bool,
    /// The first value that is wrong: where, what was expected and what was found.
    pub first: Option<String>,
}

impl Check {
    /// Whether all is well.
    pub fn passed(&self) -> bool {
        self.wrong == 0 && !self.overrun
    }
}

/// Bytes that outputs are filled with: as floats they are about -3e-16, so nothing that a kernel forgets looks like a result.
const POISON: u8 = 0xa5;
/// Bytes behind an output that must stay as they are.
const GUARD: usize = 4096;

/// An output and the guarded bytes behind it, which are part of the same allocation.
struct Output<T> {
    buffer: Buffer<T>,
    len: usize,
}

/// A run of checks.
struct Run<'a> {
    queue: &'a Queue<'a>,
    seed: u64,
    wanted: &'a [String],
    checks: Vec<Check>,
}

impl Run<'_> {
    /// Whether kernels whose names begin so are to be checked.
    fn wants(&self, names: &[&str]) -> bool {
        self.wanted.is_empty() || names.iter().any(|name| self.wanted.iter().any(|part| name.contains(part.as_str())))
    }

    fn data(&self, what: &str) -> Data {
        Data::new(self.seed, what)
    }

    /// An output of `len` values, poisoned.
    fn poisoned<T: Plain>(&self, len: usize) -> Result<Output<T>, DeviceError> {
        let mut buffer = self.queue.room(len + GUARD.div_ceil(size_of::<T>()))?;
        self.queue.fill(&mut buffer, POISON)?;
        Ok(Output { buffer, len })
    }

    /// Gives the values of an output, and whether what is behind them was changed.
    fn fetch<T: Plain>(&self, output: &Output<T>) -> Result<(Vec<T>, bool), DeviceError> {
        let mut values = self.queue.download(&output.buffer)?;
        let overrun = bytemuck::cast_slice::<T, u8>(&values[output.len..]).iter().any(|&byte| byte != POISON);
        values.truncate(output.len);
        Ok((values, overrun))
    }

    /// Compares an output byte by byte, after `tidy` has made equal what may differ.
    fn exact<T: Plain + std::fmt::Debug>(
        &mut self,
        (kernel, data, output): (&str, &str, &'static str),
        expected: &[T],
        found: &Output<T>,
        tidy: impl Fn(T) -> T,
    ) -> Result<(), DeviceError> {
        let (found, overrun) = self.fetch(found)?;
        assert_eq!(expected.len(), found.len(), "{kernel}: {output}");
        let is_wrong =
            |(_, (a, b)): &(usize, (&T, &T))| bytemuck::bytes_of(&tidy(**a)) != bytemuck::bytes_of(&tidy(**b));
        let pairs = || expected.iter().zip(&found).enumerate();
        let wrong = pairs().filter(is_wrong).count();
        let first = pairs().find(is_wrong).map(|(at, (a, b))| format!("at {at}: {}", difference(a, b)));
        let (values, worst) = (expected.len(), wrong as f64 / expected.len().max(1) as f64);
        self.push(Check {
            kernel: find(kernel)?.name,
            data: data.into(),
            output,
            tolerance: EXACT,
            values,
            wrong,
            worst,
            overrun,
            first,
        });
        Ok(())
    }

    /// Compares an output with values and what differences are relative to. Where NaN is expected, NaN has to be found.
    fn within(
        &mut self,
        (kernel, data, output): (&str, &str, &'static str),
        tolerance: Tolerance,
        expected: impl Iterator<Item = (f64, f64)>,
        (found, overrun): (&[f64], bool),
    ) -> Result<(), DeviceError> {
        let mut check = Check {
            kernel: find(kernel)?.name,
            data: data.into(),
            output,
            tolerance,
            values: 0,
            wrong: 0,
            worst: 0.0,
            overrun,
            first: None,
        };
        for ((value, unit), &found) in expected.zip(found) {
            let off = excess(value, found, unit * tolerance.value);
            if off > 1.0 && check.first.is_none() {
                check.first = Some(format!("at {}: expected {value:e}, found {found:e}", check.values));
            }
            check.wrong += usize::from(off > 1.0);
            check.worst = check.worst.max(off);
            check.values += 1;
        }
        assert_eq!(check.values, found.len(), "{kernel}: {output}");
        self.push(check);
        Ok(())
    }

    fn push(&mut self, check: Check) {
        tracing::debug!(kernel = check.kernel, data = %check.data, output = check.output, wrong = check.wrong, "checked");
        self.checks.push(check);
    }
}

/// A difference in units of what is allowed; infinite where one is NaN and the other is not.
fn excess(expected: f64, found: f64, allowed: f64) -> f64 {
    if expected.is_nan() || found.is_nan() || expected == found {
        return if expected == found || (expected.is_nan() && found.is_nan()) { 0.0 } else { f64::INFINITY };
    }
    let off = (expected - found).abs();
    if allowed > 0.0 && off.is_finite() { off / allowed } else { f64::INFINITY }
}

/// Both values in short.
fn difference<T: std::fmt::Debug>(expected: &T, found: &T) -> String {
    const LONGEST: usize = 100;
    let short = |value: &T| {
        let text = format!("{value:?}");
        if text.len() <= LONGEST { text } else { format!("{}..", text.chars().take(LONGEST).collect::<String>()) }
    };
    format!("expected {}, found {}", short(expected), short(found))
}

/// Checks all kernels whose names contain one of `wanted`, or all; `seed` decides the data.
///
/// # Errors
/// What the compiler or the driver says. That results differ is no error here.
pub fn check(gpu: &Gpu, wanted: &[String], seed: u64) -> Result<Vec<Check>, DeviceError> {
    let queue = gpu.queue()?;
    let mut run = Run { queue: &queue, seed, wanted, checks: Vec::new() };
    activations::check(&mut run)?;
    products::check(&mut run)?;
    experts::check(&mut run)?;
    weights::check(&mut run)?;
    calibration::check(&mut run)?;
    let is_wanted = |check: &Check| wanted.is_empty() || wanted.iter().any(|part| check.kernel.contains(part.as_str()));
    run.checks.retain(is_wanted);
    Ok(run.checks)
}

/// Turns failures into an error.
///
/// # Errors
/// [`DeviceError::Differs`] with the first of them.
pub fn verdict(checks: &[Check]) -> Result<(), DeviceError> {
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.passed()).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let how = match &first.first {
        Some(how) => format!("{} of {} values differ, {how}", first.wrong, first.values),
        None => "it writes behind its output".into(),
    };
    let first = format!("{} on {}, {}: {how}", first.kernel, first.data, first.output);
    Err(DeviceError::Differs { failed: failed.len(), count: checks.len(), first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_in_tolerances() {
        assert_eq!(excess(1.0, 1.5, 0.25), 2.0);
        assert_eq!(excess(f64::NAN, f64::NAN, 0.0), 0.0);
        assert_eq!(excess(f64::INFINITY, f64::INFINITY, 0.0), 0.0);
        assert_eq!(excess(0.0, 1e-30, 0.0), f64::INFINITY);
        assert_eq!(excess(f64::NAN, 1.0, 9.0), f64::INFINITY);
        assert_eq!(excess(1.0, f64::INFINITY, 9.0), f64::INFINITY);
    }

    #[test]
    fn a_failure_is_told_with_what_differs() {
        let good = Check {
            kernel: "tcq4_fwht_f32",
            data: "spikes".into(),
            output: "x",
            tolerance: EXACT,
            values: 9,
            wrong: 0,
            worst: 0.0,
            overrun: false,
            first: None,
        };
        let bad = Check { wrong: 2, first: Some("at 3: expected 1, found 2".into()), ..good.clone() };
        let over = Check { overrun: true, ..good.clone() };
        assert_eq!(verdict(std::slice::from_ref(&good)), Ok(()));
        let message = verdict(&[good.clone(), bad, over.clone()]).unwrap_err().to_string();
        assert_eq!(
            message,
            "2 of 3 checks failed, the first: tcq4_fwht_f32 on spikes, x: 2 of 9 values differ, at 3: expected 1, found 2"
        );
        assert!(verdict(&[over]).unwrap_err().to_string().ends_with("it writes behind its output"));
    }
}
