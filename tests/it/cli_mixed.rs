//! `--act-aware` and `--target-bpw` as a user runs them. Needs llama.cpp.

use serde_json::Value;
use tcq4::calib::store;
use tcq4::convert::read_rows;
use tcq4::gguf::Source;

use crate::cli::{LITTLE, assert_same_tensors};
use crate::support::Dir;
use crate::support::cmd::fixture;

const INT4: &str = "--activations int4-group32";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn inputs_that_suffer_are_marked_and_everybody_heeds_the_marks() {
    let dir = Dir::new();
    let line = format!("convert MODEL -o out.gguf {LITTLE} {INT4} --act-aware");
    let record = dir.tcq4(&format!("{line} 0.4 --json")).record("convert");
    let chosen = &record["act_aware"];
    let groups = chosen["groups"].as_array().unwrap();
    assert!(groups.iter().all(|group| number(&group["kld"]) > 0.0 && number(&group["error_int8"]) < 0.001), "{chosen}");
    let share = number(&chosen["share"]);
    assert!(share > 0.2 && share <= 0.4, "{chosen}");
    assert!(number(&chosen["loss_after"]) < 0.8 * number(&chosen["loss_before"]), "{chosen}");
    let marked: usize =
        groups.iter().filter(|g| g["path"] == "int8").map(|g| g["tensors"].as_array().unwrap().len()).sum();

    assert_eq!(dir.tcq4("verify out.gguf --json").record("verify")["marks"], marked);
    let inspected = dir.tcq4("inspect out.gguf --json").record("inspect");
    let tensors = inspected["tensors"].as_array().unwrap();
    assert_eq!(tensors.iter().filter(|tensor| tensor["activations"] == "int8").count(), marked);
    let text = dir.tcq4("inspect out.gguf").ok().stdout;
    assert!(text.contains(&format!("{marked} tensors have an activation path of their own")), "{text}");

    let eval = |more: &str| {
        let record = dir.tcq4(&format!("eval out.gguf -f EVALUATION -r MODEL --ctx 64 {more} --json")).record("eval");
        number(&record["kld"]["value"])
    };
    let (heeded, ignored, int8) =
        (eval("--simulate a4-g32"), eval("--simulate a4-g32 --ignore-marks"), eval("--simulate a8"));
    assert!(int8 < heeded && heeded < ignored, "{int8} {heeded} {ignored}");

    // Other shares need no further measurement, and choose from the same losses.
    let again = dir.tcq4(&format!("{line} 0.2 --force --json")).record("convert");
    let losses = |record: &Value| {
        let all = record["act_aware"]["groups"].as_array().unwrap().clone();
        all.iter().map(|group| group["kld"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(losses(&again), losses(&record));
    let other = dir.tcq4(&format!("{line} --force --seed 7")).ok();
    assert!(other.stderr.contains("measured with other settings: measured again"), "{}", other.stderr);
}

#[test]
fn estimates_need_statistics_only() {
    let dir = Dir::new();
    dir.tcq4(&format!("calibrate -m MODEL -c CALIBRATION -o perms.json --stats stats.gguf {LITTLE}")).ok();
    let line = format!("quantize MODEL out.gguf --stats stats.gguf {INT4} --act-aware");
    let record = dir.tcq4(&format!("{line} --json")).record("convert");
    let groups = record["act_aware"]["groups"].as_array().unwrap();
    assert!(groups.iter().all(|group| group["kld"].is_null() && number(&group["estimate"]) > 0.0));
    assert!(number(&record["act_aware"]["share"]) <= 1.0 / 3.0);
    let text = dir.tcq4(&format!("{line} --force")).ok().stdout;
    assert!(
        text.contains("% of the multiply-adds take INT8 and the others int4-group32; loss by output errors"),
        "{text}"
    );
}

#[test]
fn types_fill_the_budget_and_never_exceed_it() {
    let dir = Dir::new();
    let plain = dir.tcq4(&format!("convert MODEL -o plain.gguf {LITTLE} --json")).record("convert");
    let least = number(&plain["bits_per_weight"]);
    let kept = "--sensitivities kept.json";
    let line = format!("convert MODEL -o out.gguf {LITTLE} {kept} --force --target-bpw");
    let mut before = f64::INFINITY;
    for extra in [0.05, 0.5, 1.5] {
        let target = least + extra;
        let record = dir.tcq4(&format!("{line} {target} --json")).record("convert");
        let (bits, types) = (number(&record["bits_per_weight"]), &record["types"]);
        assert!(bits <= target && bits > target - 0.05, "{bits} of {target}");
        assert_eq!(types["bpw"], record["bits_per_weight"]);
        let loss = number(&types["loss"]);
        assert!(loss < before && (loss - number(&types["lower_bound"])).abs() <= 1e-9 * loss, "{types}");
        before = loss;
        let written = dir.tcq4("inspect out.gguf --json").record("inspect");
        assert_eq!(written["bits_per_weight"], record["bits_per_weight"]);
        for choice in types["tensors"].as_array().unwrap() {
            let tensors = written["tensors"].as_array().unwrap();
            let tensor = tensors.iter().find(|tensor| tensor["name"] == choice["tensor"]).unwrap();
            assert_eq!(tensor["type"], choice["type"]);
            assert!(number(&choice["gain_per_bit"]) >= 0.0 && number(&choice["sensitivity"]) > 0.0, "{choice}");
        }
        dir.tcq4("verify out.gguf --against MODEL").ok();
    }
    let shown = dir.tcq4(&format!("{line} {} --dry-run", least + 0.5)).ok().stdout;
    assert!(shown.contains("gain per bit") && shown.contains("--target-bpw"), "{shown}");
    // What the smallest target chooses is the plain file.
    dir.tcq4(&format!("{line} {}", least + 1e-9)).ok();
    assert_same_tensors(&dir, "plain.gguf", "out.gguf");
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let dir = Dir::new();
    let convert = "convert MODEL -o out.gguf";
    dir.tcq4(&format!("{convert} --act-aware")).fails_like(2, "error: --act-aware is about INT4 activations");
    dir.tcq4(&format!("{convert} {INT4} --act-aware 1.5")).fails_like(2, "error: invalid value '1.5'");
    dir.tcq4(&format!("{convert} {INT4} --act-aware --compat llama.cpp-rrs"))
        .fails_like(2, "error: llama.cpp-rrs rounds");
    dir.tcq4(&format!("{convert} --sensitivities a.json")).fails_like(2, "error: --sensitivities is for");
    dir.tcq4(&format!("quantize MODEL out.gguf {INT4} --act-aware")).fails_like(2, "error: mixed precision needs");
    dir.tcq4(&format!("{convert} --target-bpw 4"))
        .fails_like(3, "error: fixtures/models/tiny-llama-f16.gguf: 4 bits a weight are too few");
    dir.tcq4(&format!("{convert} --target-bpw 9 --sensitivities MODEL"))
        .fails_like(3, "error: fixtures/models/tiny-llama-f16.gguf: not a file of sensitivities");
    dir.write("empty.json", b"");
    dir.tcq4(&format!("{convert} --target-bpw 9 --sensitivities empty.json"))
        .fails_like(3, "error: empty.json: not a file of sensitivities");
    dir.tcq4(&format!("{convert} --target-bpw 9 --sensitivities out.gguf"))
        .fails_like(2, "error: out.gguf and out.gguf are one file");
    dir.tcq4(&format!("{convert} --target-bpw 9 --sensitivities no/such.json"))
        .fails_like(3, "error: no: cannot open the output folder");
    dir.tcq4(&format!("{convert} --target-bpw 9 --sensitivities .")).fails_like(3, "error: .");
    dir.tcq4("eval MODEL -f EVALUATION --ignore-marks").fails_like(2, "error: the following required arguments");
}

#[test]
fn types_of_ggml_keep_what_matters_more() {
    let dir = Dir::new();
    dir.tcq4(&format!("calibrate -m MODEL -c CALIBRATION -o perms.json --stats stats.gguf {LITTLE}")).ok();
    let plain = "--tensor-type ffn_down=q4_k --scales none --order none --rounding nearest";
    dir.tcq4(&format!("quantize MODEL plain.gguf {plain}")).ok();
    dir.tcq4(&format!("quantize MODEL weighed.gguf {plain} --stats stats.gguf")).ok();
    let statistics = store::load(&dir.file("stats.gguf")).unwrap();
    let (model, name) = (Source::open(&fixture("models/tiny-llama-f16.gguf")).unwrap(), "blk.1.ffn_down.weight");
    let importance = statistics.entries[name].importance(0);
    let values = |source: &Source| {
        let tensor = source.tensor(name).unwrap();
        let mut rows = vec![0.0; (tensor.rows() * tensor.columns()) as usize];
        read_rows(source, tensor, 0, &mut rows).unwrap();
        rows
    };
    let original = values(&model);
    let error = |file: &str| -> f64 {
        let stored = values(&Source::open(&dir.file(file)).unwrap());
        let weighed =
            |(i, (a, b)): (usize, (&f32, &f32))| f64::from(importance[i % importance.len()] * (a - b) * (a - b));
        original.iter().zip(&stored).enumerate().map(weighed).sum()
    };
    let (plain, weighed) = (error("plain.gguf"), error("weighed.gguf"));
    assert!(weighed < 0.97 * plain, "{weighed} {plain}");
}
