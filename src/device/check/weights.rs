//! Checks of the encoders and of decoding: bytes must be those of [`Codec`].

use bytemuck::Zeroable;
use half::f16;

use super::data::Kind;
use super::products::matrix;
use super::{LOSS, Output, Run};
use crate::device::launch::Encoded;
use crate::device::shapes::{Shape, Value};
use crate::error::DeviceError;
use crate::tcq::{CHUNK, Codec, Encoder, TILE_ROWS, Tile};

/// Rows and chunks of matrices.
const SHAPES: [(usize, usize); 2] = [(8, 1), (40, 6)];

pub(super) fn check(run: &mut Run<'_>) -> Result<(), DeviceError> {
    for (rows, chunks) in SHAPES {
        let shape = Shape { rows, chunks, tokens: 0 };
        for encoder in [Encoder::Parity, Encoder::Default] {
            let name = format!("tcq4_encode_{encoder}");
            if !run.wants(&[&format!("{name}_f32"), &format!("{name}_f16")]) {
                continue;
            }
            for kind in Kind::TAME {
                let values = run.data(&name).values(kind, rows, shape.k());
                encode::<f32>(run, encoder, kind.name(), &values, shape)?;
                let halves: Vec<f32> = values.iter().map(|&value| f16::from_f32(value).to_f32()).collect();
                encode::<f16>(run, encoder, kind.name(), &halves, shape)?;
            }
            defects(run, encoder, shape)?;
        }
        if run.wants(&["tcq4_dequantize_f16", "tcq4_dequantize_f32"]) {
            decode(run, shape)?;
        }
    }
    Ok(())
}

/// Narrows values that came from the type.
trait Narrow: Value {
    fn narrow(value: f32) -> Self;
}

impl Narrow for f32 {
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Narrow for f16 {
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// Puts the columns of rows into an order.
fn permuted(rows: &[f32], perm: &[i32]) -> Vec<f32> {
    crate::device::oracle::gathered(rows, Some(perm), perm.len())
}

fn encode<V: Narrow>(
    run: &mut Run<'_>,
    encoder: Encoder,
    kind: &str,
    values: &[f32],
    shape: Shape,
) -> Result<(), DeviceError> {
    let name = format!("tcq4_encode_{encoder}_{}", V::SUFFIX);
    let narrow: Vec<V> = values.iter().map(|&value| V::narrow(value)).collect();
    let perm = run.data(&name).permutation(shape.k());
    let (x, perm_on_device) = (run.queue.upload(&narrow)?, run.queue.upload(&perm)?);
    let codec = Codec::new(encoder);
    for (ordered, rotated) in [(false, false), (true, false), (false, true)] {
        let mut rows = if ordered { permuted(values, &perm) } else { values.to_vec() };
        let mut tiles = vec![Tile::zeroed(); shape.tiles()];
        let mut losses = Vec::new();
        for (stripe, tiles) in rows.chunks_exact_mut(TILE_ROWS * shape.k()).zip(tiles.chunks_exact_mut(shape.chunks)) {
            if !rotated {
                codec.fwht(stripe);
            }
            for (chunk, tile) in tiles.iter_mut().enumerate() {
                let columns = CHUNK * chunk..CHUNK * (chunk + 1);
                let own: Vec<f32> =
                    stripe.chunks_exact(shape.k()).flat_map(|row| &row[columns.clone()]).copied().collect();
                let loss = codec.encode_rotated(&own, CHUNK, std::slice::from_mut(tile)).unwrap_or_default();
                losses.push(loss);
            }
        }
        let mut encoded = room(run, shape.tiles())?;
        let order = ordered.then_some(&perm_on_device);
        run.queue.encode(encoder, (&x, order), rotated, &mut encoded, shape)?;
        let how = if ordered {
            ", permuted"
        } else if rotated {
            ", rotated before"
        } else {
            ""
        };
        let about = format!("{kind}, {} x {}{how}", shape.rows, shape.k());
        let Encoded { tiles: found, losses: found_losses, defects } = encoded;
        let len = shape.tiles();
        run.exact((&name, &about, "tiles"), &tiles, &Output { buffer: found, len }, |tile| tile)?;
        run.exact((&name, &about, "defects"), &vec![0; len], &Output { buffer: defects, len }, |defect| defect)?;
        let (found, overrun) = run.fetch(&Output { buffer: found_losses, len })?;
        let sum = |rows: &[f32]| rows.iter().map(|&part| f64::from(part)).sum::<f64>();
        let found: Vec<f64> =
            found.iter().flat_map(|parts| [sum(&parts[..TILE_ROWS]), sum(&parts[TILE_ROWS..])]).collect();
        let expected = losses.iter().flat_map(|loss| [loss.error_sq, loss.weight_sq]).map(|loss| (loss, loss));
        run.within((&name, &about, "losses"), LOSS, expected, (&found, overrun))?;
    }
    Ok(())
}

fn room(run: &Run<'_>, tiles: usize) -> Result<Encoded, DeviceError> {
    Ok(Encoded {
        tiles: run.poisoned(tiles)?.buffer,
        losses: run.poisoned(tiles)?.buffer,
        defects: run.poisoned(tiles)?.buffer,
    })
}

/// What the kernel says of a tile that cannot be encoded.
const FINE: i32 = 0;
const NOT_FINITE: i32 = 1;
const TOO_LARGE: i32 = 2;

fn defects(run: &mut Run<'_>, encoder: Encoder, shape: Shape) -> Result<(), DeviceError> {
    let name = format!("tcq4_encode_{encoder}_f32");
    let k = shape.k();
    for (about, value, defect) in [
        ("NaN", f32::NAN, NOT_FINITE),
        ("infinity", f32::NEG_INFINITY, NOT_FINITE),
        ("too large", 16.0 * 458_529.0, TOO_LARGE),
        ("just not too large", 16.0 * 458_527.0, FINE),
    ] {
        let (row, column) = (shape.rows - 1, k - 1);
        let mut values = vec![0.0; shape.rows * k];
        values[row * k + column] = value;
        let mut expected = vec![FINE; shape.tiles()];
        expected[shape.tiles() - 1] = defect;
        let x = run.queue.upload(&values)?;
        let mut encoded = room(run, shape.tiles())?;
        run.queue.encode(encoder, (&x, None), false, &mut encoded, shape)?;
        let found = Output { buffer: encoded.defects, len: shape.tiles() };
        run.exact((&name, about, "defects"), &expected, &found, |defect| defect)?;
    }
    Ok(())
}

fn decode(run: &mut Run<'_>, shape: Shape) -> Result<(), DeviceError> {
    let mut data = run.data("dequantize");
    let tiles = matrix(&mut data, shape);
    let perm = data.permutation(shape.k());
    let (on_device, perm_on_device) = (run.queue.upload(&tiles)?, run.queue.upload(&perm)?);
    let codec = Codec::new(Encoder::Default);
    for (ordered, rotated) in [(false, false), (true, false), (false, true)] {
        let mut rows = vec![0.0; shape.rows * shape.k()];
        for (rows, tiles) in rows.chunks_exact_mut(TILE_ROWS * shape.k()).zip(tiles.chunks_exact(shape.chunks)) {
            if rotated {
                codec.decode_rotated(tiles, shape.k(), rows);
            } else {
                codec.decode_rows(tiles, shape.k(), rows);
            }
        }
        if ordered {
            let stored = rows.clone();
            for (row, stored) in rows.chunks_exact_mut(shape.k()).zip(stored.chunks_exact(shape.k())) {
                perm.iter().zip(stored).for_each(|(&to, &value)| row[to as usize] = value);
            }
        }
        let order = ordered.then_some(&perm_on_device);
        let how = if ordered {
            ", permuted"
        } else if rotated {
            ", still rotated"
        } else {
            ""
        };
        let about = format!("{} x {}{how}", shape.rows, shape.k());
        let mut wide = run.poisoned(rows.len())?;
        run.queue.dequantize::<f32>((&on_device, order), rotated, &mut wide.buffer, shape)?;
        run.exact(("tcq4_dequantize_f32", &about, "y"), &rows, &wide, |value| value)?;
        let halves: Vec<f16> = rows.iter().map(|&value| f16::from_f32(value)).collect();
        let mut narrow = run.poisoned(rows.len())?;
        run.queue.dequantize::<f16>((&on_device, order), rotated, &mut narrow.buffer, shape)?;
        run.exact(("tcq4_dequantize_f16", &about, "y"), &halves, &narrow, |value| value)?;
    }
    Ok(())
}
