// Rounding of 256 rotated values to INT8 with AVX2, for every set of x86 kernels; bit for bit as tcq4_act_round_scalar.
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

// 32 codes, the even elements in the lower half.
TCQ4_AVX2_INLINE __m256i tcq4_codes_of_group(const float * x, __m256 factor) {
    __m256i code[4];
    TCQ4_UNROLL
    for (int i = 0; i < 4; ++i) {
        code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8*i), factor)); // ties to even
    }
    // Packing works within 128 bits: dwords of four codes come out as 0 2 4 6 1 3 5 7.
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]));
    const __m256i whole = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(whole, split), 0xd8);
}

TCQ4_AVX2_INLINE void tcq4_act_round_int8(const float * x, struct tcq4_act_chunk * out) {
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
    const __m256 found = _mm256_castsi256_ps(tcq4_largest_of_each(largest));
    const __m256 top   = _mm256_set1_ps(127.0f);
    const __m256 max   = _mm256_blendv_ps(found, _mm256_set1_ps(1.0f), _mm256_cmp_ps(found, _mm256_set1_ps(TCQ4_TINY), _CMP_LT_OQ));
    const __m256 bad   = _mm256_cmp_ps(max, _mm256_set1_ps(3.402823466e38f), _CMP_NLE_UQ);
    const __m256 step  = _mm256_blendv_ps(_mm256_div_ps(max, top), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), bad);
    alignas(32) float inverse[TCQ4_GROUPS];
    _mm256_store_ps(inverse, _mm256_div_ps(top, max));

    const __m256i ones = _mm256_set1_epi8(1);
    __m256i sums[TCQ4_GROUPS];
    TCQ4_UNROLL
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        const __m256i q = tcq4_codes_of_group(x + 32*g, _mm256_set1_ps(inverse[g]));
        _mm256_storeu_si256((__m256i *) (out->q + 32*g), q);
        sums[g] = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1));
    }
    const __m256i sum = tcq4_sum_of_each(sums);
    _mm256_storeu_ps(out->d,  step);
    _mm256_storeu_ps(out->ds, _mm256_mul_ps(step, _mm256_cvtepi32_ps(sum)));
    _mm256_storeu_si256((__m256i *) out->bias, _mm256_sub_epi32(_mm256_set1_epi32(TCQ4_MAGIC_BITS), _mm256_slli_epi32(sum, 3)));
}
