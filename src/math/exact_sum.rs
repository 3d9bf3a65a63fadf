//! Sums whose bits depend neither on the order of the additions nor on how they are divided among machines.
//!
//! Every addend is cut to a multiple of 2⁻⁶⁴ and added as an integer of 128 bits, and additions of integers are associative. A float would need twice
//! the bits to hold every f32 exactly; the inputs of a model need neither: what is cut off is below 6e-20, and sums reach 9e18.

use bytemuck::{Pod, Zeroable};

/// The power of two that sums count.
const UNIT: i32 = -64;
/// Fraction bits of an f64, and the bias of its exponent with them.
const FRACTION: u32 = 52;
const BIAS: i32 = 1023 + FRACTION as i32;
/// Addends are below 2⁶², so that their units fit.
const LIMIT: f64 = (1u64 << 62) as f64;
/// What stands for a sum that is not finite or too large; it stays so.
const LOST: i128 = i128::MAX;

/// A sum of numbers, or the knowledge that it is beyond what can be summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct ExactSum(i128);

impl ExactSum {
    /// Adds a number, cut toward zero to a multiple of 2⁻⁶⁴.
    #[inline]
    pub fn add(&mut self, value: f64) {
        self.join(if value.abs() < LIMIT { units(value) } else { LOST });
    }

    /// Adds another sum.
    #[inline]
    pub fn merge(&mut self, other: Self) {
        self.join(other.0);
    }

    fn join(&mut self, units: i128) {
        let lost = self.0 == LOST || units == LOST;
        self.0 = if lost { LOST } else { self.0.checked_add(units).unwrap_or(LOST) };
    }

    /// Whether all addends were finite, and the sums of reasonable size.
    pub fn is_finite(self) -> bool {
        self.0 != LOST
    }

    /// The sum, rounded to the nearest f64; NaN if it is lost.
    pub fn to_f64(self) -> f64 {
        if self.is_finite() { self.0 as f64 * 2f64.powi(UNIT) } else { f64::NAN }
    }
}

/// The number of units in a finite number below [`LIMIT`].
fn units(value: f64) -> i128 {
    let bits = value.to_bits();
    let biased = (bits >> FRACTION & 0x7ff) as i32;
    let mantissa = bits & ((1 << FRACTION) - 1);
    // Numbers of exponent 0 lack the leading one; they are far below a unit anyway.
    let mantissa = i128::from(if biased == 0 { mantissa } else { mantissa | 1 << FRACTION });
    let shift = biased - BIAS - UNIT;
    let magnitude = if shift >= 0 { mantissa << shift } else { mantissa >> shift.unsigned_abs().min(127) };
    if value < 0.0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        for &value in values {
            sum.add(value);
        }
        sum
    }

    #[test]
    fn worked_numbers() {
        assert_eq!(sum(&[1.0]).0, 1 << 64);
        assert_eq!(sum(&[-0.75]).0, -3 << 62);
        assert_eq!(sum(&[2f64.powi(-64), 1.5 * 2f64.powi(-64), -1.5 * 2f64.powi(-64)]).0, 1, "cut toward zero");
        assert_eq!(sum(&[f64::MIN_POSITIVE, -f64::MIN_POSITIVE / 4.0, 0.0]).0, 0);
        // f64 would lose the one.
        assert_eq!(sum(&[1e18, 1.0, -1e18]).to_f64(), 1.0);
        assert_eq!(sum(&[4e18]).to_f64(), 4e18);
    }

    #[test]
    fn what_cannot_be_summed_stays_lost() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e18] {
            let mut lost = sum(&[1.0, bad, -3.0]);
            assert!(!lost.is_finite() && lost.to_f64().is_nan(), "{bad}");
            lost.merge(sum(&[-4e18, -4e18]));
            assert!(!lost.is_finite());
        }
        assert!(!sum(&[4e18, 4e18, 4e18]).is_finite(), "too large a sum");
    }

    proptest! {
        #[test]
        fn neither_order_nor_division_changes_a_bit(
            mut values in prop::collection::vec(prop_oneof![-1e9f64..1e9, -1e-6f64..1e-6, Just(0.0)], 0..200),
            cut in any::<prop::sample::Index>(),
        ) {
            let forward = sum(&values);
            let cut = if values.is_empty() { 0 } else { cut.index(values.len()) };
            let mut parts = sum(&values[cut..]);
            parts.merge(sum(&values[..cut]));
            prop_assert_eq!(parts, forward);
            let naive: f64 = values.iter().sum();
            let magnitude: f64 = values.iter().map(|value| value.abs()).sum();
            prop_assert!((forward.to_f64() - naive).abs() <= 1e-12 * magnitude + 1e-17);
            values.reverse();
            prop_assert_eq!(sum(&values), forward);
        }
    }
}
