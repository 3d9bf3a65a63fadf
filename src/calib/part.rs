//! One part of a calibration run: the exact sums of its chunks in a file of their own, and the way back to the statistics of the whole run.
//! Parts of one run join to the very bytes of that run, in whatever order and number.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::collector::{Entry, by_weight};
use super::container::{Kept, decode, encode};
use super::stats::{SampleRows, Statistics};
use crate::error::PartsError;
use crate::error::parts::missing;
use crate::util::atomic_file;
use crate::util::shard::Shard;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"TCQ4STP1";

/// What a part says about itself and the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The version that measured.
    pub(super) version: String,
    /// Which part it is.
    pub(super) shard: Shard,
    /// Everything that the sums depend on, in a line.
    pub(super) run: String,
    pub(super) chunk_count: u32,
    pub(super) chunk_size: u32,
    pub(super) datasets: Vec<String>,
    pub(super) fingerprint: String,
    pub(super) text: String,
    pub(super) rows_held_out: bool,
    pub(super) notes: Vec<(String, String)>,
}

/// The sums of one part of a run, or of all of it.
#[derive(Debug, Clone, PartialEq)]
pub struct StatisticsPart {
    pub(super) origin: Origin,
    pub(super) kept: Kept,
}

impl StatisticsPart {
    /// Which part it is.
    pub fn shard(&self) -> Shard {
        self.origin.shard
    }

    /// Distinct inputs that are summed.
    pub fn inputs(&self) -> usize {
        self.kept.entries.len()
    }

    /// Writes the part to `path`, which must not exist unless `force`, and must not be one of `inputs`.
    ///
    /// # Errors
    /// If the file exists or cannot be written.
    pub fn save(&self, path: &Path, force: bool, inputs: &[&Path]) -> Result<()> {
        let bytes = encode(MAGIC, &self.origin, &self.kept.entries, &self.kept.groups);
        let bytes = bytes.map_err(|e| Error::io(path, "write")(e.into()))?;
        atomic_file::write(path, force, inputs, &bytes)
    }

    /// Whether the file at `path` begins as a part does.
    pub fn is_at(path: &Path) -> bool {
        use std::io::Read;
        let mut begin = [0; MAGIC.len()];
        fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == MAGIC
    }

    /// Reads a part.
    ///
    /// # Errors
    /// [`PartsError::Unusable`] if it is damaged; what the operating system says.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        let (origin, kept) = decode::<Origin>(MAGIC, &bytes)
            .ok_or_else(|| PartsError::Unusable { path: path.to_path_buf(), what: "it is damaged".into() })?;
        Ok(Self { origin, kept })
    }

    /// Reads all parts of a run and adds them up: the statistics of the whole run.
    ///
    /// # Errors
    /// [`PartsError`] for parts of other runs, parts given twice, and parts that lack.
    pub fn merge(paths: &[PathBuf]) -> Result<Statistics> {
        let Some((first, others)) = paths.split_first() else {
            return Err(Error::Usage { message: "there are no parts to merge".into(), hint: None });
        };
        let mut all = Self::load(first)?;
        let mut seen = vec![(all.origin.shard.index, first)];
        for path in others {
            let part = Self::load(path)?;
            let both = (first.as_path(), path.as_path());
            all.check_same(both, &part)?;
            let shard = part.origin.shard;
            if let Some((_, other)) = seen.iter().find(|(index, _)| *index == shard.index) {
                let (path, other, shard) = (path.clone(), (*other).clone(), shard.to_string());
                return Err(PartsError::Double { path, other, shard }.into());
            }
            seen.push((shard.index, path));
            all.join(both, part)?;
        }
        let (found, count) = (seen.len(), all.origin.shard.count);
        if found < count as usize {
            let indices: Vec<u32> = seen.iter().map(|(index, _)| *index).collect();
            let missing = missing(&indices, count);
            return Err(PartsError::Missing { first: first.clone(), count, found, missing }.into());
        }
        Ok(all.finish())
    }

    /// Checks that `other` is of the same run, measured in as many parts.
    fn check_same(&self, (first, path): (&Path, &Path), other: &Self) -> Result<(), PartsError> {
        let (mine, theirs) = (&self.origin, &other.origin);
        let facts = |origin: &Origin| {
            [
                ("version", origin.version.clone()),
                ("model", origin.fingerprint.clone()),
                ("text", origin.text.clone()),
                ("number of parts", origin.shard.count.to_string()),
                ("setting", origin.run.clone()),
            ]
        };
        match facts(mine).into_iter().zip(facts(theirs)).find(|(a, b)| a != b) {
            None => Ok(()),
            Some(((what, expected), (_, found))) => Err(another(first, path, what, expected, found)),
        }
    }

    /// Adds the sums of `other`, and sorts its sample rows in.
    fn join(&mut self, (first, path): (&Path, &Path), other: Self) -> Result<(), PartsError> {
        let Kept { entries, groups } = other.kept;
        if entries.is_empty() {
            return Ok(()); // a part of fewer chunks than parts
        }
        if self.kept.entries.is_empty() {
            self.kept = Kept { entries, groups };
            return Ok(());
        }
        let shape = |entry: &Entry| (entry.weights.clone(), entry.sums.matrices, entry.sums.columns);
        let shapes = |entries: &[Entry]| entries.iter().map(shape).collect::<Vec<_>>();
        if shapes(&self.kept.entries) != shapes(&entries) || self.kept.groups != groups {
            let count = |entries: &[Entry]| format!("{} inputs", entries.len());
            return Err(another(first, path, "graph", count(&self.kept.entries), count(&entries)));
        }
        for (mine, theirs) in self.kept.entries.iter_mut().zip(entries) {
            mine.sums.merge(&theirs.sums);
            mine.rows = interleaved((&mine.rows, &mut mine.turns), (&theirs.rows, &theirs.turns));
        }
        Ok(())
    }

    /// The statistics that the sums come to.
    pub(super) fn finish(self) -> Statistics {
        let Self { origin, kept } = self;
        Statistics {
            entries: by_weight(kept.entries),
            groups: kept.groups,
            chunk_count: origin.chunk_count,
            chunk_size: origin.chunk_size,
            datasets: origin.datasets,
            fingerprint: Some(origin.fingerprint),
            rows_held_out: origin.rows_held_out,
            notes: origin.notes.into_iter().collect(),
        }
    }
}

fn another(first: &Path, path: &Path, what: &str, expected: String, found: String) -> PartsError {
    let (expected, found) = (expected.into(), found.into());
    PartsError::Another { path: path.into(), first: first.into(), what: what.into(), expected, found }
}

/// The rows of both in the order of their turns, which go to the first.
fn interleaved((a, turns): (&SampleRows, &mut Vec<u32>), (b, others): (&SampleRows, &[u32])) -> SampleRows {
    let rows = a.iter().zip(turns.iter()).chain(b.iter().zip(others));
    let mut rows: Vec<(u32, (u32, &[f32]))> = rows.map(|(row, &turn)| (turn, row)).collect();
    rows.sort_by_key(|(turn, _)| *turn);
    let mut all = SampleRows { columns: a.columns, ..SampleRows::default() };
    for (_, (matrix, row)) in &rows {
        all.push(*matrix, row);
    }
    *turns = rows.iter().map(|(turn, _)| *turn).collect();
    all
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::kept;
    use super::*;

    fn part(index: u32, count: u32) -> StatisticsPart {
        let origin = Origin {
            version: "1".into(),
            shard: Shard { index, count },
            run: "r".into(),
            chunk_count: 4,
            chunk_size: 512,
            datasets: vec!["t".into()],
            fingerprint: "f".into(),
            text: "x".into(),
            rows_held_out: false,
            notes: vec![("a".into(), "b".into())],
        };
        let mut kept = kept();
        kept.entries[0].turns = vec![9 - index];
        kept.entries[0].rows.data = vec![index as f32; 3];
        StatisticsPart { origin, kept }
    }

    /// The files of parts in a folder.
    fn written(dir: &Path, parts: &[StatisticsPart]) -> Vec<PathBuf> {
        let one = |(number, part): (usize, &StatisticsPart)| {
            let path = dir.join(format!("{number}.part"));
            part.save(&path, true, &[]).unwrap();
            path
        };
        parts.iter().enumerate().map(one).collect()
    }

    #[test]
    fn rows_come_in_the_order_of_the_run_whatever_that_of_the_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = written(dir.path(), &[part(0, 3), part(1, 3), part(2, 3)]);
        let merged = StatisticsPart::merge(&paths).unwrap();
        let entry = &merged.entries["blk.0.b.weight"];
        assert_eq!(entry.counts, [3, 6]);
        assert_eq!(entry.rows.as_ref().unwrap().data, [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        paths.reverse();
        assert_eq!(StatisticsPart::merge(&paths).unwrap(), merged);
    }

    #[test]
    fn a_part_without_chunks_adds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let empty = StatisticsPart { kept: Kept::default(), ..part(1, 2) };
        let merged = StatisticsPart::merge(&written(dir.path(), &[empty, part(0, 2)])).unwrap();
        assert_eq!(merged.entries["blk.0.a.weight"].counts, [1, 2]);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = |parts: &[StatisticsPart]| {
            let error = StatisticsPart::merge(&written(dir.path(), parts)).unwrap_err().to_string();
            error.replace(&format!("{}/", dir.path().display()), "")
        };
        let (first, second) = (part(0, 2), part(1, 2));
        assert_eq!(message(std::slice::from_ref(&second)), "0.part: expected 2 parts, got 1: missing 1/2");
        assert_eq!(message(&[first.clone(), first.clone()]), "1.part: part 1/2 is 0.part too");
        let like = |change: fn(&mut Origin)| {
            let mut other = second.clone();
            change(&mut other.origin);
            message(&[first.clone(), other])
        };
        let another = |what| format!("1.part: this part is of another {what} as in 0.part, got ");
        assert_eq!(like(|o| o.version = "2".into()), another("version: expected 1") + "2");
        assert_eq!(like(|o| o.fingerprint = "g".into()), another("model: expected f") + "g");
        assert_eq!(like(|o| o.text = "y".into()), another("text: expected x") + "y");
        assert_eq!(like(|o| o.shard.count = 3), another("number of parts: expected 2") + "3");
        assert_eq!(like(|o| o.run = "s".into()), another("setting: expected r") + "s");
        let mut narrow = second.clone();
        narrow.kept.entries[0].weights.pop();
        assert!(message(&[first, narrow]).starts_with("1.part: this part is of another graph"));
    }
}
