// TCQ4_K32 with NEON and its dot product instruction (optional from ARMv8.2 on). Bound: ALU for many activation rows, memory for one.

#include "tcq4-kernels.h"

#if defined(TCQ4_DOTPROD)

#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__clang__)
#define TCQ4_NEON __attribute__((target("dotprod")))
#else
#define TCQ4_NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define TCQ4_NEON_INLINE static inline __attribute__((always_inline)) TCQ4_NEON

namespace {

struct dots {
    int32x4_t half[2];
};

TCQ4_NEON_INLINE dots dot_start(void) {
    return { { vdupq_n_s32(0), vdupq_n_s32(0) } };
}

template <int lane, typename codes> TCQ4_NEON_INLINE void dot_add(dots * dot, const codes & w, int8x16_t q) {
    dot->half[0] = vdotq_laneq_s32(dot->half[0], w.half[0], q, lane);
    dot->half[1] = vdotq_laneq_s32(dot->half[1], w.half[1], q, lane);
}

TCQ4_NEON_INLINE int32x4_t dot_end(const dots & dot, int h) {
    return dot.half[h];
}

#include "tcq4-neon-body.h"

int available(void) {
#if defined(__ARM_FEATURE_DOTPROD)
    return 1;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0; // HWCAP_ASIMDDP
#else
    return 0;
#endif
}

} // namespace

const tcq4_kernels tcq4_kernels_dotprod = { "neon-dotprod", available, fwht, round_chunk, mul_mat };

#endif
