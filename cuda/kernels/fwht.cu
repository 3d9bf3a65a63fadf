// The Walsh-Hadamard transform of every 256 values, in place.
//
// Maths: y = H x/16, H Sylvester's matrix of 256; sums and differences of pairs (j, j + h) for h = 1, 2, 4 .. 128 in f32, the order of tcq4_fwht256.
// Mapping: a warp a chunk, lane l holds values 8*l .. 8*l + 7: three stages in registers, five by shuffles.
// Launch: blocks of 256 threads, ceil(chunks/8) of them.
// Bound: memory; reads and writes each value once. Tolerance: none, same bits as the scalar function (f16: its result rounded once).
// Predicted on an H200, not measured: copy bandwidth.

#include "tcq4_act.cuh"

template <typename value> static __device__ __forceinline__ void tcq4_fwht_in_place(value * __restrict__ x, int64_t chunks) {
    const int64_t chunk = (int64_t) blockIdx.x*(blockDim.x/32) + threadIdx.x/32;
    if (chunk >= chunks) {
        return;
    }
    const int lane = threadIdx.x & 31;
    float v[8];
    tcq4_load8(x + chunk*TCQ4_CHUNK + 8*lane, v);
    tcq4_warp_fwht(v, lane);
    tcq4_store8(x + chunk*TCQ4_CHUNK + 8*lane, v);
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_fwht_f32(float * __restrict__ x, int64_t chunks) {
    tcq4_fwht_in_place(x, chunks);
}

TCQ4_KERNEL __launch_bounds__(256) tcq4_fwht_f16(uint16_t * __restrict__ x, int64_t chunks) {
    tcq4_fwht_in_place(x, chunks);
}
