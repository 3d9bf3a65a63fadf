// From naive to fast: the transform of every 256 values, and activations from channels to codes.
//
//   nvcc -std=c++17 -O3 -I cuda/include -arch=native -o ladder cuda/dev/ladder_activations.cu && ./ladder        times and GB/s, on a GPU
//   c++ -std=c++20 -O2 -Wno-unknown-pragmas -I cuda/include -x c++ -o ladder cuda/dev/ladder_activations.cu && ./ladder   checks only
//
// FWHT: 1 a thread a chunk; 2 a block a chunk, in shared memory; 3 a warp a chunk, in registers and shuffles, 4 bytes a load; 4 with 16 bytes a load (kernels/fwht.cu).
// Activations to INT8: 1 gather, transform and rounding as three launches; 2 one launch, scattered reads of memory; 3 one launch, the row in shared memory
// first (both kernels/activations.cu). The bound is a copy of the same bytes: compare with the device's own copy bandwidth.

#include "ladder.h"

#include <algorithm>
#include <numeric>

#include "../kernels/activations.cu"
#include "../kernels/fwht.cu"
#include "../kernels/gather.cu"

TCQ4_KERNEL fwht_1(float * x, int64_t chunks) {
    const int64_t chunk = (int64_t) blockIdx.x*blockDim.x + threadIdx.x;
    if (chunk < chunks) {
        tcq4_fwht256(x + TCQ4_CHUNK*chunk);
    }
}

TCQ4_KERNEL fwht_2(float * x) {
    __shared__ float v[TCQ4_CHUNK];
    const int i = threadIdx.x;
    v[i] = x[(int64_t) TCQ4_CHUNK*blockIdx.x + i];
    for (int h = 1; h < TCQ4_CHUNK; h *= 2) {
        __syncthreads();
        const float other = v[i ^ h];
        const float own   = v[i];
        __syncthreads();
        v[i] = (i & h) == 0 ? own + other : other - own;
    }
    x[(int64_t) TCQ4_CHUNK*blockIdx.x + i] = v[i]*0.0625f;
}

TCQ4_KERNEL fwht_3(float * x, int64_t chunks) {
    const int64_t chunk = (int64_t) blockIdx.x*(blockDim.x/32) + threadIdx.x/32;
    if (chunk >= chunks) {
        return;
    }
    const int lane = threadIdx.x & 31;
    float v[8];
    for (int i = 0; i < 8; ++i) {
        v[i] = x[TCQ4_CHUNK*chunk + 8*lane + i];
    }
    tcq4_warp_fwht(v, lane);
    for (int i = 0; i < 8; ++i) {
        x[TCQ4_CHUNK*chunk + 8*lane + i] = v[i];
    }
}

// Rounding alone, by the scalar function: a thread a group of 32.
TCQ4_KERNEL round_1(const float * x, tcq4_act8 * acts, int64_t groups) {
    const int64_t group = (int64_t) blockIdx.x*blockDim.x + threadIdx.x;
    if (group >= groups) {
        return;
    }
    int8_t      q[TCQ4_GROUP];
    tcq4_act8 & act = acts[group/TCQ4_GROUPS];
    const int   g   = (int) (group%TCQ4_GROUPS);
    act.scale[g] = tcq4_act_symmetric(x + TCQ4_GROUP*group, TCQ4_GROUP, 127.0f, q);
    int sum = 0;
    for (int i = 0; i < TCQ4_GROUP; ++i) {
        sum += q[i];
        ((int8_t *) &act.codes[8*g + 2*(i/8) + i%2])[i%8/2] = q[i];
    }
    act.sum[g] = tcq4_mul(act.scale[g], (float) sum);
}

int main() {
#if defined(__CUDACC__)
    const int k = 4096, tokens = 4096;
#else
    const int k = 512, tokens = 11;
#endif
    const int    chunks = k/256;
    const size_t n      = (size_t) tokens*k;
    float * x = allocate<float>(n), * y = allocate<float>(n), * moved = allocate<float>(n);
    int32_t * perm = allocate<int32_t>(k);
    fill_normal(x, n, 1.0f);
    std::iota(perm, perm + k, 0);
    std::shuffle(perm, perm + k, generator);
    std::vector<float> expected(x, x + n);
    for (size_t i = 0; i < n; i += 256) {
        tcq4_fwht256(&expected[i]);
    }

    // Timed launches transform the same values again and again; the check is of a single one.
    const auto fwht_rung = [&](const char * name, const std::function<void()> & run) {
        const auto single = [&] {
            memcpy(y, x, n*sizeof(float));
            run();
            finish();
            double worst = 0.0;
            for (size_t i = 0; i < n; ++i) {
                worst = worse(worst, std::fabs(y[i] - expected[i]));
            }
            return worst;
        };
        rung(name, { y, n*sizeof(float) }, run, single, 0.0, 8.0*n, "GB/s");
    };
    const int64_t all = (int64_t) tokens*chunks;
    fwht_rung("FWHT 1, a thread a chunk", LAUNCH(fwht_1, (all + 127)/128, 1, 128, 0, y, all));
    fwht_rung("FWHT 2, a block a chunk",  LAUNCH(fwht_2, all, 1, 256, 0, y));
    fwht_rung("FWHT 3, a warp a chunk",   LAUNCH(fwht_3, (all + 7)/8, 1, 256, 0, y, all));
    fwht_rung("FWHT 4, vector loads",     LAUNCH(tcq4_fwht_f32, (all + 7)/8, 1, 256, 0, y, all));

    tcq4_act8 * acts = allocate<tcq4_act8>(all);
    const auto wrong = [&] {
        int different = 0;
        for (int64_t i = 0; i < all; ++i) {
            float  v[256];
            int8_t q[256];
            for (int j = 0; j < 256; ++j) {
                v[j] = x[i/chunks*k + perm[i%chunks*256 + j]];
            }
            tcq4_fwht256(v);
            for (int g = 0; g < 8; ++g) {
                different += acts[i].scale[g] != tcq4_act_symmetric(v + 32*g, 32, 127.0f, q + 32*g);
            }
            for (int j = 0; j < 256; ++j) {
                different += ((const int8_t *) &acts[i].codes[8*(j/32) + 2*(j%32/8) + j%2])[j%8/2] != q[j];
            }
        }
        return (double) different;
    };
    const double bytes = (double) n*(4 + 1.25);
    const auto   gather = LAUNCH(tcq4_gather_f32, (n + 2047)/2048, 1, 256, 0, x, perm, moved, tokens, k, 0);
    const auto   turn   = LAUNCH(tcq4_fwht_f32, (all + 7)/8, 1, 256, 0, moved, all);
    const auto   round  = LAUNCH(round_1, (8*all + 127)/128, 1, 128, 0, moved, acts, 8*all);
    const output out     = { acts, all*sizeof(tcq4_act8) };
    rung("INT8 1, three launches", out, [&] { gather(); turn(); round(); }, wrong, 0.0, bytes, "GB/s");
    rung("INT8 2, one launch", out, LAUNCH(tcq4_round_int8_f32, (all + 7)/8, 1, 256, 0, x, perm, acts, tokens, chunks, 0), wrong, 0.0, bytes, "GB/s");
    rung("INT8 3, rows in shared memory", out, LAUNCH(tcq4_round_int8_f32, tokens, 1, 256, 4*k, x, perm, acts, tokens, chunks, 1), wrong, 0.0, bytes, "GB/s");
    return failures != 0;
}
