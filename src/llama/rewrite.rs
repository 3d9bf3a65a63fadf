//! What a rewriter of a forward pass may do: change the rows that enter a matrix multiplication, for that multiplication alone.
//! Everything is borrowed from the running graph and valid only during the call.

use super::Node;
use crate::Result;

/// The input of a matrix multiplication that is about to run: f32 rows, reached through strides, free to be changed.
#[derive(Debug)]
pub struct Input<'a> {
    data: &'a mut [f32],
    columns: usize,
    offsets: Vec<usize>,
}

impl Input<'_> {
    /// Rows of `shape[0]` values in `data`, each once however often it is used. `None` if rows overlap or reach beyond the data.
    #[cfg(any(feature = "llama", test))]
    pub(super) fn new(data: &mut [f32], shape: [usize; 4], strides: [usize; 4]) -> Option<Input<'_>> {
        let columns = shape[0];
        let mut offsets = Vec::new();
        if !shape.contains(&0) {
            for i3 in 0..shape[3] {
                for i2 in 0..shape[2] {
                    offsets.extend((0..shape[1]).map(|i1| i1 * strides[1] + i2 * strides[2] + i3 * strides[3]));
                }
            }
        }
        offsets.sort_unstable();
        offsets.dedup(); // a stride of 0 repeats a row
        let apart = offsets.windows(2).all(|pair| pair[1] - pair[0] >= columns);
        let inside = offsets.last().is_none_or(|last| last + columns <= data.len());
        (apart && inside).then_some(Input { data, columns, offsets })
    }

    /// The length of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The rows, in the order of memory (for a plain matrix that of the tokens).
    pub fn rows_mut(&mut self) -> Vec<&mut [f32]> {
        let (mut rest, mut at) = (&mut *self.data, 0);
        let mut rows = Vec::with_capacity(self.offsets.len());
        for &offset in &self.offsets {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(offset - at);
            let (row, tail) = tail.split_at_mut(self.columns);
            rows.push(row);
            (rest, at) = (tail, offset + self.columns);
        }
        rows
    }
}

/// A changer of forward passes, for instance to see what a runtime's rounding of activations does.
///
/// Lifecycle: [`Self::begin_graph`]; then for each matrix multiplication in graph order [`Self::rewrites`], and where that said yes
/// [`Self::rewrite`] before it runs. Afterwards the input is put back, so that whoever else reads it (a router, another multiplication)
/// sees the original; an [`super::Observer`] of the same multiplication sees what it was given. An error or a panic ends the
/// forward pass and comes out of [`super::Context::decode_watched`].
pub trait Rewriter {
    /// A new graph of `tokens` tokens begins: ids of the graph before mean nothing any more.
    fn begin_graph(&mut self, tokens: usize) {
        let _ = tokens;
    }

    /// Whether [`Self::rewrite`] should be called for this node. Each yes makes llama.cpp stop twice and wait.
    fn rewrites(&mut self, node: &Node<'_>) -> bool;

    /// Changes the input of a node. Called for each multiplication anew, with the original values, also where several share an input.
    fn rewrite(&mut self, node: &Node<'_>, input: &mut Input<'_>) -> Result<()>;
}

/// Who takes part in a forward pass.
#[derive(Default)]
pub struct Watch<'a> {
    /// Sees inputs of multiplications.
    pub observer: Option<&'a mut dyn super::Observer>,
    /// Changes inputs of multiplications.
    pub rewriter: Option<&'a mut dyn Rewriter>,
}

#[cfg(feature = "llama")]
impl Watch<'_> {
    /// The same, for a shorter time.
    pub(super) fn reborrow(&mut self) -> Watch<'_> {
        let mut shorter = Watch::default();
        if let Some(observer) = &mut self.observer {
            shorter.observer = Some(&mut **observer);
        }
        if let Some(rewriter) = &mut self.rewriter {
            shorter.rewriter = Some(&mut **rewriter);
        }
        shorter
    }

    /// Tells both that a graph of `tokens` tokens begins.
    pub(super) fn begun(mut self, tokens: usize) -> Self {
        if let Some(observer) = &mut self.observer {
            observer.begin_graph(tokens);
        }
        if let Some(rewriter) = &mut self.rewriter {
            rewriter.begin_graph(tokens);
        }
        self
    }
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (observer, rewriter) = (self.observer.is_some(), self.rewriter.is_some());
        f.debug_struct("Watch").field("observer", &observer).field("rewriter", &rewriter).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_strides_and_gaps_are_left_alone() {
        let mut data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut input = Input::new(&mut data, [2, 2, 2, 1], [1, 3, 6, 12]).unwrap();
        for row in input.rows_mut() {
            row.fill(-1.0);
        }
        assert_eq!(data, [-1., -1., 2., -1., -1., 5., -1., -1., 8., -1., -1., 11.]);
    }

    #[test]
    fn permuted_and_broadcast_rows_come_once_each() {
        let mut data = [0.0; 8];
        let mut permuted = Input::new(&mut data, [2, 2, 2, 1], [1, 4, 2, 8]).unwrap();
        assert_eq!(permuted.rows_mut().len(), 4);
        let mut broadcast = Input::new(&mut data, [2, 1, 3, 1], [1, 2, 0, 8]).unwrap();
        assert_eq!(broadcast.rows_mut().len(), 1);
        assert_eq!(Input::new(&mut data, [2, 0, 3, 1], [1, 2, 0, 8]).unwrap().rows_mut().len(), 0);
    }

    #[test]
    fn rows_that_overlap_or_reach_out_are_refused() {
        let mut data = [0.0; 8];
        assert!(Input::new(&mut data, [4, 3, 1, 1], [1, 2, 8, 8]).is_none());
        assert!(Input::new(&mut data, [4, 3, 1, 1], [1, 4, 12, 12]).is_none());
    }
}
