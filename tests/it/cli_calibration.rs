//! Calibration and what is made of it, as a user runs it: statistics, orders, scales, folding, interruption. Needs llama.cpp.

use std::time::Duration;

use regex::Regex;
use serde_json::Value;
use tcq4::calib::store;
use tcq4::convert::{
    Codes, Conversion, Job, PlanSettings, Provenance, Target, TypeRule, convert, output_metadata, read_rows,
};
use tcq4::gguf::{GgmlType, Sharding, Source};
use tcq4::quant::{Activations, Apply, Order, Orders, Scales, Settings, prepare};
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::NoProgress;

use crate::cli::{ERROR_REL, LITTLE, PERPLEXITY_RISE, assert_same_tensors, calibrate, perplexity};
use crate::support::Dir;
use crate::support::cmd::{fixture, interrupt};

/// What folding scales and orders may change of the perplexity, relative: the weights are rounded to F16 once more.
const FOLDING: f64 = 1e-3;

#[test]
fn every_order_and_every_scale() {
    let dir = Dir::new();
    calibrate(&dir);
    let permutations = |options: &str| {
        dir.tcq4(&format!("quantize MODEL out.gguf --force --stats stats.gguf {options}")).ok();
        let record = dir.tcq4("verify out.gguf --against MODEL --json").record("verify");
        let errors: Vec<f64> =
            record["tensors"].as_array().unwrap().iter().filter_map(|t| t["error_rel"].as_f64()).collect();
        assert!(errors.len() == 28 && errors.iter().all(|error| *error < ERROR_REL), "{options}: {errors:?}");
        record["permutations"].as_u64().unwrap()
    };
    // Inputs of 256 channels are one chunk: dealing them out over chunks changes nothing, sorting them does.
    for (order, expected) in [("none", 0), ("rrs", 28), ("rrs-block", 28), ("zigzag", 4), ("balanced", 4)] {
        assert_eq!(permutations(&format!("--order {order}")), expected, "{order}");
        assert_eq!(permutations(&format!("--order {order} --scales none")), expected, "{order} without scales");
    }
    permutations("--order auto");
    permutations("--order auto --scales awq --alpha-grid 4 --salience l1 --activations int4");
    assert_eq!(permutations("--order zigzag --perm-apply fold"), 0);
    assert_eq!(permutations("--scales none --encoder parity"), 4);
}

#[test]
fn folded_orders_compute_the_same() {
    let dir = Dir::new();
    calibrate(&dir);
    dir.tcq4("quantize MODEL runtime.gguf --stats stats.gguf --order zigzag").ok();
    dir.tcq4("quantize MODEL folded.gguf --stats stats.gguf --order zigzag --perm-apply fold").ok();
    let (runtime, folded) = (perplexity(&dir, "runtime.gguf"), perplexity(&dir, "folded.gguf"));
    assert!((folded / runtime - 1.0).abs() < PERPLEXITY_RISE, "{runtime} gathered, {folded} folded");
}

/// Writes the fixture as F16 with everything folded that the preparation folds, and measures both.
#[test]
fn folding_leaves_the_f16_model_as_it_is() {
    let dir = Dir::new();
    calibrate(&dir);
    let source = Source::open(&fixture("models/tiny-llama-f16.gguf")).unwrap();
    let statistics = store::load(&dir.file("stats.gguf")).unwrap();
    let codec = Codec::new(Encoder::Default);
    let linear = Conversion::new(&source, &PlanSettings::default()).unwrap();
    let settings = Settings {
        targets: linear.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect(),
        scales: Scales::ClosedForm,
        orders: Orders::Fixed(Order::Zigzag),
        apply: Apply::Fold,
        activations: Activations::Int8,
        codec,
    };
    let read = |tensor: &_, first, out: &mut [f32]| read_rows(&source, tensor, first, out);
    let prepared = prepare(&source, &read, Some(&statistics), &settings, &NoProgress).unwrap();
    assert!(prepared.runtime_orders().is_empty() && prepared.groups.iter().all(|g| g.scale.is_some()), "{prepared:?}");
    let rule = TypeRule { pattern: Regex::new(".*").unwrap(), ty: GgmlType::F16 };
    let plan = Conversion::new(&source, &PlanSettings { rules: vec![rule], ..PlanSettings::default() }).unwrap();
    let provenance = Provenance { encoder: Encoder::Default, recipe: String::new(), calibration: Vec::new() };
    let metadata = output_metadata(&source, &plan, &prepared.transforms, &provenance);
    let job = Job {
        source: &source,
        plan: &plan,
        transforms: &prepared.transforms,
        codec,
        device: None,
        codes: Codes::Nearest,
        statistics: None,
        metadata,
    };
    let target = Target { path: dir.file("folded.gguf"), force: false, sharding: Sharding::Single };
    convert(&job, &target, &NoProgress).unwrap();
    let differing = dir.tcq4("diff MODEL folded.gguf --json").record("diff")["tensors"].as_array().unwrap().len();
    assert_eq!(differing, 36, "all but embedding and output norm");
    let (before, after) = (perplexity(&dir, "MODEL"), perplexity(&dir, "folded.gguf"));
    assert!((after / before - 1.0).abs() < FOLDING, "perplexity {before} before, {after} after");
}

#[test]
fn permutations_say_where_they_come_from() {
    let dir = Dir::new();
    let done = dir.tcq4("calibrate -m MODEL -o structure.json").ok();
    assert!(done.stderr.contains("note: no calibration text (-c): permutations come from the model's structure alone"));
    dir.tcq4("perms -m MODEL -o again.json").ok();
    assert!(dir.read("structure.json") == dir.read("again.json"));
    calibrate(&dir);
    let (structure, measured) = (dir.json("structure.json"), dir.json("perms.json"));
    assert_eq!(structure["description"], "TCQ4 channel permutations from model structure, without calibration");
    assert_eq!(measured["description"], "TCQ4 channel permutations from calibration");
    assert_eq!((&measured["version"], &measured["reorder_enabled"]), (&Value::from(1), &Value::from(true)));
    assert_ne!(structure["permutations"], measured["permutations"]);
    assert_eq!(measured["permutations"]["blk.3.ffn_down.weight"].as_array().map(Vec::len), Some(768));
    dir.tcq4("perms -m MODEL -o from-stats.json --stats stats.gguf").ok();
    assert!(dir.read("from-stats.json") == dir.read("perms.json"));
    for order in ["none", "rrs", "rrs-block", "zigzag", "balanced", "auto"] {
        dir.tcq4(&format!("perms -m MODEL -o order.json --force --stats stats.gguf --order {order}")).ok();
        dir.tcq4("quantize MODEL out.gguf --force --perms order.json").ok();
        let record = dir.tcq4("verify out.gguf --json").record("verify");
        let count = dir.json("order.json")["permutations"].as_object().map_or(0, serde_json::Map::len);
        assert_eq!(record["permutations"].as_u64(), Some(count as u64), "{order}");
    }
}

#[test]
fn texts_of_every_kind_are_joined() {
    let dir = Dir::new();
    let text = std::fs::read_to_string(fixture("text/evaluation.txt")).unwrap();
    let parts: Vec<&str> = text.split("\n\n").filter(|part| part.len() > 200).take(9).collect();
    let line = |part: &str| serde_json::json!({ "text": part, "source": "a test" }).to_string() + "\n";
    dir.write("a.json", serde_json::to_string(&[parts[0], parts[1], parts[0]]).unwrap().as_bytes());
    dir.write("b.jsonl", parts[1..5].iter().map(|part| line(part)).collect::<String>().as_bytes());
    dir.write("c.txt", parts[5..].join("\n\n").as_bytes());
    dir.write("all.txt", parts.join("\n\n").as_bytes());
    let run = |texts: &str, name: &str| {
        dir.tcq4(&format!("calibrate -m MODEL {texts} -n 4 --ctx 64 -o {name}.json --stats {name}.gguf --json"))
    };
    let done = run("-c a.json -c b.jsonl -c c.txt", "joined");
    assert!(done.stderr.contains("note: 2 of 8 samples were exact duplicates and dropped\n"), "{}", done.stderr);
    let record = done.record("calibrate");
    assert_eq!((&record["chunks"], &record["chunk_size"]), (&Value::from(4), &Value::from(64)));
    run("-c all.txt", "single").ok();
    assert!(dir.read("joined.json") == dir.read("single.json"));
    assert_same_tensors(&dir, "joined.gguf", "single.gguf");
    let keys = Source::open(&dir.file("joined.gguf")).unwrap();
    let datasets = keys.metadata().get_array("imatrix.datasets").unwrap().to_string_vec().unwrap();
    assert_eq!(datasets, ["a.json", "b.jsonl", "c.txt"]);
}

#[test]
fn statistics_take_the_way_through_a_file() {
    let dir = Dir::new();
    dir.tcq4(&format!("convert MODEL -o direct.gguf {LITTLE}")).ok();
    dir.tcq4(&format!("convert MODEL -o kept.gguf --stats stats.gguf {LITTLE}")).ok();
    dir.tcq4("quantize MODEL later.gguf --stats stats.gguf").ok();
    assert!(dir.read("kept.gguf") == dir.read("later.gguf"));
    assert_same_tensors(&dir, "direct.gguf", "later.gguf");
    let first = dir.read("stats.gguf");
    dir.tcq4(&format!("calibrate -m MODEL -c CALIBRATION -o again.json --stats again.gguf {LITTLE}")).ok();
    assert_same_tensors(&dir, "stats.gguf", "again.gguf");
    assert!(dir.read("stats.gguf") == first);
}

/// Interrupts a calibration until it has something to keep, then kills it, then lets it finish.
#[test]
fn interrupted_calibration_goes_on() {
    let dir = Dir::new();
    let line = |name: &str| {
        format!("calibrate -m MODEL -c CALIBRATION -n 96 --ctx 64 -o {name}.json --stats {name}.gguf --resume")
    };
    dir.tcq4(&line("whole")).ok();
    let mut pause = Duration::from_millis(100);
    let kept = (0..40).any(|_| {
        let mut child = dir.start(&line("parts"));
        std::thread::sleep(pause);
        interrupt(&child);
        let status = child.wait().unwrap();
        if status.success() {
            // Too late: begin again, and interrupt sooner.
            pause /= 2;
            for name in ["parts.json", "parts.gguf"] {
                std::fs::remove_file(dir.file(name)).unwrap();
            }
            return false;
        }
        pause = pause.mul_f64(1.3);
        dir.file("parts.json.partial").exists() && status.code() == Some(130)
    });
    assert!(kept, "no run was interrupted in the middle");
    assert_eq!(dir.names(), ["parts.json.partial", "whole.gguf", "whole.json"]);
    let mut child = dir.start(&line("parts"));
    std::thread::sleep(pause / 2);
    child.kill().unwrap();
    child.wait().unwrap();
    dir.tcq4(&line("other").replace("CALIBRATION", "EVALUATION")).ok();
    std::fs::copy(dir.file("parts.json.partial"), dir.file("other.json.partial")).unwrap();
    dir.tcq4(&(line("other").replace("CALIBRATION", "EVALUATION") + " --force")).fails(
        3,
        "error: other.json.partial: this checkpoint cannot be continued: it is of another model, text, or setting\n\
         hint: run without --resume to begin anew",
    );
    dir.tcq4(&line("parts")).ok();
    assert!(dir.read("parts.json") == dir.read("whole.json") && dir.read("parts.gguf") == dir.read("whole.gguf"));
    assert!(!dir.file("parts.json.partial").exists(), "what is done needs no checkpoint");
}
