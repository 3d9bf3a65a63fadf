//! `convert --rounding gptq` as a user runs it. Needs llama.cpp.

use serde_json::Value;
use tcq4::gguf::Source;

use crate::cli::{LITTLE, assert_same_tensors};
use crate::support::Dir;

#[test]
fn outputs_come_closer_than_with_the_nearest_codes() {
    let dir = Dir::new();
    let line = format!("convert MODEL -o out.gguf {LITTLE} --rounding gptq");
    let record = dir.tcq4(&format!("{line} --json")).record("convert");
    let losses = record["losses"].as_array().unwrap();
    assert_eq!(losses.len(), 28);
    for loss in losses {
        let of = |key: &str| loss["output"][key].as_f64().unwrap();
        assert!(of("compensated") < 0.9 * of("nearest") && of("nearest") < 0.05, "{loss}");
        assert_eq!(loss["output"]["damping"], serde_json::json!({ "share": 0.01, "retries": 0 }));
        assert_eq!(loss["output"]["measure"], "second-moment");
    }
    dir.tcq4("verify out.gguf --against MODEL").ok();
    let source = Source::open(&dir.file("out.gguf")).unwrap();
    let recipe: Value = serde_json::from_str(&source.metadata().get_str("tcq4.recipe").unwrap()).unwrap();
    let parts = ["rounding", "damp", "act-order", "refine"].map(|key| recipe[key].clone());
    assert_eq!(serde_json::json!(parts), serde_json::json!(["gptq", 0.01, true, 2]));
    let done = dir.tcq4(&format!("{line} --force")).ok();
    assert!(done.stdout.contains("relative squared error of the outputs, mean over tensors: "), "{}", done.stdout);
    assert!(!done.stdout.contains(" took the nearest codes"), "{}", done.stdout);
}

#[test]
fn neither_memory_nor_threads_change_a_byte() {
    let dir = Dir::new();
    let line = format!("convert MODEL {LITTLE} --rounding gptq");
    dir.tcq4(&format!("{line} -o one.gguf --threads 1")).ok();
    dir.tcq4(&format!("{line} -o many.gguf --threads 2 --memory 12M")).ok();
    assert_same_tensors(&dir, "one.gguf", "many.gguf");
    dir.tcq4(&format!("{line} -o plain.gguf --no-act-order --refine 0 --damp 0.1")).ok();
    let diff = dir.tcq4("diff one.gguf plain.gguf --json").record("diff");
    assert!(diff["tensors"].as_array().is_some_and(|tensors| tensors.len() == 28), "the options do something: {diff}");
}

#[test]
fn greedy_rounding_keeps_means_with_and_without_a_run() {
    let dir = Dir::new();
    let record = dir
        .tcq4(&format!("convert MODEL -o a.gguf --stats stats.gguf {LITTLE} --rounding greedy --json"))
        .record("convert");
    for loss in record["losses"].as_array().unwrap() {
        let of = |key: &str| loss["output"][key].as_f64().unwrap();
        assert!(of("compensated") < 0.1 * of("nearest") && loss["output"]["measure"] == "mean", "{loss}");
        assert!(loss["output"]["damping"].is_null());
    }
    dir.tcq4("quantize MODEL b.gguf --stats stats.gguf --rounding greedy").ok();
    assert_same_tensors(&dir, "a.gguf", "b.gguf");
    dir.tcq4("verify a.gguf --against MODEL").ok();
    dir.tcq4("quantize MODEL c.gguf --rounding greedy")
        .fails_like(2, "error: --rounding greedy needs channel means of the activations\nhint: pass --stats FILE");
    dir.tcq4("quantize MODEL c.gguf --rounding gptq").fails_like(
        2,
        "error: --rounding gptq needs second moments of the activations\nhint: pass --second-moments FILE",
    );
}

#[test]
fn the_weighted_encoder_lowers_the_error_of_the_nearest_codes() {
    let dir = Dir::new();
    let line = format!("convert MODEL {LITTLE} --rounding gptq --json");
    let mean = |options: &str| -> f64 {
        let record = dir.tcq4(&format!("{line} {options}")).record("convert");
        let losses = record["losses"].as_array().unwrap();
        losses.iter().map(|loss| loss["output"]["nearest"].as_f64().unwrap()).sum::<f64>() / losses.len() as f64
    };
    let (plain, weighted) = (mean("-o plain.gguf"), mean("-o weighted.gguf --encoder weighted"));
    assert!(weighted < 0.999 * plain, "{weighted} and {plain}");
    dir.tcq4(&format!("calibrate -m MODEL -c CALIBRATION -o perms.json {LITTLE} --second-moments moments.gguf")).ok();
    let record = dir
        .tcq4("quantize MODEL nearest.gguf --second-moments moments.gguf --encoder weighted --json")
        .record("convert");
    for loss in record["losses"].as_array().unwrap() {
        let of = |key: &str| loss["output"][key].as_f64().unwrap();
        assert_eq!(of("nearest"), of("compensated"), "{loss}");
        assert_eq!(loss["steps"][3]["done"], "weighted");
    }
    dir.tcq4("verify nearest.gguf --against MODEL").ok();
    dir.tcq4("quantize MODEL no.gguf --encoder weighted").fails_like(
        2,
        "error: --encoder weighted needs second moments of the activations\nhint: pass --second-moments FILE",
    );
    dir.tcq4("convert MODEL -o no.gguf --encoder weighted --rounding greedy").fails_like(
        2,
        "error: greedy rounding does without the second moments that `--encoder weighted` needs\nhint: pass --rounding gptq",
    );
}

#[test]
fn presets_are_what_they_say() {
    let dir = Dir::new();
    let chunks = |preset: &str| {
        let line = format!("convert MODEL -o {preset}.gguf --ctx 32 --preset {preset} --json");
        let record = dir.tcq4(&line).record("convert");
        (record["text"]["chunks"].clone(), record["losses"][0]["output"]["measure"].clone())
    };
    assert_eq!(chunks("fast"), (Value::from(6), Value::Null));
    assert_eq!(chunks("balanced"), (Value::from(32), Value::from("mean")));
    assert_eq!(chunks("best"), (Value::from(64), Value::from("second-moment")));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let dir = Dir::new();
    dir.tcq4("convert MODEL -o out.gguf --preset best --encoder parity").fails(
        2,
        "error: GPTQ and greedy rounding choose other codes than `--encoder parity` stands for\nhint: leave out --encoder parity, or pass --rounding nearest",
    );
    dir.tcq4("convert MODEL -o out.gguf --damp=-1").fails_like(2, "error: invalid value '-1' for '--damp <SHARE>'");
    assert!(dir.names().is_empty());
    // What no one asked for gives way.
    dir.tcq4("convert MODEL -o out.gguf -n 2 --ctx 32 --encoder parity").ok();
}
