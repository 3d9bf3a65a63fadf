// The tensor core instructions of a product with TCQ4 weights, and the registers that they take.
//
// Weights are the first operand: words of their codes as they lie in the file (INT4), or two registers for each (INT8: even and odd elements as
// bytes times 16, see tcq4_mul_vec.cuh). Tokens are the second, whose pair of registers is what a load of 8 bytes gives: as the first operand, with four
// registers in another order, they cost four moves an mma. Lane 4*r + part has rows r and r + 8 and tokens 2*part and 2*part + 1 of a result.

#ifndef TCQ4_GEMM_MMA_CUH
#define TCQ4_GEMM_MMA_CUH

#include "tcq4_mul_mat.cuh"

// d = a*b + c in every result, 16 rows x 8 tokens x 32 columns of INT8. a: even elements of rows r and r + 8, odd elements of these; b: even and odd elements.
static __device__ __forceinline__ void tcq4_gemm_s8(int (&d)[4], const uint32_t (&a)[4], const uint2 & b, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(c));
#else
    d[0] = d[1] = d[2] = d[3] = c;
    tcq4_mma_s8(d, make_uint2(a[0], a[2]), make_uint2(a[1], a[3]), b.x, b.y);
#endif
}

// The same of INT4, a word for each row and for the token.
static __device__ __forceinline__ void tcq4_gemm_s4(int (&d)[4], uint32_t low, uint32_t high, uint32_t b, int c) {
#if TCQ4_NATIVE_INT4 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(low), "r"(high), "r"(b), "r"(c));
#else
    d[0] = d[1] = d[2] = d[3] = c;
    tcq4_mma_s4(d, low, high, b);
#endif
}

// The same of INT8 and depth 16: columns 4*(lane%4) + 0..3 of rows lane/4 and lane/4 + 8, and of token lane/4.
static __device__ __forceinline__ void tcq4_gemm_s8_k16(int (&d)[4], uint32_t low, uint32_t high, uint32_t b, int c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(low), "r"(high), "r"(b), "r"(c));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};" : "=r"(d[0]), "=r"(d[1]) : "r"(low),  "r"(b), "r"(c));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};" : "=r"(d[2]), "=r"(d[3]) : "r"(high), "r"(b), "r"(c));
#elif defined(TCQ4_EMULATED)
    d[0] = d[1] = d[2] = d[3] = c;
    emulated_mma_s8_k16(d, low, high, b);
#else
    (void) d; (void) low; (void) high; (void) b; (void) c; // no tensor cores: never launched
#endif
}

// The operands of a group. words: of the codes of a token's half chunk; INT4 has a word a row, INT8 two.
template <int words> struct tcq4_gemm_weights;
template <int words> struct tcq4_gemm_tokens;

// INT8 tokens.
template <> struct tcq4_gemm_weights<32> {
    uint32_t a[4];

    // The words of rows r and r + 8.
    __device__ __forceinline__ void set(uint32_t low, uint32_t high) {
        a[0] = (uint32_t) tcq4_even(low);
        a[1] = (uint32_t) tcq4_even(high);
        a[2] = (uint32_t) tcq4_odd(low);
        a[3] = (uint32_t) tcq4_odd(high);
    }
};

template <> struct tcq4_gemm_tokens<32> {
    uint2 b;

    __device__ __forceinline__ void load(const uint32_t * codes, int group, int part) { b = *(const uint2 *) &codes[8*group + 2*part]; }
};

static __device__ __forceinline__ void tcq4_gemm_mul(int (&d)[4], const tcq4_gemm_weights<32> & weights, const tcq4_gemm_tokens<32> & tokens, int c) {
    tcq4_gemm_s8(d, weights.a, tokens.b, c);
}

// INT4 tokens: native, or widened as the weights are.
#if TCQ4_NATIVE_INT4
template <> struct tcq4_gemm_weights<16> {
    uint32_t a[2];

    __device__ __forceinline__ void set(uint32_t low, uint32_t high) {
        a[0] = low;
        a[1] = high;
    }
};

template <> struct tcq4_gemm_tokens<16> {
    uint32_t b;

    __device__ __forceinline__ void load(const uint32_t * codes, int group, int part) { b = codes[4*group + part]; }
};

static __device__ __forceinline__ void tcq4_gemm_mul(int (&d)[4], const tcq4_gemm_weights<16> & weights, const tcq4_gemm_tokens<16> & tokens, int c) {
    tcq4_gemm_s4(d, weights.a[0], weights.a[1], tokens.b, c);
}
#else
template <> struct tcq4_gemm_weights<16> : tcq4_gemm_weights<32> {};

template <> struct tcq4_gemm_tokens<16> {
    uint2 b;

    __device__ __forceinline__ void load(const uint32_t * codes, int group, int part) {
        const uint32_t word = codes[4*group + part];
        b = make_uint2((uint32_t) tcq4_even(word), (uint32_t) tcq4_odd(word));
    }
};

static __device__ __forceinline__ void tcq4_gemm_mul(int (&d)[4], const tcq4_gemm_weights<16> & weights, const tcq4_gemm_tokens<16> & tokens, int c) {
    tcq4_gemm_s8(d, weights.a, tokens.b, c);
}
#endif

#endif // TCQ4_GEMM_MMA_CUH
