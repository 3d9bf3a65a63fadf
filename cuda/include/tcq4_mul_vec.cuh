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

// Multiplies `tokens` tokens, whose chunks begin at acts + token*chunks, with the stripe of tiles that begins at `stripe`; row r of token m goes
// to dst[m*dst_stride + r]. To be called by all TCQ4_VEC_WARPS warps of a block.
template <int tokens, typename act>
static __device__ __forceinline__ void tcq4_mul_vec_stripe(
        const tcq4_tile * __restrict__ stripe, const act * __restrict__ acts, int chunks, float * __restrict__ dst, int64_t dst_stride) {
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int row  = lane/4;
    const int part = lane%4;

    float y[tokens] = {};
    for (int t = warp; t < chunks; t += TCQ4_VEC_WARPS) {
        const tcq4_tile * tile = stripe + t;
        const uint2 sc = ((const uint2 *) tile->scale_code)[row];
        const uint2 zc = ((const uint2 *) tile->zero_code)[row];
        const float s  = tcq4_float_of_half(tile->scale[row])*(1.0f/127)*tcq4_dot_unit(*acts);
        const float z  = part == 0 ? tcq4_float_of_half(tile->zero[row])*(1.0f/127) : 0.0f;
        uint32_t words[TCQ4_GROUPS];
#pragma unroll
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            words[g] = ((const uint32_t *) tile->codes)[32*g + lane];
        }
#pragma unroll
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            const float step   = s*(float) (int8_t) ((g < 4 ? sc.x : sc.y) >> 8*(g%4));
            const float offset = z*(float) (int8_t) ((g < 4 ? zc.x : zc.y) >> 8*(g%4));
#pragma unroll
            for (int m = 0; m < tokens; ++m) {
                const act & a = acts[(int64_t) m*chunks + t];
                y[m] += step*a.scale[g]*(float) tcq4_dot(words[g], a, g, part) + offset*a.sum[g];
            }
        }
    }

    __shared__ float partial[TCQ4_VEC_WARPS][tokens][TCQ4_ROWS];
#pragma unroll
    for (int m = 0; m < tokens; ++m) {
        y[m] += __shfl_xor_sync(TCQ4_ALL_LANES, y[m], 1);
        y[m] += __shfl_xor_sync(TCQ4_ALL_LANES, y[m], 2);
        if (part == 0) {
            partial[warp][m][row] = y[m];
        }
    }
    __syncthreads();
    if (threadIdx.x < tokens*TCQ4_ROWS) {
        const int m = threadIdx.x/TCQ4_ROWS;
        const int r = threadIdx.x%TCQ4_ROWS;
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < TCQ4_VEC_WARPS; ++w) {
            total += partial[w][m][r];
        }
        dst[m*dst_stride + r] = total;
    }
}

#endif // TCQ4_MUL_VEC_CUH
