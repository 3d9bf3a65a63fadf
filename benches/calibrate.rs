//! What calibration costs beside the plain forward pass over the same tokens: same binary, same process, alternating, medians.
//!
//! `TCQ4_BENCH_MODEL=model.gguf TCQ4_BENCH_TEXT=text.raw [TCQ4_BENCH_CHUNKS=4] [TCQ4_BENCH_THREADS=0] cargo bench --bench calibrate`
//!
//! Three passes are timed: *plain* (callback off, all logits: the graph that a calibration run needs, since only then the last block sees all rows),
//! *head off* (callback off, logits of the last token only: less work than calibration can do) and *calibrate* (all statistics and sample rows).

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::path::PathBuf;
use std::time::Instant;

use tcq4::calib::collector::{Collector, Wanted};
use tcq4::corpus::chunks::Chunks;
use tcq4::llama::{Context, ContextOptions, Logits, Model, ModelOptions};

const CTX: u32 = 512;

/// Wall seconds and CPU seconds (all threads) of a pass.
type Cost = (f64, f64);

fn main() -> tcq4::Result<()> {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(model), Some(text)) = (path("TCQ4_BENCH_MODEL"), path("TCQ4_BENCH_TEXT")) else {
        println!("skipped: set TCQ4_BENCH_MODEL and TCQ4_BENCH_TEXT");
        return Ok(());
    };
    let number = |name, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (count, threads) = (number("TCQ4_BENCH_CHUNKS", 4), number("TCQ4_BENCH_THREADS", 0) as u32);
    let text = std::fs::read_to_string(&text).map_err(tcq4::Error::io(&text, "read"))?;
    let model = Model::load(&model, &ModelOptions::default())?;
    let chunks = Chunks::new(&model, &text, CTX)?;
    let options = ContextOptions { threads, ..ContextOptions::new(CTX) };
    let mut plain = Context::new(&model, &options)?;
    let mut observed = Context::new(&model, &ContextOptions { observe: true, ..options })?;
    let mut collector = Collector::new(false);
    let mut costs: [Vec<Cost>; 3] = Default::default();
    // The first chunk warms up: pages of the model, llama.cpp's graph, the end of the observed graph.
    for index in 0..=count.min(chunks.len() - 1) {
        let tokens = chunks.get(index);
        let passes = [
            timed(|| pass(&mut plain, &tokens, Logits::All))?,
            timed(|| pass(&mut plain, &tokens, Logits::None))?,
            timed(|| {
                observed.clear();
                collector.begin_chunk(Wanted { sums: true, rows: vec![100, 300], rows_before: 2 * index });
                observed.decode_observed(&tokens, &mut collector)
            })?,
        ];
        if index > 0 {
            costs.iter_mut().zip(passes).for_each(|(all, cost)| all.push(cost));
        }
    }
    report(&costs);
    Ok(())
}

fn pass(context: &mut Context<'_>, tokens: &[i32], logits: Logits) -> tcq4::Result<()> {
    context.clear();
    context.decode(tokens, logits)
}

fn timed(work: impl FnOnce() -> tcq4::Result<()>) -> tcq4::Result<Cost> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work()?;
    Ok((start.elapsed().as_secs_f64(), cpu_seconds() - cpu))
}

/// CPU seconds of this process so far, by the clock tick (1/100 s); 0 where /proc is not to be had.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(costs: &[Vec<Cost>; 3]) {
    println!("{} chunks of {CTX} tokens, medians", costs[0].len());
    println!("{:<12} {:>9} {:>9} {:>9} {:>9}", "pass", "wall s", "cpu s", "/ plain", "/ head off");
    let wall = |i: usize| median(costs[i].iter().map(|c| c.0));
    for (i, name) in ["plain", "head off", "calibrate"].iter().enumerate() {
        let cpu = median(costs[i].iter().map(|c| c.1));
        println!("{name:<12} {:>9.4} {cpu:>9.2} {:>9.3} {:>9.3}", wall(i), wall(i) / wall(0), wall(i) / wall(1));
    }
}
