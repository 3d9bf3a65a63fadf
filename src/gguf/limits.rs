//! Named limits of the reader and the writer: what a file may claim before it is refused. They bound memory, not models: each is far above what real files have.

/// The longest header (everything before the tensor data). The largest vocabularies take about 20 MB and the permutations of a model
/// with a thousand matrices of 16 384 columns 64 MB.
pub const MAX_HEADER_BYTES: u64 = 1 << 30;
/// The most keys. Real models have about 50, and one permutation a tensor besides.
pub const MAX_KEYS: u64 = 1 << 16;
/// The most tensors, over all shards. The largest models have about 2 000, with unmerged experts about 50 000.
pub const MAX_TENSORS: u64 = 1 << 16;
/// The longest key; the limit of the GGUF specification.
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// The longest tensor name: ggml keeps names in 64 bytes with a closing zero.
pub const MAX_NAME_BYTES: u64 = 63;
/// The most dimensions of a tensor, ggml's limit.
pub const MAX_DIMS: u64 = 4;
/// The most elements of a tensor, ggml's limit (it counts in `int64_t`).
pub const MAX_ELEMENTS: u64 = i64::MAX as u64;
/// The least alignment: the GGUF specification wants a multiple of 8, and 8 is the size of the widest number.
pub const MIN_ALIGNMENT: u64 = 8;
/// The largest alignment: a huge page of x86-64, beyond which no mapping gains anything.
pub const MAX_ALIGNMENT: u64 = 1 << 21;
/// The alignment of files that name none, fixed by the GGUF specification.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The most shards: `split.count` is a u16.
pub const MAX_SHARDS: u64 = (1 << 16) - 1;

/// The fewest bytes of a key with its value: length, one byte, type, one byte.
pub(super) const MIN_KEY_VALUE_BYTES: u64 = 8 + 1 + 4 + 1;
/// The fewest bytes of a tensor's description: length, one byte, dimension count, no dimension, type, offset.
pub(super) const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;
