//! What the metadata of a model say about its architecture.
//!
//! Nothing here fails: an architecture without attention heads, or one that this crate has never heard of, is a value like any other, and what
//! needs a number that is not there says so where it needs it.

use crate::gguf::Metadata;

/// The shape of the attention of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: u64,
    /// Key and value heads.
    pub kv: u64,
    /// Channels of a key head.
    pub key_length: u64,
    /// Channels of a value head.
    pub value_length: u64,
}

/// The architecture of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arch {
    /// `general.architecture`; empty if the file does not say.
    pub name: String,
    /// Blocks (layers).
    pub blocks: u64,
    /// Channels of the residual stream.
    pub embedding: u64,
    /// Experts of a layer; 0 for dense models.
    pub experts: u64,
    /// Query heads of each block; one number stands for all.
    pub heads: Vec<u64>,
    /// Key and value heads of each block; one number stands for all, none for "as many as query heads".
    pub kv_heads: Vec<u64>,
    /// Channels of a key head, if the file says.
    pub key_length: Option<u64>,
    /// Channels of a value head, if the file says.
    pub value_length: Option<u64>,
    /// Whether q, k and v are clamped: then v is no linear function any more.
    pub clamps_values: bool,
    /// Whether the up branch of the feed-forward networks is clamped.
    pub clamps_up: bool,
}

impl Arch {
    /// Reads the architecture out of a model's metadata.
    pub fn from_metadata(metadata: &Metadata) -> Self {
        let name = metadata.get_str("general.architecture").unwrap_or_default().to_string();
        let key = |suffix: &str| format!("{name}.{suffix}");
        let number = |suffix: &str| metadata.get_u64(&key(suffix));
        let numbers = |suffix: &str| number(suffix).map_or_else(|| array(metadata, &key(suffix)), |one| vec![one]);
        let positive =
            |suffix: &str| metadata.get_f64(&key(suffix)).map_or(metadata.contains(&key(suffix)), |limit| limit > 0.0);
        Self {
            blocks: number("block_count").unwrap_or(0),
            embedding: number("embedding_length").unwrap_or(0),
            experts: number("expert_count").unwrap_or(0),
            heads: numbers("attention.head_count"),
            kv_heads: numbers("attention.head_count_kv"),
            key_length: number("attention.key_length"),
            value_length: number("attention.value_length"),
            clamps_values: positive("attention.clamp_kqv"),
            clamps_up: positive("swiglu_clamp_exp") || positive("swiglu_clamp_shexp"),
            name,
        }
    }

    /// The attention heads of a block, if the metadata say enough about them.
    pub fn heads(&self, block: u32) -> Option<Heads> {
        let of = |list: &[u64]| if list.len() == 1 { Some(list[0]) } else { list.get(block as usize).copied() };
        let query = of(&self.heads).filter(|&n| n > 0)?;
        let kv = if self.kv_heads.is_empty() { query } else { of(&self.kv_heads).filter(|&n| n > 0)? };
        let shared = (self.embedding / query > 0).then_some(self.embedding / query);
        let (key_length, value_length) = (self.key_length.or(shared)?, self.value_length.or(shared)?);
        (query % kv == 0).then_some(Heads { query, kv, key_length, value_length })
    }
}

/// The non-negative integers of an array, or nothing.
fn array(metadata: &Metadata, key: &str) -> Vec<u64> {
    let values = metadata.get_i32_array(key).unwrap_or_default();
    values.iter().map(|&value| u64::try_from(value).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_from_one_number_or_from_one_a_block() {
        let mut arch = Arch { embedding: 512, heads: vec![8], ..Arch::default() };
        assert_eq!(arch.heads(3), Some(Heads { query: 8, kv: 8, key_length: 64, value_length: 64 }));
        arch.kv_heads = vec![2, 4, 0];
        arch.value_length = Some(32);
        assert_eq!(arch.heads(1), Some(Heads { query: 8, kv: 4, key_length: 64, value_length: 32 }));
        assert_eq!(arch.heads(2), None, "a block without attention");
        assert_eq!(arch.heads(3), None, "the array is too short");
        arch.kv_heads = vec![3];
        assert_eq!(arch.heads(0), None, "8 heads are not shared by 3");
    }
}
