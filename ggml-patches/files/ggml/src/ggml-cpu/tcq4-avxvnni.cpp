// TCQ4_K32 with AVX-VNNI, the 256-bit form of vpdpbusd in CPUs that lack AVX-512. Bound: ALU. Measured as in tcq4-avx512.cpp
// with 1 and 2 threads: 9.1 and 18.6 GB/s for one activation row, 265 and 492 GOP/s for 512.

#include "tcq4-kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "tcq4-x86-act.h"

#if defined(__GNUC__)
#include <cpuid.h>
#define TCQ4_256 __attribute__((target("avx2,fma,f16c,avxvnni")))
#define TCQ4_256_INLINE static inline __attribute__((always_inline)) TCQ4_256
#else
#define TCQ4_256
#define TCQ4_256_INLINE static __forceinline
#endif

namespace {

TCQ4_256_INLINE __m256i dot_start(int32_t bias) {
    return _mm256_set1_epi32(bias);
}

TCQ4_256_INLINE __m256i dot_add(__m256i dot, __m256i w, __m256i q) {
    return _mm256_dpbusd_avx_epi32(dot, w, q);
}

TCQ4_256_INLINE __m256i dot_end(__m256i dot, int32_t) {
    return dot;
}

#include "tcq4-avx2-body.h"

int available(void) {
#if defined(__GNUC__)
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0; // not every compiler's __builtin_cpu_supports knows the name
    return tcq4_has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
#elif defined(__AVXVNNI__)
    return 1;
#else
    return 0;
#endif
}

} // namespace

const tcq4_kernels tcq4_kernels_avxvnni = { "avx-vnni", available, fwht, round_chunk, mul_mat };

#endif
