//! `tcq4 export` as a user runs it, on statistics made by hand.

use std::process::Command;

use tcq4::calib::{ChannelStats, SampleRows, Statistics, store};
use tcq4::gguf::Source;

use crate::support::Dir;
use crate::support::skip;
use crate::support::tiny_model::TinyModel;

/// A tiny model, and statistics of all its weights: channel `j` saw -(j+1)/8 and (j+2)/8.
fn prepared(ranged: bool) -> Dir {
    let dir = Dir::new();
    TinyModel::default().write(&dir.file("m.gguf"));
    let source = Source::open(&dir.file("m.gguf")).unwrap();
    let mut statistics =
        Statistics { chunk_count: 1, chunk_size: 64, datasets: vec!["t.txt".into()], ..Statistics::default() };
    for tensor in source.tensors().iter().filter(|t| t.name.starts_with("blk.") && t.dims.len() == 2) {
        statistics.entries.insert(tensor.name.clone(), entry(tensor.columns() as usize, ranged));
    }
    store::save(&dir.file("s.gguf"), &statistics, false, &[]).unwrap();
    dir
}

fn entry(columns: usize, ranged: bool) -> ChannelStats {
    let (low, high) = (|j: usize| -((j + 1) as f32) / 8.0, |j: usize| (j + 2) as f32 / 8.0);
    let of = |f: &dyn Fn(f64, f64) -> f64| (0..columns).map(|j| f(f64::from(low(j)), f64::from(high(j)))).collect();
    let rows = SampleRows {
        columns,
        data: (0..2 * columns).map(|i| if i < columns { low(i) } else { high(i - columns) }).collect(),
        matrix: vec![0, 0],
    };
    ChannelStats {
        counts: vec![2],
        abs_max: (0..columns).map(high).collect(),
        min: (0..columns).map(low).collect(),
        max: (0..columns).map(high).collect(),
        sum: of(&|a, b| a + b),
        sum_abs: of(&|a, b| b - a),
        sum_sq: of(&|a, b| a * a + b * b),
        ranged,
        rows: Some(rows.into()),
        ..ChannelStats::new(1, columns)
    }
}

fn json(dir: &Dir, name: &str) -> serde_json::Value {
    serde_json::from_slice(&dir.read(name)).unwrap()
}

fn text(dir: &Dir, name: &str) -> String {
    String::from_utf8(dir.read(name)).unwrap()
}

/// The numbers of a CSV file without quotes, header taken off.
fn numbers(text: &str) -> Vec<Vec<f64>> {
    text.lines().skip(1).map(|line| line.split(',').map(|field| field.parse().unwrap()).collect()).collect()
}

#[test]
fn a_row_with_the_scale_of_a_conversion() {
    let dir = prepared(true);
    dir.tcq4("export row -m m.gguf --stats s.gguf --tensor blk.0.attn_q --row 3 -o out").ok();
    let stem = "out/blk.0.attn_q.weight_out3_";
    let csv = text(&dir, &format!("{stem}data.csv"));
    assert!(csv.starts_with("input_channel_id,E[X],E[Xs],W,W_scaled,scale\n0,"), "{csv}");
    let source = Source::open(&dir.file("m.gguf")).unwrap();
    let mut weights = vec![0.0f32; 256];
    source.read_rows(source.tensor("blk.0.attn_q.weight").unwrap(), 3, &mut weights).unwrap();
    let rows = numbers(&csv);
    assert_eq!(rows.len(), 256);
    for (j, row) in rows.iter().enumerate() {
        let [id, mean, mean_scaled, w, w_scaled, scale] = row[..] else { panic!() };
        assert_eq!((id, mean, w as f32), (j as f64, 0.0625, weights[j]));
        assert!(
            (mean_scaled * scale - mean).abs() < 1e-7 * mean && (w_scaled - w * scale).abs() < 1e-6 * w.abs(),
            "{row:?}"
        );
    }
    // Closed form: the activation is scaled by (‖w‖² / E[x²])^¼, the weights by its inverse: larger inputs, larger factors.
    let scales: Vec<f64> = rows.iter().map(|row| row[5]).collect();
    assert!(scales[0] < 0.5 && scales[255] > 1.5 && scales[10] < scales[250], "{scales:?}");
    let metadata = json(&dir, &format!("{stem}metadata.json"));
    assert_eq!((&metadata["row"], &metadata["columns"]), (&3.into(), &256.into()));
    assert_eq!(metadata["group"]["tensors"].as_array().unwrap().len(), 3, "q, k and v share their input: {metadata}");
    let awq = "export row -m m.gguf --stats s.gguf --tensor blk.0.attn_q --row 3 -o out";
    dir.tcq4(awq).fails(
        3,
        "error: out/blk.0.attn_q.weight_out3_data.csv: the file exists already\nhint: choose another name, or pass --force to replace it",
    );
    dir.tcq4(&format!("{awq} --force --scales awq --alpha-grid 4")).ok();
    let metadata = json(&dir, &format!("{stem}metadata.json"));
    let tried = metadata["group"]["scale"]["tried"].as_array().unwrap();
    let errors: Vec<f64> = tried.iter().map(|t| t["error"].as_f64().unwrap()).collect();
    assert!(tried.len() == 5 && errors.iter().all(|error| *error > 1e-6), "real quantisation, no noise: {metadata}");
}

#[test]
fn all_rows_and_what_has_no_scale() {
    let dir = prepared(true);
    dir.tcq4("export row -m m.gguf --stats s.gguf --tensor blk.1.attn_v.weight --all-channels -o out").ok();
    let rows = numbers(&text(&dir, "out/blk.1.attn_v.weight_all_data.csv"));
    assert_eq!((rows.len(), rows[256][0], rows[256][1]), (128 * 256, 1.0, 0.0));
    let done = dir.tcq4("export row -m m.gguf --stats s.gguf --tensor blk.1.ffn_down --scales none -o out").ok();
    assert!(done.stderr.contains("has no scale, all factors are 1: none was asked for"), "{}", done.stderr);
    assert!(numbers(&text(&dir, "out/blk.1.ffn_down.weight_out0_data.csv")).iter().all(|row| row[5] == 1.0));
    let fails = |line: &str, code, message: &str| {
        dir.tcq4(&format!("export row -m m.gguf --stats s.gguf -o out {line}")).fails_like(code, message);
    };
    fails("--tensor nothing", 3, "error: m.gguf: has no weight matrix `nothing`\nhint: ");
    fails("--tensor blk.0.attn_norm", 3, "error: m.gguf: has no weight matrix `blk.0.attn_norm`");
    fails(
        "--tensor blk.0.attn_q --row 256",
        3,
        "error: m.gguf: `blk.0.attn_q.weight` has 256 rows, there is no row 256",
    );
    fails("--tensor output", 3, "error: s.gguf: has no statistics of `output.weight`");
}

#[test]
fn numpy_reads_the_arrays() {
    let numpy = |code: &str, file: &std::path::Path| {
        let python = std::env::var_os("TCQ4_PYTHON").unwrap_or_else(|| "python3".into());
        Command::new(python).args(["-c", code]).arg(file).output().ok().filter(|done| done.status.success())
    };
    if numpy("import numpy", "".as_ref()).is_none() {
        skip("neither TCQ4_PYTHON nor python3 has numpy");
        return;
    }
    let dir = prepared(true);
    dir.tcq4("export row -m m.gguf --stats s.gguf --tensor blk.0.ffn_down --row 1 -o out").ok();
    dir.tcq4("export row -m m.gguf --stats s.gguf --tensor blk.0.ffn_down --all-channels -o out").ok();
    let code = "import sys, numpy as np
a = np.load(sys.argv[1])
c = np.genfromtxt(sys.argv[1].replace('npz', 'csv'), delimiter=',', skip_header=1)
if 'out1' in sys.argv[1]:
    assert a['W'].dtype == np.float32 and a['E_X'].dtype == np.float64 and a['W'].shape == (512,), a['W'].shape
    for name, column in zip(['input_channel_id', 'E_X', 'E_Xs', 'W', 'W_scaled', 'scale'], c.T):
        assert (a[name] == column.astype(a[name].dtype)).all(), name
else:
    assert a['W_scaled'].shape == (256, 512) and a['scale'].shape == (512,)
    assert (a['W'].ravel() == c[:, 4].astype(np.float32)).all()";
    for name in ["out/blk.0.ffn_down.weight_out1_data.npz", "out/blk.0.ffn_down.weight_all_data.npz"] {
        assert!(numpy(code, &dir.file(name)).is_some(), "{name}");
    }
}

#[test]
fn channels_as_a_table() {
    let dir = prepared(true);
    let done = dir.tcq4("export channels --stats s.gguf --tensor blk.0.attn_q -o c.csv").ok();
    assert_eq!(done.stdout.trim(), "c.csv: 256 channels of 1 tensors");
    let table = text(&dir, "c.csv");
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("tensor,matrix,channel,rows,mean_sq,mean,std,mean_abs,abs_max,min,max"));
    assert_eq!(lines.nth(6), Some("blk.0.attn_q.weight,0,6,2,0.8828125,0.0625,0.9375,0.9375,1.0,-0.875,1.0"));
    dir.tcq4("export channels --stats s.gguf --tensor nothing -o d.csv")
        .fails_like(3, "error: s.gguf: no tensor matches `nothing`");
    dir.tcq4("export channels --stats m.gguf -o d.csv").fails_like(3, "error: m.gguf: not a usable statistics file");
    dir.tcq4("export channels --stats s.gguf -o c.csv").fails_like(3, "error: c.csv: the file exists already");
    let old = prepared(false);
    old.tcq4("export channels --stats s.gguf --tensor blk.0.attn_q -o c.csv").ok();
    assert!(text(&old, "c.csv").lines().nth(7).unwrap().ends_with(",1.0,,"));
}

#[test]
fn ranges_go_out_and_come_back_as_scales() {
    let dir = prepared(true);
    let q = "blk.0.attn_q";
    for (kind, names) in [("activation-ranges", "module"), ("minmax", "tensor")] {
        dir.tcq4(&format!("export ranges --stats s.gguf --kind {kind} --names {names} -o r.json --force")).ok();
        let written = json(&dir, "r.json");
        if kind == "minmax" {
            assert_eq!(written[format!("{q}.weight")], serde_json::json!({ "min": -32.0, "max": 32.125 }));
        } else {
            assert_eq!(written["layer_ranges"][q], serde_json::json!([-32.0, 32.125]));
            assert_eq!((&written["percentile"], &written["smooth_factor"]), (&99.9.into(), &0.8.into()));
            assert_eq!(written["detailed_stats"][q]["int4_scale"], 32.125 / 7.0);
        }
        dir.tcq4("export scales --from-ranges r.json --format int4_asym -m m.gguf -o sc.json --force").ok();
        let scales = json(&dir, "sc.json");
        let scale = (32.125 + 32.0) / 15.0;
        assert_eq!(scales["format"], "int4_asym");
        assert_eq!(
            scales["scales"][format!("{q}.weight")],
            serde_json::json!({ "scale": scale, "zero": 32.0 / scale })
        );
        assert!(scales["unmatched_ranges"].as_array().unwrap().is_empty(), "{scales}");
        assert!(scales["tensors_without_range"].as_array().unwrap().is_empty(), "{scales}");
    }
    let mut some = json(&dir, "r.json");
    let map = some.as_object_mut().unwrap();
    map.remove("blk.1.ffn_up.weight");
    map.insert("model.layers.0.mlp".into(), serde_json::json!({ "min": 0, "max": 1 }));
    dir.write("some.json", some.to_string().as_bytes());
    let done = dir.tcq4("export scales --from-ranges some.json --format fp4 -m m.gguf -o x.json").ok();
    assert!(
        done.stderr.contains("1 ranges belong to no linear layer of the model (model.layers.0.mlp)"),
        "{}",
        done.stderr
    );
    assert!(done.stderr.contains("1 linear layers have no range in the file (blk.1.ffn_up.weight)"), "{}", done.stderr);
    dir.tcq4("export scales --from-ranges some.json --format int8_sym -o y.json").ok();
    assert_eq!(json(&dir, "y.json")["scales"]["model.layers.0.mlp"]["scale"], 1.0 / 127.0);
}

#[test]
fn ranges_that_are_not_there() {
    let dir = prepared(false);
    let done = dir.tcq4("export ranges --stats s.gguf -o r.json").ok();
    let note = "note: 14 of 14 ranges are symmetric: the file has the largest magnitudes only (blk.0.attn_k.weight, ";
    assert!(done.stderr.contains(note), "{}", done.stderr);
    assert_eq!(json(&dir, "r.json")["layer_ranges"]["blk.0.attn_q"], serde_json::json!([-32.125, 32.125]));
    let mut bare = store::load(&dir.file("s.gguf")).unwrap();
    bare.entries.values_mut().for_each(|entry| entry.complete = false);
    store::save(&dir.file("bare.gguf"), &bare, false, &[]).unwrap();
    dir.tcq4("export ranges --stats bare.gguf -o x.json").fails_like(
        3,
        "error: bare.gguf: has no smallest and largest inputs of `blk.0.attn_k.weight`\nhint: files of llama-imatrix and of older",
    );
    dir.write("none.json", br#"{"model.layers.0": [0, 1]}"#);
    dir.tcq4("export scales --from-ranges none.json --format fp4 -m m.gguf -o x.json").fails_like(
        3,
        "error: none.json: not a usable file of activation ranges: none of its names is a linear layer of m.gguf",
    );
    assert_eq!(dir.tcq4("export scales --from-ranges none.json --format nf4 -o x.json").code, Some(2));
    dir.tcq4("export scales --from-ranges m.gguf --format fp4 -o x.json")
        .fails_like(3, "error: m.gguf: not a usable file of");
}
