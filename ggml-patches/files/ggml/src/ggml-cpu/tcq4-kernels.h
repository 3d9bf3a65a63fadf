// What a set of TCQ4_K32 kernels for one instruction set provides, and the arithmetic that all of them share.
//
// y[m][n] = sum over tiles and groups of d_m * ( (S*sc/127) * dot(q_w, q_a) + (Z*zc/127) * sum(q_a) )
//
// dot is exact in int32. x86 multiplies unsigned by signed bytes, so there the weight is q_w + 8 and the accumulator starts at
// bias = M - 8*sum(q_a), M = 0x4B400000. M is the bit pattern of the float 1.5*2^23, whose last bit counts 1: read as a float, the
// accumulator is 1.5*2^23 + dot, and one fused step*F - step*1.5*2^23 takes the place of a conversion and a product. That is
// exact but for one rounding if step*1.5 has no more than 24 bits, which is why steps are cut to 22 bits (an error below 2^-22).

#pragma once

#include "tcq4.h"
#include "tcq4_k32.h"

#include <string.h>

// Loops over a few registers, which have to disappear at -O2 as well.
#if defined(__clang__)
#define TCQ4_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define TCQ4_UNROLL _Pragma("GCC unroll 32")
#else
#define TCQ4_UNROLL
#endif

#define TCQ4_MAGIC_BITS  0x4B400000
#define TCQ4_MAGIC_FLOAT 12582912.0f

struct tcq4_kernels_args;

struct tcq4_kernels {
    const char * name;
    int (*available)(void);
    // Rotates n_chunks times 256 values in place, bit for bit as tcq4_fwht256.
    void (*fwht)(float * x, int64_t n_chunks);
    // Rounds 256 rotated values, bit for bit as tcq4_act_round_scalar.
    void (*round)(enum tcq4_act_path path, const float * x, struct tcq4_act_chunk * out);
    // As tcq4_mul_mat.
    void (*mul_mat)(const struct tcq4_kernels_args * args);
};

struct tcq4_kernels_args {
    const tcq4_tile * tiles;
    int64_t           n_tiles; // tiles of a row: K/256
    int64_t           n_stripes;
    const char *      acts;
    size_t            act_stride;
    int64_t           n_acts;
    float *           dst;
    int64_t           dst_stride;
};

static inline const struct tcq4_act_chunk * tcq4_act_at(const struct tcq4_kernels_args * a, int64_t m, int64_t t) {
    return (const struct tcq4_act_chunk *) (a->acts + m*a->act_stride) + t;
}

// Four codes of a chunk.
static inline int32_t tcq4_act_dword(const struct tcq4_act_chunk * a, int i) {
    int32_t dword;
    memcpy(&dword, a->q + 4*i, sizeof(dword));
    return dword;
}

// Rounds 256 rotated values: the reference.
void tcq4_act_round_scalar(enum tcq4_act_path path, const float * x, struct tcq4_act_chunk * out);

// One per instruction set; sets that the compiler's target rules out do not exist.
extern const struct tcq4_kernels tcq4_kernels_scalar;
#if defined(__x86_64__) || defined(_M_X64)
extern const struct tcq4_kernels tcq4_kernels_avx2;
extern const struct tcq4_kernels tcq4_kernels_avxvnni;
extern const struct tcq4_kernels tcq4_kernels_avx512;
#elif defined(__aarch64__)
extern const struct tcq4_kernels tcq4_kernels_neon;
// Before version 16, clang offers the intrinsics only if the whole build is for such CPUs.
#if defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__) || __clang_major__ >= 16
#define TCQ4_DOTPROD
extern const struct tcq4_kernels tcq4_kernels_dotprod;
#endif
#endif
