// The second moments of channels: adds x^T x, the lower triangle.
//
// Maths: gram[i][j] += sum over tokens of x[t][i]*x[t][j], for i >= j, in f32 over the tokens of a call, in f64 from call to call.
// Why f32 and not TF32 tensor cores: the matrix is factorised with a damping of 1 % of its mean diagonal, and its small eigenvalues steer the rounding; ten
// bits of mantissa put noise of 5e-4 of the diagonal on every product, more than small eigenvalues of correlated channels have. Splitting each value
// in two TF32 halves would take three products and give most of f32 at 165 instead of 67 Tflop/s on an H200: worth it only if this ever shows in a profile.
// Mapping: a block 128 x 128 of the result, a thread 8 x 8, rows and columns 4 + 4 that are 64 apart, so that reads of shared memory are of 16 bytes and
// without conflict. 8 tokens at a time in shared memory, the next ones in registers meanwhile.
// Launch: b*(b + 1)/2 blocks of 256 threads, b = k/128. The blocks on the diagonal are written whole.
// Bound: f32; 64 FMA for 4 reads of 16 bytes. Each call reads and writes 8 bytes an element beside: give it 256 to 4096 tokens.
// Tolerance: 4e-6 of sqrt(gram[i][i]*gram[j][j]) for up to 4096 tokens (4096 additions in f32).
// Predicted on an H200, not measured: 45 to 55 Tflop/s of the lower triangle.

#include "tcq4_device.cuh"

#define TCQ4_GRAM_SIDE   128
#define TCQ4_GRAM_TOKENS 8

// The place of a block in the lower triangle.
static __device__ __forceinline__ void tcq4_triangle(int64_t index, int & row, int & column) {
    int r = (int) ((sqrtf(8.0f*(float) index + 1.0f) - 1.0f)*0.5f);
    while ((int64_t) (r + 1)*(r + 2)/2 <= index) {
        ++r;
    }
    while ((int64_t) r*(r + 1)/2 > index) {
        --r;
    }
    row    = r;
    column = (int) (index - (int64_t) r*(r + 1)/2);
}

TCQ4_KERNEL __launch_bounds__(256, 1) tcq4_gram(const float * __restrict__ x, int64_t tokens, int k, double * __restrict__ gram) {
    __shared__ __align__(16) float rows   [TCQ4_GRAM_TOKENS][TCQ4_GRAM_SIDE];
    __shared__ __align__(16) float columns[TCQ4_GRAM_TOKENS][TCQ4_GRAM_SIDE];
    int block_row, block_column;
    tcq4_triangle(blockIdx.x, block_row, block_column);
    const int tile_row    = 4*(threadIdx.x/16);
    const int tile_column = 4*(threadIdx.x%16);
    // what this thread copies: 4 channels of token threadIdx.x/32
    const int own_token   = threadIdx.x/32;
    const int own_channel = 4*(threadIdx.x%32);
    const float4 none     = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    const auto read = [&](int64_t token, int block) {
        return token < tokens ? *(const float4 *) &x[token*k + TCQ4_GRAM_SIDE*block + own_channel] : none;
    };
    float  sums[8][8] = {};
    float4 next_rows    = read(own_token, block_row);
    float4 next_columns = read(own_token, block_column);
    for (int64_t token = 0; token < tokens; token += TCQ4_GRAM_TOKENS) {
        __syncthreads();
        *(float4 *) &rows   [own_token][own_channel] = next_rows;
        *(float4 *) &columns[own_token][own_channel] = next_columns;
        __syncthreads();
        next_rows    = read(token + TCQ4_GRAM_TOKENS + own_token, block_row);
        next_columns = read(token + TCQ4_GRAM_TOKENS + own_token, block_column);
#pragma unroll
        for (int t = 0; t < TCQ4_GRAM_TOKENS; ++t) {
            float a[8], b[8];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float4 r = *(const float4 *) &rows   [t][tile_row    + 64*half];
                const float4 c = *(const float4 *) &columns[t][tile_column + 64*half];
                a[4*half] = r.x; a[4*half + 1] = r.y; a[4*half + 2] = r.z; a[4*half + 3] = r.w;
                b[4*half] = c.x; b[4*half + 1] = c.y; b[4*half + 2] = c.z; b[4*half + 3] = c.w;
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    sums[i][j] += a[i]*b[j];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        double * out = gram + (int64_t) (TCQ4_GRAM_SIDE*block_row + tile_row + i%4 + 64*(i/4))*k + TCQ4_GRAM_SIDE*block_column + tile_column;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            out[j%4 + 64*(j/4)] += (double) sums[i][j];
        }
    }
}
