//! Dot products of many rows with many rows, in a fixed order of additions.

/// Lanes of a dot product: sums do not depend on the machine's vector length.
const LANES: usize = 16;
/// Rows of `b` that share the loads of a row of `a`.
const TOGETHER: usize = 4;

/// All dot products of the rows of `a` with those of `b`, row after row of `a`; without fused multiply-add.
pub fn product(a: &[f32], b: &[f32], columns: usize) -> Vec<f32> {
    if columns == 0 {
        return Vec::new();
    }
    let width = b.len() / columns;
    let mut out = vec![0.0; a.len() / columns * width];
    // Few rows of b stay in the cache while all rows of a pass by.
    for first in (0..width).step_by(TOGETHER) {
        let rows = &b[first * columns..(first + TOGETHER).min(width) * columns];
        for (x, out) in a.chunks_exact(columns).zip(out.chunks_exact_mut(width)) {
            let out = &mut out[first..];
            if let Some(block) = four(rows, columns) {
                out[..TOGETHER].copy_from_slice(&dots(x, block));
            } else {
                rows.chunks_exact(columns).zip(out).for_each(|(w, out)| *out = dots(x, [w; 1])[0]);
            }
        }
    }
    out
}

fn four(rows: &[f32], columns: usize) -> Option<[&[f32]; TOGETHER]> {
    let mut rows = rows.chunks_exact(columns);
    Some([rows.next()?, rows.next()?, rows.next()?, rows.next()?])
}

/// Dot products of one row with some.
fn dots<const N: usize>(x: &[f32], rows: [&[f32]; N]) -> [f32; N] {
    let blocks = rows.map(|row| row.as_chunks::<LANES>());
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut sums = [[0.0f32; LANES]; N];
    for (i, x) in whole.iter().enumerate() {
        for n in 0..N {
            let w = &blocks[n].0[i];
            for lane in 0..LANES {
                sums[n][lane] += x[lane] * w[lane];
            }
        }
    }
    std::array::from_fn(|n| {
        let tail: f32 = rest.iter().zip(blocks[n].1).map(|(x, w)| x * w).sum();
        sums[n].iter().sum::<f32>() + tail
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_definition(columns in 1usize..70, rows in 0usize..4, others in 0usize..11, seed in any::<u32>()) {
            let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) as f32 / 3e4 - 1.0;
            let a: Vec<f32> = (0..rows * columns).map(value).collect();
            let b: Vec<f32> = (0..others * columns).map(|i| value(i + 1000)).collect();
            let found = product(&a, &b, columns);
            prop_assert_eq!(found.len(), rows * others);
            for (i, found) in found.iter().enumerate() {
                let (x, w) = (&a[i / others * columns..][..columns], &b[i % others * columns..][..columns]);
                let naive: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                prop_assert!((f64::from(*found) - naive).abs() < 1e-4);
            }
        }
    }
}
