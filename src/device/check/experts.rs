//! Checks of what mixtures of experts use: sorting by expert, and products of tokens with the matrices of their experts.

use super::data::Kind;
use super::products::{compare, matrix, room};
use super::{Output, Run};
use crate::device::launch::Sorted;
use crate::device::oracle::{Product, Reference, acts, product};
use crate::device::shapes::{Activations, BlockG256, Int4G32, Int8, Shape, WideG256};
use crate::error::DeviceError;
use crate::tcq::Tile;

/// Experts of the checks, experts of a token, and the shape of one.
const EXPERTS: usize = 5;
const USED: usize = 2;
const ONE: Shape = Shape { rows: 136, chunks: 2, tokens: 0 };
const STRIDE: usize = ONE.rows + 4;

/// Numbers of tokens: fewer products than experts, and more than a block takes.
const TOKENS: [usize; 2] = [2, 211];

pub(super) fn check(run: &mut Run<'_>) -> Result<(), DeviceError> {
    if run.wants(&["tcq4_sort_experts"]) {
        sort(run)?;
    }
    single::<Int8>(run)?;
    single::<Int4G32>(run)?;
    many::<Int8>(run)?;
    many::<Int4G32>(run)?;
    if run.queue.gpu().facts().has_int4() { many::<BlockG256>(run) } else { many::<WideG256>(run) }
}

/// The products sorted by expert, stably: bounds, sources, targets.
fn sorted(ids: &[i32]) -> (Vec<i32>, Vec<i32>, Vec<i32>) {
    let mut targets: Vec<i32> = (0..ids.len() as i32).collect();
    targets.sort_by_key(|&product| ids[product as usize]);
    let bound = |expert: usize| ids.iter().filter(|&&id| (id as usize) < expert).count() as i32;
    let sources = targets.iter().map(|&product| product / USED as i32).collect();
    ((0..=EXPERTS).map(bound).collect(), sources, targets)
}

fn sort(run: &mut Run<'_>) -> Result<(), DeviceError> {
    const NAME: &str = "tcq4_sort_experts";
    let random = run.data(NAME).numbers(2 * 211, EXPERTS);
    for (about, ids) in [("random", random), ("one expert", vec![3; 300]), ("one product", vec![0])] {
        let (bounds, sources, targets) = sorted(&ids);
        let (own_bounds, own_sources) = (run.poisoned(bounds.len())?, run.poisoned(sources.len())?);
        let own_targets: Output<i32> = run.poisoned(targets.len())?;
        let on_device = run.queue.upload(&ids)?;
        // The guard behind the bounds is no bound.
        let mut found =
            Sorted { bounds: run.queue.room(bounds.len())?, sources: own_sources.buffer, targets: own_targets.buffer };
        run.queue.fill(&mut found.bounds, super::POISON)?;
        run.queue.sort_experts(&on_device, USED, &mut found)?;
        let own_bounds = Output { buffer: found.bounds, ..own_bounds };
        run.exact((NAME, about, "bounds"), &bounds, &own_bounds, |value| value)?;
        run.exact(
            (NAME, about, "sources"),
            &sources,
            &Output { buffer: found.sources, len: sources.len() },
            |value| value,
        )?;
        run.exact(
            (NAME, about, "targets"),
            &targets,
            &Output { buffer: found.targets, len: targets.len() },
            |value| value,
        )?;
    }
    Ok(())
}

/// Matrices of all experts, and tokens.
fn subject<R: Reference>(run: &Run<'_>, name: &str, tokens: usize) -> (Vec<Tile>, Vec<R::Acts>, Vec<i32>) {
    let mut data = run.data(name);
    let tiles = (0..EXPERTS).flat_map(|_| matrix(&mut data, ONE)).collect();
    let acts = acts::<R>(&data.values(Kind::Normal, tokens, ONE.k()));
    let ids = data.numbers(tokens * USED, EXPERTS);
    (tiles, acts, ids)
}

fn expected<R: Reference>(tiles: &[Tile], acts: &[R::Acts], ids: &[i32]) -> Vec<Product> {
    let of = |(product_at, &id): (usize, &i32)| {
        let own = &tiles[id as usize * ONE.tiles()..][..ONE.tiles()];
        let token = &acts[product_at / USED * ONE.chunks..][..ONE.chunks];
        (0..ONE.rows).map(|row| product(own, ONE.chunks, row, token)).collect::<Vec<_>>()
    };
    ids.iter().enumerate().flat_map(of).collect()
}

fn single<R: Reference>(run: &mut Run<'_>) -> Result<(), DeviceError> {
    let name = format!("tcq4_mul_vec_id_{}", R::Acts::SUFFIX);
    if !run.wants(&[&name]) {
        return Ok(());
    }
    let tokens = TOKENS[0];
    let (tiles, acts, ids) = subject::<R>(run, &name, tokens);
    let (tiles_on_device, acts_on_device) = (run.queue.upload(&tiles)?, run.queue.upload(&acts)?);
    let ids_on_device = run.queue.upload(&ids)?;
    let mut y = room(run, ids.len(), (ONE.rows, STRIDE))?;
    let inputs = (&tiles_on_device, &acts_on_device, &ids_on_device);
    run.queue.mul_vec_id(inputs, &mut y.buffer, (Shape { tokens, ..ONE }, USED), STRIDE)?;
    let about = format!("{tokens} tokens, {USED} of {EXPERTS} experts");
    compare(run, (&name, &about), &expected::<R>(&tiles, &acts, &ids), &y, (ONE.rows, STRIDE))
}

fn many<R: Reference>(run: &mut Run<'_>) -> Result<(), DeviceError> {
    let name = format!("tcq4_mul_mat_id_{}", R::Acts::SUFFIX);
    if !run.wants(&[&name]) {
        return Ok(());
    }
    for tokens in TOKENS {
        let (tiles, acts, ids) = subject::<R>(run, &name, tokens);
        let (tiles_on_device, acts_on_device) = (run.queue.upload(&tiles)?, run.queue.upload(&acts)?);
        let (bounds, sources, targets) = sorted(&ids);
        let most = bounds.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
        let on_device = Sorted {
            bounds: run.queue.upload(&bounds)?,
            sources: run.queue.upload(&sources)?,
            targets: run.queue.upload(&targets)?,
        };
        let mut y = room(run, ids.len(), (ONE.rows, STRIDE))?;
        let shape = Shape { tokens, ..ONE };
        run.queue.mul_mat_id((&tiles_on_device, &acts_on_device), &on_device, &mut y.buffer, (shape, most), STRIDE)?;
        let about = format!("{tokens} tokens, {USED} of {EXPERTS} experts");
        compare(run, (&name, &about), &expected::<R>(&tiles, &acts, &ids), &y, (ONE.rows, STRIDE))?;
    }
    Ok(())
}
