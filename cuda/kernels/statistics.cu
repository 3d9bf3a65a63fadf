// Statistics of every channel over tokens: max |x|, min, max, sum and sum of squares.
//
// Mapping: a block 256 channels of a slice of the tokens; thread = (token t mod 4, four channels), a float4 a token. Sums of 16 tokens in f32, then in f64;
// the four partial sums are added in a fixed order, and so are the slices (tcq4_statistics_merge), so results depend on the number of slices only.
// Launch: (k/256, slices) blocks of 256 threads; slices so that the device is full (2 blocks a multiprocessor) but at least 64 tokens each.
// Bound: memory, 4 bytes a value. Tolerance: extremes exact; sums 1e-6 relative to the sum of magnitudes (16 additions in f32).
// Predicted on an H200, not measured: the bandwidth of reading.

#include "tcq4_device.cuh"

struct tcq4_moments {
    double sum[4], sum_sq[4];
    float  range[3][4]; // max |x|, min, max
};

static __device__ __forceinline__ void tcq4_moments_add(tcq4_moments & m, const float4 & x, float (&sum)[4], float (&sum_sq)[4]) {
    const float v[4] = { x.x, x.y, x.z, x.w };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum   [i] += v[i];
        sum_sq[i] += v[i]*v[i];
        m.range[0][i] = fmaxf(m.range[0][i], tcq4_abs(v[i]));
        m.range[1][i] = fminf(m.range[1][i], v[i]);
        m.range[2][i] = fmaxf(m.range[2][i], v[i]);
    }
}

TCQ4_KERNEL __launch_bounds__(256, 2) tcq4_statistics(
        const float * __restrict__ x, int64_t tokens, int k, double * __restrict__ partial_sums, float * __restrict__ partial_ranges) {
    __shared__ tcq4_moments shared[4][64];
    const int     lane    = threadIdx.x%64;
    const int     quarter = threadIdx.x/64;
    const int     column  = 256*blockIdx.x + 4*lane;
    const int64_t slice   = blockIdx.y;
    const int64_t first   = tokens*slice/gridDim.y;
    const int64_t last    = tokens*(slice + 1)/gridDim.y;
    const float   inf     = tcq4_float_of_bits(0x7f800000u);

    tcq4_moments own = { {}, {}, { {}, { inf, inf, inf, inf }, { -inf, -inf, -inf, -inf } } };
    for (int64_t block = first + quarter; block < last; block += 64) {
        float sum[4] = {}, sum_sq[4] = {};
#pragma unroll 4
        for (int i = 0; i < 16; ++i) {
            if (block + 4*i < last) {
                tcq4_moments_add(own, *(const float4 *) &x[(block + 4*i)*k + column], sum, sum_sq);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            own.sum   [i] += sum[i];
            own.sum_sq[i] += sum_sq[i];
        }
    }
    shared[quarter][lane] = own;
    __syncthreads();

    // thread c adds up channel c
    const int c = threadIdx.x;
    const tcq4_moments * part = &shared[0][c/4];
    double sum = 0.0, sum_sq = 0.0;
    float range[3] = { 0.0f, inf, -inf };
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        sum    += part[64*q].sum   [c%4];
        sum_sq += part[64*q].sum_sq[c%4];
        range[0] = fmaxf(range[0], part[64*q].range[0][c%4]);
        range[1] = fminf(range[1], part[64*q].range[1][c%4]);
        range[2] = fmaxf(range[2], part[64*q].range[2][c%4]);
    }
    const int64_t at = 256*(int64_t) blockIdx.x + c;
    partial_sums[(2*slice    )*k + at] = sum;
    partial_sums[(2*slice + 1)*k + at] = sum_sq;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        partial_ranges[(3*slice + i)*k + at] = range[i];
    }
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_statistics_merge(
        const double * __restrict__ partial_sums, const float * __restrict__ partial_ranges, int slices, int k, double * __restrict__ sums,
        float * __restrict__ ranges) {
    const int64_t at = 256*(int64_t) blockIdx.x + threadIdx.x;
    if (at >= k) {
        return;
    }
    for (int64_t slice = 0; slice < slices; ++slice) {
        sums[at]     += partial_sums[(2*slice    )*k + at];
        sums[k + at] += partial_sums[(2*slice + 1)*k + at];
        ranges[at]       = fmaxf(ranges[at],       partial_ranges[(3*slice    )*k + at]);
        ranges[k + at]   = fminf(ranges[k + at],   partial_ranges[(3*slice + 1)*k + at]);
        ranges[2*k + at] = fmaxf(ranges[2*k + at], partial_ranges[(3*slice + 2)*k + at]);
    }
}
