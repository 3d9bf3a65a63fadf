// The default encoder: a search for the step and offset of every group that leave the least squared error.
//
// Windows over the range of the values and their neighbours are judged by what a least-squares fit of step and offset leaves. 45 fits of 11 instructions a
// weight; as in tcq4_encode_draft.cuh, every operation is rounded on its own.

#ifndef TCQ4_ENCODE_SEARCH_CUH
#define TCQ4_ENCODE_SEARCH_CUH

#include "tcq4_encode_draft.cuh"

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

#endif // TCQ4_ENCODE_SEARCH_CUH
