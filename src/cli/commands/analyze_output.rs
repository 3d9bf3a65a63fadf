//! Where `tcq4 analyze` writes: a JSON record, one HTML page, or a folder with the page, its tables and its pictures.

use std::fs;
use std::path::Path;

use crate::analysis::Analysis;
use crate::error::{Error, Result};
use crate::report::{self, NamedBytes};
use crate::util::atomic_file;

/// The page of a folder; written last, so that a folder with it is complete.
const PAGE: &str = "report.html";
/// The record of a folder.
const RECORD: &str = "analysis.json";

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Record,
    Page,
    Folder,
}

fn form(path: &Path) -> Result<Form> {
    let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    match extension.as_ref().and_then(|extension| extension.to_str()) {
        _ if path.as_os_str().to_string_lossy().ends_with('/') || path.is_dir() => Ok(Form::Folder),
        Some("json") => Ok(Form::Record),
        Some("html" | "htm") => Ok(Form::Page),
        _ => Err(Error::Usage {
            message: format!("{}: neither a page nor a record nor a folder", path.display()),
            hint: Some("choose a name that ends in .html, .json or /".into()),
        }),
    }
}

/// Refuses an output that cannot be written, before any work.
pub(super) fn check(path: &Path, force: bool, inputs: &[&Path]) -> Result<()> {
    if form(path)? != Form::Folder {
        return atomic_file::check_target(path, force, inputs);
    }
    if path.is_dir() {
        atomic_file::check_target(&path.join(PAGE), force, inputs)
    } else {
        let name = path.to_string_lossy();
        atomic_file::check_target(Path::new(name.trim_end_matches('/')), false, inputs)
    }
}

/// Writes the analysis in the form that the name asks for.
pub(super) fn write(path: &Path, force: bool, inputs: &[&Path], analysis: &Analysis) -> Result<()> {
    let record = || serde_json::to_vec(analysis).map_err(|error| Error::io(path, "write")(error.into()));
    match form(path)? {
        Form::Record => atomic_file::write(path, force, inputs, &record()?),
        Form::Page => atomic_file::write(path, force, inputs, &report::html::html(&report::analysis::page(analysis))?),
        Form::Folder => {
            let page = report::analysis::page(analysis);
            fs::create_dir_all(path).map_err(Error::io(path, "create"))?;
            let record = NamedBytes { name: RECORD.into(), bytes: record()? };
            write_into(path, force, inputs, &record)?;
            for exporter in report::FOLDER {
                exporter.export(&page)?.iter().try_for_each(|file| write_into(path, force, inputs, file))?;
            }
            Ok(())
        }
    }
}

fn write_into(folder: &Path, force: bool, inputs: &[&Path], file: &NamedBytes) -> Result<()> {
    let path = folder.join(&file.name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    }
    atomic_file::write(&path, force, inputs, &file.bytes)
}
