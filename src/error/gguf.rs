//! What can be wrong with the bytes of a GGUF file. Offsets are in bytes from the start of the file.

use std::path::PathBuf;

use super::{Class, Error};

/// A breach of the GGUF format.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file ends inside something.
    #[error("the file ends inside {what}: {needed} bytes needed at offset {offset}, {left} left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// How many bytes it needs.
        needed: u64,
        /// How many bytes are left.
        left: u64,
    },
    /// The file has no bytes at all.
    #[error("the file is empty")]
    Empty,
    /// The path names something that cannot be mapped: a pipe, a device, a socket.
    #[error("not a regular file")]
    NotRegular,
    /// The file changed its length while it was being opened.
    #[error("the file changed while it was opened: {mapped} bytes mapped, {now} bytes now")]
    Changed {
        /// The length that was mapped.
        mapped: u64,
        /// The length a moment later.
        now: u64,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with {found:02x?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes (up to four).
        found: Vec<u8>,
    },
    /// The file was written for big-endian machines.
    #[error("a big-endian GGUF file (version {version}); only little-endian files are read")]
    BigEndian {
        /// The version, read as big-endian.
        version: u32,
    },
    /// The file has the layout of 2023 with 32-bit counts.
    #[error("GGUF version 1 is not read, only versions 2 and 3")]
    VersionOne,
    /// The version is none that is known.
    #[error("GGUF version {found} is unknown, only versions 2 and 3 are read")]
    Version {
        /// The version found.
        found: u32,
    },
    /// A count is larger than the rest of the file can hold.
    #[error("the file claims {count} {what}, but the {left} bytes left at offset {offset} hold at most {most}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The count found.
        count: u64,
        /// Where the counted things start.
        offset: u64,
        /// How many bytes are left.
        left: u64,
        /// How many things these bytes can hold.
        most: u64,
    },
    /// A count, length or value passes a limit of this reader.
    #[error("{what} of {found} at offset {offset} passes the limit of {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What was found.
        found: u64,
        /// The limit (see `gguf::limits`).
        limit: u64,
        /// Where it was found.
        offset: u64,
    },
    /// A key or a tensor name is not UTF-8.
    #[error("the {what} at offset {offset} is not UTF-8")]
    NotUtf8 {
        /// "key" or "tensor name".
        what: &'static str,
        /// Where its bytes start.
        offset: u64,
    },
    /// A key or a tensor name is empty.
    #[error("the {what} number {index} at offset {offset} is empty")]
    EmptyName {
        /// "key" or "tensor name".
        what: &'static str,
        /// Its number, from 0.
        index: u64,
        /// Where its length stands.
        offset: u64,
    },
    /// Two keys or two tensors have the same name.
    #[error("the {what} `{name}` occurs twice")]
    Duplicate {
        /// "key" or "tensor".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A value has a type that GGUF does not define.
    #[error("key `{key}`: unknown value type {found} at offset {offset}")]
    ValueType {
        /// The key.
        key: String,
        /// The type id found.
        found: u32,
        /// Where it stands.
        offset: u64,
    },
    /// An array holds arrays, which GGUF readers do not support.
    #[error("key `{key}`: an array of arrays at offset {offset}")]
    NestedArray {
        /// The key.
        key: String,
        /// Where the element type stands.
        offset: u64,
    },
    /// A bool is neither 0 nor 1.
    #[error("key `{key}`: a bool with the value {found} at offset {offset}")]
    Bool {
        /// The key.
        key: String,
        /// The byte found.
        found: u8,
        /// Where it stands.
        offset: u64,
    },
    /// `general.alignment` is not a u32.
    #[error("key `general.alignment` is a {found}, expected a u32")]
    AlignmentType {
        /// The type found.
        found: &'static str,
    },
    /// `general.alignment` has a value that cannot be used.
    #[error("key `general.alignment` is {found}, expected a power of two from 8 to {limit}")]
    Alignment {
        /// The value found.
        found: u64,
        /// The largest alignment that is read.
        limit: u64,
    },
    /// A dimension of a tensor is 0.
    #[error("tensor `{tensor}` has a dimension of 0: {dims:?}")]
    ZeroDimension {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        dims: Vec<u64>,
    },
    /// The size of a tensor, or the end of its data, cannot be represented.
    #[error("tensor `{tensor}` is larger than any file: {dims:?}")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        dims: Vec<u64>,
    },
    /// The dimensions of a tensor do not fit the blocks of its type.
    #[error("tensor `{tensor}` of type {ty} has {found} {axis}, expected a multiple of {block}")]
    Ragged {
        /// The tensor.
        tensor: String,
        /// The name of its type.
        ty: String,
        /// "columns" or "rows".
        axis: &'static str,
        /// How many it has.
        found: u64,
        /// The block length on that axis.
        block: u64,
    },
    /// A tensor has a type whose size is not known.
    #[error("tensor `{tensor}` has the unknown type {id}")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The id of its type.
        id: u32,
    },
    /// A tensor has a type that cannot be read as floats.
    #[error("tensor `{tensor}` is {ty}, expected F16, BF16 or F32")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// The name of its type.
        ty: String,
    },
    /// The data of a tensor does not start at a multiple of the alignment.
    #[error("tensor `{tensor}`: its data offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// The offset within the data section.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// The data of a tensor passes the end of the file.
    #[error("tensor `{tensor}`: its {bytes} bytes at offset {offset} pass the end of the file at {length}")]
    OutOfFile {
        /// The tensor.
        tensor: String,
        /// Where its data starts.
        offset: u64,
        /// How many bytes it has.
        bytes: u64,
        /// The length of the file.
        length: u64,
    },
    /// The data of two tensors share bytes.
    #[error("tensor `{tensor}`: its data at offset {offset} overlaps `{other}`, which ends at {end}")]
    Overlap {
        /// The tensor that starts later.
        tensor: String,
        /// Where its data starts.
        offset: u64,
        /// The tensor before it.
        other: String,
        /// Where that one ends.
        end: u64,
    },
    /// There are bytes between two tensors that belong to neither.
    #[error("tensor `{tensor}`: its data starts at offset {offset}, expected {expected}: the file has a hole")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Where its data starts.
        offset: u64,
        /// Where it should start.
        expected: u64,
    },
    /// A file says that it is one of several, but its name does not follow the convention.
    #[error("the file is shard {number} of {count}, but its name does not end with `{suffix}`")]
    ShardName {
        /// Its number, from 1.
        number: u64,
        /// How many shards there are.
        count: u64,
        /// What its name should end with.
        suffix: String,
    },
    /// One of the shards is not there.
    #[error("shard {number} of {count} is missing: {}", shard.display())]
    ShardMissing {
        /// Its number, from 1.
        number: u64,
        /// How many shards there are.
        count: u64,
        /// Where it was looked for.
        shard: PathBuf,
    },
    /// A shard does not belong to the others.
    #[error("this shard belongs to another model: {what} is {found}, expected {expected}")]
    ShardMixed {
        /// What differs.
        what: String,
        /// What this shard has.
        found: String,
        /// What the first shard has.
        expected: String,
    },
    /// The new header of an output has another length than the one that was planned.
    #[error("the header would be {found} bytes long, {expected} were planned")]
    HeaderLength {
        /// The new length.
        found: u64,
        /// The planned length.
        expected: u64,
    },
    /// Bytes were written outside of a tensor's place.
    #[error("tensor `{tensor}`: {length} bytes at {offset} pass its end at {bytes}")]
    WriteRange {
        /// The tensor.
        tensor: String,
        /// The offset within the tensor.
        offset: u64,
        /// How many bytes were to be written.
        length: u64,
        /// How many bytes the tensor has.
        bytes: u64,
    },
    /// A tensor was planned, but not all of its bytes were written.
    #[error("tensor `{tensor}`: {written} bytes were written, {planned} planned")]
    Incomplete {
        /// The tensor.
        tensor: String,
        /// How many bytes were written.
        written: u64,
        /// How many bytes were planned.
        planned: u64,
    },
}

impl GgufError {
    /// Says which file is meant.
    pub fn at(self, path: impl Into<PathBuf>) -> Error {
        Error::Gguf { path: path.into(), defect: self }
    }

    /// How this failure ends the program: a bad file is refused, a writer that was used wrongly has failed.
    pub fn class(&self) -> Class {
        match self {
            GgufError::HeaderLength { .. } | GgufError::WriteRange { .. } | GgufError::Incomplete { .. } => {
                Class::Failed
            }
            _ => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        use GgufError as E;
        let text = match self {
            E::Truncated { .. } | E::OutOfFile { .. } | E::Empty => {
                "the download or copy may be incomplete: compare its size and checksum with the original"
            }
            E::Magic { .. } => {
                "convert other formats to GGUF first, for instance with llama.cpp's convert_hf_to_gguf.py"
            }
            E::BigEndian { .. } => "convert it with gguf-py's gguf_convert_endian.py",
            E::VersionOne => "convert the model again from its original: no current tool reads version 1",
            E::Version { .. } | E::ValueType { .. } | E::UnknownType { .. } => {
                "the file may be newer than this program, or damaged"
            }
            E::NotFloat { .. } => "start from the F16, BF16 or F32 model, or pass --allow-requantize",
            E::ShardName { .. } | E::ShardMissing { .. } => {
                "keep all shards in one folder, under the names they were published with"
            }
            E::ShardMixed { .. } => "fetch all shards of one model again, into a folder of their own",
            E::Changed { .. } => "wait until the file is complete",
            _ => return None,
        };
        Some(text.into())
    }
}
