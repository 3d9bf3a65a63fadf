#include "ggml-tcq4.h"

#include "ggml-impl.h"
#include "tcq4_k32.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static_assert(GGML_TCQ4_K32_ROWS == TCQ4_ROWS, "the rows of a stripe are the rows of a tile");

bool ggml_tcq4_valid_shape(const int64_t ne[GGML_MAX_DIMS]) {
    return ne[0] % TCQ4_CHUNK == 0 && ne[1] % TCQ4_ROWS == 0;
}

void ggml_tcq4_check_layout(const struct ggml_tensor * tensor) {
    if (tensor->type != GGML_TYPE_TCQ4_K32) {
        return;
    }

    const size_t row_size    = ggml_row_size(tensor->type, tensor->ne[0]);
    const size_t stripe_size = row_size*TCQ4_ROWS;

    if (!ggml_tcq4_valid_shape(tensor->ne)) {
        GGML_ABORT("tensor '%s' of type %s has %" PRId64 " columns and %" PRId64 " rows, not multiples of %d and %d",
                tensor->name, ggml_type_name(tensor->type), tensor->ne[0], tensor->ne[1], TCQ4_CHUNK, TCQ4_ROWS);
    }
    if (tensor->nb[0] != ggml_type_size(tensor->type) || tensor->nb[1] != row_size || tensor->nb[2] % stripe_size != 0 || tensor->nb[3] % stripe_size != 0) {
        GGML_ABORT("view '%s' of a tensor of type %s skips or transposes rows", tensor->name, ggml_type_name(tensor->type));
    }
    if (tensor->view_src && (tensor->view_src->ne[0] != tensor->ne[0] || tensor->view_offs % stripe_size != 0)) {
        GGML_ABORT("view '%s' of a tensor of type %s does not span all columns of whole stripes of %d rows",
                tensor->name, ggml_type_name(tensor->type), TCQ4_ROWS);
    }
}

bool ggml_tcq4_is_involved(const struct ggml_tensor * node) {
    if (node->type == GGML_TYPE_TCQ4_K32) {
        return true;
    }
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        if (node->src[i] && node->src[i]->type == GGML_TYPE_TCQ4_K32) {
            return true;
        }
    }
    return false;
}

static void check_is_leaf(const struct ggml_tensor * matrix) {
    GGML_ASSERT(matrix->type == GGML_TYPE_TCQ4_K32);
    GGML_ASSERT(matrix->op == GGML_OP_NONE && matrix->view_src == NULL);
}

// the matrix itself where it is a view, or NULL if nothing can hang there
static const struct ggml_tensor * leaf_of(const struct ggml_tensor * matrix) {
    const struct ggml_tensor * root = matrix->view_src ? matrix->view_src : matrix;

    return root->type == GGML_TYPE_TCQ4_K32 && root->op == GGML_OP_NONE ? root : NULL;
}

// A leaf has no other use for its sources and parameters. The mark has the place that it takes in a multiplication.
#define I_PREC 3

void ggml_tcq4_set_perm(struct ggml_tensor * matrix, struct ggml_tensor * perm) {
    check_is_leaf(matrix);
    GGML_ASSERT(perm == NULL || (perm->type == GGML_TYPE_I32 && ggml_nelements(perm) == matrix->ne[0] && ggml_is_contiguous(perm)));

    matrix->src[0] = perm;
}

struct ggml_tensor * ggml_tcq4_get_perm(const struct ggml_tensor * matrix) {
    const struct ggml_tensor * leaf = leaf_of(matrix);

    return leaf ? leaf->src[0] : NULL;
}

void ggml_tcq4_set_prec(struct ggml_tensor * matrix, enum ggml_prec prec) {
    check_is_leaf(matrix);
    GGML_ASSERT(prec == GGML_PREC_UNDEFINED || prec == GGML_PREC_Q8);

    ggml_set_op_params_i32(matrix, I_PREC, prec);
}

enum ggml_prec ggml_tcq4_get_prec(const struct ggml_tensor * matrix) {
    const struct ggml_tensor * leaf = leaf_of(matrix);

    return leaf ? (enum ggml_prec) ggml_get_op_params_i32(leaf, I_PREC) : GGML_PREC_UNDEFINED;
}

void ggml_tcq4_attach(struct ggml_tensor * node, int i_perm) {
    const enum ggml_prec prec = ggml_tcq4_get_prec(node->src[0]);
    if (prec != GGML_PREC_UNDEFINED) {
        ggml_prec_set_src(node, prec, 1); // does nothing for other operations
    }
    node->src[i_perm] = ggml_tcq4_get_perm(node->src[0]);
}

bool ggml_tcq4_allows_int4(const struct ggml_tensor * node) {
    const int32_t prec = ggml_get_op_params_i32(node, I_PREC);

    return prec == GGML_PREC_UNDEFINED || prec == GGML_PREC_Q4;
}

bool ggml_tcq4_is_bijection(const int32_t * perm, int64_t n) {
    bool * seen = calloc(n, sizeof(bool));
    GGML_ASSERT(seen != NULL || n == 0);

    bool ok = true;
    for (int64_t i = 0; i < n && ok; ++i) {
        ok = perm[i] >= 0 && perm[i] < n && !seen[perm[i]];
        if (ok) {
            seen[perm[i]] = true;
        }
    }

    free(seen);
    return ok;
}

size_t ggml_tcq4_quantize(const float * src, void * dst, int64_t nrows, int64_t n_per_row, const float * imatrix) {
    GGML_ASSERT(n_per_row % TCQ4_CHUNK == 0);
    GGML_ASSERT(nrows % TCQ4_ROWS == 0 && "rows of TCQ4_K32 are quantized 8 at a time");

    const size_t row_size = ggml_row_size(GGML_TYPE_TCQ4_K32, n_per_row);

    for (int64_t row = 0; row < nrows; row += TCQ4_ROWS) {
        tcq4_encode_stripe(src + row*n_per_row, n_per_row, (char *) dst + row*row_size);
    }

    GGML_UNUSED(imatrix);
    return nrows*row_size;
}

void ggml_tcq4_to_float(const void * data, int64_t n_per_row, int64_t first_row, int64_t nrows, const int32_t * perm, float * dst) {
    const tcq4_tile * tiles   = (const tcq4_tile *) data;
    const int64_t     n_tiles = n_per_row/TCQ4_CHUNK;

    float chunk[TCQ4_CHUNK];

    for (int64_t i = 0; i < nrows; ++i) {
        const int64_t row = first_row + i;
        for (int64_t t = 0; t < n_tiles; ++t) {
            const tcq4_tile * tile = tiles + row/TCQ4_ROWS*n_tiles + t;
            for (int j = 0; j < TCQ4_CHUNK; ++j) {
                chunk[j] = tcq4_value(tile, row % TCQ4_ROWS, j);
            }
            tcq4_fwht256(chunk);

            float * out = dst + i*n_per_row;
            for (int j = 0; j < TCQ4_CHUNK; ++j) {
                const int64_t column = t*TCQ4_CHUNK + j;
                out[perm ? perm[column] : column] = chunk[j];
            }
        }
    }
}

bool ggml_tcq4_validate(const void * data, size_t nbytes) {
    if (nbytes % sizeof(tcq4_tile) != 0) {
        fprintf(stderr, "%s: %zu bytes are not whole tiles of %zu\n", __func__, nbytes, sizeof(tcq4_tile));
        return false;
    }

    const tcq4_tile * tiles = (const tcq4_tile *) data;

    for (size_t i = 0; i < nbytes/sizeof(tcq4_tile); ++i) {
        if (!tcq4_tile_is_finite(tiles + i)) {
            fprintf(stderr, "%s: tile %zu has a scale that is not finite\n", __func__, i);
            return false;
        }
    }

    return true;
}
