//! Where the report of a batch goes: Markdown, one HTML page, a JSON record, or a folder with all of them, tables and pictures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::cli::printer::record_text;
use crate::error::{Error, Result};
use crate::pipeline::events::Status;
use crate::pipeline::report::{markdown, page};
use crate::pipeline::runner::Summary;
use crate::report::{self, NamedBytes};
use crate::util::atomic_file;

/// The record of a batch.
#[derive(Serialize)]
pub(super) struct Record<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    counts: BTreeMap<Status, usize>,
    exit_code: u8,
}

impl<'a> Record<'a> {
    pub(super) fn of(summary: &'a Summary) -> Self {
        Self { summary, counts: summary.counts(), exit_code: summary.exit_code() }
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Markdown,
    Page,
    Record,
    Folder,
}

fn form(path: &Path) -> Result<Form> {
    let extension = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    match extension.as_ref().and_then(|extension| extension.to_str()) {
        _ if path.as_os_str().to_string_lossy().ends_with('/') || path.is_dir() => Ok(Form::Folder),
        Some("md") => Ok(Form::Markdown),
        Some("html" | "htm") => Ok(Form::Page),
        Some("json") => Ok(Form::Record),
        _ => Err(Error::Usage {
            message: format!("{}: no form of a report", path.display()),
            hint: Some("choose a name that ends in .md, .html, .json or /".into()),
        }),
    }
}

/// Refuses a report that cannot be written, before any work.
pub(super) fn check(path: &Path, inputs: &[&Path]) -> Result<()> {
    if form(path)? == Form::Folder {
        return fs::create_dir_all(path).map_err(Error::io(path, "create the folder"));
    }
    atomic_file::check_target(path, true, inputs)
}

/// Writes the report in the form that the name asks for.
pub(super) fn write(path: &Path, summary: &Summary, title: &str) -> Result<()> {
    let record = || record_text("batch", Record::of(summary)).unwrap_or_default().into_bytes();
    let save = |path: &Path, bytes: &[u8]| atomic_file::write(path, true, &[], bytes);
    match form(path)? {
        Form::Markdown => save(path, markdown(summary, title).as_bytes()),
        Form::Page => save(path, &report::html::html(&page(summary, title))?),
        Form::Record => save(path, &record()),
        Form::Folder => {
            let page = page(summary, title);
            let mut files = vec![
                NamedBytes { name: "report.md".into(), bytes: markdown(summary, title).into_bytes() },
                NamedBytes { name: "batch.json".into(), bytes: record() },
            ];
            for exporter in report::FOLDER {
                files.extend(exporter.export(&page)?);
            }
            files.iter().try_for_each(|file| save(&path.join(&file.name), &file.bytes))
        }
    }
}
