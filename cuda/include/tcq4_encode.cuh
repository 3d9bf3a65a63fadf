// Rows of weights to tiles, byte for byte as the Rust encoders: parity (tcq4_encode_draft.cuh) and default (tcq4_encode_search.cuh).
//
// A block of 64 threads makes a tile; thread 8*row + group holds the 32 values of a group.
//
// Bound: parity: memory, with about 30 instructions a weight not far from it. Default: f32 instructions, 45 fits of 11 a weight.

#ifndef TCQ4_ENCODE_CUH
#define TCQ4_ENCODE_CUH

#include "tcq4_encode_search.cuh"

static __device__ __forceinline__ void tcq4_put_draft(const tcq4_draft & draft, tcq4_tile * __restrict__ tile) {
    const int row   = threadIdx.x/TCQ4_GROUPS;
    const int group = threadIdx.x%TCQ4_GROUPS;
    *(uint4 *) &tile->codes[128*group + 16*row] = make_uint4(draft.codes[0], draft.codes[1], draft.codes[2], draft.codes[3]);
    tile->scale_code[threadIdx.x] = (int8_t) (int) draft.scale_code;
    tile->zero_code [threadIdx.x] = (int8_t) (int) draft.zero_code;
    if (group == 0) {
        tile->scale[row] = draft.scale;
        tile->zero [row] = draft.zero;
    }
}

// Makes tile blockIdx.x of a matrix; see kernels/encode.cu.
template <bool search, typename value>
static __device__ __forceinline__ void tcq4_encode_tile(
        const value * __restrict__ x, const int32_t * __restrict__ perm, int rotated, int chunks, tcq4_tile * __restrict__ tiles,
        float * __restrict__ losses, int32_t * __restrict__ defects) {
    __shared__ float stage[TCQ4_ENCODE_THREADS][TCQ4_GROUP + 1]; // a group each; one more, so that threads meet different banks
    const int64_t stripe = blockIdx.x/chunks;
    const int     chunk  = (int) (blockIdx.x%chunks);
    const int64_t k      = (int64_t) TCQ4_CHUNK*chunks;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row    = 2*i + threadIdx.x/32;
        const int column = 8*(threadIdx.x%32);
        float eight[8];
        tcq4_gather8(x + (TCQ4_ROWS*stripe + row)*k, perm, TCQ4_CHUNK*chunk + column, eight);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            stage[TCQ4_GROUPS*row + column/TCQ4_GROUP][column%TCQ4_GROUP + j] = eight[j];
        }
    }
    __syncthreads();
    float v[TCQ4_GROUP];
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        v[i] = stage[threadIdx.x][i];
    }
    // A value that is not finite makes all of its 256 so when they are rotated: one has to be looked at.
    bool finite = true;
    if (!rotated) {
        tcq4_row_fwht(v);
        finite = tcq4_is_finite(v[0]);
    } else {
#pragma unroll
        for (int i = 0; i < TCQ4_GROUP; ++i) {
            finite = finite && tcq4_is_finite(v[i]);
        }
    }
    const float largest = tcq4_largest_of(v);
    if (__syncthreads_or(!finite || largest > TCQ4_LARGEST_ROTATED)) {
        bool given = true;
        for (int i = 0; i < TCQ4_GROUP; ++i) {
            given = given && tcq4_is_finite(stage[threadIdx.x][i]);
        }
        const bool infinite = __syncthreads_or(!given);
        if (threadIdx.x == 0) {
            defects[blockIdx.x] = infinite ? 1 : 2;
        }
        return;
    }
    if (threadIdx.x == 0) {
        defects[blockIdx.x] = 0;
    }

    tcq4_draft draft;
    if (search) {
        tcq4_draft parity;
        tcq4_draft_default(v, draft);
        tcq4_draft_parity<true>(v, largest, parity);
        // the sums are in f32, and the promise not to be worse is about exact ones
        if (!(draft.error_sq <= tcq4_mul_exact(parity.error_sq, 1.0f - 1e-5f))) {
            draft = parity;
        }
    } else if (losses) {
        tcq4_draft_parity<true>(v, largest, draft);
    } else {
        tcq4_draft_parity<false>(v, largest, draft);
    }
    tcq4_put_draft(draft, &tiles[blockIdx.x]);
    if (losses) {
        const float sum_sq = tcq4_sum_of_squares(v);
        if (threadIdx.x%TCQ4_GROUPS == 0) {
            float * out = losses + 16*(int64_t) blockIdx.x + threadIdx.x/TCQ4_GROUPS;
            out[0]         = draft.error_sq;
            out[TCQ4_ROWS] = sum_sq;
        }
    }
}

#endif // TCQ4_ENCODE_CUH
