//! What an observer of a forward pass is told: the matrix multiplications by name, and the rows that enter them.
//! Everything is borrowed from the running graph and valid only during the call.

use crate::Result;

/// The kind of a matrix multiplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// One matrix for all rows (or one per index of the third dimension).
    MulMat,
    /// Each row through the experts that its routing names.
    MulMatId,
}

/// Identifies an activation within one graph: two nodes with equal ids multiply the very same values (reshapes are seen through).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputId(pub usize);

/// A matrix multiplication of the graph with an f32 input, before it is computed.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The kind of multiplication.
    pub op: Op,
    /// The name of the weight tensor, free of backend decoration.
    pub weight: &'a str,
    /// Columns of the weight, that is the length of an input row.
    pub columns: usize,
    /// Rows of one matrix of the weight.
    pub weight_rows: usize,
    /// Matrices in the weight: experts, or 1.
    pub matrices: usize,
    /// Which activation enters.
    pub input: InputId,
    /// Which tensor of expert ids routes it ([`Op::MulMatId`] only).
    pub routing: Option<InputId>,
    /// Rows of input: tokens, times used experts where each has an input of its own.
    pub rows: usize,
}

/// The expert ids of a [`Op::MulMatId`]: `used` of them for each token, token after token.
#[derive(Debug, Clone, Copy)]
pub struct Experts<'a> {
    /// Expert ids, `tokens` x `used`, checked to be below [`Node::matrices`].
    pub ids: &'a [i32],
    /// Experts per token.
    pub used: usize,
}

/// The input of a matrix multiplication: f32 rows in host memory, reached through strides.
#[derive(Debug, Clone, Copy)]
pub struct Capture<'a> {
    /// Everything between the first and the last element.
    pub data: &'a [f32],
    /// Elements along each dimension; the first is the columns.
    pub shape: [usize; 4],
    /// Elements from one index to the next along each dimension; the first is 1.
    pub strides: [usize; 4],
    /// The routing of a [`Op::MulMatId`].
    pub experts: Option<Experts<'a>>,
}

impl<'a> Capture<'a> {
    /// The length of a row.
    pub fn columns(&self) -> usize {
        self.shape[0]
    }

    /// The row of `columns` values that starts at `offset` (from [`Self::rows_by_matrix`]).
    ///
    /// # Panics
    /// If the row does not lie inside the data.
    pub fn row(&self, offset: usize) -> &'a [f32] {
        &self.data[offset..offset + self.shape[0]]
    }

    /// Appends to `rows[m]` the offset of every row that matrix `m` multiplies, in token order.
    ///
    /// A dense weight of one matrix gets all rows; one of several matrices is broadcast over the third and fourth dimension of the
    /// input (`matrices` is then the product of the weight's); experts get the rows routed to them, a row once for each use.
    pub fn rows_by_matrix(&self, node: &Node<'_>, rows: &mut [Vec<usize>]) {
        match self.experts {
            Some(experts) => self.for_each_routed(experts, |expert, offset| rows[expert].push(offset)),
            None => self.for_each_dense(node.matrices, |matrix, offset| rows[matrix].push(offset)),
        }
    }

    /// The matrix and the offset of one of the rows of token `token`; where a token has several (experts, heads), `turn` picks one.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn row_of_token(&self, node: &Node<'_>, token: usize, turn: usize) -> (usize, usize) {
        if let Some(experts) = self.experts {
            let slot = turn % experts.used;
            let expert = experts.ids[token * experts.used + slot];
            return (expert as usize, (slot % self.shape[1]) * self.strides[1] + token * self.strides[2]);
        }
        assert!(token < self.shape[1], "token {token} of {}", self.shape[1]);
        let i2 = turn % self.shape[2];
        (i2 % node.matrices, token * self.strides[1] + i2 * self.strides[2])
    }

    fn for_each_dense(&self, matrices: usize, mut visit: impl FnMut(usize, usize)) {
        let [_, tokens, second, third] = self.shape;
        for i3 in 0..third {
            for i2 in 0..second {
                let base = i2 * self.strides[2] + i3 * self.strides[3];
                let matrix = (i3 * second + i2) % matrices;
                (0..tokens).for_each(|i1| visit(matrix, base + i1 * self.strides[1]));
            }
        }
    }

    fn for_each_routed(&self, experts: Experts<'_>, mut visit: impl FnMut(usize, usize)) {
        let slots = self.shape[1];
        for (token, ids) in experts.ids.chunks_exact(experts.used).enumerate() {
            for (slot, &expert) in ids.iter().enumerate() {
                visit(expert as usize, (slot % slots) * self.strides[1] + token * self.strides[2]);
            }
        }
    }
}

/// A watcher of forward passes.
///
/// Lifecycle: [`Self::begin_graph`]; then for each matrix multiplication in graph order [`Self::wants`], and where that said yes
/// [`Self::observe`] with the values. An error or a panic ends the forward pass and comes out of [`super::Context::decode_observed`].
pub trait Observer {
    /// A new graph of `tokens` tokens begins: ids of the graph before mean nothing any more.
    fn begin_graph(&mut self, tokens: usize) {
        let _ = tokens;
    }

    /// Whether [`Self::observe`] should be called for this node. Each yes makes llama.cpp stop once and wait.
    fn wants(&mut self, node: &Node<'_>) -> bool;

    /// Receives the input of a node.
    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(matrices: usize, op: Op) -> Node<'static> {
        Node {
            op,
            weight: "blk.0.ffn_up.weight",
            columns: 2,
            weight_rows: 1,
            matrices,
            input: InputId(1),
            routing: None,
            rows: 3,
        }
    }

    #[test]
    fn dense_rows_follow_the_strides() {
        let data = [0.0; 16];
        let capture = Capture { data: &data, shape: [2, 3, 1, 1], strides: [1, 5, 16, 16], experts: None };
        let mut rows = vec![Vec::new()];
        capture.rows_by_matrix(&node(1, Op::MulMat), &mut rows);
        assert_eq!(rows, [vec![0, 5, 10]]);
    }

    #[test]
    fn a_broadcast_input_of_experts_is_used_once_per_routed_expert() {
        let data = [0.0; 6];
        let experts = Experts { ids: &[2, 0, 0, 1, 2, 1], used: 2 };
        let capture = Capture { data: &data, shape: [2, 1, 3, 1], strides: [1, 2, 2, 6], experts: Some(experts) };
        let mut rows = vec![Vec::new(); 3];
        capture.rows_by_matrix(&node(3, Op::MulMatId), &mut rows);
        assert_eq!(rows, [vec![0, 2], vec![2, 4], vec![0, 4]]);
    }

    #[test]
    fn an_input_per_used_expert_is_taken_slot_by_slot() {
        let data = [0.0; 8];
        let experts = Experts { ids: &[1, 0, 0, 1], used: 2 };
        let capture = Capture { data: &data, shape: [2, 2, 2, 1], strides: [1, 2, 4, 8], experts: Some(experts) };
        let mut rows = vec![Vec::new(); 2];
        capture.rows_by_matrix(&node(2, Op::MulMatId), &mut rows);
        assert_eq!(rows, [vec![2, 4], vec![0, 6]]);
    }
}
