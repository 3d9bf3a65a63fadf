// Channels of every token in another order.
//
// Maths: y[t][i] = x[t][perm[i]]. Mapping: a thread 8 consecutive channels of y.
// Launch: blocks of 256 threads. staged = 0: ceil(tokens*k/2048) blocks, scattered reads of memory. staged = 1: a block a token, whose row goes to dynamic
// shared memory first (k values): the scattered reads are then of shared memory.
// Bound: memory, 8 (f16: 4) bytes a channel. Tolerance: none.
// Predicted on an H200, not measured: copy bandwidth where staged.

#include "tcq4_act.cuh"

static __device__ __forceinline__ void tcq4_put8(float    * y, const float    (&v)[8]) { tcq4_store8(y, v); }
static __device__ __forceinline__ void tcq4_put8(uint16_t * y, const uint16_t (&v)[8]) {
    *(uint4 *) y = make_uint4(v[0] | (uint32_t) v[1] << 16, v[2] | (uint32_t) v[3] << 16, v[4] | (uint32_t) v[5] << 16, v[6] | (uint32_t) v[7] << 16);
}

template <typename value>
static __device__ __forceinline__ void tcq4_gather_eight(const value * row, const int32_t * __restrict__ perm, int first, value * __restrict__ y) {
    int   from[8];
    value v[8];
    tcq4_load_order(perm + first, from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i] = row[from[i]];
    }
    tcq4_put8(y + first, v);
}

template <typename value>
static __device__ __forceinline__ void tcq4_gather(
        const value * __restrict__ x, const int32_t * __restrict__ perm, value * __restrict__ y, int64_t tokens, int k, int staged) {
    TCQ4_DYNAMIC_SHARED(row_memory);
    if (staged) {
        const int64_t token = blockIdx.x;
        value * row = (value *) row_memory;
        tcq4_stage_row(x + token*k, k, row);
        for (int first = 8*threadIdx.x; first < k; first += 8*blockDim.x) {
            tcq4_gather_eight(row, perm, first, y + token*k);
        }
        return;
    }
    const int64_t at = 8*((int64_t) blockIdx.x*blockDim.x + threadIdx.x);
    if (at < tokens*k) {
        const int64_t token = at/k;
        tcq4_gather_eight(x + token*k, perm, (int) (at - token*k), y + token*k);
    }
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_gather_f32(
        const float * __restrict__ x, const int32_t * __restrict__ perm, float * __restrict__ y, int64_t tokens, int k, int staged) {
    tcq4_gather(x, perm, y, tokens, k, staged);
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_gather_f16(
        const uint16_t * __restrict__ x, const int32_t * __restrict__ perm, uint16_t * __restrict__ y, int64_t tokens, int k, int staged) {
    tcq4_gather(x, perm, y, tokens, k, staged);
}
