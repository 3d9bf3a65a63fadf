//! Puts the parts of a conversion together: the bytes that one run on one machine would have written. Encodes nothing, and trusts no part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::hash::tensor_sha256;
use super::keys::{KEY_RECIPE, KEY_SOURCE, hash_key, permutations};
use super::parts::{Description, is_own, remove_description};
use super::units::in_order;
use crate::error::parts::missing;
use crate::error::{ConvertError, Error, GgufError, PartsError, Result};
use crate::gguf::{Dialect, Metadata, Plan, Source, TensorInfo, TensorSpec, Writer};
use crate::util::progress::{Progress, Unit};

/// What [`merge_parts`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct MergedParts {
    /// The files, shards in order.
    pub outputs: Vec<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Parts that were put together.
    pub parts: usize,
    /// Tensors of the model.
    pub tensors: usize,
    /// SHA-256 of the source that all parts were made from, as the first part has read it.
    pub source_sha256: String,
}

/// A part, open.
struct Opened {
    file: Source,
    says: Description,
}

/// Reads all parts of a conversion, checks that they belong together, writes the model that they make, and proves every tensor by the hash that was
/// taken when it was encoded.
///
/// # Errors
/// [`PartsError`] for parts of other conversions, parts given twice and parts that lack; [`ConvertError::Damaged`] for bytes that are not those that were
/// hashed; what [`Source`] and [`Writer`] refuse.
pub fn merge_parts(paths: &[PathBuf], output: &Path, force: bool, progress: &dyn Progress) -> Result<MergedParts> {
    let parts = paths.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    let Some(first) = parts.first() else {
        return Err(Error::Usage { message: "there are no parts to merge".into(), hint: None });
    };
    parts[1..].iter().try_for_each(|part| check_same(first, part))?;
    check_complete(&parts)?;
    let owners = owners(&parts)?;
    check_source(&parts)?;
    let metadata = metadata(head(&parts), &owners);
    let plan = plan(&parts, &owners, &metadata).map_err(|defect| defect.at(output))?;
    let inputs: Vec<&Path> = parts.iter().flat_map(|part| part.file.shards()).collect();
    let writer = Writer::create(output, &plan, force, &inputs)?;
    progress.begin("put together", plan.total_bytes(), Unit::Bytes);
    for (index, (part, tensor)) in owners.iter().enumerate() {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        writer.copy(index, &part.file, tensor)?;
        progress.advance(tensor.bytes);
    }
    progress.end();
    prove(&writer.reread()?, &owners, progress)?;
    let outputs = writer.paths().map(PathBuf::from).collect();
    writer.commit()?;
    let source_sha256 = metadata.get_str(KEY_SOURCE).map(std::borrow::Cow::into_owned).unwrap_or_default();
    Ok(MergedParts { outputs, bytes: plan.total_bytes(), parts: parts.len(), tensors: owners.len(), source_sha256 })
}

fn open(path: &Path) -> Result<Opened> {
    let file = Source::open(path)?;
    file.check_types()?;
    let says = Description::read(&file)?;
    Ok(Opened { file, says })
}

/// Checks that a part is of the conversion that the first is of.
fn check_same(first: &Opened, part: &Opened) -> Result<(), PartsError> {
    let differ = |what: &str, expected: String, found: String| {
        let (path, first) = (part.file.path().to_path_buf(), first.file.path().to_path_buf());
        PartsError::Another { path, first, what: what.into(), expected: expected.into(), found: found.into() }
    };
    let text =
        |part: &Opened, key| part.file.metadata().get_str(key).map_or("none".into(), std::borrow::Cow::into_owned);
    let facts = |part: &Opened| {
        [
            ("version", part.says.version.clone()),
            ("recipe", text(part, KEY_RECIPE)),
            ("number of parts", part.says.shard.count.to_string()),
        ]
    };
    for ((what, expected), (_, found)) in facts(first).into_iter().zip(facts(part)) {
        if expected != found {
            return Err(differ(what, expected, found));
        }
    }
    let (mine, theirs) = (first.file.metadata(), part.file.metadata());
    let hashes: BTreeSet<String> = first.says.tensors.iter().map(|name| hash_key(name)).collect();
    let compared = |key: &&str| !is_own(key) && !hashes.contains(*key);
    let odd = mine.keys().chain(theirs.keys()).filter(compared).find(|key| mine.payload(key) != theirs.payload(key));
    match odd {
        None => Ok(()),
        Some(key) => {
            let show = |metadata: &Metadata| {
                let text = metadata.get(key).map_or("none".to_owned(), |value| format!("{value:?}"));
                if text.chars().count() <= 80 { text } else { text.chars().take(77).chain("...".chars()).collect() }
            };
            Err(differ(&format!("value of `{key}`"), show(mine), show(theirs)))
        }
    }
}

/// The part that knows most of the source.
fn head(parts: &[Opened]) -> &Opened {
    parts.iter().min_by_key(|part| part.says.shard.index).unwrap_or(&parts[0])
}

/// Checks that every part was made of the source that the first part has read.
fn check_source(parts: &[Opened]) -> Result<(), PartsError> {
    let head = head(parts);
    let known: BTreeMap<&String, &String> = head.says.tensors.iter().zip(&head.says.source).collect();
    for part in parts.iter().filter(|part| part.says.shard.index != head.says.shard.index) {
        for (tensor, found) in part.file.tensors().iter().zip(&part.says.source) {
            let expected = known.get(&tensor.name).map_or("none", |hash| hash.as_str());
            if expected != found {
                let (path, first) = (part.file.path().into(), head.file.path().into());
                let what = format!("source (XXH3 of `{}`)", tensor.name).into();
                let (expected, found) = (expected.into(), found.as_str().into());
                return Err(PartsError::Another { path, first, what, expected, found });
            }
        }
    }
    Ok(())
}

/// Checks that every part is there, once.
fn check_complete(parts: &[Opened]) -> Result<(), PartsError> {
    let mut seen: Vec<(u32, &Path)> = Vec::new();
    for part in parts {
        let (shard, path) = (part.says.shard, part.file.path());
        if let Some((_, other)) = seen.iter().find(|(index, _)| *index == shard.index) {
            let (path, other) = (path.to_path_buf(), other.to_path_buf());
            return Err(PartsError::Double { path, other, shard: shard.to_string() });
        }
        seen.push((shard.index, path));
    }
    let count = parts[0].says.shard.count;
    if seen.len() < count as usize {
        let (first, found) = (parts[0].file.path().to_path_buf(), seen.len());
        let indices: Vec<u32> = seen.into_iter().map(|(index, _)| index).collect();
        return Err(PartsError::Missing { first, count, found, missing: missing(&indices, count) });
    }
    Ok(())
}

/// For each tensor of the model, in order, the part that has it.
fn owners(parts: &[Opened]) -> Result<Vec<(&Opened, &TensorInfo)>, PartsError> {
    let names = &parts[0].says.tensors;
    let mut owners = Vec::with_capacity(names.len());
    for name in names {
        let mut having = parts.iter().filter_map(|part| Some((part, part.file.tensor(name)?)));
        let unusable = |part: &Opened, what: String| PartsError::Unusable { path: part.file.path().into(), what };
        let Some(owner) = having.next() else {
            return Err(unusable(&parts[0], format!("tensor `{name}` is in none of the parts")));
        };
        if let Some((twice, _)) = having.next() {
            let other = owner.0.file.path().display();
            return Err(unusable(twice, format!("tensor `{name}` is in {other} too")));
        }
        owners.push(owner);
    }
    let held: usize = parts.iter().map(|part| part.file.tensors().len()).sum();
    if held != owners.len() {
        let known = |part: &&Opened| part.file.tensors().iter().all(|tensor| names.contains(&tensor.name));
        let odd = parts.iter().find(|part| !known(part)).unwrap_or(&parts[0]);
        let what = "it has a tensor that is not of the model".to_owned();
        return Err(PartsError::Unusable { path: odd.file.path().to_path_buf(), what });
    }
    Ok(owners)
}

/// The keys of the whole: those of any part, with the hash of each tensor as its owner knows it.
fn metadata(first: &Opened, owners: &[(&Opened, &TensorInfo)]) -> Metadata {
    let mut metadata = first.file.metadata().clone();
    remove_description(&mut metadata);
    for (part, tensor) in owners {
        let key = hash_key(&tensor.name);
        if let Some(hash) = part.file.metadata().get_str(&key) {
            metadata.set(&key, hash.as_ref());
        }
    }
    metadata
}

fn plan(parts: &[Opened], owners: &[(&Opened, &TensorInfo)], metadata: &Metadata) -> Result<Plan, GgufError> {
    let first = &parts[0];
    let spec = |(_, tensor): &(&Opened, &TensorInfo)| TensorSpec {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        ty: tensor.ty,
    };
    let fork = parts.iter().any(|part| part.file.dialect() == Dialect::Fork);
    let dialect = if fork { Dialect::Fork } else { Dialect::Upstream };
    let specs = owners.iter().map(spec).collect();
    Plan::sharded(metadata, specs, first.file.alignment(), &first.says.sharding, dialect)
}

/// Reads the output back and compares every tensor with the hash that its part has of it.
fn prove(view: &Source, owners: &[(&Opened, &TensorInfo)], progress: &dyn Progress) -> Result<()> {
    let orders = permutations(view)?;
    progress.begin("read back", view.total_bytes(), Unit::Bytes);
    let proven = in_order(owners, |(part, tensor)| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let fail = |problem: &str| ConvertError::Damaged {
            path: part.file.path().to_path_buf(),
            tensor: tensor.name.clone(),
            problem: problem.to_owned(),
        };
        let info = view.tensor(&tensor.name).ok_or_else(|| fail("it is not in the file that was just written"))?;
        let found = tensor_sha256(view.data(info), orders.get(&tensor.name));
        let expected = part.file.metadata().get_str(&hash_key(&tensor.name));
        if expected.as_deref() != Some(found.as_str()) {
            return Err(fail("its bytes or its permutation are not those that were written").into());
        }
        view.release(info, 0..info.bytes as usize);
        progress.advance(info.bytes);
        Ok(())
    });
    progress.end();
    proven.map(|_| ())
}
