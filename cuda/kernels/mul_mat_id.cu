// Experts: products sorted by expert, and for each expert those of kernels/mul_mat.cu.
//
// Maths: product i is row targets[i] of y: token sources[i] times the matrix of the expert e with bounds[e] <= i < bounds[e + 1].
// sort_experts: block e counts the products of the experts before e and writes those of e in their order: stable and without atomics.
// Launch: sort_experts: a block of 256 threads an expert. mul_mat_id: (ceil(most products of an expert/128), ceil(rows/128), experts) blocks of 256;
// blocks beyond the products of their expert end at once, so a bound that is too high costs little.
// Bound: as mul_mat; with few products an expert, memory: the weights of all experts that have any.
// Tolerance: sort: none; products as mul_mat.
// Predicted on an H200, not measured: as mul_mat, less what the last block of each expert leaves empty.

#include "tcq4_gemm.cuh"

template <typename act>
static __device__ __forceinline__ void tcq4_mul_mat_of_expert(
        const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, const int32_t * __restrict__ bounds, const int32_t * __restrict__ sources,
        const int32_t * __restrict__ targets, float * __restrict__ y, int rows, int chunks, int64_t expert_tiles, int64_t y_stride) {
    TCQ4_DYNAMIC_SHARED(memory);
    const int expert = blockIdx.z;
    const int first  = bounds[expert] + blockIdx.x*TCQ4_GEMM_TOKENS;
    const int end    = bounds[expert + 1];
    if (first >= end) {
        return;
    }
    const tcq4_gemm_job<act> job = { tiles + expert*expert_tiles, acts, sources, targets, y, y_stride, rows, chunks, bounds[expert], end };
    tcq4_gemm_block(*(tcq4_gemm_shared<act> *) memory, job, first, blockIdx.y*TCQ4_GEMM_ROWS);
}

#define TCQ4_MUL_MAT_ID_KERNEL(name, act) \
    TCQ4_KERNEL __launch_bounds__(256, 1) name( \
            const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, const int32_t * __restrict__ bounds, \
            const int32_t * __restrict__ sources, const int32_t * __restrict__ targets, float * __restrict__ y, int rows, int chunks, \
            int64_t expert_tiles, int64_t y_stride) { \
        tcq4_mul_mat_of_expert(tiles, acts, bounds, sources, targets, y, rows, chunks, expert_tiles, y_stride); \
    }

TCQ4_MUL_MAT_ID_KERNEL(tcq4_mul_mat_id_int8,   tcq4_act8)
TCQ4_MUL_MAT_ID_KERNEL(tcq4_mul_mat_id_int4,   tcq4_act4)
TCQ4_MUL_MAT_ID_KERNEL(tcq4_mul_mat_id_block4, tcq4_block4)
TCQ4_MUL_MAT_ID_KERNEL(tcq4_mul_mat_id_block8, tcq4_block8)

TCQ4_KERNEL __launch_bounds__(256) tcq4_sort_experts(
        const int32_t * __restrict__ ids, int n, int used, int experts, int32_t * __restrict__ bounds, int32_t * __restrict__ sources,
        int32_t * __restrict__ targets) {
    __shared__ int counts[2][8];
    const int expert = blockIdx.x;
    const int lane   = threadIdx.x & 31;
    const int warp   = threadIdx.x >> 5;
    int before = 0;
    for (int i = threadIdx.x; i < n; i += 256) {
        before += ids[i] < expert;
    }
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
        before += __shfl_xor_sync(TCQ4_ALL_LANES, before, h);
    }
    if (lane == 0) {
        counts[0][warp] = before;
    }
    __syncthreads();
    int place = 0;
#pragma unroll
    for (int w = 0; w < 8; ++w) {
        place += counts[0][w];
    }
    if (threadIdx.x == 0) {
        bounds[expert] = place;
    }
    for (int first = 0; first < n; first += 256) {
        const int      i     = first + threadIdx.x;
        const bool     own   = i < n && ids[i] == expert;
        const unsigned which = __ballot_sync(TCQ4_ALL_LANES, own);
        __syncthreads(); // the counts have been read
        if (lane == 0) {
            counts[1][warp] = __popc(which);
        }
        __syncthreads();
        int at = place + __popc(which & ((1u << lane) - 1u));
#pragma unroll
        for (int w = 0; w < 8; ++w) {
            at    += w < warp ? counts[1][w] : 0;
            place += counts[1][w];
        }
        if (own) {
            sources[at] = i/used;
            targets[at] = i;
        }
    }
    if (threadIdx.x == 0 && expert == experts - 1) {
        bounds[experts] = place;
    }
}
