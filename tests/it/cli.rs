//! The commands as a user runs them, from the source model to the converted, verified and measured file. Needs llama.cpp.

use serde_json::Value;
use tcq4::gguf::{GgmlType, Sharding, Source};

use crate::support::{Dir, cmd::fixture, tiny_model::TinyModel};

/// Enough calibration for tests: two chunks of 64 tokens.
pub const LITTLE: &str = "-n 2 --ctx 64";

/// The most that converting the fixture may add to its perplexity, relative: measured .5 % here, four times that before anybody worries.
pub const PERPLEXITY_RISE: f64 = 0.02;

/// The largest relative squared error of a TCQ4 tensor of the fixture: .5 % measured.
pub const ERROR_REL: f64 = 0.01;

/// The perplexity of a model of `dir` on a little text.
pub fn perplexity(dir: &Dir, model: &str) -> f64 {
    let record = dir.tcq4(&format!("eval {model} -f EVALUATION --ctx 128 --chunks 4 --json")).record("eval");
    let of = &record["data_sets"][0];
    assert_eq!((&of["chunks"], &of["ctx"]), (&Value::from(4), &Value::from(128)));
    record["perplexity"].as_f64().unwrap()
}

/// The types of the tensors of a file of `dir`, by name.
fn type_of(dir: &Dir, file: &str, tensor: &str) -> String {
    let record = dir.tcq4(&format!("inspect {file} --json")).record("inspect");
    let tensors = record["tensors"].as_array().unwrap();
    let found = tensors.iter().find(|row| row["name"] == tensor).unwrap_or_else(|| panic!("no {tensor}"));
    found["type"].as_str().unwrap().to_owned()
}

/// Checks that two files of `dir` hold the same tensors, byte for byte.
#[track_caller]
pub fn assert_same_tensors(dir: &Dir, a: &str, b: &str) {
    let record = dir.tcq4(&format!("diff {a} {b} --json")).record("diff");
    assert_eq!(record["tensors"], Value::Array(vec![]));
}

/// Makes statistics of the fixture in `dir`.
pub fn calibrate(dir: &Dir) {
    dir.tcq4(&format!("calibrate -m MODEL -c CALIBRATION -o perms.json --stats stats.gguf {LITTLE}")).ok();
}

#[test]
fn the_main_job() {
    let dir = Dir::new();
    let record = dir.tcq4("convert MODEL -o out.gguf -n 8 --ctx 128 --json").record("convert");
    assert_eq!(record["outputs"], Value::from(vec!["out.gguf"]));
    assert_eq!(record["bytes"].as_u64(), Some(dir.read("out.gguf").len() as u64));
    assert_eq!(record["source_sha256"].as_str().map(str::len), Some(64));
    assert_eq!(record["losses"].as_array().map(Vec::len), Some(28));
    assert_eq!(record["plan"]["tensors"].as_array().map(Vec::len), Some(38));
    assert!(record["prepared"]["groups"].as_array().is_some_and(|groups| groups.len() == 16));
    let bits = record["bits_per_weight"].as_f64().unwrap();
    assert!((4.625..4.9).contains(&bits) && record["seconds"].is_number(), "{bits} bits a weight");
    assert_eq!(dir.names(), ["out.gguf"]);

    let text = dir.tcq4("verify out.gguf").ok().stdout;
    assert!(
        text.starts_with(
            "out.gguf: sound. 38 tensors, 28 of them TCQ4; 4 permutations are bijections; 38 hashes match"
        ),
        "{text}"
    );
    let record = dir.tcq4("verify out.gguf --against MODEL --json").record("verify");
    let measured: Vec<f64> =
        record["tensors"].as_array().unwrap().iter().filter_map(|t| t["error_rel"].as_f64()).collect();
    assert!(measured.len() == 28 && measured.iter().all(|error| (1e-4..ERROR_REL).contains(error)), "{measured:?}");

    dir.tcq4("dequantize out.gguf plain.gguf").ok();
    assert_eq!(type_of(&dir, "plain.gguf", "blk.0.attn_q.weight"), "f16");
    let (before, after) = (perplexity(&dir, "MODEL"), perplexity(&dir, "out.gguf"));
    assert!((after / before - 1.0).abs() < PERPLEXITY_RISE, "perplexity {before} before, {after} after");
    assert_eq!(perplexity(&dir, "plain.gguf"), after, "eval decodes what dequantize writes");
}

#[test]
fn inspect_and_diff_show_what_was_done() {
    let dir = Dir::new();
    dir.tcq4("quantize MODEL out.gguf --order rrs").ok();
    let text = dir.tcq4("inspect out.gguf").ok().stdout;
    assert!(text.contains("tcq4_k32       28") && text.contains("more keys; --all shows them"), "{text}");
    let all = dir.tcq4("inspect out.gguf --all").ok().stdout;
    let row = all.lines().find(|line| line.starts_with("blk.2.ffn_down.weight ")).unwrap();
    assert!(row.contains("tcq4_k32") && row.contains("768 x 256") && row.ends_with("yes"), "{row}");
    let record = dir.tcq4("diff MODEL out.gguf --json").record("diff");
    assert_eq!((&record["same"], &record["same_tensors"]), (&Value::from(false), &Value::from(9)));
    let changed = serde_json::json!({
        "kind": "changed", "name": "blk.0.attn_q.weight", "from": "f16 [256, 256]", "to": "tcq4_k32 [256, 256]"
    });
    assert!(record["tensors"].as_array().unwrap().contains(&changed));
    let text = dir.tcq4("diff MODEL out.gguf").ok().stdout;
    assert!(text.contains("  + tcq4.encoder\n") && text.contains("  ~ general.file_type: 1 -> 80\n"), "{text}");
    let text = dir.tcq4("diff out.gguf out.gguf").ok().stdout;
    assert_eq!(text, "the same metadata; 38 tensors are the same to the byte\n");
}

#[test]
fn quiet_prints_nothing() {
    let dir = Dir::new();
    for line in [
        &format!("convert MODEL -o out.gguf {LITTLE}"),
        "verify out.gguf --against MODEL",
        "inspect out.gguf",
        "diff MODEL out.gguf",
        "dequantize out.gguf plain.gguf",
        "perms -m MODEL -o perms.json",
        "quantize MODEL other.gguf --perms perms.json",
        &format!("calibrate -m MODEL -o measured.json -c EVALUATION {LITTLE}"),
        "eval out.gguf -f EVALUATION --ctx 64 --chunks 2",
    ] {
        let done = dir.tcq4(&format!("{line} --quiet")).ok();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""), "`{line}`");
    }
    let error = dir.tcq4("inspect none --quiet");
    assert_eq!(error.stderr, "error: none: cannot open: No such file or directory (os error 2)\n");
}

#[test]
fn records_are_pure_json_and_complete() {
    let dir = Dir::new();
    dir.tcq4("quantize MODEL out.gguf --json").record("convert");
    let fields = |line: &str, name: &str, expected: &[&str]| {
        let done = dir.tcq4(line).ok();
        let mut keys: Vec<&str> = done.stdout.lines().filter_map(top_level_key).collect();
        assert_eq!(keys.drain(..3).collect::<Vec<_>>(), ["record", "record_version", "tcq4"]);
        assert_eq!(keys, expected, "`{line}`");
        done.record(name);
    };
    let verification = ["tensors", "tcq4_tensors", "permutations", "hashes", "marks"];
    fields("verify out.gguf --json", "verify", &verification);
    fields("verify out.gguf --against MODEL --json", "verify", &verification);
    fields("dequantize out.gguf plain.gguf --json", "dequantize", &["output", "tensors", "bytes", "device"]);
    fields("perms -m MODEL -o perms.json --json", "perms", &["output", "permutations"]);
    fields("diff MODEL out.gguf --json", "diff", &["a", "b", "same", "metadata", "tensors", "same_tensors"]);
    let plan = ["plan", "bytes", "bits_per_weight", "types", "recipe", "effort"];
    fields("quantize MODEL new.gguf --dry-run --json", "plan", &plan);
    let summary = [
        "files",
        "version",
        "architecture",
        "name",
        "file_bytes",
        "weights",
        "bits_per_weight",
        "types",
        "metadata",
        "tensors",
    ];
    fields("inspect out.gguf --json", "inspect", &summary);
    let calibration =
        ["output", "stats", "second_moments", "permutations", "chunks", "chunk_size", "text", "shard", "device"];
    fields("calibrate -m MODEL -o c.json -c EVALUATION -n 1 --ctx 32 --json", "calibrate", &calibration);
    let measured = [
        "model",
        "decoded",
        "device",
        "simulate",
        "ignore_marks",
        "reference",
        "logits_out",
        "perplexity",
        "error",
        "kld",
        "same_top",
        "p_diff_rms",
        "data_sets",
    ];
    fields("eval out.gguf -f EVALUATION --ctx 32 --chunks 2 --json", "eval", &measured);
}

/// The key of a line of a pretty-printed record, if it stands at the top; a parser would hide keys that occur twice.
fn top_level_key(line: &str) -> Option<&str> {
    line.strip_prefix("  \"")?.split_once("\":").map(|(key, _)| key)
}

#[test]
fn a_dry_run_names_every_tensor_and_writes_nothing() {
    let dir = Dir::new();
    for command in ["quantize MODEL out.gguf", "convert MODEL -o out.gguf"] {
        let text = dir.tcq4(&format!("{command} --dry-run")).ok().stdout;
        for tensor in Source::open(&fixture("models/tiny-llama-f16.gguf")).unwrap().tensors() {
            let row = text.lines().find(|line| line.starts_with(&format!("{} ", tensor.name))).expect("a row");
            let reason = match &*tensor.name {
                "token_embd.weight" => "embedding, tied to the output head",
                name if name.contains("norm") => "kept",
                _ => "linear layer",
            };
            assert!(row.ends_with(reason), "{row}");
        }
        assert!(
            text.contains("3.4 M weights: 6.5 MiB -> 1.9 MiB (4.792 bits a weight). Disk 1.9 MiB\nMemory about ")
                == (command.starts_with("quantize"))
        );
        assert!(text.contains("3.4 M weights: 6.5 MiB -> 1.9 MiB (4.792 bits a weight). Disk 1.9 MiB\n"), "{text}");
    }
    let record = dir.tcq4("convert MODEL -o out.gguf --dry-run --json").record("plan");
    let tensors = record["plan"]["tensors"].as_array().unwrap();
    assert_eq!((tensors.len(), &tensors[0]["reason"], &tensors[0]["to"]), (38, &"tied-head".into(), &"q6_K".into()));
    assert_eq!(dir.names(), [""; 0]);
}

#[test]
fn types_are_chosen_by_rule() {
    let dir = Dir::new();
    dir.tcq4(
        "quantize MODEL out.gguf --tensor-type ffn_down=f16 --tensor-type ffn=q8_0 --tensor-type \\.1\\.attn_q=bf16",
    )
    .ok();
    for (tensor, ty) in [
        ("blk.0.ffn_down.weight", "f16"),
        ("blk.0.ffn_up.weight", "q8_0"),
        ("blk.1.attn_q.weight", "bf16"),
        ("blk.0.attn_q.weight", "tcq4_k32"),
        ("token_embd.weight", "q6_K"),
    ] {
        assert_eq!(type_of(&dir, "out.gguf", tensor), ty, "{tensor}");
    }
    dir.tcq4("verify out.gguf --against MODEL").ok();
}

#[test]
fn rules_leave_norms_alone() {
    let dir = Dir::new();
    let text = dir.tcq4("quantize MODEL out.gguf --tensor-type .*=f16").ok().stdout;
    assert!(!text.contains("TCQ4 tensors"), "{text}");
    assert_same_tensors(&dir, "MODEL", "out.gguf");
    let record = dir.tcq4("diff MODEL out.gguf --json").record("diff");
    let changed = record["metadata"].as_array().unwrap().iter().any(|change| change["name"] == "general.file_type");
    assert!(!changed, "a file without TCQ4 keeps its type");
    assert_eq!(perplexity(&dir, "out.gguf"), perplexity(&dir, "MODEL"));
}

/// A model whose ffn_down does not fit: 320 columns.
fn misfit(dir: &Dir) {
    TinyModel { feed_forward: 320, layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
}

#[test]
fn what_does_not_fit_falls_back() {
    let dir = Dir::new();
    misfit(&dir);
    let text = dir.tcq4("quantize m.gguf a.gguf").ok().stdout;
    assert!(text.contains("instead of tcq4_k32: 320 columns are no multiple of 256"), "{text}");
    assert!(text.contains("1 tensors cannot be TCQ4 and take another type: +0."), "{text}");
    for (option, ty) in
        [("", "q8_0"), ("--fallback f16", "f16"), ("--fallback q5_0", "q5_0"), ("--fallback q6_K", "q8_0")]
    {
        dir.tcq4(&format!("quantize m.gguf out.gguf --force {option}")).ok();
        assert_eq!(type_of(&dir, "out.gguf", "blk.0.ffn_down.weight"), ty, "{option}");
    }
    dir.tcq4("verify out.gguf --against m.gguf").ok();
}

#[test]
fn strict_refuses_what_does_not_fit() {
    let dir = Dir::new();
    misfit(&dir);
    let message = "error: m.gguf: 1 tensors cannot take the type meant for them, the first `blk.0.ffn_down.weight`: \
                   instead of tcq4_k32: 320 columns are no multiple of 256\n\
                   hint: leave --strict out to accept this, or choose with --tensor-type; --dry-run shows the plan";
    for line in ["quantize m.gguf out.gguf", "convert m.gguf -o out.gguf", "quantize m.gguf out.gguf --dry-run"] {
        dir.tcq4(&format!("{line} --strict")).fails(4, message);
    }
    dir.tcq4("quantize m.gguf out.gguf --strict --tensor-type ffn_down=f16").ok();
}

#[test]
fn embedding_and_head_have_types_of_their_own() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    let types = |options: &str| {
        dir.tcq4(&format!("quantize m.gguf out.gguf --force {options}")).ok();
        ["token_embd.weight", "output.weight"].map(|tensor| type_of(&dir, "out.gguf", tensor))
    };
    assert_eq!(types(""), ["q6_K", "q6_K"]);
    assert_eq!(types("--embedding-type q8_0"), ["q8_0", "q6_K"]);
    assert_eq!(types("--embedding-type f16 --output-type q4_K"), ["f16", "q4_K"]);
    dir.tcq4("quantize MODEL tied.gguf --embedding-type q8_0").ok();
    assert_eq!(type_of(&dir, "tied.gguf", "token_embd.weight"), "q8_0");
}

#[test]
fn the_fork_gets_its_own_ids() {
    let dir = Dir::new();
    calibrate(&dir);
    dir.tcq4("quantize MODEL ours.gguf --stats stats.gguf").ok();
    dir.tcq4("quantize MODEL fork.gguf --stats stats.gguf --compat llama.cpp-rrs").ok();
    let fork = Source::open(&dir.file("fork.gguf")).unwrap();
    assert_eq!(fork.tensor("blk.0.attn_q.weight").unwrap().ty, GgmlType(42));
    assert_eq!(fork.metadata().get_u64("general.file_type"), Some(40));
    assert_eq!(type_of(&dir, "fork.gguf", "blk.0.attn_q.weight"), "tcq4_k32 (id 42)");
    let text = dir.tcq4("verify fork.gguf --against MODEL").ok().stdout;
    assert!(text.contains("28 of them TCQ4; 4 permutations are bijections; 38 hashes match"), "{text}");
    dir.tcq4("dequantize ours.gguf ours-f16.gguf").ok();
    dir.tcq4("dequantize fork.gguf fork-f16.gguf").ok();
    assert!(dir.read("ours-f16.gguf") == dir.read("fork-f16.gguf"));
}

#[test]
fn outputs_can_be_divided() {
    let dir = Dir::new();
    dir.tcq4("quantize MODEL whole.gguf").ok();
    dir.tcq4("quantize MODEL part.gguf --split-max-size 1M").ok();
    let shards = ["part-00001-of-00003.gguf", "part-00002-of-00003.gguf", "part-00003-of-00003.gguf"];
    assert_eq!(dir.names()[..3], shards);
    let record = dir.tcq4(&format!("inspect {} --json", shards[1])).record("inspect");
    assert_eq!(record["files"], Value::from(&shards[..]));
    assert!(shards.iter().all(|shard| dir.read(shard).len() < 1_000_000));
    assert_same_tensors(&dir, "whole.gguf", shards[2]);
    dir.tcq4(&format!("verify {} --against MODEL", shards[0])).ok();
    dir.tcq4("quantize MODEL part.gguf --split-max-size 1M").fails(
        3,
        "error: part-00001-of-00003.gguf: the file exists already\nhint: choose another name, or pass --force to replace it",
    );
}

#[test]
fn the_division_of_the_source_can_be_kept() {
    let dir = Dir::new();
    let model = TinyModel { layers: 1, ..TinyModel::default() };
    model.write_sharded(&dir.file("m.gguf"), &Sharding::MaxBytes(400_000));
    let shards = dir.names().len();
    assert!(shards > 1);
    let first = dir.names()[0].clone();
    dir.tcq4(&format!("quantize {first} kept.gguf --keep-split")).ok();
    dir.tcq4(&format!("quantize {first} single.gguf")).ok();
    assert_eq!(dir.names().iter().filter(|name| name.starts_with("kept-")).count(), shards);
    assert_same_tensors(&dir, "single.gguf", &first.replace("m-", "kept-"));
    dir.tcq4(&format!("quantize {first} ./{first} --force")).fails(
        3,
        &format!(
            "error: ./{first}: this output is the same file as the input {first}\nhint: choose another output name"
        ),
    );
}

#[test]
fn experts_are_converted() {
    let dir = Dir::new();
    TinyModel { experts: 4, layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    dir.tcq4(&format!("convert m.gguf -o out.gguf -c EVALUATION {LITTLE}")).ok();
    assert_eq!(type_of(&dir, "out.gguf", "blk.0.ffn_down_exps.weight"), "tcq4_k32");
    assert_eq!(type_of(&dir, "out.gguf", "blk.0.ffn_gate_inp.weight"), "f32");
    dir.tcq4("verify out.gguf --against m.gguf").ok();
    dir.tcq4("eval out.gguf -f EVALUATION --ctx 32 --chunks 2").ok();
}
