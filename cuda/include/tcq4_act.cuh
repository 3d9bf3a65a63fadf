// Activations on the device: one warp gathers 256 channels, rotates them (FWHT) and rounds them to INT8 or INT4.
//
// Codes, scales and the rounding are those of tcq4_k32.h, bit for bit; fast-math flags change nothing, for products and quotients are
// spelled out. Codes lie as the multiplications take them, so a lane of dp4a or mma reads its part of a group in one load:
//   INT8: codes[8*group + 2*part + 0] has elements 8*part + 0, 2, 4, 6 of the group, + 1 has elements 1, 3, 5, 7 (part = 0..3): the halves into
//         which the low and the high nibbles of a word of weight codes fall.
//   INT4: codes[4*group + part] has elements 8*part .. 8*part + 7, the first in the lowest nibble, like a word of weight codes.
//
// Bound: memory; reads 4 bytes (and 4 of the permutation, which stay in cache) and writes 1.25 or 0.75 bytes an element.

#ifndef TCQ4_ACT_CUH
#define TCQ4_ACT_CUH

#include "tcq4_device.cuh"

// How activations are rounded.
enum tcq4_act_rule {
    TCQ4_RULE_INT8,      // one scale max/127 for 32
    TCQ4_RULE_INT4_G32,  // one signed scale for 32, the extreme value at -8
    TCQ4_RULE_INT4_G256, // one signed scale for 256, times 0.9
    TCQ4_RULE_INT4_FORK, // one scale max/7 for 256
};

// A chunk of one token with `words` words of codes.
template <int words> struct alignas(16) tcq4_act_chunk {
    uint32_t codes[words];
    float    scale[TCQ4_GROUPS];
    float    sum[TCQ4_GROUPS]; // scale times the sum of the group's codes: what a zero point is multiplied with
};

typedef tcq4_act_chunk<64> tcq4_act8;
typedef tcq4_act_chunk<32> tcq4_act4;

TCQ4_STATIC_ASSERT(sizeof(tcq4_act8) == 320, "wrong size of INT8 activations");
TCQ4_STATIC_ASSERT(sizeof(tcq4_act4) == 192, "wrong size of INT4 activations");

// A chunk of one token with one scale for all of it. block4 is the activation block of llama.cpp-rrs, but for `scale`, which there is 7 times as large.
struct alignas(16) tcq4_block4 {
    uint32_t codes[32];
    float    scale;
    short    sum[TCQ4_GROUPS]; // of the codes of each group
    uint32_t unused[3];        // 0
};

// The same with every INT4 code in a byte, as INT8 codes lie.
struct alignas(16) tcq4_block8 {
    uint32_t codes[64];
    float    scale;
    short    sum[TCQ4_GROUPS];
    uint32_t unused[3];
};

TCQ4_STATIC_ASSERT(sizeof(tcq4_block4) == 160, "wrong size of INT4 blocks");
TCQ4_STATIC_ASSERT(sizeof(tcq4_block8) == 288, "wrong size of widened INT4 blocks");

template <int rule> struct tcq4_act_of                       { typedef tcq4_act4 chunk; };
template <>         struct tcq4_act_of<TCQ4_RULE_INT8>       { typedef tcq4_act8 chunk; };

#define TCQ4_ALL_LANES 0xffffffffu

// The FWHT of 256 values, of which lane l holds 8*l .. 8*l + 7: additions in the order of tcq4_fwht256.
static __device__ __forceinline__ void tcq4_warp_fwht(float (&v)[8], int lane) {
#pragma unroll
    for (int h = 1; h < 8; h *= 2) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if ((i & h) == 0) {
                const float a = v[i];
                const float b = v[i + h];
                v[i]     = a + b;
                v[i + h] = a - b;
            }
        }
    }
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float other = __shfl_xor_sync(TCQ4_ALL_LANES, v[i], h);
            v[i] = (lane & h) == 0 ? v[i] + other : other - v[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i] *= 0.0625f;
    }
}

// What decides a scale: the magnitude as an integer above, below it the place (the first of equals wins), then the sign.
template <int span> static __device__ __forceinline__ unsigned long long tcq4_extreme(const float (&v)[8], int lane) {
    unsigned long long best = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const uint32_t bits = tcq4_bits_of_float(v[i]);
        const uint32_t rest = (uint32_t) (TCQ4_CHUNK - 1 - (8*lane + i)) << 1 | bits >> 31;
        const unsigned long long key = (unsigned long long) (bits & 0x7fffffffu) << 32 | rest;
        best = key > best ? key : best;
    }
#pragma unroll
    for (int h = 1; h < span/8; h *= 2) {
        const unsigned long long other = __shfl_xor_sync(TCQ4_ALL_LANES, best, h);
        best = other > best ? other : best;
    }
    return best;
}

// The magnitude alone, which symmetric codes need.
template <int span> static __device__ __forceinline__ uint32_t tcq4_largest_bits(const float (&v)[8]) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const uint32_t bits = tcq4_bits_of_float(v[i]) & 0x7fffffffu;
        best = bits > best ? bits : best;
    }
#pragma unroll
    for (int h = 1; h < span/8; h *= 2) {
        const uint32_t other = __shfl_xor_sync(TCQ4_ALL_LANES, best, h);
        best = other > best ? other : best;
    }
    return best;
}

// Writes the codes of lane's 8 values: four bits each, or bytes with the even elements before the odd ones.
static __device__ __forceinline__ void tcq4_put_codes(uint32_t (&codes)[32], const int (&q)[8], int lane) {
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        word |= (uint32_t) (q[i] & 15) << 4*i;
    }
    codes[lane] = word;
}

static __device__ __forceinline__ void tcq4_put_codes(uint32_t (&codes)[64], const int (&q)[8], int lane) {
    uint32_t even = 0;
    uint32_t odd  = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        even |= (uint32_t) (q[2*i]     & 255) << 8*i;
        odd  |= (uint32_t) (q[2*i + 1] & 255) << 8*i;
    }
    ((uint2 *) codes)[lane] = make_uint2(even, odd);
}

// Writes what belongs to a group: its scale and the sum of its codes. Called by one lane of each group.
template <int words>
static __device__ __forceinline__ void tcq4_put_group(tcq4_act_chunk<words> * out, int group, float scale, int sum) {
    out->scale[group] = scale;
    out->sum  [group] = tcq4_mul(scale, (float) sum);
}

template <typename block> static __device__ __forceinline__ void tcq4_put_group(block * out, int group, float scale, int sum) {
    out->sum[group] = (short) sum;
    if (group == 0) {
        out->scale = scale;
    } else if (group < 4) {
        out->unused[group - 1] = 0;
    }
}

// Rotates and rounds a chunk whose values 8*lane .. 8*lane + 7 are in v. All lanes of a warp take part.
template <int rule, typename chunk_type>
static __device__ __forceinline__ void tcq4_round_values(float (&v)[8], int lane, chunk_type * __restrict__ out) {
    tcq4_warp_fwht(v, lane);

    constexpr int   span     = rule == TCQ4_RULE_INT8 || rule == TCQ4_RULE_INT4_G32 ? TCQ4_GROUP : TCQ4_CHUNK;
    constexpr bool  has_sign = rule == TCQ4_RULE_INT4_G32 || rule == TCQ4_RULE_INT4_G256;
    constexpr float top      = rule == TCQ4_RULE_INT8 ? 127.0f : 7.0f;
    constexpr float low      = has_sign ? -8.0f : -top;

    const unsigned long long extreme = has_sign ? tcq4_extreme<span>(v, lane) : (unsigned long long) tcq4_largest_bits<span>(v) << 32;
    const float largest = tcq4_float_of_bits((uint32_t) (extreme >> 32));
    float scale;
    float inverse;
    if (has_sign) {
        const float value = extreme & 1 ? -largest : largest;
        const float clip  = rule == TCQ4_RULE_INT4_G256 ? 0.9f : 1.0f;
        scale   = largest < TCQ4_TINY ? 1.0f : tcq4_mul(tcq4_mul(value, clip), -0.125f);
        inverse = tcq4_div(1.0f, scale);
    } else {
        const float max = largest < TCQ4_TINY ? 1.0f : largest;
        scale   = tcq4_div(max, top);
        inverse = tcq4_div(top, max);
    }
    if (!(largest <= 3.402823466e38f)) {
        scale = tcq4_float_of_bits(0x7fc00000u);
    }

    int q[8];
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        q[i] = __float2int_rn(tcq4_clamp(tcq4_mul(v[i], inverse), low, top));
        sum += q[i];
    }
    sum += __shfl_xor_sync(TCQ4_ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(TCQ4_ALL_LANES, sum, 2);

    tcq4_put_codes(out->codes, q, lane);
    if (lane%4 == 0) {
        tcq4_put_group(out, lane/4, scale, sum);
    }
}

// Rounds one chunk. All lanes of a warp take part; x are the channels of one token, perm (may be null) their order.
template <int rule>
static __device__ __forceinline__ void tcq4_round_chunk(
        const float * __restrict__ x, const int32_t * __restrict__ perm, int chunk, typename tcq4_act_of<rule>::chunk * __restrict__ out) {
    const int lane  = threadIdx.x & 31;
    const int first = chunk*TCQ4_CHUNK + 8*lane;

    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i] = x[perm ? perm[first + i] : first + i];
    }
    tcq4_round_values<rule>(v, lane, out);
}

// --- a token's channels in another order ---

// Copies a row to shared memory, by all threads of a block; afterwards all may read it.
template <typename value> static __device__ __forceinline__ void tcq4_stage_row(const value * __restrict__ row, int k, value * shared) {
    constexpr int vector = 16/sizeof(value);
    for (int i = threadIdx.x; i < k/vector; i += blockDim.x) {
        tcq4_copy16(&shared[vector*i], &row[vector*i]);
    }
    tcq4_copies_wait();
    __syncthreads();
}

// Eight places of a permutation.
static __device__ __forceinline__ void tcq4_load_order(const int32_t * __restrict__ perm, int (&from)[8]) {
    const int4 low  = ((const int4 *) perm)[0];
    const int4 high = ((const int4 *) perm)[1];
    from[0] = low.x;  from[1] = low.y;  from[2] = low.z;  from[3] = low.w;
    from[4] = high.x; from[5] = high.y; from[6] = high.z; from[7] = high.w;
}

// Reads channels perm[first] .. perm[first + 7] of a row, or those at `first` where perm is null. first is a multiple of 8.
template <typename value>
static __device__ __forceinline__ void tcq4_gather8(const value * row, const int32_t * __restrict__ perm, int first, float (&v)[8]) {
    if (!perm) {
        tcq4_load8(row + first, v);
        return;
    }
    int from[8];
    tcq4_load_order(perm + first, from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i] = tcq4_load(row + from[i]);
    }
}

// Rounds the chunks of all tokens; see kernels/activations.cu for the launch.
template <int rule, typename value, typename chunk_type>
static __device__ __forceinline__ void tcq4_round_tokens(
        const value * __restrict__ x, const int32_t * __restrict__ perm, chunk_type * __restrict__ acts, int64_t tokens, int chunks, int staged) {
    TCQ4_DYNAMIC_SHARED(row_memory);
    const int lane  = threadIdx.x & 31;
    const int warp  = threadIdx.x >> 5;
    const int warps = blockDim.x >> 5;
    const int64_t k = (int64_t) TCQ4_CHUNK*chunks;
    float v[8];
    if (staged) {
        const int64_t token = blockIdx.x;
        value * row = (value *) row_memory;
        tcq4_stage_row(x + token*k, (int) k, row);
        for (int chunk = warp; chunk < chunks; chunk += warps) {
            tcq4_gather8(row, perm, TCQ4_CHUNK*chunk + 8*lane, v);
            tcq4_round_values<rule>(v, lane, &acts[token*chunks + chunk]);
        }
        return;
    }
    const int64_t i = (int64_t) blockIdx.x*warps + warp;
    if (i < tokens*chunks) {
        tcq4_gather8(x + i/chunks*k, perm, (int) (i%chunks)*TCQ4_CHUNK + 8*lane, v);
        tcq4_round_values<rule>(v, lane, &acts[i]);
    }
}

#endif // TCQ4_ACT_CUH
