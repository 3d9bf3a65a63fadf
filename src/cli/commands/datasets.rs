//! `tcq4 datasets`: which data sets have names, which are here; fetching them.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::cli::args::{DatasetsArgs, DatasetsCommand};
use crate::cli::table::Table;
use crate::cli::{Outcome, Session, data};
use crate::corpus::catalogue::{CATALOGUE, Dataset, Known, Part};
use crate::corpus::{LoadOptions, Purpose, Store, dataset, fetch, is_here};
use crate::util::units::Bytes;

const PURPOSES: [(Purpose, &str); 2] = [(Purpose::Calibration, "calibration"), (Purpose::Evaluation, "evaluation")];

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    aliases: &'static [&'static str],
    about: &'static str,
    licence: &'static str,
    purpose: &'static str,
    split: &'static str,
    rule: &'static str,
    bytes: Option<u64>,
    sha256: Option<&'static str>,
    md5: Option<&'static str>,
    urls: &'static [&'static str],
    /// Where it is looked for.
    file: PathBuf,
    /// Where it lies.
    cached: Option<PathBuf>,
}

pub(in crate::cli) fn run(session: &Session, args: &DatasetsArgs) -> Outcome {
    let store = data::store(&args.store);
    match &args.command {
        None => list(session, &store),
        Some(DatasetsCommand::Fetch { names }) => fetch_all(session, store, names)?,
    }
    Ok(0)
}

fn list(session: &Session, store: &Store) {
    let entries: Vec<Entry> = CATALOGUE
        .iter()
        .flat_map(|set| PURPOSES.map(|(purpose, name)| entry(set, set.part(purpose), purpose, name, store)))
        .collect();
    let mut table = Table::new(&["name", "for", "split", "rule", ">size", "here", "licence"]);
    for entry in &entries {
        let size = entry.bytes.map_or_else(String::new, |bytes| Bytes(bytes).to_string());
        let here = if entry.cached.is_some() { "yes" } else { "no" };
        let cells = [entry.name, entry.purpose, entry.split, entry.rule, &size, here, entry.licence];
        table.row(cells.map(str::to_owned));
    }
    session.printer.text(&table.render());
    session.printer.text(&format!("folder: {}", store.folder.display()));
    session
        .printer
        .record("datasets", json!({ "folder": store.folder, "offline": store.offline, "datasets": entries }));
}

fn entry(set: &'static Dataset, part: &'static Part, purpose: Purpose, name: &'static str, store: &Store) -> Entry {
    let (bytes, sha256, md5) = match part.known {
        Known::Sha256(bytes, hash) => (Some(bytes), Some(hash), None),
        Known::Md5(hash) => (None, None, Some(hash)),
        Known::Nothing => (None, None, None),
    };
    Entry {
        name: set.name,
        aliases: set.aliases,
        about: set.about,
        licence: set.licence,
        purpose: name,
        split: part.split,
        rule: part.rule.name(),
        bytes,
        sha256,
        md5,
        urls: part.origin.urls(),
        file: store.path(part.file),
        cached: is_here(set, purpose, store),
    }
}

fn fetch_all(session: &Session, store: Store, names: &[String]) -> crate::Result<()> {
    let sets = names.iter().map(|name| dataset(name)).collect::<crate::Result<Vec<_>>>()?;
    let options = LoadOptions { store, ..LoadOptions::default() };
    let mut fetched = Vec::new();
    for set in sets {
        for (purpose, name) in PURPOSES {
            let path = fetch(set, purpose, &options, &session.progress)?;
            session.printer.text(&format!("{} ({name}): {}", set.name, path.display()));
            fetched.push(json!({ "name": set.name, "purpose": name, "file": Path::new(&path) }));
        }
    }
    session.printer.record("datasets", json!({ "folder": options.store.folder, "fetched": fetched }));
    Ok(())
}
