//! Reads a model, in one file or in shards, as one validated thing over mapped memory. Nothing is written here.

use std::ops::Range;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::header::{Header, check_names};
use super::limits::{MAX_SHARDS, MAX_TENSORS};
use super::merge;
use super::metadata::Metadata;
use super::mmap::Mapping;
use super::place::{Section, place};
use super::shards::{ShardName, suffix};
use super::tensor::TensorInfo;
use super::types::{Dialect, GgmlType};
use crate::error::{Error, GgufError, Result};
use crate::util::hash::hex;
use crate::util::progress::{Progress, Unit};

/// How many bytes are hashed between two looks at the progress, small enough to stay in the caches.
const HASH_CHUNK: usize = 1 << 20;

/// A model, read-only: its keys, its tensors and their data.
pub struct Source {
    path: PathBuf,
    shards: Vec<Shard>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// The indices of `tensors`, sorted by name.
    order: Vec<u32>,
    alignment: u64,
    version: u32,
    dialect: Dialect,
}

/// One file of a model.
struct Shard {
    path: PathBuf,
    map: Mapping,
}

/// One file, parsed but not yet checked against the others.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    map: Mapping,
}

impl Part {
    fn open(path: &Path) -> Result<Part> {
        let map = Mapping::open(path)?;
        let header = Header::parse(map.bytes()).map_err(|defect| Error::Gguf { path: path.to_path_buf(), defect })?;
        Ok(Part { path: path.to_path_buf(), header, map })
    }

    /// Wraps what is wrong with this file.
    pub(super) fn error(&self, defect: GgufError) -> Error {
        Error::Gguf { path: self.path.clone(), defect }
    }

    fn place(&mut self, dialect: Dialect) -> Result<(), GgufError> {
        let length = self.map.bytes().len() as u64;
        let section = Section { start: self.header.data_start, alignment: self.header.alignment, length };
        place(&mut self.header.tensors, section, dialect)
    }
}

impl Source {
    /// Opens and checks a model. `path` names its only file or any of its shards; the others are found beside it.
    pub fn open(path: &Path) -> Result<Source> {
        let opened = Part::open(path)?;
        match opened.header.metadata.get_u64("split.count") {
            None | Some(0 | 1) => Source::assemble(path, vec![opened]),
            Some(count) => Source::open_shards(opened, count),
        }
    }

    /// Opens the shards at `paths`, in their order, whatever their names are.
    pub fn open_files(paths: &[PathBuf]) -> Result<Source> {
        let parts = paths.iter().map(|path| Part::open(path)).collect::<Result<Vec<_>>>()?;
        let path = paths.first().cloned().unwrap_or_default();
        Source::assemble(&path, parts)
    }

    fn open_shards(opened: Part, count: u64) -> Result<Source> {
        let path = opened.path.clone();
        if count > MAX_SHARDS {
            let limit = GgufError::Limit { what: "a shard count", found: count, limit: MAX_SHARDS, offset: 0 };
            return Err(opened.error(limit));
        }
        let number = opened.header.metadata.get_u64("split.no").map_or(1, |number| number.saturating_add(1));
        let name = ShardName::parse(&path).filter(|name| name.count == count && name.number == number);
        let Some(name) = name else {
            return Err(opened.error(GgufError::ShardName { number, count, suffix: suffix(number, count) }));
        };
        let mut opened = Some(opened);
        let mut parts = Vec::new();
        for shard in 1..=count {
            let part = if shard == number { opened.take() } else { None };
            parts.push(match part {
                Some(part) => part,
                None => open_sibling(&path, &name, shard)?,
            });
        }
        Source::assemble(&path, parts)
    }

    /// Checks the parts against each other and joins them.
    fn assemble(path: &Path, mut parts: Vec<Part>) -> Result<Source> {
        merge::check(&parts)?;
        let dialect = place_parts(&mut parts)?;
        let metadata = merge::metadata(&mut parts)?;
        let Some((alignment, version)) = parts.first().map(|part| (part.header.alignment, part.header.version)) else {
            return Err(Error::Gguf { path: path.to_path_buf(), defect: GgufError::Empty });
        };
        let mut tensors = Vec::new();
        for (index, part) in parts.iter_mut().enumerate() {
            let mut own = std::mem::take(&mut part.header.tensors);
            for tensor in &mut own {
                tensor.shard = index as u32;
            }
            if tensors.is_empty() { tensors = own } else { tensors.append(&mut own) }
        }
        let refuse = |defect| Error::Gguf { path: path.to_path_buf(), defect };
        let found = tensors.len() as u64;
        if found > MAX_TENSORS {
            return Err(refuse(GgufError::Limit { what: "a tensor count", found, limit: MAX_TENSORS, offset: 8 }));
        }
        let order = check_names(&tensors).map_err(refuse)?;
        let shards = parts.into_iter().map(|part| Shard { path: part.path, map: part.map }).collect();
        Ok(Source { path: path.to_path_buf(), shards, metadata, tensors, order, alignment, version, dialect })
    }

    /// Gives the path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Walks the paths of all files, in the order of the shards.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// Gives the number of tensors in each file.
    pub fn shard_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.shards.len()];
        self.tensors.iter().for_each(|tensor| sizes[tensor.shard()] += 1);
        sizes
    }

    /// Gives the path of the first shard, by which llama.cpp loads a sharded model.
    pub fn first_shard(&self) -> &Path {
        self.shards().next().unwrap_or(&self.path)
    }

    /// Gives the keys of the model, those about sharding (`split.*`) taken out.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Gives all tensors, in the order of the shards and of each file's list.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Finds a tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let found = self.order.binary_search_by(|index| self.tensors[*index as usize].name.as_str().cmp(name));
        found.ok().map(|place| &self.tensors[self.order[place] as usize])
    }

    /// Gives the alignment of the (first) file.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Gives the GGUF version of the (first) file: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Tells whose meaning id 42 has in this file.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Names the type of one of this file's tensors; the id 42 of a file of the fork is TCQ4.
    pub fn type_name(&self, tensor: &TensorInfo) -> String {
        match (self.dialect, tensor.ty) {
            (Dialect::Fork, GgmlType::FORK_TCQ4_K32) => format!("{} (id {})", GgmlType::TCQ4_K32, tensor.ty.0),
            (_, ty) => ty.to_string(),
        }
    }

    /// Gives the bytes of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.bytes().len() as u64).sum()
    }

    /// Refuses the model if a tensor has a type of unknown size; whoever needs all data asks this first.
    pub fn check_types(&self) -> Result<()> {
        let unknown = self.tensors.iter().find(|tensor| !tensor.is_known());
        unknown.map_or(Ok(()), |tensor| {
            Err(self.error(GgufError::UnknownType { tensor: tensor.name.clone(), id: tensor.ty.0 }))
        })
    }

    /// Gives the data of a tensor of this model: `bytes` bytes, none where the type is unknown.
    ///
    /// # Panics
    ///
    /// If the tensor belongs to another model and does not fit this one's files.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let start = tensor.offset as usize;
        &self.shards[tensor.shard()].map.bytes()[start..start + tensor.bytes as usize]
    }

    /// Takes the pages of a part of a tensor's data (a range of bytes within the tensor) off this process's memory: they stay in the
    /// system's cache and are read again when needed. Keeps the resident memory low while a model larger than memory is walked.
    pub fn release(&self, tensor: &TensorInfo, range: Range<usize>) {
        let end = (range.end as u64).min(tensor.bytes);
        self.shards[tensor.shard()].map.release(tensor.offset + range.start as u64..tensor.offset + end);
    }

    /// Reads rows of an F16, BF16 or F32 tensor as f32, from row `first` on; the tensor is seen as one matrix of `rows()` x `columns()`, and
    /// `out.len()` must be a multiple of the columns.
    ///
    /// # Panics
    ///
    /// If `out` holds no whole number of rows or passes the last one.
    pub fn read_rows(&self, tensor: &TensorInfo, first: u64, out: &mut [f32]) -> Result<()> {
        let columns = tensor.columns();
        let count = out.len() as u64 / columns;
        assert!((out.len() as u64).is_multiple_of(columns) && first + count <= tensor.rows(), "{first} + {count} rows");
        let width = match tensor.ty {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            other => {
                return Err(self.error(GgufError::NotFloat { tensor: tensor.name.clone(), ty: other.to_string() }));
            }
        };
        let start = (first * columns) as usize * width;
        let bytes = &self.data(tensor)[start..start + out.len() * width];
        // The casts cannot fail: files are mapped at pages, and tensors are aligned to 8 bytes at least.
        match tensor.ty {
            GgmlType::F32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
            GgmlType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(out),
            _ => bytemuck::cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(out),
        }
        Ok(())
    }

    /// Computes the SHA-256 of all files, one after the other, in lower-case hexadecimal digits.
    pub fn sha256(&self, progress: &dyn Progress) -> Result<String> {
        self.sha256_beside(progress, &mut |_, _, _| ())
    }

    /// As [`Source::sha256`], and shows every run of bytes on the way: the number of its file, its place there, and the bytes.
    pub fn sha256_beside(&self, progress: &dyn Progress, show: &mut dyn FnMut(usize, u64, &[u8])) -> Result<String> {
        let mut hash = Sha256::new();
        progress.begin("hash", self.total_bytes(), Unit::Bytes);
        for (number, shard) in self.shards.iter().enumerate() {
            let mut at = 0;
            for chunk in shard.map.bytes().chunks(HASH_CHUNK) {
                if progress.interrupted() {
                    return Err(Error::Interrupted);
                }
                hash.update(chunk);
                show(number, at, chunk);
                shard.map.release(at..at + chunk.len() as u64);
                at += chunk.len() as u64;
                progress.advance(chunk.len() as u64);
            }
        }
        progress.end();
        Ok(hex(&hash.finalize()))
    }

    fn error(&self, defect: GgufError) -> Error {
        Error::Gguf { path: self.path.clone(), defect }
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Source");
        debug.field("path", &self.path).field("shards", &self.shards.len()).field("keys", &self.metadata.len());
        debug.field("tensors", &self.tensors.len()).finish_non_exhaustive()
    }
}

/// Opens shard `shard` beside the one at `path`.
fn open_sibling(path: &Path, name: &ShardName, shard: u64) -> Result<Part> {
    let sibling = name.path(shard);
    Part::open(&sibling).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Error::Gguf {
            path: path.to_path_buf(),
            defect: GgufError::ShardMissing { number: shard, count: name.count, shard: sibling },
        },
        other => other,
    })
}

/// Places the tensors of all parts and finds whose meaning id 42 has: the guess by keys is tried first, and the other one if it contradicts
/// the offsets. Gives the first guess's error if neither fits.
fn place_parts(parts: &mut [Part]) -> Result<Dialect> {
    let has = |id| parts.iter().flat_map(|part| &part.header.tensors).any(|tensor| tensor.ty == id);
    let (ours, shared) = (has(GgmlType::TCQ4_K32), has(GgmlType::FORK_TCQ4_K32));
    let by_keys = parts.first().map_or(Dialect::Upstream, |part| Dialect::of(&part.header.metadata));
    let guess = if shared && !ours { by_keys } else { Dialect::Upstream };
    let other = if guess == Dialect::Fork { Dialect::Upstream } else { Dialect::Fork };
    match place_all(parts, guess) {
        Ok(()) => Ok(guess),
        Err(error) if !shared => Err(error),
        Err(error) => place_all(parts, other).map(|()| other).map_err(|_| error),
    }
}

/// Places all parts or none.
fn place_all(parts: &mut [Part], dialect: Dialect) -> Result<()> {
    for index in 0..parts.len() {
        if let Err(defect) = parts[index].place(dialect) {
            for part in &mut parts[..index] {
                let start = part.header.data_start;
                part.header.tensors.iter_mut().for_each(|tensor| tensor.offset -= start);
            }
            return Err(parts[index].error(defect));
        }
    }
    Ok(())
}
