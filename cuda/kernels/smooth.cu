// Runtime Smooth as its paper has it, for comparison: channels are divided by their maximum over the tokens of the call before INT4 rounding.
//
// Maths: s_j = max(1e-5, max over tokens |x_tj|); channels sorted by falling s and cut into runs of 128, each with the largest of its s as scale S_j;
// x'_tj = x_tj/S_j; a_t = max_j |x'_tj|/7 (1 for a row of zeros); q = round(x'/a_t), ties to even, within -8 .. 7; q stands for S_j*a_t*q.
// As in the reference code no data moves: the order only says which channels share a scale. For the rotated variant run kernels/fwht.cu on x first.
// A multiplication in integers would need the weights in the order of this call, which a tile with scales of 32 columns cannot follow; so the
// values that the codes stand for are given for an f32 or f16 product.
// Mapping and launch: channel_max: (k/256, slices) blocks, a thread a channel. rank, scales: k/256 blocks, a thread a channel; the rank is counted
// (k comparisons a channel, 0.2e9 for k = 14336), which is deterministic and needs no room. round: a block of 256 threads a token.
// Bound: memory, but rank: integer comparisons. Tolerance: maxima, order and scales exact; codes and token scales the bits of the scalar formulas.
// Predicted on an H200, not measured: not counted: for comparison only.

#include "tcq4_act.cuh"

#define TCQ4_SMOOTH_RUN   128
#define TCQ4_SMOOTH_FLOOR 1e-5f

TCQ4_KERNEL __launch_bounds__(256) tcq4_channel_max(const float * __restrict__ x, int64_t tokens, int k, uint32_t * __restrict__ max_bits) {
    const int64_t column = 256*(int64_t) blockIdx.x + threadIdx.x;
    const int64_t last   = tokens*(blockIdx.y + 1)/gridDim.y;
    uint32_t largest = 0;
    for (int64_t token = tokens*blockIdx.y/gridDim.y; token < last; ++token) {
        const uint32_t bits = tcq4_bits_of_float(x[token*k + column]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    atomicMax(&max_bits[column], largest); // the order of blocks does not matter to a maximum
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_smooth_rank(const uint32_t * __restrict__ max_bits, int k, int32_t * __restrict__ order) {
    __shared__ uint32_t others[256];
    const int      channel = 256*blockIdx.x + threadIdx.x;
    const uint32_t own     = max_bits[channel];
    int rank = 0;
    for (int first = 0; first < k; first += 256) {
        __syncthreads();
        others[threadIdx.x] = max_bits[first + threadIdx.x];
        __syncthreads();
#pragma unroll 8
        for (int i = 0; i < 256; ++i) {
            rank += others[i] > own || (others[i] == own && first + i < channel);
        }
    }
    order[rank] = channel;
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_smooth_scales(
        const uint32_t * __restrict__ max_bits, const int32_t * __restrict__ order, int k, float * __restrict__ scales) {
    const int rank = 256*blockIdx.x + threadIdx.x;
    if (rank >= k) {
        return;
    }
    const float largest = tcq4_float_of_bits(max_bits[order[rank/TCQ4_SMOOTH_RUN*TCQ4_SMOOTH_RUN]]);
    scales[order[rank]] = largest > TCQ4_SMOOTH_FLOOR ? largest : TCQ4_SMOOTH_FLOOR;
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_smooth_round(
        const float * __restrict__ x, const float * __restrict__ scales, int k, int8_t * __restrict__ codes, float * __restrict__ token_scales,
        float * __restrict__ y) {
    __shared__ uint32_t warp_largest[8];
    const int64_t token = blockIdx.x;
    const float * row   = x + token*k;
    uint32_t largest = 0;
    for (int i = threadIdx.x; i < k; i += 256) {
        const uint32_t bits = tcq4_bits_of_float(tcq4_div_exact(row[i], scales[i])) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
        const uint32_t other = __shfl_xor_sync(TCQ4_ALL_LANES, largest, h);
        largest = other > largest ? other : largest;
    }
    if (threadIdx.x%32 == 0) {
        warp_largest[threadIdx.x/32] = largest;
    }
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 8; ++w) {
        largest = warp_largest[w] > largest ? warp_largest[w] : largest;
    }
    const float scale = largest == 0 ? 1.0f : tcq4_div_exact(tcq4_float_of_bits(largest), 7.0f);
    if (threadIdx.x == 0) {
        token_scales[token] = scale;
    }
    for (int i = threadIdx.x; i < k; i += 256) {
        const float value = tcq4_div_exact(tcq4_div_exact(row[i], scales[i]), scale);
        const int   code  = __float2int_rn(tcq4_clamp(value, -8.0f, 7.0f));
        codes[token*k + i] = (int8_t) code;
        if (y) {
            y[token*k + i] = tcq4_mul_exact(tcq4_mul_exact(scales[i], scale), (float) code);
        }
    }
}
