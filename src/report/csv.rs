//! Numbers as CSV (RFC 4180, comma, newline, point): for spreadsheets and data frames. Values are written so that they come back bit for bit.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::inspect::{ChannelRow, RowData};

/// The rows as CSV, with their fields' names as header.
///
/// # Errors
/// If a row cannot be written as a line.
pub fn records(rows: impl IntoIterator<Item = impl Serialize>) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(refused)?;
    }
    writer.into_inner().map_err(|error| refused(error.into_error().into()))
}

/// Channels of weights, one a line.
///
/// # Errors
/// As [`records`].
pub fn channels<'a>(rows: impl IntoIterator<Item = ChannelRow<'a>>) -> Result<Vec<u8>> {
    records(rows)
}

/// What a scale does to rows of one weight, a line an input channel; with `numbered` the output row stands first in each line.
///
/// # Errors
/// As [`records`].
pub fn row_data(rows: &[RowData], numbered: bool) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let heads = ["output_channel_id", "input_channel_id", "E[X]", "E[Xs]", "W", "W_scaled", "scale"];
    let from = usize::from(!numbered);
    writer.write_record(&heads[from..]).map_err(refused)?;
    for data in rows {
        for j in 0..data.weight.len() {
            let line = [
                data.row.to_string(),
                j.to_string(),
                data.mean[j].to_string(),
                data.mean_scaled[j].to_string(),
                data.weight[j].to_string(),
                data.weight_scaled[j].to_string(),
                data.scale[j].to_string(),
            ];
            writer.write_record(&line[from..]).map_err(refused)?;
        }
    }
    writer.into_inner().map_err(|error| refused(error.into_error().into()))
}

fn refused(error: csv::Error) -> Error {
    Error::io("CSV", "write")(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(row: u64) -> RowData {
        RowData {
            row,
            mean: vec![0.1, -2.0],
            mean_scaled: vec![0.05, -4.0],
            weight: vec![0.1, 3.0],
            weight_scaled: vec![0.2, 1.5],
            scale: vec![2.0, 0.5],
        }
    }

    #[test]
    fn rows_of_a_weight() {
        let text = |rows: &[RowData], numbered| String::from_utf8(row_data(rows, numbered).unwrap()).unwrap();
        assert_eq!(
            text(&[data(7)], false),
            "input_channel_id,E[X],E[Xs],W,W_scaled,scale\n0,0.1,0.05,0.1,0.2,2\n1,-2,-4,3,1.5,0.5\n"
        );
        let all = text(&[data(0), data(1)], true);
        assert!(all.starts_with("output_channel_id,input_channel_id,E[X]") && all.contains("\n1,0,0.1,"), "{all}");
    }

    #[test]
    fn records_quote_what_needs_it_and_leave_out_what_is_not_there() {
        #[derive(Serialize)]
        struct Row {
            name: &'static str,
            value: Option<f32>,
        }
        let rows = [Row { name: "a,\"b\"", value: Some(0.1) }, Row { name: "c", value: None }];
        let text = String::from_utf8(records(rows).unwrap()).unwrap();
        assert_eq!(text, "name,value\n\"a,\"\"b\"\"\",0.1\nc,\n");
    }
}
