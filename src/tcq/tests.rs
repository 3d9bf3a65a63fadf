//! Properties of the codec, for every instruction set that this machine has.

use bytemuck::Zeroable;
use half::f16;
use proptest::prelude::*;

use super::kernel::importance::of_tile;
use super::*;
use crate::math::hadamard::fwht256;

/// Three chunks: an odd number, so that nothing hides in pairs.
const COLUMNS: usize = 3 * CHUNK;

/// Errors are compared in f64; this part covers the rounding of that sum itself.
const SUM_TOLERANCE: f64 = 1e-12;

fn codecs(encoder: Encoder) -> impl Iterator<Item = Codec> {
    Isa::available().into_iter().filter_map(move |isa| Codec::with_isa(encoder, isa))
}

/// A weight of one of many kinds: ordinary, tiny, huge, a power of two, zero of either sign.
fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => (-30..13i32, any::<bool>()).prop_map(|(e, minus)| if minus { -(e as f32).exp2() } else { (e as f32).exp2() }),
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => any::<u32>().prop_map(|bits| f32::from_bits(bits & 0x807f_ffff)),
    ]
}

/// Eight rows of [`COLUMNS`] weights; rows are mixed, constant, empty or ordinary with one spike, and scaled over the range of fp16.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let mixed = prop::collection::vec(weight(), COLUMNS);
    let constant = weight().prop_map(|value| vec![value; COLUMNS]);
    let spike = (prop::collection::vec(-0.05f32..0.05, COLUMNS), 0..COLUMNS, -5000.0f32..5000.0).prop_map(
        |(mut row, at, spike)| {
            row[at] = spike;
            row
        },
    );
    let few = prop::collection::vec(prop::sample::select(vec![-1.0f32, 0.0, 0.5, 3.0]), COLUMNS);
    let plain = prop::collection::vec(-1.0f32..1.0, COLUMNS);
    let row = prop_oneof![3 => mixed, 1 => constant, 2 => spike, 1 => few, 4 => plain];
    let scaled = (row, -28..3i32)
        .prop_map(|(row, e)| row.into_iter().map(|value| value * (e as f32).exp2()).collect::<Vec<_>>());
    prop::collection::vec(scaled, TILE_ROWS).prop_map(|rows| rows.concat())
}

fn encode(codec: Codec, rows: &[f32]) -> (Vec<f32>, Vec<Tile>, Loss) {
    let (mut rotated, mut tiles) = (rows.to_vec(), vec![Tile::zeroed(); COLUMNS / CHUNK]);
    let loss = codec.encode_rows(&mut rotated, COLUMNS, &mut tiles).expect("weights in range");
    (rotated, tiles, loss)
}

/// The squared error of a row of one tile, summed exactly enough.
fn error_sq(tile: &Tile, rotated: &[f32], chunk: usize, row: usize) -> f64 {
    let values = &rotated[row * COLUMNS + chunk * CHUNK..][..CHUNK];
    values.iter().enumerate().map(|(k, &value)| (f64::from(value) - f64::from(tile.value(row, k))).powi(2)).sum()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The fork's rules, value by value.
fn naive_parity(rotated: &[f32], chunk: usize) -> Tile {
    let mut tile = Tile::zeroed();
    for row in 0..TILE_ROWS {
        let values = &rotated[row * COLUMNS + chunk * CHUNK..][..CHUNK];
        let scales: Vec<f32> = values
            .chunks_exact(GROUP)
            .map(|group| group.iter().fold(0.0, |max: f32, value| max.max(value.abs())) / 7.0)
            .map(|scale| if scale < 1e-10 { 1.0 } else { scale })
            .collect();
        let largest = scales.iter().copied().fold(0.0, f32::max);
        tile.scale[row] = f16::from_f32(largest);
        for (group, scale) in scales.iter().enumerate() {
            tile.scale_code[row][group] = (scale / largest * 127.0).round().clamp(-127.0, 127.0) as i8;
        }
        for (k, value) in values.iter().enumerate() {
            tile.set_code(row, k, (value * (1.0 / scales[k / GROUP])).round().clamp(-8.0, 7.0) as i8);
        }
    }
    tile
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_instruction_set_gives_the_bytes_of_the_scalar_one(rows in rows()) {
        for encoder in [Encoder::Parity, Encoder::Default, Encoder::Weighted] {
            let scalar = Codec::with_isa(encoder, Isa::Scalar).expect("always there");
            let (rotated, tiles, loss) = encode(scalar, &rows);
            for codec in codecs(encoder) {
                let (its_rotated, its_tiles, its_loss) = encode(codec, &rows);
                prop_assert_eq!(bits(&its_rotated), bits(&rotated), "{} {}", encoder, codec.isa());
                prop_assert!(its_tiles == tiles, "{encoder} {}", codec.isa());
                prop_assert_eq!(its_loss, loss);
            }
        }
    }

    #[test]
    fn rotation_is_that_of_the_oracle(rows in rows(), chunks in 1..24usize) {
        let mut expected = rows[..chunks * CHUNK].to_vec();
        expected.as_chunks_mut::<CHUNK>().0.iter_mut().for_each(fwht256);
        for codec in codecs(Encoder::Default) {
            let mut values = rows[..chunks * CHUNK].to_vec();
            codec.fwht(&mut values);
            prop_assert_eq!(bits(&values), bits(&expected), "{}", codec.isa());
        }
    }

    #[test]
    fn parity_follows_the_rules_value_by_value(rows in rows()) {
        let (rotated, tiles, _) = encode(Codec::new(Encoder::Parity), &rows);
        for (chunk, tile) in tiles.iter().enumerate() {
            prop_assert!(*tile == naive_parity(&rotated, chunk));
        }
    }

    #[test]
    fn no_row_is_worse_than_parity(rows in rows()) {
        let (rotated, parity, _) = encode(Codec::new(Encoder::Parity), &rows);
        let (_, tiles, loss) = encode(Codec::new(Encoder::Default), &rows);
        let mut total = 0.0;
        for (chunk, (tile, parity)) in tiles.iter().zip(&parity).enumerate() {
            prop_assert_eq!(validate_tile(tile), Ok(()));
            for row in 0..TILE_ROWS {
                let (ours, theirs) = (error_sq(tile, &rotated, chunk, row), error_sq(parity, &rotated, chunk, row));
                prop_assert!(ours <= theirs * (1.0 + SUM_TOLERANCE), "row {} of tile {}: {:e} > {:e}", row, chunk, ours, theirs);
                total += ours;
            }
        }
        prop_assert!((loss.error_sq - total).abs() <= 1e-4 * total + 1e-30, "reported {:e}, measured {:e}", loss.error_sq, total);
    }

    #[test]
    fn weighted_errors_are_no_worse_than_parity_on_any_instruction_set(
        rows in rows(),
        importance in prop::collection::vec(prop_oneof![4 => 0.5f32..2.0, 1 => 1e-3f32..1e3, 1 => Just(0.0f32)], COLUMNS),
    ) {
        let encode_by = |codec: Codec| {
            let (mut rotated, mut tiles) = (rows.clone(), vec![Tile::zeroed(); COLUMNS / CHUNK]);
            let loss = codec.encode_rows_by(Some(&importance), &mut rotated, COLUMNS, &mut tiles).expect("weights in range");
            (rotated, tiles, loss)
        };
        let (_, parity, _) = encode(Codec::new(Encoder::Parity), &rows);
        let (rotated, tiles, loss) = encode_by(Codec::with_isa(Encoder::Weighted, Isa::Scalar).expect("always there"));
        for (chunk, (tile, parity)) in tiles.iter().zip(&parity).enumerate() {
            let counts = of_tile(&importance[chunk * CHUNK..][..CHUNK]);
            prop_assert_eq!(validate_tile(tile), Ok(()));
            for row in 0..TILE_ROWS {
                let error = |tile: &Tile| -> f64 {
                    let values = &rotated[row * COLUMNS + chunk * CHUNK..][..CHUNK];
                    let error_sq = |k: usize| (f64::from(values[k]) - f64::from(tile.value(row, k))).powi(2);
                    (0..CHUNK).map(|k| f64::from(counts[k]) * error_sq(k)).sum()
                };
                prop_assert!(error(tile) <= error(parity) * (1.0 + 1e-5), "row {} of tile {}", row, chunk);
            }
        }
        for codec in codecs(Encoder::Weighted) {
            let (_, its_tiles, its_loss) = encode_by(codec);
            prop_assert!(its_tiles == tiles, "{}", codec.isa());
            prop_assert_eq!(its_loss, loss);
        }
    }

    #[test]
    fn columns_that_count_alike_make_no_difference(rows in rows(), count in 1e-3f32..1e3) {
        let (_, plain, _) = encode(Codec::new(Encoder::Default), &rows);
        let codec = Codec::new(Encoder::Weighted);
        prop_assert!(encode(codec, &rows).1 == plain);
        for importance in [vec![2.0f32.powf(count.log2().round()); COLUMNS], vec![0.0; COLUMNS]] {
            let (mut rotated, mut tiles) = (rows.clone(), plain.clone());
            codec.encode_rows_by(Some(&importance), &mut rotated, COLUMNS, &mut tiles).expect("weights in range");
            prop_assert!(tiles == plain);
        }
    }

    #[test]
    fn tiles_decode_element_by_element(codes in prop::collection::vec(any::<u8>(), TILE_BYTES), rotated in any::<bool>()) {
        let mut tile: Tile = bytemuck::pod_read_unaligned(&codes);
        for half in tile.scale.iter_mut().chain(&mut tile.zero) {
            *half = f16::from_bits(half.to_bits() & 0xbfff);
        }
        let mut expected: Vec<f32> = (0..TILE_ROWS * CHUNK).map(|i| tile.value(i / CHUNK, i % CHUNK)).collect();
        if !rotated {
            expected.as_chunks_mut::<CHUNK>().0.iter_mut().for_each(fwht256);
        }
        for codec in codecs(Encoder::Default) {
            let mut values = vec![0.0; TILE_ROWS * CHUNK];
            if rotated {
                codec.decode_rotated(&[tile], CHUNK, &mut values);
            } else {
                codec.decode_rows(&[tile], CHUNK, &mut values);
            }
            prop_assert_eq!(bits(&values), bits(&expected), "{}", codec.isa());
        }
    }

    /// Groups that use both ends of the codes, with positive scales: their mirror images have the same values.
    #[test]
    fn tiles_with_offsets_are_found_again(tile in code_words(true)) {
        prop_assert!(is_exact(&tile)?);
    }

    /// No offsets; the extreme of each group sits on -8, and the sign of the scale says on which side.
    #[test]
    fn tiles_without_offsets_are_found_again(tile in code_words(false)) {
        prop_assert!(is_exact(&tile)?);
    }
}

/// Random tiles whose scales and offsets can be read off their values: one group of each row carries S and one Z in full.
fn code_words(offsets: bool) -> impl Strategy<Value = Tile> {
    let code = if offsets { -8..=7i8 } else { -7..=7i8 };
    let scale_code =
        (20..=127i8, any::<bool>()).prop_map(move |(code, minus)| if minus && !offsets { -code } else { code });
    let row = (
        prop::collection::vec(code, CHUNK),
        (1e-3f32..10.0, 0.1f32..4.0, 0..GROUPS, 0..GROUPS),
        prop::array::uniform8(scale_code),
        prop::array::uniform8(-127..=127i8),
    );
    prop::collection::vec(row, TILE_ROWS).prop_map(move |rows| {
        let mut tile = Tile::zeroed();
        for (row, (codes, (scale, zero, full_scale, full_zero), scale_codes, zero_codes)) in
            rows.into_iter().enumerate()
        {
            tile.scale[row] = f16::from_f32(scale);
            tile.scale_code[row] = scale_codes;
            tile.scale_code[row][full_scale] = 127;
            if offsets {
                tile.zero[row] = f16::from_f32(scale * zero);
                tile.zero_code[row] = zero_codes;
                tile.zero_code[row][full_zero] = if zero_codes[full_zero] < 0 { -127 } else { 127 };
            }
            for (column, code) in codes.into_iter().enumerate() {
                tile.set_code(row, column, code);
            }
            for group in 0..GROUPS {
                tile.set_code(row, group * GROUP + 5, -8);
                if offsets {
                    tile.set_code(row, group * GROUP + 20, 7);
                }
            }
        }
        tile
    })
}

/// Whether encoding the values of a tile loses nothing at all.
fn is_exact(tile: &Tile) -> Result<bool, TestCaseError> {
    let codec = Codec::new(Encoder::Default);
    let mut rotated = vec![0.0; TILE_ROWS * CHUNK];
    codec.decode_rotated(&[*tile], CHUNK, &mut rotated);
    let mut again = [Tile::zeroed()];
    let loss =
        codec.encode_rotated(&rotated, CHUNK, &mut again).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let same = (0..TILE_ROWS * CHUNK).all(|i| again[0].value(i / CHUNK, i % CHUNK) == rotated[i]);
    Ok(same && loss.error_sq == 0.0)
}

/// Weights of which a few columns count a hundred times as much as the others: it is their errors that shrink.
#[test]
fn what_counts_more_is_coded_better() {
    let rows: Vec<f32> = (0..TILE_ROWS * COLUMNS).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.5 - 1.0).collect();
    let importance: Vec<f32> = (0..COLUMNS).map(|k| if k % 11 == 0 { 100.0 } else { 1.0 }).collect();
    let (rotated, plain, _) = encode(Codec::new(Encoder::Default), &rows);
    let (mut again, mut weighted) = (rows, plain.clone());
    let codec = Codec::new(Encoder::Weighted);
    codec.encode_rows_by(Some(&importance), &mut again, COLUMNS, &mut weighted).expect("weights in range");
    let error = |tiles: &[Tile], counts: &dyn Fn(usize) -> f32| -> f64 {
        let error_sq = |(i, value): (usize, &f32)| {
            let column = i % COLUMNS;
            let coded = tiles[column / CHUNK].value(i / COLUMNS, column % CHUNK);
            f64::from(counts(column)) * f64::from(value - coded).powi(2)
        };
        rotated.iter().enumerate().map(error_sq).sum()
    };
    let (before, after) = (error(&plain, &|k| importance[k]), error(&weighted, &|k| importance[k]));
    assert!(after < 0.6 * before, "{before} and {after}");
    assert!(error(&weighted, &|_| 1.0) > error(&plain, &|_| 1.0), "others pay for it");
}

#[test]
fn empty_rows_are_all_zero_bytes() {
    let (_, tiles, loss) = encode(Codec::new(Encoder::Default), &vec![0.0; TILE_ROWS * COLUMNS]);
    assert!(tiles.iter().all(|tile| *tile == Tile::zeroed()));
    assert_eq!((loss, loss.relative()), (Loss::default(), 0.0));
}

#[test]
fn what_cannot_be_stored_is_refused() {
    for codec in codecs(Encoder::Default).chain(codecs(Encoder::Parity)) {
        let mut tiles = vec![Tile::zeroed(); COLUMNS / CHUNK];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rows = vec![0.5; TILE_ROWS * COLUMNS];
            rows[4 * COLUMNS + 300] = bad;
            let refused = codec.encode_rows(&mut rows, COLUMNS, &mut tiles);
            assert_eq!(refused, Err(EncodeError::NotFinite { row: 4, column: 300 }));
        }
        for (huge, at_least) in [(1e7, 6e5), (f32::MAX, 1e37)] {
            let mut rows = vec![0.5; TILE_ROWS * COLUMNS];
            rows[7 * COLUMNS + 600] = huge;
            match codec.encode_rows(&mut rows, COLUMNS, &mut tiles) {
                Err(EncodeError::Overflow { row: 7, column: 512, magnitude }) => assert!(magnitude > at_least),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn names_of_encoders_are_read_back() {
    for encoder in [Encoder::Parity, Encoder::Default, Encoder::Weighted] {
        assert_eq!(encoder.to_string().parse(), Ok(encoder));
    }
    assert_eq!("best".parse::<Encoder>().unwrap_err().to_string(), "`best` is not one of parity, default, weighted");
}

/// The bytes of the default encoder are part of what users compare: they change only on purpose, and then this number with them.
#[test]
fn the_bytes_of_the_default_encoder_are_known() {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let rows: Vec<f32> = (0..TILE_ROWS * COLUMNS).map(|_| (0..6).map(|_| uniform()).sum()).collect();
    for codec in codecs(Encoder::Default) {
        let (_, tiles, loss) = encode(codec, &rows);
        let digest = xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&tiles));
        let found = format!("{digest:016x}, relative loss {:.6}", loss.relative());
        assert_eq!(found, "ff760a3de59d4896, relative loss 0.004687", "{}", codec.isa());
    }
}
