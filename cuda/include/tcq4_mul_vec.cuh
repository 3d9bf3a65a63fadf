// Few tokens (1 to 8) times a TCQ4 matrix: dp4a on codes that stay in their nibbles.
//
// y[m][row] = sum over groups of scale[m] * ((S*sc/127) * dot(q, q_m) + (Z*zc/127) * sum(q_m)).
// A block owns a stripe of 8 rows, its warps take the stripe's tiles in turn. Lane 4*row + part reads the word of a group that holds the row's
// elements 8*part .. 8*part + 7: 32 lanes, 128 consecutive bytes. `word << 4` and `word`, each masked with 0xf0f0f0f0, are the even and the odd
// elements as signed bytes times 16, so no sign has to be extended; the 16 (256 with INT4 activations) is taken out of the step.
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

// 16 times the dot product of one word of weight codes with INT8 codes, or 256 times that with INT4 codes; `part` as above.
static __device__ __forceinline__ int tcq4_dot(uint32_t word, const tcq4_act8 & act, int group, int part) {
    const uint2 codes = ((const uint2 *) act.codes)[4*group + part];
    return tcq4_dp4a(tcq4_even(word), (int) codes.x, tcq4_dp4a(tcq4_odd(word), (int) codes.y, 0));
}

static __device__ __forceinline__ int tcq4_dot(uint32_t word, const tcq4_act4 & act, int group, int part) {
    const uint32_t codes = act.codes[4*group + part];
    return tcq4_dp4a(tcq4_even(word), tcq4_even(codes), tcq4_dp4a(tcq4_odd(word), tcq4_odd(codes), 0));
}

static __device__ __forceinline__ float tcq4_dot_unit(const tcq4_act8 &) { return 1.0f/16; }
static __device__ __forceinline__ float tcq4_dot_unit(const tcq4_act4 &) { return 1.0f/256; }

// What lane 4*row + part needs of a tile.
struct tcq4_vec_tile {
    uint32_t words[TCQ4_GROUPS];
    uint2    sc, zc; // codes of the row
    uint16_t scale, zero;
};

static __device__ __forceinline__ void tcq4_vec_load(tcq4_vec_tile & own, const tcq4_tile * __restrict__ tile, int lane) {
    const int row = lane/4;
    own.sc    = ((const uint2 *) tile->scale_code)[row];
    own.zc    = ((const uint2 *) tile->zero_code)[row];
    own.scale = tile->scale[row];
    own.zero  = tile->zero[row];
#pragma unroll
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        own.words[g] = ((const uint32_t *) tile->codes)[32*g + lane];
    }
}

// Adds a lane's part of the products of a tile with the chunk `acts[0]` of the first token; those of the next lie `stride` chunks on, and tokens from `end`
// on are not there.
template <int tokens, typename act>
static __device__ __forceinline__ void tcq4_vec_add(const tcq4_vec_tile & own, const act * acts, int64_t stride, int end, int part, float (&y)[tokens]) {
    const float s = tcq4_float_of_half(own.scale)*(1.0f/127)*tcq4_dot_unit(*acts);
    const float z = part == 0 ? tcq4_float_of_half(own.zero)*(1.0f/127) : 0.0f;
#pragma unroll
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        const float step   = s*(float) (int8_t) ((g < 4 ? own.sc.x : own.sc.y) >> 8*(g%4));
        const float offset = z*(float) (int8_t) ((g < 4 ? own.zc.x : own.zc.y) >> 8*(g%4));
#pragma unroll
        for (int m = 0; m < tokens; ++m) {
            const act & a = acts[(m < end ? m : end - 1)*stride];
            y[m] += step*a.scale[g]*(float) tcq4_dot(own.words[g], a, g, part) + offset*a.sum[g];
        }
    }
}

// Adds up over the lanes of a row and leaves the sums of the warp's 8 rows in partial[token][row].
template <int tokens> static __device__ __forceinline__ void tcq4_vec_reduce(float (&y)[tokens], int lane, float (*partial)[TCQ4_ROWS]) {
#pragma unroll
    for (int m = 0; m < tokens; ++m) {
        y[m] += __shfl_xor_sync(TCQ4_ALL_LANES, y[m], 1);
        y[m] += __shfl_xor_sync(TCQ4_ALL_LANES, y[m], 2);
        if (lane%4 == 0) {
            partial[m][lane/4] = y[m];
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
    for (int t = warp; t < chunks; t += TCQ4_VEC_WARPS) {
        tcq4_vec_tile own;
        tcq4_vec_load(own, stripe + t, lane);
        tcq4_vec_add<tokens>(own, acts + t, chunks, end, lane%4, y);
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
            tcq4_vec_add<tokens>(own, acts + t, chunks, tokens, lane%4, sums);
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
