//! The inner loop of everything that multiplies matrices here: sums of products in a fixed order, so that results are the same bits on every
//! processor and for any number of threads, at the speed of vector registers.

/// Sums that lie side by side.
pub const LANES: usize = 32;
/// Rows of sums that are formed together.
pub const TOGETHER: usize = 4;

/// One number for each of [`LANES`] rows or columns.
pub type Lane = [f32; LANES];

/// `sums[k] += factors[i][k] * values[i]` for all i, one after the other.
pub fn add_products(sums: &mut [Lane; TOGETHER], factors: &[[f32; TOGETHER]], values: &[Lane]) {
    // Named sums stay in registers; an array of them does not, which costs a factor of ten.
    let [mut a, mut b, mut c, mut d] = *sums;
    for (factors, values) in factors.iter().zip(values) {
        for lane in 0..LANES {
            a[lane] += factors[0] * values[lane];
            b[lane] += factors[1] * values[lane];
            c[lane] += factors[2] * values[lane];
            d[lane] += factors[3] * values[lane];
        }
    }
    *sums = [a, b, c, d];
}

/// `into += factor * values`.
#[inline]
pub fn add_scaled(into: &mut Lane, factor: f32, values: &Lane) {
    for lane in 0..LANES {
        into[lane] += factor * values[lane];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_in_order() {
        let factors: Vec<[f32; 4]> = (0..9).map(|i| [i as f32, 1.0, -0.5, i as f32 * 0.1]).collect();
        let values: Vec<Lane> = (0..9).map(|i| std::array::from_fn(|lane| (i * 31 + lane) as f32 / 7.0)).collect();
        let mut sums = [[0.25; LANES]; TOGETHER];
        add_products(&mut sums, &factors, &values);
        for k in 0..TOGETHER {
            for lane in 0..LANES {
                let sum = factors.iter().zip(&values).fold(0.25, |sum, (f, v)| sum + f[k] * v[lane]);
                assert_eq!(sums[k][lane], sum);
            }
        }
    }
}
