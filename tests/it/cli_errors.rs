//! What goes wrong, as a user meets it: message, hint and exit code of the binary. No run may panic, or leave a file.
//! Breaches of the GGUF format are in `gguf_hostile`, what outputs have to fear in `cli_outputs`.

use half::f16;
use tcq4::gguf::{GgmlType, Sharding, Source};

use crate::support::raw::Raw;
use crate::support::{Dir, tiny_model::TinyModel};

/// Quantises without llama.cpp: the embedding of the fixture keeps its type.
const QUANTIZE: &str = "quantize MODEL out.gguf --output-type f16";

const INCOMPLETE: &str =
    "hint: the download or copy may be incomplete: compare its size and checksum with the original";

/// Commands that read a model named MODEL_FILE and would write `out`.
const READERS: [&str; 6] = [
    "inspect MODEL_FILE",
    "verify MODEL_FILE",
    "quantize MODEL_FILE out",
    "convert MODEL_FILE -o out",
    "dequantize MODEL_FILE out",
    "perms -m MODEL_FILE -o out",
];

fn every_reader_says(dir: &Dir, file: &str, message: &str) {
    for line in READERS {
        dir.tcq4(&line.replace("MODEL_FILE", file)).fails(3, message);
    }
}

#[test]
fn missing_file() {
    let dir = Dir::new();
    every_reader_says(&dir, "m.gguf", "error: m.gguf: cannot open: No such file or directory (os error 2)");
}

#[test]
fn directory() {
    let dir = Dir::new();
    std::fs::create_dir(dir.file("folder")).unwrap();
    every_reader_says(&dir, "folder", "error: folder: cannot open: is a directory");
}

#[test]
fn empty_file() {
    let dir = Dir::new();
    dir.write("m.gguf", b"");
    every_reader_says(&dir, "m.gguf", &format!("error: m.gguf: the file is empty\n{INCOMPLETE}"));
}

#[test]
fn no_gguf() {
    let dir = Dir::new();
    dir.write("m.gguf", b"PK\x03\x04 and so on");
    let message = "error: m.gguf: not a GGUF file: it starts with [50, 4b, 03, 04], expected \"GGUF\"\n\
                   hint: convert other formats to GGUF first, for instance with llama.cpp's convert_hf_to_gguf.py";
    every_reader_says(&dir, "m.gguf", message);
}

#[test]
fn truncated_file() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    let whole = dir.read("m.gguf");
    dir.write("m.gguf", &whole[..whole.len() - 1000]);
    let length = whole.len() - 1000;
    let source = "error: m.gguf: tensor `output.weight`: its 132608 bytes at offset ";
    for line in READERS {
        let done = dir.tcq4(&line.replace("MODEL_FILE", "m.gguf"));
        assert!(done.error().ends_with(&format!(" pass the end of the file at {length}\n{INCOMPLETE}")));
        done.fails_like(3, source);
    }
}

#[test]
fn no_model_at_all() {
    let dir = Dir::new();
    dir.write("m.gguf", &Raw::new().text("general.name", "nothing").bytes());
    dir.tcq4("inspect m.gguf").ok();
    dir.tcq4("verify m.gguf").ok();
    dir.tcq4("quantize m.gguf out.gguf --dry-run").ok();
}

/// Writes a model whose tensor `name` has `value` at a row and column.
fn damaged(dir: &Dir, ty: GgmlType, name: &str, (row, column): (usize, usize), value: f32) {
    let model = TinyModel { ty, layers: 1, ..TinyModel::default() };
    let columns = model.tensors().iter().find(|tensor| tensor.name == name).unwrap().dims[0] as usize;
    let wide = ty == GgmlType::F32 || name.contains("norm");
    model.write_edited(&dir.file("m.gguf"), &Sharding::Single, |tensor, data| {
        let at = row * columns + column;
        if tensor == name && wide {
            data[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        } else if tensor == name {
            data[2 * at..2 * at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
    });
}

#[test]
fn weights_that_are_not_finite() {
    let dir = Dir::new();
    let cases = [
        ("blk.0.ffn_down.weight", (11, 300), f32::NAN, "NaN"),
        ("blk.0.attn_q.weight", (255, 255), f32::INFINITY, "inf"),
        ("blk.0.ffn_up.weight", (0, 0), f32::NEG_INFINITY, "-inf"),
        ("token_embd.weight", (100, 7), f32::NAN, "NaN"),
        ("output_norm.weight", (0, 9), f32::NAN, "NaN"),
    ];
    for (tensor, place, value, shown) in cases {
        damaged(&dir, GgmlType::F16, tensor, place, value);
        let (row, column) = place;
        let message = format!(
            "error: m.gguf: tensor `{tensor}` has {shown} at row {row}, column {column}\n\
             hint: the source model is damaged: fetch or convert it again"
        );
        for order in ["none", "zigzag"] {
            let types = "--output-type f16 --embedding-type f16";
            dir.tcq4(&format!("quantize m.gguf out.gguf {types} --order {order}")).fails(3, &message);
        }
        dir.tcq4("verify m.gguf").fails(3, &message);
        let convert = dir.tcq4("convert m.gguf -o out.gguf -c EVALUATION -n 1 --ctx 32");
        assert!(matches!(convert.code, Some(1..=3)) && !dir.file("out.gguf").exists(), "{}", convert.stderr);
        std::fs::remove_file(dir.file("m.gguf")).unwrap();
    }
}

#[test]
fn weights_beyond_the_format() {
    let dir = Dir::new();
    damaged(&dir, GgmlType::F32, "blk.0.attn_k.weight", (9, 17), 3e38);
    let types = "--output-type f32 --embedding-type f32";
    dir.tcq4(&format!("quantize m.gguf out.gguf {types}"))
        .fails_like(3, "error: m.gguf: tensor `blk.0.attn_k.weight` has rotated weights up to ");
    dir.tcq4(&format!("quantize m.gguf out.gguf {types} --tensor-type attn_k=f16")).fails(
        3,
        "error: m.gguf: tensor `blk.0.attn_k.weight` has weights beyond the range of f16\n\
         hint: choose a type of larger range, bf16 or f32",
    );
    dir.tcq4(&format!("quantize m.gguf out.gguf {types} --tensor-type attn_k=bf16")).ok();
    dir.tcq4("verify out.gguf").ok();
}

/// Writes `text` as perms.json and tries to quantise with it.
fn with_perms(text: &str, message: &str) {
    let dir = Dir::new();
    dir.write("perms.json", text.as_bytes());
    dir.tcq4(&format!("{QUANTIZE} --perms perms.json")).fails(3, message);
}

/// `{"version":1,"permutations":{"TENSOR":[INDICES]}}`
fn perms_of(tensor: &str, indices: &[u32]) -> String {
    format!("{{\"version\":1,\"permutations\":{{\"{tensor}\":{indices:?}}}}}")
}

const AGAIN: &str = "hint: make the permutations again from this model";

#[test]
fn permutations_of_another_model() {
    with_perms(
        &perms_of("blk.9.ffn_down.weight", &[1, 0]),
        &format!(
            "error: perms.json: the permutation of `blk.9.ffn_down.weight` is for a tensor that this model does not have\n{AGAIN}"
        ),
    );
}

#[test]
fn permutations_of_the_wrong_length() {
    with_perms(
        &perms_of("blk.0.attn_q.weight", &[1, 0]),
        &format!(
            "error: perms.json: the permutation of `blk.0.attn_q.weight` has 2 entries, the tensor has 256 columns\n{AGAIN}"
        ),
    );
}

#[test]
fn permutations_that_are_none() {
    let mut indices: Vec<u32> = (0..256).collect();
    indices[7] = 3;
    with_perms(
        &perms_of("blk.0.attn_q.weight", &indices),
        &format!(
            "error: perms.json: the permutation of `blk.0.attn_q.weight` is not a permutation: entry 7 repeats 3\n{AGAIN}"
        ),
    );
    indices[7] = 256;
    with_perms(
        &perms_of("blk.0.attn_q.weight", &indices),
        &format!(
            "error: perms.json: the permutation of `blk.0.attn_q.weight` is not a permutation: entry 7 is 256, outside 0..256\n{AGAIN}"
        ),
    );
}

#[test]
fn permutation_files_that_are_none() {
    let hint = "hint: expected {\"version\": 1, \"permutations\": {\"blk.0.attn_q.weight\": [..], ..}}, as `tcq4 calibrate -o` writes it";
    for (text, problem) in [
        ("perms!", "expected value at line 1 column 1"),
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{\"version\":2,\"permutations\":{}}", "its version is 2, this program knows version 1"),
        ("{\"permutations\":{}}", "missing field `version` at line 1 column 19"),
    ] {
        with_perms(text, &format!("error: perms.json: not a permutation file: {problem}\n{hint}"));
    }
    let dir = Dir::new();
    dir.tcq4(&format!("{QUANTIZE} --perms none.json"))
        .fails(3, "error: none.json: cannot open: No such file or directory (os error 2)");
}

#[test]
fn statistics_that_are_none() {
    let dir = Dir::new();
    let hint = "hint: make it again with `tcq4 calibrate --stats`, or with llama-imatrix";
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    dir.write("text", b"hello, world");
    for command in ["quantize MODEL out.gguf --output-type f16", "perms -m MODEL -o out.json"] {
        let with = |file: &str| dir.tcq4(&format!("{command} --stats {file}"));
        let lacking = format!("error: m.gguf: not a usable statistics file: it lacks the imatrix.* keys\n{hint}");
        with("m.gguf").fails(3, &lacking);
        with("text").fails_like(3, "error: text: not a usable statistics file: ");
        with("none").fails(3, "error: none: cannot open: No such file or directory (os error 2)");
    }
}

#[cfg(feature = "llama")]
#[test]
fn statistics_of_another_model() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    TinyModel { layers: 1, seed: 2, ..TinyModel::default() }.write(&dir.file("tuned.gguf"));
    dir.tcq4("calibrate -m m.gguf -c EVALUATION -n 1 --ctx 32 -o perms.json --stats stats.gguf").ok();
    for model in ["MODEL", "tuned.gguf"] {
        let name = if model == "MODEL" { "fixtures/models/tiny-llama-f16.gguf" } else { model };
        for line in [format!("quantize {model} out.gguf"), format!("perms -m {model} -o out.json")] {
            let done = dir.tcq4(&format!("{line} --stats stats.gguf"));
            assert!(done.error().ends_with(
                "\nhint: calibrate this very model: statistics of another quantisation or fine-tune mislead"
            ));
            done.fails_like(3, &format!("error: {name}: these statistics are of another model: its fingerprint is "));
        }
    }
    dir.tcq4("quantize m.gguf out.gguf --stats stats.gguf").ok();
}

#[cfg(feature = "llama")]
#[test]
fn calibration_texts() {
    let dir = Dir::new();
    for (name, text) in [("empty.txt", ""), ("blank.txt", " \n\n"), ("empty.json", "[]"), ("short.txt", "Hello.")] {
        dir.write(name, text.as_bytes());
    }
    dir.write("bad.json", b"{\"a\": 1}");
    dir.write("bad.jsonl", b"\"one\"\n{\"txt\": \"two\"}\n");
    dir.write("latin1.txt", b"caf\xe9");
    let few = "hint: give a text of a few hundred kilobytes, like those that the model will see";
    for (file, message) in [
        ("empty.txt", format!("error: empty.txt: no text to calibrate with\n{few}")),
        ("blank.txt", format!("error: blank.txt: no text to calibrate with\n{few}")),
        ("empty.json", format!("error: empty.json: no text to calibrate with\n{few}")),
        ("latin1.txt", "error: latin1.txt: not UTF-8 text (byte 3)".into()),
        ("none.txt", "error: none.txt: cannot read: No such file or directory (os error 2)".into()),
        ("bad.jsonl", "error: bad.jsonl:2: neither a string nor an object with a string under \"text\"; expected a string or an object with \"text\" or \"messages\"".into()),
    ] {
        dir.tcq4(&format!("convert MODEL -o out.gguf -c {file}")).fails(3, &message);
        dir.tcq4(&format!("calibrate -m MODEL -o out.json --stats out.gguf -c {file}")).fails(3, &message);
    }
    dir.tcq4("convert MODEL -o out.gguf -c bad.json")
        .fails_like(3, "error: bad.json: no array of samples; expected an array of strings");
    let short = "hint: give a longer text, or shorter chunks with --ctx";
    for (line, least) in [("convert MODEL -o out.gguf -c short.txt", 512), ("eval MODEL -f short.txt", 1024)] {
        let done = dir.tcq4(line);
        assert!(done.error().ends_with(&format!(" tokens, at least {least} are needed\n{short}")), "{}", done.error());
        done.fails_like(3, "error: the text has ");
    }
}

#[test]
fn a_source_that_is_tcq4_already() {
    let dir = Dir::new();
    dir.tcq4(QUANTIZE).ok();
    dir.tcq4("quantize MODEL fork.gguf --output-type f16 --compat llama.cpp-rrs").ok();
    for file in ["out.gguf", "fork.gguf"] {
        let message = format!(
            "error: {file}: tensor `blk.0.attn_q.weight` is TCQ4 already\n\
             hint: start from its source, or turn it back with `tcq4 dequantize`"
        );
        for line in
            ["quantize FILE new", "quantize FILE new --allow-requantize", "convert FILE -o new", "perms -m FILE -o new"]
        {
            dir.tcq4(&line.replace("FILE", file)).fails(3, &message);
        }
    }
    dir.tcq4("dequantize out.gguf plain.gguf").ok();
    dir.tcq4("dequantize plain.gguf again.gguf")
        .fails(3, "error: plain.gguf: the file has no TCQ4 tensors\nhint: it can be used as it is");
    dir.tcq4("quantize plain.gguf again.gguf --output-type f16").ok();
}

#[cfg(feature = "llama")]
#[test]
fn a_source_that_is_quantised_already() {
    let dir = Dir::new();
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    dir.tcq4("quantize m.gguf q8.gguf --tensor-type .*=q8_0").ok();
    let message = "error: q8.gguf: tensor `token_embd.weight` is q8_0 already, expected F16, BF16 or F32\n\
                   hint: start from the F16, BF16 or F32 model, or pass --allow-requantize";
    dir.tcq4("quantize q8.gguf out.gguf").fails(3, message);
    dir.tcq4("convert q8.gguf -o out.gguf").fails(3, message);
    dir.tcq4("quantize q8.gguf out.gguf --allow-requantize").ok();
    dir.tcq4("verify out.gguf").ok();
}

#[test]
fn verify_against_another_model() {
    let dir = Dir::new();
    dir.tcq4(QUANTIZE).ok();
    TinyModel { feed_forward: 1024, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    dir.tcq4("verify out.gguf --against m.gguf").fails(
        3,
        "error: m.gguf: tensor `blk.0.ffn_gate.weight`: expected shape [256, 768] as in out.gguf, found shape [256, 1024]\n\
         hint: the two files do not hold the same model",
    );
}

#[test]
fn a_damaged_result() {
    let dir = Dir::new();
    dir.tcq4(QUANTIZE).ok();
    let source = Source::open(&dir.file("out.gguf")).unwrap();
    let mut bytes = dir.read("out.gguf");
    let tensor = source.data(source.tensor("blk.1.ffn_up.weight").unwrap());
    let at = bytes.windows(64).position(|window| window == &tensor[..64]).unwrap();
    bytes[at + 20] ^= 1;
    dir.write("bad.gguf", &bytes);
    dir.tcq4("verify bad.gguf").fails(
        3,
        "error: bad.gguf: `blk.1.ffn_up.weight`: its bytes or its permutation are not those that were written\n\
         hint: the file was changed after it was written, or written by a faulty program: convert again",
    );
}

#[test]
fn wrong_usage() {
    let dir = Dir::new();
    for (line, message) in [
        ("", ""),
        ("frobnicate", "error: unrecognized subcommand 'frobnicate'"),
        ("quantize MODEL", "error: the following required arguments were not provided:\n  <OUTPUT>"),
        ("convert MODEL out.gguf", "error: unexpected argument 'out.gguf' found"),
        ("quantize MODEL o --order best", "error: invalid value 'best' for '--order <ORDER>'"),
        ("quantize MODEL o --threads 0", "error: invalid value '0' for '--threads <N>'"),
        (
            "quantize MODEL o --split-max-size 3X",
            "error: invalid value '3X' for '--split-max-size <SIZE>': expected a number and a unit",
        ),
        (
            "quantize MODEL o --keep-split --split-max-size 3G",
            "error: the argument '--keep-split' cannot be used with '--split-max-size <SIZE>'",
        ),
        (
            "quantize MODEL o --perms p --order rrs",
            "error: the argument '--perms <FILE>' cannot be used with '--order <ORDER>'",
        ),
        ("quantize MODEL o --isa altivec", "error: invalid value 'altivec' for '--isa <ISA>'"),
        (
            "quantize MODEL o --scales awq",
            "error: --scales awq needs channel statistics of the activations\nhint: pass --stats FILE",
        ),
        (
            "calibrate -m MODEL -o o --stats s",
            "error: the following required arguments were not provided:\n  --calibration <SRC>",
        ),
        ("calibrate -m MODEL -o o -n 0", "error: invalid value '0' for '--samples <N>'"),
        ("eval MODEL -f f --ctx 3", "error: invalid value '3' for '--ctx <TOKENS>'"),
    ] {
        dir.tcq4(line).fails_like(2, message);
    }
}

#[test]
fn unknown_tensor_types() {
    let dir = Dir::new();
    let option = "error: invalid value 'ffn=q99' for '--tensor-type <REGEX=TYPE>': unknown tensor type `q99`";
    dir.tcq4("quantize MODEL o --tensor-type ffn=q99").fails_like(2, option);
    dir.tcq4("quantize MODEL o --tensor-type ffn")
        .fails_like(2, "error: invalid value 'ffn' for '--tensor-type <REGEX=TYPE>': expected REGEX=TYPE");
    dir.tcq4("quantize MODEL o --tensor-type (=f16")
        .fails_like(2, "error: invalid value '(=f16' for '--tensor-type <REGEX=TYPE>': regex parse error");
    for option in ["fallback", "embedding-type", "output-type"] {
        let message = format!("error: invalid value 'q99' for '--{option} <TYPE>': unknown tensor type `q99`");
        dir.tcq4(&format!("quantize MODEL o --{option} q99")).fails_like(2, &message);
    }
    let raw = Raw::new().tensor("blk.0.attn_q.weight", &[256, 8], 199, 0).data(1024);
    dir.write("m.gguf", &raw.bytes());
    dir.tcq4("inspect m.gguf").ok();
    let message = "error: m.gguf: tensor `blk.0.attn_q.weight` has the unknown type 199\nhint: the file may be newer";
    for line in ["quantize m.gguf o", "quantize m.gguf o --allow-requantize", "verify m.gguf"] {
        dir.tcq4(line).fails_like(3, message);
    }
}

#[cfg(feature = "llama")]
#[test]
fn types_that_ggml_cannot_write() {
    let dir = Dir::new();
    dir.tcq4("quantize MODEL o --tensor-type ffn=iq2_xxs")
        .fails(3, "error: tensor type iq2_xxs needs an importance matrix");
    dir.tcq4("quantize MODEL o --tensor-type ffn=i32").fails_like(3, "error: tensor type i32 ");
}
