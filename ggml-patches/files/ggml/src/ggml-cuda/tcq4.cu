// TCQ4_K32 on CUDA: activations are gathered, rotated and rounded by one kernel, then multiplied by one of two: up to 8 tokens by dp4a (bound by the
// bytes of the weights), more by tensor cores. Nothing waits for the host, so CUDA graphs can record all of it.
//
// The kernels are in the headers tcq4_*.cuh, which this tree shares with the converter; here is what launches them.

#include "tcq4.cuh"
#include "mmid.cuh"
#include "ggml-tcq4.h"
#if !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
#include "tcq4_decode.cuh"
#include "tcq4_mul_mat.cuh"

#include <cstdlib>
#include <cstring>
#include <type_traits>

// How activations are rounded where nothing forbids it: GGML_TCQ4_ACT, or what the device multiplies fastest.
static tcq4_act_rule tcq4_rule_of_device(const int cc) {
    static const char * name = getenv("GGML_TCQ4_ACT");
    if (name != nullptr && *name != '\0') {
        static const struct { const char * name; tcq4_act_rule rule; } rules[] = {
            { "int8",      TCQ4_RULE_INT8      },
            { "int4-g32",  TCQ4_RULE_INT4_G32  },
            { "int4-g256", TCQ4_RULE_INT4_G256 },
            { "int4-fork", TCQ4_RULE_INT4_FORK },
        };
        for (const auto & known : rules) {
            if (strcmp(name, known.name) == 0) {
                return known.rule;
            }
        }
        GGML_ABORT("GGML_TCQ4_ACT is '%s', expected one of int8, int4-g32, int4-g256, int4-fork", name);
    }
    // INT4 tensor cores exist from Turing to Ada only
    return GGML_CUDA_CC_IS_NVIDIA(cc) && cc >= GGML_CUDA_CC_TURING && cc < GGML_CUDA_CC_HOPPER ? TCQ4_RULE_INT4_G32 : TCQ4_RULE_INT8;
}

// Calls f with the rule of a multiplication as a constant.
template <typename F>
static void tcq4_with_rule(const ggml_backend_cuda_context & ctx, const ggml_tensor * dst, F f) {
    switch (ggml_tcq4_allows_int4(dst) ? tcq4_rule_of_device(ggml_cuda_info().devices[ctx.device].cc) : TCQ4_RULE_INT8) {
        case TCQ4_RULE_INT8:      f(std::integral_constant<int, TCQ4_RULE_INT8>());      break;
        case TCQ4_RULE_INT4_G32:  f(std::integral_constant<int, TCQ4_RULE_INT4_G32>());  break;
        case TCQ4_RULE_INT4_G256: f(std::integral_constant<int, TCQ4_RULE_INT4_G256>()); break;
        case TCQ4_RULE_INT4_FORK: f(std::integral_constant<int, TCQ4_RULE_INT4_FORK>()); break;
    }
}

// Where the tokens of a multiplication lie.
struct tcq4_tokens {
    const float   * x;
    const int32_t * perm;
    const int32_t * order; // number of the token that comes in each place; null: as they lie
    int64_t         ne1, ne2;    // token i is [i / (ne1*ne2)][i / ne1 % ne2][i % ne1]
    int64_t         s1, s2, s3;  // strides in floats
};

#define TCQ4_ROUND_WARPS 4

template <int rule>
static __global__ void __launch_bounds__(32*TCQ4_ROUND_WARPS) tcq4_round(
        const tcq4_tokens tokens, const int chunks, typename tcq4_act_of<rule>::chunk * __restrict__ acts) {
    const int chunk = blockIdx.y*TCQ4_ROUND_WARPS + threadIdx.x/32;
    if (chunk >= chunks) {
        return;
    }
    const int64_t place = blockIdx.x;
    const int64_t token = tokens.order ? tokens.order[place] : place;
    const float * x = tokens.x + token%tokens.ne1*tokens.s1 + token/tokens.ne1%tokens.ne2*tokens.s2 + token/(tokens.ne1*tokens.ne2)*tokens.s3;
    tcq4_round_chunk<rule>(x, tokens.perm, chunk, acts + place*chunks + chunk);
}

// One stripe of 8 rows for each block; the tokens from blockIdx.y*n_tokens on.
template <int n_tokens, typename act>
static __global__ void __launch_bounds__(32*TCQ4_VEC_WARPS, 4) tcq4_mul_vec(
        const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, const int chunks, float * __restrict__ dst, const int64_t dst_stride) {
    tcq4_mul_vec_stripe<n_tokens>(tiles + (int64_t) blockIdx.x*chunks, acts, chunks, dst + TCQ4_ROWS*(int64_t) blockIdx.x, dst_stride);
}

// The same for one token of each block, which has an expert: block (stripe, expert number of the token, token).
template <typename act>
static __global__ void __launch_bounds__(32*TCQ4_VEC_WARPS) tcq4_mul_vec_id(
        const tcq4_tile * __restrict__ tiles, const act * __restrict__ acts, const int32_t * __restrict__ ids, const int chunks, float * __restrict__ dst,
        const int64_t expert_tiles, const int64_t act_channels, const int64_t ids_stride, const int64_t dst_s1, const int64_t dst_s2) {
    const int64_t used   = blockIdx.y;
    const int64_t token  = blockIdx.z;
    const int64_t expert = ids[token*ids_stride + used];
    const act * a = acts + (token*act_channels + used%act_channels)*chunks;
    tcq4_mul_vec_stripe<1>(tiles + expert*expert_tiles + (int64_t) blockIdx.x*chunks, a, chunks,
        dst + token*dst_s2 + used*dst_s1 + TCQ4_ROWS*(int64_t) blockIdx.x, 0);
}

template <typename act>
static __global__ void __launch_bounds__(TCQ4_MAT_THREADS) tcq4_mul_mat(const tcq4_mat_job<act> job) {
    __shared__ tcq4_mat_shared<act> shared;
    tcq4_mul_mat_block(shared, job, blockIdx.y*TCQ4_MAT_TOKENS, blockIdx.x*TCQ4_MAT_ROWS);
}

// Block (rows, tokens of an expert, expert); tokens are sorted by expert, those of expert e from bounds[e] on.
template <typename act>
static __global__ void __launch_bounds__(TCQ4_MAT_THREADS) tcq4_mul_mat_id(
        tcq4_mat_job<act> job, const int32_t * __restrict__ bounds, const int64_t expert_tiles) {
    __shared__ tcq4_mat_shared<act> shared;
    const int expert = blockIdx.z;
    const int first  = bounds[expert] + blockIdx.y*TCQ4_MAT_TOKENS;
    job.tiles    += expert*expert_tiles;
    job.end_token = bounds[expert + 1];
    if (first < job.end_token) {
        tcq4_mul_mat_block(shared, job, first, blockIdx.x*TCQ4_MAT_ROWS);
    }
}

static __global__ void __launch_bounds__(32) tcq4_get_rows(
        const tcq4_tile * __restrict__ tiles, const int32_t * __restrict__ ids, const int32_t * __restrict__ perm, const int chunks,
        float * __restrict__ dst, const int64_t matrix_tiles, const int64_t ids_s1, const int64_t ids_s2,
        const int64_t ne11, const int64_t dst_s1, const int64_t dst_s2, const int64_t dst_s3) {
    const int64_t i  = blockIdx.x;
    const int64_t i1 = blockIdx.z%ne11;
    const int64_t i2 = blockIdx.z/ne11;
    const int64_t row = ids[i + i1*ids_s1 + i2*ids_s2];
    // ggml_get_rows broadcasts nothing: matrix i1 of the source belongs to the row of ids
    tcq4_decode_chunk(tiles + (i2*ne11 + i1)*matrix_tiles, chunks, row, blockIdx.y, perm, dst + i*dst_s1 + i1*dst_s2 + i2*dst_s3);
}

template <int rule>
static void tcq4_launch_round(const tcq4_tokens & tokens, int64_t n, int chunks, typename tcq4_act_of<rule>::chunk * acts, cudaStream_t stream) {
    const dim3 grid(n, (chunks + TCQ4_ROUND_WARPS - 1)/TCQ4_ROUND_WARPS);
    tcq4_round<rule><<<grid, 32*TCQ4_ROUND_WARPS, 0, stream>>>(tokens, chunks, acts);
    CUDA_CHECK(cudaGetLastError());
}

template <int n_tokens, typename act>
static void tcq4_launch_vec(const tcq4_mat_job<act> & job, cudaStream_t stream) {
    tcq4_mul_vec<n_tokens><<<job.rows/TCQ4_ROWS, 32*TCQ4_VEC_WARPS, 0, stream>>>(job.tiles, job.acts, job.chunks, job.dst, job.dst_stride);
    CUDA_CHECK(cudaGetLastError());
}

template <typename act>
static void tcq4_launch(const tcq4_mat_job<act> & job, cudaStream_t stream) {
    switch (job.end_token) {
        case 1: tcq4_launch_vec<1>(job, stream); return;
        case 2: tcq4_launch_vec<2>(job, stream); return;
        case 3: tcq4_launch_vec<3>(job, stream); return;
        case 4: tcq4_launch_vec<4>(job, stream); return;
        case 5: tcq4_launch_vec<5>(job, stream); return;
        case 6: tcq4_launch_vec<6>(job, stream); return;
        case 7: tcq4_launch_vec<7>(job, stream); return;
        case 8: tcq4_launch_vec<8>(job, stream); return;
        default: break;
    }
    const dim3 grid((job.rows + TCQ4_MAT_ROWS - 1)/TCQ4_MAT_ROWS, (job.end_token + TCQ4_MAT_TOKENS - 1)/TCQ4_MAT_TOKENS);
    tcq4_mul_mat<<<grid, TCQ4_MAT_THREADS, 0, stream>>>(job);
    CUDA_CHECK(cudaGetLastError());
}

template <int rule>
static void tcq4_mul_mat_as(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    typedef typename tcq4_act_of<rule>::chunk act;
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const ggml_tensor * perm = dst->src[2];
    GGML_TENSOR_BINARY_OP_LOCALS

    const int     chunks = ne00/TCQ4_CHUNK;
    const int64_t n      = ne11*ne12*ne13;
    ggml_cuda_pool_alloc<act> acts(ctx.pool(), n*chunks);
    const tcq4_tokens tokens = {
        (const float *) src1->data, perm ? (const int32_t *) perm->data : nullptr, nullptr, ne11, ne12,
        int64_t(nb11/sizeof(float)), int64_t(nb12/sizeof(float)), int64_t(nb13/sizeof(float)),
    };
    tcq4_launch_round<rule>(tokens, n, chunks, acts.get(), ctx.stream());

    for (int64_t i13 = 0; i13 < ne13; ++i13) {
        for (int64_t i12 = 0; i12 < ne12; ++i12) {
            const char * tiles = (const char *) src0->data + i12/(ne12/ne02)*nb02 + i13/(ne13/ne03)*nb03;
            char       * y     = (char *) dst->data + i12*nb2 + i13*nb3;
            const tcq4_mat_job<act> job = {
                (const tcq4_tile *) tiles, acts.get() + (i13*ne12 + i12)*ne11*chunks, nullptr, (float *) y, int64_t(nb1/sizeof(float)),
                chunks, int(ne01), 0, int(ne11),
            };
            tcq4_launch(job, ctx.stream());
        }
    }
}

template <int rule>
static void tcq4_mul_mat_id_as(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    typedef typename tcq4_act_of<rule>::chunk act;
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const ggml_tensor * ids  = dst->src[2];
    const ggml_tensor * perm = dst->src[3];
    GGML_TENSOR_BINARY_OP_LOCALS
    cudaStream_t stream = ctx.stream();

    const int     chunks       = ne00/TCQ4_CHUNK;
    const int64_t n_used       = ids->ne[0];
    const int64_t expert_tiles = ne01/TCQ4_ROWS*chunks;
    const int64_t ids_stride   = ids->nb[1]/sizeof(int32_t);
    tcq4_tokens tokens = {
        (const float *) src1->data, perm ? (const int32_t *) perm->data : nullptr, nullptr, ne11, ne12,
        int64_t(nb11/sizeof(float)), int64_t(nb12/sizeof(float)), 0,
    };

    if (ne12 <= TCQ4_VEC_TOKENS) {
        ggml_cuda_pool_alloc<act> acts(ctx.pool(), ne11*ne12*chunks);
        tcq4_launch_round<rule>(tokens, ne11*ne12, chunks, acts.get(), stream);
        const dim3 grid(ne01/TCQ4_ROWS, n_used, ne12);
        tcq4_mul_vec_id<<<grid, 32*TCQ4_VEC_WARPS, 0, stream>>>((const tcq4_tile *) src0->data, acts.get(), (const int32_t *) ids->data, chunks,
            (float *) dst->data, expert_tiles, ne11, ids_stride, int64_t(nb1/sizeof(float)), int64_t(nb2/sizeof(float)));
        CUDA_CHECK(cudaGetLastError());
        return;
    }

    // Sorted by expert, every token once for each of its experts.
    const int64_t n = n_used*ne12;
    ggml_cuda_pool_alloc<int32_t> order (ctx.pool(), n);
    ggml_cuda_pool_alloc<int32_t> target(ctx.pool(), n);
    ggml_cuda_pool_alloc<int32_t> bounds(ctx.pool(), ne02 + 1);
    GGML_ASSERT(nb12 % nb11 == 0 && nb2 % nb1 == 0);
    ggml_cuda_launch_mm_ids_helper((const int32_t *) ids->data, order.get(), target.get(), bounds.get(),
        ne02, ne12, n_used, ne11, ids_stride, nb12/nb11, /*write_inverse =*/ false, stream);
    CUDA_CHECK(cudaGetLastError());

    // The helper counts tokens in rows of src1 and of dst as they lie in memory.
    tokens.order = order.get();
    tokens.ne1   = INT64_MAX/4;
    tokens.ne2   = 1;
    ggml_cuda_pool_alloc<act> acts(ctx.pool(), n*chunks);
    tcq4_launch_round<rule>(tokens, n, chunks, acts.get(), stream);

    const tcq4_mat_job<act> job = {
        (const tcq4_tile *) src0->data, acts.get(), target.get(), (float *) dst->data, int64_t(nb1/sizeof(float)), chunks, int(ne01), 0, 0,
    };
    // An expert has at most one row for each token.
    const dim3 grid((ne01 + TCQ4_MAT_ROWS - 1)/TCQ4_MAT_ROWS, (ne12 + TCQ4_MAT_TOKENS - 1)/TCQ4_MAT_TOKENS, ne02);
    tcq4_mul_mat_id<<<grid, TCQ4_MAT_THREADS, 0, stream>>>(job, bounds.get(), expert_tiles);
    CUDA_CHECK(cudaGetLastError());
}

void ggml_cuda_tcq4_mul_mat(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    tcq4_with_rule(ctx, dst, [&](auto rule) { tcq4_mul_mat_as<decltype(rule)::value>(ctx, dst); });
}

void ggml_cuda_tcq4_mul_mat_id(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    tcq4_with_rule(ctx, dst, [&](auto rule) { tcq4_mul_mat_id_as<decltype(rule)::value>(ctx, dst); });
}

void ggml_cuda_tcq4_get_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    const ggml_tensor * perm = dst->src[2];
    GGML_TENSOR_BINARY_OP_LOCALS
    const int chunks = ne00/TCQ4_CHUNK;
    const dim3 grid(ne10, chunks, ne11*ne12);
    tcq4_get_rows<<<grid, 32, 0, ctx.stream()>>>((const tcq4_tile *) src0->data, (const int32_t *) src1->data,
        perm ? (const int32_t *) perm->data : nullptr, chunks, (float *) dst->data, ne01/TCQ4_ROWS*chunks,
        int64_t(nb11/sizeof(int32_t)), int64_t(nb12/sizeof(int32_t)), ne11,
        int64_t(nb1/sizeof(float)), int64_t(nb2/sizeof(float)), int64_t(nb3/sizeof(float)));
    CUDA_CHECK(cudaGetLastError());
}

bool ggml_cuda_tcq4_supports_op(const ggml_tensor * op, const int cc) {
    const ggml_tensor * a = op->src[0];
    const ggml_tensor * b = op->src[1];
    // integer tensor cores came with Turing
    if (ggml_cuda_highest_compiled_arch(cc) < GGML_CUDA_CC_TURING || op->type != GGML_TYPE_F32 || !a || a->type != GGML_TYPE_TCQ4_K32 || !ggml_is_contiguous(a)) {
        return false;
    }
    switch (op->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return b->type == GGML_TYPE_F32 && b->nb[0] == sizeof(float);
        case GGML_OP_GET_ROWS:
            return b->type == GGML_TYPE_I32 && op->nb[0] == sizeof(float);
        default:
            return false;
    }
}

#else // the kernels are written for NVIDIA's tensor cores

void ggml_cuda_tcq4_mul_mat   (ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("TCQ4_K32 is not supported by this backend"); }
void ggml_cuda_tcq4_mul_mat_id(ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("TCQ4_K32 is not supported by this backend"); }
void ggml_cuda_tcq4_get_rows  (ggml_backend_cuda_context &, ggml_tensor *) { GGML_ABORT("TCQ4_K32 is not supported by this backend"); }

bool ggml_cuda_tcq4_supports_op(const ggml_tensor *, int) {
    return false;
}

#endif
