// Many tokens times a TCQ4 matrix on tensor cores: one integer mma for each group of 32 columns, scaled in f32.
//
// A block of 4 warps makes 64 tokens x 64 rows (8 stripes), a warp 32 x 32 of them: 2 x 4 fragments of 16 tokens x 8 rows. Chunk by chunk, tiles
// and activations go to shared memory, steps and offsets are worked out once, then every group is multiplied:
//   INT8 mma.m16n8k32.s8: a word of weight codes gives two operand registers, its even and its odd elements as bytes times 16 (see tcq4_mul_vec.cuh).
//   INT4 mma.m16n8k32.s4 (sm_80 to sm_89; m8n8k32 on sm_75): a word of weight codes is the operand as it lies in the file. From sm_90 on there is
//        no such instruction, so INT4 codes are widened to INT8, with the same integer results.
// Integers become floats without a conversion: the mma starts at the bits of 1.5*2^23, where a unit in the last place is 1.
//
// Bound: the f32 additions and multiplications beside the mma, four for each of its 512 results.

#ifndef TCQ4_MUL_MAT_CUH
#define TCQ4_MUL_MAT_CUH

#include "tcq4_mul_vec.cuh"

static constexpr int TCQ4_MAT_TOKENS  = 64; // of a block
static constexpr int TCQ4_MAT_ROWS    = 64;
static constexpr int TCQ4_MAT_THREADS = 128;
static constexpr int TCQ4_MAT_STRIPES = TCQ4_MAT_ROWS/TCQ4_ROWS;

// Words of a token's codes in shared memory: 8 (4) more than there are, so that 8 tokens lie in different banks.
template <typename act> struct tcq4_mat_words;
template <> struct tcq4_mat_words<tcq4_act8> { enum { codes = 64, stride = 72 }; };
template <> struct tcq4_mat_words<tcq4_act4> { enum { codes = 32, stride = 36 }; };

template <typename act> struct alignas(16) tcq4_mat_shared {
    uint32_t tokens[TCQ4_MAT_TOKENS][tcq4_mat_words<act>::stride];
    uint32_t weights[TCQ4_MAT_STRIPES][TCQ4_GROUPS][32];
    float    scale [TCQ4_GROUPS][TCQ4_MAT_TOKENS];
    float    sum   [TCQ4_GROUPS][TCQ4_MAT_TOKENS];
    float    step  [TCQ4_GROUPS][TCQ4_MAT_ROWS];
    float    offset[TCQ4_GROUPS][TCQ4_MAT_ROWS];
};

#define TCQ4_MAGIC_BITS 0x4b400000 // 1.5*2^23
#define TCQ4_MAGIC      12582912.0f

#if !defined(TCQ4_NATIVE_INT4)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750 && __CUDA_ARCH__ < 900
#define TCQ4_NATIVE_INT4 1
#else
#define TCQ4_NATIVE_INT4 0
#endif
#endif

// d += a*b for 16 tokens x 8 rows x 32 columns of INT8. a: tokens r and r + 8, even and odd elements; b: even and odd elements.
static __device__ __forceinline__ void tcq4_mma_s8(int (&d)[4], const uint2 & low, const uint2 & high, uint32_t even, uint32_t odd) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(low.x), "r"(high.x), "r"(low.y), "r"(high.y), "r"(even), "r"(odd));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(d[0]), "+r"(d[1]) : "r"(low.x),  "r"(even));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(d[0]), "+r"(d[1]) : "r"(low.y),  "r"(odd));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(d[2]), "+r"(d[3]) : "r"(high.x), "r"(even));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(d[2]), "+r"(d[3]) : "r"(high.y), "r"(odd));
#elif defined(TCQ4_EMULATED)
    emulated_mma_s8(d, { low.x, high.x, low.y, high.y }, { even, odd });
#else
    (void) d; (void) low; (void) high; (void) even; (void) odd; // no tensor cores: never launched
#endif
}

// The same of INT4, a word for each of tokens r and r + 8.
static __device__ __forceinline__ void tcq4_mma_s4(int (&d)[4], uint32_t low, uint32_t high, uint32_t weights) {
#if defined(TCQ4_EMULATED)
    emulated_mma_s4(d, low, high, weights);
#elif TCQ4_NATIVE_INT4 && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(low), "r"(high), "r"(weights));
#elif TCQ4_NATIVE_INT4
    asm("mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(d[0]), "+r"(d[1]) : "r"(low),  "r"(weights));
    asm("mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(d[2]), "+r"(d[3]) : "r"(high), "r"(weights));
#else
    (void) d; (void) low; (void) high; (void) weights; // widened, or never launched
#endif
}

// A fragment of a group: tokens r and r + 8 of 16 (r = lane/4), this lane's part of the group.
template <typename act> struct tcq4_fragment;

template <> struct tcq4_fragment<tcq4_act8> {
    uint2 low, high;

    __device__ __forceinline__ void load(const uint32_t (*tokens)[72], int token, int group, int part) {
        low  = *(const uint2 *) &tokens[token    ][8*group + 2*part];
        high = *(const uint2 *) &tokens[token + 8][8*group + 2*part];
    }
    // 16 times the dot products
    __device__ __forceinline__ void mul(int (&d)[4], uint32_t weights) const {
        tcq4_mma_s8(d, low, high, (uint32_t) tcq4_even(weights), (uint32_t) tcq4_odd(weights));
    }
    static constexpr float unit = 1.0f/16;
};

template <> struct tcq4_fragment<tcq4_act4> {
    uint32_t low, high;

    __device__ __forceinline__ void load(const uint32_t (*tokens)[36], int token, int group, int part) {
        low  = tokens[token    ][4*group + part];
        high = tokens[token + 8][4*group + part];
    }
    // the dot products, or 256 times them where they are made of INT8
    __device__ __forceinline__ void mul(int (&d)[4], uint32_t weights) const {
#if TCQ4_NATIVE_INT4
        tcq4_mma_s4(d, low, high, weights);
#else
        const uint2 wide_low  = make_uint2((uint32_t) tcq4_even(low),  (uint32_t) tcq4_odd(low));
        const uint2 wide_high = make_uint2((uint32_t) tcq4_even(high), (uint32_t) tcq4_odd(high));
        tcq4_mma_s8(d, wide_low, wide_high, (uint32_t) tcq4_even(weights), (uint32_t) tcq4_odd(weights));
#endif
    }
    static constexpr float unit = TCQ4_NATIVE_INT4 ? 1.0f : 1.0f/256;
};

// Which tokens and rows a block multiplies.
template <typename act> struct tcq4_mat_job {
    const tcq4_tile * tiles;   // of the matrix
    const act       * acts;    // token after token
    const int32_t   * targets; // row of dst for each token; null: its own number
    float           * dst;
    int64_t           dst_stride;
    int               chunks;
    int               rows;
    int               first_token, end_token; // of all tokens of this matrix
};

template <typename act>
static __device__ __forceinline__ void tcq4_mat_load(
        tcq4_mat_shared<act> & shared, const tcq4_mat_job<act> & job, int chunk, int first_token, int first_row) {
    constexpr int words  = tcq4_mat_words<act>::codes;
    constexpr int vector = 4; // words
    for (int i = threadIdx.x; i < TCQ4_MAT_TOKENS*words/vector; i += TCQ4_MAT_THREADS) {
        const int token = i/(words/vector);
        const int at    = i%(words/vector)*vector;
        uint4 codes = make_uint4(0, 0, 0, 0);
        if (first_token + token < job.end_token) {
            codes = *(const uint4 *) &job.acts[(int64_t) (first_token + token)*job.chunks + chunk].codes[at];
        }
        *(uint4 *) &shared.tokens[token][at] = codes;
    }
    for (int i = threadIdx.x; i < TCQ4_MAT_TOKENS*TCQ4_GROUPS; i += TCQ4_MAT_THREADS) {
        const int  token = i/TCQ4_GROUPS;
        const int  group = i%TCQ4_GROUPS;
        const bool here  = first_token + token < job.end_token;
        const act * a    = &job.acts[(int64_t) (first_token + token)*job.chunks + chunk];
        shared.scale[group][token] = here ? a->scale[group] : 0.0f;
        shared.sum  [group][token] = here ? a->sum  [group] : 0.0f;
    }
    for (int i = threadIdx.x; i < TCQ4_MAT_STRIPES*1024/16; i += TCQ4_MAT_THREADS) {
        const int stripe = i/64;
        const int row    = first_row + TCQ4_ROWS*stripe;
        uint4 codes = make_uint4(0, 0, 0, 0);
        if (row < job.rows) {
            codes = ((const uint4 *) job.tiles[(int64_t) (row/TCQ4_ROWS)*job.chunks + chunk].codes)[i%64];
        }
        ((uint4 *) shared.weights[stripe])[i%64] = codes;
    }
    for (int i = threadIdx.x; i < TCQ4_MAT_ROWS*TCQ4_GROUPS; i += TCQ4_MAT_THREADS) {
        const int row   = i/TCQ4_GROUPS;
        const int group = i%TCQ4_GROUPS;
        float step   = 0.0f;
        float offset = 0.0f;
        if (first_row + row < job.rows) {
            const tcq4_tile * tile = &job.tiles[(int64_t) ((first_row + row)/TCQ4_ROWS)*job.chunks + chunk];
            const int r = row%TCQ4_ROWS;
            step   = tcq4_float_of_half(tile->scale[r])*(1.0f/127)*(float) tile->scale_code[8*r + group]*tcq4_fragment<act>::unit;
            offset = tcq4_float_of_half(tile->zero [r])*(1.0f/127)*(float) tile->zero_code [8*r + group];
        }
        shared.step  [group][row] = step;
        shared.offset[group][row] = offset;
    }
}

// Multiplies the tokens from first_token on with the rows from first_row on, 64 of each or what there is. To be called by all threads of a block.
template <typename act>
static __device__ __forceinline__ void tcq4_mul_mat_block(tcq4_mat_shared<act> & shared, const tcq4_mat_job<act> & job, int first_token, int first_row) {
    const int lane        = threadIdx.x & 31;
    const int warp        = threadIdx.x >> 5;
    const int part        = lane%4;
    const int warp_token  = warp/2*32;
    const int warp_stripe = warp%2*4;

    float y[2][4][4] = {};
    for (int chunk = 0; chunk < job.chunks; ++chunk) {
        __syncthreads(); // the last chunk has been read
        tcq4_mat_load(shared, job, chunk, first_token, first_row);
        __syncthreads();
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            tcq4_fragment<act> tokens[2];
            float scale[2][2], sum[2][2]; // of tokens r and r + 8
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int token = warp_token + 16*i + lane/4;
                tokens[i].load(shared.tokens, token, g, part);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    scale[i][half] = shared.scale[g][token + 8*half];
                    sum  [i][half] = shared.sum  [g][token + 8*half];
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int    stripe = warp_stripe + j;
                const float2 step   = *(const float2 *) &shared.step  [g][TCQ4_ROWS*stripe + 2*part];
                const float2 offset = *(const float2 *) &shared.offset[g][TCQ4_ROWS*stripe + 2*part];
                const uint32_t weights = shared.weights[stripe][g][lane];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    int d[4] = { TCQ4_MAGIC_BITS, TCQ4_MAGIC_BITS, TCQ4_MAGIC_BITS, TCQ4_MAGIC_BITS };
                    tokens[i].mul(d, weights);
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        const float dot = __int_as_float(d[k]) - TCQ4_MAGIC;
                        y[i][j][k] += scale[i][k/2]*(k%2 ? step.y : step.x)*dot + sum[i][k/2]*(k%2 ? offset.y : offset.x);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int token = first_token + warp_token + 16*i + lane/4 + 8*half;
            if (token >= job.end_token) {
                continue;
            }
            float * dst = job.dst + (job.targets ? job.targets[token] : token)*job.dst_stride;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = first_row + TCQ4_ROWS*(warp_stripe + j) + 2*part;
                if (row < job.rows) {
                    dst[row]     = y[i][j][2*half];
                    dst[row + 1] = y[i][j][2*half + 1];
                }
            }
        }
    }
}

#endif // TCQ4_MUL_MAT_CUH
