// 1 to 8 tokens times a TCQ4 matrix by dp4a; with the activations rounded before, or in the same launch.
//
// Maths: y[m][row] = sum over groups of scale[m]*((S*sc/127)*dot(q, q_m) + (Z*zc/127)*sum(q_m)).
// Mapping: lane 4*row + part of a warp takes the words of a tile that hold the row's elements 8*part .. 8*part + 7 of every group; the sums of 4 lanes and
// of the warps are added in a fixed order. See tcq4_mul_vec.cuh.
// Launch: mul_vec: a block of 4 warps a stripe of 8 rows (mul_vec_id: of a stripe and a product). mul_vec_fused: one block of 16 warps a multiprocessor;
// it rounds all tokens itself, which costs it about what 8 rows of weights cost, but saves a launch and the wait for it, and asks for its weights first.
// Bound: memory, 1184 bytes of weights for 2048 weights. From 4 tokens on, the f32 and dp4a instructions of narrow devices.
// Tolerance: 1e-5 of the root mean square of y, from the order of f32 additions; rounded activations are the same bits as those of kernels/activations.cu.
// Predicted on an H200, not measured: 1 token, INT8: 65 % of copy bandwidth for 4096 x 4096, 85 % for 14336 x 14336.

#include "tcq4_mul_vec.cuh"

TCQ4_KERNEL __launch_bounds__(128, 8) tcq4_mul_vec_int8_m1(
        const tcq4_tile * __restrict__ tiles, const tcq4_act8 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<1>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 8) tcq4_mul_vec_int8_m2(
        const tcq4_tile * __restrict__ tiles, const tcq4_act8 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<2>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 4) tcq4_mul_vec_int8_m4(
        const tcq4_tile * __restrict__ tiles, const tcq4_act8 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<4>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 4) tcq4_mul_vec_int8_m8(
        const tcq4_tile * __restrict__ tiles, const tcq4_act8 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<8>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 8) tcq4_mul_vec_int4_m1(
        const tcq4_tile * __restrict__ tiles, const tcq4_act4 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<1>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 8) tcq4_mul_vec_int4_m2(
        const tcq4_tile * __restrict__ tiles, const tcq4_act4 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<2>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 4) tcq4_mul_vec_int4_m4(
        const tcq4_tile * __restrict__ tiles, const tcq4_act4 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<4>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

TCQ4_KERNEL __launch_bounds__(128, 4) tcq4_mul_vec_int4_m8(
        const tcq4_tile * __restrict__ tiles, const tcq4_act4 * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) {
    tcq4_mul_vec_stripe<8>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, y + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride, tokens);
}

// Product i, of expert ids[i].
template <typename act>
static __device__ __forceinline__ void tcq4_mul_vec_of_expert(
        const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, const int32_t * __restrict__ ids, float * __restrict__ y, int chunks,
        int64_t expert_tiles, int used, int64_t y_stride) {
    const int64_t i = blockIdx.y;
    const tcq4_tile * stripe = tiles + ids[i]*expert_tiles + (int64_t) blockIdx.x*chunks;
    tcq4_mul_vec_stripe<1>(stripe, acts + i/used*chunks, chunks, y + i*y_stride + TCQ4_ROWS*(int64_t) blockIdx.x, y_stride);
}

TCQ4_KERNEL __launch_bounds__(128, 8) tcq4_mul_vec_id_int8(
        const tcq4_tile * __restrict__ tiles, const tcq4_act8 * __restrict__ acts, const int32_t * __restrict__ ids, float * __restrict__ y, int chunks,
        int64_t expert_tiles, int used, int64_t y_stride) {
    tcq4_mul_vec_of_expert(tiles, acts, ids, y, chunks, expert_tiles, used, y_stride);
}

TCQ4_KERNEL __launch_bounds__(128, 8) tcq4_mul_vec_id_int4(
        const tcq4_tile * __restrict__ tiles, const tcq4_act4 * __restrict__ acts, const int32_t * __restrict__ ids, float * __restrict__ y, int chunks,
        int64_t expert_tiles, int used, int64_t y_stride) {
    tcq4_mul_vec_of_expert(tiles, acts, ids, y, chunks, expert_tiles, used, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int8_m1(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<1, TCQ4_RULE_INT8>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int8_m2(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<2, TCQ4_RULE_INT8>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int8_m4(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<4, TCQ4_RULE_INT8>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int8_m8(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<8, TCQ4_RULE_INT8>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int4_m1(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<1, TCQ4_RULE_INT4_G32>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int4_m2(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<2, TCQ4_RULE_INT4_G32>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int4_m4(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<4, TCQ4_RULE_INT4_G32>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}

TCQ4_KERNEL __launch_bounds__(512, 1) tcq4_mul_vec_fused_int4_m8(
        const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, int chunks,
        int tokens, int64_t y_stride) {
    tcq4_mul_vec_fused<8, TCQ4_RULE_INT4_G32>(x, perm, tiles, y, rows, chunks, tokens, y_stride);
}
