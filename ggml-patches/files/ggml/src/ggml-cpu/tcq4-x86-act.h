// What every set of x86 kernels uses: rounding of 256 rotated values with AVX2, bit for bit as tcq4_act_round_scalar.
//
// Maxima and sums are taken for all 8 groups side by side, by transposing instead of reducing each.

#pragma once

#include "tcq4-kernels.h"

#include <immintrin.h>

#if defined(__GNUC__)
#define TCQ4_AVX2_INLINE static inline __attribute__((always_inline, unused, target("avx2,fma,f16c")))
#else
#define TCQ4_AVX2_INLINE static __forceinline
#endif

// Whether the CPU has what every set of x86 kernels needs; without a way to ask, whether the compiler assumes it.
static inline int tcq4_has_avx2(void) {
#if defined(__GNUC__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); // whoever has AVX2 has F16C
#elif defined(__AVX2__)
    return 1;
#else
    return 0;
#endif
}

// Lane g is the largest lane of v[g], compared as integers.
TCQ4_AVX2_INLINE __m256i tcq4_largest_of_each(const __m256i * v) {
    __m256i pairs[4], fours[2];
    TCQ4_UNROLL
    for (int i = 0; i < 4; ++i) {
        pairs[i] = _mm256_max_epu32(_mm256_unpacklo_epi32(v[2*i], v[2*i + 1]), _mm256_unpackhi_epi32(v[2*i], v[2*i + 1]));
    }
    TCQ4_UNROLL
    for (int i = 0; i < 2; ++i) {
        fours[i] = _mm256_max_epu32(_mm256_unpacklo_epi64(pairs[2*i], pairs[2*i + 1]), _mm256_unpackhi_epi64(pairs[2*i], pairs[2*i + 1]));
    }
    return _mm256_max_epu32(_mm256_permute2x128_si256(fours[0], fours[1], 0x20), _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
}

// Lane g is the sum of the lanes of v[g].
TCQ4_AVX2_INLINE __m256i tcq4_sum_of_each(const __m256i * v) {
    const __m256i low  = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    const __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

// Lane g is the largest magnitude of group g; NaN counts as larger than any number.
TCQ4_AVX2_INLINE __m256 tcq4_largest_of_groups(const float * x) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i largest[TCQ4_GROUPS];
    TCQ4_UNROLL
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        largest[g] = _mm256_setzero_si256();
        TCQ4_UNROLL
        for (int i = 0; i < 4; ++i) {
            largest[g] = _mm256_max_epu32(largest[g], _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(x + 32*g + 8*i), magnitude)));
        }
    }
    return _mm256_castsi256_ps(tcq4_largest_of_each(largest));
}

// The first of 32 values that has this magnitude.
TCQ4_AVX2_INLINE float tcq4_first_with(const float * x, float largest) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int i = 0; i < 32; i += 8) {
        const __m256 v    = _mm256_loadu_ps(x + i);
        const int    mask = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_and_ps(v, magnitude), _mm256_set1_ps(largest), _CMP_EQ_OQ));
        for (int j = 0; mask != 0; ++j) {
            if (mask >> j & 1) {
                return x[i + j];
            }
        }
    }
    return x[31]; // NaN, whose scale is NaN whatever this is
}

// 32 codes, the even elements in the lower half; those of INT4 with a sign are cut to -8..7, the others cannot leave their range.
TCQ4_AVX2_INLINE __m256i tcq4_codes_of_group(const float * x, float factor, bool is_cut) {
    __m256i code[4];
    TCQ4_UNROLL
    for (int i = 0; i < 4; ++i) {
        __m256 y = _mm256_mul_ps(_mm256_loadu_ps(x + 8*i), _mm256_set1_ps(factor));
        if (is_cut) {
            y = _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-8.0f)), _mm256_set1_ps(7.0f));
        }
        code[i] = _mm256_cvtps_epi32(y); // ties to even
    }
    // Packing works within 128 bits: dwords of four codes come out as 0 2 4 6 1 3 5 7.
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]));
    const __m256i whole = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(whole, split), 0xd8);
}

// Rounds and stores, where lane g of the arguments is for group g.
TCQ4_AVX2_INLINE void tcq4_act_store(const float * x, __m256 largest, __m256 step, __m256 inverse, bool is_cut, struct tcq4_act_chunk * out) {
    alignas(32) float factor[TCQ4_GROUPS];
    _mm256_store_ps(factor, inverse);
    const __m256 bad = _mm256_cmp_ps(largest, _mm256_set1_ps(3.402823466e38f), _CMP_NLE_UQ);
    step = _mm256_blendv_ps(step, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), bad);

    const __m256i ones = _mm256_set1_epi8(1);
    __m256i sums[TCQ4_GROUPS];
    TCQ4_UNROLL
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        const __m256i q = tcq4_codes_of_group(x + 32*g, factor[g], is_cut);
        _mm256_storeu_si256((__m256i *) (out->q + 32*g), q);
        sums[g] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1));
    }
    const __m256i sum = tcq4_sum_of_each(sums);
    _mm256_storeu_ps(out->d,  step);
    _mm256_storeu_ps(out->ds, _mm256_mul_ps(step, _mm256_cvtepi32_ps(sum)));
    _mm256_storeu_si256((__m256i *) out->bias, _mm256_sub_epi32(_mm256_set1_epi32(TCQ4_MAGIC_BITS), _mm256_slli_epi32(sum, 3)));
}

// As tcq4_act_symmetric.
TCQ4_AVX2_INLINE void tcq4_act_store_symmetric(const float * x, __m256 largest, float top, struct tcq4_act_chunk * out) {
    const __m256 max = _mm256_blendv_ps(largest, _mm256_set1_ps(1.0f), _mm256_cmp_ps(largest, _mm256_set1_ps(TCQ4_TINY), _CMP_LT_OQ));
    tcq4_act_store(x, largest, _mm256_div_ps(max, _mm256_set1_ps(top)), _mm256_div_ps(_mm256_set1_ps(top), max), false, out);
}

// As tcq4_act_signed: lane g of `extreme` is the value that has the largest magnitude.
TCQ4_AVX2_INLINE void tcq4_act_store_signed(const float * x, __m256 largest, __m256 extreme, float clip, struct tcq4_act_chunk * out) {
    const __m256 step = _mm256_mul_ps(_mm256_mul_ps(extreme, _mm256_set1_ps(clip)), _mm256_set1_ps(-0.125f));
    const __m256 used = _mm256_blendv_ps(step, _mm256_set1_ps(1.0f), _mm256_cmp_ps(largest, _mm256_set1_ps(TCQ4_TINY), _CMP_LT_OQ));
    tcq4_act_store(x, largest, used, _mm256_div_ps(_mm256_set1_ps(1.0f), used), true, out);
}

TCQ4_AVX2_INLINE void tcq4_act_round_avx2(enum tcq4_act_path path, const float * x, struct tcq4_act_chunk * out) {
    const __m256 of_group = tcq4_largest_of_groups(x);
    if (path == TCQ4_ACT_INT8) {
        tcq4_act_store_symmetric(x, of_group, 127.0f, out);
        return;
    }
    alignas(32) float largest[TCQ4_GROUPS];
    alignas(32) float extreme[TCQ4_GROUPS];
    _mm256_store_ps(largest, of_group);
    if (path == TCQ4_ACT_INT4_G32) {
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            extreme[g] = tcq4_first_with(x + 32*g, largest[g]);
        }
        tcq4_act_store_signed(x, of_group, _mm256_load_ps(extreme), 1.0f, out);
        return;
    }
    const float  most = tcq4_largest(largest, TCQ4_GROUPS);
    const __m256 all  = _mm256_set1_ps(most);
    if (path == TCQ4_ACT_INT4_FORK) {
        tcq4_act_store_symmetric(x, all, 7.0f, out);
        return;
    }
    int g = 0;
    while (g < TCQ4_GROUPS - 1 && largest[g] != most) {
        ++g;
    }
    tcq4_act_store_signed(x, all, _mm256_set1_ps(tcq4_first_with(x + 32*g, most)), 0.9f, out);
}
