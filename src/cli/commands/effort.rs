//! What a conversion will take: what is measured, how often the text runs, memory, and, where a sample was timed, time.

use std::time::Duration;

use serde::Serialize;

use crate::convert::{
    CompensationLimits, Conversion, EncodingTime, compensation_cost, compensation_limits, sequential_cost, single_run,
    working_memory,
};
use crate::gguf::Source;
use crate::quant::{Needs, Recipe};
use crate::util::units::{Bytes, Elapsed};

/// The text that will run through the model.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct TextPasses {
    /// Whether one pass measures channel statistics.
    pub(super) statistics: bool,
    /// Chunks of a pass, at most.
    pub(super) chunks: u32,
    /// Tokens of a chunk.
    pub(super) ctx: u32,
}

/// Seconds that were extrapolated from samples.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Times {
    /// Loading the model and all passes of the text.
    pub(super) text_seconds: f64,
    #[serde(flatten)]
    pub(super) encoding: EncodingTime,
}

/// Bytes at the peak, by what holds them.
#[derive(Debug, Clone, Copy, Serialize)]
struct Memory {
    weights_mapped: u64,
    second_moments: u64,
    work: u64,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Effort {
    measures: Needs,
    passes: usize,
    chunks: u32,
    ctx: u32,
    memory: Memory,
    /// What second moments cannot be within that memory.
    limits: CompensationLimits,
    #[serde(skip)]
    moments_memory: u64,
    pub(super) times: Option<Times>,
}

impl Effort {
    /// What following `recipe` takes; `text` is `None` where no text runs.
    pub(super) fn new(source: &Source, plan: &Conversion, recipe: &Recipe, text: Option<TextPasses>) -> Self {
        let gptq = recipe.needs().covers(Needs::SECOND_MOMENTS);
        let (runs, second_moments) = match (gptq, recipe.sequential) {
            (false, _) => (0, 0),
            (true, false) => compensation_cost(source, plan, recipe.memory.0),
            (true, true) => sequential_cost(source, plan, recipe.layer_batch, recipe.memory.0),
        };
        // One pass measures both where all of it fits.
        let together = gptq && !recipe.sequential && single_run(source, plan, recipe.memory.0).is_some();
        let limits =
            if gptq { compensation_limits(source, plan, recipe.memory.0) } else { CompensationLimits::default() };
        Self {
            limits,
            moments_memory: recipe.memory.0,
            measures: if text.is_some() { recipe.needs() } else { Needs::NOTHING },
            passes: text.map_or(0, |text| usize::from(text.statistics && !together) + runs),
            chunks: text.map_or(0, |text| text.chunks),
            ctx: text.map_or(0, |text| text.ctx),
            memory: Memory { weights_mapped: source.total_bytes(), second_moments, work: working_memory(plan) },
            times: None,
        }
    }

    /// Bytes of memory besides the model, which is mapped.
    pub(super) fn memory(&self) -> u64 {
        self.memory.second_moments + self.memory.work
    }

    /// Seconds of everything, where a sample was timed.
    pub(super) fn seconds(&self) -> Option<f64> {
        let Times { text_seconds, encoding } = self.times?;
        Some(text_seconds + encoding.encode_seconds + encoding.round_seconds)
    }

    /// The lines below the sums of the plan.
    pub(super) fn lines(&self) -> String {
        let Memory { weights_mapped, second_moments, work } = self.memory;
        let mut text = String::new();
        if self.passes > 0 {
            let passes = if self.passes == 1 { "once".to_owned() } else { format!("{} times", self.passes) };
            text += &format!(
                "Measured: {}. The text runs {passes}: at most {} chunks of {} tokens\n",
                self.measures, self.chunks, self.ctx
            );
        }
        let moments =
            if second_moments > 0 { format!(" + {} second moments", Bytes(second_moments)) } else { String::new() };
        let reads = if self.passes > 0 {
            "read for every chunk; llama.cpp's buffers and the statistics come on top"
        } else {
            "and need no memory of their own"
        };
        text += &format!(
            "Memory about {}: {} work{moments}. {} of weights are mapped, {reads}",
            Bytes(second_moments + work),
            Bytes(work),
            Bytes(weights_mapped),
        );
        text += &self.limits_text();
        if let Some(times) = &self.times {
            text += &format!("\n{}", times.line());
        }
        text
    }

    /// What memory does not suffice for.
    fn limits_text(&self) -> String {
        let (mut text, memory) = (String::new(), Bytes(self.moments_memory));
        if let Some((name, columns)) = self.limits.blocks.first() {
            text += &format!(
                "\nWARNING: {memory} of memory do not suffice to weigh all columns of {} tensors together ({name} ..): errors are made up for within blocks of {columns} columns; a larger --memory gives better codes",
                self.limits.blocks.len()
            );
        }
        if let Some(name) = self.limits.shared.first() {
            text += &format!(
                "\nWARNING: {memory} of memory do not suffice for second moments of each expert of {} tensors ({name} ..): the experts of a layer share one; a larger --memory gives each its own",
                self.limits.shared.len()
            );
        }
        text
    }
}

impl Times {
    fn line(&self) -> String {
        let EncodingTime { encode_seconds, encode_share, round_seconds } = self.encoding;
        let elapsed = |seconds: f64| Elapsed(Duration::from_secs_f64(seconds.max(0.0)));
        let mut parts = Vec::new();
        if self.text_seconds > 0.0 {
            parts.push(format!("{} for the text (by one chunk of each pass)", elapsed(self.text_seconds)));
        }
        parts.push(format!("{} to encode (by {:.2} % of the weights)", elapsed(encode_seconds), 100.0 * encode_share));
        if round_seconds > 0.0 {
            parts.push(format!("{} to choose codes (by eight rows of 1024 columns a thread)", elapsed(round_seconds)));
        }
        let all = elapsed(self.text_seconds + encode_seconds + round_seconds);
        format!("Time about {all}: {}", parts.join(", "))
    }
}
