// TCQ4_K32 in plain C++: the reference of every faster kernel, and what runs where there is none.
//
// Bound: ALU. A tile is unpacked once per call and reused for all activation rows.

#include "tcq4-kernels.h"

namespace {

// The weights of a tile with 4 bits widened to 8, in the element order of tcq4_act_chunk.
struct unpacked_tile {
    int8_t q[TCQ4_ROWS][TCQ4_CHUNK];
    float  step[TCQ4_ROWS][TCQ4_GROUPS];
    float  offset[TCQ4_ROWS][TCQ4_GROUPS];
};

void unpack(const tcq4_tile * tile, unpacked_tile * out) {
    for (int row = 0; row < TCQ4_ROWS; ++row) {
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            out->step  [row][g] = tcq4_step  (tile, row, g);
            out->offset[row][g] = tcq4_offset(tile, row, g);
            const uint8_t * codes = tile->codes + 128*g + 16*row;
            for (int i = 0; i < 16; ++i) {
                out->q[row][32*g + i]      = (int8_t) (((codes[i] & 15) ^ 8) - 8);
                out->q[row][32*g + i + 16] = (int8_t) (((codes[i] >> 4) ^ 8) - 8);
            }
        }
    }
}

float dot(const unpacked_tile & w, int row, const tcq4_act_chunk * a, float sum) {
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        int32_t dot = 0;
        for (int i = 32*g; i < 32*g + 32; ++i) {
            dot += w.q[row][i]*a->q[i];
        }
        sum += a->d[g]*(w.step[row][g]*(float) dot) + a->ds[g]*w.offset[row][g];
    }
    return sum;
}

void mul_mat(const tcq4_kernels_args * args) {
    unpacked_tile w;
    for (int64_t s = 0; s < args->n_stripes; ++s) {
        float * dst = args->dst + s*TCQ4_ROWS;
        for (int64_t t = 0; t < args->n_tiles; ++t) {
            unpack(args->tiles + s*args->n_tiles + t, &w);
            for (int64_t m = 0; m < args->n_acts; ++m) {
                for (int row = 0; row < TCQ4_ROWS; ++row) {
                    float & y = dst[m*args->dst_stride + row];
                    y = dot(w, row, tcq4_act_at(args, m, t), t == 0 ? 0.0f : y);
                }
            }
        }
    }
}

void fwht(float * x, int64_t n_chunks) {
    for (int64_t i = 0; i < n_chunks; ++i) {
        tcq4_fwht256(x + i*TCQ4_CHUNK);
    }
}

int available(void) {
    return 1;
}

// Stores codes that are in natural order, with what the kernels need besides.
void store(const int8_t * q, const float * d, tcq4_act_chunk * out) {
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        int32_t sum = 0;
        for (int i = 0; i < 16; ++i) {
            out->q[32*g + i]      = q[32*g + 2*i];
            out->q[32*g + i + 16] = q[32*g + 2*i + 1];
            sum += q[32*g + 2*i] + q[32*g + 2*i + 1];
        }
        out->d   [g] = d[g];
        out->ds  [g] = d[g]*(float) sum;
        out->bias[g] = TCQ4_MAGIC_BITS - 8*sum;
    }
}

} // namespace

void tcq4_act_round_scalar(enum tcq4_act_path path, const float * x, tcq4_act_chunk * out) {
    int8_t q[TCQ4_CHUNK];
    float  d[TCQ4_GROUPS];
    if (path == TCQ4_ACT_INT8 || path == TCQ4_ACT_INT4_G32) {
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            d[g] = path == TCQ4_ACT_INT8 ? tcq4_act_symmetric(x + 32*g, 32, 127.0f, q + 32*g)
                                         : tcq4_act_signed   (x + 32*g, 32,   1.0f, q + 32*g);
        }
    } else {
        const float scale = path == TCQ4_ACT_INT4_FORK ? tcq4_act_symmetric(x, TCQ4_CHUNK, 7.0f, q)
                                                       : tcq4_act_signed   (x, TCQ4_CHUNK, 0.9f, q);
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            d[g] = scale;
        }
    }
    store(q, d, out);
}

const tcq4_kernels tcq4_kernels_scalar = { "scalar", available, fwht, tcq4_act_round_scalar, mul_mat };
