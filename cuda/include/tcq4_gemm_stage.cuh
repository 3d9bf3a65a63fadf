// What a block of a product keeps in shared memory: halves of chunks of its tokens and rows, how they get there, and what is worked out once for each.
//
// A half is 128 columns, 4 groups; where copies are asynchronous, one is multiplied while the next arrives.

#ifndef TCQ4_GEMM_STAGE_CUH
#define TCQ4_GEMM_STAGE_CUH

#include "tcq4_mul_mat.cuh"

#define TCQ4_GEMM_TOKENS  128 // of a block
#define TCQ4_GEMM_ROWS    128
#define TCQ4_GEMM_THREADS 256

// Halves in shared memory.
#if !defined(TCQ4_GEMM_STAGES)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define TCQ4_GEMM_STAGES 1
#else
#define TCQ4_GEMM_STAGES 2
#endif
#endif

// Groups of a half whose instructions registers suffice to mix with INT8 operands, where sums stay integers.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
#define TCQ4_GEMM_TOGETHER 4
#elif __CUDA_ARCH__ < 1200
#define TCQ4_GEMM_TOGETHER 2
#else
#define TCQ4_GEMM_TOGETHER 1
#endif

// words: of the codes of half a chunk. stride: of tokens in shared memory, so that the 8 (4) tokens of a load lie in different banks.
// unit_bits: integer sums are 2^unit_bits times too large. together: as above, also with INT4.
template <typename act> struct tcq4_gemm_of;
template <> struct tcq4_gemm_of<tcq4_act8>   { enum { words = 32, stride = 40, grouped = 1, unit_bits = 4 }; };
template <> struct tcq4_gemm_of<tcq4_act4>   { enum { words = 16, stride = 20, grouped = 1, unit_bits = TCQ4_NATIVE_INT4 ? 0 : 8 }; };
template <> struct tcq4_gemm_of<tcq4_block8> { enum { words = 32, stride = 40, grouped = 0, unit_bits = 4, together = TCQ4_GEMM_TOGETHER }; };
template <> struct tcq4_gemm_of<tcq4_block4> { enum { words = 16, stride = 20, grouped = 0, unit_bits = TCQ4_NATIVE_INT4 ? 0 : 8, together = TCQ4_NATIVE_INT4 ? 4 : TCQ4_GEMM_TOGETHER }; };

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

// What is worked out once for the four groups of a half; nothing where sums stay integers.
template <bool grouped> struct tcq4_gemm_table;
template <> struct tcq4_gemm_table<true> {
    float2 step  [4][TCQ4_GEMM_ROWS]; // and -magic*step
    float  offset[4][TCQ4_GEMM_ROWS];
    float  scale [4][TCQ4_GEMM_TOKENS];
    float  sum   [4][TCQ4_GEMM_TOKENS];
};
template <> struct tcq4_gemm_table<false> {};

template <typename act> struct alignas(16) tcq4_gemm_shared : tcq4_gemm_table<tcq4_gemm_of<act>::grouped> {
    tcq4_gemm_stage<act> stages[TCQ4_GEMM_STAGES];
};

// What launches have to give: for one half, and for two.
#define TCQ4_GEMM_SHARED_IS(act, one, two) \
    TCQ4_STATIC_ASSERT(sizeof(tcq4_gemm_shared<act>) == (TCQ4_GEMM_STAGES == 1 ? one : two), "wrong size of shared memory for " #act)
TCQ4_GEMM_SHARED_IS(tcq4_act8,   45568, 80896);
TCQ4_GEMM_SHARED_IS(tcq4_act4,   35328, 60416);
TCQ4_GEMM_SHARED_IS(tcq4_block4, 25088, 50176);
TCQ4_GEMM_SHARED_IS(tcq4_block8, 35328, 70656);

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

// Fills the table for a half, by all threads of a block; gives whether a row has a zero point. A thread does two groups of a row, and half of a token's tail.
template <typename act>
static __device__ __forceinline__ bool tcq4_gemm_prepare(tcq4_gemm_table<true> & table, const tcq4_gemm_stage<act> & stage, int half) {
    const int   row  = threadIdx.x/2;
    const int   side = threadIdx.x%2;
    const int   r    = row%TCQ4_ROWS;
    const float unit = 1.0f/(1 << tcq4_gemm_of<act>::unit_bits);
    const tcq4_gemm_stripe & stripe = stage.stripes[row/TCQ4_ROWS];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int   g    = 2*side + i;
        const float step = tcq4_short_step(tcq4_wide(stripe.scale[r])*(1.0f/127)*(float) stripe.scale_code[8*r + 4*half + g]*unit);
        table.step  [g][row] = make_float2(step, tcq4_mul(-TCQ4_MAGIC, step));
        table.offset[g][row] = tcq4_wide(stripe.zero[r])*(1.0f/127)*(float) stripe.zero_code[8*r + 4*half + g];
    }
#pragma unroll
    for (int g = 0; g < 4; ++g) {
        (side ? table.sum : table.scale)[g][row] = tcq4_float_of_bits(stage.tails[row][4*side + g]);
    }
    return __syncthreads_or((stripe.zero[r] & 0x7fffu) != 0);
}

template <typename act>
static __device__ __forceinline__ bool tcq4_gemm_prepare(tcq4_gemm_table<false> &, const tcq4_gemm_stage<act> &, int) { return false; }

#endif // TCQ4_GEMM_STAGE_CUH
