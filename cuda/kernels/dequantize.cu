// Tiles as f16 or f32 rows: decoded, the rotation undone, and the channels back in the model's order.
//
// Maths: w = (S*sc/127)*q + (Z*zc/127) in f32; then H w/16 over 256 columns; column perm[i] of y is stored column i.
// Mapping: a block a tile, a warp a row, lane l the columns 8*l .. 8*l + 7. Launch: rows/8*chunks blocks of 256 threads.
// Bound: memory; writes 2 (4) bytes a weight for 0.578 that are read. Where a permutation scatters the columns, writes of 2 bytes take 32 of the cache.
// Tolerance: none for f32; f16 is that rounded once.
// Predicted on an H200, not measured: f16 without permutation: 70 % of copy bandwidth.

#include "tcq4_decode.cuh"

template <typename value>
static __device__ __forceinline__ void tcq4_dequantize(
        const tcq4_tile * __restrict__ tiles, const int32_t * __restrict__ perm, int rotated, value * __restrict__ y, int chunks) {
    const int64_t stripe = blockIdx.x/chunks;
    const int     chunk  = (int) (blockIdx.x%chunks);
    const int     row    = threadIdx.x >> 5;
    const int     lane   = threadIdx.x & 31;
    const int     first  = TCQ4_CHUNK*chunk + 8*lane;
    value * out = y + (TCQ4_ROWS*stripe + row)*TCQ4_CHUNK*chunks;

    float v[8];
    tcq4_decode8(&tiles[blockIdx.x], row, lane, v);
    if (!rotated) {
        tcq4_warp_fwht(v, lane);
    }
    if (!perm) {
        tcq4_store8(out + first, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        tcq4_put(out + perm[first + i], v[i]);
    }
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_dequantize_f16(
        const tcq4_tile * __restrict__ tiles, const int32_t * __restrict__ perm, int rotated, uint16_t * __restrict__ y, int chunks) {
    tcq4_dequantize(tiles, perm, rotated, y, chunks);
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_dequantize_f32(
        const tcq4_tile * __restrict__ tiles, const int32_t * __restrict__ perm, int rotated, float * __restrict__ y, int chunks) {
    tcq4_dequantize(tiles, perm, rotated, y, chunks);
}
