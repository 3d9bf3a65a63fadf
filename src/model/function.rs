//! The function between the two halves of a feed-forward network.
//!
//! Which one a model has is not in its file; it follows from the architecture, as llama.cpp builds it.

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// x·σ(x).
    Silu,
    /// GELU, in the tanh form that ggml computes.
    Gelu,
    /// max(x, 0)².
    ReluSquared,
    /// Not known.
    Unknown,
}

impl Function {
    /// The function inside the feed-forward networks of an architecture.
    pub fn of(architecture: &str) -> Self {
        match architecture {
            "gemma" | "gemma2" | "gemma3" | "gemma-embedding" | "phi2" | "starcoder2" => Function::Gelu,
            "arcee" => Function::ReluSquared,
            // gpt-oss clamps both factors and scales the gate by 1.702.
            "gpt-oss" => Function::Unknown,
            name if super::mappings::family(name).is_some() => Function::Silu,
            _ => Function::Unknown,
        }
    }

    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Function::Silu => "silu",
            Function::Gelu => "gelu",
            Function::ReluSquared => "relu2",
            Function::Unknown => "unknown",
        }
    }

    /// f(z); none if f is not known.
    pub fn apply(self, z: f32) -> Option<f32> {
        let x = f64::from(z);
        let y = match self {
            Function::Silu => x / (1.0 + (-x).exp()),
            Function::Gelu => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh()),
            Function::ReluSquared => x.max(0.0).powi(2),
            Function::Unknown => return None,
        };
        Some(y as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions() {
        assert_eq!(Function::of("llama"), Function::Silu);
        assert_eq!(Function::of("gemma2"), Function::Gelu);
        assert_eq!(Function::of("mamba"), Function::Unknown);
        assert!((Function::Silu.apply(1.0).unwrap() - 0.731_058_6).abs() < 1e-6);
        assert!((Function::Gelu.apply(1.0).unwrap() - 0.841_192).abs() < 1e-6);
        assert_eq!(Function::ReluSquared.apply(-2.0), Some(0.0));
        assert_eq!(Function::ReluSquared.apply(3.0), Some(9.0));
        assert_eq!(Function::Unknown.apply(1.0), None);
    }
}
