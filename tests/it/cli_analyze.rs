//! `tcq4 analyze` as a user types it.

use tcq4::calib::store;
use tcq4::gguf::Source;

use crate::support::Dir;
use crate::support::evidence::{statistics, uneven};
use crate::support::tiny_model::TinyModel;

/// A folder with a model and its statistics.
fn folder(experts: u64) -> Dir {
    let dir = Dir::new();
    let model = TinyModel { width: 256, feed_forward: 512, layers: 2, experts, ..TinyModel::default() };
    model.write(&dir.file("model.gguf"));
    let source = Source::open(&dir.file("model.gguf")).unwrap();
    let mut statistics = statistics(&source, 40, uneven);
    for (name, entry) in &mut statistics.entries {
        if experts > 0 && name.starts_with("blk.1.") && entry.matrices > 1 {
            entry.counts[3] = 0;
        }
    }
    store::save(&dir.file("stats.gguf"), &statistics, false, &[]).unwrap();
    dir
}

#[test]
fn a_summary_and_a_record() {
    let dir = folder(0);
    let done = dir.tcq4("analyze model.gguf --stats stats.gguf --layer 1").ok();
    for part in [
        "model.gguf: llama of 2 layers",
        "statistics: stats.gguf, 1 chunks of 512 tokens",
        "ffn_down",
        "worst tensors",
        "scaled, ordered, rotated",
        "channels before the activation function (silu): 1024",
    ] {
        assert!(done.stdout.contains(part), "{part} is not in\n{}", done.stdout);
    }
    let json = dir.tcq4("analyze model.gguf --stats stats.gguf --layer 1 --json -o out.json").ok();
    let record: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((&record["record"], &record["version"]), (&"analyze".into(), &1.into()));
    assert_eq!(record["group_details"].as_array().unwrap().len(), 4);
    let file: serde_json::Value = serde_json::from_slice(&dir.read("out.json")).unwrap();
    assert_eq!(file["tensors"], record["tensors"]);
    assert_eq!(file["setup"]["statistics"], "stats.gguf");
}

#[test]
fn starved_experts_fail_the_run_when_asked_for() {
    let dir = folder(4);
    let done = dir.tcq4("analyze model.gguf --stats stats.gguf --layer 0").ok();
    assert!(done.stdout.contains("experts never used\n  layer 1: 3"), "{}", done.stdout);
    dir.tcq4("analyze model.gguf --stats stats.gguf --layer 0 --min-expert-tokens 1 --quiet").fails(
        4,
        "error: model.gguf: 1 experts have seen too little of the calibration text: layer 1: 3\n\
         hint: calibrate on more text, or on text of more kinds: -n, and further -c files",
    );
    dir.tcq4("analyze model.gguf --stats stats.gguf --layer 0 --min-expert-share 1.1 --quiet").fails_like(
        4,
        "error: model.gguf: 5 experts have seen too little of the calibration text: layer 0: 0, 1, 2, 3; layer 1: 3",
    );
    dir.tcq4("analyze model.gguf --stats stats.gguf --layer 0 --min-expert-share 0 -q").ok();
}

#[test]
fn what_cannot_be_done_is_refused() {
    let dir = folder(0);
    dir.write("empty.gguf", b"");
    dir.write("there.json", b"{}");
    dir.tcq4("analyze nothing.gguf").fails_like(3, "error: nothing.gguf: cannot open");
    dir.tcq4("analyze empty.gguf").fails_like(3, "error: empty.gguf: ");
    dir.tcq4("analyze .").fails_like(3, "error: .: ");
    dir.tcq4("analyze model.gguf --stats model.gguf").fails_like(3, "error: model.gguf: ");
    dir.tcq4("analyze model.gguf --stats stats.gguf -o there.json")
        .fails_like(3, "error: there.json: the file exists already");
    dir.tcq4("analyze model.gguf --stats stats.gguf -o stats.json --layer 9")
        .fails(2, "error: model.gguf: there is no layer 9\nhint: layers count from 0; the last one is 1");
    dir.tcq4("analyze model.gguf --tensor x").fails_like(2, "error: model.gguf: there is no tensor `x`");
    dir.tcq4("analyze model.gguf --converted model.gguf")
        .fails_like(2, "error: model.gguf: no tensor of this file is TCQ4");
    dir.tcq4("analyze model.gguf --min-expert-tokens 5").fails_like(2, "error: --min-expert-tokens and");
    dir.tcq4("analyze model.gguf --stats stats.gguf --tau inf").fails_like(2, "error: invalid value 'inf'");
}

#[test]
fn without_statistics_the_weights_are_looked_at() {
    let dir = folder(0);
    let done = dir.tcq4("analyze model.gguf").ok();
    assert!(done.stdout.contains("no statistics: pass --stats FILE or -c TEXT"), "{}", done.stdout);
    assert!(done.stdout.contains("not measured"), "{}", done.stdout);
}
