// Checks the device functions of cuda/include without a GPU (see emulate.h) against the scalar functions of tcq4_k32.h.
//
//   c++ -std=c++20 -O2 -I cuda/include -o check cuda/dev/check_device_code.cpp && ./check
//
// Codes, scales and decoded weights have to be the same bits; products differ by the order of f32 additions only. With -DTCQ4_NATIVE_INT4=1 the INT4
// path is that of sm_80 to sm_89, otherwise the widened one of sm_90. Prints a line for each check; the exit status is 1 if one failed.

#include "check.h"
#include "tcq4_decode.cuh"

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
    const int wrong = wrong_chunks(rule, acts.data(), x, perm, k);
    check(wrong == 0, what, wrong);
    return acts;
}

static void compare(const poisoned<float> & found, const std::vector<double> & expected, int rows, const char * what) {
    const double worst = worst_of(found, expected, rows);
    check(worst < 1e-5, what, worst);
}

template <int tokens, typename act>
static void check_vec(const std::vector<tcq4_tile> & tiles, const std::vector<act> & all, int chunks, int rows, const char * what) {
    const std::vector<act> acts(all.begin(), all.begin() + tokens*chunks);
    poisoned<float> y(tokens*rows);
    for (int stripe = 0; stripe < rows/8; ++stripe) {
        emulate(32*TCQ4_VEC_WARPS, [&] { tcq4_mul_vec_stripe<tokens>(&tiles[stripe*chunks], acts.data(), chunks, &y[8*stripe], rows); });
    }
    compare(y, products(tiles.data(), acts.data(), tokens, chunks, rows), rows, what);
}

template <typename act> static void check_mat(const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows, const char * what) {
    const int n = (int) acts.size()/chunks;
    const std::vector<double> plain = products(tiles.data(), acts.data(), n, chunks, rows);
    const std::vector<int32_t> targets = shuffled(n);
    poisoned<float>     y(n*rows);
    std::vector<double> expected(n*rows);
    for (int i = 0; i < n*rows; ++i) {
        expected[targets[i/rows]*rows + i%rows] = plain[i];
    }
    __shared__ tcq4_mat_shared<act> shared;
    const tcq4_mat_job<act> job = { tiles.data(), acts.data(), targets.data(), y.data(), rows, chunks, rows, 0, n };
    for (int token = 0; token < n; token += TCQ4_MAT_TOKENS) {
        for (int row = 0; row < rows; row += TCQ4_MAT_ROWS) {
            emulate(TCQ4_MAT_THREADS, [&] { tcq4_mul_mat_block(shared, job, token, row); });
        }
    }
    compare(y, expected, rows, what);
}

int main() {
    const int k = 512, chunks = 2, rows = 72, tokens = 66;
    const std::vector<float>     x     = hard_rows(tokens, k);
    const std::vector<int32_t>   perm  = shuffled(k);
    const std::vector<tcq4_tile> tiles = some_tiles(rows, chunks, true);

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
