// TCQ4_K32 in test-backend-ops: operations on a matrix with permuted columns. To be included where test_case is known.

#pragma once

#include "ggml-tcq4.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

// The I32 tensors of a case: a permutation has each column once, rows and experts are drawn.
static void init_tcq4_indices(ggml_tensor * tensor, int64_t n_values, bool is_perm) {
    std::default_random_engine generator(42);
    std::vector<int32_t> data(ggml_nelements(tensor));
    for (int64_t first = 0; first < (int64_t) data.size(); first += tensor->ne[0]) {
        std::vector<int32_t> values(n_values);
        std::iota(values.begin(), values.end(), 0);
        std::shuffle(values.begin(), values.end(), generator);
        for (int64_t i = 0; i < tensor->ne[0]; ++i) {
            data[first + i] = values[i % n_values];
        }
    }
    GGML_ASSERT(!is_perm || (int64_t) data.size() == n_values);
    ggml_backend_tensor_set(tensor, data.data(), 0, ggml_nbytes(tensor));
}

// op: GGML_OP_MUL_MAT, GGML_OP_MUL_MAT_ID (4 experts, 2 of them used) or GGML_OP_GET_ROWS
struct test_tcq4_permuted : public test_case {
    const ggml_op op;
    const int64_t m; // rows of the matrix
    const int64_t n; // tokens
    const int64_t k; // columns

    std::string vars() override {
        return std::string("permuted tcq4_k32,") + VARS_TO_STR3(m, n, k);
    }

    double max_nmse_err() override {
        return 5e-4;
    }

    test_tcq4_permuted(ggml_op op, int64_t m, int64_t n, int64_t k) : op(op), m(m), n(n), k(k) {}

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * matrix = ggml_new_tensor_3d(ctx, GGML_TYPE_TCQ4_K32, k, m, op == GGML_OP_MUL_MAT_ID ? 4 : 1);
        ggml_set_name(matrix, "matrix");
        ggml_tensor * perm = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, k);
        ggml_set_name(perm, "perm");
        ggml_tcq4_set_perm(matrix, perm);
        if (op == GGML_OP_GET_ROWS) {
            ggml_tensor * rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n);
            ggml_set_name(rows, "rows");
            return ggml_get_rows(ctx, matrix, rows);
        }
        if (op == GGML_OP_MUL_MAT) {
            return ggml_mul_mat(ctx, matrix, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, k, n));
        }
        ggml_tensor * experts = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 2, n);
        ggml_set_name(experts, "experts");
        return ggml_mul_mat_id(ctx, matrix, ggml_new_tensor_3d(ctx, GGML_TYPE_F32, k, 1, n), experts);
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != nullptr; t = ggml_get_next_tensor(ctx, t)) {
            if (t->type != GGML_TYPE_I32) {
                init_tensor_uniform(t);
            } else if (strcmp(t->name, "perm") == 0) {
                init_tcq4_indices(t, k, true);
            } else {
                init_tcq4_indices(t, strcmp(t->name, "experts") == 0 ? 4 : m, false);
            }
        }
    }
};

static void add_tcq4_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (int64_t n : { 1, 7, 70 }) {
        for (ggml_op op : { GGML_OP_MUL_MAT, GGML_OP_MUL_MAT_ID, GGML_OP_GET_ROWS }) {
            cases.emplace_back(new test_tcq4_permuted(op, 72, n, 768));
        }
    }
}
