// Checks the tile encoders of cuda/kernels without a GPU (see emulate.h): byte for byte against what the Rust codec made.
//
//   c++ -std=c++20 -O2 -Wno-unknown-pragmas -I cuda/include -o check cuda/dev/check_encode.cpp && ./check CASES
//
// CASES holds, for each case: int32 rows, int32 k, the weights [rows][k] as f32; then for parity and for default: tiles [rows/8][k/256], and for each 8 rows
// two f64, the squared error and the squares of the rotated weights. `cargo test device_code` writes such a file. Prints a line for each check; the exit
// status is 1 if one failed.

#include "check.h"

#include "../kernels/encode.cu"

struct made {
    std::vector<tcq4_tile> tiles;
    std::vector<double>    losses;
};

struct one_case {
    int                rows, k;
    std::vector<float> weights;
    made               parity, searched;

    int tiles() const { return rows/8*(k/256); }
};

template <typename T> static bool read_some(FILE * file, std::vector<T> & to, size_t n) {
    to.resize(n);
    return fread((void *) to.data(), sizeof(T), n, file) == n;
}

static bool read_case(FILE * file, one_case & c) {
    std::vector<int32_t> sizes;
    if (!read_some(file, sizes, 2)) {
        return false;
    }
    c.rows = sizes[0];
    c.k    = sizes[1];
    bool good = read_some(file, c.weights, (size_t) c.rows*c.k);
    for (made * m : { &c.parity, &c.searched }) {
        good = good && read_some(file, m->tiles, c.tiles()) && read_some(file, m->losses, c.rows/8*2);
    }
    return good;
}

// How many tiles and losses are not those that Rust made.
template <typename value, typename kernel>
static int wrong_tiles(kernel encode, const one_case & c, const made & expected, const value * x, const int32_t * perm, int rotated) {
    const int chunks = c.k/256;
    poisoned<tcq4_tile> tiles(c.tiles());
    poisoned<float>     losses(16*c.tiles());
    poisoned<int32_t>   defects(c.tiles());
    launch({ (unsigned) c.tiles(), 1, 1 }, 64, 0, [&] { encode(x, perm, rotated, chunks, tiles.data(), losses.data(), defects.data()); });
    int wrong = different(tiles, expected.tiles) + different(defects, std::vector<int32_t>(c.tiles(), 0)) + !losses.fence();
    for (int stripe = 0; stripe < c.rows/8; ++stripe) {
        double sums[2] = {};
        for (int t = 0; t < chunks; ++t) {
            double of_tile[2] = {};
            for (int i = 0; i < 16; ++i) {
                of_tile[i/8] += losses[16*(stripe*chunks + t) + i];
            }
            sums[0] += of_tile[0];
            sums[1] += of_tile[1];
        }
        wrong += memcmp(sums, &expected.losses[2*stripe], sizeof(sums)) != 0;
    }
    // without losses the tiles are the same
    poisoned<tcq4_tile> again(c.tiles());
    launch({ (unsigned) c.tiles(), 1, 1 }, 64, 0, [&] { encode(x, perm, rotated, chunks, again.data(), nullptr, defects.data()); });
    return wrong + different(again, expected.tiles);
}

static void check_case(const one_case & c, int number) {
    char what[80];
    const auto tell = [&](const char * how, int wrong) {
        snprintf(what, sizeof(what), "case %d, %s", number, how);
        check(wrong == 0, what, wrong);
    };
    const float * x = c.weights.data();
    tell("parity",  wrong_tiles(tcq4_encode_parity_f32,  c, c.parity,   x, nullptr, 0));
    tell("default", wrong_tiles(tcq4_encode_default_f32, c, c.searched, x, nullptr, 0));

    // the same from weights in another order, and from rotated ones
    const std::vector<int32_t> perm = shuffled(c.k);
    std::vector<float> moved(c.weights.size()), rotated = c.weights;
    for (size_t i = 0; i < moved.size(); ++i) {
        moved[i/c.k*c.k + perm[i%c.k]] = c.weights[i];
    }
    for (size_t i = 0; i < rotated.size(); i += 256) {
        tcq4_fwht256(&rotated[i]);
    }
    tell("default, permuted", wrong_tiles(tcq4_encode_default_f32, c, c.searched, moved.data(), perm.data(), 0));
    tell("parity, rotated",   wrong_tiles(tcq4_encode_parity_f32,  c, c.parity,   rotated.data(), nullptr, 1));

    const std::vector<uint16_t> half = halves(c.weights);
    if (widened(half) == c.weights) {
        tell("parity, f16",  wrong_tiles(tcq4_encode_parity_f16,  c, c.parity,   half.data(), nullptr, 0));
        tell("default, f16", wrong_tiles(tcq4_encode_default_f16, c, c.searched, half.data(), nullptr, 0));
    }
}

// Tiles that cannot be encoded are told, and the others are not.
static void check_defects() {
    const int rows = 8, chunks = 4, k = 256*chunks;
    std::vector<float> x = normal((size_t) rows*k, 1.0f);
    x[2*k + 300] = NAN;
    x[5*k + 600] = INFINITY;
    std::fill_n(x.begin() + 3*k + 768, 256, 30000.0f); // 480 000 in one place
    poisoned<tcq4_tile> tiles(chunks);
    poisoned<float>     losses(16*chunks);
    poisoned<int32_t>   defects(chunks);
    for (const auto encode : { tcq4_encode_parity_f32, tcq4_encode_default_f32 }) {
        launch({ chunks, 1, 1 }, 64, 0, [&] { encode(x.data(), nullptr, 0, chunks, tiles.data(), losses.data(), defects.data()); });
        check(different(defects, { 0, 1, 1, 2 }) == 0 && tiles.fence() && losses.fence(), "what cannot be encoded is told", 0.0);
    }
}

int main(int argc, char ** argv) {
    FILE * file = argc == 2 ? fopen(argv[1], "rb") : nullptr;
    if (!file) {
        fprintf(stderr, "usage: check_encode CASES\n");
        return 2;
    }
    one_case c;
    int number = 0;
    for (; read_case(file, c); ++number) {
        check_case(c, number);
    }
    fclose(file);
    check(number > 0, "cases read", number);
    check_defects();
    return failures != 0;
}
