// Rows of weights to tiles, byte for byte as the Rust encoders: parity (nearest codes, as llama.cpp-rrs) and default (a search for the least squared error).
//
// A block of 64 threads makes a tile; thread 8*row + group holds the 32 values of a group in registers, so every sum over a group is added in one
// thread, in order, and rows are 8 neighbouring lanes. All arithmetic is rounded operation by operation (tcq4_*_exact), so no flag changes a byte.
// The search: windows over the range of the values and their neighbours are judged by what a least-squares fit of step and offset leaves.
//
// Bound: parity: memory, with about 30 instructions a weight not far from it. Default: f32 instructions, 45 fits of 11 a weight.

#ifndef TCQ4_ENCODE_CUH
#define TCQ4_ENCODE_CUH

#include "tcq4_act.cuh"

#define TCQ4_ENCODE_THREADS 64
#define TCQ4_LARGEST_ROTATED (7.0f*65504.0f) // a seventh of it is the largest finite fp16

// What a thread knows of its group in a tile in the making.
struct tcq4_draft {
    uint32_t codes[4];   // 8 of 4 bits each
    float    scale_code, zero_code;
    uint16_t scale, zero; // of the row
    float    error_sq;    // of the row
};

static __device__ __forceinline__ float tcq4_min(float a, float b) { return a < b ? a : b; }
static __device__ __forceinline__ float tcq4_max(float a, float b) { return a > b ? a : b; }

// Rounds to the nearest integer, ties to even, for magnitudes below 2^22.
static __device__ __forceinline__ float tcq4_even_exact(float x) { return tcq4_sub_exact(tcq4_add_exact(x, 12582912.0f), 12582912.0f); }

static __device__ __forceinline__ float tcq4_code_exact(float x) { return tcq4_even_exact(tcq4_min(tcq4_max(x, -8.0f), 7.0f)); }

// 1/x, or 0 where that could overflow.
static __device__ __forceinline__ float tcq4_invert(float x) {
    const bool small = tcq4_abs(x) < 1e-30f;
    const float inverse = tcq4_div_exact(1.0f, small ? 1e-30f : x);
    return small ? 0.0f : inverse;
}

static __device__ __forceinline__ bool tcq4_is_finite(float x) { return (tcq4_bits_of_float(x) & 0x7f800000u) != 0x7f800000u; }

// --- among the 8 lanes of a row ---

static __device__ __forceinline__ float tcq4_row_max(float x) {
#pragma unroll
    for (int h = 1; h < 8; h *= 2) {
        x = tcq4_max(x, __shfl_xor_sync(TCQ4_ALL_LANES, x, h));
    }
    return x;
}

// First groups g and g + 4, then these in order.
static __device__ __forceinline__ float tcq4_row_sum(float x) {
    const int first = threadIdx.x & 24;
    x = tcq4_add_exact(x, __shfl_xor_sync(TCQ4_ALL_LANES, x, 4));
    float sum = __shfl_sync(TCQ4_ALL_LANES, x, first);
#pragma unroll
    for (int i = 1; i < 4; ++i) {
        sum = tcq4_add_exact(sum, __shfl_sync(TCQ4_ALL_LANES, x, first + i));
    }
    return sum;
}

// The FWHT of a row that lies in 8 lanes of 32 values: additions in the order of tcq4_fwht256.
static __device__ __forceinline__ void tcq4_row_fwht(float (&v)[TCQ4_GROUP]) {
#pragma unroll
    for (int h = 1; h < TCQ4_GROUP; h *= 2) {
#pragma unroll
        for (int i = 0; i < TCQ4_GROUP; ++i) {
            if ((i & h) == 0) {
                const float a = v[i];
                const float b = v[i + h];
                v[i]     = tcq4_add_exact(a, b);
                v[i + h] = tcq4_sub_exact(a, b);
            }
        }
    }
#pragma unroll
    for (int h = 1; h < 8; h *= 2) {
        // a + b or a - b, where the upper lane has b: 1*a + b or -1*b + a, rounded once, is the same
        const float sign = (threadIdx.x & h) == 0 ? 1.0f : -1.0f;
#pragma unroll
        for (int i = 0; i < TCQ4_GROUP; ++i) {
            const float other = __shfl_xor_sync(TCQ4_ALL_LANES, v[i], h);
            v[i] = tcq4_fma_exact(v[i], sign, other);
        }
    }
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        v[i] = tcq4_mul_exact(v[i], 0.0625f);
    }
}

static __device__ __forceinline__ float tcq4_sum_of_squares(const float (&v)[TCQ4_GROUP]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        sum = tcq4_add_exact(sum, tcq4_mul_exact(v[i], v[i]));
    }
    return tcq4_row_sum(sum);
}

static __device__ __forceinline__ float tcq4_largest_of(const float (&v)[TCQ4_GROUP]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        largest = tcq4_max(largest, tcq4_abs(v[i]));
    }
    return largest;
}

// Eight codes, -8 .. 7, as nibbles, the first in the lowest: their sum with powers of 16, where each is 8 more than it is so that none borrows from the next.
static __device__ __forceinline__ uint32_t tcq4_pack(const int (&q)[8]) {
    uint32_t sum = 0;
#pragma unroll
    for (int i = 7; i >= 0; --i) {
        sum = (sum << 4) + (uint32_t) q[i];
    }
    return (sum + 0x88888888u) ^ 0x88888888u;
}

// --- parity ---

// Rounds to the nearest integer, ties away from zero, for magnitudes below 2^22: what is added is the number below 1/2, so that ties reach the next
// integer by the rounding of the sum and nothing else does.
static __device__ __forceinline__ int tcq4_away_int(float x) {
    const uint32_t below_half = 0x3effffffu | (tcq4_bits_of_float(x) & 0x80000000u);
    return (int) tcq4_add_exact(x, tcq4_float_of_bits(below_half));
}

template <bool wants_error> static __device__ __forceinline__ void tcq4_draft_parity(const float (&v)[TCQ4_GROUP], float largest, tcq4_draft & draft) {
    float scale = tcq4_div_exact(largest, 7.0f);
    scale = scale < TCQ4_TINY ? 1.0f : scale;
    const float top = tcq4_row_max(scale);
    draft.scale      = tcq4_narrow(top);
    draft.zero       = 0;
    draft.zero_code  = 0.0f;
    draft.scale_code = tcq4_min((float) tcq4_away_int(tcq4_mul_exact(tcq4_div_exact(scale, top), 127.0f)), 127.0f);
    const float step    = wants_error ? tcq4_div_exact(tcq4_mul_exact(tcq4_wide(draft.scale), draft.scale_code), 127.0f) : 0.0f;
    const float inverse = tcq4_div_exact(1.0f, scale);
    float error_sq = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        int q[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float value = v[8*j + i];
            q[i] = tcq4_away_int(tcq4_mul_exact(value, inverse)); // at most 7, for 1/scale is within a rounding of 7/largest
            if (wants_error) {
                const float error = tcq4_sub_exact(value, tcq4_mul_exact(step, (float) q[i]));
                error_sq = tcq4_add_exact(error_sq, tcq4_mul_exact(error, error));
            }
        }
        draft.codes[j] = tcq4_pack(q);
    }
    draft.error_sq = wants_error ? tcq4_row_sum(error_sq) : 0.0f;
}

// --- default ---

struct tcq4_grid {
    float step, offset;
};

// A fit of step and offset to the codes of a group.
struct tcq4_fit {
    float step;
    float mean_code;
    float gain; // by how much it lowers the squared error below that of the mean
};

static __device__ __forceinline__ tcq4_fit tcq4_fit_codes(const float (&centred)[TCQ4_GROUP], float inverse, float shift) {
    float code_sum[2] = {}, code_sq[2] = {}, product[2] = {};
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        const float code = tcq4_code_exact(tcq4_add_exact(tcq4_mul_exact(centred[i], inverse), shift));
        code_sum[i%2] = tcq4_add_exact(code_sum[i%2], code);
        code_sq [i%2] = tcq4_add_exact(code_sq [i%2], tcq4_mul_exact(code, code));
        product [i%2] = tcq4_add_exact(product [i%2], tcq4_mul_exact(code, centred[i]));
    }
    tcq4_fit fit;
    fit.mean_code = tcq4_mul_exact(tcq4_add_exact(code_sum[0], code_sum[1]), 1.0f/32);
    const float sum_sq = tcq4_add_exact(code_sq[0], code_sq[1]);
    const float both   = tcq4_add_exact(product[0], product[1]);
    // The spread of integers that are not all equal is at least 31/32.
    const float spread = tcq4_max(tcq4_sub_exact(sum_sq, tcq4_mul_exact(tcq4_mul_exact(fit.mean_code, fit.mean_code), 32.0f)), 0.5f);
    fit.step = tcq4_div_exact(both, spread);
    fit.gain = tcq4_mul_exact(fit.step, both);
    return fit;
}

static __device__ __forceinline__ void tcq4_keep_better(tcq4_fit & best, const tcq4_fit & other) {
    if (best.gain < other.gain) {
        best = other;
    }
}

// The number of codes that a window cuts off on a side; the negative one leaves a quarter free.
static __device__ __forceinline__ float tcq4_cut(int i) { return i == 0 ? -0.25f : i == 1 ? 0.5f : i == 2 ? 1.5f : 3.0f; }

static __device__ __forceinline__ tcq4_grid tcq4_search(const float (&v)[TCQ4_GROUP]) {
    float low = v[0], high = v[0], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        low  = tcq4_min(low, v[i]);
        high = tcq4_max(high, v[i]);
        sum  = tcq4_add_exact(sum, v[i]);
    }
    const float mean = tcq4_mul_exact(sum, 1.0f/32);
    float centred[TCQ4_GROUP];
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        centred[i] = tcq4_sub_exact(v[i], mean);
    }
    // Without offset, the extreme on code -8. Counts as a little better than it is, so that it wins when others are equal: it can be stored exactly.
    const float extreme    = -low < high ? high : low;
    const float plain_step = tcq4_mul_exact(extreme, -1.0f/8);
    float inverse = tcq4_invert(plain_step);
    tcq4_fit best = tcq4_fit_codes(centred, inverse, tcq4_mul_exact(mean, inverse));
    best.gain = tcq4_mul_exact(best.gain, 1.0f + 1.0f/262144);

    const float range = tcq4_sub_exact(high, low);
    const float start = tcq4_sub_exact(low, mean);
    const float unit  = tcq4_invert(range);
#pragma unroll 1
    for (int i = -1; i < 16; ++i) {
        const float below = i < 0 ? 0.0f : tcq4_cut(i/4);
        const float above = i < 0 ? 0.0f : tcq4_cut(i%4);
        inverse = tcq4_mul_exact(unit, 15.0f + below + above); // quarters: exact
        tcq4_keep_better(best, tcq4_fit_codes(centred, inverse, tcq4_sub_exact(-8.0f - below, tcq4_mul_exact(start, inverse))));
    }
#pragma unroll 1
    for (float reach = 2.0f; reach >= 0.5f; reach *= 0.5f) {
        const float middle  = best.mean_code;
        const float nearest = tcq4_invert(best.step);
        // itself, then narrower and wider, shifted down and up: two bits a move, 1 + what it is
        const uint32_t stretches = 1u | (2u | 0u << 2 | 2u << 4 | 0u << 6 | 2u << 8 | 0u << 10 | 1u << 12 | 1u << 14) << 2;
        const uint32_t shifts    = 1u | (2u | 2u << 2 | 0u << 4 | 0u << 6 | 1u << 8 | 1u << 10 | 2u << 12 | 0u << 14) << 2;
#pragma unroll 1
        for (int i = 0; i < 9; ++i) {
            const float stretch = (float) ((int) (stretches >> 2*i & 3u) - 1);
            const float shift   = (float) ((int) (shifts    >> 2*i & 3u) - 1);
            const float factor  = tcq4_add_exact(1.0f, tcq4_mul_exact(tcq4_mul_exact(0.04f, reach), stretch));
            const float move    = tcq4_mul_exact(tcq4_mul_exact(0.2f, reach), shift);
            tcq4_keep_better(best, tcq4_fit_codes(centred, tcq4_mul_exact(nearest, factor), tcq4_add_exact(middle, move)));
        }
    }
    const tcq4_grid plain  = { plain_step, 0.0f };
    const tcq4_grid fitted = { best.step, tcq4_sub_exact(mean, tcq4_mul_exact(best.step, best.mean_code)) };
    return tcq4_mul_exact(tcq4_abs(extreme), 1e-6f) < range ? fitted : plain; // else all are the same
}

// Rounds to the nearest fp16, but upwards where that would cost more than a thousandth (subnormals), and never to infinity.
static __device__ __forceinline__ uint16_t tcq4_row_half(float value) {
    const uint16_t nearest = tcq4_narrow(tcq4_min(value, 65504.0f));
    const bool     is_short = tcq4_wide(nearest) < tcq4_mul_exact(value, 0.999f) && nearest < 0x7bff;
    return (uint16_t) (nearest + is_short);
}

static __device__ __forceinline__ float tcq4_clamp_code(float code) { return tcq4_min(tcq4_max(code, -127.0f), 127.0f); }

// What a code of a row's scale stands for.
static __device__ __forceinline__ float tcq4_coded(float value, float code) { return tcq4_div_exact(tcq4_mul_exact(value, code), 127.0f); }

// The squared error that coding with a step and an offset leaves.
static __device__ __forceinline__ float tcq4_loss(const float (&v)[TCQ4_GROUP], float step, float offset) {
    const float inverse = tcq4_invert(step);
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        const float code  = tcq4_code_exact(tcq4_mul_exact(tcq4_sub_exact(v[i], offset), inverse));
        const float error = tcq4_sub_exact(v[i], tcq4_add_exact(tcq4_mul_exact(step, code), offset));
        sums[i%2] = tcq4_add_exact(sums[i%2], tcq4_mul_exact(error, error));
    }
    return tcq4_add_exact(sums[0], sums[1]);
}

static __device__ __forceinline__ void tcq4_draft_default(const float (&v)[TCQ4_GROUP], tcq4_draft & draft) {
    tcq4_grid grid = tcq4_search(v);

    // A row whose offsets are no more than rounding explains has none. Elsewhere steps become positive, by the mirror image of the grid.
    const float excess = tcq4_row_max(tcq4_sub_exact(tcq4_abs(grid.offset), tcq4_mul_exact(tcq4_abs(grid.step), 1.0f/65536)));
    if (excess < 0.0f) {
        grid.offset = 0.0f;
    } else if (grid.step < 0.0f) {
        grid.offset = tcq4_sub_exact(grid.offset, grid.step);
        grid.step   = -grid.step;
    }
    draft.scale = tcq4_row_half(tcq4_row_max(tcq4_abs(grid.step)));
    draft.zero  = tcq4_row_half(tcq4_row_max(tcq4_abs(grid.offset)));

    // The nearest codes and their neighbours are tried.
    const float scale = tcq4_wide(draft.scale);
    const float zero  = tcq4_wide(draft.zero);
    const float scale_code = tcq4_clamp_code(tcq4_even_exact(tcq4_clamp_code(tcq4_mul_exact(grid.step,   tcq4_mul_exact(127.0f, tcq4_invert(scale))))));
    const float zero_code  = tcq4_clamp_code(tcq4_even_exact(tcq4_clamp_code(tcq4_mul_exact(grid.offset, tcq4_mul_exact(127.0f, tcq4_invert(zero))))));
    float error_sq = 0.0f;
#pragma unroll 1
    for (int i = 0; i < 5; ++i) {
        const float try_scale = i == 0 ? scale_code : tcq4_clamp_code(tcq4_add_exact(scale_code, i == 1 ? 1.0f : i == 2 ? -1.0f : 0.0f));
        const float try_zero  = i == 0 ? zero_code  : tcq4_clamp_code(tcq4_add_exact(zero_code,  i == 3 ? 1.0f : i == 4 ? -1.0f : 0.0f));
        const float loss = tcq4_loss(v, tcq4_coded(scale, try_scale), tcq4_coded(zero, try_zero));
        if (i == 0 || loss < error_sq) {
            error_sq         = loss;
            draft.scale_code = try_scale;
            draft.zero_code  = try_zero;
        }
    }

    const float step    = tcq4_coded(scale, draft.scale_code);
    const float offset  = tcq4_coded(zero, draft.zero_code);
    const float inverse = tcq4_invert(step);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        int q[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            q[i] = (int) tcq4_code_exact(tcq4_mul_exact(tcq4_sub_exact(v[8*j + i], offset), inverse));
        }
        draft.codes[j] = tcq4_pack(q);
    }
    draft.error_sq = tcq4_row_sum(error_sq);
}

// --- a tile ---

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
