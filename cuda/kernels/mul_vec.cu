// 1 to 8 tokens times a TCQ4 matrix by dp4a; with the activations rounded before, or in the same launch.
//
// Maths: y[m][row] = sum over groups of scale[m]*((S*sc/127)*dot(q, q_m) + (Z*zc/127)*sum(q_m)).
// Mapping: lane 8*q + row of a warp takes groups q and q + 4 of a row of a tile; the sums of 4 lanes and of the warps are added in a fixed order. See
// tcq4_mul_vec.cuh.
// Launch: mul_vec: a block of 4 warps a stripe of 8 rows (mul_vec_id: of a product and a stripe). mul_vec_fused: one block of 16 warps a multiprocessor;
// it rounds all tokens itself, which costs it about what 8 rows of weights cost, but saves a launch and the wait for it, and asks for its weights first.
// Bound: memory, 1184 bytes of weights for 2048 weights. From 4 tokens on, the f32 and dp4a instructions of narrow devices.
// Tolerance: 1e-5 of the root mean square of y, from the order of f32 additions; rounded activations are the same bits as those of kernels/activations.cu.
// Predicted on an H200, not measured: 1 token, INT8: 77 % of copy bandwidth for 4096 x 4096, 93 % for 14336 x 14336.

#include "tcq4_mul_vec.cuh"

// At most `most` tokens; `blocks` of them run on a multiprocessor.
#define TCQ4_MUL_VEC_KERNEL(name, most, blocks, act) \
    TCQ4_KERNEL __launch_bounds__(128, blocks) name( \
            const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, float * __restrict__ y, int chunks, int tokens, int64_t y_stride) { \
        const int64_t stripe = blockIdx.x; \
        tcq4_mul_vec_stripe<most>(tiles + stripe*chunks, acts, chunks, y + TCQ4_ROWS*stripe, y_stride, tokens); \
    }

TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int8_m1, 1, 8, tcq4_act8)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int8_m2, 2, 8, tcq4_act8)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int8_m4, 4, 4, tcq4_act8)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int8_m8, 8, 4, tcq4_act8)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int4_m1, 1, 8, tcq4_act4)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int4_m2, 2, 8, tcq4_act4)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int4_m4, 4, 4, tcq4_act4)
TCQ4_MUL_VEC_KERNEL(tcq4_mul_vec_int4_m8, 8, 4, tcq4_act4)

// Product i, of expert ids[i].
#define TCQ4_MUL_VEC_ID_KERNEL(name, act) \
    TCQ4_KERNEL __launch_bounds__(128, 8) name( \
            const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, const int32_t * __restrict__ ids, float * __restrict__ y, int chunks, \
            int64_t expert_tiles, int used, int64_t y_stride) { \
        const int64_t i      = blockIdx.x; \
        const int64_t stripe = blockIdx.y; \
        tcq4_mul_vec_stripe<1>(tiles + ids[i]*expert_tiles + stripe*chunks, acts + i/used*chunks, chunks, y + i*y_stride + TCQ4_ROWS*stripe, y_stride); \
    }

TCQ4_MUL_VEC_ID_KERNEL(tcq4_mul_vec_id_int8, tcq4_act8)
TCQ4_MUL_VEC_ID_KERNEL(tcq4_mul_vec_id_int4, tcq4_act4)

#define TCQ4_MUL_VEC_FUSED_KERNEL(name, most, rule) \
    TCQ4_KERNEL __launch_bounds__(512, 1) name( \
            const float * __restrict__ x, const int32_t * __restrict__ perm, const tcq4_tile * __restrict__ tiles, float * __restrict__ y, int rows, \
            int chunks, int tokens, int64_t y_stride) { \
        tcq4_mul_vec_fused<most, rule>(x, perm, tiles, y, rows, chunks, tokens, y_stride); \
    }

TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int8_m1, 1, TCQ4_RULE_INT8)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int8_m2, 2, TCQ4_RULE_INT8)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int8_m4, 4, TCQ4_RULE_INT8)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int8_m8, 8, TCQ4_RULE_INT8)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int4_m1, 1, TCQ4_RULE_INT4_G32)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int4_m2, 2, TCQ4_RULE_INT4_G32)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int4_m4, 4, TCQ4_RULE_INT4_G32)
TCQ4_MUL_VEC_FUSED_KERNEL(tcq4_mul_vec_fused_int4_m8, 8, TCQ4_RULE_INT4_G32)
