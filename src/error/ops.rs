//! What a calibration operation refuses.

use super::Class;

/// Operands of a calibration operation that do not fit together, or hold nothing that can be computed with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpsError {
    /// The values of a matrix are not rows times columns.
    #[error("a matrix of {rows} x {columns} has {} values, found {found}", (*rows as u128) * (*columns as u128))]
    Size {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// The number of values.
        found: usize,
    },
    /// Two operands have another number of columns.
    #[error("{what} has {found} columns, expected {expected}")]
    Columns {
        /// The operand.
        what: &'static str,
        /// What the other operand has.
        expected: usize,
        /// What this one has.
        found: usize,
    },
    /// A square matrix was expected.
    #[error("{what} is {rows} x {columns}, expected a square matrix")]
    NotSquare {
        /// The operand.
        what: &'static str,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
    },
    /// There are no rows to take a mean or a maximum over.
    #[error("{what} has no rows")]
    NoRows {
        /// The operand.
        what: &'static str,
    },
    /// NaN or infinity.
    #[error("{what} has the value {value} in row {row}, column {column}")]
    NotFinite {
        /// The operand.
        what: &'static str,
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// What is there.
        value: f32,
    },
    /// Groups that do not divide the columns.
    #[error("groups of {group} columns do not divide {columns} columns")]
    Group {
        /// Columns of a group.
        group: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A number of bits without a grid.
    #[error("{bits} bits a weight, expected 2 to 8")]
    Bits {
        /// What was asked for.
        bits: u32,
    },
    /// A damping that is negative or not a number.
    #[error("a damping of {share}, expected a finite share of 0 or more")]
    DampingShare {
        /// What was asked for.
        share: f64,
    },
    /// A matrix that is not the upper Cholesky factor of anything.
    #[error("the factor has {value} in row {row}, column {column}: expected zeros below a positive diagonal")]
    NotUpper {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// What is there.
        value: f32,
    },
    /// A second moment that no damping makes positive definite.
    #[error(
        "the matrix is not positive definite at column {column}, even with {damping} times its mean diagonal added"
    )]
    NotPositiveDefinite {
        /// Where the factorisation stopped.
        column: usize,
        /// The largest damping tried, as a share of the mean of the diagonal.
        damping: f64,
    },
}

impl OpsError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the caller can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            OpsError::NotUpper { .. } => "pass U with H⁻¹ = UᵀU, as `UpperFactor::of_hessian` makes it, not H⁻¹ itself",
            OpsError::NotPositiveDefinite { .. } => "a sum of outer products is; check that the matrix is one",
            OpsError::NotFinite { .. } => "the model gave NaN or infinity on this text, or sums overflowed",
            _ => return None,
        };
        Some(text.into())
    }
}
