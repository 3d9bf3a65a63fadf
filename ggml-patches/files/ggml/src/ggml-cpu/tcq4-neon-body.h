// TCQ4_K32 with NEON: 8 rows (a stripe) in the lanes of two vectors. Included once for each instruction set, which has defined
//   TCQ4_NEON         the target attribute
//   TCQ4_NEON_INLINE  the same for small functions
//   struct dots, dot_start(), dot_add<lane>(dot, w, q) with 4 codes of 8 rows and the lane-th dword of q, dot_end(dot, half)
//
// Layout. The 16 bytes of a row's group are transposed in dwords, so that a lane is a row and its 4 bytes are 4 consecutive even (or odd)
// elements; activations are one dword for all lanes. Signed bytes are multiplied, so there is no bias.

enum {
    ACTS      = 4,  // activation rows at once
    ACTS_MOST = 64, // activation rows for which tiles are widened once
};

// Two vectors: rows 0..3 and 4..7.
struct floats {
    float32x4_t half[2];
};

struct codes {
    int8x16_t half[2];
};

struct scales {
    floats step  [TCQ4_GROUPS]; // S*sc/127
    floats offset[TCQ4_GROUPS]; // Z*zc/127
};

struct panel {
    codes  w[TCQ4_GROUPS][8]; // the dwords are those of tcq4_act_chunk::q
    scales s;
};

TCQ4_NEON_INLINE floats load_halves(const uint16_t * halves) {
    floats f;
    for (int i = 0; i < 2; ++i) {
        f.half[i] = vdivq_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + 4*i))), vdupq_n_f32(127.0f));
    }
    return f;
}

TCQ4_NEON_INLINE void codes_times(const int8_t * bytes, floats unit, floats * out) {
    static const uint8_t rows[16] = { 0, 8, 16, 24, 32, 40, 48, 56, 1, 9, 17, 25, 33, 41, 49, 57 };
    uint8x16x4_t table;
    for (int i = 0; i < 4; ++i) {
        table.val[i] = vreinterpretq_u8_s8(vld1q_s8(bytes + 16*i));
    }
    for (int g = 0; g < TCQ4_GROUPS; g += 2) {
        const int8x16_t two = vreinterpretq_s8_u8(vqtbl4q_u8(table, vaddq_u8(vld1q_u8(rows), vdupq_n_u8((uint8_t) g))));
        const int16x8_t wide[2] = { vmovl_s8(vget_low_s8(two)), vmovl_s8(vget_high_s8(two)) };
        for (int i = 0; i < 2; ++i) {
            out[g + i].half[0] = vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16 (wide[i]))), unit.half[0]);
            out[g + i].half[1] = vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide[i]))), unit.half[1]);
        }
    }
}

TCQ4_NEON_INLINE void unpack_scales(const tcq4_tile * tile, scales * out) {
    codes_times(tile->scale_code, load_halves(tile->scale), out->step);
    codes_times(tile->zero_code,  load_halves(tile->zero),  out->offset);
}

// Widens a group of 8 rows to signed bytes.
TCQ4_NEON_INLINE void unpack_group(const tcq4_tile * tile, int g, codes * w) {
    TCQ4_UNROLL
    for (int h = 0; h < 2; ++h) {
        uint32x4_t r[4];
        TCQ4_UNROLL
        for (int i = 0; i < 4; ++i) {
            r[i] = vreinterpretq_u32_u8(vld1q_u8(tile->codes + 128*g + 64*h + 16*i));
        }
        const uint64x2_t a02 = vreinterpretq_u64_u32(vtrn1q_u32(r[0], r[1])); // dwords 0 and 2 of rows 0 and 1
        const uint64x2_t a13 = vreinterpretq_u64_u32(vtrn2q_u32(r[0], r[1]));
        const uint64x2_t b02 = vreinterpretq_u64_u32(vtrn1q_u32(r[2], r[3]));
        const uint64x2_t b13 = vreinterpretq_u64_u32(vtrn2q_u32(r[2], r[3]));
        const uint64x2_t packed[4] = { vtrn1q_u64(a02, b02), vtrn1q_u64(a13, b13), vtrn2q_u64(a02, b02), vtrn2q_u64(a13, b13) };
        TCQ4_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int8x16_t bytes = vreinterpretq_s8_u64(packed[j]);
            w[j].half[h]     = vshrq_n_s8(vshlq_n_s8(bytes, 4), 4);
            w[j + 4].half[h] = vshrq_n_s8(bytes, 4);
        }
    }
}

TCQ4_NEON_INLINE const tcq4_act_chunk * act(const char * acts, size_t stride, int m) {
    return (const tcq4_act_chunk *) (acts + m*stride);
}

// Adds a group of a stripe times N activation rows.
template <int N> TCQ4_NEON_INLINE void add_group(const codes * w, const scales & s, int g, const char * acts, size_t stride, floats * sums) {
    dots dot[N];
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        dot[m] = dot_start();
    }
    TCQ4_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
        TCQ4_UNROLL
        for (int m = 0; m < N; ++m) {
            const int8x16_t q = vld1q_s8(act(acts, stride, m)->q + 32*g + 16*odd);
            dot_add<0>(&dot[m], w[4*odd],     q);
            dot_add<1>(&dot[m], w[4*odd + 1], q);
            dot_add<2>(&dot[m], w[4*odd + 2], q);
            dot_add<3>(&dot[m], w[4*odd + 3], q);
        }
    }
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        const tcq4_act_chunk * a = act(acts, stride, m);
        TCQ4_UNROLL
        for (int h = 0; h < 2; ++h) {
            const float32x4_t product = vmulq_f32(vcvtq_f32_s32(dot_end(dot[m], h)), s.step[g].half[h]);
            sums[m].half[h] = vfmaq_f32(sums[m].half[h], product, vdupq_n_f32(a->d[g]));
            sums[m].half[h] = vfmaq_f32(sums[m].half[h], s.offset[g].half[h], vdupq_n_f32(a->ds[g]));
        }
    }
}

template <int N> TCQ4_NEON void add_panel(const panel & p, const char * acts, size_t stride, floats * sums_at) {
    floats sums[N];
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        sums[m] = sums_at[m];
    }
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        add_group<N>(p.w[g], p.s, g, acts, stride, sums);
    }
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        sums_at[m] = sums[m];
    }
}

TCQ4_NEON_INLINE void store(const tcq4_kernels_args * args, int64_t s, int64_t m, floats sum) {
    float * dst = args->dst + m*args->dst_stride + s*TCQ4_ROWS;
    vst1q_f32(dst,     sum.half[0]);
    vst1q_f32(dst + 4, sum.half[1]);
}

TCQ4_NEON_INLINE floats zeros(void) {
    return { { vdupq_n_f32(0.0f), vdupq_n_f32(0.0f) } };
}

// n <= ACTS_MOST activation rows from `first` on, times stripe s.
TCQ4_NEON void gemm(const tcq4_kernels_args * args, int64_t s, int64_t first, int64_t n) {
    panel  p;
    floats sums[ACTS_MOST];
    for (int64_t m = 0; m < n; ++m) {
        sums[m] = zeros();
    }
    for (int64_t t = 0; t < args->n_tiles; ++t) {
        const tcq4_tile * tile = args->tiles + s*args->n_tiles + t;
        unpack_scales(tile, &p.s);
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            unpack_group(tile, g, p.w[g]);
        }
        const size_t stride = args->act_stride;
        const char * acts   = args->acts + first*stride + t*sizeof(tcq4_act_chunk);
        int64_t m = 0;
        for (; m + ACTS <= n; m += ACTS) {
            add_panel<ACTS>(p, acts + m*stride, stride, sums + m);
        }
        for (; m < n; ++m) {
            add_panel<1>(p, acts + m*stride, stride, sums + m);
        }
    }
    for (int64_t m = 0; m < n; ++m) {
        store(args, s, first + m, sums[m]);
    }
}

// One activation row times stripe s: codes go straight from memory to registers.
TCQ4_NEON void gemv(const tcq4_kernels_args * args, int64_t s) {
    floats sum = zeros();
    for (int64_t t = 0; t < args->n_tiles; ++t) {
        const tcq4_tile * tile = args->tiles + s*args->n_tiles + t;
        scales scale;
        unpack_scales(tile, &scale);
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            codes w[8];
            unpack_group(tile, g, w);
            add_group<1>(w, scale, g, args->acts + t*sizeof(tcq4_act_chunk), 0, &sum);
        }
    }
    store(args, s, 0, sum);
}

TCQ4_NEON void mul_mat(const tcq4_kernels_args * args) {
    for (int64_t s = 0; s < args->n_stripes && args->n_acts == 1; ++s) {
        gemv(args, s);
    }
    for (int64_t first = 0; first < args->n_acts && args->n_acts > 1; first += ACTS_MOST) {
        const int64_t left = args->n_acts - first;
        for (int64_t s = 0; s < args->n_stripes; ++s) {
            gemm(args, s, first, left < ACTS_MOST ? left : (int64_t) ACTS_MOST);
        }
    }
}

// --- activations ---

// The stages between eight vectors, in the order of their distance.
TCQ4_NEON_INLINE void butterflies(float32x4_t * v) {
    TCQ4_UNROLL
    for (int h = 1; h < 8; h *= 2) {
        TCQ4_UNROLL
        for (int i = 0; i < 8; ++i) {
            if ((i & h) == 0) {
                const float32x4_t a = v[i], b = v[i + h];
                v[i]     = vaddq_f32(a, b);
                v[i + h] = vsubq_f32(a, b);
            }
        }
    }
}

TCQ4_NEON void fwht(float * x, int64_t n_chunks) {
    static const float signs[2][4] = { { 1, -1, 1, -1 }, { 1, 1, -1, -1 } };
    const float32x4_t s1 = vld1q_f32(signs[0]), s2 = vld1q_f32(signs[1]);
    for (int64_t c = 0; c < n_chunks; ++c, x += TCQ4_CHUNK) {
        float32x4_t v[8];
        for (int block = 0; block < TCQ4_CHUNK; block += 32) { // h = 1 .. 16
            TCQ4_UNROLL
            for (int i = 0; i < 8; ++i) {
                v[i] = vld1q_f32(x + block + 4*i);
                v[i] = vfmaq_f32(vrev64q_f32(v[i]), v[i], s1); // x * +-1 is exact
                v[i] = vfmaq_f32(vextq_f32(v[i], v[i], 2), v[i], s2);
            }
            butterflies(v);
            TCQ4_UNROLL
            for (int i = 0; i < 8; ++i) {
                vst1q_f32(x + block + 4*i, v[i]);
            }
        }
        for (int i = 0; i < 32; i += 4) { // h = 32, 64, 128
            TCQ4_UNROLL
            for (int k = 0; k < 8; ++k) {
                v[k] = vld1q_f32(x + 32*k + i);
            }
            butterflies(v);
            TCQ4_UNROLL
            for (int k = 0; k < 8; ++k) {
                vst1q_f32(x + 32*k + i, vmulq_n_f32(v[k], 0.0625f));
            }
        }
    }
}

// Bit for bit as tcq4_act_symmetric with 127.
TCQ4_NEON_INLINE void round_group_int8(const float * x, int g, tcq4_act_chunk * out) {
    uint32x4_t largest = vdupq_n_u32(0);
    TCQ4_UNROLL
    for (int i = 0; i < 8; ++i) {
        largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + 4*i)), vdupq_n_u32(0x7fffffff)));
    }
    const float found   = tcq4_float_of_bits(vmaxvq_u32(largest));
    const float max     = found < TCQ4_TINY ? 1.0f : found;
    const float inverse = 127.0f/max;
    int16x8_t q[4];
    TCQ4_UNROLL
    for (int i = 0; i < 4; ++i) {
        const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 8*i),     inverse)); // ties to even
        const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 8*i + 4), inverse));
        q[i] = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
    }
    const int8x16_t low  = vcombine_s8(vqmovn_s16(q[0]), vqmovn_s16(q[1]));
    const int8x16_t high = vcombine_s8(vqmovn_s16(q[2]), vqmovn_s16(q[3]));
    vst1q_s8(out->q + 32*g,      vuzp1q_s8(low, high));
    vst1q_s8(out->q + 32*g + 16, vuzp2q_s8(low, high));
    const int32_t sum = vaddlvq_s8(low) + vaddlvq_s8(high);
    out->d   [g] = max <= 3.402823466e38f ? max/127.0f : tcq4_float_of_bits(0x7fc00000u);
    out->ds  [g] = out->d[g]*(float) sum;
    out->bias[g] = TCQ4_MAGIC_BITS - 8*sum;
}

TCQ4_NEON void round_chunk(enum tcq4_act_path path, const float * x, tcq4_act_chunk * out) {
    if (path != TCQ4_ACT_INT8) {
        tcq4_act_round_scalar(path, x, out);
        return;
    }
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        round_group_int8(x + 32*g, g, out);
    }
}
