// The operations of the CPU backend on TCQ4_K32: MUL_MAT, MUL_MAT_ID and GET_ROWS. The arithmetic is in tcq4.h.

#pragma once

#include "ggml-cpu-impl.h"
#include "ggml-tcq4.h"

#ifdef __cplusplus
extern "C" {
#endif

// The functions are for nodes that ggml_tcq4_is_involved() in.

bool ggml_cpu_tcq4_supports_op(const struct ggml_tensor * node);

// size of the work buffer, and of the part at its end that holds rounded activations and that other nodes leave alone
void ggml_cpu_tcq4_work_size(int n_threads, const struct ggml_tensor * node, size_t * size, size_t * size_acts);

// whether an earlier node has rounded the activations of node i, and no node since has taken their place
bool ggml_cpu_tcq4_acts_ready(const struct ggml_cgraph * cgraph, int i);

void ggml_cpu_tcq4_compute_forward(const struct ggml_compute_params * params, struct ggml_tensor * node);

#ifdef __cplusplus
}
#endif
