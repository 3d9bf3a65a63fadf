//! The orthonormal Walsh-Hadamard transform of 256 values, in natural (Sylvester) order: the scalar oracle of every faster one.
//!
//! One length only, f32 only; the order of the additions is part of the contract, since file bytes depend on it.

/// How many values one transform takes.
pub const FWHT_LENGTH: usize = 256;

/// Makes the transform orthonormal: `1 / sqrt(256)`, exact in binary.
pub const FWHT_NORM: f32 = 1.0 / 16.0;

/// Transforms 256 values in place: sums and differences of the pairs `(j, j + h)` for h = 1, 2, 4 .. 128, then a factor of 1/16.
///
/// It is its own inverse up to rounding.
pub fn fwht256(values: &mut [f32; FWHT_LENGTH]) {
    let mut h = 1;
    while h < FWHT_LENGTH {
        for start in (0..FWHT_LENGTH).step_by(2 * h) {
            for j in start..start + h {
                let (a, b) = (values[j], values[j + h]);
                values[j] = a + b;
                values[j + h] = a - b;
            }
        }
        h *= 2;
    }
    for value in values {
        *value *= FWHT_NORM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impulse_becomes_the_signs_of_sylvester() {
        for position in [0, 1, 37, 255] {
            let mut values = [0.0; FWHT_LENGTH];
            values[position] = 1.0;
            fwht256(&mut values);
            for (j, value) in values.iter().enumerate() {
                let sign = if (j & position).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                assert_eq!(*value, sign / 16.0);
            }
        }
    }

    #[test]
    fn twice_is_the_identity() {
        let original: [f32; FWHT_LENGTH] = std::array::from_fn(|j| ((j * 7919) % 1013) as f32 / 500.0 - 1.0);
        let mut values = original;
        fwht256(&mut values);
        fwht256(&mut values);
        for (a, b) in original.iter().zip(&values) {
            assert!((a - b).abs() <= 8.0 * f32::EPSILON, "{a} became {b}");
        }
    }
}
