//! Golden cases: what the fork's own functions made of sixteen inputs, byte for byte and bit for bit.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tcq4::tcq::{CHUNK, Codec, EarlyBlock, EncodeError, Encoder, Isa, Layout, TILE_ROWS, Tile, detect_layout, early};

struct Golden {
    json: Value,
    bytes: Vec<u8>,
}

impl Golden {
    fn read() -> Golden {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
        let json = serde_json::from_slice(&fs::read(folder.join("tcq4_golden.json")).unwrap()).unwrap();
        Golden { json, bytes: fs::read(folder.join("tcq4_golden.bin")).unwrap() }
    }

    fn cases(&self) -> Vec<Case<'_>> {
        let cases = self.json["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 16);
        cases.iter().map(|json| Case { json, bytes: &self.bytes }).collect()
    }
}

struct Case<'a> {
    json: &'a Value,
    bytes: &'a [u8],
}

impl Case<'_> {
    fn name(&self) -> &str {
        self.json["name"].as_str().unwrap()
    }

    fn columns(&self) -> usize {
        self.json["k"].as_u64().unwrap() as usize
    }

    fn bytes(&self, section: &str) -> Option<&[u8]> {
        let section = self.json["sections"].get(section)?;
        let offset = section["offset"].as_u64().unwrap() as usize;
        Some(&self.bytes[offset..][..section["bytes"].as_u64().unwrap() as usize])
    }

    fn floats(&self, section: &str) -> Vec<f32> {
        collect(self.bytes(section).unwrap())
    }

    /// The weights as they are encoded: permuted, and padded with zero rows to whole tiles.
    fn weights(&self) -> Vec<f32> {
        let (input, columns) = (self.floats("input_f32"), self.columns());
        let mut weights = match self.bytes("perm_i32") {
            None => input,
            Some(perm) => {
                let perm: Vec<i32> = collect(perm);
                input.chunks_exact(columns).flat_map(|row| perm.iter().map(|&from| row[from as usize])).collect()
            }
        };
        weights.resize(weights.len().next_multiple_of(TILE_ROWS * columns), 0.0);
        weights
    }

    fn tiles(&self) -> Vec<Tile> {
        collect(self.bytes("tiles_head").unwrap())
    }

    fn early(&self) -> Vec<EarlyBlock> {
        collect(self.bytes("blocks148_early").unwrap())
    }
}

/// Copies bytes into values of any alignment.
fn collect<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_parity_encoder_gives_the_bytes_of_the_fork() {
    for case in Golden::read().cases() {
        for isa in Isa::available() {
            let codec = Codec::with_isa(Encoder::Parity, isa).unwrap();
            let (mut rows, columns) = (case.weights(), case.columns());
            let chunks = columns / CHUNK;
            let expected = case.tiles();
            let rotated = case.floats("rotated_f32");
            for (tile_row, (rows, expected)) in
                rows.chunks_mut(TILE_ROWS * columns).zip(expected.chunks(chunks)).enumerate()
            {
                let mut tiles = vec![bytemuck::Zeroable::zeroed(); chunks];
                let encoded = codec.encode_rows(rows, columns, &mut tiles);
                if case.name() == "fp16_overflow" {
                    assert!(matches!(encoded, Err(EncodeError::Overflow { row: 2, column: 0, .. })), "{encoded:?}");
                    continue;
                }
                encoded.unwrap();
                assert!(tiles == expected, "{} on {isa}: tile row {tile_row} differs", case.name());
                let rotated = &rotated[tile_row * TILE_ROWS * columns..];
                let known = rotated.len().min(rows.len());
                assert_eq!(bits(&rows[..known]), bits(&rotated[..known]), "{} on {isa}", case.name());
            }
        }
    }
}

#[test]
fn tiles_decode_to_the_floats_of_the_fork() {
    for case in Golden::read().cases() {
        for isa in Isa::available() {
            let codec = Codec::with_isa(Encoder::Default, isa).unwrap();
            let (tiles, columns) = (case.tiles(), case.columns());
            let (rotated, spatial) = (case.floats("dequant_rotated_f32"), case.floats("dequant_spatial_f32"));
            let mut rows = vec![0.0; TILE_ROWS * columns];
            for (i, tiles) in tiles.chunks(columns / CHUNK).enumerate() {
                let expected = i * rows.len()..(i + 1) * rows.len();
                codec.decode_rotated(tiles, columns, &mut rows);
                assert_eq!(defined(&rows), defined(&rotated[expected.clone()]), "{} on {isa}, rotated", case.name());
                codec.decode_rows(tiles, columns, &mut rows);
                assert_eq!(defined(&rows), defined(&spatial[expected]), "{} on {isa}", case.name());
            }
        }
    }
}

/// The bits of the values; NaN (out of an infinite scale) is one value, whatever its payload.
fn defined(values: &[f32]) -> Vec<Option<u32>> {
    values.iter().map(|value| (!value.is_nan()).then_some(value.to_bits())).collect()
}

#[test]
fn the_early_format_is_that_of_the_fork() {
    for case in Golden::read().cases() {
        let (columns, blocks) = (case.columns(), case.early());
        let rotated = case.floats("rotated_f32");
        for (i, (values, block)) in rotated.as_chunks::<CHUNK>().0.iter().zip(&blocks).enumerate() {
            assert!(early::encode(values) == *block, "{}: block {i} differs", case.name());
            let expected = &case.floats("blocks148_dequant_rotated_f32")[i * CHUNK..][..CHUNK];
            assert_eq!(defined(&early::decode(block)), defined(expected), "{}", case.name());
        }
        let mut rows = vec![0.0; blocks.len() * CHUNK];
        early::decode_rows(&blocks, columns, &mut rows);
        assert_eq!(defined(&rows), defined(&case.floats("blocks148_dequant_spatial_f32")), "{}", case.name());
    }
}

#[test]
fn the_two_formats_are_told_apart() {
    for case in Golden::read().cases() {
        let expected = if case.name() == "fp16_overflow" { None } else { Some(Layout::Final) };
        assert_eq!(detect_layout(case.bytes("tiles_head").unwrap()), expected, "{}", case.name());
        assert_eq!(detect_layout(case.bytes("blocks148_early").unwrap()), Some(Layout::Early), "{}", case.name());
    }
}

#[test]
fn early_blocks_become_tiles_with_the_same_codes() {
    for case in Golden::read().cases() {
        let (blocks, tiles, chunks) = (case.early(), case.tiles(), case.columns() / CHUNK);
        for (i, tile) in tiles.iter().enumerate() {
            let (tile_row, chunk) = (i / chunks, i % chunks);
            let of_row = |row: usize| blocks.get((tile_row * TILE_ROWS + row) * chunks + chunk).copied();
            let Some(rows) = (0..TILE_ROWS).map(of_row).collect::<Option<Vec<_>>>() else { continue };
            let converted = early::to_tile(&rows.try_into().unwrap());
            assert!(converted.codes == tile.codes, "{}: codes of tile {i}", case.name());
            assert!(
                early::from_tile(tile)
                    .iter()
                    .flat_map(|b| b.codes)
                    .eq(early::from_tile(&converted).iter().flat_map(|b| b.codes))
            );
        }
    }
}
