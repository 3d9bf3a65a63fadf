// TCQ4_K32 on the CPU: quantised activations, products with tiles, decoding. The format itself is in tcq4_k32.h.
//
// Nothing here knows tensors, graphs or threads. A caller shares work among threads by chunks of an activation row and by stripes of
// weights (8 rows; the x86 kernels work on two stripes at once, so ranges that start at multiples of 16 rows are best). No result
// depends on how the work is split.

#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// How rotated activations are rounded.
enum tcq4_act_path {
    TCQ4_ACT_INT8,      // one scale max/127 per 32 values
    TCQ4_ACT_INT4_G32,  // one signed scale per 32, the extreme value maps to -8
    TCQ4_ACT_INT4_G256, // one signed scale per 256, times 0.9
    TCQ4_ACT_INT4_FORK, // one scale max/7 per 256, as in llama.cpp-rrs
};

// Reads GGML_TCQ4_ACT = int8 | int4-g32 | int4-g256 | int4-fork, once; int8 if it is not set. Any other value aborts with a message.
enum tcq4_act_path tcq4_act_path_of_env(void);

// 256 quantised activations, for every path alike.
struct tcq4_act_chunk {
    int8_t  q[256];  // of group g at 32*g: the 16 even elements, then the 16 odd ones, as they lie in the nibbles of a tile
    float   d[8];    // scale of a group
    float   ds[8];   // d * (sum of the codes of the group)
    int32_t bias[8]; // 0x4B400000 - 8 * (sum of the codes of the group), see tcq4-kernels.h
};

// Bytes of one quantised activation row; a multiple of 64.
size_t tcq4_act_row_size(int64_t k);

// Permutes (x'[i] = x[perm[i]], perm may be NULL), rotates and rounds the chunks first_chunk .. first_chunk + n_chunks of a row of k values.
// x and out are the starts of the row. A chunk with NaN or infinity gives products that are NaN.
void tcq4_quantize_act(enum tcq4_act_path path, const float * x, const int32_t * perm, int64_t k, int64_t first_chunk, int64_t n_chunks, void * out);

// dst[m*dst_stride + n] = row n of the weights times activation row m, for n_rows (a multiple of 8) from `tiles` on.
void tcq4_mul_mat(const void * tiles, int64_t k, int64_t n_rows, const void * acts, size_t act_stride, int64_t n_acts, float * dst, int64_t dst_stride);

// Decodes rows first_row .. first_row + n_rows of a matrix that starts at `tiles`: the rotation is undone, a permutation is not.
void tcq4_to_float(const void * tiles, int64_t k, int64_t first_row, int64_t n_rows, float * out);

// The kernels: the best set that the CPU has is chosen at the first use, or the one that GGML_TCQ4_KERNELS names.
int          tcq4_kernels_count(void);
const char * tcq4_kernels_name(int i);
int          tcq4_kernels_available(int i);
int          tcq4_kernels_select(int i); // for tests and benches, while nothing else runs; returns 0 if the CPU lacks them
int          tcq4_kernels_selected(void);

#ifdef __cplusplus
}
#endif
