// From naive to fast: many tokens times a TCQ4 matrix.
//
//   nvcc -std=c++17 -O3 -I cuda/include -arch=native -o ladder cuda/dev/ladder_mul_mat.cu && ./ladder        times and TOPS, on a GPU
//   c++ -std=c++20 -O2 -Wno-unknown-pragmas -I cuda/include -x c++ -o ladder cuda/dev/ladder_mul_mat.cu && ./ladder   checks only
//
// 1 a thread a result, every weight decoded; 2 a thread a result, dp4a; 3 tensor cores, 64 x 64 a block, four f32 operations for each result of a group
// (tcq4_mul_mat.cuh, what the llama.cpp patches run); 4 tensor cores, 128 x 128, copies ahead, two or three of them (tcq4_gemm.cuh, INT8); 5 the same with one scale
// for 256 activations: one integer operation (block8: INT8 mma; block4: INT4 mma where the device has it).

#include "ladder.h"

#include "../kernels/activations.cu"
#include "../kernels/mul_mat.cu"

TCQ4_KERNEL mul_mat_1(const tcq4_tile * tiles, const tcq4_act8 * acts, float * y, int rows, int chunks, int tokens) {
    const int row   = blockIdx.x*blockDim.x + threadIdx.x;
    const int token = blockIdx.y;
    if (row >= rows || token >= tokens) {
        return;
    }
    float sum = 0.0f;
    for (int i = 0; i < TCQ4_CHUNK*chunks; ++i) {
        const int         k   = i%TCQ4_CHUNK;
        const tcq4_act8 & act = acts[(int64_t) token*chunks + i/TCQ4_CHUNK];
        const int8_t      q   = ((const int8_t *) &act.codes[8*(k/32) + 2*(k%32/8) + k%2])[k%8/2];
        sum += tcq4_value(&tiles[(int64_t) (row/8)*chunks + i/TCQ4_CHUNK], row%8, k)*act.scale[k/32]*q;
    }
    y[(int64_t) token*rows + row] = sum;
}

TCQ4_KERNEL mul_mat_2(const tcq4_tile * tiles, const tcq4_act8 * acts, float * y, int rows, int chunks, int tokens) {
    const int row   = blockIdx.x*blockDim.x + threadIdx.x;
    const int token = blockIdx.y;
    if (row >= rows || token >= tokens) {
        return;
    }
    float sum = 0.0f;
    for (int t = 0; t < chunks; ++t) {
        const tcq4_tile & tile = tiles[(int64_t) (row/8)*chunks + t];
        const tcq4_act8 & act  = acts[(int64_t) token*chunks + t];
        for (int g = 0; g < TCQ4_GROUPS; ++g) {
            const int dot = tcq4_dot(((const uint4 *) tile.codes)[8*g + row%8], act, g);
            sum += tcq4_step(&tile, row%8, g)*act.scale[g]*(float) dot*(1.0f/16) + tcq4_offset(&tile, row%8, g)*act.sum[g];
        }
    }
    y[(int64_t) token*rows + row] = sum;
}

TCQ4_KERNEL __launch_bounds__(128) mul_mat_3(const tcq4_tile * tiles, const tcq4_act8 * acts, float * y, int rows, int chunks, int tokens) {
    __shared__ tcq4_mat_shared<tcq4_act8> shared;
    const tcq4_mat_job<tcq4_act8> job = { tiles, acts, nullptr, y, rows, chunks, rows, 0, tokens };
    tcq4_mul_mat_block(shared, job, blockIdx.x*TCQ4_MAT_TOKENS, blockIdx.y*TCQ4_MAT_ROWS);
}

int main() {
#if defined(__CUDACC__)
    const int chunks = 16, rows = 4096, tokens = 2048;
#else
    const int chunks = 2, rows = 72, tokens = 70;
#endif
    const int k = 256*chunks;
    float * weights = allocate<float>((size_t) rows*k), * x = allocate<float>((size_t) tokens*k), * y = allocate<float>((size_t) tokens*rows);
    fill_normal(weights, (size_t) rows*k, 0.02f);
    fill_normal(x, (size_t) tokens*k, 1.0f);
    tcq4_tile * tiles = allocate<tcq4_tile>(rows/8*chunks);
    for (int stripe = 0; stripe < rows/8; ++stripe) {
        tcq4_encode_stripe(&weights[(size_t) 8*stripe*k], k, &tiles[stripe*chunks]);
        for (int t = 0; t < chunks; ++t) {
            for (int i = 0; i < 64; ++i) {
                tiles[stripe*chunks + t].zero_code[i] = (int8_t) (generator()%255 - 127);
            }
            for (int r = 0; r < 8; ++r) {
                tiles[stripe*chunks + t].zero[r] = tcq4_half_of_float(0.01f);
            }
        }
    }
    const int all = tokens*chunks;
    tcq4_act8   * acts   = allocate<tcq4_act8>(all);
    tcq4_block4 * block4 = allocate<tcq4_block4>(all);
    tcq4_block8 * block8 = allocate<tcq4_block8>(all);
    LAUNCH(tcq4_round_int8_f32,       (all + 7)/8, 1, 256, 0, x, nullptr, acts,   tokens, chunks, 0)();
    LAUNCH(tcq4_round_block_g256_f32, (all + 7)/8, 1, 256, 0, x, nullptr, block4, tokens, chunks, 0)();
    LAUNCH(tcq4_round_wide_g256_f32,  (all + 7)/8, 1, 256, 0, x, nullptr, block8, tokens, chunks, 0)();
    finish();

    // Some results in f64, from codes and scales as they are stored.
    const auto error = [&](auto scale, const auto * from, auto code) {
        double worst = 0.0, energy = 0.0;
        for (int i = 0; i < 256; ++i) {
            const int token = (int) (generator()%tokens), row = (int) (generator()%rows);
            double sum = 0.0;
            for (int c = 0; c < k; ++c) {
                const auto & act = from[token*chunks + c/256];
                sum += (double) tcq4_value(&tiles[row/8*chunks + c/256], row%8, c%256)*scale(act, c%256)*code(act.codes, c%256);
            }
            energy += sum*sum/256;
            worst = worse(worst, std::fabs(y[(size_t) token*rows + row] - sum));
        }
        return worst/std::sqrt(energy);
    };
    const auto of_bytes   = [](const uint32_t * codes, int c) { return (int) (int8_t) (codes[8*(c/32) + 2*(c%32/8) + c%2] >> 8*(c%8/2)); };
    const auto of_nibbles = [](const uint32_t * codes, int c) { return (int) ((codes[c/8] >> 4*(c%8) & 15) ^ 8) - 8; };
    const auto of_group   = [](const tcq4_act8 & act, int c) { return act.scale[c/32]; };
    const auto of_block   = [](const auto & act, int) { return act.scale; };
    const auto int8 = [&] { return error(of_group, acts, of_bytes); };

    const output out  = { y, (size_t) tokens*rows*sizeof(float) };
    const double work = 2.0*tokens*rows*k;
    const int    x64 = (tokens + 63)/64, y64 = (rows + 63)/64, x128 = (tokens + 127)/128, y128 = (rows + 127)/128;
    rung("1, a thread a result", out, LAUNCH(mul_mat_1, (rows + 127)/128, tokens, 128, 0, tiles, acts, y, rows, chunks, tokens), int8, 1e-4, work, "GOPS");
    rung("2, dp4a",              out, LAUNCH(mul_mat_2, (rows + 127)/128, tokens, 128, 0, tiles, acts, y, rows, chunks, tokens), int8, 1e-4, work, "GOPS");
    rung("3, 64 x 64, INT8",     out, LAUNCH(mul_mat_3, x64, y64, 128, 0, tiles, acts, y, rows, chunks, tokens), int8, 1e-4, work, "GOPS");
    rung("4, 128 x 128, INT8", out,
         LAUNCH(tcq4_mul_mat_int8, x128, y128, 256, sizeof(tcq4_gemm_shared<tcq4_act8>), tiles, acts, y, rows, chunks, tokens, rows), int8, 1e-4, work, "GOPS");
    rung("5, one scale for 256, bytes", out,
         LAUNCH(tcq4_mul_mat_block8, x128, y128, 256, sizeof(tcq4_gemm_shared<tcq4_block8>), tiles, block8, y, rows, chunks, tokens, rows),
         [&] { return error(of_block, block8, of_bytes); }, 1e-4, work, "GOPS");
    rung("5, one scale for 256, INT4", out,
         LAUNCH(tcq4_mul_mat_block4, x128, y128, 256, sizeof(tcq4_gemm_shared<tcq4_block4>), tiles, block4, y, rows, chunks, tokens, rows),
         [&] { return error(of_block, block4, of_nibbles); }, 1e-4, work, "GOPS");
    return failures != 0;
}
