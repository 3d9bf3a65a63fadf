//! Statistics files and calibration runs. The runs need the `llama` feature, the files do not.

use std::path::PathBuf;
use std::sync::Arc;

use tcq4::calib::store;
use tcq4::calib::{ChannelStats, SampleRows, Statistics};
use tcq4::gguf::{GgmlType, Metadata, Plan, Source, TensorSpec, Writer};

use crate::support::Dir;
use crate::support::tiny_model::TinyModel;

/// Statistics of two weights that share an input, and of experts; values that f32 and f16 hold exactly.
fn statistics() -> Statistics {
    let filled = |matrices: usize, columns: usize| {
        let len = matrices * columns;
        let wide = |scale: f64| (0..len).map(|i| (i + 1) as f64 * scale).collect::<Vec<f64>>();
        ChannelStats {
            counts: (0..matrices as u64).map(|m| 10 + m).collect(),
            abs_max: (0..len).map(|i| i as f32 * 0.5).collect(),
            min: (0..len).map(|i| i as f32 * -0.5).collect(),
            max: (0..len).map(|i| i as f32 * 0.25).collect(),
            sum: wide(-0.25),
            sum_abs: wide(0.5),
            sum_sq: wide(2.0),
            rows: None,
            ..ChannelStats::new(matrices, columns)
        }
    };
    let rows = |columns: usize, matrix: Vec<u32>| {
        let data = (0..columns * matrix.len()).map(|i| i as f32 * 0.125 - 1.0).collect();
        Some(Arc::new(SampleRows { columns, data, matrix }))
    };
    let shared = rows(4, vec![0, 0, 0]);
    let mut stats = Statistics {
        groups: vec![vec!["blk.0.attn_q.weight".into(), "blk.0.attn_k.weight".into()]],
        chunk_count: 2,
        chunk_size: 512,
        datasets: vec!["a.txt".into(), "b.txt".into()],
        fingerprint: Some("0123".into()),
        rows_held_out: true,
        ..Statistics::default()
    };
    stats.notes.insert("selection".into(), "First".into());
    for name in ["blk.0.attn_q.weight", "blk.0.attn_k.weight"] {
        stats.entries.insert(name.into(), ChannelStats { rows: shared.clone(), ..filled(1, 4) });
    }
    let experts = ChannelStats { rows: rows(2, vec![2, 0]), ..filled(3, 2) };
    stats.entries.insert("blk.0.ffn_up_exps.weight".into(), experts);
    stats
}

/// A file of an earlier version: everything but the smallest and largest values.
#[test]
fn files_without_ranges_load_and_say_so() {
    let dir = Dir::new();
    let (sums, counts) = (("w.in_sum2", &[2u64][..], &[4.0f32, 9.0][..]), ("w.counts", &[1u64][..], &[2.0f32][..]));
    let others: [(&str, &[u64], &[f32]); 3] =
        [("w.in_absmax", &[2], &[2.0, 3.0]), ("w.in_sum", &[2], &[1.0, -1.0]), ("w.in_sumabs", &[2], &[3.0, 4.0])];
    let range: [(&str, &[u64], &[f32]); 2] = [("w.in_min", &[2], &[-2.0, -3.0]), ("w.in_max", &[2], &[1.0, -1.0])];
    let load =
        |parts: &[&[Part<'_>]]| store::load(&imatrix(&dir, &parts.concat(), true)).map_err(|error| dir.message(&error));
    let old = load(&[&[sums, counts], &others]).unwrap();
    let entry = &old.entries["w"];
    assert_eq!((entry.complete, entry.ranged, entry.range(0), entry.max_abs(1)), (true, false, None, 3.0));
    let path = dir.file("again.gguf");
    store::save(&path, &old, false, &[]).unwrap();
    assert_eq!(store::load(&path).unwrap(), old, "what is not known is not invented");
    let new = load(&[&[sums, counts], &others, &range]).unwrap();
    assert_eq!((new.entries["w"].ranged, new.entries["w"].range(1)), (true, Some((-3.0, -1.0))));
    let half = load(&[&[sums, counts, range[0]]]).unwrap();
    assert!(!half.entries["w"].ranged);
    let mut crossed = range;
    crossed[1].2 = &[1.0, -4.0];
    let message = load(&[&[sums, counts], &crossed]).unwrap_err();
    assert_eq!(message, "hostile.gguf: not a usable statistics file: `w`: in_min is -3 and in_max -4 at 1");
}

#[test]
fn statistics_come_back() {
    let dir = Dir::new();
    let path = dir.file("stats.gguf");
    let stats = statistics();
    store::save(&path, &stats, false, &[]).unwrap();
    let back = store::load(&path).unwrap();
    assert_eq!(back, stats);
    let rows = |name: &str| back.entries[name].rows.clone().unwrap();
    assert!(Arc::ptr_eq(&rows("blk.0.attn_q.weight"), &rows("blk.0.attn_k.weight")), "shared rows are stored once");
    assert!(store::save(&path, &stats, false, &[]).unwrap_err().to_string().contains("exists already"));
}

#[test]
fn the_file_is_an_imatrix_file() {
    let dir = Dir::new();
    let path = dir.file("stats.gguf");
    store::save(&path, &statistics(), false, &[]).unwrap();
    let source = Source::open(&path).unwrap();
    let keys = source.metadata();
    assert_eq!(keys.get_str("general.type").unwrap(), "imatrix");
    assert_eq!((keys.get_u64("imatrix.chunk_count"), keys.get_u64("imatrix.chunk_size")), (Some(2), Some(512)));
    let dims = |name: &str| source.tensor(name).unwrap().dims.clone();
    assert_eq!(dims("blk.0.attn_q.weight.in_sum2"), [4]);
    assert_eq!(dims("blk.0.attn_q.weight.counts"), [1]);
    assert_eq!(dims("blk.0.ffn_up_exps.weight.in_sum2"), [2, 3]);
    assert_eq!(dims("blk.0.ffn_up_exps.weight.counts"), [1, 3]);
}

/// A tensor of F32 values: name, dimensions, values.
type Part<'a> = (&'a str, &'a [u64], &'a [f32]);

/// Writes a statistics file with the given tensors.
fn imatrix(dir: &Dir, tensors: &[Part<'_>], keys: bool) -> PathBuf {
    let path = dir.file("hostile.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix");
    if keys {
        metadata.set("imatrix.datasets", ["x"].as_slice());
        metadata.set("imatrix.chunk_count", 1u32);
        metadata.set("imatrix.chunk_size", 512u32);
    }
    let spec = |(name, dims, _): &(&str, &[u64], &[f32])| TensorSpec {
        name: (*name).to_owned(),
        dims: dims.to_vec(),
        ty: GgmlType::F32,
    };
    let plan = Plan::new(&metadata, tensors.iter().map(spec).collect(), 32).unwrap();
    let writer = Writer::create(&path, &plan, true, &[]).unwrap();
    for (index, (_, _, values)) in tensors.iter().enumerate() {
        writer.write(index, 0, bytemuck::cast_slice(values)).unwrap();
    }
    writer.commit().unwrap();
    path
}

#[test]
fn hostile_statistics_are_refused() {
    let dir = Dir::new();
    let sums: (&str, &[u64], &[f32]) = ("w.in_sum2", &[2], &[1.0, 4.0]);
    let counts: (&str, &[u64], &[f32]) = ("w.counts", &[1], &[2.0]);
    let message = |tensors: &[(&str, &[u64], &[f32])], keys: bool| {
        dir.message(&store::load(&imatrix(&dir, tensors, keys)).unwrap_err())
    };
    let sound = store::load(&imatrix(&dir, &[sums, counts], true)).unwrap();
    assert_eq!((sound.entries["w"].mean_sq(1), sound.entries["w"].complete), (2.0, false));
    let prefix = "hostile.gguf: not a usable statistics file: ";
    assert_eq!(message(&[sums, counts], false), format!("{prefix}it lacks the imatrix.* keys"));
    assert_eq!(message(&[sums], true), format!("{prefix}`w`: in_sum2 and counts belong together"));
    assert_eq!(message(&[counts], true), format!("{prefix}`w`: in_sum2 and counts belong together"));
    assert_eq!(message(&[("token_embd.weight", &[1], &[0.0])], true), format!("{prefix}it has no entries"));
    let nan: (&str, &[u64], &[f32]) = ("w.in_sum2", &[2], &[1.0, f32::NAN]);
    assert_eq!(message(&[nan, counts], true), format!("{prefix}`w`: `w.in_sum2` has NaN at 1"));
    let negative: (&str, &[u64], &[f32]) = ("w.counts", &[1], &[-2.0]);
    assert_eq!(message(&[sums, negative], true), format!("{prefix}`w`: `w.counts` has -2 at 0"));
    let three: (&str, &[u64], &[f32]) = ("w.counts", &[3], &[1.0; 3]);
    assert_eq!(message(&[sums, three], true), format!("{prefix}`w`: in_sum2 has the shape [2], counts [3]"));
    let short: (&str, &[u64], &[f32]) = ("w.in_absmax", &[1], &[1.0]);
    assert_eq!(message(&[sums, counts, short], true), format!("{prefix}`w`: in_absmax has the shape [1], in_sum2 [2]"));
    let none = dir.message(&store::load(&dir.file("none.gguf")).unwrap_err());
    assert!(none.starts_with("none.gguf: cannot open"), "{none}");
    assert!(store::load(&dir.write("empty.gguf", b"")).is_err());
}

#[test]
fn statistics_of_another_model_are_refused() {
    let dir = Dir::new();
    let open = |name: &str, tiny: &TinyModel| {
        tiny.write(&dir.file(name));
        Source::open(&dir.file(name)).unwrap()
    };
    let (model, other) =
        (open("a.gguf", &TinyModel::default()), open("b.gguf", &TinyModel { seed: 2, ..TinyModel::default() }));
    assert_ne!(store::fingerprint(&model), store::fingerprint(&other));
    let entry = |name: &str, columns| [(name.to_owned(), ChannelStats::new(1, columns))].into();
    let adapt = |stats: &mut Statistics| stats.adapt(&model).map_err(|e| e.to_string());
    let mut stats = Statistics { entries: entry("blk.0.ffn_down.weight", 512), ..Statistics::default() };
    adapt(&mut stats).unwrap();
    stats.fingerprint = Some(store::fingerprint(&other));
    assert!(adapt(&mut stats).unwrap_err().contains("of another model: its fingerprint is"));
    let mut stats = Statistics { entries: entry("blk.0.ffn_down.weight", 513), ..Statistics::default() };
    assert!(
        adapt(&mut stats).unwrap_err().contains("`blk.0.ffn_down.weight` has 1 x 512 input channels, theirs 1 x 513")
    );
    let mut stats = Statistics { entries: entry("blk.7.ffn_down.weight", 512), ..Statistics::default() };
    assert!(adapt(&mut stats).unwrap_err().contains("it has no tensor `blk.7.ffn_down.weight`"));
}

#[test]
fn flattened_experts_get_their_matrices_back() {
    let dir = Dir::new();
    let path = dir.file("moe.gguf");
    TinyModel { experts: 4, ..TinyModel::default() }.write(&path);
    let mut flat = ChannelStats::new(1, 4 * 256);
    flat.counts = vec![9];
    let mut stats =
        Statistics { entries: [("blk.0.ffn_up_exps.weight".to_owned(), flat)].into(), ..Statistics::default() };
    stats.adapt(&Source::open(&path).unwrap()).unwrap();
    let entry = &stats.entries["blk.0.ffn_up_exps.weight"];
    assert_eq!((entry.columns, entry.matrices, entry.counts.as_slice()), (256, 4, &[9; 4][..]));
}

#[cfg(feature = "llama")]
mod runs {
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tcq4::calib::collector::{Collector, Wanted};
    use tcq4::calib::{CalibrationOptions, calibrate, run};
    use tcq4::corpus::Corpus;
    use tcq4::corpus::chunks::{Chunks, Selection};
    use tcq4::error::{Error, ModelError};
    use tcq4::eval::{PerplexityOptions, perplexity};
    use tcq4::llama::{Context, ContextOptions, Model, ModelOptions};
    use tcq4::util::progress::{NoProgress, Progress, Unit};

    use super::*;

    /// Sums of the same rows, added up in another order.
    const ORDER_TOLERANCE: f64 = 1e-12;

    struct Setup {
        dir: Dir,
        model: Model,
        fingerprint: String,
        corpus: Corpus,
    }

    /// A model and a text of ten chunks of 32 tokens and a bit (a token is a byte).
    fn setup() -> Setup {
        let dir = Dir::new();
        let path = dir.file("tiny.gguf");
        TinyModel { experts: 4, ..TinyModel::default() }.write(&path);
        let fingerprint = store::fingerprint(&Source::open(&path).unwrap());
        let model = Model::load(&path, &ModelOptions::default()).unwrap();
        let text: String = (0..325).map(|i: u32| char::from(b' ' + (i * i % 89) as u8)).collect();
        let corpus = Corpus::from_text("text", &text).unwrap();
        Setup { dir, model, fingerprint, corpus }
    }

    fn options() -> CalibrationOptions {
        CalibrationOptions { ctx: 32, rows: 16, threads: 1, ..CalibrationOptions::default() }
    }

    fn run_with(setup: &Setup, options: &CalibrationOptions, progress: &dyn Progress) -> tcq4::Result<Statistics> {
        calibrate(&setup.model, &setup.corpus, &setup.fingerprint, options, progress)
    }

    /// A user who interrupts after some chunks.
    struct Impatient(AtomicUsize);

    impl Progress for Impatient {
        fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
        fn advance(&self, _amount: u64) {}
        fn end(&self) {}
        fn note(&self, _message: &str) {}
        fn interrupted(&self) -> bool {
            self.0.fetch_sub(1, Ordering::Relaxed) == 0
        }
    }

    #[test]
    fn an_interrupted_run_resumes_to_the_same_bytes() {
        let setup = setup();
        let whole = run_with(&setup, &options(), &NoProgress).unwrap();
        store::save(&setup.dir.file("whole.gguf"), &whole, false, &[]).unwrap();
        let checkpoint = setup.dir.file("x.partial");
        let mut with_checkpoint = CalibrationOptions { checkpoint: Some(checkpoint.clone()), ..options() };
        let error = run_with(&setup, &with_checkpoint, &Impatient(AtomicUsize::new(4))).unwrap_err();
        assert!(matches!(error, Error::Interrupted) && checkpoint.exists(), "{error}");
        with_checkpoint.resume = true;
        let resumed = run_with(&setup, &with_checkpoint, &NoProgress).unwrap();
        store::save(&setup.dir.file("resumed.gguf"), &resumed, false, &[]).unwrap();
        let bytes = |name: &str| std::fs::read(setup.dir.file(name)).unwrap();
        assert!(bytes("whole.gguf") == bytes("resumed.gguf"));
        with_checkpoint.rows = 17;
        let error = run_with(&setup, &with_checkpoint, &NoProgress).unwrap_err();
        assert!(error.to_string().contains("another model, text, or setting"), "{error}");
        run::forget_checkpoint(&checkpoint).unwrap();
        run::forget_checkpoint(&checkpoint).unwrap();
        assert!(!checkpoint.exists());
    }

    #[test]
    fn checkpoints_on_the_way_change_nothing() {
        let setup = setup();
        let checkpoint = Some(setup.dir.file("x.partial"));
        let eager = CalibrationOptions { checkpoint, checkpoint_every: Duration::ZERO, ..options() };
        let (a, b) =
            (run_with(&setup, &options(), &NoProgress).unwrap(), run_with(&setup, &eager, &NoProgress).unwrap());
        assert_eq!(a, b);
    }

    /// The sums over some chunks of the text.
    fn sums(setup: &Setup, chunks: std::ops::Range<usize>) -> Statistics {
        let text = Chunks::new(&setup.model, &setup.corpus.text, 32).unwrap();
        let options = ContextOptions { threads: 1, observe: true, ..ContextOptions::new(32) };
        let mut context = Context::new(&setup.model, &options).unwrap();
        let mut collector = Collector::new(false);
        let chunk_count = chunks.len() as u32;
        for chunk in chunks {
            context.clear();
            collector.begin_chunk(Wanted { sums: true, rows: vec![chunk], rows_before: chunk });
            context.decode_observed(&text.get(chunk), &mut collector).unwrap();
        }
        let (entries, groups) = collector.finish();
        Statistics { entries, groups, chunk_count, chunk_size: 32, ..Statistics::default() }
    }

    #[test]
    fn shards_of_the_text_add_up_to_the_whole() {
        let setup = setup();
        let whole = sums(&setup, 0..10);
        let mut merged = sums(&setup, 0..6);
        merged.merge(&sums(&setup, 6..10)).unwrap();
        assert_eq!((merged.chunk_count, &merged.groups), (whole.chunk_count, &whole.groups));
        assert_eq!(merged.entries.len(), whole.entries.len());
        for (name, stats) in &whole.entries {
            let other = &merged.entries[name];
            assert_eq!(
                (&stats.counts, &stats.abs_max, &stats.min, &stats.max, &stats.rows),
                (&other.counts, &other.abs_max, &other.min, &other.max, &other.rows),
                "{name}"
            );
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= ORDER_TOLERANCE * a.abs();
            assert!(stats.sum_sq.iter().zip(&other.sum_sq).all(close), "{name}");
        }
    }

    #[test]
    fn rows_are_held_out_where_there_is_text_left() {
        let setup = setup();
        let some = CalibrationOptions { samples: 6, selection: Selection::Seeded(42), ..options() };
        let (some, all) =
            (run_with(&setup, &some, &NoProgress).unwrap(), run_with(&setup, &options(), &NoProgress).unwrap());
        assert!(some.rows_held_out && !all.rows_held_out);
        assert_eq!((some.chunk_count, all.chunk_count), (6, 10));
        for stats in [&some, &all] {
            assert!(stats.entries.values().all(|entry| entry.rows.as_ref().unwrap().len() == 16));
            assert_eq!(stats.entries["blk.1.attn_output.weight"].counts, [32 * u64::from(stats.chunk_count)]);
        }
    }

    #[test]
    fn a_text_too_short_is_refused_with_the_numbers() {
        let mut setup = setup();
        setup.corpus = Corpus::from_text("short", "abc").unwrap();
        let error = run_with(&setup, &options(), &NoProgress).unwrap_err();
        assert!(matches!(error, Error::Model(ModelError::TextTooShort { needed: 32, .. })), "{error}");
        assert!(error.hint().unwrap().contains("--ctx"));
        let short = PerplexityOptions { ctx: 32, ..PerplexityOptions::default() };
        assert!(perplexity(&setup.model, "abc", &short, &NoProgress).is_err());
    }

    #[test]
    fn an_untrained_model_is_about_as_good_as_chance() {
        let setup = setup();
        let options = PerplexityOptions { ctx: 32, chunks: Some(4), threads: 1 };
        let result = perplexity(&setup.model, &setup.corpus.text, &options, &NoProgress).unwrap();
        assert_eq!((result.chunks, result.tokens, result.running.len()), (4, 4 * 15, 4));
        assert!(result.value > 50.0 && result.error > 0.0, "{result:?}");
    }

    /// Against f32 sums of as many rows, added one by one.
    const PEER_TOLERANCE: f64 = 1e-5;

    #[test]
    #[ignore = "needs llama.cpp's programs; scripts/test.sh runs it where TCQ4_LLAMA_BIN names their folder"]
    fn peer_llama_imatrix_measures_the_same_and_llama_quantize_reads_it() {
        let bin = PathBuf::from(std::env::var_os("TCQ4_LLAMA_BIN").expect("TCQ4_LLAMA_BIN"));
        let setup = setup();
        let file = |name: &str| setup.dir.file(name).display().to_string();
        let call = |program: &str, arguments: &[&str]| {
            let out = Command::new(bin.join(program)).args(arguments).output().unwrap();
            assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        };
        std::fs::write(file("text.txt"), &setup.corpus.text).unwrap();
        let ours =
            run_with(&setup, &CalibrationOptions { selection: Selection::First, ..options() }, &NoProgress).unwrap();
        for (name, format) in [("peer.gguf", "gguf"), ("peer.dat", "dat")] {
            let (model, text, out) = (file("tiny.gguf"), file("text.txt"), file(name));
            let base = ["-m", &model, "-f", &text, "-o", &out, "--output-format", format];
            call("llama-imatrix", &[&base[..], &["-c", "32", "-b", "32", "-t", "1", "--no-ppl"]].concat());
            let mut peer = store::load(&setup.dir.file(name)).unwrap();
            peer.adapt(&Source::open(&setup.dir.file("tiny.gguf")).unwrap()).unwrap();
            assert!(peer.entries.keys().eq(ours.entries.keys()), "{name}");
            for (weight, stats) in &ours.entries {
                let theirs = &peer.entries[weight];
                for matrix in 0..stats.matrices {
                    let (a, b) = (stats.importance(matrix), theirs.importance(matrix));
                    let close = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) <= PEER_TOLERANCE * f64::from(*b);
                    assert!(a.iter().zip(&b).all(close), "{name}: {weight}, expert {matrix}");
                }
            }
        }
        store::save(&setup.dir.file("ours.gguf"), &ours, false, &[]).unwrap();
        call(
            "llama-quantize",
            &["--imatrix", &file("ours.gguf"), &file("tiny.gguf"), &file("out.gguf"), "IQ2_XS", "1"],
        );
    }
}
