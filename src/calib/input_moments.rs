//! The second moment of one input of a model as it is asked for, summed and used: whole or in blocks of channels, for all experts together or for
//! each of them.
//!
//! Nothing is measured here and nothing is decided; see `hessians` for the one, `convert` for the other.

use rayon::prelude::*;

use super::hessian::{Hessian, Triangle};

/// An expert is starved if it has seen fewer rows than its channels divided by this.
pub const STARVED_BELOW: u64 = 4;

/// An input whose second moment is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MomentsRequest {
    /// The weights that read it; it is captured where the graph reads it first.
    pub weights: Vec<String>,
    /// Channels, a multiple of 32.
    pub columns: usize,
    /// Experts of these weights, or 1.
    pub matrices: usize,
    /// Whether each expert gets a second moment of the rows that are routed to it.
    pub per_matrix: bool,
    /// Channels whose second moments are wanted together, block by block; empty for one block of all.
    pub blocks: Vec<Vec<u32>>,
}

impl MomentsRequest {
    /// How many sums this makes.
    pub fn owners(&self) -> usize {
        if self.per_matrix { self.matrices } else { 1 }
    }

    /// Sums of nothing, in this unit.
    pub(super) fn begin(&self, unit: super::hessian::Unit) -> InputMoments {
        let block = |channels: Option<&Vec<u32>>| Block {
            channels: channels.cloned(),
            sums: vec![Hessian::new(channels.map_or(self.columns, Vec::len), unit); self.owners()],
        };
        let blocks = match &self.blocks[..] {
            [] => vec![block(None)],
            blocks => blocks.iter().map(|channels| block(Some(channels))).collect(),
        };
        InputMoments { rows: vec![0; self.matrices], blocks }
    }
}

/// The second moment of an input.
#[derive(Debug, Clone)]
pub struct InputMoments {
    /// Rows seen by each matrix (expert).
    pub rows: Vec<u64>,
    /// One block of all channels, or several of some.
    pub blocks: Vec<Block>,
}

/// The second moment of some channels of an input.
#[derive(Debug, Clone)]
pub struct Block {
    /// The channels in order; `None` for all.
    pub channels: Option<Vec<u32>>,
    /// One sum for each matrix, or one for all of them.
    pub sums: Vec<Hessian>,
}

impl InputMoments {
    /// Whether each matrix has sums of its own.
    pub fn per_matrix(&self) -> bool {
        self.blocks.first().is_some_and(|block| block.sums.len() > 1)
    }

    /// Rows seen by all matrices together.
    pub fn rows_seen(&self) -> u64 {
        self.rows.iter().sum()
    }

    /// The matrices that saw too few rows for a second moment of their own ([`STARVED_BELOW`]), `columns` being all channels of the input.
    pub fn starved(&self, columns: usize) -> Vec<usize> {
        (0..self.rows.len()).filter(|&matrix| self.rows[matrix] * STARVED_BELOW < columns as u64).collect()
    }

    /// The mean second moment of `channels` in their order, row after row: of all rows, or of those of a matrix with the weight `own` and of all rows
    /// with the rest. `None` if these channels were not summed together, or no row was seen.
    pub fn mean(&self, channels: &[u32], matrix: Option<(usize, f64)>) -> Option<Vec<f32>> {
        let block = self.blocks.iter().find(|block| block.channels.as_deref().is_none_or(|own| own == channels))?;
        let all = (self.rows_seen() > 0).then_some(self.rows_seen() as f64)?;
        let matrix = matrix.filter(|_| block.sums.len() > 1);
        let own = matrix.map_or(0.0, |(matrix, own)| own / self.rows[matrix].max(1) as f64);
        let rest = matrix.map_or(1.0, |(_, own)| 1.0 - own) / all;
        let sums: Vec<(Triangle<'_>, f64)> = block
            .sums
            .iter()
            .enumerate()
            .map(|(index, sum)| {
                (Triangle::new(sum), rest + if matrix.is_some_and(|(own, _)| own == index) { own } else { 0.0 })
            })
            .filter(|(_, factor)| *factor > 0.0)
            .collect();
        let at = |i: usize, j: usize| match block.channels {
            Some(_) => (i, j),
            None => (channels[i] as usize, channels[j] as usize),
        };
        let mut mean = vec![0.0; channels.len() * channels.len()];
        mean.par_chunks_exact_mut(channels.len()).enumerate().for_each(|(i, row)| {
            for (j, value) in row.iter_mut().enumerate() {
                let (i, j) = at(i, j);
                *value = sums.iter().map(|(sum, factor)| sum.at(i, j) * factor).sum::<f64>() as f32;
            }
        });
        Some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::super::hessian::USUAL_UNIT;
    use super::*;

    fn request(per_matrix: bool, blocks: Vec<Vec<u32>>) -> MomentsRequest {
        MomentsRequest { weights: vec!["w".into()], columns: 64, matrices: 2, per_matrix, blocks }
    }

    /// Two experts: the first has seen the row of ones once, the second the row of twos three times.
    fn moments(per_matrix: bool, blocks: Vec<Vec<u32>>) -> InputMoments {
        let mut moments = request(per_matrix, blocks).begin(USUAL_UNIT);
        moments.rows = vec![1, 3];
        for block in &mut moments.blocks {
            let width = block.sums[0].columns();
            let (first, last) = (0, block.sums.len() - 1);
            block.sums[first].add(&[1.0; 64][..width], &[0], None).unwrap();
            block.sums[last].add(&[2.0; 64][..width], &[0, 0, 0], None).unwrap();
        }
        moments
    }

    #[test]
    fn an_expert_takes_its_own_rows_and_those_of_all_by_weight() {
        let all: Vec<u32> = (0..64).collect();
        let own = moments(true, vec![]);
        // All rows: (1 + 3 * 4) / 4; the first expert alone 1, the second 4.
        let of = |moments: &InputMoments, matrix| moments.mean(&all, matrix).unwrap()[5 * 64 + 9];
        assert_eq!(of(&own, None), 3.25);
        assert_eq!([of(&own, Some((0, 1.0))), of(&own, Some((1, 1.0)))], [1.0, 4.0]);
        assert_eq!(of(&own, Some((0, 0.5))), 0.5 * 1.0 + 0.5 * 3.25);
        assert_eq!(of(&moments(false, vec![]), Some((0, 1.0))), 3.25, "shared sums know no experts");
        assert_eq!((own.starved(4), own.starved(8), own.starved(16)), (vec![], vec![0], vec![0, 1]));
    }

    #[test]
    fn blocks_are_found_by_their_channels() {
        let (even, odd): (Vec<u32>, Vec<u32>) = (0..64).partition(|channel| channel % 2 == 0);
        let blocks = moments(false, vec![even.clone(), odd.clone()]);
        assert_eq!(blocks.mean(&odd, None).unwrap(), vec![3.25; 32 * 32]);
        assert!(blocks.mean(&(0..32).collect::<Vec<_>>(), None).is_none(), "never summed together");
        assert!(request(false, vec![even]).begin(USUAL_UNIT).mean(&odd, None).is_none());
        assert!(request(false, vec![]).begin(USUAL_UNIT).mean(&odd, None).is_none(), "no rows");
    }
}
