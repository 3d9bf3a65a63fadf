#include "ops-tcq4.h"

#include "ggml-cpu.h"
#include "tcq4.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

// A multiplication has two steps. First all threads gather, rotate and round the rows of src1 ("acts"), which go to the end of the work
// buffer. Then, after a barrier, they multiply: a piece of work is a number of stripes of the matrix by a number of acts.
//
// Multiplications that read the same src1 through the same permutation (q, k and v; gate and up) do the first step once: acts stay
// where they are as long as the nodes in between keep to the front of the work buffer.

static constexpr int64_t CHUNK         = 256;  // columns of an FWHT
static constexpr int64_t ROWS_PER_WORK = 96;   // at most, of the matrix
static constexpr int64_t ACTS_PER_WORK = 256;  // at most
static constexpr int64_t ACTS_PER_COPY = 64;   // with experts: acts whose results are collected before they are scattered
static constexpr int     LOOK_BACK     = 32;   // nodes
static constexpr size_t  ALIGNMENT     = 64;

static bool is_product(const ggml_tensor * node) {
    return (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) && node->src[0]->type == GGML_TYPE_TCQ4_K32;
}

static const ggml_tensor * perm_of(const ggml_tensor * node) {
    return node->src[node->op == GGML_OP_MUL_MAT_ID ? 3 : 2];
}

static const int32_t * perm_data(const ggml_tensor * node) {
    const ggml_tensor * perm = perm_of(node);
    return perm ? (const int32_t *) perm->data : nullptr;
}

static tcq4_act_path path_of(const ggml_tensor * node) {
    return ggml_tcq4_allows_int4(node) ? tcq4_act_path_of_env() : TCQ4_ACT_INT8;
}

static const ggml_tensor * root_of(const ggml_tensor * tensor) {
    return tensor->view_src ? tensor->view_src : tensor;
}

static bool is_same_view(const ggml_tensor * a, const ggml_tensor * b) {
    return a == b || (root_of(a) == root_of(b) && a->type == b->type && a->view_offs == b->view_offs &&
        std::equal(a->ne, a->ne + GGML_MAX_DIMS, b->ne) && std::equal(a->nb, a->nb + GGML_MAX_DIMS, b->nb));
}

static bool is_perm(const ggml_tensor * perm, const ggml_tensor * matrix) {
    return perm == nullptr || (perm->type == GGML_TYPE_I32 && ggml_nelements(perm) == matrix->ne[0] && ggml_is_contiguous(perm));
}

bool ggml_cpu_tcq4_supports_op(const ggml_tensor * node) {
    const ggml_tensor * src0 = node->src[0];
    const ggml_tensor * src1 = node->src[1];

    switch (node->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return src0->type == GGML_TYPE_TCQ4_K32 && src1->type == GGML_TYPE_F32 && src1->nb[0] == sizeof(float) && is_perm(perm_of(node), src0);
        case GGML_OP_GET_ROWS:
            return src0->type == GGML_TYPE_TCQ4_K32 && is_perm(perm_of(node), src0);
        default:
            return false;
    }
}

//
// work buffer
//

// the front of the work buffer in MUL_MAT_ID; acts in [] are of all tokens and experts
struct experts_work {
    int64_t * first;  // [n_experts + 1] where an expert's rows begin
    int32_t * row;    // [n_used*n_tokens] number of a row of the result: id + n_used*token
    char    * acts;   // [n_used*n_tokens] the acts in the order of the experts, unless there is but one token

    experts_work(const ggml_tensor * node, void * base) {
        const int64_t n_experts = node->src[0]->ne[2];
        const int64_t n_rows    = node->src[2]->ne[0]*node->src[2]->ne[1];

        first = (int64_t *) base;
        row   = (int32_t *) (first + n_experts + 1);
        acts  = (char *) GGML_PAD((uintptr_t) (row + n_rows), ALIGNMENT);
    }

    size_t size(const ggml_tensor * node, const void * base) const {
        const ggml_tensor * ids = node->src[2];
        return acts - (const char *) base + (ids->ne[1] > 1 ? ids->ne[0]*ids->ne[1]*tcq4_act_row_size(node->src[0]->ne[0]) : 0);
    }
};

static size_t acts_size(const ggml_tensor * node) {
    return ggml_nrows(node->src[1])*tcq4_act_row_size(node->src[0]->ne[0]);
}

// The place depends on the size alone, so nodes with the same src1 find the same one.
static char * acts_begin(const ggml_compute_params * params, const ggml_tensor * node) {
    const uintptr_t end = (uintptr_t) params->wdata + params->wsize;
    return (char *) ((end - acts_size(node)) & ~(uintptr_t) (ALIGNMENT - 1));
}

static char * front_begin(const ggml_compute_params * params) {
    return (char *) GGML_PAD((uintptr_t) params->wdata, ALIGNMENT);
}

void ggml_cpu_tcq4_work_size(int n_threads, const ggml_tensor * node, size_t * size, size_t * size_acts) {
    *size      = 0;
    *size_acts = 0;

    if (is_product(node)) {
        *size_acts = acts_size(node) + ALIGNMENT;
    }
    if (node->op == GGML_OP_MUL_MAT_ID) {
        *size = experts_work(node, nullptr).size(node, nullptr) + 2*ALIGNMENT;
    }

    GGML_UNUSED(n_threads);
}

// Nodes that are known to use no more of the work buffer than they planned for. Others, convolutions for instance, take all of it.
static bool leaves_acts_alone(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_ADD:
        case GGML_OP_MUL:
        case GGML_OP_SCALE:
        case GGML_OP_UNARY:
        case GGML_OP_GLU:
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_ROPE:
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_GET_ROWS:
        case GGML_OP_SET_ROWS:
        case GGML_OP_SOFT_MAX:
        case GGML_OP_ARGSORT:
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return true;
        default:
            return false;
    }
}

bool ggml_cpu_tcq4_acts_ready(const ggml_cgraph * cgraph, int i) {
    const ggml_tensor * node = cgraph->nodes[i];
    if (!is_product(node)) {
        return false;
    }

    for (int j = i - 1; j >= 0 && j >= i - LOOK_BACK; --j) {
        const ggml_tensor * other = cgraph->nodes[j];
        if ((other->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            continue;
        }
        if (is_product(other)) {
            return is_same_view(other->src[1], node->src[1]) && perm_of(other) == perm_of(node) && path_of(other) == path_of(node);
        }
        const bool is_view = other->op == GGML_OP_RESHAPE || other->op == GGML_OP_VIEW || other->op == GGML_OP_PERMUTE || other->op == GGML_OP_TRANSPOSE;
        if (!leaves_acts_alone(other) || (!is_view && root_of(other) == root_of(node->src[1]))) {
            return false;
        }
    }

    return false;
}

//
// MUL_MAT
//

// Rounds src1; the threads take equal shares of its chunks.
static void round_acts(const ggml_compute_params * params, const ggml_tensor * node, char * acts) {
    const ggml_tensor * src1 = node->src[1];

    const int64_t k        = src1->ne[0];
    const int64_t n_chunks = k/CHUNK;
    const int64_t n_total  = ggml_nrows(src1)*n_chunks;
    const size_t  stride   = tcq4_act_row_size(k);

    const tcq4_act_path path = path_of(node);
    const int32_t     * perm = perm_data(node);

    const int64_t end = n_total*(params->ith + 1)/params->nth;
    for (int64_t i = n_total*params->ith/params->nth; i < end;) {
        const int64_t row   = i/n_chunks;
        const int64_t first = i%n_chunks;
        const int64_t n     = std::min(n_chunks - first, end - i);

        const int64_t i1 = row % src1->ne[1];
        const int64_t i2 = row / src1->ne[1] % src1->ne[2];
        const int64_t i3 = row / src1->ne[1] / src1->ne[2];

        const char * x = (const char *) src1->data + i1*src1->nb[1] + i2*src1->nb[2] + i3*src1->nb[3];
        tcq4_quantize_act(path, (const float *) x, perm, k, first, n, acts + row*stride);

        i += n;
    }
}

// How to cut a product into pieces of work: enough of them that no thread waits long for another one, and else large ones, because a
// tile is decoded once a piece. Kernels take 48 rows at a time and have others for 32 and 16.
struct pieces {
    int64_t rows, acts;    // of a piece
    int64_t n_row, n_act;  // pieces

    pieces(int64_t n_rows, int64_t n_acts, int n_threads) {
        const int64_t wanted = n_threads == 1 ? 1 : 4*n_threads;

        acts  = ACTS_PER_WORK;
        n_act = (n_acts + acts - 1)/acts;
        for (int64_t size : { ROWS_PER_WORK, (int64_t) 48, (int64_t) 32, (int64_t) 16 }) {
            rows  = size;
            n_row = (n_rows + rows - 1)/rows;
            if (n_row*n_act >= wanted) {
                return;
            }
        }

        // few rows
        acts  = std::max<int64_t>(8, n_acts*n_row/wanted);
        n_act = (n_acts + acts - 1)/acts;
    }
};

static void assert_layout(const ggml_tensor * node) {
    // neither factor is permuted, and the result is neither transposed nor permuted
    GGML_ASSERT(node->src[0]->nb[0] == ggml_type_size(node->src[0]->type));
    GGML_ASSERT(node->src[1]->type == GGML_TYPE_F32 && node->src[1]->nb[0] == sizeof(float));
    GGML_ASSERT(node->nb[0] == sizeof(float) && node->nb[0] <= node->nb[1] && node->nb[1] <= node->nb[2] && node->nb[2] <= node->nb[3]);
}

static void mul_mat(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];

    GGML_TENSOR_BINARY_OP_LOCALS

    assert_layout(dst);

    char       * acts   = acts_begin(params, dst);
    const size_t stride = tcq4_act_row_size(ne00);

    GGML_ASSERT(acts >= (char *) params->wdata);

    if (!params->tcq4_acts_ready) {
        round_acts(params, dst, acts);
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    // one matrix for all planes of src1: their rows are one long list
    const bool    is_flat  = ne02*ne03 == 1 && nb2 == ne1*nb1 && nb3 == ne2*nb2;
    const int64_t n_acts   = is_flat ? ne11*ne12*ne13 : ne11;
    const int64_t n_planes = is_flat ? 1 : ne12*ne13;

    const pieces  cut(ne01, n_acts, params->nth);
    const int64_t n_plane = cut.n_row*cut.n_act;

    for (int64_t piece = params->ith; piece < n_planes*n_plane; piece = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t plane = piece/n_plane;
        const int64_t i12   = plane % ne12;
        const int64_t i13   = plane / ne12;
        const int64_t row   = piece % cut.n_row*cut.rows;
        const int64_t act   = piece % n_plane/cut.n_row*cut.acts;

        const char * tiles = (const char *) src0->data + row*nb01 + i12/(ne12/ne02)*nb02 + i13/(ne13/ne03)*nb03;
        const char * input = acts + (plane*ne11 + act)*stride;
        char       * out   = (char *) dst->data + row*nb0 + act*nb1 + i12*nb2 + i13*nb3;

        tcq4_mul_mat(tiles, ne00, std::min(cut.rows, ne01 - row), input, stride, std::min(cut.acts, n_acts - act), (float *) out, nb1/sizeof(float));
    }
}

//
// MUL_MAT_ID
//

// Lists the rows of the result by expert.
static void sort_rows(const ggml_tensor * ids, int64_t n_experts, const experts_work & work) {
    const auto expert_of = [&](int64_t i) {
        const int64_t id     = i % ids->ne[0];
        const int64_t token  = i / ids->ne[0];
        const int32_t expert = *(const int32_t *) ((const char *) ids->data + token*ids->nb[1] + id*ids->nb[0]);
        GGML_ASSERT(expert >= 0 && expert < n_experts);
        return expert;
    };
    const int64_t n_rows = ids->ne[0]*ids->ne[1];

    // counts, their sums, and then each row goes to the next free place of its expert
    std::fill(work.first, work.first + n_experts + 1, 0);
    for (int64_t i = 0; i < n_rows; ++i) {
        work.first[expert_of(i) + 1]++;
    }
    for (int64_t e = 0; e < n_experts; ++e) {
        work.first[e + 1] += work.first[e];
    }
    for (int64_t i = n_rows - 1; i >= 0; --i) {
        work.row[--work.first[expert_of(i) + 1]] = (int32_t) i;
    }
    // first[e + 1] is now where expert e begins
    std::copy(work.first + 1, work.first + n_experts + 1, work.first);
    work.first[n_experts] = n_rows;
}

static void mul_mat_id(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const ggml_tensor * ids  = dst->src[2];

    GGML_TENSOR_BINARY_OP_LOCALS

    assert_layout(dst);

    const int64_t n_used = ids->ne[0];
    const int64_t n_rows = n_used*ids->ne[1];
    const bool    is_one = ids->ne[1] == 1; // token

    char       * acts   = acts_begin(params, dst);
    const size_t stride = tcq4_act_row_size(ne00);

    const experts_work work(dst, front_begin(params));
    GGML_ASSERT(work.size(dst, params->wdata) <= (size_t) (acts - (char *) params->wdata));

    if (!params->tcq4_acts_ready) {
        round_acts(params, dst, acts);
    }
    if (params->ith == 0) {
        sort_rows(ids, ne02, work);
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const auto act_of = [&](int64_t i) { // of a row of the result; experts of a token can share one
        const int64_t id    = i % n_used;
        const int64_t token = i / n_used;
        return acts + (id % ne11 + token*ne11)*stride;
    };

    // the acts of an expert side by side, so that each tile is read once for many of them
    if (!is_one) {
        for (int64_t i = n_rows*params->ith/params->nth; i < n_rows*(params->ith + 1)/params->nth; ++i) {
            memcpy(work.acts + i*stride, act_of(work.row[i]), stride);
        }
        ggml_barrier(params->threadpool);
    }

    float results[ACTS_PER_COPY*ROWS_PER_WORK];

    int64_t piece = params->ith;
    int64_t base  = 0; // pieces of the experts before
    for (int64_t e = 0; e < ne02; ++e) {
        const int64_t begin  = work.first[e];
        const int64_t n_acts = work.first[e + 1] - begin;
        if (n_acts == 0) {
            continue;
        }

        const pieces  cut(ne01, n_acts, params->nth);
        const int64_t n_pieces = cut.n_row*cut.n_act;

        for (; piece < base + n_pieces; piece = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t row   = (piece - base) % cut.n_row*cut.rows;
            const int64_t act   = (piece - base) / cut.n_row*cut.acts;
            const int64_t rows  = std::min(cut.rows, ne01 - row);
            const int64_t count = std::min(cut.acts, n_acts - act);
            const char  * tiles = (const char *) src0->data + e*nb02 + row*nb01;

            for (int64_t a = act, n = 0; a < act + count; a += n) {
                n = is_one ? 1 : std::min(ACTS_PER_COPY, act + count - a);
                const char * input = is_one ? act_of(work.row[begin + a]) : work.acts + (begin + a)*stride;
                tcq4_mul_mat(tiles, ne00, rows, input, stride, n, results, rows);

                for (int64_t j = 0; j < n; ++j) {
                    const int64_t i   = work.row[begin + a + j];
                    char        * out = (char *) dst->data + row*nb0 + i % n_used*nb1 + i / n_used*nb2;
                    memcpy(out, results + j*rows, rows*sizeof(float));
                }
            }
        }
        base += n_pieces;
    }
}

//
// GET_ROWS
//

static void get_rows(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];

    GGML_TENSOR_BINARY_OP_LOCALS

    const int64_t n_rows = ggml_nelements(src1);
    for (int64_t i = params->ith; i < n_rows; i += params->nth) {
        const int64_t i10 = i % ne10;
        const int64_t i11 = i / ne10 % ne11;
        const int64_t i12 = i / ne10 / ne11;
        const int64_t row = *(const int32_t *) ((const char *) src1->data + i10*nb10 + i11*nb11 + i12*nb12);

        GGML_ASSERT(row >= 0 && row < ne01);

        const char * matrix = (const char *) src0->data + i11*nb02 + i12*nb03;
        char       * out    = (char *) dst->data + i10*nb1 + i11*nb2 + i12*nb3;

        ggml_tcq4_to_float(matrix, ne00, row, 1, perm_data(dst), (float *) out);
    }
}

void ggml_cpu_tcq4_compute_forward(const ggml_compute_params * params, ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_MUL_MAT:
            mul_mat(params, node);
            break;
        case GGML_OP_MUL_MAT_ID:
            mul_mat_id(params, node);
            break;
        case GGML_OP_GET_ROWS:
            get_rows(params, node);
            break;
        default:
            if (ggml_op_is_empty(node->op)) {
                break;
            }
            GGML_ABORT("%s is not there for tensors of type %s ('%s')", ggml_op_name(node->op), ggml_type_name(GGML_TYPE_TCQ4_K32), node->name);
    }
}
