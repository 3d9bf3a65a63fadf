// Rows of weights to tiles, byte for byte what the Rust encoders make.
//
// Maths: H w/16 over 256 columns; parity: every group scaled by max/7 and rounded to the nearest; default: step and offset of every group searched for the
// least squared error, and each row as parity has it where that is not worse. See tcq4_encode.cuh for both and for the mapping (thread 8*row + group).
// Launch: rows/8*chunks blocks of 64 threads, a tile each. With a permutation channels are read one by one: for f16, 32 bytes of the cache for each.
// Bound: parity: memory, 2 or 4 bytes a weight read and 0.578 written; default: f32 instructions (nothing may be fused).
// Tolerance: none. No compiler flag changes a byte, for every operation is spelled out.
// Predicted on an H200, not measured: parity from f16: 1.0e12 weights/s, 0.76e12 with losses; default: 0.05e12.

#include "tcq4_encode.cuh"

#define TCQ4_ENCODE_KERNEL(name, search, value) \
    TCQ4_KERNEL __launch_bounds__(64) name( \
            const value * __restrict__ x, const int32_t * __restrict__ perm, int rotated, int chunks, tcq4_tile * __restrict__ tiles, \
            float * __restrict__ losses, int32_t * __restrict__ defects) { \
        tcq4_encode_tile<search>(x, perm, rotated, chunks, tiles, losses, defects); \
    }

TCQ4_ENCODE_KERNEL(tcq4_encode_parity_f32,  false, float)
TCQ4_ENCODE_KERNEL(tcq4_encode_parity_f16,  false, uint16_t)
TCQ4_ENCODE_KERNEL(tcq4_encode_default_f32, true,  float)
TCQ4_ENCODE_KERNEL(tcq4_encode_default_f16, true,  uint16_t)
