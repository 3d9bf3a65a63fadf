//! Permutations of channels, valid by construction.

use std::fmt;

/// A bijection of `0..len`: applied to a vector, `new[i] = old[perm[i]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permutation(Vec<u32>);

/// Why a list of indices is not a permutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAPermutation {
    /// An index lies outside `0..len`.
    OutOfRange {
        /// Where in the list.
        position: usize,
        /// The index found there.
        index: i64,
        /// The length of the list.
        len: usize,
    },
    /// An index occurs a second time.
    Repeated {
        /// Where in the list it occurs again.
        position: usize,
        /// The index.
        index: u32,
    },
}

impl fmt::Display for NotAPermutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfRange { position, index, len } => write!(f, "entry {position} is {index}, outside 0..{len}"),
            Self::Repeated { position, index } => write!(f, "entry {position} repeats {index}"),
        }
    }
}

impl Permutation {
    /// The permutation that changes nothing.
    pub fn identity(len: usize) -> Self {
        Self((0..len as u32).collect())
    }

    /// Checks that `indices` is a bijection of its own index range.
    pub fn new(indices: &[i64]) -> Result<Self, NotAPermutation> {
        let len = indices.len();
        let mut seen = vec![false; len];
        let mut checked = Vec::with_capacity(len);
        for (position, &index) in indices.iter().enumerate() {
            let slot = usize::try_from(index).ok().and_then(|i| seen.get_mut(i));
            match slot {
                None => return Err(NotAPermutation::OutOfRange { position, index, len }),
                Some(true) => return Err(NotAPermutation::Repeated { position, index: index as u32 }),
                Some(slot) => *slot = true,
            }
            checked.push(index as u32);
        }
        Ok(Self(checked))
    }

    /// The number of channels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it permutes nothing at all (zero channels).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it leaves every channel where it is.
    pub fn is_identity(&self) -> bool {
        self.0.iter().enumerate().all(|(i, &p)| i == p as usize)
    }

    /// The old channel of each new one.
    pub fn indices(&self) -> &[u32] {
        &self.0
    }

    /// Gathers `old` into `new`: `new[i] = old[perm[i]]`.
    ///
    /// # Panics
    /// If a slice is not as long as the permutation.
    pub fn gather<T: Copy>(&self, old: &[T], new: &mut [T]) {
        assert_eq!(old.len(), self.len());
        assert_eq!(new.len(), self.len());
        for (to, &from) in new.iter_mut().zip(&self.0) {
            *to = old[from as usize];
        }
    }

    /// The permutation that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let mut inverse = vec![0; self.len()];
        for (new, &old) in self.0.iter().enumerate() {
            inverse[old as usize] = new as u32;
        }
        Self(inverse)
    }

    /// The permutation that first applies `self`, then `next`: `new[i] = old[self[next[i]]]`.
    ///
    /// # Panics
    /// If the two differ in length.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let mut composed = vec![0; self.len()];
        next.gather(&self.0, &mut composed);
        Self(composed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_bijection() {
        assert_eq!(Permutation::new(&[0, 2]), Err(NotAPermutation::OutOfRange { position: 1, index: 2, len: 2 }));
        assert_eq!(Permutation::new(&[-1, 0]), Err(NotAPermutation::OutOfRange { position: 0, index: -1, len: 2 }));
        assert_eq!(Permutation::new(&[1, 0, 1]), Err(NotAPermutation::Repeated { position: 2, index: 1 }));
    }

    #[test]
    fn inverse_undoes_gather() {
        let p = Permutation::new(&[2, 0, 3, 1]).unwrap();
        let (mut there, mut back) = ([0; 4], [0; 4]);
        p.gather(&[10, 11, 12, 13], &mut there);
        assert_eq!(there, [12, 10, 13, 11]);
        p.inverse().gather(&there, &mut back);
        assert_eq!(back, [10, 11, 12, 13]);
        assert!(p.then(&p.inverse()).is_identity());
    }
}
