// Checks the device functions of cuda/include without a GPU (see emulate.h) against the scalar functions of tcq4_k32.h.
//
//   c++ -std=c++20 -O2 -I cuda/include -o check cuda/dev/check_device_code.cpp && ./check
//
// Codes, scales and decoded weights have to be the same bits; products differ by the order of f32 additions only. With -DTCQ4_NATIVE_INT4=1 the INT4
// path is that of sm_80 to sm_89, otherwise the widened one of sm_90. Prints a line for each check; the exit status is 1 if one failed.

#include "emulate.h"
#include "tcq4_decode.cuh"
#include "tcq4_mul_mat.cuh"

#include <cstdio>
#include <numeric>
#include <random>

static int failures = 0;

static void check(bool good, const char * what, double worst) {
    printf("%s: %s (%.3g)\n", good ? "ok" : "FAILED", what, worst);
    failures += !good;
}

static std::mt19937 generator(42);

static std::vector<float> normal(size_t n, float scale) {
    std::normal_distribution<float> draw(0.0f, scale);
    std::vector<float> values(n);
    for (float & value : values) {
        value = draw(generator);
    }
    return values;
}

static std::vector<int32_t> shuffled(int n) {
    std::vector<int32_t> perm(n);
    std::iota(perm.begin(), perm.end(), 0);
    std::shuffle(perm.begin(), perm.end(), generator);
    return perm;
}

// The scalar rule: codes of 256 channels, and the scale of each group.
static void scalar_round(int rule, const float * x, int8_t * codes, float * scales) {
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

static int code_of(const tcq4_act8 & act, int k) {
    return signed_byte(act.codes[8*(k/32) + 2*(k%32/8) + k%2], k%8/2);
}

static int code_of(const tcq4_act4 & act, int k) {
    return (int) ((act.codes[k/8] >> 4*(k%8) & 15) ^ 8) - 8;
}

// Rounds tokens on the device's side, and checks them against the scalar rule.
template <int rule> static std::vector<typename tcq4_act_of<rule>::chunk> rounded(const std::vector<float> & x, const int32_t * perm, int k, const char * what) {
    const int chunks = k/256;
    const int tokens = (int) x.size()/k;
    std::vector<typename tcq4_act_of<rule>::chunk> acts(tokens*chunks);
    emulate(32, [&] {
        for (int i = 0; i < tokens*chunks; ++i) {
            tcq4_round_chunk<rule>(&x[(size_t) (i/chunks)*k], perm, i%chunks, &acts[i]);
        }
    });
    int different = 0;
    for (int i = 0; i < tokens*chunks; ++i) {
        float  gathered[256], scales[8];
        int8_t codes[256];
        for (int j = 0; j < 256; ++j) {
            const int column = i%chunks*256 + j;
            gathered[j] = x[(size_t) (i/chunks)*k + (perm ? perm[column] : column)];
        }
        tcq4_fwht256(gathered);
        scalar_round(rule, gathered, codes, scales);
        for (int j = 0; j < 256; ++j) {
            different += code_of(acts[i], j) != codes[j];
        }
        for (int g = 0; g < 8; ++g) {
            const float sum = tcq4_mul(scales[g], (float) std::accumulate(codes + 32*g, codes + 32*g + 32, 0));
            different += memcmp(&acts[i].scale[g], &scales[g], 4) != 0 || memcmp(&acts[i].sum[g], &sum, 4) != 0;
        }
    }
    check(different == 0, what, different);
    return acts;
}

// Every product in double, from codes and scales as they are stored.
template <typename act> static std::vector<double> products(const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows) {
    std::vector<double> y;
    for (size_t m = 0; m < acts.size()/chunks; ++m) {
        for (int row = 0; row < rows; ++row) {
            double total = 0.0;
            for (int i = 0; i < chunks*256; ++i) {
                const act & a = acts[m*chunks + i/256];
                total += (double) tcq4_value(&tiles[row/8*chunks + i/256], row%8, i%256)*a.scale[i%256/32]*code_of(a, i%256);
            }
            y.push_back(total);
        }
    }
    return y;
}

static void compare(const std::vector<float> & found, const std::vector<double> & expected, const char * what) {
    double worst = 0.0, energy = 0.0;
    for (double value : expected) {
        energy += value*value/expected.size();
    }
    for (size_t i = 0; i < expected.size(); ++i) {
        worst = std::max(worst, std::fabs(found[i] - expected[i])/std::sqrt(energy));
    }
    check(worst < 1e-5, what, worst);
}

template <int tokens, typename act>
static void check_vec(const std::vector<tcq4_tile> & tiles, const std::vector<act> & all, int chunks, int rows, const char * what) {
    const std::vector<act> acts(all.begin(), all.begin() + tokens*chunks);
    std::vector<float> y(tokens*rows, NAN);
    for (int stripe = 0; stripe < rows/8; ++stripe) {
        emulate(32*TCQ4_VEC_WARPS, [&] { tcq4_mul_vec_stripe<tokens>(&tiles[stripe*chunks], acts.data(), chunks, &y[8*stripe], rows); });
    }
    compare(y, products(tiles, acts, chunks, rows), what);
}

template <typename act> static void check_mat(const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows, const char * what) {
    const int n = (int) acts.size()/chunks;
    const std::vector<double> plain = products(tiles, acts, chunks, rows);
    const std::vector<int32_t> targets = shuffled(n);
    std::vector<float>  y(n*rows, NAN);
    std::vector<double> expected(n*rows);
    for (int i = 0; i < n*rows; ++i) {
        expected[targets[i/rows]*rows + i%rows] = plain[i];
    }
    static tcq4_mat_shared<act> shared;
    const tcq4_mat_job<act> job = { tiles.data(), acts.data(), targets.data(), y.data(), rows, chunks, rows, 0, n };
    for (int token = 0; token < n; token += TCQ4_MAT_TOKENS) {
        for (int row = 0; row < rows; row += TCQ4_MAT_ROWS) {
            emulate(TCQ4_MAT_THREADS, [&] { tcq4_mul_mat_block(shared, job, token, row); });
        }
    }
    compare(y, expected, what);
}

int main() {
    const int k = 512, chunks = 2, rows = 72, tokens = 66;
    std::vector<float> x = normal((size_t) tokens*k, 1.0f);
    std::fill_n(x.begin() + k, 256, 0.0f);     // a zero chunk
    x[2*k + 5] = 1e4f;                         // a spike
    for (int i = 0; i < 256; ++i) {
        x[3*k + i] = i%2 ? -0.5f : 0.5f;       // ties
        x[4*k + i] *= 1e-42f;                  // denormals
    }
    const std::vector<int32_t> perm = shuffled(k);

    std::vector<tcq4_tile> tiles(rows/8*chunks);
    const std::vector<float> weights = normal((size_t) rows*k, 0.02f);
    for (int stripe = 0; stripe < rows/8; ++stripe) {
        tcq4_encode_stripe(&weights[(size_t) 8*stripe*k], k, &tiles[stripe*chunks]);
    }
    for (tcq4_tile & tile : tiles) { // zero points and negative scales, which the parity encoder does not make
        for (int i = 0; i < 64; ++i) {
            tile.zero_code[i] = (int8_t) (generator()%255 - 127);
            tile.scale_code[i] = (int8_t) (i%7 == 3 ? -tile.scale_code[i] : tile.scale_code[i]);
        }
        for (uint16_t & zero : tile.zero) {
            zero = tcq4_half_of_float(0.01f);
        }
    }

    const auto int8 = rounded<TCQ4_RULE_INT8>(x, perm.data(), k, "INT8 codes, scales and sums, permuted");
    rounded<TCQ4_RULE_INT8>(x, nullptr, k, "INT8, as they lie");
    const auto int4 = rounded<TCQ4_RULE_INT4_G32>(x, perm.data(), k, "INT4 per 32");
    rounded<TCQ4_RULE_INT4_G256>(x, perm.data(), k, "INT4 per 256");
    rounded<TCQ4_RULE_INT4_FORK>(x, perm.data(), k, "INT4 by the fork's rule");

    check_vec<1>(tiles, int8, chunks, rows, "1 token, INT8");
    check_vec<8>(tiles, int8, chunks, rows, "8 tokens, INT8");
    check_vec<3>(tiles, int4, chunks, rows, "3 tokens, INT4");
    check_mat(tiles, int8, chunks, rows, "66 tokens, INT8");
    check_mat(tiles, int4, chunks, rows, TCQ4_NATIVE_INT4 ? "66 tokens, native INT4" : "66 tokens, widened INT4");

    int different = 0;
    for (int row = 0; row < rows; row += 5) {
        std::vector<float> found(k, NAN);
        emulate(32, [&] {
            for (int chunk = 0; chunk < chunks; ++chunk) {
                tcq4_decode_chunk(tiles.data(), chunks, row, chunk, perm.data(), found.data());
            }
        });
        for (int chunk = 0; chunk < chunks; ++chunk) {
            float values[256];
            for (int i = 0; i < 256; ++i) {
                values[i] = tcq4_value(&tiles[row/8*chunks + chunk], row%8, i);
            }
            tcq4_fwht256(values);
            for (int i = 0; i < 256; ++i) {
                different += found[perm[256*chunk + i]] != values[i];
            }
        }
    }
    check(different == 0, "decoded rows, in the model's order", different);
    return failures != 0;
}
