// What calibration wants to know of every channel: minimum, maximum, and the sums of x, |x| and x^2, over each 32 tokens.
//
// Maths: token after token: min = x < min ? x : min, from infinity on, and so for max; the sums in f32, every operation rounded: the bits that the CPU
// makes of a block. What comes of the blocks, f64 or integers, is up to the host, so the order of machines and blocks stays as free as it is there.
// Mapping: a thread a channel, a block 256 channels of 32 tokens. Launch: (ceil(k/256), ceil(tokens/32)) blocks of 256 threads; any k.
// Bound: memory, 4 bytes a value read and 0.625 written. Tolerance: none.
// Predicted on an H200, not measured: the bandwidth of reading, less a seventh for what is written.

#include "tcq4_device.cuh"

#define TCQ4_STATISTICS_TOKENS 32 // of a block
#define TCQ4_STATISTICS_AHEAD   8 // that are read together

TCQ4_KERNEL __launch_bounds__(256) tcq4_statistics(const float * __restrict__ x, int64_t tokens, int k, float * __restrict__ sums) {
    const int64_t channel = 256*(int64_t) blockIdx.x + threadIdx.x;
    if (channel >= k) {
        return;
    }
    const int64_t first = TCQ4_STATISTICS_TOKENS*(int64_t) blockIdx.y;
    const float   inf   = tcq4_float_of_bits(0x7f800000u);
    float min = inf, max = -inf, sum = 0.0f, sum_abs = 0.0f, sum_sq = 0.0f;
    for (int64_t token = first; token < first + TCQ4_STATISTICS_TOKENS; token += TCQ4_STATISTICS_AHEAD) {
        float v[TCQ4_STATISTICS_AHEAD];
#pragma unroll
        for (int i = 0; i < TCQ4_STATISTICS_AHEAD; ++i) {
            v[i] = token + i < tokens ? x[(token + i)*k + channel] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < TCQ4_STATISTICS_AHEAD; ++i) {
            if (token + i < tokens) {
                min     = v[i] < min ? v[i] : min;
                max     = v[i] > max ? v[i] : max;
                sum     = tcq4_add_exact(sum,     v[i]);
                sum_abs = tcq4_add_exact(sum_abs, tcq4_abs(v[i]));
                sum_sq  = tcq4_add_exact(sum_sq,  tcq4_mul_exact(v[i], v[i]));
            }
        }
    }
    float * out = sums + 5*(int64_t) blockIdx.y*k + channel;
    const float all[5] = { min, max, sum, sum_abs, sum_sq };
#pragma unroll
    for (int i = 0; i < 5; ++i) {
        out[i*(int64_t) k] = all[i];
    }
}
