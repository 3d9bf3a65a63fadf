//! Tells the two TCQ4 formats apart by content, since both go by one type id and have tensors of one size.
//!
//! Relies on the fields that the fork always leaves zero; bytes that fit both formats, or neither, are taken for tiles if those are sound.

use super::block::{ROW_BYTES, TILE_BYTES, Tile, validate_tile};

/// Which of the two formats a tensor's bytes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Tiles of 8 rows: the format that is written.
    Final,
    /// Row blocks of 148 bytes, as llama.cpp-rrs wrote them before 2026-01-21.
    Early,
}

/// Guesses the layout of a tensor's bytes; `None` when they are neither sound tiles nor the fork's row blocks.
///
/// Row blocks of the fork have zero bytes at 130..132 and 140..148, its tiles at 1040..1056 and 1120..1184. Tiles with zero points have neither.
pub fn detect_layout(bytes: &[u8]) -> Option<Layout> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(ROW_BYTES) {
        return None;
    }
    let whole_tiles = bytes.len().is_multiple_of(TILE_BYTES);
    let early = bytes.chunks_exact(ROW_BYTES).all(|block| is_zero(&block[130..132]) && is_zero(&block[140..]));
    let symmetric =
        whole_tiles && bytes.chunks_exact(TILE_BYTES).all(|t| is_zero(&t[1040..1056]) && is_zero(&t[1120..]));
    if early && !symmetric {
        return Some(Layout::Early);
    }
    let sound = |tile: &[u8]| validate_tile(&bytemuck::pod_read_unaligned::<Tile>(tile)).is_ok();
    (whole_tiles && bytes.chunks_exact(TILE_BYTES).all(sound)).then_some(Layout::Final)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_fit_neither_are_refused() {
        assert_eq!(detect_layout(&[]), None);
        assert_eq!(detect_layout(&[0; 147]), None);
        assert_eq!(detect_layout(&[0; 148]), Some(Layout::Early));
        assert_eq!(detect_layout(&[0; 1184]), Some(Layout::Final));
    }

    #[test]
    fn unsound_tiles_are_refused() {
        assert_eq!(detect_layout(&[0xff; 1184]), None);
    }
}
