// TCQ4_K32 with 256-bit vectors: 8 rows (a stripe) in the lanes of a vector. Included once for each instruction set, which has defined
//   TCQ4_256         the target attribute
//   TCQ4_256_INLINE  the same for small functions
//   dot_start(bias), dot_add(dot, w, q), dot_end(dot, bias): a dot product of 8 times 4 bytes; dot_end gives the accumulator of tcq4-kernels.h
//
// Layout as in tcq4-avx512.cpp: dwords are transposed, so that a lane is a row and activations are broadcast dwords.
// With few registers the sums of a GEMM lie in L1; two stripes and four activation rows share their loads.

enum {
    STRIPES   = 2,  // stripes at once
    ACTS      = 4,  // activation rows at once
    ACTS_MOST = 64, // activation rows for which tiles are widened once
    AHEAD     = 2,  // tiles by which prefetching is ahead
    LINES     = 3,  // cache lines that are prefetched with a group, so that 8 groups cover a tile
};

struct scales {
    __m256 step  [TCQ4_GROUPS]; // S*sc/127, cut to 22 bits
    __m256 magic [TCQ4_GROUPS]; // -step * 1.5*2^23
    __m256 offset[TCQ4_GROUPS]; // Z*zc/127
};

struct panel {
    __m256i w[TCQ4_GROUPS][8]; // codes + 8; the dwords are those of tcq4_act_chunk::q
    scales  s;
};

// The lanes of a vector are the rows 0 2 4 6 1 3 5 7.

TCQ4_256_INLINE __m256 load_halves(const uint16_t * halves) {
    const __m128i lanes = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    return _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) halves), lanes));
}

template <int byte> TCQ4_256_INLINE __m256 code_times(__m256i dwords, __m256 unit) {
    const __m256i code = _mm256_srai_epi32(_mm256_slli_epi32(dwords, 24 - 8*byte), 24);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(code), unit);
}

// Four groups of [row][group] bytes from dwords that shuffle_ps has brought to the rows 0 1 4 5 2 3 6 7.
TCQ4_256_INLINE void four_codes_times(__m256 shuffled, __m256 unit, __m256 * out) {
    const __m256i dwords = _mm256_permutevar8x32_epi32(_mm256_castps_si256(shuffled), _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7));
    out[0] = code_times<0>(dwords, unit);
    out[1] = code_times<1>(dwords, unit);
    out[2] = code_times<2>(dwords, unit);
    out[3] = code_times<3>(dwords, unit);
}

TCQ4_256_INLINE void codes_times(const int8_t * codes, __m256 unit, __m256 * out) {
    const __m256 low  = _mm256_loadu_ps((const float *) codes); // rows 0..3, two dwords each
    const __m256 high = _mm256_loadu_ps((const float *) (codes + 32));
    four_codes_times(_mm256_shuffle_ps(low, high, 0x88), unit, out);
    four_codes_times(_mm256_shuffle_ps(low, high, 0xdd), unit, out + 4);
}

TCQ4_256_INLINE void unpack_scales(const tcq4_tile * tile, scales * out) {
    const __m256 divisor = _mm256_set1_ps(127.0f);
    codes_times(tile->scale_code, _mm256_div_ps(load_halves(tile->scale), divisor), out->step);
    codes_times(tile->zero_code,  _mm256_div_ps(load_halves(tile->zero),  divisor), out->offset);
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        out->step [g] = _mm256_and_ps(out->step[g], _mm256_castsi256_ps(_mm256_set1_epi32(~3)));
        out->magic[g] = _mm256_mul_ps(out->step[g], _mm256_set1_ps(-TCQ4_MAGIC_FLOAT));
    }
}

// Widens a group of 8 rows to bytes of 0..15.
TCQ4_256_INLINE void unpack_group(const tcq4_tile * tile, int g, __m256i * w) {
    const __m256i * codes = (const __m256i *) (tile->codes + 128*g);
    const __m256i r01 = _mm256_loadu_si256(codes);
    const __m256i r23 = _mm256_loadu_si256(codes + 1);
    const __m256i r45 = _mm256_loadu_si256(codes + 2);
    const __m256i r67 = _mm256_loadu_si256(codes + 3);
    const __m256i a01 = _mm256_unpacklo_epi32(r01, r23); // dwords 0 and 1 of the rows
    const __m256i a23 = _mm256_unpackhi_epi32(r01, r23);
    const __m256i b01 = _mm256_unpacklo_epi32(r45, r67);
    const __m256i b23 = _mm256_unpackhi_epi32(r45, r67);
    const __m256i packed[4] = {
        _mm256_unpacklo_epi64(a01, b01), _mm256_unpackhi_epi64(a01, b01),
        _mm256_unpacklo_epi64(a23, b23), _mm256_unpackhi_epi64(a23, b23),
    };
    const __m256i nibbles = _mm256_set1_epi8(15);
    TCQ4_UNROLL
    for (int j = 0; j < 4; ++j) {
        const __m256i shifted = _mm256_xor_si256(packed[j], _mm256_set1_epi8((char) 0x88));
        w[j]     = _mm256_and_si256(shifted, nibbles);
        w[j + 4] = _mm256_and_si256(_mm256_srli_epi32(shifted, 4), nibbles);
    }
}

// Asks for an eighth of a tile.
TCQ4_256_INLINE void prefetch(const tcq4_tile * tile, int g) {
    TCQ4_UNROLL
    for (int line = LINES*g; line < LINES*(g + 1); ++line) {
        _mm_prefetch((const char *) tile + 64*line, _MM_HINT_T0);
    }
}

TCQ4_256_INLINE const tcq4_act_chunk * act(const char * acts, size_t stride, int m) {
    return (const tcq4_act_chunk *) (acts + m*stride);
}

// Adds what a finished accumulator of 8 rows stands for.
TCQ4_256_INLINE __m256 add_dot(__m256i dot, const scales & s, int g, const tcq4_act_chunk * a, __m256 sum) {
    const __m256 product = _mm256_fmadd_ps(_mm256_castsi256_ps(dot), s.step[g], s.magic[g]);
    sum = _mm256_fmadd_ps(product, _mm256_set1_ps(a->d[g]), sum);
    return _mm256_fmadd_ps(s.offset[g], _mm256_set1_ps(a->ds[g]), sum);
}

// Adds a group of S stripes times N activation rows. sums is [activation row][STRIPES].
template <int S, int N> TCQ4_256_INLINE void add_group(const panel * p, int g, const char * acts, size_t stride, __m256 * sums) {
    __m256i dot[N][S];
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        TCQ4_UNROLL
        for (int i = 0; i < S; ++i) {
            dot[m][i] = dot_start(act(acts, stride, m)->bias[g]);
        }
    }
    TCQ4_UNROLL
    for (int j = 0; j < 8; ++j) {
        TCQ4_UNROLL
        for (int m = 0; m < N; ++m) {
            const __m256i q = _mm256_set1_epi32(tcq4_act_dword(act(acts, stride, m), 8*g + j));
            TCQ4_UNROLL
            for (int i = 0; i < S; ++i) {
                dot[m][i] = dot_add(dot[m][i], p[i].w[g][j], q);
            }
        }
    }
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        const tcq4_act_chunk * a = act(acts, stride, m);
        TCQ4_UNROLL
        for (int i = 0; i < S; ++i) {
            sums[m*STRIPES + i] = add_dot(dot_end(dot[m][i], a->bias[g]), p[i].s, g, a, sums[m*STRIPES + i]);
        }
    }
}

template <int S, int N> TCQ4_256 void add_panels(const panel * p, const char * acts, size_t stride, __m256 * sums) {
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        add_group<S, N>(p, g, acts, stride, sums);
    }
}

TCQ4_256_INLINE void store(const tcq4_kernels_args * args, int64_t s, int64_t m, __m256 sum) {
    const __m256i lane_of_row = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_ps(args->dst + m*args->dst_stride + s*TCQ4_ROWS, _mm256_permutevar8x32_ps(sum, lane_of_row));
}

// n <= ACTS_MOST activation rows from `first` on, times S stripes from stripe s on.
template <int S> TCQ4_256 void gemm(const tcq4_kernels_args * args, int64_t s, int64_t first, int64_t n) {
    panel  panels[S];
    __m256 sums[ACTS_MOST*STRIPES];
    for (int64_t i = 0; i < n*STRIPES; ++i) {
        sums[i] = _mm256_setzero_ps();
    }
    for (int64_t t = 0; t < args->n_tiles; ++t) {
        for (int i = 0; i < S; ++i) {
            const tcq4_tile * tile = args->tiles + (s + i)*args->n_tiles + t;
            unpack_scales(tile, &panels[i].s);
            for (int g = 0; g < TCQ4_GROUPS; ++g) {
                prefetch(tile + AHEAD, g);
                unpack_group(tile, g, panels[i].w[g]);
            }
        }
        const size_t stride = args->act_stride;
        const char * acts   = args->acts + first*stride + t*sizeof(tcq4_act_chunk);
        int64_t m = 0;
        for (; m + ACTS <= n; m += ACTS) {
            add_panels<S, ACTS>(panels, acts + m*stride, stride, sums + m*STRIPES);
        }
        for (; m < n; ++m) {
            add_panels<S, 1>(panels, acts + m*stride, stride, sums + m*STRIPES);
        }
    }
    for (int i = 0; i < S; ++i) {
        for (int64_t m = 0; m < n; ++m) {
            store(args, s + i, first + m, sums[m*STRIPES + i]);
        }
    }
}

// One activation row times a stripe: codes go straight from memory to registers.
TCQ4_256 void gemv(const tcq4_kernels_args * args, int64_t s) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t t = 0; t < args->n_tiles; ++t) {
        const tcq4_tile *      tile = args->tiles + s*args->n_tiles + t;
        const tcq4_act_chunk * a    = act(args->acts, 0, 0) + t;
        scales scale;
        unpack_scales(tile, &scale);
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            prefetch(tile + AHEAD, g);
            __m256i w[8];
            unpack_group(tile, g, w);
            __m256i dot = dot_start(a->bias[g]);
            TCQ4_UNROLL
            for (int j = 0; j < 8; ++j) {
                dot = dot_add(dot, w[j], _mm256_set1_epi32(tcq4_act_dword(a, 8*g + j)));
            }
            sum = add_dot(dot_end(dot, a->bias[g]), scale, g, a, sum);
        }
    }
    store(args, s, 0, sum);
}

TCQ4_256 void mul_mat(const tcq4_kernels_args * args) {
    for (int64_t s = 0; s < args->n_stripes && args->n_acts == 1; ++s) {
        gemv(args, s);
    }
    for (int64_t first = 0; first < args->n_acts && args->n_acts > 1; first += ACTS_MOST) {
        const int64_t left = args->n_acts - first;
        const int64_t n    = left < ACTS_MOST ? left : (int64_t) ACTS_MOST;
        int64_t s = 0;
        for (; s + STRIPES <= args->n_stripes; s += STRIPES) {
            gemm<STRIPES>(args, s, first, n);
        }
        for (; s < args->n_stripes; ++s) {
            gemm<1>(args, s, first, n);
        }
    }
}

// --- activations ---

// Sums and differences of lanes whose numbers differ in one bit: `swapped` has them exchanged, `signs` is -1 in the upper of each pair.
TCQ4_256_INLINE __m256 butterfly(__m256 x, __m256 swapped, __m256 signs) {
    return _mm256_fmadd_ps(x, signs, swapped); // x * +-1 is exact
}

// The stages between vectors h apart, in the order of h.
template <int N> TCQ4_256_INLINE void butterflies(__m256 * v) {
    TCQ4_UNROLL
    for (int h = 1; h < N; h *= 2) {
        TCQ4_UNROLL
        for (int i = 0; i < N; ++i) {
            if ((i & h) == 0) {
                const __m256 a = v[i], b = v[i + h];
                v[i]     = _mm256_add_ps(a, b);
                v[i + h] = _mm256_sub_ps(a, b);
            }
        }
    }
}

TCQ4_256 void fwht(float * x, int64_t n_chunks) {
    const __m256 s1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    const __m256 s2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const __m256 s4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    for (int64_t c = 0; c < n_chunks; ++c, x += TCQ4_CHUNK) {
        for (int block = 0; block < TCQ4_CHUNK; block += 64) { // h = 1 .. 32
            __m256 v[8];
            TCQ4_UNROLL
            for (int i = 0; i < 8; ++i) {
                v[i] = _mm256_loadu_ps(x + block + 8*i);
                v[i] = butterfly(v[i], _mm256_permute_ps(v[i], 0xb1), s1);
                v[i] = butterfly(v[i], _mm256_permute_ps(v[i], 0x4e), s2);
                v[i] = butterfly(v[i], _mm256_permute2f128_ps(v[i], v[i], 0x01), s4);
            }
            butterflies<8>(v);
            TCQ4_UNROLL
            for (int i = 0; i < 8; ++i) {
                _mm256_storeu_ps(x + block + 8*i, v[i]);
            }
        }
        for (int i = 0; i < 64; i += 8) { // h = 64, 128
            __m256 v[4];
            TCQ4_UNROLL
            for (int k = 0; k < 4; ++k) {
                v[k] = _mm256_loadu_ps(x + 64*k + i);
            }
            butterflies<4>(v);
            TCQ4_UNROLL
            for (int k = 0; k < 4; ++k) {
                _mm256_storeu_ps(x + 64*k + i, _mm256_mul_ps(v[k], _mm256_set1_ps(0.0625f)));
            }
        }
    }
}

TCQ4_256 void round_chunk(enum tcq4_act_path path, const float * x, tcq4_act_chunk * out) {
    tcq4_act_round_avx2(path, x, out);
}
