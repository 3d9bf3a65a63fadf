// TCQ4_K32 with AVX-512 and VNNI: 16 rows (two stripes) in the lanes of a vector.
//
// Layout. In a tile, the 16 bytes of a row's group lie together. A transposition of dwords (8 shuffles for 16 rows) gives vectors whose
// lane is a row and whose 4 bytes are 4 consecutive even (or odd) elements of it, so vpdpbusd takes the activations as one broadcast
// dword and a lane ends up with the whole dot product of its row: nothing is ever summed across lanes.
//
// Work of 16 rows by 32 columns for one activation row: 8 vpdpbusd and 2 (with zero points 3) fused multiply-adds, on the two
// ports that also limit a loop of vpdpbusd alone: at most 8/10 (8/11) of that peak.
// - One to four activation rows (GEMV): codes go straight from memory to registers. Bound: memory.
// - More (GEMM): the tiles of six stripes are widened once into 17 KB of L1 and used for up to 64 activation rows. Bound: ALU.
//
// Measured with bench_tcq4 (4096 x 4096, Xeon with AVX-512 at about 3.5 GHz, shared with other work; 1 and 2 threads, medians; runs differ by 10 %):
// - 1 activation row: 12.2 and 25.2 GB/s, as fast as a loop that only reads (12.1 and 25.4); Q4_K repacked 7.3 and 15.0.
// - 512 activation rows: 449 and 926 GOP/s, 50 to 53 % of vpdpbusd alone (848 and 1838); Q4_K repacked 136 and 292, Q4_0 126 and 258.
// Tried, with one thread: 16 rows and 16 activation rows at once, 461 GOP/s from L2 where 48 rows and 4 have 573 (a broadcast
// for every vpdpbusd limits the loads). Asking for the next tiles and the lines of the result a little with every block brought 419 to 461;
// asking for the next activations as well, nothing.

#include "tcq4-kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized" // gcc 12 says so of its own _mm512_undefined_ps()
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "tcq4-x86-act.h"

#if defined(__GNUC__)
#define TCQ4_AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define TCQ4_INLINE static inline __attribute__((always_inline)) TCQ4_AVX512
#else
#define TCQ4_AVX512
#define TCQ4_INLINE static __forceinline
#endif

namespace {

enum {
    PAIRS     = 3,   // pairs of stripes at once, so that a broadcast serves three vpdpbusd: two alone reach 92 % of the peak, one 72 %
    ACTS      = 4,   // activation rows at once: 3 x 4 dots and as many sums are in registers
    ACTS_MOST = 64,  // activation rows for which tiles are widened once
    AHEAD     = 6,   // tiles by which GEMV is ahead with prefetching
    LINES     = 3,   // cache lines that GEMV prefetches with a group, so that 8 groups cover a tile
};

struct scales {
    __m512 step  [TCQ4_GROUPS]; // S*sc/127, cut to 22 bits
    __m512 magic [TCQ4_GROUPS]; // -step * 1.5*2^23
    __m512 offset[TCQ4_GROUPS]; // Z*zc/127
    bool   has_offsets;
};

struct panel {
    __m512i w[TCQ4_GROUPS][8]; // codes + 8; the dwords are those of tcq4_act_chunk::q
    scales  s;
};

// Asks for `lines` cache lines of 64 bytes.
TCQ4_INLINE void prefetch(const void * from, int lines) {
    for (int i = 0; i < lines; ++i) {
        _mm_prefetch((const char *) from + 64*i, _MM_HINT_T0);
    }
}

// Two tiles below each other. Lane 4*l + i of a vector is row l + 4*(i & 1) + 8*(i >> 1).
struct tile_pair {
    const tcq4_tile * a;
    const tcq4_tile * b;
};

alignas(64) const int32_t lane_of_row[16] = { 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15 };
alignas(64) const int32_t first_dword[16] = { 0, 8, 16, 24, 2, 10, 18, 26, 4, 12, 20, 28, 6, 14, 22, 30 }; // 2 * row of the lane
alignas(32) const int16_t row_of_lane[16] = { 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15 };

TCQ4_INLINE __m512 load_halves(const uint16_t * a, const uint16_t * b) {
    const __m128i low  = _mm_loadu_si128((const __m128i *) a);
    const __m128i high = _mm_loadu_si128((const __m128i *) b);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    return _mm512_cvtph_ps(_mm256_permutexvar_epi16(_mm256_load_si256((const __m256i *) row_of_lane), both));
}

// Byte `byte` of each dword, sign-extended, as float times `unit`.
template <int byte> TCQ4_INLINE __m512 code_times(__m512i dwords, __m512 unit) {
    const __m512i code = _mm512_srai_epi32(_mm512_slli_epi32(dwords, 24 - 8*byte), 24);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(code), unit);
}

TCQ4_INLINE void codes_times(const int8_t * a, const int8_t * b, __m512 unit, __m512 * out) {
    const __m512i low   = _mm512_loadu_si512(a);
    const __m512i high  = _mm512_loadu_si512(b);
    const __m512i index = _mm512_load_si512(first_dword);
    const __m512i first  = _mm512_permutex2var_epi32(low, index, high);
    const __m512i second = _mm512_permutex2var_epi32(low, _mm512_add_epi32(index, _mm512_set1_epi32(1)), high);
    out[0] = code_times<0>(first,  unit);
    out[1] = code_times<1>(first,  unit);
    out[2] = code_times<2>(first,  unit);
    out[3] = code_times<3>(first,  unit);
    out[4] = code_times<0>(second, unit);
    out[5] = code_times<1>(second, unit);
    out[6] = code_times<2>(second, unit);
    out[7] = code_times<3>(second, unit);
}

TCQ4_INLINE void unpack_scales(tile_pair tiles, scales * out) {
    const __m512 divisor = _mm512_set1_ps(127.0f);
    const __m512 scale   = _mm512_div_ps(load_halves(tiles.a->scale, tiles.b->scale), divisor);
    codes_times(tiles.a->scale_code, tiles.b->scale_code, scale, out->step);
    TCQ4_UNROLL
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        const __m512i cut = _mm512_and_si512(_mm512_castps_si512(out->step[g]), _mm512_set1_epi32(~3));
        out->step [g] = _mm512_castsi512_ps(cut);
        out->magic[g] = _mm512_mul_ps(out->step[g], _mm512_set1_ps(-TCQ4_MAGIC_FLOAT));
    }
    const __m512 zero = load_halves(tiles.a->zero, tiles.b->zero);
    out->has_offsets = _mm512_cmp_ps_mask(zero, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0;
    if (out->has_offsets) {
        codes_times(tiles.a->zero_code, tiles.b->zero_code, _mm512_div_ps(zero, divisor), out->offset);
    }
}

TCQ4_INLINE void clear_missing_offsets(scales * s) {
    for (int g = 0; g < TCQ4_GROUPS && !s->has_offsets; ++g) {
        s->offset[g] = _mm512_setzero_ps();
    }
}

// Widens a group of 16 rows to bytes of 0..15.
TCQ4_INLINE void unpack_group(tile_pair tiles, int g, __m512i * w) {
    const __m512i a0 = _mm512_loadu_si512(tiles.a->codes + 128*g); // rows 0..3
    const __m512i a1 = _mm512_loadu_si512(tiles.a->codes + 128*g + 64);
    const __m512i b0 = _mm512_loadu_si512(tiles.b->codes + 128*g);
    const __m512i b1 = _mm512_loadu_si512(tiles.b->codes + 128*g + 64);
    const __m512i a01 = _mm512_unpacklo_epi32(a0, a1); // dwords 0 and 1 of the rows
    const __m512i a23 = _mm512_unpackhi_epi32(a0, a1);
    const __m512i b01 = _mm512_unpacklo_epi32(b0, b1);
    const __m512i b23 = _mm512_unpackhi_epi32(b0, b1);
    const __m512i packed[4] = {
        _mm512_unpacklo_epi64(a01, b01), _mm512_unpackhi_epi64(a01, b01),
        _mm512_unpacklo_epi64(a23, b23), _mm512_unpackhi_epi64(a23, b23),
    };
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    const __m512i sign        = _mm512_set1_epi8(8);
    TCQ4_UNROLL
    for (int j = 0; j < 4; ++j) {
        w[j]     = _mm512_ternarylogic_epi32(packed[j], low_nibbles, sign, 0x6a); // (x & 15) ^ 8
        w[j + 4] = _mm512_ternarylogic_epi32(_mm512_srli_epi32(packed[j], 4), low_nibbles, sign, 0x6a);
    }
}

TCQ4_INLINE const tcq4_act_chunk * act(const char * acts, size_t stride, int m) {
    return (const tcq4_act_chunk *) (acts + m*stride);
}

// Adds what a finished accumulator of 16 rows stands for.
template <bool has_offsets> TCQ4_INLINE __m512 add_dot(__m512i dot, const scales & s, int g, const tcq4_act_chunk * a, __m512 sum) {
    const __m512 product = _mm512_fmadd_ps(_mm512_castsi512_ps(dot), s.step[g], s.magic[g]);
    sum = _mm512_fmadd_ps(product, _mm512_set1_ps(a->d[g]), sum);
    return has_offsets ? _mm512_fmadd_ps(s.offset[g], _mm512_set1_ps(a->ds[g]), sum) : sum;
}

// Adds a group of 16 rows times N activation rows.
template <int N, bool has_offsets> TCQ4_INLINE void add_group(const __m512i * w, const scales & s, int g, const char * acts, size_t stride, __m512 * sums) {
    __m512i dot[N];
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        dot[m] = _mm512_set1_epi32(act(acts, stride, m)->bias[g]);
    }
    TCQ4_UNROLL
    for (int j = 0; j < 8; ++j) {
        TCQ4_UNROLL
        for (int m = 0; m < N; ++m) {
            dot[m] = _mm512_dpbusd_epi32(dot[m], w[j], _mm512_set1_epi32(tcq4_act_dword(act(acts, stride, m), 8*g + j)));
        }
    }
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        sums[m] = add_dot<has_offsets>(dot[m], s, g, act(acts, stride, m), sums[m]);
    }
}

// Adds the products of P widened pairs of tiles and N activation rows. sums_at is [activation row][PAIRS].
template <int P, int N, bool has_offsets> TCQ4_AVX512 void add_panels(const panel * p, const char * acts, size_t stride, __m512 * sums_at) {
    __m512 sums[N][P];
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        TCQ4_UNROLL
        for (int i = 0; i < P; ++i) {
            sums[m][i] = sums_at[m*PAIRS + i];
        }
    }
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        __m512i dot[N][P];
        TCQ4_UNROLL
        for (int m = 0; m < N; ++m) {
            TCQ4_UNROLL
            for (int i = 0; i < P; ++i) {
                dot[m][i] = _mm512_set1_epi32(act(acts, stride, m)->bias[g]);
            }
        }
        TCQ4_UNROLL
        for (int j = 0; j < 8; ++j) {
            TCQ4_UNROLL
            for (int m = 0; m < N; ++m) {
                const __m512i q = _mm512_set1_epi32(tcq4_act_dword(act(acts, stride, m), 8*g + j));
                TCQ4_UNROLL
                for (int i = 0; i < P; ++i) {
                    dot[m][i] = _mm512_dpbusd_epi32(dot[m][i], p[i].w[g][j], q);
                }
            }
        }
        TCQ4_UNROLL
        for (int m = 0; m < N; ++m) {
            TCQ4_UNROLL
            for (int i = 0; i < P; ++i) {
                sums[m][i] = add_dot<has_offsets>(dot[m][i], p[i].s, g, act(acts, stride, m), sums[m][i]);
            }
        }
    }
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        TCQ4_UNROLL
        for (int i = 0; i < P; ++i) {
            sums_at[m*PAIRS + i] = sums[m][i];
        }
    }
}

// What a product with n activation rows asks for while it computes, a little with every block of these: bursts would stall it.
struct wishes {
    const char * tiles[2*PAIRS]; // the next tiles
    int64_t      lines;          // of each, with a block
    const char * dst;            // where the sums will go, or NULL
    size_t       dst_stride;
};

template <int P> TCQ4_INLINE void ask(const wishes & next, int64_t m) {
    const int64_t line = m/ACTS*next.lines;
    for (int i = 0; i < 2*P && 64*line < TCQ4_TILE_BYTES; ++i) {
        prefetch(next.tiles[i] + 64*line, (int) next.lines);
    }
    for (int i = 0; i < ACTS && next.dst != nullptr; ++i) {
        for (int k = 0; k < P; ++k) {
            _mm_prefetch(next.dst + (m + i)*next.dst_stride + 64*k, _MM_HINT_ET0);
        }
    }
}

template <int P, bool has_offsets> TCQ4_AVX512 void add_panels(const panel * p, const char * acts, size_t stride, int64_t n, const wishes & next, __m512 * sums) {
    int64_t m = 0;
    for (; m + ACTS <= n; m += ACTS) {
        ask<P>(next, m);
        add_panels<P, ACTS, has_offsets>(p, acts + m*stride, stride, sums + m*PAIRS);
    }
    for (; m < n; ++m) {
        add_panels<P, 1, has_offsets>(p, acts + m*stride, stride, sums + m*PAIRS);
    }
}

// Stores the sums of a pair of stripes for activation row m.
TCQ4_INLINE void store(const tcq4_kernels_args * args, int64_t s, int64_t m, __m512 sum) {
    float *      dst  = args->dst + m*args->dst_stride + s*TCQ4_ROWS;
    const __m512 rows = _mm512_permutexvar_ps(_mm512_load_si512(lane_of_row), sum);
    if (s + 1 < args->n_stripes) {
        _mm512_storeu_ps(dst, rows);
    } else {
        _mm256_storeu_ps(dst, _mm512_castps512_ps256(rows));
    }
}

// The tiles of a pair of stripes; where only one is left, it is both of them.
TCQ4_INLINE tile_pair stripes(const tcq4_kernels_args * args, int64_t s) {
    const tcq4_tile * a = args->tiles + s*args->n_tiles;
    return { a, s + 1 < args->n_stripes ? a + args->n_tiles : a };
}

// n <= ACTS_MOST activation rows from `first` on, times P pairs of stripes from stripe s on.
template <int P> TCQ4_AVX512 void gemm(const tcq4_kernels_args * args, int64_t s, int64_t first, int64_t n) {
    panel  panels[P];
    __m512 sums[ACTS_MOST*PAIRS];
    for (int64_t i = 0; i < n*PAIRS; ++i) {
        sums[i] = _mm512_setzero_ps();
    }
    wishes next;
    next.lines      = (TCQ4_TILE_BYTES/64*ACTS + n - 1)/n;
    next.dst        = (const char *) (args->dst + first*args->dst_stride + s*TCQ4_ROWS);
    next.dst_stride = args->dst_stride*sizeof(float);
    for (int64_t t = 0; t < args->n_tiles; ++t) {
        bool has_offsets = false;
        for (int i = 0; i < P; ++i) {
            const tile_pair pair  = stripes(args, s + 2*i);
            const tile_pair tiles = { pair.a + t, pair.b + t };
            unpack_scales(tiles, &panels[i].s);
            for (int g = 0; g < TCQ4_GROUPS; ++g) {
                unpack_group(tiles, g, panels[i].w[g]);
            }
            has_offsets |= panels[i].s.has_offsets;
            next.tiles[2*i]     = (const char *) (tiles.a + 1);
            next.tiles[2*i + 1] = (const char *) (tiles.b + 1);
        }
        const char * acts = args->acts + first*args->act_stride + t*sizeof(tcq4_act_chunk);
        if (has_offsets) {
            for (int i = 0; i < P; ++i) {
                clear_missing_offsets(&panels[i].s);
            }
            add_panels<P, true>(panels, acts, args->act_stride, n, next, sums);
        } else {
            add_panels<P, false>(panels, acts, args->act_stride, n, next, sums);
        }
        next.dst = nullptr;
    }
    for (int i = 0; i < P; ++i) {
        for (int64_t m = 0; m < n; ++m) {
            store(args, s + 2*i, first + m, sums[m*PAIRS + i]);
        }
    }
}

// N activation rows times a pair of stripes.
template <int N> TCQ4_AVX512 void gemv(const tcq4_kernels_args * args, int64_t s) {
    const tile_pair pair = stripes(args, s);
    __m512 sums[N];
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        sums[m] = _mm512_setzero_ps();
    }
    for (int64_t t = 0; t < args->n_tiles; ++t) {
        const tile_pair tiles = { pair.a + t, pair.b + t };
        const char *    acts  = args->acts + t*sizeof(tcq4_act_chunk);
        const int64_t   ahead = AHEAD + (t + AHEAD < args->n_tiles ? 0 : args->n_tiles); // beyond the end of a stripe comes the next pair
        scales scale;
        unpack_scales(tiles, &scale);
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            prefetch(tiles.a[ahead].codes + 64*LINES*g, LINES);
            prefetch(tiles.b[ahead].codes + 64*LINES*g, LINES);
            __m512i w[8];
            unpack_group(tiles, g, w);
            if (scale.has_offsets) {
                add_group<N, true>(w, scale, g, acts, args->act_stride, sums);
            } else {
                add_group<N, false>(w, scale, g, acts, args->act_stride, sums);
            }
        }
    }
    TCQ4_UNROLL
    for (int m = 0; m < N; ++m) {
        store(args, s, m, sums[m]);
    }
}

template <int N> TCQ4_AVX512 void gemv_all(const tcq4_kernels_args * args) {
    for (int64_t s = 0; s < args->n_stripes; s += 2) {
        gemv<N>(args, s);
    }
}

TCQ4_AVX512 void gemm_all(const tcq4_kernels_args * args) {
    for (int64_t first = 0; first < args->n_acts; first += ACTS_MOST) {
        const int64_t left = args->n_acts - first;
        const int64_t n    = left < ACTS_MOST ? left : (int64_t) ACTS_MOST;
        for (int64_t s = 0; s < args->n_stripes; s += 2*PAIRS) {
            switch (args->n_stripes - s) { // the last pair may be a single stripe
                case 1: case 2: gemm<1>(args, s, first, n); break;
                case 3: case 4: gemm<2>(args, s, first, n); break;
                default:        gemm<3>(args, s, first, n); break;
            }
        }
    }
}

TCQ4_AVX512 void mul_mat(const tcq4_kernels_args * args) {
    switch (args->n_acts) {
        case 1:  gemv_all<1>(args); break;
        case 2:  gemv_all<2>(args); break;
        case 3:  gemv_all<3>(args); break;
        case 4:  gemv_all<4>(args); break;
        default: gemm_all(args);    break;
    }
}

// --- activations ---

// Sums and differences of lanes whose numbers differ in one bit: `swapped` has them exchanged, `signs` is -1 in the upper of each pair.
TCQ4_INLINE __m512 butterfly(__m512 x, __m512 swapped, __m512 signs) {
    return _mm512_fmadd_ps(x, signs, swapped); // x * +-1 is exact
}

TCQ4_INLINE __m512 signs(int bit) {
    alignas(64) float s[16];
    TCQ4_UNROLL
    for (int i = 0; i < 16; ++i) {
        s[i] = i & bit ? -1.0f : 1.0f;
    }
    return _mm512_load_ps(s);
}

TCQ4_INLINE void fwht_registers(__m512 * v) {
    const __m512 s1 = signs(1), s2 = signs(2), s4 = signs(4), s8 = signs(8);
    TCQ4_UNROLL
    for (int i = 0; i < 16; ++i) {
        v[i] = butterfly(v[i], _mm512_permute_ps(v[i], 0xb1), s1);
        v[i] = butterfly(v[i], _mm512_permute_ps(v[i], 0x4e), s2);
        v[i] = butterfly(v[i], _mm512_shuffle_f32x4(v[i], v[i], 0xb1), s4);
        v[i] = butterfly(v[i], _mm512_shuffle_f32x4(v[i], v[i], 0x4e), s8);
    }
    TCQ4_UNROLL
    for (int h = 1; h < 16; h *= 2) {
        TCQ4_UNROLL
        for (int i = 0; i < 16; ++i) {
            if ((i & h) == 0) {
                const __m512 a = v[i], b = v[i + h];
                v[i]     = _mm512_add_ps(a, b);
                v[i + h] = _mm512_sub_ps(a, b);
            }
        }
    }
    TCQ4_UNROLL
    for (int i = 0; i < 16; ++i) {
        v[i] = _mm512_mul_ps(v[i], _mm512_set1_ps(0.0625f));
    }
}

TCQ4_AVX512 void fwht(float * x, int64_t n_chunks) {
    for (int64_t c = 0; c < n_chunks; ++c, x += TCQ4_CHUNK) {
        __m512 v[16];
        TCQ4_UNROLL
        for (int i = 0; i < 16; ++i) {
            v[i] = _mm512_loadu_ps(x + 16*i);
        }
        fwht_registers(v);
        TCQ4_UNROLL
        for (int i = 0; i < 16; ++i) {
            _mm512_storeu_ps(x + 16*i, v[i]);
        }
    }
}

TCQ4_AVX512 void round_chunk(enum tcq4_act_path path, const float * x, tcq4_act_chunk * out) {
    tcq4_act_round_avx2(path, x, out);
}

int available(void) {
#if defined(__GNUC__)
    return tcq4_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#elif defined(__AVX512VNNI__)
    return 1;
#else
    return 0;
#endif
}

} // namespace

const tcq4_kernels tcq4_kernels_avx512 = { "avx512-vnni", available, fwht, round_chunk, mul_mat };

#endif
