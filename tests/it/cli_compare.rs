//! `tcq4 compare` as a user runs it. Needs llama.cpp.

use serde_json::Value;

use crate::support::Dir;
use crate::support::cmd::Done;
use crate::support::tiny_model::TinyModel;

/// A text of a few chunks, other than the fixture's.
const OTHER: &str = "The ferry leaves at dawn, and the harbour is quiet before it does. ";

/// Quantises the fixture; the tied head stays in halves, so that only plain matrix products run.
fn quantised(dir: &Dir) {
    dir.write("other.txt", OTHER.repeat(60).as_bytes());
    dir.tcq4("quantize MODEL q.gguf --embedding-type f16 --output-type f16").ok();
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn a_quantised_model_loses_and_all_outputs_say_the_same() {
    let dir = Dir::new();
    quantised(&dir);
    let line = "compare MODEL q.gguf -f EVALUATION -f other.txt --ctx 64 --chunks 12 --resamples 500";
    let run = |files: &str| dir.tcq4_with("SOURCE_DATE_EPOCH", "1767225600", &format!("{line} {files}"));
    let record = run("--json --markdown c.md -o c.json").record("compare");
    let mut written = dir.json("c.json");
    written["models"][0]["path"] = record["models"][0]["path"].clone(); // stdout has the test's own folders taken out
    assert_eq!(written, record);
    assert_eq!((&record["timestamp"], &record["seed"]), (&"2026-01-01T00:00:00Z".into(), &42.into()));
    assert_eq!(record["baseline"], "tiny-llama-f16");
    assert_eq!(names(&record["datasets_tested"]), ["evaluation.txt", "other.txt"]);
    for result in record["dataset_results"].as_array().unwrap() {
        let at = |key: &str| result[key].as_f64().unwrap();
        let ratio = 100.0 * (at("candidate_perplexity") / at("baseline_perplexity") - 1.0);
        assert!((at("delta_pct") - ratio).abs() < 1e-6, "{result}");
        let [low, high] = [0, 1].map(|end| result["delta_pct_interval"][end].as_f64().unwrap());
        assert!(low < ratio && ratio < high && result["winner"].is_null() == (low <= 0.0), "{result}");
    }
    // The numbers are those of `eval`.
    let eval = dir.tcq4("eval MODEL -f EVALUATION --ctx 64 --chunks 12 --json").record("eval");
    let eval = &eval["data_sets"][0];
    let detail = &record["detailed_results"]["evaluation.txt"]["tiny-llama-f16"];
    assert_eq!((&detail["perplexity"], &detail["chunk_nll"]), (&eval["perplexity"], &eval["chunk_nll"]));
    let [f16, q] = [0, 1].map(|model| &record["models"][model]);
    assert!(f16["bits_per_weight"].as_f64().unwrap() > q["bits_per_weight"].as_f64().unwrap());
    assert_eq!((&f16["decoded"], &q["decoded"]), (&false.into(), &true.into()));
    let markdown = String::from_utf8(dir.read("c.md")).unwrap();
    assert!(markdown.contains("2026-01-01T00:00:00Z") && markdown.contains("\n## Win count\n"), "{markdown}");
    let (text, again) = (run("").ok(), run("--threads 2").ok());
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 120), "{}", text.stdout);
    assert_eq!(text.stdout, again.stdout, "threads change nothing");
}

#[test]
fn the_divergence_from_the_baseline_is_that_of_eval() {
    let dir = Dir::new();
    quantised(&dir);
    let setup = "-f EVALUATION --ctx 64 --chunks 4";
    let done = dir.tcq4(&format!("compare MODEL q.gguf {setup} --kld --markdown c.md")).ok();
    let eval = dir.tcq4(&format!("eval q.gguf -r MODEL {setup} --json")).record("eval");
    let kld = format!("{:.6} ± {:.6}", eval["kld"]["value"].as_f64().unwrap(), eval["kld"]["error"].as_f64().unwrap());
    let markdown = String::from_utf8(dir.read("c.md")).unwrap();
    assert!(
        done.stdout.contains(&kld) && markdown.contains(&format!("| {kld} |")),
        "{kld}\n{}\n{markdown}",
        done.stdout
    );
    let record = dir.tcq4(&format!("compare MODEL q.gguf {setup} --kld --json")).record("compare");
    let results = &record["detailed_results"]["evaluation.txt"];
    assert_eq!((&results["q"]["kld"], &results["q"]["same_top"]), (&eval["kld"], &eval["same_top"]));
    assert!(results["tiny-llama-f16"].get("kld").is_none(), "the baseline has nothing to differ from: {results}");
}

#[test]
fn the_same_model_twice_is_a_tie() {
    let dir = Dir::new();
    let done = dir.tcq4("compare MODEL MODEL -f EVALUATION --ctx 64 --chunks 4 --json").record("compare");
    let analysis = &done["analysis"][0];
    assert_eq!((&analysis["ties"], &analysis["winner"]), (&1.into(), &Value::Null));
    assert_eq!(analysis["avg_delta_pct"], 0.0);
    let fixed = dir.tcq4("compare MODEL MODEL -f EVALUATION --ctx 64 --chunks 4 --rule fixed --json").record("compare");
    assert_eq!(fixed["rule"], serde_json::json!({ "name": "fixed", "margin": 0.05 }));
}

#[test]
fn what_makes_no_sense_is_refused_before_a_model_runs() {
    let dir = Dir::new();
    TinyModel::default().write(&dir.file("tiny.gguf"));
    dir.write("full.json", b"{}");
    let fails = |line: &str, code, message: &str| dir.tcq4(line).fails_like(code, message);
    fails(
        "compare MODEL tiny.gguf -f EVALUATION",
        3,
        "error: tiny.gguf: has a vocabulary of 259 tokens, expected 1024 as in fixtures/models/tiny-llama-f16.gguf\nhint: ",
    );
    fails("compare MODEL MODEL -f EVALUATION -o full.json", 3, "error: full.json: ");
    fails("compare MODEL MODEL -f EVALUATION -o x --markdown x", 2, "error: x is one file, for two outputs");
    fails("compare MODEL MODEL -f EVALUATION --margin 1", 2, "error: --margin belongs to --rule fixed");
    fails("compare MODEL MODEL -f full.json", 3, "error: full.json: no array of samples");
    fails("compare MODEL nothing.gguf -f EVALUATION", 3, "error: nothing.gguf: cannot open");
    let run = |line: &str| -> Done { dir.tcq4(line) };
    assert_eq!(run("compare MODEL -f EVALUATION").code, Some(2), "one model");
    assert_eq!(run("compare MODEL MODEL -f EVALUATION --confidence 95").code, Some(2));
}

#[test]
fn models_that_cut_a_text_differently_are_not_compared() {
    let dir = Dir::new();
    let tiny = TinyModel::default();
    tiny.write(&dir.file("a.gguf"));
    let mut bytes = dir.read("a.gguf");
    // The same vocabulary, two of its bytes swapped: as many tokens, other numbers.
    let find = |bytes: &[u8], name: &str| bytes.windows(6).position(|part| part == name.as_bytes()).unwrap();
    let (e, t) = (find(&bytes, "<0x65>"), find(&bytes, "<0x74>"));
    bytes[e..e + 6].copy_from_slice(b"<0x74>");
    bytes[t..t + 6].copy_from_slice(b"<0x65>");
    dir.write("b.gguf", &bytes);
    dir.write("t.txt", OTHER.repeat(4).as_bytes());
    let done = dir.tcq4("compare a.gguf b.gguf -f t.txt --ctx 32 --chunks 2");
    done.fails_like(3, "error: b.gguf: cuts t.txt into ");
}
