// Checks the products of cuda/kernels without a GPU (see emulate.h) against sums in f64.
//
//   c++ -std=c++20 -O2 -Wno-unknown-pragmas -I cuda/include -o check cuda/dev/check_products.cpp && ./check
//
// With -DTCQ4_NATIVE_INT4=1 the INT4 path is that of sm_80 to sm_89, otherwise the widened one of sm_90. Prints a line for each check; the exit status is
// 1 if one failed. Tolerance: 1e-5 of the root mean square of a token's results.

#include "check.h"

#include "../kernels/activations.cu"
#include "../kernels/mul_mat.cu"
#include "../kernels/mul_mat_id.cu"
#include "../kernels/mul_vec.cu"

static void compare(const poisoned<float> & found, const std::vector<double> & expected, int rows, const char * what) {
    const double worst = worst_of(found, expected, rows);
    check(worst < 1e-5, what, worst);
}

// Rounds on the device's side; check_kernels.cpp sees that it is right.
template <typename act, typename kernel> static std::vector<act> rounded(kernel round, const std::vector<float> & x, const int32_t * perm, int k) {
    const int tokens = (int) x.size()/k;
    std::vector<act> acts(x.size()/256);
    launch({ (unsigned) (acts.size() + 7)/8, 1, 1 }, 256, 0, [&] { round(x.data(), perm, acts.data(), tokens, k/256, 0); });
    return acts;
}

// y[tokens][rows] of a result whose rows are `stride` apart; what lies between has to be as it was.
static poisoned<float> dense(const poisoned<float> & y, int tokens, int rows, int stride) {
    poisoned<float> out(tokens*rows);
    bool touched = !y.fence();
    for (int i = 0; i < tokens*stride; ++i) {
        if (i%stride < rows) {
            out[i/stride*rows + i%stride] = y.values[i];
        } else {
            touched |= tcq4_bits_of_float(y.values[i]) != 0xc3c3c3c3u;
        }
    }
    if (touched) {
        out[0] = NAN;
    }
    return out;
}

template <typename act, typename kernel>
static void check_vec(kernel mul_vec, const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows, int tokens, const char * what) {
    const int stride = rows + 4;
    poisoned<float> y(tokens*stride);
    launch({ (unsigned) rows/8, 1, 1 }, 128, 0, [&] { mul_vec(tiles.data(), acts.data(), y.data(), chunks, tokens, stride); });
    compare(dense(y, tokens, rows, stride), products(tiles.data(), acts.data(), tokens, chunks, rows), rows, what);
}

template <typename act, typename kernel>
static void check_fused(
        kernel fused, int most, const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, const std::vector<float> & x, const int32_t * perm, int chunks,
        int rows, int tokens, const char * what) {
    const int stride = rows + 4;
    poisoned<float> y(tokens*stride);
    launch({ 4, 1, 1 }, 512, most*chunks*sizeof(act), [&] { fused(x.data(), perm, tiles.data(), y.data(), rows, chunks, tokens, stride); });
    compare(dense(y, tokens, rows, stride), products(tiles.data(), acts.data(), tokens, chunks, rows), rows, what);
}

template <typename act, typename kernel>
static void check_vec_id(kernel mul_vec_id, const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows, const char * what) {
    const int used = 2, n = 6, experts = 3;
    const int32_t ids[n] = { 2, 0, 1, 1, 0, 2 };
    const int expert_tiles = rows/8*chunks;
    poisoned<float> y(n*rows);
    launch({ n, (unsigned) rows/8, 1 }, 128, 0, [&] { mul_vec_id(tiles.data(), acts.data(), ids, y.data(), chunks, expert_tiles, used, rows); });
    std::vector<double> expected;
    for (int i = 0; i < n; ++i) {
        const std::vector<double> one = products(&tiles[ids[i]%experts*expert_tiles], &acts[i/used*chunks], 1, chunks, rows);
        expected.insert(expected.end(), one.begin(), one.end());
    }
    compare(y, expected, rows, what);
}

template <typename act, typename kernel>
static void check_mat(kernel mul_mat, const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows, int tokens, const char * what) {
    const int stride = rows + 4;
    poisoned<float> y(tokens*stride);
    const dim3 grid = { (unsigned) (tokens + 127)/128, (unsigned) (rows + 127)/128, 1 };
    launch(grid, 256, sizeof(tcq4_gemm_shared<act>), [&] { mul_mat(tiles.data(), acts.data(), y.data(), rows, chunks, tokens, stride); });
    compare(dense(y, tokens, rows, stride), products(tiles.data(), acts.data(), tokens, chunks, rows), rows, what);
}

// Tokens with two experts each, sorted on the device; one expert has none, another more than a block takes.
template <typename act, typename kernel>
static void check_mat_id(kernel mul_mat_id, const std::vector<tcq4_tile> & tiles, const std::vector<act> & acts, int chunks, int rows, int tokens, const char * what) {
    const int used = 2, experts = 4, n = tokens*used;
    const int expert_tiles = rows/8*chunks;
    std::vector<int32_t> ids(n);
    for (int i = 0; i < n; ++i) {
        ids[i] = i%used == 0 ? 0 : i%7 == 1 ? 2 : 3;
    }
    poisoned<int32_t> bounds(experts + 1), sources(n), targets(n);
    launch({ experts, 1, 1 }, 256, 0, [&] { tcq4_sort_experts(ids.data(), n, used, experts, bounds.data(), sources.data(), targets.data()); });
    std::vector<int32_t> order(n), bounds_expected, sources_expected;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
    for (int e = 0; e <= experts; ++e) {
        bounds_expected.push_back((int32_t) std::count_if(ids.begin(), ids.end(), [&](int id) { return id < e; }));
    }
    for (int i : order) {
        sources_expected.push_back(i/used);
    }
    const int wrong = different(bounds, bounds_expected) + different(sources, sources_expected) + different(targets, order);
    check(wrong == 0, "products sorted by expert", wrong);

    poisoned<float> y(n*rows);
    launch({ (unsigned) (tokens + 127)/128, (unsigned) (rows + 127)/128, experts }, 256, sizeof(tcq4_gemm_shared<act>), [&] {
        mul_mat_id(tiles.data(), acts.data(), bounds.data(), sources.data(), targets.data(), y.data(), rows, chunks, expert_tiles, rows);
    });
    std::vector<double> expected;
    for (int i = 0; i < n; ++i) {
        const std::vector<double> one = products(&tiles[ids[i]*expert_tiles], &acts[i/used*chunks], 1, chunks, rows);
        expected.insert(expected.end(), one.begin(), one.end());
    }
    compare(y, expected, rows, what);
}

// The codes that add up to the largest integers: every weight -8, every scale code 127, every activation -8; and zero points with the largest codes.
static void check_extremes() {
    const int rows = 8, chunks = 1, tokens = 16;
    tcq4_tile tile;
    memset(&tile, 0, sizeof(tile));
    memset(tile.codes, 0x88, sizeof(tile.codes));
    memset(tile.scale_code, -127, sizeof(tile.scale_code));
    memset(tile.zero_code, -127, sizeof(tile.zero_code));
    std::fill_n(tile.scale, 8, tcq4_half_of_float(1.0f));
    std::fill_n(tile.zero, 8, tcq4_half_of_float(0.5f));
    const std::vector<tcq4_tile> tiles = { tile };
    tcq4_block4 narrow = {};
    tcq4_block8 wide   = {};
    memset(narrow.codes, 0x88, sizeof(narrow.codes));
    memset(wide.codes, -8, sizeof(wide.codes));
    narrow.scale = wide.scale = 0.25f;
    std::fill_n(narrow.sum, 8, (short) -256);
    std::fill_n(wide.sum, 8, (short) -256);
    check_mat(tcq4_mul_mat_block4, tiles, std::vector<tcq4_block4>(tokens, narrow), chunks, rows, tokens, "the largest integers, block4");
    check_mat(tcq4_mul_mat_block8, tiles, std::vector<tcq4_block8>(tokens, wide),   chunks, rows, tokens, "the largest integers, block8");
    const std::vector<float> x(tokens*256, 1.0f);
    check_mat(tcq4_mul_mat_int8, tiles, rounded<tcq4_act8>(tcq4_round_int8_f32, x, nullptr, 256), chunks, rows, tokens, "the largest integers, int8");
}

int main() {
    const int chunks = 3, k = 256*chunks, rows = 152, tokens = 137;
    const std::vector<float>   x    = hard_rows(tokens, k);
    const std::vector<int32_t> perm = shuffled(k);
    const auto int8   = rounded<tcq4_act8>  (tcq4_round_int8_f32,       x, perm.data(), k);
    const auto int4   = rounded<tcq4_act4>  (tcq4_round_int4_g32_f32,   x, perm.data(), k);
    const auto fork   = rounded<tcq4_act4>  (tcq4_round_int4_fork_f32,  x, perm.data(), k);
    const auto block4 = rounded<tcq4_block4>(tcq4_round_block_g256_f32, x, perm.data(), k);
    const auto block8 = rounded<tcq4_block8>(tcq4_round_wide_g256_f32,  x, perm.data(), k);

    for (const bool zeros : { true, false }) {
        const std::vector<tcq4_tile> tiles = some_tiles(rows, chunks, zeros);
        check_vec(tcq4_mul_vec_int8_m1, tiles, int8, chunks, rows, 1, "1 token, INT8");
        check_vec(tcq4_mul_vec_int8_m2, tiles, int8, chunks, rows, 2, "2 tokens, INT8");
        check_vec(tcq4_mul_vec_int8_m4, tiles, int8, chunks, rows, 3, "3 tokens of 4, INT8");
        check_vec(tcq4_mul_vec_int8_m8, tiles, int8, chunks, rows, 8, "8 tokens, INT8");
        check_vec(tcq4_mul_vec_int4_m1, tiles, int4, chunks, rows, 1, "1 token, INT4");
        check_vec(tcq4_mul_vec_int4_m2, tiles, fork, chunks, rows, 2, "2 tokens, INT4 by the fork's rule");
        check_vec(tcq4_mul_vec_int4_m4, tiles, int4, chunks, rows, 4, "4 tokens, INT4");
        check_vec(tcq4_mul_vec_int4_m8, tiles, int4, chunks, rows, 5, "5 tokens of 8, INT4");
        check_fused(tcq4_mul_vec_fused_int8_m1, 1, tiles, int8, x, perm.data(), chunks, rows, 1, "1 token, INT8, fused");
        check_fused(tcq4_mul_vec_fused_int8_m2, 2, tiles, int8, x, perm.data(), chunks, rows, 2, "2 tokens, INT8, fused");
        check_fused(tcq4_mul_vec_fused_int8_m4, 4, tiles, int8, x, perm.data(), chunks, rows, 4, "4 tokens, INT8, fused");
        check_fused(tcq4_mul_vec_fused_int8_m8, 8, tiles, int8, x, perm.data(), chunks, rows, 7, "7 tokens of 8, INT8, fused");
        check_fused(tcq4_mul_vec_fused_int4_m1, 1, tiles, int4, x, perm.data(), chunks, rows, 1, "1 token, INT4, fused");
        check_fused(tcq4_mul_vec_fused_int4_m2, 2, tiles, int4, x, perm.data(), chunks, rows, 2, "2 tokens, INT4, fused");
        check_fused(tcq4_mul_vec_fused_int4_m4, 4, tiles, int4, x, perm.data(), chunks, rows, 3, "3 tokens of 4, INT4, fused");
        check_fused(tcq4_mul_vec_fused_int4_m8, 8, tiles, int4, x, perm.data(), chunks, rows, 8, "8 tokens, INT4, fused");
        check_mat(tcq4_mul_mat_int8,   tiles, int8,   chunks, rows, tokens, "137 tokens, INT8");
        check_mat(tcq4_mul_mat_int4,   tiles, int4,   chunks, rows, tokens, TCQ4_NATIVE_INT4 ? "137 tokens, native INT4" : "137 tokens, INT4 widened");
        check_mat(tcq4_mul_mat_block4, tiles, block4, chunks, rows, tokens, TCQ4_NATIVE_INT4 ? "137 tokens, native blocks" : "137 tokens, blocks widened");
        check_mat(tcq4_mul_mat_block8, tiles, block8, chunks, rows, tokens, "137 tokens, blocks of bytes");
    }
    check_extremes();

    const int expert_rows = 40;
    const std::vector<tcq4_tile> experts = some_tiles(4*expert_rows, chunks, true);
    check_vec_id(tcq4_mul_vec_id_int8, experts, int8, chunks, expert_rows, "few products of experts, INT8");
    check_vec_id(tcq4_mul_vec_id_int4, experts, int4, chunks, expert_rows, "few products of experts, INT4");
    check_mat_id(tcq4_mul_mat_id_int8,   experts, int8,   chunks, expert_rows, tokens, "products of experts, INT8");
    check_mat_id(tcq4_mul_mat_id_int4,   experts, int4,   chunks, expert_rows, tokens, "products of experts, INT4");
    check_mat_id(tcq4_mul_mat_id_block4, experts, block4, chunks, expert_rows, tokens, "products of experts, blocks");
    check_mat_id(tcq4_mul_mat_id_block8, experts, block8, chunks, expert_rows, tokens, "products of experts, blocks of bytes");
    return failures != 0;
}
