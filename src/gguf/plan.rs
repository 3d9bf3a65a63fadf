//! Plans every byte of an output before any is written: headers, places and sizes of all tensors over one or several files. No input or output happens here.

use std::path::{Path, PathBuf};

use super::header::{ALIGNMENT_KEY, MAGIC, VERSION, check_alignment};
use super::limits::{DEFAULT_ALIGNMENT, MAX_DIMS, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_SHARDS, MAX_TENSORS};
use super::merge::{COUNT_KEY, NUMBER_KEY, TENSORS_KEY};
use super::metadata::Metadata;
use super::names::{first_duplicate, sorted_by_name};
use super::shards::output_paths;
use super::tensor::{TensorSpec, data_bytes};
use super::types::Dialect;
use crate::error::GgufError;

/// How an output is divided into files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sharding {
    /// One file.
    Single,
    /// Files of at most so many bytes; a tensor that is larger than that gets a file of its own. One file if everything fits.
    MaxBytes(u64),
    /// So many tensors in each file, for instance [`super::Source::shard_sizes`]; the last file takes what is left.
    Counts(Vec<usize>),
}

/// The bytes of an output: which stand where, in which file.
#[derive(Clone, Debug)]
pub struct Plan {
    metadata: Metadata,
    tensors: Vec<TensorSpec>,
    places: Vec<Place>,
    files: Vec<FilePlan>,
    alignment: u64,
}

/// Where a tensor's data goes.
#[derive(Copy, Clone, Debug)]
struct Place {
    file: usize,
    /// From the start of the data section.
    offset: u64,
    bytes: u64,
}

/// One file of an output, with the tensors from `first` to before `end`.
#[derive(Copy, Clone, Debug)]
struct FilePlan {
    first: usize,
    end: usize,
    data_start: u64,
    total: u64,
}

impl Plan {
    /// Plans one file. Id 42 is sized as [`Dialect::of`] the keys says.
    pub fn new(metadata: &Metadata, tensors: Vec<TensorSpec>, alignment: u64) -> Result<Plan, GgufError> {
        Plan::sharded(metadata, tensors, alignment, &Sharding::Single, Dialect::of(metadata))
    }

    /// Plans one or several files, in a dialect. `general.alignment` is set to `alignment` where the keys say something else.
    pub fn sharded(
        metadata: &Metadata,
        tensors: Vec<TensorSpec>,
        alignment: u64,
        sharding: &Sharding,
        dialect: Dialect,
    ) -> Result<Plan, GgufError> {
        check_alignment(alignment)?;
        check_tensors(&tensors)?;
        let mut places = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            let bytes = data_bytes(&tensor.name, &tensor.dims, tensor.ty, dialect)?;
            let bytes = bytes.ok_or_else(|| GgufError::UnknownType { tensor: tensor.name.clone(), id: tensor.ty.0 })?;
            places.push(Place { file: 0, offset: 0, bytes });
        }
        let metadata = with_alignment(metadata, alignment);
        metadata.check()?;
        let mut plan = Plan { metadata, tensors, places, files: Vec::new(), alignment };
        plan.divide(sharding)?;
        plan.arrange()?;
        Ok(plan)
    }

    /// Gives the number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Tells whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Gives the tensors in the order of their numbers.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Gives the bytes of a tensor's data.
    pub fn tensor_bytes(&self, tensor: usize) -> u64 {
        self.places[tensor].bytes
    }

    /// Gives where a tensor's data starts within its file.
    pub fn tensor_offset(&self, tensor: usize) -> u64 {
        let place = self.places[tensor];
        self.files[place.file].data_start + place.offset
    }

    /// Gives the number of the file that takes a tensor.
    pub fn tensor_file(&self, tensor: usize) -> usize {
        self.places[tensor].file
    }

    /// Gives the number of files.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Gives the bytes of one file.
    pub fn file_bytes(&self, file: usize) -> u64 {
        self.files[file].total
    }

    /// Gives the bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.total).sum()
    }

    /// Gives the paths of the files for an output named `path`: itself, or the names of shards made from it.
    pub fn paths(&self, path: &Path) -> Vec<PathBuf> {
        if self.files.len() == 1 { vec![path.to_path_buf()] } else { output_paths(path, self.files.len() as u64) }
    }

    /// Gives the bytes of a file before its tensor data, padding included.
    pub fn header(&self, file: usize) -> Vec<u8> {
        let FilePlan { first, end, data_start, .. } = self.files[file];
        let metadata = self.file_metadata(file, self.files.len());
        let mut out = Vec::with_capacity(data_start as usize);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(((end - first) as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        metadata.write(&mut out);
        for (tensor, place) in self.tensors[first..end].iter().zip(&self.places[first..end]) {
            tensor.write(place.offset, &mut out);
        }
        out.resize(data_start as usize, 0);
        out
    }

    /// Replaces the keys; the header must keep its length, so that no tensor moves.
    pub fn set_metadata(&mut self, metadata: &Metadata) -> Result<(), GgufError> {
        let metadata = with_alignment(metadata, self.alignment);
        metadata.check()?;
        let (found, expected) = (metadata.written_bytes(), self.metadata.written_bytes());
        if found != expected {
            return Err(GgufError::HeaderLength { found, expected });
        }
        self.metadata = metadata;
        Ok(())
    }

    /// Gives the keys of one file: all in the first, only those of sharding in the others.
    fn file_metadata(&self, file: usize, count: usize) -> Metadata {
        let mut metadata =
            if file == 0 { self.metadata.clone() } else { with_alignment(&Metadata::new(), self.alignment) };
        if count > 1 {
            // The types are those of llama-gguf-split.
            metadata.set(NUMBER_KEY, file as u16);
            metadata.set(COUNT_KEY, count as u16);
            metadata.set(TENSORS_KEY, self.tensors.len() as i32);
        }
        metadata
    }

    /// Gives the bytes of a header without its tensors.
    fn base_bytes(&self, file: usize, count: usize) -> u64 {
        4 + 4 + 8 + 8 + self.file_metadata(file, count).written_bytes()
    }

    /// Decides which tensors go to which file.
    fn divide(&mut self, sharding: &Sharding) -> Result<(), GgufError> {
        let bounds = match sharding {
            Sharding::Single => vec![self.tensors.len()],
            Sharding::MaxBytes(limit) => self.divide_by_bytes(*limit),
            Sharding::Counts(counts) => divide_by_counts(counts, self.tensors.len()),
        };
        if bounds.len() as u64 > MAX_SHARDS {
            let found = bounds.len() as u64;
            return Err(GgufError::Limit { what: "a shard count", found, limit: MAX_SHARDS, offset: 0 });
        }
        let mut first = 0;
        for (file, end) in bounds.into_iter().enumerate() {
            self.places[first..end].iter_mut().for_each(|place| place.file = file);
            self.files.push(FilePlan { first, end, data_start: 0, total: 0 });
            first = end;
        }
        Ok(())
    }

    /// Fills files in order up to `limit` bytes; gives the end of each.
    fn divide_by_bytes(&self, limit: u64) -> Vec<usize> {
        let padded = |bytes: u64| bytes.div_ceil(self.alignment).saturating_mul(self.alignment);
        let cost = |index: usize| (self.tensors[index].written_bytes(), padded(self.places[index].bytes));
        // Two files stand for any number above one: their keys have the same length.
        let (base, next_base) = (self.base_bytes(0, 2), self.base_bytes(1, 2));
        let (mut header, mut data, mut first) = (base, 0u64, 0);
        let mut bounds = Vec::new();
        for index in 0..self.tensors.len() {
            let (own_header, own_data) = cost(index);
            if index > first && padded(header + own_header).saturating_add(data).saturating_add(own_data) > limit {
                bounds.push(index);
                (header, data, first) = (next_base, 0, index);
            }
            header += own_header;
            data = data.saturating_add(own_data);
        }
        bounds.push(self.tensors.len());
        bounds
    }

    /// Gives every tensor its offset and every file its size.
    fn arrange(&mut self) -> Result<(), GgufError> {
        let count = self.files.len();
        for index in 0..count {
            let FilePlan { first, end, .. } = self.files[index];
            let specs: u64 = self.tensors[first..end].iter().map(TensorSpec::written_bytes).sum();
            let found = self.base_bytes(index, count) + specs;
            if found > MAX_HEADER_BYTES {
                return Err(GgufError::Limit { what: "a header length", found, limit: MAX_HEADER_BYTES, offset: 0 });
            }
            let data_start = found.next_multiple_of(self.alignment);
            let mut at = 0u64;
            for (place, tensor) in self.places[first..end].iter_mut().zip(&self.tensors[first..end]) {
                place.offset = at;
                let next = at.checked_add(place.bytes).and_then(|next| next.checked_next_multiple_of(self.alignment));
                // Files end below 2^63, so that every offset fits the signed numbers of the system.
                let next = next.filter(|next| *next < (1 << 63) - data_start);
                at =
                    next.ok_or_else(|| GgufError::TooLarge { tensor: tensor.name.clone(), dims: tensor.dims.clone() })?;
            }
            self.files[index] = FilePlan { first, end, data_start, total: data_start + at };
        }
        Ok(())
    }
}

/// Copies the keys, with `general.alignment` as it has to be.
fn with_alignment(metadata: &Metadata, alignment: u64) -> Metadata {
    let mut metadata = metadata.clone();
    let said = metadata.get_u64(ALIGNMENT_KEY);
    if said != Some(alignment) && (said.is_some() || alignment != DEFAULT_ALIGNMENT) {
        metadata.set(ALIGNMENT_KEY, alignment as u32);
    }
    metadata
}

/// Gives the end of each file for given numbers of tensors.
fn divide_by_counts(counts: &[usize], tensors: usize) -> Vec<usize> {
    let mut bounds: Vec<usize> = counts
        .iter()
        .scan(0usize, |end, count| {
            *end = end.saturating_add(*count).min(tensors);
            Some(*end)
        })
        .collect();
    bounds.pop();
    bounds.push(tensors);
    bounds
}

/// Checks names, their number and the shapes.
fn check_tensors(tensors: &[TensorSpec]) -> Result<(), GgufError> {
    let limit = |what, found, limit| Err(GgufError::Limit { what, found, limit, offset: 0 });
    if tensors.len() as u64 > MAX_TENSORS {
        return limit("a tensor count", tensors.len() as u64, MAX_TENSORS);
    }
    for (index, tensor) in (0..).zip(tensors) {
        let (name, dims) = (tensor.name.len() as u64, tensor.dims.len() as u64);
        if name == 0 {
            return Err(GgufError::EmptyName { what: "tensor name", index, offset: 0 });
        }
        if name > MAX_NAME_BYTES {
            return limit("a tensor name length", name, MAX_NAME_BYTES);
        }
        if dims == 0 || dims > MAX_DIMS {
            return limit("a dimension count", dims, MAX_DIMS);
        }
    }
    let order = sorted_by_name(tensors.len(), |index| &tensors[index].name);
    match first_duplicate(&order, |index| &tensors[index].name) {
        None => Ok(()),
        Some(index) => Err(GgufError::Duplicate { what: "tensor", name: tensors[index].name.clone() }),
    }
}
