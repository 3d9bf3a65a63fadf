// Checks the kernels of cuda/kernels that make no products and no tiles, without a GPU (see emulate.h), against scalar code.
//
//   c++ -std=c++20 -O2 -Wno-unknown-pragmas -I cuda/include -o check cuda/dev/check_kernels.cpp && ./check
//
// Prints a line for each check; the exit status is 1 if one failed. Tolerances are those that the kernels' files name.

#include "check.h"

#include "../kernels/activations.cu"
#include "../kernels/dequantize.cu"
#include "../kernels/fwht.cu"
#include "../kernels/gather.cu"
#include "../kernels/gram.cu"
#include "../kernels/smooth.cu"
#include "../kernels/statistics.cu"

static constexpr int k = 512, chunks = 2, tokens = 11;

static void check_fwht() {
    const std::vector<float> x = hard_rows(tokens, k);
    std::vector<float> expected = x;
    std::vector<float> from_halves = widened(halves(x));
    for (int i = 0; i < tokens*chunks; ++i) {
        tcq4_fwht256(&expected[256*i]);
        tcq4_fwht256(&from_halves[256*i]);
    }
    poisoned<float> y(x.size());
    std::copy(x.begin(), x.end(), y.data());
    launch({ (tokens*chunks + 7)/8, 1, 1 }, 256, 0, [&] { tcq4_fwht_f32(y.data(), tokens*chunks); });
    check(different(y, expected) == 0, "FWHT, f32", different(y, expected));

    const std::vector<uint16_t> x16 = halves(x);
    poisoned<uint16_t> y16(x.size());
    std::copy(x16.begin(), x16.end(), y16.data());
    launch({ (tokens*chunks + 7)/8, 1, 1 }, 256, 0, [&] { tcq4_fwht_f16(y16.data(), tokens*chunks); });
    check(different(y16, halves(from_halves)) == 0, "FWHT, f16", different(y16, halves(from_halves)));
}

template <typename value, typename kernel> static void check_gather(kernel gather, const std::vector<value> & x, const char * what) {
    const std::vector<int32_t> perm = shuffled(k);
    std::vector<value> expected(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        expected[i] = x[i/k*k + perm[i%k]];
    }
    for (int staged = 0; staged < 2; ++staged) {
        poisoned<value> y(x.size());
        const unsigned blocks = staged ? tokens : (tokens*k + 2047)/2048;
        launch({ blocks, 1, 1 }, 256, staged*k*sizeof(value), [&] { gather(x.data(), perm.data(), y.data(), tokens, k, staged); });
        check(different(y, expected) == 0, what, different(y, expected));
    }
}

// A kernel of one rule, with and without a permutation, through shared memory and not.
template <typename act, typename value, typename kernel>
static void check_round(int rule, kernel round, const std::vector<value> & x, const std::vector<float> & same, const char * what) {
    const std::vector<int32_t> perm = shuffled(k);
    int wrong = 0;
    for (int variant = 0; variant < 4; ++variant) {
        const int       staged = variant%2;
        const int32_t * order  = variant/2 ? perm.data() : nullptr;
        poisoned<act>   acts(tokens*chunks);
        const unsigned  blocks = staged ? tokens : (tokens*chunks + 7)/8;
        launch({ blocks, 1, 1 }, 256, staged*k*sizeof(value), [&] { round(x.data(), order, acts.data(), tokens, chunks, staged); });
        wrong += wrong_chunks(rule, acts.data(), same, order, k) + !acts.fence();
    }
    check(wrong == 0, what, wrong);
}

static void check_activations() {
    const std::vector<float>    x      = hard_rows(tokens, k);
    const std::vector<uint16_t> x16    = halves(x);
    const std::vector<float>    same16 = widened(x16);
#define CHECK_ROUND(name, rule, act) \
    check_round<act>(rule, tcq4_round_##name##_f32, x,   x,      "rounding f32, " #name); \
    check_round<act>(rule, tcq4_round_##name##_f16, x16, same16, "rounding f16, " #name)
    CHECK_ROUND(int8,       TCQ4_RULE_INT8,      tcq4_act8);
    CHECK_ROUND(int4_g32,   TCQ4_RULE_INT4_G32,  tcq4_act4);
    CHECK_ROUND(int4_g256,  TCQ4_RULE_INT4_G256, tcq4_act4);
    CHECK_ROUND(int4_fork,  TCQ4_RULE_INT4_FORK, tcq4_act4);
    CHECK_ROUND(block_g256, TCQ4_RULE_INT4_G256, tcq4_block4);
    CHECK_ROUND(block_fork, TCQ4_RULE_INT4_FORK, tcq4_block4);
    CHECK_ROUND(wide_g256,  TCQ4_RULE_INT4_G256, tcq4_block8);
    CHECK_ROUND(wide_fork,  TCQ4_RULE_INT4_FORK, tcq4_block8);

    // What is not finite shows in the scale, of its group or its chunk.
    std::vector<float> bad = normal(k, 1.0f);
    bad[300] = INFINITY;
    poisoned<tcq4_act8>   int8(chunks);
    poisoned<tcq4_block4> block(chunks);
    launch({ 1, 1, 1 }, 256, 0, [&] { tcq4_round_int8_f32(bad.data(), nullptr, int8.data(), 1, chunks, 0); });
    launch({ 1, 1, 1 }, 256, 0, [&] { tcq4_round_block_g256_f32(bad.data(), nullptr, block.data(), 1, chunks, 0); });
    const bool told = std::isnan(int8[1].scale[3]) && std::isnan(block[1].scale) && !std::isnan(int8[0].scale[3]) && !std::isnan(block[0].scale);
    check(told, "an infinite activation makes a scale of NaN", 0.0);
}

static void check_dequantize() {
    const int rows = 24;
    const std::vector<tcq4_tile> tiles = some_tiles(rows, chunks, true);
    const std::vector<int32_t>   perm  = shuffled(k);
    for (int variant = 0; variant < 4; ++variant) {
        const int       rotated = variant%2;
        const int32_t * order   = variant/2 ? perm.data() : nullptr;
        std::vector<float> expected(rows*k);
        for (int i = 0; i < rows*chunks; ++i) {
            float values[256];
            for (int j = 0; j < 256; ++j) {
                values[j] = tcq4_value(&tiles[i/chunks/8*chunks + i%chunks], i/chunks%8, j);
            }
            if (!rotated) {
                tcq4_fwht256(values);
            }
            for (int j = 0; j < 256; ++j) {
                const int column = i%chunks*256 + j;
                expected[i/chunks*k + (order ? order[column] : column)] = values[j];
            }
        }
        poisoned<float>    y(rows*k);
        poisoned<uint16_t> y16(rows*k);
        launch({ rows/8*chunks, 1, 1 }, 256, 0, [&] { tcq4_dequantize_f32(tiles.data(), order, rotated, y.data(), chunks); });
        launch({ rows/8*chunks, 1, 1 }, 256, 0, [&] { tcq4_dequantize_f16(tiles.data(), order, rotated, y16.data(), chunks); });
        check(different(y, expected) == 0, "tiles as f32", different(y, expected));
        check(different(y16, halves(expected)) == 0, "tiles as f16", different(y16, halves(expected)));
    }
}

static void check_statistics() {
    const int n = 203, slices = 3;
    std::vector<float> x = hard_rows(n, k);
    for (int t = 0; t < n; ++t) {
        x[t*k + 3] += 100.0f; // a channel whose mean is far from 0
    }
    poisoned<double> partial_sums(slices*2*k), sums(2*k);
    poisoned<float>  partial_ranges(slices*3*k), ranges(3*k);
    for (int c = 0; c < k; ++c) {
        sums[c] = sums[k + c] = 0.0;
        ranges[c]       = 0.0f;
        ranges[k + c]   = INFINITY;
        ranges[2*k + c] = -INFINITY;
    }
    for (int half = 0; half < 2; ++half) { // two calls, of 100 and 103 tokens
        const int first = 100*half, size = half ? n - 100 : 100;
        launch({ k/256, slices, 1 }, 256, 0, [&] { tcq4_statistics(&x[first*k], size, k, partial_sums.data(), partial_ranges.data()); });
        launch({ k/256, 1, 1 }, 256, 0, [&] { tcq4_statistics_merge(partial_sums.data(), partial_ranges.data(), slices, k, sums.data(), ranges.data()); });
    }
    double worst = 0.0;
    int    wrong = !partial_sums.fence() + !partial_ranges.fence() + !sums.fence() + !ranges.fence();
    for (int c = 0; c < k; ++c) {
        double sum = 0.0, sum_sq = 0.0, magnitudes = 1e-300;
        float  range[3] = { 0.0f, INFINITY, -INFINITY };
        for (int t = 0; t < n; ++t) {
            const float v = x[t*k + c];
            sum        += v;
            sum_sq     += (double) v*v;
            magnitudes += std::fabs(v);
            range[0] = std::max(range[0], std::fabs(v));
            range[1] = std::min(range[1], v);
            range[2] = std::max(range[2], v);
        }
        worst = std::max({ worst, std::fabs(sums[c] - sum)/magnitudes, std::fabs(sums[k + c] - sum_sq)/(sum_sq + 1e-300) });
        for (int i = 0; i < 3; ++i) {
            wrong += ranges[i*k + c] != range[i];
        }
    }
    check(wrong == 0, "extremes of channels", wrong);
    check(worst < 1e-6, "sums and sums of squares of channels", worst);
}

static void check_gram() {
    const int n = 45;
    const std::vector<float> x = hard_rows(n, k);
    poisoned<double> gram(k*k);
    std::fill_n(gram.data(), k*k, 0.0);
    const unsigned blocks = k/128*(k/128 + 1)/2;
    for (int half = 0; half < 2; ++half) {
        launch({ blocks, 1, 1 }, 256, 0, [&] { tcq4_gram(&x[20*half*k], half ? n - 20 : 20, k, gram.data()); });
    }
    std::vector<double> expected(k*k);
    for (int t = 0; t < n; ++t) {
        for (int i = 0; i < k; ++i) {
            for (int j = 0; j <= i; ++j) {
                expected[i*k + j] += (double) x[t*k + i]*x[t*k + j];
            }
        }
    }
    double worst = gram.fence() ? 0.0 : INFINITY;
    for (int i = 0; i < k; ++i) {
        for (int j = 0; j <= i; ++j) {
            worst = std::max(worst, std::fabs(gram[i*k + j] - expected[i*k + j])/std::sqrt(expected[i*k + i]*expected[j*k + j]));
        }
    }
    check(worst < 4e-6, "second moments, the lower triangle", worst);
}

static void check_smooth() {
    std::vector<float> x = hard_rows(tokens, k);
    for (int t = 0; t < tokens; ++t) {
        x[t*k + 9] = x[t*k + 400] = 0.0f; // a channel without values, twice: equals in the order
    }
    std::fill_n(x.begin() + 8*k, k, 0.0f);
    poisoned<uint32_t> max_bits(k);
    poisoned<int32_t>  order(k);
    poisoned<float>    scales(k), token_scales(tokens), y(tokens*k);
    poisoned<int8_t>   codes(tokens*k);
    std::fill_n(max_bits.data(), k, 0u);
    launch({ k/256, 3, 1 }, 256, 0, [&] { tcq4_channel_max(x.data(), tokens, k, max_bits.data()); });
    launch({ k/256, 1, 1 }, 256, 0, [&] { tcq4_smooth_rank(max_bits.data(), k, order.data()); });
    launch({ k/256, 1, 1 }, 256, 0, [&] { tcq4_smooth_scales(max_bits.data(), order.data(), k, scales.data()); });
    launch({ tokens, 1, 1 }, 256, 0, [&] { tcq4_smooth_round(x.data(), scales.data(), k, codes.data(), token_scales.data(), y.data()); });

    std::vector<uint32_t> max_expected(k);
    std::vector<float>    maxima(k), scales_expected(k), token_scales_expected(tokens), y_expected(tokens*k);
    std::vector<int32_t>  order_expected(k);
    std::vector<int8_t>   codes_expected(tokens*k);
    for (int i = 0; i < tokens*k; ++i) {
        maxima[i%k] = std::max(maxima[i%k], std::fabs(x[i]));
    }
    std::transform(maxima.begin(), maxima.end(), max_expected.begin(), tcq4_bits_of_float);
    std::iota(order_expected.begin(), order_expected.end(), 0);
    std::stable_sort(order_expected.begin(), order_expected.end(), [&](int a, int b) { return maxima[a] > maxima[b]; });
    for (int i = 0; i < k; ++i) {
        scales_expected[order_expected[i]] = std::max(1e-5f, maxima[order_expected[i/128*128]]);
    }
    for (int t = 0; t < tokens; ++t) {
        float largest = 0.0f;
        for (int i = 0; i < k; ++i) {
            largest = std::max(largest, std::fabs(x[t*k + i]/scales_expected[i]));
        }
        const float scale = largest == 0.0f ? 1.0f : largest/7.0f;
        token_scales_expected[t] = scale;
        for (int i = 0; i < k; ++i) {
            const float code = std::min(7.0f, std::max(-8.0f, std::nearbyint(x[t*k + i]/scales_expected[i]/scale)));
            codes_expected[t*k + i] = (int8_t) code;
            y_expected[t*k + i]     = scales_expected[i]*scale*(code + 0.0f);
        }
    }
    const int in_order = different(max_bits, max_expected) + different(order, order_expected) + different(scales, scales_expected);
    check(in_order == 0, "Runtime Smooth: maxima, order and scales", in_order);
    const int rounded = different(codes, codes_expected) + different(token_scales, token_scales_expected) + different(y, y_expected);
    check(rounded == 0, "Runtime Smooth: codes, token scales and values", rounded);
}

int main() {
    check_fwht();
    check_gather(tcq4_gather_f32, hard_rows(tokens, k), "gather, f32");
    check_gather(tcq4_gather_f16, halves(hard_rows(tokens, k)), "gather, f16");
    check_activations();
    check_dequantize();
    check_statistics();
    check_gram();
    check_smooth();
    return failures != 0;
}
