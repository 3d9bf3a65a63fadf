//! What can be wrong with the bytes of a GGUF file.

/// A breach of the GGUF format; offsets are in bytes from the start of the file.
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
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with {found:02x?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes (up to four).
        found: Vec<u8>,
    },
}

impl GgufError {
    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            GgufError::Truncated { .. } => {
                Some("the download or copy may be incomplete: compare its size and checksum with the original".into())
            }
            GgufError::Magic { .. } => {
                Some("convert other formats to GGUF first, for instance with llama.cpp's convert_hf_to_gguf.py".into())
            }
        }
    }
}
