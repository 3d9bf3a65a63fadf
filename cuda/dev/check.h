// What the checks of cuda/dev share: one line for each check, data that is hard to round, outputs that are poisoned before, and the scalar rules.

#ifndef TCQ4_CHECK_H
#define TCQ4_CHECK_H

#include "emulate.h"

#include "tcq4_gemm.cuh"

#include <algorithm>
#include <cfloat>
#include <numeric>
#include <random>

static int failures = 0;

static inline void check(bool good, const char * what, double worst) {
    printf("%s: %s (%.3g)\n", good ? "ok" : "FAILED", what, worst);
    failures += !good;
}

static std::mt19937 generator(42);

static inline std::vector<float> normal(size_t n, float scale) {
    std::normal_distribution<float> draw(0.0f, scale);
    std::vector<float> values(n);
    for (float & value : values) {
        value = draw(generator);
    }
    return values;
}

static inline std::vector<int32_t> shuffled(int n) {
    std::vector<int32_t> perm(n);
    std::iota(perm.begin(), perm.end(), 0);
    std::shuffle(perm.begin(), perm.end(), generator);
    return perm;
}

// Rows of k values each; those from 1 to 7 are hard: a chunk of zeros, a spike, ties, subnormals, magnitudes around the smallest that counts, an impulse in
// nothing, and constants.
static inline std::vector<float> hard_rows(int rows, int k) {
    std::vector<float> x = normal((size_t) rows*k, 1.0f);
    const auto row = [&](int r) { return x.begin() + (size_t) (r < rows ? r : 0)*k; };
    std::fill_n(row(1), 256, 0.0f);
    row(2)[5] = 1e4f;
    for (int i = 0; i < 256; ++i) {
        row(3)[i] = i%2 ? -0.5f : 0.5f;
        row(4)[i] *= 1e-42f;
        row(5)[i] *= 4e-11f;
        row(6)[i] = i == 37 ? -3.0f : 0.0f;
        row(7)[i] = 0.01f;
    }
    return x;
}

static inline std::vector<uint16_t> halves(const std::vector<float> & x) {
    std::vector<uint16_t> y(x.size());
    std::transform(x.begin(), x.end(), y.begin(), tcq4_half_of_float);
    return y;
}

static inline std::vector<float> widened(const std::vector<uint16_t> & x) {
    std::vector<float> y(x.size());
    std::transform(x.begin(), x.end(), y.begin(), tcq4_float_of_half);
    return y;
}

// An output: filled with bytes that are wrong everywhere, and followed by some that have to stay.
template <typename T> struct poisoned {
    size_t         n;
    std::vector<T> values;

    explicit poisoned(size_t n) : n(n), values(n + 64) { memset((void *) values.data(), 0xc3, values.size()*sizeof(T)); }
    T *       data()                 { return values.data(); }
    T &       operator[](size_t i)   { return values[i]; }
    bool      fence() const {
        const unsigned char * bytes = (const unsigned char *) (values.data() + n);
        return std::all_of(bytes, bytes + 64*sizeof(T), [](unsigned char byte) { return byte == 0xc3; });
    }
};

// The number of values that differ in a bit; all of them where the fence was hit.
template <typename T> static int different(const poisoned<T> & found, const std::vector<T> & expected) {
    int n = found.fence() && found.n == expected.size() ? 0 : (int) expected.size() + 1;
    for (size_t i = 0; i < expected.size(); ++i) {
        n += memcmp(&found.values[i], &expected[i], sizeof(T)) != 0;
    }
    return n;
}

// The largest difference in units of the root mean square of its row; infinite where the fence was hit or something was not written.
static inline double worst_of(const poisoned<float> & found, const std::vector<double> & expected, int row_length) {
    double worst = 0.0;
    for (size_t first = 0; first < expected.size(); first += row_length) {
        double energy = 1e-70; // rows of zeros and subnormals
        for (int i = 0; i < row_length; ++i) {
            energy += expected[first + i]*expected[first + i]/row_length;
        }
        for (int i = 0; i < row_length; ++i) {
            const double error = std::fabs(found.values[first + i] - expected[first + i])/std::sqrt(energy);
            worst = error <= worst ? worst : error == error ? error : INFINITY;
        }
    }
    return found.fence() ? worst : INFINITY;
}

// --- the scalar rules ---

// Codes of 256 rotated channels, and the scale of each group.
static inline void scalar_round(int rule, const float * x, int8_t * codes, float * scales) {
    const int span = rule == TCQ4_RULE_INT8 || rule == TCQ4_RULE_INT4_G32 ? 32 : 256;
    for (int first = 0; first < 256; first += span) {
        float scale = 0.0f;
        switch (rule) {
            case TCQ4_RULE_INT8:      scale = tcq4_act_symmetric(x + first, span, 127.0f, codes + first); break;
            case TCQ4_RULE_INT4_G32:  scale = tcq4_act_signed   (x + first, span, 1.0f,   codes + first); break;
            case TCQ4_RULE_INT4_G256: scale = tcq4_act_signed   (x + first, span, 0.9f,   codes + first); break;
            case TCQ4_RULE_INT4_FORK: scale = tcq4_act_symmetric(x + first, span, 7.0f,   codes + first); break;
        }
        for (int g = first/32; g < (first + span)/32; ++g) {
            scales[g] = scale;
        }
    }
}

static inline int code_of_bytes(const uint32_t * codes, int k)   { return signed_byte(codes[8*(k/32) + 2*(k%32/8) + k%2], k%8/2); }
static inline int code_of_nibbles(const uint32_t * codes, int k) { return (int) ((codes[k/8] >> 4*(k%8) & 15) ^ 8) - 8; }

static inline int   code_of(const tcq4_act8 & act, int k)    { return code_of_bytes(act.codes, k); }
static inline int   code_of(const tcq4_act4 & act, int k)    { return code_of_nibbles(act.codes, k); }
static inline int   code_of(const tcq4_block8 & act, int k)  { return code_of_bytes(act.codes, k); }
static inline int   code_of(const tcq4_block4 & act, int k)  { return code_of_nibbles(act.codes, k); }
static inline float scale_of(const tcq4_act8 & act, int k)   { return act.scale[k/32]; }
static inline float scale_of(const tcq4_act4 & act, int k)   { return act.scale[k/32]; }
static inline float scale_of(const tcq4_block8 & act, int)   { return act.scale; }
static inline float scale_of(const tcq4_block4 & act, int)   { return act.scale; }

// Whether the sum of a group is what its codes and its scale make.
template <int words> static bool sum_is(const tcq4_act_chunk<words> & act, int g, int sum) {
    const float scaled = tcq4_mul(act.scale[g], (float) sum);
    return memcmp(&act.sum[g], &scaled, 4) == 0;
}
template <typename block> static bool sum_is(const block & act, int g, int sum) {
    return act.sum[g] == sum && act.unused[0] == 0 && act.unused[1] == 0 && act.unused[2] == 0;
}

// How many codes, scales and sums of chunks are not those of the scalar rule.
template <typename act> static int wrong_chunks(int rule, const act * acts, const std::vector<float> & x, const int32_t * perm, int k) {
    const int chunks = k/256;
    int different = 0;
    for (size_t i = 0; i < x.size()/256; ++i) {
        float  gathered[256], scales[8];
        int8_t codes[256];
        for (int j = 0; j < 256; ++j) {
            const int column = (int) (i%chunks)*256 + j;
            gathered[j] = x[i/chunks*k + (perm ? perm[column] : column)];
        }
        tcq4_fwht256(gathered);
        scalar_round(rule, gathered, codes, scales);
        for (int j = 0; j < 256; ++j) {
            different += code_of(acts[i], j) != codes[j];
        }
        for (int g = 0; g < 8; ++g) {
            const float scale = scale_of(acts[i], 32*g);
            different += memcmp(&scale, &scales[g], 4) != 0 || !sum_is(acts[i], g, std::accumulate(codes + 32*g, codes + 32*g + 32, 0));
        }
    }
    return different;
}

// --- products ---

// Every product in double, from codes and scales as they are stored.
template <typename act> static std::vector<double> products(const tcq4_tile * tiles, const act * acts, int tokens, int chunks, int rows) {
    std::vector<double> y;
    for (int m = 0; m < tokens; ++m) {
        for (int row = 0; row < rows; ++row) {
            double total = 0.0;
            for (int i = 0; i < chunks*256; ++i) {
                const act & a = acts[m*chunks + i/256];
                total += (double) tcq4_value(&tiles[row/8*chunks + i/256], row%8, i%256)*scale_of(a, i%256)*code_of(a, i%256);
            }
            y.push_back(total);
        }
    }
    return y;
}

// Tiles of a matrix with normal weights; with zero points and negative scale codes, which the parity encoder does not make, where asked.
static inline std::vector<tcq4_tile> some_tiles(int rows, int chunks, bool zeros) {
    const int k = 256*chunks;
    std::vector<tcq4_tile> tiles(rows/8*chunks);
    const std::vector<float> weights = normal((size_t) rows*k, 0.02f);
    for (int stripe = 0; stripe < rows/8; ++stripe) {
        tcq4_encode_stripe(&weights[(size_t) 8*stripe*k], k, &tiles[stripe*chunks]);
    }
    for (tcq4_tile & tile : tiles) {
        for (int i = 0; i < 64 && zeros; ++i) {
            tile.zero_code[i]  = (int8_t) (generator()%255 - 127);
            tile.scale_code[i] = (int8_t) (i%7 == 3 ? -tile.scale_code[i] : tile.scale_code[i]);
        }
        for (int r = 0; r < 8 && zeros; ++r) {
            tile.zero[r] = tcq4_half_of_float(0.01f*(float) (r%3));
        }
    }
    return tiles;
}

#endif // TCQ4_CHECK_H
