// Few tokens (1 to 8) times a TCQ4 matrix: dp4a on codes that stay in their nibbles.
//
// y[m][row] = sum over groups of scale[m] * ((S*sc/127) * dot(q, q_m) + (Z*zc/127) * sum(q_m)).
// A block owns a stripe of 8 rows, its warps take the stripe's tiles in turn. Lane 8*q + row has groups q and q + 4 of a row, 16 bytes of codes each: two
// loads of 512 consecutive bytes for a tile, and the scales of a group are worked out in one lane. `word << 4` and `word`, each masked with 0xf0f0f0f0,
// are the even and the odd elements as signed bytes times 16, so no sign has to be extended; the 16 (256 with INT4 activations) is taken out of the step.
// Sums are added in a fixed order, so results depend on nothing but the number of warps.
//
// Bound: memory, 1184 bytes of weights for 2048 weights; activations come from the cache.

#ifndef TCQ4_MUL_VEC_CUH
#define TCQ4_MUL_VEC_CUH

#include "tcq4_act.cuh"

#define TCQ4_VEC_TOKENS 8 // the most that one pass over the weights serves
#define TCQ4_VEC_WARPS  4

static __device__ __forceinline__ int tcq4_even(uint32_t word) { return (int) (word << 4 & 0xf0f0f0f0u); }
static __device__ __forceinline__ int tcq4_odd (uint32_t word) { return (int) (word      & 0xf0f0f0f0u); }

// a.b + c of four signed bytes each.
static __device__ __forceinline__ int tcq4_dp4a(int a, int b, int c) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 610
    return __dp4a(a, b, c);
#else
    (void) a; (void) b; // no such instruction: never launched
    return c;
#endif
}

// The words of eight elements each.
static __device__ __forceinline__ uint32_t tcq4_word(const uint4 & words, int i) { return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w; }

// 16 times the dot product of a group of weight codes with INT8 codes, or 256 times that with INT4 codes.
static __device__ __forceinline__ int tcq4_dot(const uint4 & words, const tcq4_act8 & act, int group) {
    const uint4 codes[2] = { ((const uint4 *) act.codes)[2*group], ((const uint4 *) act.codes)[2*group + 1] };
    int dot = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) { // the even elements, then the odd ones
        dot = tcq4_dp4a(tcq4_even(tcq4_word(words, i)), (int) tcq4_word(codes[i/2], i%2*2),     dot);
        dot = tcq4_dp4a(tcq4_odd (tcq4_word(words, i)), (int) tcq4_word(codes[i/2], i%2*2 + 1), dot);
    }
    return dot;
}

static __device__ __forceinline__ int tcq4_dot(const uint4 & words, const tcq4_act4 & act, int group) {
    const uint4 codes = ((const uint4 *) act.codes)[group];
    int dot = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        dot = tcq4_dp4a(tcq4_even(tcq4_word(words, i)), tcq4_even(tcq4_word(codes, i)), dot);
        dot = tcq4_dp4a(tcq4_odd (tcq4_word(words, i)), tcq4_odd (tcq4_word(codes, i)), dot);
    }
    return dot;
}

static __device__ __forceinline__ float tcq4_dot_unit(const tcq4_act8 &) { return 1.0f/16; }
static __device__ __forceinline__ float tcq4_dot_unit(const tcq4_act4 &) { return 1.0f/256; }

// What lane 8*q + row needs of a tile: groups q and q + 4 of the row.
struct tcq4_vec_tile {
    uint4    words[2];
    int8_t   sc[2], zc[2];
    uint16_t scale, zero;
};

static __device__ __forceinline__ void tcq4_vec_load(tcq4_vec_tile & own, const tcq4_tile * __restrict__ tile, int lane) {
    const int row = lane%8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        own.words[h] = ((const uint4 *) tile->codes)[32*h + lane];
        own.sc   [h] = tile->scale_code[8*row + 4*h + lane/8];
        own.zc   [h] = tile->zero_code [8*row + 4*h + lane/8];
    }
    own.scale = tile->scale[row];
    own.zero  = tile->zero[row];
}

// Adds a lane's part of the products of a tile with the chunk `acts[0]` of the first token; those of the next lie `stride` chunks on, and tokens from `end`
// on are not there.
template <int tokens, typename act>
static __device__ __forceinline__ void tcq4_vec_add(const tcq4_vec_tile & own, const act * acts, int64_t stride, int end, int lane, float (&y)[tokens]) {
    const float s = tcq4_wide(own.scale)*(1.0f/127)*tcq4_dot_unit(*acts);
    const float z = tcq4_wide(own.zero)*(1.0f/127);
#pragma unroll (tokens > 4 ? 1 : 2) // registers do not suffice for the codes of 8 tokens and both groups
    for (int h = 0; h < 2; ++h) {
        const int   group  = 4*h + lane/8;
        const uint4 words  = h == 0 ? own.words[0] : own.words[1];
        const float step   = s*(float) (h == 0 ? own.sc[0] : own.sc[1]);
        const float offset = z*(float) (h == 0 ? own.zc[0] : own.zc[1]);
        const act * a      = acts;
#pragma unroll
        for (int m = 0; m < tokens; ++m) {
            y[m] = fmaf(step*a->scale[group], (float) tcq4_dot(words, *a, group), fmaf(offset, a->sum[group], y[m]));
            a += m + 1 < end ? stride : 0;
        }
    }
}

// Adds up over the lanes of a row and leaves the sums of the warp's 8 rows in partial[token][row].
template <int tokens> static __device__ __forceinline__ void tcq4_vec_reduce(float (&y)[tokens], int lane, float (*partial)[TCQ4_ROWS]) {
#pragma unroll
    for (int m = 0; m < tokens; ++m) {
        y[m] += __shfl_xor_sync(TCQ4_ALL_LANES, y[m], 8);
        y[m] += __shfl_xor_sync(TCQ4_ALL_LANES, y[m], 16);
        if (lane < TCQ4_ROWS) {
            partial[m][lane] = y[m];
        }
    }
}

// Adds up over the warps and writes; `thread` is that of (token, row).
template <int tokens, int warps>
static __device__ __forceinline__ void tcq4_vec_write(const float (*partial)[tokens][TCQ4_ROWS], int thread, int end, float * __restrict__ dst, int64_t dst_stride) {
    const int m = thread/TCQ4_ROWS;
    const int r = thread%TCQ4_ROWS;
    if (m < end) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < warps; ++w) {
            total += partial[w][m][r];
        }
        dst[m*dst_stride + r] = total;
    }
}

// Multiplies `tokens` tokens (or the first `end` of them), whose chunks begin at acts + token*chunks, with the stripe of tiles that begins at `stripe`;
// row r of token m goes to dst[m*dst_stride + r]. To be called by all TCQ4_VEC_WARPS warps of a block.
template <int tokens, typename act>
static __device__ __forceinline__ void tcq4_mul_vec_stripe(
        const tcq4_tile * __restrict__ stripe, const act * __restrict__ acts, int chunks, float * __restrict__ dst, int64_t dst_stride, int end = tokens) {
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;

    float y[tokens] = {};
#pragma unroll (tokens == 1 ? 2 : 1)
    for (int t = warp; t < chunks; t += TCQ4_VEC_WARPS) {
        tcq4_vec_tile own;
        tcq4_vec_load(own, stripe + t, lane);
        tcq4_vec_add<tokens>(own, acts + t, chunks, end, lane, y);
    }

    __shared__ float partial[TCQ4_VEC_WARPS][tokens][TCQ4_ROWS];
    tcq4_vec_reduce(y, lane, partial[warp]);
    __syncthreads();
    tcq4_vec_write<tokens, TCQ4_VEC_WARPS>(partial, threadIdx.x, end, dst, dst_stride);
}

// --- activations and product in one launch ---

#define TCQ4_FUSED_WARPS 16
#define TCQ4_FUSED_AHEAD 65536 // bytes of weights that a block asks for before it rounds

// Each block rounds all tokens to its shared memory (tokens*chunks chunks; `end` of the tokens are there), while its weights are under way, then
// multiplies its share of the stripes. A warp takes every 16th tile of a stripe and loads the next one while it multiplies.
template <int tokens, int rule>
static __device__ __forceinline__ void tcq4_mul_vec_fused(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int end, int64_t y_stride) {
    typedef typename tcq4_act_of<rule>::chunk act;
    TCQ4_DYNAMIC_SHARED(memory);
    __shared__ float partial[2][TCQ4_FUSED_WARPS][tokens][TCQ4_ROWS];
    act * acts = (act *) memory;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int64_t stripes = rows/TCQ4_ROWS;
    const int64_t first   = stripes*blockIdx.x/gridDim.x;
    const int64_t last    = stripes*(blockIdx.x + 1)/gridDim.x;

    const char * weights = (const char *) (tiles + first*chunks);
    const int64_t bytes  = (last - first)*chunks*TCQ4_TILE_BYTES;
    for (int64_t at = 128*threadIdx.x; at < bytes && at < TCQ4_FUSED_AHEAD; at += 128*32*TCQ4_FUSED_WARPS) {
        tcq4_prefetch(weights + at);
    }
    tcq4_vec_tile own, next;
    if (warp < chunks && first < last) {
        tcq4_vec_load(own, &tiles[first*chunks + warp], lane);
    }

    for (int i = warp; i < tokens*chunks; i += TCQ4_FUSED_WARPS) {
        const int m = i/chunks < end ? i/chunks : end - 1;
        float v[8];
        tcq4_gather8(x + (int64_t) m*chunks*TCQ4_CHUNK, perm, i%chunks*TCQ4_CHUNK + 8*lane, v);
        tcq4_round_values<rule>(v, lane, &acts[i]);
    }
    __syncthreads();

    for (int64_t stripe = first; stripe < last; ++stripe) {
        float sums[tokens] = {};
        for (int t = warp; t < chunks; t += TCQ4_FUSED_WARPS) {
            const bool    same = t + TCQ4_FUSED_WARPS < chunks;
            const int64_t from = same ? stripe*chunks + t + TCQ4_FUSED_WARPS : (stripe + 1)*chunks + warp;
            if (same || stripe + 1 < last) {
                tcq4_vec_load(next, &tiles[from], lane);
                const int64_t ahead = (from - first*chunks)*TCQ4_TILE_BYTES + TCQ4_FUSED_AHEAD;
                if (lane < 10 && ahead + 128*lane < bytes) { // 10 lines cover a tile
                    tcq4_prefetch(weights + ahead + 128*lane);
                }
            }
            tcq4_vec_add<tokens>(own, acts + t, chunks, tokens, lane, sums);
            own = next;
        }
        float (*mine)[tokens][TCQ4_ROWS] = partial[(stripe - first)%2];
        tcq4_vec_reduce(sums, lane, mine[warp]);
        __syncthreads(); // one for each stripe is enough: the other half of `partial` is written meanwhile
        if (threadIdx.x < tokens*TCQ4_ROWS) {
            tcq4_vec_write<tokens, TCQ4_FUSED_WARPS>(mine, threadIdx.x, end, y + TCQ4_ROWS*stripe, y_stride);
        }
    }
}

#endif // TCQ4_MUL_VEC_CUH
