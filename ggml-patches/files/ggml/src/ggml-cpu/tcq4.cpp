// TCQ4_K32 on the CPU: chooses the kernels, and does what is the same for all of them.

#include "tcq4-kernels.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

// Best last.
const tcq4_kernels * const all_kernels[] = {
    &tcq4_kernels_scalar,
#if defined(__x86_64__) || defined(_M_X64)
    &tcq4_kernels_avx2,
    &tcq4_kernels_avxvnni,
    &tcq4_kernels_avx512,
#elif defined(__aarch64__)
    &tcq4_kernels_neon,
#if defined(TCQ4_DOTPROD)
    &tcq4_kernels_dotprod,
#endif
#endif
};

const int n_kernels = sizeof(all_kernels)/sizeof(all_kernels[0]);

[[noreturn]] void refuse(const char * variable, const char * value, const char * expected) {
    fprintf(stderr, "%s=%s is not one of %s\n", variable, value, expected);
    abort();
}

int choose_kernels() {
    int best = 0;
    for (int i = 0; i < n_kernels; ++i) {
        best = all_kernels[i]->available() ? i : best;
    }
    const char * wanted = getenv("GGML_TCQ4_KERNELS");
    if (wanted == nullptr || *wanted == '\0') {
        return best;
    }
    for (int i = 0; i < n_kernels; ++i) {
        if (strcmp(wanted, all_kernels[i]->name) == 0 && all_kernels[i]->available()) {
            return i;
        }
    }
    refuse("GGML_TCQ4_KERNELS", wanted, "the kernels of this CPU");
}

std::atomic<int> & selected() {
    static std::atomic<int> index{choose_kernels()};
    return index;
}

const tcq4_kernels * kernels() {
    return all_kernels[selected().load(std::memory_order_relaxed)];
}

tcq4_act_path path_of_name(const char * name) {
    static const char * const names[] = { "int8", "int4-g32", "int4-g256", "int4-fork" };
    if (name == nullptr || *name == '\0') {
        return TCQ4_ACT_INT8;
    }
    for (int i = 0; i < 4; ++i) {
        if (strcmp(name, names[i]) == 0) {
            return (tcq4_act_path) i;
        }
    }
    refuse("GGML_TCQ4_ACT", name, "int8, int4-g32, int4-g256, int4-fork");
}

} // namespace

int tcq4_kernels_count(void) {
    return n_kernels;
}

const char * tcq4_kernels_name(int i) {
    return all_kernels[i]->name;
}

int tcq4_kernels_available(int i) {
    return all_kernels[i]->available();
}

int tcq4_kernels_select(int i) {
    if (i < 0 || i >= n_kernels || !all_kernels[i]->available()) {
        return 0;
    }
    selected().store(i, std::memory_order_relaxed);
    return 1;
}

int tcq4_kernels_selected(void) {
    return selected().load(std::memory_order_relaxed);
}

enum tcq4_act_path tcq4_act_path_of_env(void) {
    static const tcq4_act_path path = path_of_name(getenv("GGML_TCQ4_ACT"));
    return path;
}

size_t tcq4_act_row_size(int64_t k) {
    const size_t bytes = (size_t) (k/TCQ4_CHUNK)*sizeof(tcq4_act_chunk);
    return (bytes + 63)/64*64;
}

void tcq4_quantize_act(enum tcq4_act_path path, const float * x, const int32_t * perm, int64_t k, int64_t first_chunk, int64_t n_chunks, void * out) {
    (void) k;
    const tcq4_kernels * use = kernels();
    alignas(64) float y[TCQ4_CHUNK];
    for (int64_t t = first_chunk; t < first_chunk + n_chunks; ++t) {
        if (perm != nullptr) {
            for (int i = 0; i < TCQ4_CHUNK; ++i) {
                y[i] = x[perm[t*TCQ4_CHUNK + i]];
            }
        } else {
            memcpy(y, x + t*TCQ4_CHUNK, sizeof(y));
        }
        use->fwht(y, 1);
        use->round(path, y, (tcq4_act_chunk *) out + t);
    }
}

void tcq4_mul_mat(const void * tiles, int64_t k, int64_t n_rows, const void * acts, size_t act_stride, int64_t n_acts, float * dst, int64_t dst_stride) {
    const tcq4_kernels_args args = {
        (const tcq4_tile *) tiles, k/TCQ4_CHUNK, n_rows/TCQ4_ROWS, (const char *) acts, act_stride, n_acts, dst, dst_stride,
    };
    if (n_rows > 0 && n_acts > 0) {
        kernels()->mul_mat(&args);
    }
}

void tcq4_to_float(const void * tiles, int64_t k, int64_t first_row, int64_t n_rows, float * out) {
    const int64_t n_tiles = k/TCQ4_CHUNK;
    for (int64_t i = 0; i < n_rows; ++i) {
        const int64_t stripe = (first_row + i)/TCQ4_ROWS;
        const int     row    = (int) ((first_row + i)%TCQ4_ROWS);
        float *       values = out + i*k;
        for (int64_t t = 0; t < n_tiles; ++t) {
            const tcq4_tile * tile = (const tcq4_tile *) tiles + stripe*n_tiles + t;
            for (int g = 0; g < TCQ4_GROUPS; ++g) {
                const float     step   = tcq4_step  (tile, row, g);
                const float     offset = tcq4_offset(tile, row, g);
                const uint8_t * codes  = tile->codes + 128*g + 16*row;
                float *         y      = values + t*TCQ4_CHUNK + 32*g;
                for (int j = 0; j < 16; ++j) {
                    y[2*j]     = tcq4_mul(step, (float) (((codes[j] & 15) ^ 8) - 8)) + offset;
                    y[2*j + 1] = tcq4_mul(step, (float) (((codes[j] >> 4) ^ 8) - 8)) + offset;
                }
            }
        }
        kernels()->fwht(values, n_tiles);
    }
}
