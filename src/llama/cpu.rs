//! Whether this CPU has the instructions that the binary was compiled for: a clear refusal instead of an illegal instruction.
//! It must run before anything else; llama.cpp's own static initialisers run earlier and are not covered.

use crate::Result;

/// Checks that the running CPU has every target feature that rustc was allowed to use (llama.cpp is built for the same CPU).
///
/// # Errors
/// [`crate::error::LlamaError::CpuFeatures`] with the missing ones.
pub fn check_cpu() -> Result<()> {
    let missing = missing();
    if missing.is_empty() { Ok(()) } else { Err(crate::error::LlamaError::CpuFeatures { missing }.into()) }
}

#[cfg(target_arch = "x86_64")]
fn missing() -> Vec<&'static str> {
    macro_rules! lacking {
        ($($feature:tt),* $(,)?) => {
            [$((cfg!(target_feature = $feature) && !std::arch::is_x86_feature_detected!($feature), $feature)),*]
        };
    }
    let table = lacking!(
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "bmi2",
        "lzcnt",
        "movbe",
        "aes",
        "pclmulqdq",
        "sha",
        "adx",
        "gfni",
        "vaes",
        "vpclmulqdq",
        "avx512f",
        "avx512cd",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512ifma",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vnni",
        "avx512bitalg",
        "avx512vpopcntdq",
        "avx512bf16",
        "avxvnni",
    );
    table.iter().filter(|(lacks, _)| *lacks).map(|&(_, name)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn missing() -> Vec<&'static str> {
    macro_rules! lacking {
        ($($feature:tt),* $(,)?) => {
            [$((cfg!(target_feature = $feature) && !std::arch::is_aarch64_feature_detected!($feature), $feature)),*]
        };
    }
    let table = lacking!("neon", "dotprod", "i8mm", "fp16", "bf16", "sve", "sve2");
    table.iter().filter(|(lacks, _)| *lacks).map(|&(_, name)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn missing() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_cpu_that_runs_the_tests_has_what_they_were_compiled_for() {
        assert!(super::check_cpu().is_ok());
    }
}
