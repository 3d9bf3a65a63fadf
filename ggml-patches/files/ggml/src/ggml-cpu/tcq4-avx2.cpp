// TCQ4_K32 with AVX2 and FMA: vpmaddubsw adds in int16, where the 8 products of a group (below 8*2*15*127 = 30480) still fit.
//
// Bound: ALU (two instructions for what VNNI does in one, and one more at the end of a group). Measured as in tcq4-avx512.cpp with 1 and 2
// threads: 9.2 and 19.0 GB/s for one activation row, 148 and 286 GOP/s for 512.

#include "tcq4-kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "tcq4-x86-act.h"

#if defined(__GNUC__)
#define TCQ4_256 __attribute__((target("avx2,fma,f16c")))
#define TCQ4_256_INLINE static inline __attribute__((always_inline)) TCQ4_256
#else
#define TCQ4_256
#define TCQ4_256_INLINE static __forceinline
#endif

namespace {

TCQ4_256_INLINE __m256i dot_start(int32_t) {
    return _mm256_setzero_si256();
}

TCQ4_256_INLINE __m256i dot_add(__m256i dot, __m256i w, __m256i q) {
    return _mm256_add_epi16(dot, _mm256_maddubs_epi16(w, q));
}

TCQ4_256_INLINE __m256i dot_end(__m256i dot, int32_t bias) {
    return _mm256_add_epi32(_mm256_madd_epi16(dot, _mm256_set1_epi16(1)), _mm256_set1_epi32(bias));
}

#include "tcq4-avx2-body.h"

} // namespace

const tcq4_kernels tcq4_kernels_avx2 = { "avx2", tcq4_has_avx2, fwht, round_chunk, mul_mat };

#endif
