// Times the CPU kernels of TCQ4_K32 beside the bounds of the machine and, with a libggml-cpu at hand, beside ggml's Q4_0 and Q4_K.
//
// usage: bench_tcq4 [-t THREADS] [-k COLUMNS] [-n ROWS] [-r ROUNDS] [-m ACTIVATION_ROWS] [--only KERNELS] [--ggml libggml-cpu.so]
//
// Every figure is the median of the CPU time of the slowest thread, over rounds in which all candidates take turns (and the best). GEMV walks through enough copies of the matrix that no cache
// of a core holds them; GEMM multiplies one with 512 activation rows. GB/s counts the bytes of the weights, GOP/s two operations a weight and activation row.
//
// ggml multiplies four interleaved activation rows at a time, so ACTIVATION_ROWS has to be 1 or a multiple of 4.
//
// c++ -O2 -pthread -I cuda/include -I ggml-patches/files/ggml/src/ggml-cpu ggml-patches/tests/bench_tcq4.cpp ggml-patches/files/ggml/src/ggml-cpu/tcq4*.cpp -ldl

#include "tcq4-kernels.h"

#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized" // gcc 12 says so of its own _mm512_undefined_ps()
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

// Of the calling thread: what else runs on the machine is not counted, except for the bandwidth and the caches that it takes.
static double cpu_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double) t.tv_sec + 1e-9*(double) t.tv_nsec;
}

// Seconds of CPU that the slowest of n threads takes for work(thread), from a common start.
static double time_threads(int n, const std::function<void(int)> & work) {
    std::atomic<int> ready{0};
    std::vector<double> seconds(n);
    const auto body = [&](int i) {
        ready.fetch_add(1);
        while (ready.load() < n) {
        }
        const double start = cpu_seconds();
        work(i);
        seconds[i] = cpu_seconds() - start;
    };
    std::vector<std::thread> others;
    for (int i = 1; i < n; ++i) {
        others.emplace_back(body, i);
    }
    body(0);
    for (std::thread & t : others) {
        t.join();
    }
    return *std::max_element(seconds.begin(), seconds.end());
}

struct candidate {
    std::string                name;
    double                     bytes;   // of weights a run
    double                     ops;
    int                        kernels; // to select before a run, or -1
    std::function<void(int)>   run;     // by thread number
    std::vector<double>        seconds;
};

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size()/2];
}

static void race(const char * title, int threads, int rounds, std::vector<candidate> & all) {
    for (int r = 0; r < rounds + 1; ++r) {
        for (candidate & c : all) {
            if (c.kernels >= 0) {
                tcq4_kernels_select(c.kernels);
            }
            const double s = time_threads(threads, c.run);
            if (r > 0) {
                c.seconds.push_back(s);
            }
        }
    }
    printf("%s\n", title);
    for (const candidate & c : all) {
        const double s = median(c.seconds);
        printf("  %-34s %10.1f us (best %10.1f)", c.name.c_str(), 1e6*s, 1e6**std::min_element(c.seconds.begin(), c.seconds.end()));
        printf(c.bytes > 0 ? " %8.2f GB/s" : "              ", c.bytes/s/1e9);
        printf(c.ops > 0 ? " %9.1f GOP/s\n" : "\n", c.ops/s/1e9);
    }
}

// --- bounds ---

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t read_all(const char * p, size_t n) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t i = 0; i + 256 <= n; i += 256) {
        a = _mm512_xor_si512(a, _mm512_loadu_si512(p + i));
        b = _mm512_xor_si512(b, _mm512_loadu_si512(p + i + 64));
        c = _mm512_xor_si512(c, _mm512_loadu_si512(p + i + 128));
        d = _mm512_xor_si512(d, _mm512_loadu_si512(p + i + 192));
    }
    return (uint64_t) _mm512_reduce_add_epi64(_mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
}

// 16 chains of vpdpbusd: 128 operations each.
__attribute__((target("avx512f,avx512vnni"))) static int spin_vnni(int n) {
    __m512i v[16];
    const __m512i x = _mm512_set1_epi32(n), y = _mm512_set1_epi32(n + 1);
    TCQ4_UNROLL
    for (int i = 0; i < 16; ++i) {
        v[i] = _mm512_set1_epi32(i);
    }
    for (int r = 0; r < n; ++r) {
        TCQ4_UNROLL
        for (int i = 0; i < 16; ++i) {
            v[i] = _mm512_dpbusd_epi32(v[i], x, y);
            __asm__("" : "+v"(v[i]));
        }
    }
    TCQ4_UNROLL
    for (int i = 1; i < 16; ++i) {
        v[0] = _mm512_add_epi32(v[0], v[i]);
    }
    return _mm512_reduce_add_epi32(v[0]);
}
#endif

static volatile uint64_t sink;

static void bench_bounds(int threads, int rounds) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx512vnni")) {
        printf("bounds: SKIPPED, no AVX-512-VNNI\n");
        return;
    }
    const size_t bytes = (size_t) 512 << 20;
    std::vector<char> memory(bytes, 1);
    const int n = 2000000;
    std::vector<candidate> all;
    all.push_back({ "read 512 MiB", (double) bytes, 0, -1, [&](int t) { sink = read_all(memory.data() + bytes/threads*t, bytes/threads); }, {} });
    all.push_back({ "vpdpbusd alone", 0, 16.0*128*n*threads, -1, [&](int) { sink = (uint64_t) spin_vnni(n); }, {} });
    race("bounds", threads, rounds, all);
#else
    (void) threads, (void) rounds;
#endif
}

// --- TCQ4 and ggml's types ---

typedef void (*gemm_fn)(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc);
typedef void (*dot_fn)(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);
typedef void (*quantize_fn)(const float * x, void * y, int64_t k);

// A type of ggml: what its kernels are called, and the bytes of 256 weights and of 256 activations.
struct ggml_type_of_bench {
    const char * name;
    const char * gemv;
    const char * gemm;
    const char * dot;
    const char * quantize;
    int          weight_bytes;
    int          act_bytes;
};

static const ggml_type_of_bench ggml_types[] = {
    { "Q4_0", "ggml_gemv_q4_0_8x8_q8_0", "ggml_gemm_q4_0_8x8_q8_0", "ggml_vec_dot_q4_0_q8_0", "quantize_row_q8_0", 144, 272 },
    { "Q4_K", "ggml_gemv_q4_K_8x8_q8_K", "ggml_gemm_q4_K_8x8_q8_K", "ggml_vec_dot_q4_K_q8_K", "quantize_row_q8_K", 144, 292 },
};

struct bench {
    int64_t k = 4096, n = 4096;
    int     threads = 1, rounds = 9;
    void *  ggml = nullptr;
    const char * only = nullptr;
    std::vector<int64_t> n_acts = { 1, 4, 8, 512 };

    std::vector<float> x;

    template <typename F> F symbol(const char * name) const { return (F) dlsym(ggml, name); }

    // Rows of a thread: whole pairs of stripes.
    int64_t first_row(int t) const { return n/16*t/threads*16; }

    void run(int64_t n_acts);
    void quantize();
};

// Random bytes whose every pair is a small normal fp16, since subnormal or infinite scales would not be typical.
static std::vector<char> random_weights(size_t bytes) {
    std::vector<char> data(bytes + 64);
    std::mt19937 rng(1);
    for (size_t i = 0; i + 2 <= data.size(); i += 2) {
        const uint32_t r = rng();
        data[i]     = (char) r;
        data[i + 1] = (char) ((r >> 8 & 0x83) | 0x18);
    }
    return data;
}

static std::vector<char> random_tiles(size_t n, bool offsets) {
    std::vector<char> data(n*TCQ4_TILE_BYTES);
    std::mt19937 rng(1);
    tcq4_tile tile;
    for (size_t t = 0; t < n; ++t) {
        for (uint8_t & code : tile.codes) {
            code = (uint8_t) rng();
        }
        for (int i = 0; i < 8; ++i) {
            tile.scale[i] = 0x2000;
            tile.zero[i]  = offsets ? 0x1c00 : 0;
        }
        for (int i = 0; i < 64; ++i) {
            tile.scale_code[i] = (int8_t) (rng()%128);
            tile.zero_code[i]  = offsets ? (int8_t) rng() : 0;
        }
        memcpy(&data[t*TCQ4_TILE_BYTES], &tile, sizeof(tile));
    }
    return data;
}

void bench::run(int64_t n_acts) {
    // Beyond the caches of a core for GEMV.
    const int64_t copies = n_acts == 1 ? std::max<int64_t>(1, 400000000/(n*k*9/16)) : 1;
    const int64_t chunks = k/256;
    const double  weights = (double) n*k*copies;
    std::vector<float> dst(n*n_acts);
    std::vector<candidate> all;

    const std::vector<char> plain = random_tiles(copies*n/8*chunks, false), offset = random_tiles(copies*n/8*chunks, true);
    const size_t stride = tcq4_act_row_size(k);
    std::vector<char> acts(stride*n_acts);
    for (int64_t m = 0; m < n_acts; ++m) {
        tcq4_quantize_act(TCQ4_ACT_INT8, x.data() + 7*m%1000, nullptr, k, 0, chunks, &acts[m*stride]);
    }
    for (int i = 0; i < tcq4_kernels_count(); ++i) {
        if (!tcq4_kernels_available(i) || (only != nullptr && strcmp(only, tcq4_kernels_name(i)) != 0)) {
            continue;
        }
        for (const std::vector<char> * tiles : { &plain, &offset }) {
            const char * data = tiles->data();
            all.push_back({ std::string("TCQ4 ") + tcq4_kernels_name(i) + (tiles == &offset ? ", zero points" : ""), weights*TCQ4_ROW_BYTES/256, 2*weights*n_acts, i, [=, &acts, &dst](int t) {
                const int64_t from = first_row(t), rows = first_row(t + 1) - from;
                for (int64_t c = 0; c < copies; ++c) {
                    tcq4_mul_mat(data + (c*n + from)*chunks*TCQ4_ROW_BYTES, k, rows, acts.data(), stride, n_acts, dst.data() + from, n);
                }
            }, {} });
        }
    }

    std::vector<std::vector<char>> kept; // alive until the race is over
    for (const ggml_type_of_bench & type : ggml_types) {
        if (ggml == nullptr) {
            break;
        }
        const size_t row = chunks*type.weight_bytes, act = chunks*type.act_bytes;
        kept.push_back(random_weights(copies*n*row));
        const char * w = kept.back().data();
        // Four interleaved rows take as much as four single ones, and random bytes serve for both.
        kept.push_back(random_weights(n_acts*act));
        const char * a = kept.back().data();
        const gemm_fn gemm = symbol<gemm_fn>(n_acts == 1 ? type.gemv : type.gemm);
        const dot_fn  dot  = symbol<dot_fn>(type.dot);
        const double  bytes = weights*type.weight_bytes/256;
        all.push_back({ std::string(type.name) + " repacked 8x8", bytes, 2*weights*n_acts, -1, [=, &dst](int t) {
            const int64_t from = first_row(t), rows = first_row(t + 1) - from;
            for (int64_t c = 0; c < copies; ++c) {
                gemm((int) k, dst.data() + from, n, w + (c*n + from)*row, a, (int) n_acts, (int) rows);
            }
        }, {} });
        // As ggml_compute_forward_mul_mat does: blocks of 16 by 16.
        all.push_back({ std::string(type.name) + " vec_dot", bytes, 2*weights*n_acts, -1, [=, &dst](int t) {
            const int64_t from = first_row(t), to = first_row(t + 1);
            for (int64_t c = 0; c < copies; ++c) {
                for (int64_t i0 = from; i0 < to; i0 += 16) {
                    for (int64_t m0 = 0; m0 < n_acts; m0 += 16) {
                        for (int64_t m = m0; m < std::min(m0 + 16, n_acts); ++m) {
                            for (int64_t i = i0; i < i0 + 16; ++i) {
                                dot((int) k, &dst[m*n + i], 0, w + (c*n + i)*row, 0, a + m*act, 0, 1);
                            }
                        }
                    }
                }
            }
        }, {} });
    }
    char title[128];
    snprintf(title, sizeof(title), "%lld x %lld, %lld copies, %lld activation rows, %d threads", (long long) n, (long long) k, (long long) copies, (long long) n_acts, threads);
    race(title, threads, n_acts == 1 || n_acts > 64 ? rounds : 3*rounds, all);
}

// 512 activation rows on one thread.
void bench::quantize() {
    const int64_t n_acts = 512;
    std::vector<char> out(n_acts*tcq4_act_row_size(k));
    std::vector<int32_t> perm(k);
    for (int64_t i = 0; i < k; ++i) {
        perm[i] = (int32_t) (i*37%k);
    }
    std::vector<candidate> all;
    for (int i = 0; i < tcq4_kernels_count(); ++i) {
        for (int permuted = 0; permuted < 2 && tcq4_kernels_available(i); ++permuted) {
            all.push_back({ std::string("TCQ4 ") + tcq4_kernels_name(i) + (permuted ? ", permuted" : ""), 4.0*n_acts*k, 0, i, [=, &out, &perm](int) {
                for (int64_t m = 0; m < n_acts; ++m) {
                    tcq4_quantize_act(TCQ4_ACT_INT8, x.data() + 7*m%1000, permuted ? perm.data() : nullptr, k, 0, k/256, &out[m*tcq4_act_row_size(k)]);
                }
            }, {} });
        }
    }
    for (const ggml_type_of_bench & type : ggml_types) {
        if (ggml != nullptr) {
            const quantize_fn quantize = symbol<quantize_fn>(type.quantize);
            all.push_back({ type.quantize, 4.0*n_acts*k, 0, -1, [=, &out](int) {
                for (int64_t m = 0; m < n_acts; ++m) {
                    quantize(x.data() + 7*m%1000, &out[m*(k/256)*type.act_bytes], k);
                }
            }, {} });
        }
    }
    race("quantising 512 activation rows on one thread (GB/s of f32)", 1, rounds, all);
}

int main(int argc, char ** argv) {
    bench b;
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string option = argv[i];
        if      (option == "-t") { b.threads = atoi(argv[i + 1]); }
        else if (option == "-k") { b.k       = atoi(argv[i + 1]); }
        else if (option == "-n") { b.n       = atoi(argv[i + 1]); }
        else if (option == "-r") { b.rounds  = atoi(argv[i + 1]); }
        else if (option == "-m") { b.n_acts  = { atoi(argv[i + 1]) }; }
        else if (option == "--only") { b.only = argv[i + 1]; }
        else if (option == "--ggml") {
            b.ggml = dlopen(argv[i + 1], RTLD_NOW | RTLD_GLOBAL);
            // ggml fills its table of fp16 values when the first backend is made; the kernels need it.
            typedef void (*init_fn)(void);
            const init_fn init = b.ggml == nullptr ? nullptr : (init_fn) dlsym(b.ggml, "ggml_cpu_init");
            if (init == nullptr) {
                fprintf(stderr, "%s\n", dlerror());
                return 1;
            }
            init();
        } else {
            fprintf(stderr, "unknown option %s\n", argv[i]);
            return 2;
        }
    }
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    b.x.resize(b.k + 1000);
    for (float & value : b.x) {
        value = normal(rng);
    }
    bench_bounds(b.threads, b.rounds);
    for (int64_t n_acts : b.n_acts) {
        b.run(n_acts);
    }
    b.quantize();
    return 0;
}
