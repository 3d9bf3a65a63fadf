//! How a runtime rounds rotated activations before it multiplies, as the objective sees it.
//!
//! Emulates values, not kernels: codes times scale in f32, the scale itself in f32.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The activation path of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Not rounded: only the weights' error counts.
    #[default]
    None,
    /// INT8, one scale max/127 for 32 values.
    Int8,
    /// INT4, one scale for 256 values with the sign of the extreme value, which maps to -8, times 0.9.
    Int4,
    /// INT4, the same for 32 values, not clipped.
    Int4Group32,
    /// INT4 as the fork rounds: one scale max/7 for 256 values, codes in -7..=7.
    Int4Fork,
}

impl Activations {
    /// Every path.
    pub const ALL: [Activations; 5] =
        [Activations::None, Activations::Int8, Activations::Int4, Activations::Int4Group32, Activations::Int4Fork];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Activations::None => "none",
            Activations::Int8 => "int8",
            Activations::Int4 => "int4",
            Activations::Int4Group32 => "int4-group32",
            Activations::Int4Fork => "int4-fork",
        }
    }

    /// Rounds rotated values, 256 (a chunk) at a time; a shorter rest is rounded with what it has.
    pub fn round(self, values: &mut [f32]) {
        match self {
            Activations::None => {}
            Activations::Int8 => values.chunks_mut(32).for_each(|group| symmetric(group, 127.0)),
            Activations::Int4Fork => values.chunks_mut(256).for_each(|chunk| symmetric(chunk, 7.0)),
            Activations::Int4 => values.chunks_mut(256).for_each(|chunk| signed(chunk, 0.9)),
            Activations::Int4Group32 => values.chunks_mut(32).for_each(|group| signed(group, 1.0)),
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Activations::ALL.into_iter().find(|path| path.name() == text);
        found.ok_or_else(|| format!("`{text}` is not an activation path: none, int8, int4, int4-group32, int4-fork"))
    }
}

/// Below this a group counts as zero (the fork's constant).
const TINY: f32 = 1e-10;

/// Symmetric codes in `-top..=top`, half to even.
fn symmetric(values: &mut [f32], top: f32) {
    let max = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let max = if max < TINY { 1.0 } else { max };
    let (inverse, step) = (top / max, max / top);
    for value in values {
        *value = (*value * inverse).round_ties_even().clamp(-top, top) * step;
    }
}

/// Codes in `-8..=7`; the value of largest magnitude (the first of equals) gets `-8 / clip`, so the scale has the opposite sign.
fn signed(values: &mut [f32], clip: f32) {
    let extreme = values.iter().fold(0.0f32, |extreme, &v| if v.abs() > extreme.abs() { v } else { extreme });
    let step = if extreme.abs() < TINY { 1.0 } else { extreme * clip / -8.0 };
    let inverse = 1.0 / step;
    for value in values {
        *value = (*value * inverse).round_ties_even().clamp(-8.0, 7.0) * step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forks_rule() {
        let mut values = [7.0, -3.4, 0.5, 1.5, -14.0];
        Activations::Int4Fork.round(&mut values);
        assert_eq!(values, [8.0, -4.0, 0.0, 2.0, -14.0]); // codes 3.5 -> 4, -1.7 -> -2, .25 -> 0, .75 -> 1, -7
    }

    #[test]
    fn the_extreme_value_decides_the_sign() {
        let mut values = [8.0, -7.0, 1.0, 0.4];
        Activations::Int4Group32.round(&mut values);
        assert_eq!(values, [8.0, -7.0, 1.0, 0.0]);
        let mut clipped = [8.0, -7.0, 1.0, 0.4];
        Activations::Int4.round(&mut clipped);
        assert!((clipped[0] - 7.2).abs() < 1e-6 && (clipped[1] + 6.3).abs() < 1e-6, "{clipped:?}");
    }

    #[test]
    fn zero_stays_zero_and_int8_is_close() {
        for path in Activations::ALL {
            let mut zeros = [0.0f32; 256];
            path.round(&mut zeros);
            assert_eq!(zeros, [0.0; 256], "{path}");
        }
        let given: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let mut rounded = given.clone();
        Activations::Int8.round(&mut rounded);
        assert!(given.iter().zip(&rounded).all(|(a, b)| (a - b).abs() <= 50.0 / 7.0 / 254.0 + 1e-6));
    }
}
