//! What shows that parts were made of one source: the first part hashes all of it, file by file and tensor by tensor, the others only the tensors that
//! they read. So n parts read a model twice in all, and not n times.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::parts::Part;
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::util::progress::Progress;

/// Characters of a tensor's hash.
pub(super) const DIGITS: usize = 32;

/// Hashes of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceHashes {
    /// SHA-256 of all files in order, where all were read.
    pub(super) sha256: Option<String>,
    /// XXH3 of the bytes of each tensor (of those of a part), in their order, as [`DIGITS`] hexadecimal digits.
    pub(super) tensors: Vec<String>,
}

impl SourceHashes {
    /// Reads all of a source once.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(super) fn all(source: &Source, progress: &dyn Progress) -> Result<Self> {
        let tensors = source.tensors();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&at| (tensors[at].shard(), tensors[at].offset()));
        let mut hashes = vec![String::new(); tensors.len()];
        let (mut next, mut hash) = (order.into_iter().peekable(), Xxh3::new());
        let sha256 = source.sha256_beside(progress, &mut |shard, at, chunk| {
            let end = at + chunk.len() as u64;
            while let Some(&index) = next.peek() {
                let tensor = &tensors[index];
                let (first, last) = (tensor.offset(), tensor.offset() + tensor.bytes);
                if (tensor.shard(), first) >= (shard, end) {
                    break;
                }
                hash.update(&chunk[(first.max(at) - at) as usize..(last.min(end) - at) as usize]);
                if last > end {
                    break;
                }
                hashes[index] = digits(&hash);
                hash.reset();
                next.next();
            }
        })?;
        Ok(Self { sha256: Some(sha256), tensors: hashes })
    }

    /// Reads what a part needs: everything for the first, its own tensors for all others.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(super) fn of_part(source: &Source, part: &Part, progress: &dyn Progress) -> Result<Self> {
        if part.shard.index == 0 {
            return Self::all(source, progress);
        }
        let hash = |&at: &usize| {
            let mut hash = Xxh3::new();
            for chunk in source.data(&source.tensors()[at]).chunks(CHUNK) {
                if progress.interrupted() {
                    return Err(Error::Interrupted);
                }
                hash.update(chunk);
            }
            Ok(digits(&hash))
        };
        Ok(Self { sha256: None, tensors: part.tensors.iter().map(hash).collect::<Result<_>>()? })
    }

    /// What a part says of its source, where all of it is known.
    pub(super) fn restricted(&self, part: &Part) -> Self {
        if part.shard.index == 0 {
            return self.clone();
        }
        let own = part.tensors.iter().filter_map(|&at| self.tensors.get(at).cloned());
        Self { sha256: None, tensors: own.collect() }
    }
}

/// Bytes between two looks at whether to go on.
const CHUNK: usize = 1 << 24;

fn digits(hash: &Xxh3) -> String {
    format!("{:0DIGITS$x}", hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, Metadata, Plan, TensorSpec, Writer};
    use crate::util::progress::NoProgress;
    use crate::util::shard::Shard;

    #[test]
    fn one_pass_and_single_tensors_have_the_same_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        // Tensors that end within a chunk of the file, span several, and are shorter than the padding.
        let lengths = [3u64, 700_001, 40, 1];
        let spec = |(index, &length): (usize, &u64)| TensorSpec {
            name: format!("t{index}"),
            dims: vec![length],
            ty: GgmlType::F32,
        };
        let specs: Vec<_> = lengths.iter().enumerate().map(spec).collect();
        let plan = Plan::new(&Metadata::default(), specs, 32).unwrap();
        let writer = Writer::create(&path, &plan, false, &[]).unwrap();
        for (index, &length) in lengths.iter().enumerate() {
            let values: Vec<u8> = (0..length * 4).map(|at| (at * 31 + index as u64) as u8).collect();
            writer.write(index, 0, &values).unwrap();
        }
        writer.commit().unwrap();
        let source = Source::open(&path).unwrap();
        let all = SourceHashes::all(&source, &NoProgress).unwrap();
        assert_eq!(all.sha256, Some(source.sha256(&NoProgress).unwrap()));
        let naive = |tensor| format!("{:032x}", xxhash_rust::xxh3::xxh3_128(source.data(tensor)));
        assert_eq!(all.tensors, source.tensors().iter().map(naive).collect::<Vec<_>>());
        let part = Part { shard: Shard { index: 1, count: 2 }, tensors: vec![1, 3] };
        let own = SourceHashes::of_part(&source, &part, &NoProgress).unwrap();
        assert_eq!(own.tensors, [all.tensors[1].clone(), all.tensors[3].clone()]);
        assert_eq!(own, SourceHashes { sha256: None, ..all.restricted(&part) });
    }
}
