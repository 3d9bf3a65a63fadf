// TCQ4_K32 with plain NEON, which every aarch64 CPU has: products are added in int16, where the 8 of a group (below 8*8*127) fit. Bound: ALU.

#include "tcq4-kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define TCQ4_NEON
#define TCQ4_NEON_INLINE static inline __attribute__((always_inline))

namespace {

// Lane 4*r + i adds the products of byte i of row r of a half.
struct dots {
    int16x8_t half[2][2];
};

TCQ4_NEON_INLINE dots dot_start(void) {
    const int16x8_t zero = vdupq_n_s16(0);
    return { { { zero, zero }, { zero, zero } } };
}

template <int lane, typename codes> TCQ4_NEON_INLINE void dot_add(dots * dot, const codes & w, int8x16_t q) {
    const int8x8_t dword = vreinterpret_s8_s32(vdup_laneq_s32(vreinterpretq_s32_s8(q), lane));
    TCQ4_UNROLL
    for (int h = 0; h < 2; ++h) {
        dot->half[h][0] = vmlal_s8(dot->half[h][0], vget_low_s8 (w.half[h]), dword);
        dot->half[h][1] = vmlal_s8(dot->half[h][1], vget_high_s8(w.half[h]), dword);
    }
}

TCQ4_NEON_INLINE int32x4_t dot_end(const dots & dot, int h) {
    return vpaddq_s32(vpaddlq_s16(dot.half[h][0]), vpaddlq_s16(dot.half[h][1]));
}

#include "tcq4-neon-body.h"

int available(void) {
    return 1;
}

} // namespace

const tcq4_kernels tcq4_kernels_neon = { "neon", available, fwht, round_chunk, mul_mat };

#endif
