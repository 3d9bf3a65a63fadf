// TCQ4_K32 in test-quantize-fns: a row has no bytes of its own, so the type is tested by whole stripes of 8 rows.

#pragma once

#include "ggml.h"
#include "ggml-cpu.h"
#include "ggml-tcq4.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

// Encodes and decodes 8 rows of x, and multiplies them with y; the errors are measured as those of the other types are.
static int test_tcq4(bool verbose, const std::vector<float> & x, const std::vector<float> & y, float max_error, float max_dot_error) {
    const int64_t n = (int64_t) x.size();
    const int     m = GGML_TCQ4_K32_ROWS;

    std::vector<float> rows;
    for (int row = 0; row < m; ++row) { // each row begins elsewhere
        for (int64_t i = 0; i < n; ++i) {
            rows.push_back(x[(i + 37*row) % n]);
        }
    }

    ggml_context * ctx = ggml_init({ 16*1024*1024, nullptr, false });
    ggml_tensor  * a   = ggml_new_tensor_2d(ctx, GGML_TYPE_TCQ4_K32, n, m);
    ggml_tensor  * b   = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n);
    ggml_quantize_chunk(a->type, rows.data(), a->data, 0, m, n, nullptr);
    std::copy(y.begin(), y.end(), (float *) b->data);

    int num_failed = 0;
    const auto report = [&](const char * what, double error, double limit) {
        const bool failed = !(error < limit);
        num_failed += failed;
        if (failed || verbose) {
            printf("%5s %s %s (%f)\n", ggml_type_name(a->type), what, failed ? "FAILED" : "ok", error);
        }
    };

    std::vector<float> decoded(m*n);
    ggml_tcq4_to_float(a->data, n, 0, m, nullptr, decoded.data());
    double error = 0.0;
    for (int64_t i = 0; i < m*n; ++i) {
        error += (rows[i] - decoded[i])*(rows[i] - decoded[i]);
    }
    report("absolute quantization error:   ", std::sqrt(error)/(m*n), max_error);

    // rows 3 and 4 by themselves are those of the whole
    std::vector<float> part(2*n);
    ggml_tcq4_to_float(a->data, n, 3, 2, nullptr, part.data());
    double difference = 0.0;
    for (int64_t i = 0; i < 2*n; ++i) {
        difference = std::fmax(difference, std::fabs(part[i] - decoded[3*n + i]));
    }
    report("range of rows:                 ", difference, 1e-30);
    report("row data:                      ", ggml_validate_row_data(a->type, a->data, ggml_nbytes(a)) ? 0 : 1, 1);

    ggml_tensor * product = ggml_mul_mat(ctx, a, b);
    ggml_cgraph * graph   = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, product);
    ggml_graph_compute_with_ctx(ctx, graph, 2);
    double worst = 0.0;
    for (int row = 0; row < m; ++row) {
        double exact = 0.0;
        for (int64_t i = 0; i < n; ++i) {
            exact += rows[row*n + i]*y[i];
        }
        worst = std::fmax(worst, std::fabs(((const float *) product->data)[row] - exact)/n);
    }
    report("dot product error:             ", worst, max_dot_error);

    ggml_free(ctx);
    return num_failed;
}
