//! Hashes that prove a tensor unchanged: its bytes together with the permutation that they are meant for.

use sha2::{Digest, Sha256};

use crate::math::Permutation;
use crate::util::hash::hex;

/// SHA-256, in hexadecimal, of a tensor's bytes followed by its permutation as little-endian 32-bit integers (nothing where it has none).
pub(super) fn tensor_sha256(bytes: &[u8], permutation: Option<&Permutation>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    for index in permutation.map_or(&[][..], Permutation::indices) {
        hasher.update(index.to_le_bytes());
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_bytes_and_permutation() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(tensor_sha256(&[], None), empty);
        let swapped = Permutation::new(&[1, 0]).unwrap();
        assert_eq!(tensor_sha256(&[], Some(&swapped)), tensor_sha256(&[1, 0, 0, 0, 0, 0, 0, 0], None));
        assert_ne!(tensor_sha256(&[1], None), empty);
    }
}
