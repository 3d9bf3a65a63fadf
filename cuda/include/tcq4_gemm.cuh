// Many tokens times a TCQ4 matrix on tensor cores: 128 tokens x 128 rows a block, copies that run ahead, and as little as possible beside the mma.
//
// A block of 8 warps goes through K in halves of a chunk (128 columns, 4 groups); a warp makes 64 tokens x 32 rows, 2 x 8 fragments of 16 rows x 8 tokens.
// Weights are the first operand of the mma: words of their codes as they lie in the file (INT4), or two registers for each (INT8: even and odd elements as
// bytes times 16, see tcq4_mul_vec.cuh). Tokens are the second, whose pair of registers is what a load of 8 bytes gives: as the first operand, with four
// registers in another order, they cost four moves an mma. Lane 4*r + part has rows r and r + 8 and tokens 2*part and 2*part + 1 of a result.
//
// One scale for 256 activations (block4, block8): sums stay integers over the chunk. |sum of dot*sc| <= 8*2048*127 < 2^21 (times 16 or 256 where codes are
// widened: < 2^29), so a group costs one multiply-add for each result, and floats are made once a chunk. The zero points are an INT8 product
// of their own: depth 16 holds the sums of 8 groups, each as two bytes that add up to it. It is left out where no row of the block has a zero point.
//
// One scale for 32 (act8, act4): the mma starts at the bits of 1.5*2^23, where a unit in the last place is 1, so its result d is a float: magic + dot. With
// steps of 22 bits, magic*step is exact and fma(d, step, -magic*step) is step*dot, rounded once: two instructions a result and group, and one
// for a zero point.
//
// Rejected: INT4 mma of depth 64, which would add up two groups before their scale codes; folding scale codes into the weights (11 bits: two INT8 products for
// one, half of the INT8 peak at best).

#ifndef TCQ4_GEMM_CUH
#define TCQ4_GEMM_CUH

#include "tcq4_mul_mat.cuh"

#define TCQ4_GEMM_TOKENS  128 // of a block
#define TCQ4_GEMM_ROWS    128
#define TCQ4_GEMM_THREADS 256

// Halves in shared memory: one is multiplied while the next arrives, where copies are asynchronous.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define TCQ4_GEMM_STAGES 1
#else
#define TCQ4_GEMM_STAGES 2
#endif

// words: of the codes of half a chunk. stride: of tokens in shared memory, so that the 8 (4) tokens of a load lie in different banks.
// unit_bits: integer sums are 2^unit_bits times too large.
template <typename act> struct tcq4_gemm_of;
template <> struct tcq4_gemm_of<tcq4_act8>   { enum { words = 32, stride = 40, grouped = 1, unit_bits = 4 }; };
template <> struct tcq4_gemm_of<tcq4_act4>   { enum { words = 16, stride = 20, grouped = 1, unit_bits = TCQ4_NATIVE_INT4 ? 0 : 8 }; };
template <> struct tcq4_gemm_of<tcq4_block8> { enum { words = 32, stride = 40, grouped = 0, unit_bits = 4 }; };
template <> struct tcq4_gemm_of<tcq4_block4> { enum { words = 16, stride = 20, grouped = 0, unit_bits = TCQ4_NATIVE_INT4 ? 0 : 8 }; };

// Half of a tile: its codes, and the scales and scale codes of all of it.
struct alignas(16) tcq4_gemm_stripe {
    uint32_t codes[4][32];
    uint16_t scale[8], zero[8];
    int8_t   scale_code[64], zero_code[64];
};

template <typename act> struct alignas(16) tcq4_gemm_stage {
    uint32_t         codes[TCQ4_GEMM_TOKENS][tcq4_gemm_of<act>::stride];
    uint32_t         tails[TCQ4_GEMM_TOKENS][8]; // grouped: 4 scales and 4 sums; else a scale, 8 sums of 16 bits and nothing
    tcq4_gemm_stripe stripes[TCQ4_GEMM_ROWS/TCQ4_ROWS];
};

// What is worked out once for the four groups of a half.
template <bool grouped> struct tcq4_gemm_table;
template <> struct tcq4_gemm_table<true> {
    float2 step  [4][TCQ4_GEMM_ROWS]; // and -magic*step
    float  offset[4][TCQ4_GEMM_ROWS];
    float  scale [4][TCQ4_GEMM_TOKENS];
    float  sum   [4][TCQ4_GEMM_TOKENS];
};
template <> struct tcq4_gemm_table<false> {
    int scale_code[4][TCQ4_GEMM_ROWS];
};

template <typename act> struct alignas(16) tcq4_gemm_shared {
    tcq4_gemm_stage<act>                        stages[TCQ4_GEMM_STAGES];
    tcq4_gemm_table<tcq4_gemm_of<act>::grouped> table;
};

// A matrix and the tokens for it.
template <typename act> struct tcq4_gemm_job {
    const tcq4_tile * tiles;
    const act       * acts;
    const int32_t   * sources; // which token product i takes; null: i
    const int32_t   * targets; // which row of y it writes; null: i
    float           * y;
    int64_t           y_stride;
    int               rows, chunks;
    int               first, end; // products
};

// --- tensor cores ---

// d = a*b + c in every result, 16 rows x 8 tokens x 32 columns of INT8. a: even elements of rows r and r + 8, odd elements of these; b: even and odd elements.
static __device__ __forceinline__ void tcq4_gemm_s8(int (&d)[4], const uint32_t (&a)[4], const uint2 & b, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c));
#else
    d[0] = d[1] = d[2] = d[3] = c;
    tcq4_mma_s8(d, make_uint2(a[0], a[2]), make_uint2(a[1], a[3]), b.x, b.y);
#endif
}

// The same of INT4, a word for each row and for the token.
static __device__ __forceinline__ void tcq4_gemm_s4(int (&d)[4], uint32_t low, uint32_t high, uint32_t b, int c) {
#if TCQ4_NATIVE_INT4 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(low), "r"(high), "r"(b), "r"(c));
#else
    d[0] = d[1] = d[2] = d[3] = c;
    tcq4_mma_s4(d, low, high, b);
#endif
}

// The same of INT8 and depth 16: columns 4*(lane%4) + 0..3 of rows lane/4 and lane/4 + 8, and of token lane/4.
static __device__ __forceinline__ void tcq4_gemm_s8_k16(int (&d)[4], uint32_t low, uint32_t high, uint32_t b, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(low), "r"(high), "r"(b), "r"(c));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};" : "=r"(d[0]), "=r"(d[1]) : "r"(low),  "r"(b), "r"(c));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};" : "=r"(d[2]), "=r"(d[3]) : "r"(high), "r"(b), "r"(c));
#elif defined(TCQ4_EMULATED)
    d[0] = d[1] = d[2] = d[3] = c;
    emulated_mma_s8_k16(d, low, high, b);
#else
    (void) d; (void) low; (void) high; (void) b; (void) c; // no tensor cores: never launched
#endif
}

// The operands of a group. words: of the codes of a token's half chunk; INT4 has a word a row, INT8 two.
template <int words> struct tcq4_gemm_weights;
template <int words> struct tcq4_gemm_tokens;

// INT8 tokens.
template <> struct tcq4_gemm_weights<32> {
    uint32_t a[4];

    // The words of rows r and r + 8.
    __device__ __forceinline__ void set(uint32_t low, uint32_t high) {
        a[0] = (uint32_t) tcq4_even(low);
        a[1] = (uint32_t) tcq4_even(high);
        a[2] = (uint32_t) tcq4_odd(low);
        a[3] = (uint32_t) tcq4_odd(high);
    }
};

template <> struct tcq4_gemm_tokens<32> {
    uint2 b;

    __device__ __forceinline__ void load(const uint32_t * codes, int group, int part) { b = *(const uint2 *) &codes[8*group + 2*part]; }
};

static __device__ __forceinline__ void tcq4_gemm_mul(int (&d)[4], const tcq4_gemm_weights<32> & weights, const tcq4_gemm_tokens<32> & tokens, int c) {
    tcq4_gemm_s8(d, weights.a, tokens.b, c);
}

// INT4 tokens: native, or widened as the weights are.
#if TCQ4_NATIVE_INT4
template <> struct tcq4_gemm_weights<16> {
    uint32_t a[2];

    __device__ __forceinline__ void set(uint32_t low, uint32_t high) {
        a[0] = low;
        a[1] = high;
    }
};

template <> struct tcq4_gemm_tokens<16> {
    uint32_t b;

    __device__ __forceinline__ void load(const uint32_t * codes, int group, int part) { b = codes[4*group + part]; }
};

static __device__ __forceinline__ void tcq4_gemm_mul(int (&d)[4], const tcq4_gemm_weights<16> & weights, const tcq4_gemm_tokens<16> & tokens, int c) {
    tcq4_gemm_s4(d, weights.a[0], weights.a[1], tokens.b, c);
}
#else
template <> struct tcq4_gemm_weights<16> : tcq4_gemm_weights<32> {};

template <> struct tcq4_gemm_tokens<16> {
    uint2 b;

    __device__ __forceinline__ void load(const uint32_t * codes, int group, int part) {
        const uint32_t word = codes[4*group + part];
        b = make_uint2((uint32_t) tcq4_even(word), (uint32_t) tcq4_odd(word));
    }
};

static __device__ __forceinline__ void tcq4_gemm_mul(int (&d)[4], const tcq4_gemm_weights<16> & weights, const tcq4_gemm_tokens<16> & tokens, int c) {
    tcq4_gemm_s8(d, weights.a, tokens.b, c);
}
#endif

// --- shared memory ---

// Where a thread copies from: two threads have a token, sixteen a stripe. Tokens and rows that are not there are copies of the last ones.
template <typename act> struct tcq4_gemm_source {
    const char * token;
    const char * tile;

    __device__ __forceinline__ tcq4_gemm_source(const tcq4_gemm_job<act> & job, int first_product, int first_row) {
        const int product = first_product + (int) threadIdx.x/2 < job.end ? first_product + (int) threadIdx.x/2 : job.end - 1;
        const int last    = job.rows/TCQ4_ROWS - 1;
        const int stripe  = first_row/TCQ4_ROWS + (int) threadIdx.x/16 < last ? first_row/TCQ4_ROWS + (int) threadIdx.x/16 : last;
        token = (const char *) &job.acts[(int64_t) (job.sources ? job.sources[product] : product)*job.chunks];
        tile  = (const char *) &job.tiles[(int64_t) stripe*job.chunks];
    }

    // Starts the copies of a half of this chunk.
    __device__ __forceinline__ void copy(tcq4_gemm_stage<act> & stage, int half) const {
        constexpr int words   = tcq4_gemm_of<act>::words;
        constexpr int grouped = tcq4_gemm_of<act>::grouped;
        const int side = threadIdx.x%2;
        const int own  = threadIdx.x/2;
        const int part = threadIdx.x%16;
        const char * codes = token + 4*words*half + 16*side;
#pragma unroll
        for (int i = 0; i < words/8; ++i) {
            tcq4_copy16(&stage.codes[own][4*side + 8*i], codes + 32*i);
        }
        if (grouped || half == 1) { // four scales and four sums of this half, or the end of the block
            tcq4_copy16(&stage.tails[own][4*side], token + 8*words + (grouped ? 32*side + 16*half : 16*side));
        }
        char * stripe = (char *) &stage.stripes[threadIdx.x/16] + 16*part;
        const char * from = tile + 512*half + 16*part;
        tcq4_copy16(stripe,       from);
        tcq4_copy16(stripe + 256, from + 256);
        if (part < 10) {
            tcq4_copy16(stripe + 512, tile + 1024 + 16*part);
        }
    }

    __device__ __forceinline__ void next_chunk() {
        token += sizeof(act);
        tile  += TCQ4_TILE_BYTES;
    }
};

TCQ4_STATIC_ASSERT(sizeof(tcq4_gemm_stripe) == 512 + TCQ4_TILE_BYTES - 1024, "wrong size of half a tile");

// Rounds to 22 bits, so that the product with the magic number (3*2^22) is exact.
static __device__ __forceinline__ float tcq4_short_step(float step) {
    return tcq4_float_of_bits((tcq4_bits_of_float(step) + 2u) & ~3u);
}

// Enters a row's scale codes, or steps and offsets, of group `group` as the g-th of the half.
static __device__ __forceinline__ void tcq4_gemm_enter_row(tcq4_gemm_table<true> & table, const tcq4_gemm_stripe & stripe, int row, int g, int group, float unit) {
    const int   r    = row%TCQ4_ROWS;
    const float step = tcq4_short_step(tcq4_wide(stripe.scale[r])*(1.0f/127)*(float) stripe.scale_code[8*r + group]*unit);
    table.step  [g][row] = make_float2(step, tcq4_mul(-TCQ4_MAGIC, step));
    table.offset[g][row] = tcq4_wide(stripe.zero[r])*(1.0f/127)*(float) stripe.zero_code[8*r + group];
}

static __device__ __forceinline__ void tcq4_gemm_enter_row(tcq4_gemm_table<false> & table, const tcq4_gemm_stripe & stripe, int row, int g, int group, float) {
    table.scale_code[g][row] = stripe.scale_code[8*(row%TCQ4_ROWS) + group];
}

// Enters a token's four scales (quad 0) or sums (quad 1).
static __device__ __forceinline__ void tcq4_gemm_enter_token(tcq4_gemm_table<true> & table, const uint32_t * tail, int token, int quad) {
#pragma unroll
    for (int g = 0; g < 4; ++g) {
        (quad ? table.sum : table.scale)[g][token] = tcq4_float_of_bits(tail[4*quad + g]);
    }
}

static __device__ __forceinline__ void tcq4_gemm_enter_token(tcq4_gemm_table<false> &, const uint32_t *, int, int) {}

// Fills the table for a half; gives whether this thread's row has a zero point. A thread does two groups of a row, and half of a token's tail.
template <typename act> static __device__ __forceinline__ bool tcq4_gemm_prepare(tcq4_gemm_shared<act> & shared, const tcq4_gemm_stage<act> & stage, int half) {
    const int row  = threadIdx.x/2;
    const int side = threadIdx.x%2;
    const tcq4_gemm_stripe & stripe = stage.stripes[row/TCQ4_ROWS];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        tcq4_gemm_enter_row(shared.table, stripe, row, 2*side + i, 4*half + 2*side + i, 1.0f/(1 << tcq4_gemm_of<act>::unit_bits));
    }
    tcq4_gemm_enter_token(shared.table, stage.tails[row], row, side);
    return (stripe.zero[row%TCQ4_ROWS] & 0x7fffu) != 0;
}

// Where a warp's results lie in the block.
struct tcq4_gemm_place {
    int row, token;
};

// The words of weight codes of a group: 16 rows each.
template <typename act>
static __device__ __forceinline__ void tcq4_gemm_load_weights(
        tcq4_gemm_weights<tcq4_gemm_of<act>::words> (&weights)[2], const tcq4_gemm_stage<act> & stage, int row, int g, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const tcq4_gemm_stripe * stripe = &stage.stripes[row/TCQ4_ROWS + 2*i];
        weights[i].set(stripe[0].codes[g][lane], stripe[1].codes[g][lane]);
    }
}

// --- one scale for 32 ---

template <typename act> struct tcq4_gemm_sums_grouped {
    float y[2][8][4];

    // Adds the four groups of a half.
    __device__ __forceinline__ void add(const tcq4_gemm_stage<act> & stage, const tcq4_gemm_table<true> & table, int, tcq4_gemm_place at, bool zeros) {
        if (zeros) {
            add_groups<true>(stage, table, at);
        } else {
            add_groups<false>(stage, table, at);
        }
    }

    template <bool zeros>
    __device__ __forceinline__ void add_groups(const tcq4_gemm_stage<act> & stage, const tcq4_gemm_table<true> & table, tcq4_gemm_place at) {
        const int lane = threadIdx.x & 31;
        const int part = lane%4;
#pragma unroll
        for (int g = 0; g < 4; ++g) {
            tcq4_gemm_weights<tcq4_gemm_of<act>::words> weights[2];
            float2 step  [2][2]; // of rows r and r + 8
            float  offset[2][2];
            tcq4_gemm_load_weights(weights, stage, at.row, g, lane);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = at.row + 16*i + 8*h + lane/4;
                    step  [i][h] = table.step[g][row];
                    offset[i][h] = zeros ? table.offset[g][row] : 0.0f;
                }
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int first = at.token + 8*j;
                tcq4_gemm_tokens<tcq4_gemm_of<act>::words> tokens;
                tokens.load(stage.codes[first + lane/4], g, part);
                const float2 scale = *(const float2 *) &table.scale[g][first + 2*part];
                const float2 sum   = zeros ? *(const float2 *) &table.sum[g][first + 2*part] : make_float2(0.0f, 0.0f);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    int d[4];
                    tcq4_gemm_mul(d, weights[i], tokens, TCQ4_MAGIC_BITS);
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        const float product = fmaf(__int_as_float(d[n]), step[i][n/2].x, step[i][n/2].y);
                        y[i][j][n] = fmaf(product, n%2 ? scale.y : scale.x, y[i][j][n]);
                        if (zeros) {
                            y[i][j][n] = fmaf(n%2 ? sum.y : sum.x, offset[i][n/2], y[i][j][n]);
                        }
                    }
                }
            }
        }
    }
};

// --- one scale for 256 ---

// Two sums of codes, -256 .. 224 each in 16 bits, as bytes that add up to them: half of the first, the rest of it, and so for the second.
static __device__ __forceinline__ uint32_t tcq4_sum_digits(uint32_t sums) {
    const uint32_t half = sums >> 1 & 0x00ff00ffu;
    const uint32_t rest = half + (sums & 0x00010001u);
    return half | (rest & 0x00ff00ffu) << 8;
}

// The zero codes of groups 2*part and 2*part + 1, each twice.
static __device__ __forceinline__ uint32_t tcq4_zero_codes(const tcq4_gemm_stripe & stripe, int row, int part) {
    const uint32_t pair = *(const uint16_t *) &stripe.zero_code[8*row + 2*part];
    const uint32_t wide = (pair & 0xffu) | (pair & 0xff00u) << 8;
    return wide | wide << 8;
}

template <typename act> struct tcq4_gemm_sums_blocked {
    float y[2][8][4];
    int   sums[2][8][4]; // over the chunk

    __device__ __forceinline__ void add(const tcq4_gemm_stage<act> & stage, const tcq4_gemm_table<false> & table, int half, tcq4_gemm_place at, bool zeros) {
        const int lane = threadIdx.x & 31;
#pragma unroll 2 // with all four, registers do not suffice on sm_120
        for (int g = 0; g < 4; ++g) {
            tcq4_gemm_weights<tcq4_gemm_of<act>::words> weights[2];
            int codes[2][2]; // of rows r and r + 8
            tcq4_gemm_load_weights(weights, stage, at.row, g, lane);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    codes[i][h] = table.scale_code[g][at.row + 16*i + 8*h + lane/4];
                }
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                tcq4_gemm_tokens<tcq4_gemm_of<act>::words> tokens;
                tokens.load(stage.codes[at.token + 8*j + lane/4], g, lane%4);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    int d[4];
                    tcq4_gemm_mul(d, weights[i], tokens, 0);
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        sums[i][j][n] += d[n]*codes[i][n/2];
                    }
                }
            }
        }
        if (half == 1) {
            if (zeros) {
                settle<true>(stage, at);
            } else {
                settle<false>(stage, at);
            }
        }
    }

    // Scales the sums of the chunk and begins anew.
    template <bool zeros> __device__ __forceinline__ void settle(const tcq4_gemm_stage<act> & stage, tcq4_gemm_place at) {
        const int lane = threadIdx.x & 31;
        const int part = lane%4;
        const int r    = lane/4;
        float    s[2][2], z[2][2], shift[2][2]; // of rows r and r + 8; shift: -magic*z
        uint32_t zero_codes[2][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const tcq4_gemm_stripe & stripe = stage.stripes[at.row/TCQ4_ROWS + 2*i + h];
                s[i][h] = tcq4_wide(stripe.scale[r])*(1.0f/127/(1 << tcq4_gemm_of<act>::unit_bits));
                z[i][h] = zeros ? tcq4_short_step(tcq4_wide(stripe.zero[r])*(1.0f/127)) : 0.0f;
                shift[i][h] = tcq4_mul(-TCQ4_MAGIC, z[i][h]);
                zero_codes[i][h] = zeros ? tcq4_zero_codes(stripe, r, part) : 0;
            }
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int      first    = at.token + 8*j;
            const float    scale[2] = { tcq4_float_of_bits(stage.tails[first + 2*part][0]), tcq4_float_of_bits(stage.tails[first + 2*part + 1][0]) };
            const uint32_t digits   = zeros ? tcq4_sum_digits(stage.tails[first + r][1 + part]) : 0;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int d[4] = {};
                if (zeros) {
                    tcq4_gemm_s8_k16(d, zero_codes[i][0], zero_codes[i][1], digits, TCQ4_MAGIC_BITS);
                }
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const float sum   = (float) sums[i][j][n];
                    const float total = zeros ? fmaf(s[i][n/2], sum, fmaf(__int_as_float(d[n]), z[i][n/2], shift[i][n/2])) : s[i][n/2]*sum;
                    y[i][j][n] = fmaf(scale[n%2], total, y[i][j][n]);
                    sums[i][j][n] = 0;
                }
            }
        }
    }
};

template <bool grouped, typename act> struct tcq4_gemm_sums_of            { typedef tcq4_gemm_sums_grouped<act> type; };
template <typename act>               struct tcq4_gemm_sums_of<false, act> { typedef tcq4_gemm_sums_blocked<act> type; };

// --- the block ---

// Multiplies the products from `first_product` on with the rows from `first_row` on, 128 of each or what there is. By all threads of a block.
template <typename act>
static __device__ __forceinline__ void tcq4_gemm_block(tcq4_gemm_shared<act> & shared, const tcq4_gemm_job<act> & job, int first_product, int first_row) {
    const int lane  = threadIdx.x & 31;
    const int warp  = threadIdx.x >> 5;
    const int steps = 2*job.chunks;
    const tcq4_gemm_place at = { 32*(warp%4), 64*(warp/4) };

    typename tcq4_gemm_sums_of<tcq4_gemm_of<act>::grouped, act>::type sums = {};
    tcq4_gemm_source<act> source(job, first_product, first_row);
    source.copy(shared.stages[0], 0);
    for (int step = 0; step < steps; ++step) {
        tcq4_gemm_stage<act> & stage = shared.stages[step%TCQ4_GEMM_STAGES];
        const int next = step + 1;
        tcq4_copies_wait();
        __syncthreads(); // this half is there, and the one before has been read
        if (next%2 == 0) {
            source.next_chunk();
        }
        if (TCQ4_GEMM_STAGES > 1 && next < steps) {
            source.copy(shared.stages[next%TCQ4_GEMM_STAGES], next%2);
        }
        const bool zeros = __syncthreads_or(tcq4_gemm_prepare(shared, stage, step%2));
        sums.add(stage, shared.table, step%2, at, zeros);
        if (TCQ4_GEMM_STAGES == 1 && next < steps) {
            __syncthreads();
            source.copy(stage, next%2);
        }
    }

#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int product = first_product + at.token + 8*j + 2*(lane%4) + n;
            if (product >= job.end) {
                continue;
            }
            float * out = job.y + (job.targets ? job.targets[product] : product)*job.y_stride;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = first_row + at.row + 16*i + 8*h + lane/4;
                    if (row < job.rows) {
                        out[row] = sums.y[i][j][2*h + n];
                    }
                }
            }
        }
    }
}

#endif // TCQ4_GEMM_CUH
