//! Checks of the products of tokens and one matrix, against f64.

use bytemuck::Zeroable;
use half::f16;

use super::data::{Data, Kind};
use super::{PRODUCT, Run};
use crate::device::gpu::Buffer;
use crate::device::oracle::{Layout, Product, Reference, acts, gathered, product};
use crate::device::shapes::{
    Activations, BlockFork, BlockG256, Int4Fork, Int4G32, Int4G256, Int8, Shape, WideFork, WideG256,
};
use crate::error::DeviceError;
use crate::tcq::{Codec, Encoder, TILE_ROWS, Tile};

pub(super) fn check(run: &mut Run<'_>) -> Result<(), DeviceError> {
    few::<Int8>(run)?;
    few::<Int4G32>(run)?;
    few::<Int4G256>(run)?;
    few::<Int4Fork>(run)?;
    fused::<Int8>(run)?;
    fused::<Int4G32>(run)?;
    many::<Int8>(run)?;
    many::<Int4G32>(run)?;
    many::<Int4Fork>(run)?;
    // Each device has tensor cores for one of the two kinds of blocks.
    if run.queue.gpu().facts().has_int4() {
        many::<BlockG256>(run)?;
        many::<BlockFork>(run)
    } else {
        many::<WideG256>(run)?;
        many::<WideFork>(run)
    }
}

/// A matrix: random weights encoded, and a few tiles of random bits with the extremes of every field.
pub(super) fn matrix(data: &mut Data, shape: Shape) -> Vec<Tile> {
    let k = shape.k();
    let mut rows = data.values(Kind::Normal, shape.rows, k);
    let mut tiles = vec![Tile::zeroed(); shape.tiles()];
    let codec = Codec::new(Encoder::Default);
    let stripes = rows.chunks_exact_mut(TILE_ROWS * k).zip(tiles.chunks_exact_mut(shape.chunks));
    for (rows, tiles) in stripes {
        let encoded = codec.encode_rows(rows, k, tiles);
        debug_assert!(encoded.is_ok(), "normal weights can be encoded");
    }
    for tile in tiles.iter_mut().step_by(5) {
        *tile = extreme_tile(data);
    }
    tiles
}

fn extreme_tile(data: &mut Data) -> Tile {
    let mut tile = Tile::zeroed();
    tile.codes.iter_mut().for_each(|byte| *byte = data.bits() as u8);
    for row in 0..TILE_ROWS {
        tile.scale[row] = f16::from_f32([0.01, -2.0, 6e-8, 1.0][row % 4]);
        tile.zero[row] = f16::from_f32([0.0, 3.0, -0.5, 6e-5][row / 2]);
        for group in 0..TILE_ROWS {
            tile.scale_code[row][group] = [127, -127, 0, 1, -1, 64, -128, 100][(row + group) % 8];
            tile.zero_code[row][group] = [0, -1, 127, -127, 3, -128, 1, 50][group];
        }
    }
    tile
}

/// The products of all tokens and rows.
pub(super) fn expected<A: Layout>(tiles: &[Tile], shape: Shape, acts: &[A]) -> Vec<Product> {
    let of_token =
        |token: &[A]| (0..shape.rows).map(|row| product(tiles, shape.chunks, row, token)).collect::<Vec<_>>();
    acts.chunks_exact(shape.chunks).flat_map(of_token).collect()
}

/// Compares rows of results with a stride; what lies between the rows has to be as it was.
pub(super) fn compare(
    run: &mut Run<'_>,
    (kernel, data): (&str, &str),
    expected: &[Product],
    found: &super::Output<f32>,
    (rows, stride): (usize, usize),
) -> Result<(), DeviceError> {
    let (values, overrun) = run.fetch(found)?;
    let poison = u32::from_ne_bytes([super::POISON; 4]);
    let between = values.chunks(stride).flat_map(|row| &row[rows.min(row.len())..]).any(|gap| gap.to_bits() != poison);
    let values: Vec<f64> = values.chunks(stride).flat_map(|row| &row[..rows]).map(|&value| f64::from(value)).collect();
    let expected = expected.iter().map(|product| (product.value, product.magnitude));
    run.within((kernel, data, "y"), PRODUCT, expected, (&values, overrun || between))
}

/// Room for rows of results, poisoned.
pub(super) fn room(
    run: &Run<'_>,
    tokens: usize,
    (rows, stride): (usize, usize),
) -> Result<super::Output<f32>, DeviceError> {
    run.poisoned((tokens - 1) * stride + rows)
}

fn upload<A: Activations>(run: &Run<'_>, tiles: &[Tile], acts: &[A]) -> Result<(Buffer<Tile>, Buffer<A>), DeviceError> {
    Ok((run.queue.upload(tiles)?, run.queue.upload(acts)?))
}

/// The kinds that products are checked on.
const KINDS: [Kind; 6] = [Kind::Normal, Kind::Spikes, Kind::Zeros, Kind::Ties, Kind::Huge, Kind::NotFinite];

fn few<R: Reference>(run: &mut Run<'_>) -> Result<(), DeviceError> {
    let stem = format!("tcq4_mul_vec_{}_m", R::Acts::SUFFIX);
    for (tokens, served) in [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)] {
        let name = format!("{stem}{served}");
        if !run.wants(&[&name]) {
            continue;
        }
        for (kind, (rows, chunks)) in KINDS.into_iter().zip([(8, 1), (40, 3), (64, 16), (24, 5), (8, 4), (16, 2)]) {
            let shape = Shape { rows, chunks, tokens };
            let mut data = run.data(&name);
            let tiles = matrix(&mut data, shape);
            let acts = acts::<R>(&data.values(kind, tokens, shape.k()));
            let (on_device, acts_on_device) = upload(run, &tiles, &acts)?;
            let stride = rows + 3;
            let mut y = room(run, tokens, (rows, stride))?;
            run.queue.mul_vec((&on_device, &acts_on_device), &mut y.buffer, shape, stride)?;
            let about = format!("{} ({}), {tokens} x {rows} x {}", kind.name(), R::NAME, shape.k());
            compare(run, (&name, &about), &expected(&tiles, shape, &acts), &y, (rows, stride))?;
        }
    }
    Ok(())
}

fn fused<R: Reference>(run: &mut Run<'_>) -> Result<(), DeviceError> {
    for (tokens, served) in [(1, 1), (2, 2), (3, 4), (8, 8)] {
        let name = format!("tcq4_mul_vec_fused_{}_m{served}", R::Acts::SUFFIX);
        if !run.wants(&[&name]) {
            continue;
        }
        let usual = KINDS.into_iter().zip([(8, 1), (40, 3), (2048, 16), (24, 5), (8, 4), (16, 2)]);
        // 8 tokens that, with what the kernel keeps beside them, need more shared memory than is had without asking; Turing has 64 KiB in all.
        let is_turing = run.queue.gpu().facts().architecture < 80;
        let wide = [17, if is_turing { 22 } else { 32 }].map(|chunks| (Kind::Normal, (16, chunks)));
        for (kind, (rows, chunks)) in usual.chain(wide.into_iter().filter(|_| tokens == 8)) {
            let shape = Shape { rows, chunks, tokens };
            let mut data = run.data(&name);
            let tiles = matrix(&mut data, shape);
            let x = data.values(kind, tokens, shape.k());
            let perm = data.permutation(shape.k());
            let acts = acts::<R>(&gathered(&x, Some(&perm), shape.k()));
            let (tiles_on_device, x) = (run.queue.upload(&tiles)?, run.queue.upload(&x)?);
            let perm = run.queue.upload(&perm)?;
            let stride = rows + 5;
            let mut y = room(run, tokens, (rows, stride))?;
            run.queue.mul_vec_fused::<R::Acts>((&x, Some(&perm), &tiles_on_device), &mut y.buffer, shape, stride)?;
            let about = format!("{}, {tokens} x {rows} x {}", kind.name(), shape.k());
            compare(run, (&name, &about), &expected(&tiles, shape, &acts), &y, (rows, stride))?;
        }
    }
    Ok(())
}

fn many<R: Reference>(run: &mut Run<'_>) -> Result<(), DeviceError> {
    let name = format!("tcq4_mul_mat_{}", R::Acts::SUFFIX);
    if !run.wants(&[&name]) {
        return Ok(());
    }
    let shapes = [(128, 128, 2), (1, 8, 1), (130, 136, 3), (300, 264, 1), (17, 40, 5), (64, 72, 4)];
    for (kind, (tokens, rows, chunks)) in KINDS.into_iter().zip(shapes) {
        let shape = Shape { rows, chunks, tokens };
        let mut data = run.data(&name);
        let tiles = matrix(&mut data, shape);
        let acts = acts::<R>(&data.values(kind, tokens, shape.k()));
        let (on_device, acts_on_device) = upload(run, &tiles, &acts)?;
        let stride = rows + 8;
        let mut y = room(run, tokens, (rows, stride))?;
        run.queue.mul_mat((&on_device, &acts_on_device), &mut y.buffer, shape, stride)?;
        let about = format!("{} ({}), {tokens} x {rows} x {}", kind.name(), R::NAME, shape.k());
        compare(run, (&name, &about), &expected(&tiles, shape, &acts), &y, (rows, stride))?;
    }
    Ok(())
}
