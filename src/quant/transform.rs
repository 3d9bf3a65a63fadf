//! What happens to one tensor before it is encoded: scales and orders of its rows and columns.
//!
//! Scales are indexed by the source's rows and columns; orders are applied after them. A tensor of one dimension (gain, bias) is one row.

use crate::math::Permutation;

/// The change of one tensor: `new[i][j] = row_scale[r]·column_scale[c]·old[r][c]` with `r = row_order[i]`, `c = columns[j]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transform {
    /// Factors of the source's columns.
    pub column_scale: Option<Vec<f32>>,
    /// Factors of the source's rows, all matrices of a stack one behind the other.
    pub row_scale: Option<Vec<f32>>,
    /// The source column of each new column.
    pub columns: Option<Permutation>,
    /// The source row of each new row, over all matrices of a stack.
    pub row_order: Option<Permutation>,
    /// Whether `columns` is undone by the runtime (recorded as `tcq4.<tensor>.perm`) rather than folded into the neighbours. Such an order
    /// belongs to the TCQ4 tensor only: if the tensor is not quantised to TCQ4 after all, use [`Transform::without_runtime`].
    pub runtime_perm: bool,
}

impl Transform {
    /// Whether it changes nothing.
    pub fn is_identity(&self) -> bool {
        self.column_scale.is_none() && self.row_scale.is_none() && self.columns.is_none() && self.row_order.is_none()
    }

    /// The order that the runtime has to apply to the activations, if any.
    pub fn runtime_order(&self) -> Option<&Permutation> {
        self.columns.as_ref().filter(|_| self.runtime_perm)
    }

    /// The same without what only the TCQ4 runtime can undo.
    #[must_use]
    pub fn without_runtime(&self) -> Self {
        let mut other = self.clone();
        if other.runtime_perm {
            other.columns = None;
            other.runtime_perm = false;
        }
        other
    }

    /// The source row of new row `row`.
    ///
    /// # Panics
    /// If there is a row order and `row` is outside it.
    pub fn source_row(&self, row: usize) -> usize {
        self.row_order.as_ref().map_or(row, |order| order.indices()[row] as usize)
    }

    /// Multiplies the columns' factors by `factors`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scale_columns(&mut self, factors: impl ExactSizeIterator<Item = f32>) {
        merge(&mut self.column_scale, factors);
    }

    /// Multiplies the rows' factors by `factors`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn scale_rows(&mut self, factors: impl ExactSizeIterator<Item = f32>) {
        merge(&mut self.row_scale, factors);
    }

    /// Fills `out` with the new rows `first..first + out.len() / columns`. `read(row, into)` must fill `into` with consecutive source rows from
    /// `row` on; without a row order it is called once.
    ///
    /// # Panics
    /// If `out` is not a whole number of rows, or the transform has another shape than the tensor.
    pub fn apply<E>(
        &self,
        columns: usize,
        first: usize,
        out: &mut [f32],
        mut read: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(columns > 0 && out.len().is_multiple_of(columns));
        if self.row_order.is_none() {
            read(first, out)?;
        } else {
            for (offset, row) in out.chunks_exact_mut(columns).enumerate() {
                read(self.source_row(first + offset), row)?;
            }
        }
        let mut gathered = vec![0.0; if self.columns.is_some() { columns } else { 0 }];
        for (offset, row) in out.chunks_exact_mut(columns).enumerate() {
            self.change_row(self.source_row(first + offset), row, &mut gathered);
        }
        Ok(())
    }

    /// Turns new rows, from row `first` on, back into the source's: row `i` of them is source row [`Self::source_row`]`(first + i)`.
    ///
    /// # Panics
    /// As [`Self::apply`].
    pub fn undo(&self, columns: usize, first: usize, rows: &mut [f32]) {
        assert!(columns > 0 && rows.len().is_multiple_of(columns));
        let scatter = self.columns.as_ref().map(Permutation::inverse);
        let mut gathered = vec![0.0; if scatter.is_some() { columns } else { 0 }];
        for (offset, row) in rows.chunks_exact_mut(columns).enumerate() {
            if let Some(scatter) = &scatter {
                gathered.copy_from_slice(row);
                scatter.gather(&gathered, row);
            }
            if let Some(scale) = &self.row_scale {
                let factor = scale[self.source_row(first + offset)];
                for value in row.iter_mut() {
                    *value /= factor;
                }
            }
            if let Some(scale) = &self.column_scale {
                assert_eq!(scale.len(), row.len());
                row.iter_mut().zip(scale).for_each(|(value, factor)| *value /= factor);
            }
        }
    }

    /// Scales and gathers one row, which was source row `source`.
    fn change_row(&self, source: usize, row: &mut [f32], scratch: &mut [f32]) {
        if let Some(scale) = &self.column_scale {
            assert_eq!(scale.len(), row.len());
            row.iter_mut().zip(scale).for_each(|(value, factor)| *value *= factor);
        }
        if let Some(scale) = &self.row_scale {
            let factor = scale[source];
            for value in row.iter_mut() {
                *value *= factor;
            }
        }
        if let Some(order) = &self.columns {
            order.gather(row, scratch);
            row.copy_from_slice(scratch);
        }
    }
}

/// Multiplies `factors` into `scale`, which begins as all ones.
fn merge(scale: &mut Option<Vec<f32>>, factors: impl ExactSizeIterator<Item = f32>) {
    match scale {
        None => *scale = Some(factors.collect()),
        Some(scale) => {
            assert_eq!(scale.len(), factors.len());
            scale.iter_mut().zip(factors).for_each(|(old, factor)| *old *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Reads from a 3 x 2 matrix 1 2 / 3 4 / 5 6.
    #[expect(clippy::unnecessary_wraps, reason = "the signature that apply asks for")]
    fn read(row: usize, into: &mut [f32]) -> Result<(), Infallible> {
        into.iter_mut().enumerate().for_each(|(i, value)| *value = (row * 2 + i + 1) as f32);
        Ok(())
    }

    fn order(indices: &[i64]) -> Option<Permutation> {
        Permutation::new(indices).ok()
    }

    #[test]
    fn scales_belong_to_the_source_and_orders_come_after() {
        let transform = Transform {
            column_scale: Some(vec![10.0, 100.0]),
            row_scale: Some(vec![1.0, 2.0, 3.0]),
            columns: order(&[1, 0]),
            row_order: order(&[2, 0, 1]),
            runtime_perm: false,
        };
        let mut out = [0.0; 6];
        let Ok(()) = transform.apply(2, 0, &mut out, read);
        assert_eq!(out, [1800.0, 150.0, 200.0, 10.0, 800.0, 60.0]);
        transform.undo(2, 0, &mut out);
        assert_eq!(out, [5.0, 6.0, 1.0, 2.0, 3.0, 4.0], "the source's rows 2, 0 and 1");
        let Ok(()) = transform.apply(2, 1, &mut out[..2], read);
        assert_eq!(out[..2], [200.0, 10.0]);
        transform.undo(2, 1, &mut out[..2]);
        assert_eq!(out[..2], [1.0, 2.0]);
    }

    #[test]
    fn a_runtime_order_can_be_dropped() {
        let transform = Transform {
            columns: order(&[1, 0]),
            row_scale: Some(vec![2.0; 3]),
            runtime_perm: true,
            ..Transform::default()
        };
        assert!(transform.runtime_order().is_some());
        let plain = transform.without_runtime();
        assert!(plain.columns.is_none() && plain.row_scale.is_some() && plain.runtime_order().is_none());
        assert!(Transform::default().is_identity() && !plain.is_identity());
    }
}
