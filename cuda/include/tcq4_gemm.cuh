// Many tokens times a TCQ4 matrix on tensor cores: 128 tokens x 128 rows a block, copies that run ahead, and as little as possible beside the mma.
//
// A block of 8 warps goes through K in halves of a chunk (128 columns, 4 groups); a warp makes 64 tokens x 32 rows, 2 x 8 fragments of 16 rows x 8 tokens.
// Operands: tcq4_gemm_mma.cuh. Shared memory: tcq4_gemm_stage.cuh.
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

#include "tcq4_gemm_mma.cuh"
#include "tcq4_gemm_stage.cuh"

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
