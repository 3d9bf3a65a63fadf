//! Tables as values: the page shows them in short, a CSV file holds every row and digit.

use super::plot::{figures, short};

/// What a column holds; it decides how the page sorts and filters it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words.
    Text,
    /// Numbers.
    Number,
    /// A few distinct words or numbers, by which rows can be chosen.
    Choice,
    /// Left out of the page; in the file only.
    FileOnly,
}

/// Rows of a table on a page, if nothing else is said: enough for every matrix of a model of 80 layers.
pub const PAGE_ROWS: usize = 600;

/// One column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name in files: lower case with underscores.
    pub field: &'static str,
    /// Its heading on the page.
    pub title: &'static str,
    /// What it means, in a sentence; may be empty.
    pub help: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Not measured.
    None,
    /// Words.
    Text(String),
    /// Words that lead to a place on the page.
    Link(String, String),
    /// A number of things.
    Count(u64),
    /// A measured number.
    Real(f32),
    /// A ratio, shown in percent on the page and as it is in files.
    Share(f32),
}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The stem of its file, stable from run to run.
    pub name: String,
    /// What it lists.
    pub caption: String,
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
    /// How many rows the page shows at most; all of them stand in the file.
    pub on_page: usize,
    /// Whether it becomes a file of its own; tables that repeat a part of another do not.
    pub in_folder: bool,
}

impl Column {
    /// Words.
    pub const fn text(field: &'static str, title: &'static str, help: &'static str) -> Column {
        Column { field, title, help, kind: Kind::Text }
    }

    /// Numbers.
    pub const fn number(field: &'static str, title: &'static str, help: &'static str) -> Column {
        Column { field, title, help, kind: Kind::Number }
    }

    /// What rows can be chosen by.
    pub const fn choice(field: &'static str, title: &'static str, help: &'static str) -> Column {
        Column { field, title, help, kind: Kind::Choice }
    }

    /// Only in the file.
    pub const fn file(field: &'static str) -> Column {
        Column { field, title: field, help: "", kind: Kind::FileOnly }
    }
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Cell {
        Cell::Text(text.into())
    }

    /// A number, or nothing.
    pub fn real(value: Option<f32>) -> Cell {
        value.map_or(Cell::None, Cell::Real)
    }

    /// A ratio, or nothing.
    pub fn share(value: Option<f32>) -> Cell {
        value.map_or(Cell::None, Cell::Share)
    }

    /// A count, or nothing.
    pub fn count(value: Option<impl Into<u64>>) -> Cell {
        value.map_or(Cell::None, |value| Cell::Count(value.into()))
    }

    /// Gives what the page shows.
    pub fn shown(&self) -> String {
        match self {
            Cell::None => "–".to_owned(),
            Cell::Text(text) | Cell::Link(text, _) => text.clone(),
            Cell::Count(count) => count.to_string(),
            Cell::Real(value) => figures(f64::from(*value)),
            Cell::Share(value) => percent(f64::from(*value)),
        }
    }

    /// Gives the number to sort by, where what is shown does not say it exactly. Absent values have an empty one.
    pub fn sort_key(&self) -> Option<String> {
        match self {
            Cell::None => Some(String::new()),
            Cell::Real(value) | Cell::Share(value) if !value.is_finite() => Some(String::new()),
            Cell::Real(value) => (figures(f64::from(*value)).parse::<f32>() != Ok(*value)).then(|| value.to_string()),
            Cell::Share(value) => Some(value.to_string()),
            Cell::Text(_) | Cell::Link(..) | Cell::Count(_) => None,
        }
    }

    /// Gives what files hold: every digit, nothing where nothing was measured.
    fn plain(&self) -> String {
        match self {
            Cell::None => String::new(),
            Cell::Text(text) | Cell::Link(text, _) => text.clone(),
            Cell::Count(count) => count.to_string(),
            Cell::Real(value) | Cell::Share(value) if !value.is_finite() => String::new(),
            Cell::Real(value) | Cell::Share(value) => value.to_string(),
        }
    }
}

/// Writes a ratio in percent with three significant digits.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{} %", short(100.0 * share)) } else { "–".to_owned() }
}

impl Table {
    /// A table of which the page shows at most [`PAGE_ROWS`] rows.
    pub fn new(name: &str, caption: &str, columns: &[Column], rows: Vec<Vec<Cell>>) -> Table {
        Table {
            name: name.to_owned(),
            caption: caption.to_owned(),
            columns: columns.to_vec(),
            rows,
            on_page: PAGE_ROWS,
            in_folder: true,
        }
    }

    /// Shows at most `rows` of its rows on the page.
    #[must_use]
    pub fn showing(mut self, rows: usize) -> Table {
        self.on_page = rows;
        self
    }

    /// Keeps it out of the folder.
    #[must_use]
    pub fn page_only(mut self) -> Table {
        self.in_folder = false;
        self
    }

    /// Gives the table as CSV with a line of field names (RFC 4180, lines end in `\n`).
    pub fn csv(&self) -> Vec<u8> {
        let fields = self.columns.iter().map(|column| column.field.to_owned()).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(Cell::plain).collect::<Vec<String>>());
        let mut text = String::new();
        for row in std::iter::once(fields).chain(rows) {
            let row: Vec<String> = row.iter().map(|field| quoted(field)).collect();
            text.push_str(&row.join(","));
            text.push('\n');
        }
        text.into_bytes()
    }
}

fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_every_digit_and_quote_what_needs_it() {
        let columns = [Column::text("name", "Name", ""), Column::number("e", "e", ""), Column::file("share")];
        let rows = vec![
            vec![Cell::text("a,\"b\""), Cell::Real(0.123_456_7), Cell::Share(0.5)],
            vec![Cell::text("c"), Cell::None, Cell::Share(f32::NAN)],
        ];
        let table = Table::new("t", "", &columns, rows);
        let expected = "name,e,share\n\"a,\"\"b\"\"\",0.1234567,0.5\nc,,\n";
        assert_eq!(String::from_utf8(table.csv()).unwrap(), expected);
    }

    #[test]
    fn the_page_sorts_by_the_exact_number() {
        assert_eq!(Cell::Real(0.5).sort_key(), None);
        assert_eq!(Cell::Real(0.123_456_7).sort_key().as_deref(), Some("0.1234567"));
        assert_eq!(Cell::Share(0.25).sort_key().as_deref(), Some("0.25"));
        assert_eq!(Cell::None.sort_key().as_deref(), Some(""));
        assert_eq!((Cell::Share(0.12345).shown(), Cell::Real(f32::NAN).shown()), ("12.3 %".into(), "–".into()));
    }
}
