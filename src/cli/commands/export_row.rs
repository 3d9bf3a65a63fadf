//! `tcq4 export row`: what a scale does to the rows of one weight, channel by channel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::export::write_json;
use super::statistics;
use crate::cli::args::RowArgs;
use crate::cli::settings::{self, Setting};
use crate::cli::{Outcome, Session};
use crate::convert::{Conversion, PlanSettings, read_rows};
use crate::error::{Error, ExportError, Result};
use crate::gguf::{Source, TensorInfo};
use crate::inspect::{DEFINITIONS, RowData, RowMetadata, RowSource};
use crate::model::{Arch, Shape, groups};
use crate::quant::{GroupOutcome, Settings, prepare};
use crate::report::csv::row_data;
use crate::report::npz::{Array, Values, npz};
use crate::util::atomic_file::{self, check_target};
use crate::util::progress::Progress;

/// Weights of a tensor that `--all-channels` takes: about a gigabyte of text.
const MOST_VALUES: u64 = 1 << 24;

pub(super) fn run(session: &Session, args: &RowArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let tensor = tensor(&source, &args.tensor)?;
    let outputs = Outputs::of(args, &tensor.name);
    let inputs: Vec<&Path> = source.shards().chain([args.stats.as_path()]).collect();
    for output in outputs.all() {
        if args.output.exists() {
            check_target(output, args.force, &inputs)?;
        }
    }
    if args.all_channels && tensor.elements() > MOST_VALUES {
        return Err(Error::Usage {
            message: format!("`{}` has {} weights, too many for one table", tensor.name, tensor.elements()),
            hint: Some("export single rows with --row".into()),
        }
        .into());
    }
    let statistics = statistics::load(&args.stats, &source)?;
    let settings = settings(session, args, &source, &tensor.name)?;
    let read = |tensor: &TensorInfo, first, out: &mut [f32]| read_rows(&source, tensor, first, out);
    let prepared = prepare(&source, &read, Some(&statistics), &settings, &session.progress)?;
    let group = prepared.groups.iter().find(|group| group.tensors.contains(&tensor.name));
    if let Some(why) = why_unscaled(group) {
        session.progress.note(&format!("`{}` has no scale, all factors are 1: {why}", tensor.name));
    }
    let rows = RowSource {
        model: &source,
        read: &read,
        statistics: &statistics,
        statistics_path: &args.stats,
        prepared: &prepared,
    };
    let wanted = if args.all_channels { 0..tensor.rows() } else { args.row..args.row + 1 };
    let data = wanted.map(|row| rows.row(tensor, row)).collect::<Result<Vec<RowData>>>()?;
    let metadata = RowMetadata {
        model: &args.model,
        statistics: &args.stats,
        calibration_texts: &statistics.datasets,
        tensor: &tensor.name,
        tensor_type: tensor.ty.to_string(),
        row: (!args.all_channels).then_some(args.row),
        rows: tensor.rows(),
        columns: tensor.columns(),
        definitions: DEFINITIONS,
        group,
    };
    fs::create_dir_all(&args.output).map_err(Error::io(&args.output, "create"))?;
    atomic_file::write(&outputs.csv, args.force, &inputs, &row_data(&data, args.all_channels)?)?;
    atomic_file::write(&outputs.npz, args.force, &inputs, &arrays(&data, args.all_channels)?)?;
    write_json(&outputs.metadata, args.force, &inputs, &metadata)?;
    for output in outputs.all() {
        session.printer.text(&output.display().to_string());
    }
    let record = json!({ "what": "row", "outputs": outputs.all(), "rows": data.len(), "details": metadata });
    session.printer.record("export", record);
    Ok(0)
}

/// The weight of this name, with or without `.weight`.
fn tensor<'s>(source: &'s Source, name: &str) -> Result<&'s TensorInfo> {
    let tensor = source.tensor(name).or_else(|| source.tensor(&format!("{name}.weight")));
    let missing = || ExportError::NoTensor { path: source.path().to_path_buf(), tensor: name.to_owned() };
    Ok(tensor.filter(|tensor| tensor.dims.len() > 1 && tensor.columns() > 0).ok_or_else(missing)?)
}

/// The settings of a conversion, for the input of one tensor only.
fn settings(session: &Session, args: &RowArgs, source: &Source, tensor: &str) -> Result<Settings> {
    let plan = Conversion::new(source, &PlanSettings { allow_requantize: true, ..PlanSettings::default() })?;
    let recipe = settings::recipe(&args.method, None, None, Setting::of(source, true))?;
    let mut settings = recipe.settings(settings::targets(&plan), None, session.codec(recipe.encoder)?);
    let shapes = source.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
    let all = groups(shapes, &Arch::from_metadata(source.metadata()));
    let readers: BTreeSet<String> = all
        .into_iter()
        .find(|group| group.readers.iter().any(|reader| reader == tensor))
        .map_or_else(BTreeSet::new, |group| group.readers.into_iter().collect());
    settings.targets = settings.targets.intersection(&readers).cloned().collect();
    if !settings.targets.contains(tensor) {
        settings.targets.clear();
    }
    Ok(settings)
}

/// Why there is no scale, if there is none.
fn why_unscaled(group: Option<&GroupOutcome>) -> Option<String> {
    match group {
        None => Some("it does not become TCQ4".into()),
        Some(group) if group.scale.is_none() => {
            Some(group.unscaled.clone().unwrap_or_else(|| "none was asked for".into()))
        }
        Some(_) => None,
    }
}

/// The files that are written.
struct Outputs {
    csv: PathBuf,
    npz: PathBuf,
    metadata: PathBuf,
}

impl Outputs {
    fn of(args: &RowArgs, tensor: &str) -> Self {
        // A name may hold what a file name must not.
        let name: String =
            tensor.chars().map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
        let stem = if args.all_channels { format!("{name}_all") } else { format!("{name}_out{}", args.row) };
        let path = |suffix: &str| args.output.join(format!("{stem}_{suffix}"));
        Self { csv: path("data.csv"), npz: path("data.npz"), metadata: path("metadata.json") }
    }

    fn all(&self) -> [&PathBuf; 3] {
        [&self.csv, &self.npz, &self.metadata]
    }
}

/// The data as arrays: vectors for one row, matrices for all.
fn arrays(data: &[RowData], all: bool) -> Result<Vec<u8>> {
    let columns = data.first().map_or(0, |row| row.weight.len());
    let shape = if all { vec![data.len(), columns] } else { vec![columns] };
    let wide = |of: fn(&RowData) -> &[f64]| data.iter().flat_map(of).copied().collect::<Vec<f64>>();
    let narrow = |of: fn(&RowData) -> &[f32]| data.iter().flat_map(of).copied().collect::<Vec<f32>>();
    let (mean, mean_scaled) = (wide(|row| &row.mean), wide(|row| &row.mean_scaled));
    let (weight, weight_scaled) = (narrow(|row| &row.weight), narrow(|row| &row.weight_scaled));
    let scale = data.first().map_or(&[][..], |row| &row.scale[..]);
    let ids: Vec<i64> = (0..columns as i64).collect();
    let array = |name, shape: &[usize], values| Array { name, shape: shape.to_vec(), values };
    npz(&[
        array("input_channel_id", &[columns], Values::I64(&ids)),
        array("E_X", &shape, Values::F64(&mean)),
        array("E_Xs", &shape, Values::F64(&mean_scaled)),
        array("W", &shape, Values::F32(&weight)),
        array("W_scaled", &shape, Values::F32(&weight_scaled)),
        array("scale", &[columns], Values::F32(scale)),
    ])
}
