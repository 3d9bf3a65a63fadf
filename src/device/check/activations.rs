//! Checks of the transform, the gather and the rounding of activations: bits must be those of the CPU.

use half::f16;

use super::data::Kind;
use super::{Run, find};
use crate::device::oracle::{Layout, Reference, acts, gathered};
use crate::device::shapes::{
    BlockFork, BlockG256, Int4Fork, Int4G32, Int4G256, Int8, Rule, Shape, Value, WideFork, WideG256,
};
use crate::error::DeviceError;
use crate::math::hadamard::fwht256;
use crate::tcq::CHUNK;

/// Floats that come from f32 and go there.
trait Float: Value + std::fmt::Debug {
    fn of(value: f32) -> Self;
    fn wide(self) -> f32;
    /// Itself with one NaN for all.
    fn tidy(self) -> Self;
}

impl Float for f32 {
    fn of(value: f32) -> Self {
        value
    }

    fn wide(self) -> f32 {
        self
    }

    fn tidy(self) -> Self {
        if self.is_nan() { f32::NAN } else { self }
    }
}

impl Float for f16 {
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }

    fn wide(self) -> f32 {
        self.to_f32()
    }

    fn tidy(self) -> Self {
        if self.is_nan() { f16::NAN } else { self }
    }
}

/// Tokens and chunks: one of each, odd numbers that fill no block, and a row of a usual model.
const SHAPES: [(usize, usize); 3] = [(1, 1), (5, 3), (33, 16)];

pub(super) fn check(run: &mut Run<'_>) -> Result<(), DeviceError> {
    both::<f32>(run)?;
    both::<f16>(run)
}

fn both<V: Float>(run: &mut Run<'_>) -> Result<(), DeviceError> {
    let name = |stem: &str| format!("tcq4_{stem}_{}", V::SUFFIX);
    for (tokens, chunks) in SHAPES {
        let shape = Shape { rows: 0, chunks, tokens };
        for kind in Kind::ALL {
            if run.wants(&[&name("fwht")]) {
                fwht::<V>(run, &name("fwht"), kind, shape)?;
            }
            if run.wants(&[&name("gather")]) {
                gather::<V>(run, &name("gather"), kind, shape)?;
            }
            round::<V, Int8>(run, kind, shape)?;
            round::<V, Int4G32>(run, kind, shape)?;
            round::<V, Int4G256>(run, kind, shape)?;
            round::<V, Int4Fork>(run, kind, shape)?;
            round::<V, BlockG256>(run, kind, shape)?;
            round::<V, BlockFork>(run, kind, shape)?;
            round::<V, WideG256>(run, kind, shape)?;
            round::<V, WideFork>(run, kind, shape)?;
        }
    }
    Ok(())
}

/// Values of a kind as this type has them.
fn values<V: Float>(run: &Run<'_>, name: &str, kind: Kind, shape: Shape) -> Vec<V> {
    run.data(name).values(kind, shape.tokens, shape.k()).into_iter().map(V::of).collect()
}

fn about(kind: Kind, shape: Shape, more: &str) -> String {
    format!("{}, {} x {}{more}", kind.name(), shape.tokens, shape.k())
}

fn fwht<V: Float>(run: &mut Run<'_>, name: &str, kind: Kind, shape: Shape) -> Result<(), DeviceError> {
    let x = values::<V>(run, name, kind, shape);
    let expected = x.as_chunks::<CHUNK>().0.iter().flat_map(|chunk| {
        let mut wide = chunk.map(Float::wide);
        fwht256(&mut wide);
        wide.map(V::of)
    });
    let expected: Vec<V> = expected.collect();
    let mut buffer = run.queue.upload(&x)?;
    run.queue.fwht(&mut buffer)?;
    let found = super::Output { len: buffer.len(), buffer };
    run.exact((name, &about(kind, shape, ""), "x"), &expected, &found, Float::tidy)
}

fn gather<V: Float>(run: &mut Run<'_>, name: &str, kind: Kind, shape: Shape) -> Result<(), DeviceError> {
    let x = values::<V>(run, name, kind, shape);
    let perm = run.data(name).permutation(shape.k());
    let expected = gathered(&x, Some(&perm), shape.k());
    let (x, perm) = (run.queue.upload(&x)?, run.queue.upload(&perm)?);
    for staged in [false, true] {
        let mut y = run.poisoned(shape.tokens * shape.k())?;
        run.queue.gather((&x, &perm), &mut y.buffer, shape, staged)?;
        let about = about(kind, shape, if staged { ", staged" } else { "" });
        run.exact((name, &about, "y"), &expected, &y, Float::tidy)?;
    }
    Ok(())
}

fn round<V: Float, R: Reference>(run: &mut Run<'_>, kind: Kind, shape: Shape) -> Result<(), DeviceError> {
    let name = format!("tcq4_round_{}_{}", <R as Rule>::NAME, V::SUFFIX);
    if !run.wants(&[find(&name)?.name]) {
        return Ok(());
    }
    let x = values::<V>(run, &name, kind, shape);
    let perm = run.data(&name).permutation(shape.k());
    let (on_device, perm_on_device) = (run.queue.upload(&x)?, run.queue.upload(&perm)?);
    for (ordered, staged) in [(false, false), (true, false), (true, true)] {
        let gathered = gathered(&x, ordered.then_some(&perm[..]), shape.k());
        let wide: Vec<f32> = gathered.into_iter().map(Float::wide).collect();
        let expected = acts::<R>(&wide);
        let mut found = run.poisoned(shape.acts())?;
        let order = ordered.then_some(&perm_on_device);
        run.queue.round::<V, R>((&on_device, order), &mut found.buffer, shape, staged)?;
        let how = match (ordered, staged) {
            (false, _) => "",
            (true, false) => ", permuted",
            (true, true) => ", permuted, staged",
        };
        run.exact((&name, &about(kind, shape, how), "acts"), &expected, &found, Layout::canonical)?;
    }
    Ok(())
}
