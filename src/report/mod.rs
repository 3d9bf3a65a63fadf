//! Views of results for people: pages, pictures and tables as bytes. Nothing here measures anything or writes a file.

pub mod analysis;
pub mod csv;
pub mod html;
pub mod markdown;
pub mod npz;
pub mod page;
pub mod plot;
pub mod png;
pub mod table;

use crate::error::Result;
use page::Page;

/// A file to be, by its name within the output folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedBytes {
    /// The name.
    pub name: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// Turns a page into files. Pure: the same page gives the same bytes.
pub trait Exporter: Sync {
    /// Gives the files.
    ///
    /// # Errors
    /// [`crate::error::ReportError`] where something cannot be drawn.
    fn export(&self, page: &Page) -> Result<Vec<NamedBytes>>;
}

/// The page itself, as `report.html`.
#[derive(Debug, Clone, Copy)]
pub struct Html;

/// Every table as CSV.
#[derive(Debug, Clone, Copy)]
pub struct Csv;

/// Every plot as SVG and, where this build can, as PNG; those of panels in the folder `details`.
#[derive(Debug, Clone, Copy)]
pub struct Pictures;

/// The exporters of a folder, in the order in which its files are written.
pub const FOLDER: [&dyn Exporter; 3] = [&Csv, &Pictures, &Html];

impl Exporter for Html {
    fn export(&self, page: &Page) -> Result<Vec<NamedBytes>> {
        Ok(vec![NamedBytes { name: "report.html".into(), bytes: html::html(page)? }])
    }
}

impl Exporter for Csv {
    fn export(&self, page: &Page) -> Result<Vec<NamedBytes>> {
        let file = |table: &&table::Table| NamedBytes { name: format!("{}.csv", table.name), bytes: table.csv() };
        Ok(page.tables().iter().filter(|table| table.in_folder).map(file).collect())
    }
}

impl Exporter for Pictures {
    fn export(&self, page: &Page) -> Result<Vec<NamedBytes>> {
        use rayon::prelude::*;

        let files = page.figures().into_par_iter().map(|(figure, in_panel)| {
            let stem = format!("{}{}", if in_panel { "details/" } else { "" }, figure.name);
            let drawing = figure.draw(true)?;
            let mut files = Vec::new();
            if png::AVAILABLE {
                let bytes = png::png(&figure.name, &drawing.svg)?;
                files.push(NamedBytes { name: format!("{stem}.png"), bytes });
            }
            files.push(NamedBytes { name: format!("{stem}.svg"), bytes: drawing.svg.into_bytes() });
            Ok(files)
        });
        Ok(files.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}
