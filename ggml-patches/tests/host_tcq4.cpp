// Checks tcq4_k32.h and the CPU kernels of TCQ4_K32 without llama.cpp: golden vectors, rounding rules, every kernel against an f64 oracle.
//
// usage: host_tcq4 FOLDER_OF_GOLDEN_VECTORS
// Prints one line for each check and for each set of kernels that was skipped; the exit code is 1 if anything failed.
//
// c++ -O2 -I cuda/include -I ggml-patches/files/ggml/src/ggml-cpu ggml-patches/tests/host_tcq4.cpp ggml-patches/files/ggml/src/ggml-cpu/tcq4*.cpp

#include "golden.h"

#include "tcq4-kernels.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

// Sums of f32 products in another order: relative to the sum of the magnitudes.
static const double TOLERANCE_SUM    = 2e-6;
// What the golden vectors state for sums in f32.
static const double TOLERANCE_GOLDEN = 1e-5;

static int failures = 0;

static void check(bool good, const char * what, const std::string & where) {
    if (!good) {
        failures += 1;
        printf("FAILED %s: %s\n", what, where.c_str());
    }
}

static bool same_bits(const float * a, const float * b, size_t n) {
    return memcmp(a, b, n*sizeof(float)) == 0;
}

// Calls f for every set of kernels that this CPU has.
template <typename F> static void for_each_kernels(F f) {
    const int before = tcq4_kernels_selected();
    for (int i = 0; i < tcq4_kernels_count(); ++i) {
        if (tcq4_kernels_select(i)) {
            f(std::string(tcq4_kernels_name(i)));
        }
    }
    tcq4_kernels_select(before);
}

// --- the header ---

static void check_halves() {
    for (uint32_t h = 0; h < 0x7c00; ++h) {
        const float value = tcq4_float_of_half((uint16_t) h);
        const float next  = h == 0x7bff ? 65536.0f : tcq4_float_of_half((uint16_t) (h + 1));
        const float tie   = (value + next)/2; // exact
        const uint16_t even = (uint16_t) (h + (h & 1));
        check(value == std::ldexp((float) (h < 0x400 ? h : (h & 0x3ff) | 0x400), (h < 0x400 ? 1 : (int) (h >> 10)) - 25), "value of a half", std::to_string(h));
        check(tcq4_half_of_float(value) == h && tcq4_half_of_float(-value) == (h | 0x8000), "half of its value", std::to_string(h));
        check(tcq4_half_of_float(tie) == even, "half of a tie", std::to_string(h));
        check(tcq4_half_of_float(std::nextafter(tie, 0.0f)) == h, "half below a tie", std::to_string(h));
        check(tcq4_half_of_float(std::nextafter(tie, 1e9f)) == h + 1, "half above a tie", std::to_string(h));
    }
    const float infinity = std::numeric_limits<float>::infinity();
    check(tcq4_half_of_float(-infinity) == 0xfc00 && tcq4_half_of_float(1e30f) == 0x7c00, "half of infinity", "");
    check(std::isnan(tcq4_float_of_half(tcq4_half_of_float(NAN))) && tcq4_float_of_half(0xfc00) == -infinity, "half of NaN", "");
}

static void check_rounding() {
    for (int i = -2000; i <= 2000; ++i) {
        const float x = (float) i/8;
        for (float y : { x, std::nextafter(x, -1e9f), std::nextafter(x, 1e9f) }) {
            check(tcq4_round_even(y) == (int) std::nearbyint(y), "round to even", std::to_string(y));
            check(tcq4_round_away(y) == (int) std::round(y), "round away", std::to_string(y));
        }
    }
}

// --- golden vectors ---

static std::vector<float> weights_of(const golden_case & c) {
    const std::vector<float> input = c.values<float>("input_f32");
    const std::vector<int32_t> perm = c.has("perm_i32") ? c.values<int32_t>("perm_i32") : std::vector<int32_t>();
    std::vector<float> weights((size_t) (c.rows + 7)/8*8*c.k, 0.0f);
    for (int64_t i = 0; i < c.rows*c.k; ++i) {
        weights[i] = perm.empty() ? input[i] : input[i/c.k*c.k + perm[i%c.k]];
    }
    return weights;
}

static void check_golden_weights(const golden_case & c) {
    const std::vector<float> weights = weights_of(c);
    std::vector<float> rotated = weights;
    for (size_t i = 0; i < rotated.size(); i += 256) {
        tcq4_fwht256(&rotated[i]);
    }
    const std::vector<float> expected = c.values<float>("rotated_f32");
    check(same_bits(rotated.data(), expected.data(), expected.size()), "golden rotation", c.name);

    const std::vector<uint8_t> tiles = c.values<uint8_t>("tiles_head");
    std::vector<uint8_t> encoded(tiles.size());
    int bad = 0;
    for (size_t row = 0; row < weights.size()/c.k; row += 8) {
        bad |= tcq4_encode_stripe(&weights[row*c.k], c.k, &encoded[row*c.k/256*TCQ4_ROW_BYTES]);
    }
    check(encoded == tiles, "golden tiles", c.name);
    check(bad == (c.name == "fp16_overflow"), "overflow is noticed", c.name);

    const std::vector<float> values  = c.values<float>("dequant_rotated_f32");
    const std::vector<float> spatial = c.values<float>("dequant_spatial_f32");
    std::vector<float> decoded(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        const size_t row = i/c.k, column = i%c.k;
        decoded[i] = tcq4_value((const tcq4_tile *) tiles.data() + row/8*(c.k/256) + column/256, row%8, column%256);
    }
    // The sign of an infinite product with code 0 is a NaN's, which no rule fixes.
    check(bad || same_bits(decoded.data(), values.data(), values.size()), "golden values", c.name);
    for_each_kernels([&](const std::string & kernels) {
        std::vector<float> rows(spatial.size());
        tcq4_to_float(tiles.data(), c.k, 0, (int64_t) rows.size()/c.k, rows.data());
        check(bad || same_bits(rows.data(), spatial.data(), rows.size()), "golden decoded rows", c.name + " " + kernels);
        std::vector<float> some(2*c.k);
        tcq4_to_float(tiles.data(), c.k, 5, 2, some.data());
        check(bad || same_bits(some.data(), &spatial[5*c.k], some.size()), "range of decoded rows", c.name + " " + kernels);
    });
}

// Activations of llama.cpp-rrs: blocks of 160 bytes with 128 bytes of nibbles, the maximum and 8 sums.
static void check_golden_products(const golden_case & c) {
    const std::vector<float>   x      = c.values<float>("act_input_f32");
    const std::vector<uint8_t> blocks = c.values<uint8_t>("act_blocks_emulated");
    const std::vector<double>  y      = c.values<double>("gemm_emulated_f64");
    const std::vector<uint8_t> tiles  = c.values<uint8_t>("tiles_head");
    const std::vector<int32_t> perm   = c.has("perm_i32") ? c.values<int32_t>("perm_i32") : std::vector<int32_t>();
    const int64_t n_acts = (int64_t) x.size()/c.k, n_rows = (int64_t) y.size()/n_acts;
    const size_t  stride = tcq4_act_row_size(c.k);
    for_each_kernels([&](const std::string & kernels) {
        const std::string where = c.name + " " + kernels;
        std::vector<char> acts(stride*n_acts);
        for (int64_t m = 0; m < n_acts; ++m) {
            tcq4_quantize_act(TCQ4_ACT_INT4_FORK, &x[m*c.k], perm.empty() ? nullptr : perm.data(), c.k, 0, c.k/256, &acts[m*stride]);
            for (int64_t t = 0; t < c.k/256; ++t) {
                const tcq4_act_chunk * chunk = (const tcq4_act_chunk *) &acts[m*stride] + t;
                const uint8_t * block = &blocks[(m*(c.k/256) + t)*160];
                float max;
                memcpy(&max, block + 128, 4);
                for (int i = 0; i < 256; ++i) {
                    const int code = ((block[i/2] >> (4*(i & 1)) & 15) ^ 8) - 8;
                    check(chunk->q[i/32*32 + i%32/2 + 16*(i & 1)] == code, "golden activation", where + " " + std::to_string(i));
                }
                check(chunk->d[0] == max/7, "golden activation scale", where);
            }
        }
        std::vector<float> out(y.size());
        tcq4_mul_mat(tiles.data(), c.k, n_rows, acts.data(), stride, n_acts, out.data(), n_rows);
        for (int64_t m = 0; m < n_acts; ++m) {
            double largest = 0;
            for (int64_t n = 0; n < n_rows; ++n) {
                largest = std::max(largest, std::fabs(y[m*n_rows + n]));
            }
            for (int64_t n = 0; n < n_rows; ++n) {
                check(std::fabs(out[m*n_rows + n] - y[m*n_rows + n]) <= TOLERANCE_GOLDEN*largest, "golden product", where);
            }
        }
    });
}

// --- activations ---

// The rules as the crate states them, with the rounding of the C library.
static void round_oracle(tcq4_act_path path, float * x) {
    const int n = path == TCQ4_ACT_INT8 || path == TCQ4_ACT_INT4_G32 ? 32 : 256;
    for (float * group = x; group < x + 256; group += n) {
        float extreme = 0;
        for (int i = 0; i < n; ++i) {
            extreme = std::fabs(group[i]) > std::fabs(extreme) ? group[i] : extreme;
        }
        const bool  tiny = std::fabs(extreme) < 1e-10f;
        float inverse, step, low, high;
        if (path == TCQ4_ACT_INT8 || path == TCQ4_ACT_INT4_FORK) {
            const float max = tiny ? 1.0f : std::fabs(extreme);
            high = path == TCQ4_ACT_INT8 ? 127.0f : 7.0f;
            low  = -high;
            inverse = high/max;
            step    = max/high;
        } else {
            volatile float clipped = extreme*(path == TCQ4_ACT_INT4_G256 ? 0.9f : 1.0f);
            step    = tiny ? 1.0f : clipped/-8.0f;
            inverse = 1.0f/step;
            low  = -8.0f;
            high = 7.0f;
        }
        for (int i = 0; i < n; ++i) {
            volatile float scaled = group[i]*inverse;
            group[i] = std::fmin(std::fmax(std::nearbyint(scaled), low), high)*step;
        }
    }
}

static std::vector<std::vector<float>> hard_chunks(std::mt19937 & rng) {
    std::normal_distribution<float> normal;
    std::vector<std::vector<float>> chunks;
    for (int kind = 0; kind < 64; ++kind) {
        std::vector<float> x(256);
        const float scale = std::ldexp(1.0f, kind%16*4 - 40);
        for (int i = 0; i < 256; ++i) {
            switch (kind/16) {
                case 0: x[i] = normal(rng)*scale; break;
                case 1: x[i] = (float) ((int) (rng()%17) - 8)/2*scale; break; // ties of every kind, equal extremes of both signs
                case 2: x[i] = i/32%3 == 0 ? 0.0f : normal(rng)*scale*(i == 77 ? 1000 : 1); break;
                case 3: x[i] = (float) ((int) (rng()%255) - 127)*scale; break;
            }
        }
        chunks.push_back(x);
    }
    chunks.push_back(std::vector<float>(256, 0.0f));
    chunks.push_back(std::vector<float>(256, -0.0f));
    chunks.push_back(std::vector<float>(256, 9e-11f));
    return chunks;
}

static bool same_chunk(const tcq4_act_chunk & a, const tcq4_act_chunk & b) {
    return memcmp(&a, &b, sizeof(a)) == 0;
}

static void check_activations() {
    std::mt19937 rng(1);
    const char * names[] = { "int8", "int4-g32", "int4-g256", "int4-fork" };
    for (const std::vector<float> & x : hard_chunks(rng)) {
        for (int p = 0; p < 4; ++p) {
            const tcq4_act_path path = (tcq4_act_path) p;
            std::vector<float> expected = x;
            round_oracle(path, expected.data());
            tcq4_act_chunk scalar;
            tcq4_act_round_scalar(path, x.data(), &scalar);
            for (int i = 0; i < 256; ++i) {
                const float value = scalar.q[i/32*32 + i%32/2 + 16*(i & 1)]*scalar.d[i/32];
                check(value == expected[i], "rounding rule", std::string(names[p]) + " " + std::to_string(x[i]));
            }
            for (int g = 0; g < 8; ++g) {
                int sum = 0;
                for (int i = 0; i < 32; ++i) {
                    sum += scalar.q[32*g + i];
                }
                check(scalar.ds[g] == scalar.d[g]*sum && scalar.bias[g] == TCQ4_MAGIC_BITS - 8*sum, "sums of codes", names[p]);
            }
            // The transform of the transform of x is nearly x, with its ties and equal extremes, and both are to have the same bits everywhere.
            std::vector<float> rotated = x, again;
            tcq4_fwht256(rotated.data());
            again = rotated;
            tcq4_fwht256(again.data());
            tcq4_act_chunk reference, reference_again;
            tcq4_act_round_scalar(path, rotated.data(), &reference);
            tcq4_act_round_scalar(path, again.data(), &reference_again);
            for_each_kernels([&](const std::string & kernels) {
                tcq4_act_chunk found;
                tcq4_quantize_act(path, x.data(), nullptr, 256, 0, 1, &found);
                check(same_chunk(found, reference), "activation chunk", kernels + " " + names[p]);
                tcq4_quantize_act(path, rotated.data(), nullptr, 256, 0, 1, &found);
                check(same_chunk(found, reference_again), "activation chunk of a rotated one", kernels + " " + names[p]);
            });
        }
    }
}

static void check_permutation() {
    const int k = 768;
    std::mt19937 rng(2);
    std::vector<float> x(k), gathered(k);
    std::vector<int32_t> perm(k);
    for (int i = 0; i < k; ++i) {
        x[i] = (float) (rng()%1000) - 500;
        perm[i] = (i*7 + 300)%k; // 7 and 768 have no common factor
    }
    for (int i = 0; i < k; ++i) {
        gathered[i] = x[perm[i]];
    }
    for_each_kernels([&](const std::string & kernels) {
        std::vector<char> a(tcq4_act_row_size(k)), b(a.size());
        tcq4_quantize_act(TCQ4_ACT_INT8, x.data(), perm.data(), k, 1, 2, a.data());
        tcq4_quantize_act(TCQ4_ACT_INT8, x.data(), perm.data(), k, 0, 1, a.data());
        tcq4_quantize_act(TCQ4_ACT_INT8, gathered.data(), nullptr, k, 0, 3, b.data());
        check(a == b, "permutation", kernels);
    });
}

static void check_not_finite() {
    for_each_kernels([&](const std::string & kernels) {
        for (float bad : { (float) NAN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity() }) {
            for (int p = 0; p < 4; ++p) {
                std::vector<float> x(512, 0.25f);
                x[300] = bad;
                std::vector<char> act(tcq4_act_row_size(512));
                tcq4_quantize_act((tcq4_act_path) p, x.data(), nullptr, 512, 0, 2, act.data());
                std::vector<tcq4_tile> tiles(2);
                const std::vector<float> rows(8*512, 1.0f);
                tcq4_encode_stripe(rows.data(), 512, tiles.data());
                float y[8];
                tcq4_mul_mat(tiles.data(), 512, 8, act.data(), act.size(), 1, y, 8);
                for (float value : y) {
                    check(std::isnan(value), "what is not finite stays so", kernels);
                }
            }
        }
    });
}

// --- products ---

struct problem {
    int64_t k, n_rows, n_acts;
    std::vector<tcq4_tile> tiles;
    std::vector<char> acts;
    std::vector<double> y, magnitude; // [n_acts][n_rows]

    size_t stride() const { return tcq4_act_row_size(k); }

    problem(int64_t k, int64_t n_rows, int64_t n_acts, bool extremes, bool offsets, uint32_t seed) : k(k), n_rows(n_rows), n_acts(n_acts) {
        std::mt19937 rng(seed);
        tiles.resize(n_rows/8*(k/256));
        for (tcq4_tile & tile : tiles) {
            for (uint8_t & byte : tile.codes) {
                byte = extremes ? 0x88 : (uint8_t) rng(); // -8 everywhere
            }
            const bool has_offsets = offsets && rng()%2 == 0; // tiles with and without meet in one pass
            for (int i = 0; i < 8; ++i) {
                tile.scale[i] = tcq4_half_of_float((float) (rng()%1000 + 1)/1000);
                tile.zero[i]  = has_offsets ? tcq4_half_of_float((float) (rng()%2001)/1000 - 1) : 0;
            }
            for (int i = 0; i < 64; ++i) {
                tile.scale_code[i] = extremes ? -127 : (int8_t) (rng()%255 - 127);
                tile.zero_code[i]  = offsets ? (int8_t) (rng()%255 - 127) : 0;
            }
        }
        acts.resize(stride()*n_acts);
        std::normal_distribution<float> normal;
        for (int64_t m = 0; m < n_acts; ++m) {
            for (int64_t t = 0; t < k/256; ++t) {
                std::vector<float> x(256);
                for (float & value : x) {
                    value = extremes ? (m & 1 ? 1.0f : -1.0f) : normal(rng);
                }
                tcq4_act_round_scalar(extremes ? TCQ4_ACT_INT8 : (tcq4_act_path) (m%4), x.data(), (tcq4_act_chunk *) &acts[m*stride()] + t);
            }
        }
        solve();
    }

    void solve() {
        for (int64_t m = 0; m < n_acts; ++m) {
            for (int64_t n = 0; n < n_rows; ++n) {
                double sum = 0, sum_abs = 0;
                for (int64_t i = 0; i < k; ++i) {
                    const tcq4_act_chunk * a = (const tcq4_act_chunk *) &acts[m*stride()] + i/256;
                    const int c = (int) (i%256);
                    const double value = a->q[c/32*32 + c%32/2 + 16*(c & 1)]*(double) a->d[c/32];
                    const double product = value*(double) tcq4_value(&tiles[n/8*(k/256) + i/256], n%8, c);
                    sum     += product;
                    sum_abs += std::fabs(product);
                }
                y.push_back(sum);
                magnitude.push_back(sum_abs);
            }
        }
    }
};

static void check_problem(const problem & p, const std::string & where) {
    std::vector<float> out(p.y.size());
    tcq4_mul_mat(p.tiles.data(), p.k, p.n_rows, p.acts.data(), p.stride(), p.n_acts, out.data(), p.n_rows);
    for (size_t i = 0; i < out.size(); ++i) {
        check(std::fabs(out[i] - p.y[i]) <= TOLERANCE_SUM*p.magnitude[i], "product", where + " at " + std::to_string(i) + ": " + std::to_string(out[i]) + " for " + std::to_string(p.y[i]));
    }
    // One stripe and one activation row at a time, into rows that are further apart: the same bits, and nothing beside them.
    const int64_t apart = p.n_rows + 3;
    std::vector<float> pieces(p.n_acts*apart, 77.0f);
    for (int64_t n = 0; n < p.n_rows; n += 8) {
        for (int64_t m = 0; m < p.n_acts; ++m) {
            tcq4_mul_mat(&p.tiles[n/8*(p.k/256)], p.k, 8, &p.acts[m*p.stride()], p.stride(), 1, &pieces[m*apart + n], apart);
        }
    }
    for (int64_t m = 0; m < p.n_acts; ++m) {
        check(same_bits(&pieces[m*apart], &out[m*p.n_rows], p.n_rows), "independence of the split", where);
        check(pieces[m*apart + p.n_rows] == 77.0f, "writes beside the result", where);
    }
}

static void check_products() {
    const int64_t shapes[][3] = { { 256, 8, 1 }, { 256, 16, 2 }, { 512, 24, 3 }, { 768, 8, 5 }, { 1792, 40, 7 }, { 512, 32, 17 }, { 256, 48, 35 }, { 512, 16, 150 } };
    for (const auto & s : shapes) {
        for (int kind = 0; kind < 4; ++kind) {
            const problem p(s[0], s[1], s[2], kind & 1, kind & 2, (uint32_t) (s[0] + s[1] + s[2] + kind));
            for_each_kernels([&](const std::string & kernels) {
                check_problem(p, kernels + " k " + std::to_string(s[0]) + " rows " + std::to_string(s[1]) + " acts " + std::to_string(s[2]) + " kind " + std::to_string(kind));
            });
        }
    }
}

static void report(const char * name) {
    static int before = 0;
    printf("%-20s %s\n", name, failures == before ? "ok" : "FAILED");
    before = failures;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER_OF_GOLDEN_VECTORS\n", argv[0]);
        return 2;
    }
    for (int i = 0; i < tcq4_kernels_count(); ++i) {
        printf("kernels %-12s %s\n", tcq4_kernels_name(i), tcq4_kernels_available(i) ? "checked" : "SKIPPED: this CPU lacks the instructions");
    }
    check_halves();
    report("halves");
    check_rounding();
    report("rounding");
    const std::vector<golden_case> cases = golden_read(argv[1]);
    check(cases.size() == 16, "number of golden cases", argv[1]);
    for (const golden_case & c : cases) {
        check_golden_weights(c);
        if (c.has("act_input_f32")) {
            check_golden_products(c);
        }
    }
    report("golden vectors");
    check_activations();
    report("activations");
    check_permutation();
    report("permutation");
    check_not_finite();
    report("not finite");
    check_products();
    report("products");
    return failures == 0 ? 0 : 1;
}
