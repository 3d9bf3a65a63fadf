//! Turns a page into one HTML file that needs nothing else: no network, no fonts, no other file.
//!
//! The content security policy allows exactly the style and the script that are written into the page, by their hashes; text from models is
//! escaped by the template engine.

use std::collections::HashSet;

use askama::Template;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::page::{Block, Finding, Page, Panel, Section, Weight};
use super::plot::Figure;
use super::table::{Cell, Column, Kind, PAGE_ROWS, Table};
use crate::error::{ReportError, Result};

const STYLE: &str = include_str!("templates/report.css");
const SCRIPT: &str = include_str!("templates/report.js");

/// Bytes that a page may take: as many panels are shown as fit, the others stand only in the files beside it.
const PAGE_BYTES: usize = 2_800_000;
/// Of these, bytes that are kept for panels; where tables would take them, the page shows fewer rows.
const PANEL_BYTES: usize = 700_000;
/// The fewest rows to which tables are shortened.
const FEWEST_ROWS: usize = 50;

#[derive(Template)]
#[template(path = "page.html")]
struct PageView<'a> {
    page: &'a Page,
    sections: Vec<SectionView<'a>>,
    policy: String,
    style: &'a str,
    script: &'a str,
    version: &'a str,
}

impl<'a> PageView<'a> {
    /// The tables outside panels.
    fn tables<'b>(&'b mut self) -> impl Iterator<Item = &'b mut TableView<'a>> {
        self.sections.iter_mut().flat_map(|section| &mut section.blocks).filter_map(|block| match block {
            BlockView::Table(table) => Some(table),
            BlockView::Figures(_) | BlockView::Choice { .. } => None,
        })
    }

    /// Takes away the links to panels that are not on the page.
    fn cut_links(&mut self) {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        let panels =
            blocks.flat_map(|block| if let BlockView::Choice { panels, .. } = block { &panels[..] } else { &[] });
        let known: HashSet<&str> = panels.map(|view| view.panel.id.as_str()).collect();
        for cell in self.tables().flat_map(|table| &mut table.rows).flatten() {
            cell.to = cell.to.filter(|to| known.contains(to));
        }
    }
}

struct SectionView<'a> {
    section: &'a Section,
    blocks: Vec<BlockView<'a>>,
}

enum BlockView<'a> {
    Figures(Vec<FigureView<'a>>),
    Table(TableView<'a>),
    Choice { id: &'a str, panels: Vec<PanelView<'a>>, left_out: usize },
}

struct PanelView<'a> {
    panel: &'a Panel,
    figures: Vec<FigureView<'a>>,
    tables: Vec<TableView<'a>>,
}

struct FigureView<'a> {
    figure: &'a Figure,
    wide: bool,
    svg: String,
    hover: String,
}

#[derive(Template)]
#[template(path = "table.html")]
struct TableView<'a> {
    table: &'a Table,
    columns: Vec<ColumnView<'a>>,
    rows: Vec<Vec<CellView<'a>>>,
}

struct ColumnView<'a> {
    column: &'a Column,
    is_number: bool,
    is_choice: bool,
}

struct CellView<'a> {
    cell: &'a Cell,
    is_number: bool,
    /// Where it leads: only to what is on the page.
    to: Option<&'a str>,
}

/// Renders a page.
///
/// # Errors
/// [`ReportError`] where a plot or the template fails.
pub fn html(page: &Page) -> Result<Vec<u8>> {
    let sections = page.sections.iter().map(section).collect::<Result<Vec<_>>>()?;
    let mut view =
        PageView { page, sections, policy: policy(), style: STYLE, script: SCRIPT, version: env!("CARGO_PKG_VERSION") };
    let panels: Vec<Vec<BlockView>> = view
        .sections
        .iter_mut()
        .map(|view| view.blocks.extract_if(.., |block| matches!(block, BlockView::Choice { .. })).collect())
        .collect();
    let mut bytes = render(&view)?.len();
    let mut rows = PAGE_ROWS;
    while bytes > PAGE_BYTES - PANEL_BYTES && rows > FEWEST_ROWS {
        rows /= 2;
        view.tables().for_each(|table| table.rows.truncate(rows));
        bytes = render(&view)?.len();
    }
    let mut room = PAGE_BYTES.saturating_sub(bytes);
    for (section, choices) in view.sections.iter_mut().zip(panels) {
        section.blocks.extend(choices.into_iter().map(|choice| fitted(choice, &mut room)));
    }
    view.cut_links();
    Ok(render(&view)?.into_bytes())
}

fn render(template: &impl Template) -> Result<String> {
    Ok(template.render().map_err(|error| ReportError::Page { reason: error.to_string() })?)
}

/// Keeps the first panels that fit into `room` bytes, at least one.
fn fitted<'a>(block: BlockView<'a>, room: &mut usize) -> BlockView<'a> {
    let BlockView::Choice { id, mut panels, .. } = block else { return block };
    let all = panels.len();
    let mut kept = 0;
    for panel in &panels {
        let bytes = panel.bytes();
        if bytes > *room && kept > 0 {
            break;
        }
        *room = room.saturating_sub(bytes);
        kept += 1;
    }
    panels.truncate(kept);
    BlockView::Choice { id, panels, left_out: all - kept }
}

/// Allows this style and this script and nothing else.
fn policy() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

fn section(section: &Section) -> Result<SectionView<'_>> {
    let blocks = section.blocks.iter().map(block).collect::<Result<Vec<_>>>()?;
    Ok(SectionView { section, blocks: blocks.into_iter().flatten().collect() })
}

/// A block, or nothing where it has nothing to show.
fn block(block: &Block) -> Result<Option<BlockView<'_>>> {
    Ok(match block {
        Block::Figures(list) => Some(figures(list)?).filter(|list| !list.is_empty()).map(BlockView::Figures),
        Block::Table(list) => table(list).map(BlockView::Table),
        Block::Choice(choice) => {
            let mut panels = choice.panels.par_iter().map(panel_view).collect::<Result<Vec<_>>>()?;
            panels.retain(|view| !view.figures.is_empty() || !view.tables.is_empty());
            (!panels.is_empty()).then_some(BlockView::Choice { id: &choice.id, panels, left_out: 0 })
        }
    })
}

fn panel_view(panel: &Panel) -> Result<PanelView<'_>> {
    let tables = panel.tables.iter().filter_map(table).collect();
    Ok(PanelView { panel, figures: figures(&panel.figures)?, tables })
}

fn figures(list: &[Figure]) -> Result<Vec<FigureView<'_>>> {
    list.iter().filter(|figure| !figure.is_empty()).map(figure).collect()
}

fn figure(figure: &Figure) -> Result<FigureView<'_>> {
    let drawing = figure.draw(false)?;
    let hover =
        serde_json::to_string(&drawing.hover).map_err(|error| ReportError::Page { reason: error.to_string() })?;
    let size = format!("<svg class=\"s{}\" aria-hidden=\"true\" ", drawing.width.div_ceil(20) * 20);
    let svg = drawing.svg.replacen("<svg ", &size, 1);
    Ok(FigureView { figure, wide: figure.is_wide(), svg, hover: hover.replace('<', "\\u003c") })
}

/// A table, or nothing where the page shows none of it.
fn table<'a>(table: &'a Table) -> Option<TableView<'a>> {
    let keep: Vec<usize> =
        (0..table.columns.len()).filter(|column| table.columns[*column].kind != Kind::FileOnly).collect();
    let columns: Vec<ColumnView> = keep.iter().map(|place| column(table, *place)).collect();
    let kept = |row: &'a Vec<Cell>| {
        let cells = keep.iter().filter_map(|place| row.get(*place)).zip(&columns);
        let to = |cell: &'a Cell| if let Cell::Link(_, to) = cell { Some(to.as_str()) } else { None };
        cells.map(|(cell, view)| CellView { cell, is_number: view.is_number, to: to(cell) }).collect()
    };
    let rows: Vec<Vec<CellView>> = table.rows.iter().take(table.on_page).map(kept).collect();
    (!rows.is_empty()).then_some(TableView { table, columns, rows })
}

/// A column; it holds numbers if all of its values do.
fn column(table: &Table, place: usize) -> ColumnView<'_> {
    let column = &table.columns[place];
    let words = |row: &Vec<Cell>| matches!(row.get(place), Some(Cell::Text(_) | Cell::Link(..)));
    let is_number = column.kind == Kind::Number || !table.rows.iter().any(words);
    ColumnView { column, is_number, is_choice: column.kind == Kind::Choice }
}

impl PanelView<'_> {
    /// About how many bytes it takes in the page.
    fn bytes(&self) -> usize {
        let figure = |view: &FigureView| view.svg.len() + view.hover.len() + 2 * view.figure.caption.len() + 400;
        let table = |view: &TableView| view.rows.len() * view.columns.len() * 28 + 2000;
        self.figures.iter().map(figure).sum::<usize>() + self.tables.iter().map(table).sum::<usize>() + 500
    }
}

impl Finding {
    fn class(&self) -> &'static str {
        match self.weight {
            Weight::Warning => "warning",
            Weight::Note => "note",
            Weight::Good => "good",
        }
    }

    fn word(&self) -> &'static str {
        match self.weight {
            Weight::Warning => "Look at this",
            Weight::Note => "Worth knowing",
            Weight::Good => "As it should be",
        }
    }
}
