// What both encoders of tiles share, and the parity encoder: nearest codes, as llama.cpp-rrs.
//
// Thread 8*row + group holds the 32 values of a group in registers, so every sum over a group is added in one thread, in order, and rows are 8
// neighbouring lanes. All arithmetic is rounded operation by operation (tcq4_*_exact), so no flag changes a byte.

#ifndef TCQ4_ENCODE_DRAFT_CUH
#define TCQ4_ENCODE_DRAFT_CUH

#include "tcq4_act.cuh"

#define TCQ4_ENCODE_THREADS 64
#define TCQ4_LARGEST_ROTATED (7.0f*65504.0f) // a seventh of it is the largest finite fp16

// What a thread knows of its group in a tile in the making.
struct tcq4_draft {
    uint32_t codes[4];   // 8 of 4 bits each
    float    scale_code, zero_code;
    uint16_t scale, zero; // of the row
    float    error_sq;    // of the row
};

static __device__ __forceinline__ float tcq4_min(float a, float b) { return a < b ? a : b; }
static __device__ __forceinline__ float tcq4_max(float a, float b) { return a > b ? a : b; }

// Rounds to the nearest integer, ties to even, for magnitudes below 2^22.
static __device__ __forceinline__ float tcq4_even_exact(float x) { return tcq4_sub_exact(tcq4_add_exact(x, 12582912.0f), 12582912.0f); }

static __device__ __forceinline__ float tcq4_code_exact(float x) { return tcq4_even_exact(tcq4_min(tcq4_max(x, -8.0f), 7.0f)); }

// 1/x, or 0 where that could overflow.
static __device__ __forceinline__ float tcq4_invert(float x) {
    const bool small = tcq4_abs(x) < 1e-30f;
    const float inverse = tcq4_div_exact(1.0f, small ? 1e-30f : x);
    return small ? 0.0f : inverse;
}

static __device__ __forceinline__ bool tcq4_is_finite(float x) { return (tcq4_bits_of_float(x) & 0x7f800000u) != 0x7f800000u; }

// --- among the 8 lanes of a row ---

static __device__ __forceinline__ float tcq4_row_max(float x) {
#pragma unroll
    for (int h = 1; h < 8; h *= 2) {
        x = tcq4_max(x, __shfl_xor_sync(TCQ4_ALL_LANES, x, h));
    }
    return x;
}

// First groups g and g + 4, then these in order.
static __device__ __forceinline__ float tcq4_row_sum(float x) {
    const int first = threadIdx.x & 24;
    x = tcq4_add_exact(x, __shfl_xor_sync(TCQ4_ALL_LANES, x, 4));
    float sum = __shfl_sync(TCQ4_ALL_LANES, x, first);
#pragma unroll
    for (int i = 1; i < 4; ++i) {
        sum = tcq4_add_exact(sum, __shfl_sync(TCQ4_ALL_LANES, x, first + i));
    }
    return sum;
}

// The FWHT of a row that lies in 8 lanes of 32 values: additions in the order of tcq4_fwht256.
static __device__ __forceinline__ void tcq4_row_fwht(float (&v)[TCQ4_GROUP]) {
#pragma unroll
    for (int h = 1; h < TCQ4_GROUP; h *= 2) {
#pragma unroll
        for (int i = 0; i < TCQ4_GROUP; ++i) {
            if ((i & h) == 0) {
                const float a = v[i];
                const float b = v[i + h];
                v[i]     = tcq4_add_exact(a, b);
                v[i + h] = tcq4_sub_exact(a, b);
            }
        }
    }
#pragma unroll
    for (int h = 1; h < 8; h *= 2) {
        // a + b or a - b, where the upper lane has b: 1*a + b or -1*b + a, rounded once, is the same
        const float sign = (threadIdx.x & h) == 0 ? 1.0f : -1.0f;
#pragma unroll
        for (int i = 0; i < TCQ4_GROUP; ++i) {
            const float other = __shfl_xor_sync(TCQ4_ALL_LANES, v[i], h);
            v[i] = tcq4_fma_exact(v[i], sign, other);
        }
    }
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        v[i] = tcq4_mul_exact(v[i], 0.0625f);
    }
}

static __device__ __forceinline__ float tcq4_sum_of_squares(const float (&v)[TCQ4_GROUP]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        sum = tcq4_add_exact(sum, tcq4_mul_exact(v[i], v[i]));
    }
    return tcq4_row_sum(sum);
}

static __device__ __forceinline__ float tcq4_largest_of(const float (&v)[TCQ4_GROUP]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        largest = tcq4_max(largest, tcq4_abs(v[i]));
    }
    return largest;
}

// Eight codes, -8 .. 7, as nibbles, the first in the lowest: their sum with powers of 16, where each is 8 more than it is so that none borrows from the next.
static __device__ __forceinline__ uint32_t tcq4_pack(const int (&q)[8]) {
    uint32_t sum = 0;
#pragma unroll
    for (int i = 7; i >= 0; --i) {
        sum = (sum << 4) + (uint32_t) q[i];
    }
    return (sum + 0x88888888u) ^ 0x88888888u;
}

// --- parity ---

// Rounds to the nearest integer, ties away from zero, for magnitudes below 2^22: what is added is the number below 1/2, so that ties reach the next
// integer by the rounding of the sum and nothing else does.
static __device__ __forceinline__ int tcq4_away_int(float x) {
    const uint32_t below_half = 0x3effffffu | (tcq4_bits_of_float(x) & 0x80000000u);
    return (int) tcq4_add_exact(x, tcq4_float_of_bits(below_half));
}

template <bool wants_error> static __device__ __forceinline__ void tcq4_draft_parity(const float (&v)[TCQ4_GROUP], float largest, tcq4_draft & draft) {
    float scale = tcq4_div_exact(largest, 7.0f);
    scale = scale < TCQ4_TINY ? 1.0f : scale;
    const float top = tcq4_row_max(scale);
    draft.scale      = tcq4_narrow(top);
    draft.zero       = 0;
    draft.zero_code  = 0.0f;
    draft.scale_code = tcq4_min((float) tcq4_away_int(tcq4_mul_exact(tcq4_div_exact(scale, top), 127.0f)), 127.0f);
    const float step    = wants_error ? tcq4_div_exact(tcq4_mul_exact(tcq4_wide(draft.scale), draft.scale_code), 127.0f) : 0.0f;
    const float inverse = tcq4_div_exact(1.0f, scale);
    float error_sq = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        int q[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float value = v[8*j + i];
            q[i] = tcq4_away_int(tcq4_mul_exact(value, inverse)); // at most 7, for 1/scale is within a rounding of 7/largest
            if (wants_error) {
                const float error = tcq4_sub_exact(value, tcq4_mul_exact(step, (float) q[i]));
                error_sq = tcq4_add_exact(error_sq, tcq4_mul_exact(error, error));
            }
        }
        draft.codes[j] = tcq4_pack(q);
    }
    draft.error_sq = wants_error ? tcq4_row_sum(error_sq) : 0.0f;
}

#endif // TCQ4_ENCODE_DRAFT_CUH
