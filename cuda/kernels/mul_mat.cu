// Many tokens times a TCQ4 matrix on tensor cores.
//
// Maths: y[m][row] = sum over groups of scale[m]*((S*sc/127)*dot(q, q_m) + (Z*zc/127)*sum(q_m)), dot products in INT32.
// INT4 mma (m16n8k32, on sm_75 m8n8k32) where the device has it, sm_75 to sm_89: int4, block4. INT8 mma (m16n8k32, on sm_75 m8n8k16) elsewhere and for int8
// and block8, whose INT4 codes are widened when they are rounded, once, and not for each of the blocks that read them.
// Mapping: see tcq4_gemm.cuh; a block 128 tokens x 128 rows, a warp 64 x 32. Neighbouring blocks take the same rows, so weights are read once from memory.
// Launch: (ceil(tokens/128), ceil(rows/128)) blocks of 256 threads, dynamic shared memory as in the table of ../README.md.
// Bound: block4, block8: issue slots, about ten for an mma of 8192 operations beside it; int8, int4: f32 FMA, two for each result and group.
// Tolerance: 1e-5 of the root mean square of y, from the order of f32 additions and steps of 22 bits.
// Predicted on an H200, not measured: block8: 770 TOPS without zero points, 670 with; int8: 600 and 440. sm_86, block4: 85 % and 73 % of the INT4 peak at most.

#include "tcq4_gemm.cuh"

template <typename act>
static __device__ __forceinline__ void tcq4_mul_mat_tile(
        const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, float * __restrict__ y, int rows, int chunks, int tokens, int64_t y_stride) {
    TCQ4_DYNAMIC_SHARED(memory);
    const tcq4_gemm_job<act> job = { tiles, acts, nullptr, nullptr, y, y_stride, rows, chunks, 0, tokens };
    tcq4_gemm_block(*(tcq4_gemm_shared<act> *) memory, job, blockIdx.x*TCQ4_GEMM_TOKENS, blockIdx.y*TCQ4_GEMM_ROWS);
}

#define TCQ4_MUL_MAT_KERNEL(name, act) \
    TCQ4_KERNEL __launch_bounds__(256, 1) name( \
            const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, float * __restrict__ y, int rows, int chunks, int tokens, \
            int64_t y_stride) { \
        tcq4_mul_mat_tile(tiles, acts, y, rows, chunks, tokens, y_stride); \
    }

TCQ4_MUL_MAT_KERNEL(tcq4_mul_mat_int8,   tcq4_act8)
TCQ4_MUL_MAT_KERNEL(tcq4_mul_mat_int4,   tcq4_act4)
TCQ4_MUL_MAT_KERNEL(tcq4_mul_mat_block4, tcq4_block4)
TCQ4_MUL_MAT_KERNEL(tcq4_mul_mat_block8, tcq4_block8)
