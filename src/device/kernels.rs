//! The kernels as data: one entry for each `extern "C"` function of `cuda/kernels`. A test compares this table with the sources.
//!
//! How they are launched is in `launch.rs`; shapes are explained in `cuda/README.md`.

use serde::Serialize;

use crate::error::DeviceError;

/// What limits the speed of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// Bytes that are moved.
    Memory,
    /// Multiplications and what goes with them.
    Arithmetic,
    /// The launch itself: little is done.
    Latency,
}

impl Bound {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Arithmetic => "arithmetic",
            Bound::Latency => "latency",
        }
    }
}

/// Kernels of one file that do the same to different types or sizes.
#[derive(Debug, Serialize)]
pub struct Family {
    /// The file in `cuda/kernels`.
    pub file: &'static str,
    /// The kernels.
    pub names: &'static [&'static str],
    /// What they do.
    pub about: &'static str,
    /// What they take, in words.
    pub parameters: &'static str,
    /// What limits their speed.
    pub bound: Bound,
}

/// One kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The name of the function.
    pub name: &'static str,
    /// What it is one of.
    pub family: &'static Family,
}

/// Every kernel, in the order of the files.
pub fn kernels() -> impl Iterator<Item = Kernel> {
    FAMILIES.iter().flat_map(|family| family.names.iter().map(move |name| Kernel { name, family }))
}

/// Finds a kernel.
///
/// # Errors
/// [`DeviceError::NoKernel`].
pub fn find(name: &str) -> Result<Kernel, DeviceError> {
    kernels().find(|kernel| kernel.name == name).ok_or_else(|| DeviceError::NoKernel { name: name.into() })
}

/// The files whose kernels the converter itself launches. The others are there to be measured, and for programs that run models.
pub const OF_CONVERTER: &[&str] = &["dequantize.cu", "encode.cu", "gram.cu", "statistics.cu"];

/// The table.
pub const FAMILIES: &[Family] = &[
    Family {
        file: "fwht.cu",
        names: &["tcq4_fwht_f32", "tcq4_fwht_f16"],
        about: "Walsh-Hadamard transform of every 256 values, in place",
        parameters: "x[chunks][256]",
        bound: Bound::Memory,
    },
    Family {
        file: "gather.cu",
        names: &["tcq4_gather_f32", "tcq4_gather_f16"],
        about: "puts the channels of tokens into another order",
        parameters: "x[tokens][k], perm[k], y[tokens][k], staged",
        bound: Bound::Memory,
    },
    Family {
        file: "activations.cu",
        names: &[
            "tcq4_round_int8_f32",
            "tcq4_round_int4_g32_f32",
            "tcq4_round_int4_g256_f32",
            "tcq4_round_int4_fork_f32",
            "tcq4_round_int8_f16",
            "tcq4_round_int4_g32_f16",
            "tcq4_round_int4_g256_f16",
            "tcq4_round_int4_fork_f16",
        ],
        about: "gathers, transforms and rounds activations, with a scale and a sum for every 32",
        parameters: "x[tokens][k], perm[k] or none, acts[tokens][k/256], staged",
        bound: Bound::Memory,
    },
    Family {
        file: "activations.cu",
        names: &[
            "tcq4_round_block_g256_f32",
            "tcq4_round_block_fork_f32",
            "tcq4_round_wide_g256_f32",
            "tcq4_round_wide_fork_f32",
            "tcq4_round_block_g256_f16",
            "tcq4_round_block_fork_f16",
            "tcq4_round_wide_g256_f16",
            "tcq4_round_wide_fork_f16",
        ],
        about: "the same to INT4 with one scale for 256 and integer sums, a code in 4 bits or (wide) in a byte",
        parameters: "x[tokens][k], perm[k] or none, blocks[tokens][k/256], staged",
        bound: Bound::Memory,
    },
    Family {
        file: "mul_vec.cu",
        names: &[
            "tcq4_mul_vec_int8_m1",
            "tcq4_mul_vec_int8_m2",
            "tcq4_mul_vec_int8_m4",
            "tcq4_mul_vec_int8_m8",
            "tcq4_mul_vec_int4_m1",
            "tcq4_mul_vec_int4_m2",
            "tcq4_mul_vec_int4_m4",
            "tcq4_mul_vec_int4_m8",
        ],
        about: "multiplies 1 to 8 tokens with a matrix of tiles",
        parameters: "tiles[rows/8][k/256], acts[tokens][k/256], y[tokens][stride]",
        bound: Bound::Memory,
    },
    Family {
        file: "mul_vec.cu",
        names: &["tcq4_mul_vec_id_int8", "tcq4_mul_vec_id_int4"],
        about: "multiplies single tokens with the matrices of their experts",
        parameters: "tiles[experts][rows/8][k/256], acts, ids[n], y[n][stride]",
        bound: Bound::Memory,
    },
    Family {
        file: "mul_vec.cu",
        names: &[
            "tcq4_mul_vec_fused_int8_m1",
            "tcq4_mul_vec_fused_int8_m2",
            "tcq4_mul_vec_fused_int8_m4",
            "tcq4_mul_vec_fused_int8_m8",
            "tcq4_mul_vec_fused_int4_m1",
            "tcq4_mul_vec_fused_int4_m2",
            "tcq4_mul_vec_fused_int4_m4",
            "tcq4_mul_vec_fused_int4_m8",
        ],
        about: "rounds 1 to 8 tokens and multiplies them in one launch",
        parameters: "x[tokens][k], perm[k] or none, tiles[rows/8][k/256], y[tokens][stride]",
        bound: Bound::Memory,
    },
    Family {
        file: "mul_mat.cu",
        names: &["tcq4_mul_mat_int8", "tcq4_mul_mat_int4", "tcq4_mul_mat_block4", "tcq4_mul_mat_block8"],
        about: "multiplies many tokens with a matrix of tiles on tensor cores",
        parameters: "tiles[rows/8][k/256], acts[tokens][k/256], y[tokens][stride]",
        bound: Bound::Arithmetic,
    },
    Family {
        file: "mul_mat_id.cu",
        names: &["tcq4_mul_mat_id_int8", "tcq4_mul_mat_id_int4", "tcq4_mul_mat_id_block4", "tcq4_mul_mat_id_block8"],
        about: "multiplies tokens with the matrices of their experts, sorted by expert",
        parameters: "tiles[experts][rows/8][k/256], acts, bounds[experts+1], sources[n], targets[n], y[n][stride]",
        bound: Bound::Arithmetic,
    },
    Family {
        file: "mul_mat_id.cu",
        names: &["tcq4_sort_experts"],
        about: "sorts the products of a batch by expert",
        parameters: "ids[n], bounds[experts+1], sources[n], targets[n]",
        bound: Bound::Latency,
    },
    Family {
        file: "dequantize.cu",
        names: &["tcq4_dequantize_f16", "tcq4_dequantize_f32"],
        about: "decodes tiles, and undoes the transform and the order of the channels",
        parameters: "tiles[rows/8][k/256], perm[k] or none, rotated, y[rows][k]",
        bound: Bound::Memory,
    },
    Family {
        file: "encode.cu",
        names: &["tcq4_encode_parity_f32", "tcq4_encode_parity_f16"],
        about: "encodes tiles as llama.cpp-rrs does",
        parameters: "x[rows][k], perm[k] or none, rotated, tiles, losses, defects",
        bound: Bound::Memory,
    },
    Family {
        file: "encode.cu",
        names: &["tcq4_encode_default_f32", "tcq4_encode_default_f16"],
        about: "encodes tiles with the search for the least squared error",
        parameters: "x[rows][k], perm[k] or none, rotated, tiles, losses, defects",
        bound: Bound::Arithmetic,
    },
    Family {
        file: "statistics.cu",
        names: &["tcq4_statistics"],
        about: "range, and sums of x, |x| and x^2, of every channel and 32 tokens",
        parameters: "x[tokens][k], sums[blocks of tokens][5][k]",
        bound: Bound::Memory,
    },
    Family {
        file: "gram.cu",
        names: &["tcq4_gram"],
        about: "second moments x^T x of a call",
        parameters: "x[tokens][k], gram: the upper triangle in bands of 32 rows",
        bound: Bound::Arithmetic,
    },
    Family {
        file: "smooth.cu",
        names: &["tcq4_channel_max", "tcq4_smooth_rank", "tcq4_smooth_scales", "tcq4_smooth_round"],
        about: "run-time smoothing as in the RRS paper: channel maxima of the call, order, scales of 128, rounding",
        parameters: "x[tokens][k], max[k], order[k], scales[k], codes[tokens][k], token scales[tokens]",
        bound: Bound::Memory,
    },
];
