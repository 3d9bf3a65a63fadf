//! Evaluation through the library and through the program: perplexity in its two forms, KL divergence side by side and against files, simulated
//! activations.

use serde_json::Value;
use tcq4::corpus::Corpus;
use tcq4::eval::{Cut, Options, PerplexityOptions, Reference, Windows, measure, measure_alone, perplexity};
use tcq4::llama::{Context, ContextOptions, Logits, Model, ModelOptions};
use tcq4::util::progress::NoProgress;

use crate::support::Dir;
use crate::support::cmd::fixture;
use crate::support::tiny_model::TinyModel;

/// Sums in f64 of f32 exponentials against sums in f64 of f64 ones.
const SUM_TOLERANCE: f64 = 1e-6;

/// Log-probabilities in steps of 16 / 65535 against exact ones, as mean KL divergence.
const STORED_TOLERANCE: f64 = 1e-4;

fn tiny(dir: &Dir, seed: u64) -> Model {
    let path = dir.file(&format!("{seed}.gguf"));
    TinyModel { seed, ..TinyModel::default() }.write(&path);
    Model::load(&path, &ModelOptions::default()).unwrap()
}

fn text() -> String {
    Corpus::read(&[fixture("text/evaluation.txt")]).unwrap().text
}

fn one() -> Options {
    Options { threads: 1, simulation: None }
}

/// ln of the probabilities of every token at every position of `tokens`, in f64.
fn log_probabilities(model: &Model, tokens: &[i32]) -> Vec<Vec<f64>> {
    let options = ContextOptions { threads: 1, ..ContextOptions::new(tokens.len() as u32) };
    let mut context = Context::new(model, &options).unwrap();
    context.decode(tokens, Logits::All).unwrap();
    let rows = context.logits().chunks_exact(model.vocab_size());
    let logs = rows.map(|row| {
        let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        row.iter().map(|&v| f64::from(v) - total.ln()).collect()
    });
    logs.collect()
}

#[test]
fn a_sliding_window_is_scored_as_the_definition_says() {
    let (dir, text) = (Dir::new(), text());
    let model = tiny(&dir, 1);
    let tokens = model.tokenize(&text, true, false).unwrap();
    let cut = Cut { ctx: 32, chunks: Some(3), stride: Some(12) };
    let windows = Windows::new(&model, &text, cut).unwrap();
    let result = measure_alone(&model, &windows, one(), &NoProgress).unwrap();
    let mut scores = Vec::new();
    for (start, first) in [(0, 1), (12, 20), (24, 20)] {
        let window = &tokens[start..start + 32];
        let logs = log_probabilities(&model, window);
        scores.extend((first..32).map(|at| -logs[at - 1][window[at] as usize]));
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    assert_eq!((result.tokens, result.chunks, result.stride), (31 + 12 + 12, 3, Some(12)));
    assert!((result.nll - mean).abs() < 1e-4, "{} {mean}", result.nll);
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (scores.len() * (scores.len() - 1)) as f64;
    assert!((result.error / result.value - variance.sqrt()).abs() < 1e-4);
}

#[test]
fn two_models_side_by_side_differ_by_what_the_definition_says() {
    let (dir, text) = (Dir::new(), text());
    let (model, base) = (tiny(&dir, 1), tiny(&dir, 2));
    let windows = Windows::new(&model, &text, Cut { ctx: 32, chunks: Some(2), stride: None }).unwrap();
    let measured = measure(&model, Reference::Model(&base), &windows, one(), &NoProgress).unwrap();
    let divergence = measured.divergence.unwrap();
    let tokens = model.tokenize(&text, true, false).unwrap();
    let (mut kld, mut p_diff, mut top, mut count) = (0.0, 0.0, 0, 0.0);
    for start in [0, 32] {
        let mut window = tokens[start..start + 32].to_vec();
        window[0] = model.bos();
        let (q, p) = (log_probabilities(&model, &window), log_probabilities(&base, &window));
        for at in 16..31 {
            kld += p[at].iter().zip(&q[at]).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            let target = window[at + 1] as usize;
            p_diff += q[at][target].exp() - p[at][target].exp();
            let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            top += u32::from(best(&q[at]) == best(&p[at]));
            count += 1.0;
        }
    }
    assert!((divergence.kld.value - kld / count).abs() < SUM_TOLERANCE, "{} {}", divergence.kld.value, kld / count);
    assert!((divergence.p_diff.value - p_diff / count).abs() < SUM_TOLERANCE);
    assert_eq!(divergence.same_top.value, f64::from(top) / count);
    let alone =
        |model| perplexity(model, &text, &PerplexityOptions { ctx: 32, chunks: Some(2), threads: 1 }, &NoProgress);
    assert_eq!(measured.perplexity, alone(&model).unwrap());
    assert_eq!(divergence.base, alone(&base).unwrap());
    assert!((divergence.difference.value - (measured.perplexity.value - divergence.base.value)).abs() < 1e-9);
    let itself = measure(&model, Reference::Model(&model), &windows, one(), &NoProgress).unwrap().divergence.unwrap();
    assert_eq!((itself.kld.value, itself.same_top.value, itself.ratio.value), (0.0, 1.0, 1.0));
}

/// A TCQ4 file and the record of `eval` on it.
fn quantised(dir: &Dir) {
    TinyModel::default().write(&dir.file("tiny.gguf"));
    dir.tcq4("calibrate -m tiny.gguf -o perms.json -c EVALUATION -n 4 --ctx 64").ok();
    dir.tcq4("quantize tiny.gguf out.gguf --perms perms.json").ok();
}

fn eval(dir: &Dir, line: &str) -> Value {
    dir.tcq4(&format!("eval {line} --ctx 64 --chunks 4 --json")).record("eval")
}

fn number(record: &Value, pointer: &str) -> f64 {
    record.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} in {record}"))
}

#[test]
fn a_file_of_log_probabilities_says_what_the_model_says() {
    let dir = Dir::new();
    quantised(&dir);
    let base = eval(&dir, "tiny.gguf -f EVALUATION --logits-out base");
    let side = eval(&dir, "out.gguf -f EVALUATION -r tiny.gguf");
    let stored = dir.tcq4("eval out.gguf --logits base --json").record("eval");
    let kld = "/data_sets/0/divergence/kld/value";
    assert!(number(&side, kld) > 10.0 * STORED_TOLERANCE);
    assert!((number(&side, kld) - number(&stored, kld)).abs() < STORED_TOLERANCE);
    let base_perplexity = "/data_sets/0/divergence/base/perplexity";
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-4;
    assert!(near(number(&side, base_perplexity), number(&base, "/perplexity")));
    assert!(near(number(&stored, base_perplexity), number(&base, "/perplexity")));
    assert!(near(number(&stored, "/perplexity"), number(&side, "/perplexity")));
    let fewer = dir.tcq4("eval out.gguf --logits base --chunks 2 --json").record("eval");
    assert_eq!(fewer["data_sets"][0]["chunks"], 2);
    dir.tcq4("eval tiny.gguf -f EVALUATION --ctx 64 --chunks 4 --logits-out base")
        .fails_like(3, "error: base: the file exists already");
    dir.tcq4("eval tiny.gguf -f EVALUATION --ctx 64 --chunks 4 --logits-out base --force").ok();
}

#[test]
fn files_of_log_probabilities_that_do_not_fit_are_refused() {
    let dir = Dir::new();
    quantised(&dir);
    eval(&dir, "tiny.gguf -f EVALUATION --logits-out base");
    let mut bytes = dir.read("base");
    dir.write("cut", &bytes[..bytes.len() - 1]);
    dir.tcq4("eval tiny.gguf --logits cut").fails_like(3, "error: cut: the header asks for");
    dir.write("text", b"once upon a time there was a file");
    dir.tcq4("eval tiny.gguf --logits text").fails_like(3, "error: text: not a file of log-probabilities");
    dir.write("empty", b"");
    dir.tcq4("eval tiny.gguf --logits empty").fails_like(3, "error: empty: not a file of log-probabilities");
    dir.tcq4("eval tiny.gguf --logits none").fails_like(3, "error: none: cannot open");
    // A vocabulary of one word less, in a file of the length that it then has.
    let rows = 4 * 31;
    bytes[12..16].copy_from_slice(&257i32.to_le_bytes());
    bytes.truncate(20 + 4 * 64 * 4 + rows * 2 * (258 + 4));
    dir.write("other", &bytes);
    dir.tcq4("eval tiny.gguf --logits other")
        .fails_like(3, "error: tiny.gguf: a vocabulary of 259 tokens, the reference other has 257");
    dir.tcq4("eval MODEL -f EVALUATION -r tiny.gguf").fails_like(3, "error: ");
    dir.tcq4("eval tiny.gguf --logits base -f EVALUATION")
        .fails_like(2, "error: the argument '--logits <FILE>' cannot be used with");
    dir.tcq4("eval tiny.gguf -f EVALUATION --ctx 64 --stride 64")
        .fails_like(2, "error: --stride is not smaller than the window");
}

#[test]
fn simulated_activations_cost_what_they_should_and_only_there() {
    let dir = Dir::new();
    quantised(&dir);
    let plain = eval(&dir, "out.gguf -f EVALUATION -r tiny.gguf");
    let kld = |path: &str| {
        let record = eval(&dir, &format!("out.gguf -f EVALUATION -r tiny.gguf --simulate {path}"));
        let base = "/data_sets/0/divergence/base/nll";
        assert_eq!(number(&record, base), number(&plain, base), "the reference is not touched");
        number(&record, "/kld/value")
    };
    let (a8, group32, group256, fork) = (kld("a8"), kld("a4-g32"), kld("a4-g256"), kld("a4-fork"));
    let none = number(&plain, "/kld/value");
    assert!((a8 / none - 1.0).abs() < 0.05, "{none} {a8}");
    assert!(group32 > 1.05 * a8 && group256 > group32 && fork > group256, "{a8} {group32} {group256} {fork}");
    dir.tcq4("eval tiny.gguf -f EVALUATION --simulate a8").fails_like(3, "error: tiny.gguf: no TCQ4 tensors");
    let floor = eval(&dir, "tiny.gguf -f EVALUATION -r tiny.gguf --simulate a4-g256 --simulate-all");
    assert!(number(&floor, "/kld/value") > 0.0 && number(&floor, "/kld/value") < group256);
}

#[test]
fn several_texts_are_measured_one_by_one_and_averaged() {
    let dir = Dir::new();
    TinyModel::default().write(&dir.file("tiny.gguf"));
    dir.write("other.txt", &text().as_bytes()[4000..8000]);
    let record = eval(&dir, "tiny.gguf -f EVALUATION -f other.txt");
    let (a, b) = (number(&record, "/data_sets/0/perplexity"), number(&record, "/data_sets/1/perplexity"));
    assert!(a != b && (number(&record, "/perplexity") - f64::midpoint(a, b)).abs() < 1e-9);
    let errors = [number(&record, "/data_sets/0/error"), number(&record, "/data_sets/1/error")];
    assert!((number(&record, "/error") - errors[0].hypot(errors[1]) / 2.0).abs() < 1e-9);
    let text = dir.tcq4("eval tiny.gguf -f EVALUATION -f other.txt --ctx 64 --chunks 2").ok().stdout;
    assert!(text.lines().last().unwrap().starts_with("average "), "{text}");
}

#[test]
fn threads_change_no_digit_of_the_sums() {
    let dir = Dir::new();
    quantised(&dir);
    let run = |threads| {
        let line = format!(
            "eval out.gguf -f EVALUATION -r tiny.gguf --simulate a4-g32 --ctx 64 --chunks 3 --json -t {threads}"
        );
        dir.tcq4(&line).record("eval")
    };
    assert_eq!(run(1), run(3));
}
