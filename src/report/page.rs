//! A page as a value: words, tables, figures and what was found. What it is about is decided by who builds it, how it looks by the templates.

use super::plot::Figure;
use super::table::Table;

/// A page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// The title.
    pub title: String,
    /// One sentence below it.
    pub lead: String,
    /// Facts about what was looked at, as name and value.
    pub facts: Vec<(String, String)>,
    /// What follows from the numbers, most important first.
    pub findings: Vec<Finding>,
    /// The sections.
    pub sections: Vec<Section>,
}

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Something to act on.
    Warning,
    /// Worth knowing.
    Note,
    /// As it should be.
    Good,
}

/// Something that follows from the numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// How it is to be taken.
    pub weight: Weight,
    /// A few words.
    pub title: String,
    /// A sentence or two with the numbers.
    pub text: String,
    /// The section that shows it.
    pub section: String,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section {
    /// Its anchor.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// What it shows and how to read it.
    pub words: Vec<String>,
    /// What follows, in a sentence; may be empty.
    pub follows: String,
    /// Why parts of it are missing.
    pub gaps: Vec<String>,
    /// Its tables, figures and panels.
    pub blocks: Vec<Block>,
}

/// A part of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// Figures side by side.
    Figures(Vec<Figure>),
    /// A table.
    Table(Table),
    /// Panels of which one is shown at a time.
    Choice(Choice),
}

/// Panels of which one is shown at a time, chosen by layer and name.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its anchor.
    pub id: String,
    /// The panels, the most interesting first.
    pub panels: Vec<Panel>,
}

/// One panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Its anchor.
    pub id: String,
    /// The layer, by which it can be chosen.
    pub layer: String,
    /// Its name within the layer.
    pub name: String,
    /// A sentence with its main numbers.
    pub words: String,
    /// What it shows.
    pub figures: Vec<Figure>,
    /// Its tables.
    pub tables: Vec<Table>,
}

impl Page {
    /// Gives every figure of the page and whether it stands in a panel; empty ones are left out.
    pub fn figures(&self) -> Vec<(&Figure, bool)> {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        let figures = blocks.flat_map(|block| match block {
            Block::Figures(figures) => figures.iter().map(|figure| (figure, false)).collect::<Vec<_>>(),
            Block::Choice(choice) => {
                choice.panels.iter().flat_map(|panel| &panel.figures).map(|figure| (figure, true)).collect()
            }
            Block::Table(_) => Vec::new(),
        });
        figures.filter(|(figure, _)| !figure.is_empty()).collect()
    }

    /// Gives every table of the page, those of all panels included.
    pub fn tables(&self) -> Vec<&Table> {
        let blocks = self.sections.iter().flat_map(|section| &section.blocks);
        let tables = blocks.flat_map(|block| match block {
            Block::Table(table) => vec![table],
            Block::Choice(choice) => choice.panels.iter().flat_map(|panel| &panel.tables).collect(),
            Block::Figures(_) => Vec::new(),
        });
        tables.collect()
    }
}

/// Gives an anchor for any name: letters, digits, `.`, `_` and `-` stay, anything else becomes `-`.
pub fn anchor(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}
