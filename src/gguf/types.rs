//! ggml's tensor types as plain numbers with a table of names and sizes. Unknown ids are values like any other: only their size is unknown.

use std::fmt;
use std::str::FromStr;

use super::metadata::Metadata;
use crate::tcq;

/// A ggml tensor type, by its id in the file.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GgmlType(pub u32);

/// How a type stores a row: `block` values in `bytes` bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TypeLayout {
    /// Values in a block.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

/// Declares the constants and the table from one list, so that they cannot differ.
macro_rules! types {
    ($($(#[$doc:meta])* $constant:ident = $id:expr, $name:literal, $block:expr, $bytes:expr;)*) => {
        #[allow(missing_docs, reason = "the names are ggml's")]
        impl GgmlType {
            $($(#[$doc])* pub const $constant: GgmlType = GgmlType($id);)*
        }
        /// Every type of known size: id, ggml's name, layout.
        const TABLE: &[(GgmlType, &str, TypeLayout)] = &[
            $((GgmlType::$constant, $name, TypeLayout { block: $block, bytes: $bytes }),)*
        ];
    };
}

// Sizes as the static_asserts of ggml-common.h give them, written as there: scales first, then codes.
types! {
    F32 = 0, "f32", 1, 4;
    F16 = 1, "f16", 1, 2;
    Q4_0 = 2, "q4_0", 32, 2 + 16;
    Q4_1 = 3, "q4_1", 32, 4 + 16;
    Q5_0 = 6, "q5_0", 32, 2 + 4 + 16;
    Q5_1 = 7, "q5_1", 32, 4 + 4 + 16;
    Q8_0 = 8, "q8_0", 32, 2 + 32;
    Q8_1 = 9, "q8_1", 32, 4 + 32;
    Q2_K = 10, "q2_K", 256, 4 + 16 + 64;
    Q3_K = 11, "q3_K", 256, 2 + 64 + 32 + 12;
    Q4_K = 12, "q4_K", 256, 4 + 12 + 128;
    Q5_K = 13, "q5_K", 256, 4 + 12 + 128 + 32;
    Q6_K = 14, "q6_K", 256, 2 + 16 + 192;
    Q8_K = 15, "q8_K", 256, 4 + 256 + 32;
    IQ2_XXS = 16, "iq2_xxs", 256, 2 + 64;
    IQ2_XS = 17, "iq2_xs", 256, 2 + 64 + 8;
    IQ3_XXS = 18, "iq3_xxs", 256, 2 + 96;
    IQ1_S = 19, "iq1_s", 256, 2 + 32 + 16;
    IQ4_NL = 20, "iq4_nl", 32, 2 + 16;
    IQ3_S = 21, "iq3_s", 256, 2 + 104 + 4;
    IQ2_S = 22, "iq2_s", 256, 2 + 64 + 16;
    IQ4_XS = 23, "iq4_xs", 256, 2 + 2 + 4 + 128;
    I8 = 24, "i8", 1, 1;
    I16 = 25, "i16", 1, 2;
    I32 = 26, "i32", 1, 4;
    I64 = 27, "i64", 1, 8;
    F64 = 28, "f64", 1, 8;
    IQ1_M = 29, "iq1_m", 256, 32 + 16 + 8;
    BF16 = 30, "bf16", 1, 2;
    TQ1_0 = 34, "tq1_0", 256, 2 + 4 + 48;
    TQ2_0 = 35, "tq2_0", 256, 2 + 64;
    MXFP4 = 39, "mxfp4", 32, 1 + 16;
    NVFP4 = 40, "nvfp4", 64, 4 + 32;
    Q1_0 = 41, "q1_0", 128, 2 + 16;
    Q2_0 = 42, "q2_0", 64, 2 + 16;
    /// Ours: tiles of 8 rows and 256 columns in 1184 bytes.
    TCQ4_K32 = tcq::GGML_TYPE_ID, "tcq4_k32", tcq::CHUNK as u64, tcq::ROW_BYTES as u64;
}

impl GgmlType {
    /// The id under which the llama.cpp-rrs fork writes TCQ4_K32; upstream uses it for [`GgmlType::Q2_0`]. See [`Dialect`].
    pub const FORK_TCQ4_K32: GgmlType = GgmlType(tcq::FORK_GGML_TYPE_ID);

    /// Gives the block layout as upstream (and this crate) use the id; `None` for an unknown id.
    pub fn layout(self) -> Option<TypeLayout> {
        TABLE.iter().find(|row| row.0 == self).map(|row| row.2)
    }

    /// Gives the bytes of a row of `columns` values; `None` for an unknown id, for a ragged row and on overflow.
    pub fn row_bytes(self, columns: u64) -> Option<u64> {
        self.layout()?.row_bytes(columns)
    }

    /// Tells whether values of this type are plain floats that this crate reads by itself.
    pub fn is_float(self) -> bool {
        matches!(self, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
    }

    /// Gives ggml's name of the type; `None` for an unknown id.
    pub fn name(self) -> Option<&'static str> {
        TABLE.iter().find(|row| row.0 == self).map(|row| row.1)
    }

    /// Lists every type of known size, in the order of the ids.
    pub fn known() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|row| row.0)
    }
}

impl TypeLayout {
    /// Gives the bytes of a row of `columns` values; `None` for a ragged row and on overflow.
    pub fn row_bytes(self, columns: u64) -> Option<u64> {
        if !columns.is_multiple_of(self.block) {
            return None;
        }
        (columns / self.block).checked_mul(self.bytes)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("type {}", self.0)),
        }
    }
}

/// A type name that is not in the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown tensor type `{0}`")]
pub struct UnknownTypeName(pub String);

impl FromStr for GgmlType {
    type Err = UnknownTypeName;

    /// Finds a type by its name, in upper or lower case.
    fn from_str(name: &str) -> Result<GgmlType, UnknownTypeName> {
        let found = TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name));
        found.map(|row| row.0).ok_or_else(|| UnknownTypeName(name.to_owned()))
    }
}

/// Whose meaning id 42 has in a file: the two differ in size.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// Upstream's: id 42 is Q2_0.
    Upstream,
    /// The llama.cpp-rrs fork's: id 42 is TCQ4_K32.
    Fork,
}

impl Dialect {
    /// Guesses from the keys: a file with `tcq4.*` keys is the fork's. A reader also checks the guess against the tensors' offsets.
    pub fn of(metadata: &Metadata) -> Dialect {
        if metadata.keys().any(|key| key.starts_with("tcq4.")) { Dialect::Fork } else { Dialect::Upstream }
    }

    /// Gives the block layout of `ty` in this dialect.
    pub fn layout(self, ty: GgmlType) -> Option<TypeLayout> {
        match self {
            Dialect::Fork if ty == GgmlType::FORK_TCQ4_K32 => GgmlType::TCQ4_K32.layout(),
            _ => ty.layout(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_free_of_duplicates() {
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn names_are_read_back_in_any_case() {
        for ty in GgmlType::known() {
            assert_eq!(ty.to_string().to_uppercase().parse(), Ok(ty));
        }
        assert_eq!("q4_x".parse::<GgmlType>(), Err(UnknownTypeName("q4_x".into())));
    }

    #[test]
    fn unknown_ids_are_values_without_size() {
        let ty = GgmlType(200);
        assert_eq!((ty.layout(), ty.row_bytes(256), ty.to_string().as_str()), (None, None, "type 200"));
        assert_eq!(GgmlType(31).layout(), None, "a type that ggml removed");
    }

    #[test]
    fn rows_are_counted_in_whole_blocks() {
        assert_eq!(GgmlType::TCQ4_K32.row_bytes(512), Some(296));
        assert_eq!(GgmlType::Q6_K.row_bytes(255), None);
        assert_eq!(GgmlType::F64.row_bytes(u64::MAX), None);
        assert_eq!(Dialect::Fork.layout(GgmlType::Q2_0), GgmlType::TCQ4_K32.layout());
    }
}
