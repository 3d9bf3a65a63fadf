// Rows of a TCQ4 matrix as floats: a warp decodes 256 columns of a row, undoes the rotation and, where asked, the order of the columns.
//
// Bound: memory; 1 KiB is written for 148 bytes that are read (in pieces of 16 bytes, for the rows of a tile are interleaved).

#ifndef TCQ4_DECODE_CUH
#define TCQ4_DECODE_CUH

#include "tcq4_act.cuh"

// Decodes elements 8*lane .. 8*lane + 7 of a row of a tile, rotated as they are stored.
static __device__ __forceinline__ void tcq4_decode8(const tcq4_tile * __restrict__ tile, int row, int lane, float (&v)[8]) {
    const int      group  = lane/4;
    const uint32_t word   = *(const uint32_t *) &tile->codes[128*group + 16*row + 4*(lane%4)];
    const float    step   = tcq4_step(tile, row, group);
    const float    offset = tcq4_offset(tile, row, group);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int code = ((int) (word >> 4*i & 15u) ^ 8) - 8;
        v[i] = __fadd_rn(tcq4_mul(step, (float) code), offset);
    }
}

// Decodes columns 256*chunk .. of the row `row` of the matrix at `tiles`. With perm, column perm[i] of the result is stored column i.
static __device__ __forceinline__ void tcq4_decode_chunk(
        const tcq4_tile * __restrict__ tiles, int chunks, int64_t row, int chunk, const int32_t * __restrict__ perm, float * __restrict__ out) {
    const int lane = threadIdx.x & 31;
    float v[8];
    tcq4_decode8(&tiles[row/TCQ4_ROWS*chunks + chunk], (int) (row%TCQ4_ROWS), lane, v);
    tcq4_warp_fwht(v, lane);
    const int first = chunk*TCQ4_CHUNK + 8*lane;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        out[perm ? perm[first + i] : first + i] = v[i];
    }
}

#endif // TCQ4_DECODE_CUH
