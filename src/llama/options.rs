//! What a caller may choose about loading and running a model. Plain values: nothing here knows llama.cpp.

/// How a model is loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelOptions {
    /// How many layers go to the GPU (`--ngl`); 0 keeps everything on the CPU.
    pub gpu_layers: u32,
    /// Whether weights will be replaced ([`super::Model::replace`]): the file is then read into memory instead of mapped.
    pub writable: bool,
}

/// How a context runs.
#[derive(Debug, Clone, Copy)]
pub struct ContextOptions {
    /// Tokens of one sequence, at most.
    pub ctx: u32,
    /// Tokens of one [`super::Context::decode`], at most.
    pub batch: u32,
    /// Tokens of one graph, at most.
    pub ubatch: u32,
    /// Threads of the CPU backend; 0 takes all that the process may use.
    pub threads: u32,
    /// Whether [`super::Context::decode_observed`] will be used. The graph-eval callback costs nothing while it is off.
    pub observe: bool,
}

impl ContextOptions {
    /// One sequence of `ctx` tokens in graphs of at most 512 tokens (llama.cpp's default), on all threads, unobserved.
    pub fn new(ctx: u32) -> Self {
        Self { ctx, batch: ctx, ubatch: ctx.min(512), threads: 0, observe: false }
    }

    /// The number of threads meant by [`Self::threads`].
    pub fn resolved_threads(&self) -> u32 {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            n => n,
        }
    }
}

/// Which tokens of a batch get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None (llama.cpp computes those of the last token all the same).
    None,
    /// All of them.
    All,
    /// Those from this index within the batch on.
    From(usize),
}

impl Logits {
    /// Whether the token at `index` gets logits.
    pub fn wants(self, index: usize) -> bool {
        match self {
            Logits::None => false,
            Logits::All => true,
            Logits::From(first) => index >= first,
        }
    }
}
