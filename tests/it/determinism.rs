//! The same inputs and settings give the same bytes, whatever the number of threads and whichever SIMD path.

use tcq4::tcq::Isa;

use crate::support::{Dir, skip, tiny_model::TinyModel};

/// Runs `line`, which writes `OUT`, on one thread and on two, and on each SIMD path; all must write the same bytes.
fn check(dir: &Dir, line: &str) {
    let run = |name: &str, variable: &str, value: &str| {
        dir.tcq4_with(variable, value, &(line.replace("OUT", name) + " --force")).ok();
        dir.read(name)
    };
    let first = run("first", "TCQ4_THREADS", "1");
    assert!(run("threads", "TCQ4_THREADS", "2") == first, "two threads write other bytes than one");
    let foreign = if cfg!(target_arch = "aarch64") { [Isa::Avx2, Isa::Avx512].as_slice() } else { &[Isa::Neon] };
    for isa in Isa::ALL.into_iter().filter(|isa| !foreign.contains(isa)) {
        if !isa.is_available() {
            skip(&format!("this CPU has no {isa}"));
            continue;
        }
        let name = format!("isa-{isa}");
        assert!(run(&name, "TCQ4_ISA", &isa.to_string()) == first, "{isa} writes other bytes");
    }
}

#[test]
fn quantize_writes_the_same_bytes() {
    let dir = Dir::new();
    check(&dir, "quantize MODEL OUT --output-type f16");
}

#[test]
fn the_parity_encoder_writes_the_same_bytes() {
    let dir = Dir::new();
    check(&dir, "quantize MODEL OUT --output-type f16 --encoder parity --order rrs --perm-apply fold");
}

#[test]
fn other_source_types_give_the_same_bytes() {
    let dir = Dir::new();
    let model = TinyModel { ty: tcq4::gguf::GgmlType::BF16, layers: 1, experts: 3, ..TinyModel::default() };
    model.write(&dir.file("experts.gguf"));
    check(&dir, "quantize experts.gguf OUT --output-type bf16 --embedding-type bf16 --order zigzag");
}

#[cfg(feature = "llama")]
#[test]
fn convert_writes_the_same_bytes() {
    let dir = Dir::new();
    check(&dir, "convert MODEL -o OUT -n 2 --ctx 64");
}

#[cfg(feature = "llama")]
#[test]
fn every_search_finds_the_same() {
    let dir = Dir::new();
    dir.tcq4("calibrate -m MODEL -o perms.json --stats stats.gguf -c EVALUATION -n 2 --ctx 64").ok();
    check(&dir, "quantize MODEL OUT --stats stats.gguf --order auto --scales awq --alpha-grid 5");
    check(&dir, "quantize MODEL OUT --stats stats.gguf --order balanced --perm-apply fold");
}
