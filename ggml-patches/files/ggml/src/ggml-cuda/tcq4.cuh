#pragma once

#include "common.cuh"

// Matrices of type TCQ4_K32, whose permutation (if any) is a further source of the node: src[2] of MUL_MAT and GET_ROWS, src[3] of MUL_MAT_ID.

// cc: compute capability of the device
bool ggml_cuda_tcq4_supports_op(const ggml_tensor * op, int cc);

void ggml_cuda_tcq4_mul_mat   (ggml_backend_cuda_context & ctx, ggml_tensor * dst);
void ggml_cuda_tcq4_mul_mat_id(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
void ggml_cuda_tcq4_get_rows  (ggml_backend_cuda_context & ctx, ggml_tensor * dst);
