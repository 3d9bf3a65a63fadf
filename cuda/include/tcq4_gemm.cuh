// Many tokens times a TCQ4 matrix on tensor cores: 128 tokens x 128 rows a block, copies that run ahead, and as little as possible beside the mma.
//
// A block of 8 warps goes through K in halves of a chunk (128 columns, 4 groups); a warp makes 64 tokens x 32 rows, 4 x 4 fragments of 16 tokens x 8 rows.
// Words of weight codes are operands as they lie in the file (INT4) or give two (INT8: even and odd elements as bytes times 16, see tcq4_mul_vec.cuh).
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
    uint32_t         tails[TCQ4_GEMM_TOKENS][8]; // grouped: 4 scales and 4 sums; else a scale, 8 sums of 16 bits and nothing. See tcq4_tail
    tcq4_gemm_stripe stripes[TCQ4_GEMM_ROWS/TCQ4_ROWS];
};

// What is worked out once for the four groups of a half.
template <bool grouped> struct tcq4_gemm_table;
template <> struct tcq4_gemm_table<true> {
    float step  [4][TCQ4_GEMM_ROWS];
    float shift [4][TCQ4_GEMM_ROWS]; // -magic*step
    float offset[4][TCQ4_GEMM_ROWS];
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

// Word w of a token's tail: every other four tokens have the two quads exchanged, so that 8 tokens lie in different banks.
template <typename act> static __device__ __forceinline__ uint32_t & tcq4_tail(tcq4_gemm_stage<act> & stage, int token, int w) {
    return stage.tails[token][w ^ (token & 4)];
}

// --- tensor cores ---

// d = a*b + c in every result: 16 tokens x 8 rows x 32 columns of INT8; operands as in tcq4_mma_s8.
static __device__ __forceinline__ void tcq4_gemm_s8(int (&d)[4], const uint2 & low, const uint2 & high, uint32_t even, uint32_t odd, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(low.x), "r"(high.x), "r"(low.y), "r"(high.y), "r"(even), "r"(odd), "r"(c));
#else
    d[0] = d[1] = d[2] = d[3] = c;
    tcq4_mma_s8(d, low, high, even, odd);
#endif
}

// The same of INT4.
static __device__ __forceinline__ void tcq4_gemm_s4(int (&d)[4], uint32_t low, uint32_t high, uint32_t weights, int c) {
#if TCQ4_NATIVE_INT4 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(low), "r"(high), "r"(weights), "r"(c));
#else
    d[0] = d[1] = d[2] = d[3] = c;
    tcq4_mma_s4(d, low, high, weights);
#endif
}

// The same of INT8 and depth 16: low, high: columns 4*(lane%4) + 0..3 of tokens lane/4 and lane/4 + 8; weights: those of row lane/4.
static __device__ __forceinline__ void tcq4_gemm_s8_k16(int (&d)[4], uint32_t low, uint32_t high, uint32_t weights, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(low), "r"(high), "r"(weights), "r"(c));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};" : "=r"(d[0]), "=r"(d[1]) : "r"(low),  "r"(weights), "r"(c));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};" : "=r"(d[2]), "=r"(d[3]) : "r"(high), "r"(weights), "r"(c));
#elif defined(TCQ4_EMULATED)
    d[0] = d[1] = d[2] = d[3] = c;
    emulated_mma_s8_k16(d, low, high, weights);
#else
    (void) d; (void) low; (void) high; (void) weights; (void) c; // no tensor cores: never launched
#endif
}

// The codes of tokens r and r + 8 (r = lane/4) that a lane brings to the mma of a group: words for INT4, pairs of words for bytes.
template <int words> struct tcq4_gemm_operand;

template <> struct tcq4_gemm_operand<32> {
    uint2 low, high;

    __device__ __forceinline__ void load(const uint32_t (*codes)[40], int token, int group, int part) {
        low  = *(const uint2 *) &codes[token    ][8*group + 2*part];
        high = *(const uint2 *) &codes[token + 8][8*group + 2*part];
    }
    __device__ __forceinline__ void mul(int (&d)[4], uint32_t weights, int c) const {
        tcq4_gemm_s8(d, low, high, (uint32_t) tcq4_even(weights), (uint32_t) tcq4_odd(weights), c);
    }
};

template <> struct tcq4_gemm_operand<16> {
    uint32_t low, high;

    __device__ __forceinline__ void load(const uint32_t (*codes)[20], int token, int group, int part) {
        low  = codes[token    ][4*group + part];
        high = codes[token + 8][4*group + part];
    }
    __device__ __forceinline__ void mul(int (&d)[4], uint32_t weights, int c) const {
#if TCQ4_NATIVE_INT4
        tcq4_gemm_s4(d, low, high, weights, c);
#else
        const uint2 wide_low  = make_uint2((uint32_t) tcq4_even(low),  (uint32_t) tcq4_odd(low));
        const uint2 wide_high = make_uint2((uint32_t) tcq4_even(high), (uint32_t) tcq4_odd(high));
        tcq4_gemm_s8(d, wide_low, wide_high, (uint32_t) tcq4_even(weights), (uint32_t) tcq4_odd(weights), c);
#endif
    }
};

// --- shared memory ---

template <typename chunk> static __device__ __forceinline__ const void * tcq4_tail_source(const chunk & act, int half, int quad) {
    return quad == 0 ? &act.scale[4*half] : &act.sum[4*half];
}
static __device__ __forceinline__ const void * tcq4_tail_source(const tcq4_block4 & act, int, int quad) { return &act.codes[32] + 4*quad; }
static __device__ __forceinline__ const void * tcq4_tail_source(const tcq4_block8 & act, int, int quad) { return &act.codes[64] + 4*quad; }

// Starts the copies of a half chunk. Tokens and rows that are not there are copies of the last ones.
template <typename act>
static __device__ __forceinline__ void tcq4_gemm_copy(
        tcq4_gemm_stage<act> & stage, const tcq4_gemm_job<act> & job, int chunk, int half, int first_product, int first_row) {
    constexpr int words  = tcq4_gemm_of<act>::words;
    constexpr int pieces = words/4 + 2; // of 16 bytes: codes, two for the tail
    for (int i = threadIdx.x; i < TCQ4_GEMM_TOKENS*pieces; i += TCQ4_GEMM_THREADS) {
        const int token   = i/pieces;
        const int piece   = i%pieces;
        const int product = first_product + token < job.end ? first_product + token : job.end - 1;
        const int source  = job.sources ? job.sources[product] : product;
        const act & from  = job.acts[(int64_t) source*job.chunks + chunk];
        if (piece < words/4) {
            tcq4_copy16(&stage.codes[token][4*piece], &from.codes[words*half + 4*piece]);
        } else {
            tcq4_copy16(&tcq4_tail(stage, token, 4*(piece - words/4)), tcq4_tail_source(from, half, piece - words/4));
        }
    }
    constexpr int parts = sizeof(tcq4_gemm_stripe)/16;
    for (int i = threadIdx.x; i < TCQ4_GEMM_ROWS/TCQ4_ROWS*parts; i += TCQ4_GEMM_THREADS) {
        const int stripe = i/parts;
        const int part   = i%parts;
        const int last   = job.rows/TCQ4_ROWS - 1;
        const int number = first_row/TCQ4_ROWS + stripe < last ? first_row/TCQ4_ROWS + stripe : last;
        const char * from = (const char *) &job.tiles[(int64_t) number*job.chunks + chunk];
        tcq4_copy16((char *) &stage.stripes[stripe] + 16*part, from + (part < 32 ? 512*half + 16*part : 512 + 16*part));
    }
}

TCQ4_STATIC_ASSERT(sizeof(tcq4_gemm_stripe) == 512 + TCQ4_TILE_BYTES - 1024, "wrong size of half a tile");

// Rounds to 22 bits, so that the product with the magic number (3*2^22) is exact.
static __device__ __forceinline__ float tcq4_short_step(float step) {
    return tcq4_float_of_bits((tcq4_bits_of_float(step) + 2u) & ~3u);
}

static __device__ __forceinline__ void tcq4_gemm_enter(tcq4_gemm_table<true> & table, const tcq4_gemm_stripe & stripe, int row, int g, int group, float unit) {
    const int   r    = row%TCQ4_ROWS;
    const float step = tcq4_short_step(tcq4_wide(stripe.scale[r])*(1.0f/127)*(float) stripe.scale_code[8*r + group]*unit);
    table.step  [g][row] = step;
    table.shift [g][row] = tcq4_mul(-TCQ4_MAGIC, step);
    table.offset[g][row] = tcq4_wide(stripe.zero[r])*(1.0f/127)*(float) stripe.zero_code[8*r + group];
}

static __device__ __forceinline__ void tcq4_gemm_enter(tcq4_gemm_table<false> & table, const tcq4_gemm_stripe & stripe, int row, int g, int group, float) {
    table.scale_code[g][row] = stripe.scale_code[8*(row%TCQ4_ROWS) + group];
}

// Fills the table for a half; gives whether this thread's row has a zero point. A thread does two groups of a row.
template <typename act> static __device__ __forceinline__ bool tcq4_gemm_prepare(tcq4_gemm_shared<act> & shared, const tcq4_gemm_stage<act> & stage, int half) {
    const int row = threadIdx.x/2;
    const tcq4_gemm_stripe & stripe = stage.stripes[row/TCQ4_ROWS];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int g = 2*(threadIdx.x%2) + i;
        tcq4_gemm_enter(shared.table, stripe, row, g, 4*half + g, 1.0f/(1 << tcq4_gemm_of<act>::unit_bits));
    }
    return (stripe.zero[row%TCQ4_ROWS] & 0x7fffu) != 0;
}

// --- one scale for 32 ---

template <typename act> struct tcq4_gemm_sums_grouped {
    float y[4][4][4];

    // Adds the four groups of a half. Tokens and rows are those of the warp.
    __device__ __forceinline__ void add(tcq4_gemm_stage<act> & stage, const tcq4_gemm_table<true> & table, int, int token, int row, bool zeros) {
        if (zeros) {
            add_groups<true>(stage, table, token, row);
        } else {
            add_groups<false>(stage, table, token, row);
        }
    }

    template <bool zeros>
    __device__ __forceinline__ void add_groups(tcq4_gemm_stage<act> & stage, const tcq4_gemm_table<true> & table, int token, int row) {
        const int lane = threadIdx.x & 31;
        const int part = lane%4;
#pragma unroll
        for (int g = 0; g < 4; ++g) {
            tcq4_gemm_operand<tcq4_gemm_of<act>::words> tokens[4];
            float scale[4][2], sum[4][2]; // of tokens r and r + 8
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int t = token + 16*i + lane/4;
                tokens[i].load(stage.codes, t, g, part);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    scale[i][h] = tcq4_float_of_bits(tcq4_tail(stage, t + 8*h, g));
                    sum  [i][h] = zeros ? tcq4_float_of_bits(tcq4_tail(stage, t + 8*h, 4 + g)) : 0.0f;
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int      first   = row + TCQ4_ROWS*j;
                const uint32_t weights = stage.stripes[first/TCQ4_ROWS].codes[g][lane];
                const float2   step    = *(const float2 *) &table.step [g][first + 2*part];
                const float2   shift   = *(const float2 *) &table.shift[g][first + 2*part];
                const float2   offset  = zeros ? *(const float2 *) &table.offset[g][first + 2*part] : make_float2(0.0f, 0.0f);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int d[4];
                    tokens[i].mul(d, weights, TCQ4_MAGIC_BITS);
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        const float product = fmaf(__int_as_float(d[n]), n%2 ? step.y : step.x, n%2 ? shift.y : shift.x);
                        y[i][j][n] = fmaf(product, scale[i][n/2], y[i][j][n]);
                        if (zeros) {
                            y[i][j][n] = fmaf(sum[i][n/2], n%2 ? offset.y : offset.x, y[i][j][n]);
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
    float y[4][4][4];
    int   sums[4][4][4]; // over the chunk

    __device__ __forceinline__ void add(tcq4_gemm_stage<act> & stage, const tcq4_gemm_table<false> & table, int half, int token, int row, bool zeros) {
        const int lane = threadIdx.x & 31;
        const int part = lane%4;
#pragma unroll
        for (int g = 0; g < 4; ++g) {
            tcq4_gemm_operand<tcq4_gemm_of<act>::words> tokens[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                tokens[i].load(stage.codes, token + 16*i + lane/4, g, part);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int      first   = row + TCQ4_ROWS*j;
                const uint32_t weights = stage.stripes[first/TCQ4_ROWS].codes[g][lane];
                const int2     codes   = *(const int2 *) &table.scale_code[g][first + 2*part];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int d[4];
                    tokens[i].mul(d, weights, 0);
#pragma unroll
                    for (int n = 0; n < 4; ++n) {
                        sums[i][j][n] += d[n]*(n%2 ? codes.y : codes.x);
                    }
                }
            }
        }
        if (half == 1) {
            if (zeros) {
                settle<true>(stage, token, row);
            } else {
                settle<false>(stage, token, row);
            }
        }
    }

    // Scales the sums of the chunk and begins anew. Integers become floats by the magic number: they are below 2^21.
    template <bool zeros> __device__ __forceinline__ void settle(tcq4_gemm_stage<act> & stage, int token, int row) {
        const int lane = threadIdx.x & 31;
        const int part = lane%4;
        float    scale [4][2];
        uint32_t digits[4][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int t = token + 16*i + lane/4 + 8*h;
                scale [i][h] = tcq4_float_of_bits(tcq4_tail(stage, t, 0));
                digits[i][h] = zeros ? tcq4_sum_digits(tcq4_tail(stage, t, 1 + part)) : 0;
            }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const tcq4_gemm_stripe & stripe = stage.stripes[row/TCQ4_ROWS + j];
            float s[2], z[2];
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                s[n] = tcq4_wide(stripe.scale[2*part + n])*(1.0f/127);
                z[n] = zeros ? tcq4_wide(stripe.zero[2*part + n])*(1.0f/127) : 0.0f;
            }
            const uint32_t zero_codes = zeros ? tcq4_zero_codes(stripe, lane/4, part) : 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int d[4] = {};
                if (zeros) {
                    tcq4_gemm_s8_k16(d, digits[i][0], digits[i][1], zero_codes, TCQ4_MAGIC_BITS);
                }
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const int whole = (sums[i][j][n] >> tcq4_gemm_of<act>::unit_bits) + TCQ4_MAGIC_BITS;
                    float part_sum  = s[n%2]*(__int_as_float(whole) - TCQ4_MAGIC);
                    if (zeros) {
                        part_sum = fmaf(z[n%2], __int_as_float(d[n]) - TCQ4_MAGIC, part_sum);
                    }
                    y[i][j][n] = fmaf(scale[i][n/2], part_sum, y[i][j][n]);
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
    const int token = 64*(warp/4);
    const int row   = 32*(warp%4);
    const int steps = 2*job.chunks;

    typename tcq4_gemm_sums_of<tcq4_gemm_of<act>::grouped, act>::type sums = {};
    tcq4_gemm_copy(shared.stages[0], job, 0, 0, first_product, first_row);
    for (int step = 0; step < steps; ++step) {
        tcq4_gemm_stage<act> & stage = shared.stages[step%TCQ4_GEMM_STAGES];
        const int next = step + 1;
        tcq4_copies_wait();
        __syncthreads(); // this half is there, and the one before has been read
        if (TCQ4_GEMM_STAGES > 1 && next < steps) {
            tcq4_gemm_copy(shared.stages[next%TCQ4_GEMM_STAGES], job, next/2, next%2, first_product, first_row);
        }
        const bool zeros = __syncthreads_or(tcq4_gemm_prepare(shared, stage, step%2));
        sums.add(stage, shared.table, step%2, token, row, zeros);
        if (TCQ4_GEMM_STAGES == 1 && next < steps) {
            __syncthreads();
            tcq4_gemm_copy(stage, job, next/2, next%2, first_product, first_row);
        }
    }

#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int product = first_product + token + 16*i + lane/4 + 8*h;
            if (product >= job.end) {
                continue;
            }
            float * out = job.y + (job.targets ? job.targets[product] : product)*job.y_stride;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = first_row + row + TCQ4_ROWS*j + 2*(lane%4);
                if (at < job.rows) {
                    out[at]     = sums.y[i][j][2*h];
                    out[at + 1] = sums.y[i][j][2*h + 1];
                }
            }
        }
    }
}

#endif // TCQ4_GEMM_CUH
