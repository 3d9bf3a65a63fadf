// TCQ4_K32: what ggml and the programs above it need to know of the type.
//
// The data of a matrix are stripes of 8 rows, and a stripe is ne[0]/256 tiles of 1184 bytes. Rows have no bytes of their own: the usual
// sizes (148 bytes for each 256 columns of a row) are right for whole stripes only. A tensor or a view that cuts through a stripe is
// refused when it is made.
//
// A matrix can have a permutation of its columns, an I32 tensor of ne[0] entries: column i of the data is column perm[i] of the matrix.
// It hangs at the matrix, so every model, device and copy has its own. So does a mark, the least precision that activations of the matrix may
// be rounded to.

#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GGML_TCQ4_K32_ROWS 8 // rows of a stripe

// whether a tensor of this shape is made of whole stripes
GGML_API bool ggml_tcq4_valid_shape(const int64_t ne[GGML_MAX_DIMS]);

// aborts with a message unless the tensor (or view) is made of whole stripes; tensors of other types pass
GGML_API void ggml_tcq4_check_layout(const struct ggml_tensor * tensor);

// whether a source or the result of an operation is of the type
GGML_API bool ggml_tcq4_is_involved(const struct ggml_tensor * node);

// perm lives at least as long as the matrix; NULL takes the permutation away
GGML_API void                 ggml_tcq4_set_perm(struct ggml_tensor * matrix, struct ggml_tensor * perm);
GGML_API struct ggml_tensor * ggml_tcq4_get_perm(const struct ggml_tensor * matrix); // of the matrix or of what it is a view of

// GGML_PREC_Q8 keeps the activations of the matrix from being rounded to 4 bits, GGML_PREC_UNDEFINED does not
GGML_API void           ggml_tcq4_set_prec(struct ggml_tensor * matrix, enum ggml_prec prec);
GGML_API enum ggml_prec ggml_tcq4_get_prec(const struct ggml_tensor * matrix);

// gives a node what hangs at its src[0]: the permutation as src[i_perm], the mark as ggml_prec_set_src does
GGML_API void ggml_tcq4_attach(struct ggml_tensor * node, int i_perm);

// whether the activations of a multiplication may be rounded to 4 bits
GGML_API bool ggml_tcq4_allows_int4(const struct ggml_tensor * node);

// whether perm holds each of 0 .. n-1 once
GGML_API bool ggml_tcq4_is_bijection(const int32_t * perm, int64_t n);

// encodes whole stripes of permuted rows, in the way that the first implementation of the format did; the result can hold infinite
// scales (see ggml_tcq4_validate), imatrix is not used
GGML_API size_t ggml_tcq4_quantize(const float * src, void * dst, int64_t nrows, int64_t n_per_row, const float * imatrix);

// decodes rows of a matrix with n_per_row columns; perm (or NULL) is undone
GGML_API void ggml_tcq4_to_float(const void * data, int64_t n_per_row, int64_t first_row, int64_t nrows, const int32_t * perm, float * dst);

// whether the bytes are whole tiles with finite scales; says on stderr what is wrong
GGML_API bool ggml_tcq4_validate(const void * data, size_t nbytes);

#ifdef __cplusplus
}
#endif
