// TCQ4_K32: the bytes of a tile, the value of a code, the FWHT, the rounding of activations and the parity encoder.
//
// The single source for CPU and GPU. Plain C99 that C++, nvcc and NVRTC compile as well, so no host header is needed beyond stdint.
// Every function gives the same bits everywhere: products that feed an addition go through tcq4_mul(), which no compiler fuses.
//
// Vocabulary: a tile is 8 rows by 256 columns; a chunk is 256 consecutive columns, the span of one FWHT; a group is 32 columns with
// one weight scale; a stripe is 8 rows, that is K/256 tiles one after the other.

#ifndef TCQ4_K32_H
#define TCQ4_K32_H

#if defined(__CUDACC_RTC__)
typedef signed char        int8_t;
typedef unsigned char      uint8_t;
typedef unsigned short     uint16_t;
typedef int                int32_t;
typedef unsigned int       uint32_t;
typedef long long          int64_t;
#else
#include <stdint.h>
#endif

#if defined(__CUDACC__) || defined(__HIPCC__)
#define TCQ4_FN static inline __host__ __device__
#elif defined(__GNUC__)
#define TCQ4_FN static inline __attribute__((unused))
#else
#define TCQ4_FN static inline
#endif

#if defined(__cplusplus)
#define TCQ4_STATIC_ASSERT(condition, message) static_assert(condition, message)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define TCQ4_STATIC_ASSERT(condition, message) _Static_assert(condition, message)
#else
#define TCQ4_STATIC_ASSERT(condition, message) struct tcq4_assert_needs_c11
#endif

enum {
    TCQ4_ROWS       = 8,    // rows of a tile
    TCQ4_CHUNK      = 256,  // columns of a tile
    TCQ4_GROUP      = 32,   // columns that share a scale and a zero point
    TCQ4_GROUPS     = 8,    // groups of a row in a tile
    TCQ4_TILE_BYTES = 1184, // 4.625 bits a weight
    TCQ4_ROW_BYTES  = 148,  // what one row of a tile takes on average
};

// A weight is (S*sc/127)*q + (Z*zc/127), evaluated in f32 in this order.
typedef struct {
    uint8_t  codes[1024];    // int4: element k of group g of row r at byte 128*g + 16*r + k/2, the low nibble if k is even
    uint16_t scale[8];       // S, fp16
    uint16_t zero[8];        // Z, fp16
    int8_t   scale_code[64]; // sc, [row][group]
    int8_t   zero_code[64];  // zc, [row][group]
} tcq4_tile;

TCQ4_STATIC_ASSERT(sizeof(tcq4_tile) == TCQ4_TILE_BYTES, "wrong tcq4 tile size");
TCQ4_STATIC_ASSERT(TCQ4_ROWS*TCQ4_ROW_BYTES == TCQ4_TILE_BYTES, "wrong tcq4 row size");

// --- f32 arithmetic that is the same everywhere ---

// Keeps the compiler from looking through a value, so that a product is rounded before it is added to.
TCQ4_FN float tcq4_opaque(float x) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
    return x;
#elif defined(__GNUC__) && (defined(__x86_64__) || defined(__SSE__))
    __asm__("" : "+x"(x));
    return x;
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__("" : "+w"(x));
    return x;
#else
    volatile float y = x;
    return y;
#endif
}

TCQ4_FN float tcq4_mul(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return tcq4_opaque(a*b);
#endif
}

// CUDA with -use_fast_math would take an approximate quotient.
TCQ4_FN float tcq4_div(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a/b;
#endif
}

TCQ4_FN uint32_t tcq4_bits_of_float(float x) {
    union { float f; uint32_t u; } v;
    v.f = x;
    return v.u;
}

TCQ4_FN float tcq4_float_of_bits(uint32_t bits) {
    union { float f; uint32_t u; } v;
    v.u = bits;
    return v.f;
}

TCQ4_FN float tcq4_abs(float x) {
    return tcq4_float_of_bits(tcq4_bits_of_float(x) & 0x7fffffffu);
}

TCQ4_FN float tcq4_float_of_half(uint16_t half) {
    const uint32_t sign     = (uint32_t) (half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u;
    const uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0) { // zero and subnormals: the mantissa counts 2^-24
        const float value = (float) mantissa*5.9604644775390625e-8f;
        return tcq4_float_of_bits(sign | tcq4_bits_of_float(value));
    }
    if (exponent == 31) {
        return tcq4_float_of_bits(sign | 0x7f800000u | (mantissa << 13));
    }
    return tcq4_float_of_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// Rounds to the nearest fp16, ties to even.
TCQ4_FN uint16_t tcq4_half_of_float(float x) {
    const uint32_t bits = tcq4_bits_of_float(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    uint32_t half;
    if (rest > 0x7f800000u) {
        half = 0x7e00u; // NaN
    } else if (rest >= 0x477ff000u) {
        half = 0x7c00u; // 65520 and above
    } else if (rest < 0x33000001u) {
        half = 0;       // 2^-25 and below
    } else {
        // Bits of the mantissa (with its leading one) that the result has no room for; below 2^-14 there are more of them.
        const uint32_t exponent = rest >> 23;
        const uint32_t mantissa = exponent < 113 ? (rest & 0x7fffffu) | 0x800000u : rest - (112u << 23);
        const uint32_t shift    = exponent < 113 ? 126u - exponent : 13u;
        const uint32_t cut      = mantissa & ((1u << shift) - 1u);
        const uint32_t tie      = 1u << (shift - 1u);
        half = mantissa >> shift;
        half += cut > tie || (cut == tie && (half & 1u));
    }
    return (uint16_t) (sign | half);
}

// Brings x into low..high; NaN becomes low, so that the conversion to an integer is always defined.
TCQ4_FN float tcq4_clamp(float x, float low, float high) {
    return !(x > low) ? low : x > high ? high : x;
}

// Rounds to the nearest integer, ties to even, for |x| <= 2^22.
TCQ4_FN int tcq4_round_even(float x) {
    const float magic = 12582912.0f; // 1.5*2^23: the sum has no bits left for a fraction
    return (int) (tcq4_opaque(x + magic) - magic);
}

// Rounds to the nearest integer, ties away from zero, for |x| <= 2^22.
TCQ4_FN int tcq4_round_away(float x) {
    const int   whole = (int) x;
    const float rest  = x - (float) whole; // exact
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

// --- FWHT ---

// The orthonormal Walsh-Hadamard transform of 256 values in natural order, in place; its own inverse up to rounding.
// File bytes depend on the order of the additions: pairs (j, j + h) for h = 1, 2, 4 .. 128, then times 1/16.
TCQ4_FN void tcq4_fwht256(float * x) {
    for (int h = 1; h < TCQ4_CHUNK; h *= 2) {
        for (int start = 0; start < TCQ4_CHUNK; start += 2*h) {
            for (int j = start; j < start + h; ++j) {
                const float a = x[j];
                const float b = x[j + h];
                x[j]     = a + b;
                x[j + h] = a - b;
            }
        }
    }
    for (int j = 0; j < TCQ4_CHUNK; ++j) {
        x[j] *= 0.0625f;
    }
}

// --- decoding ---

// Reads a code, -8..7.
TCQ4_FN int tcq4_code(const tcq4_tile * tile, int row, int column) {
    const int k      = column & 31;
    const int nibble = tile->codes[128*(column >> 5) + 16*row + k/2] >> (4*(k & 1)) & 15;
    return (nibble ^ 8) - 8;
}

// The distance of neighbouring values of a group: (S*sc)/127.
TCQ4_FN float tcq4_step(const tcq4_tile * tile, int row, int group) {
    return tcq4_div(tcq4_mul(tcq4_float_of_half(tile->scale[row]), (float) tile->scale_code[8*row + group]), 127.0f);
}

// The value of code 0 of a group: (Z*zc)/127.
TCQ4_FN float tcq4_offset(const tcq4_tile * tile, int row, int group) {
    return tcq4_div(tcq4_mul(tcq4_float_of_half(tile->zero[row]), (float) tile->zero_code[8*row + group]), 127.0f);
}

// One rotated weight.
TCQ4_FN float tcq4_value(const tcq4_tile * tile, int row, int column) {
    const int group = column >> 5;
    return tcq4_mul(tcq4_step(tile, row, group), (float) tcq4_code(tile, row, column)) + tcq4_offset(tile, row, group);
}

// Whether every weight of the tile decodes to a finite value.
TCQ4_FN int tcq4_tile_is_finite(const tcq4_tile * tile) {
    for (int row = 0; row < TCQ4_ROWS; ++row) {
        if ((tile->scale[row] & 0x7c00u) == 0x7c00u || (tile->zero[row] & 0x7c00u) == 0x7c00u) {
            return 0;
        }
    }
    return 1;
}

// --- rounding of activations; x has been rotated, each returns the scale that a code is multiplied with ---

#define TCQ4_TINY 1e-10f // below this a group counts as zero

// Reads the magnitude that is largest as an integer, so NaN wins over infinity and that over all numbers.
TCQ4_FN float tcq4_largest(const float * x, int n) {
    uint32_t largest = 0;
    for (int i = 0; i < n; ++i) {
        const uint32_t bits = tcq4_bits_of_float(x[i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return tcq4_float_of_bits(largest);
}

TCQ4_FN void tcq4_act_codes(const float * x, int n, float inverse, float low, float high, int8_t * q) {
    for (int i = 0; i < n; ++i) {
        q[i] = (int8_t) tcq4_round_even(tcq4_clamp(tcq4_mul(x[i], inverse), low, high));
    }
}

// Symmetric codes in -top..top: INT8 with top 127, the rule of llama.cpp-rrs with top 7. A scale of NaN says that x has no finite maximum.
TCQ4_FN float tcq4_act_symmetric(const float * x, int n, float top, int8_t * q) {
    const float largest = tcq4_largest(x, n);
    const float max     = largest < TCQ4_TINY ? 1.0f : largest;
    tcq4_act_codes(x, n, tcq4_div(top, max), -top, top, q);
    return max <= 3.402823466e38f ? tcq4_div(max, top) : tcq4_float_of_bits(0x7fc00000u);
}

// Codes in -8..7: the value of largest magnitude (the first of equals) gets -8/clip, so the scale has the opposite sign.
TCQ4_FN float tcq4_act_signed(const float * x, int n, float clip, int8_t * q) {
    const float largest = tcq4_largest(x, n);
    float step = 1.0f;
    if (!(largest < TCQ4_TINY)) {
        int i = 0;
        while (i < n - 1 && tcq4_abs(x[i]) != largest) {
            ++i;
        }
        step = tcq4_mul(tcq4_mul(x[i], clip), -0.125f);
    }
    tcq4_act_codes(x, n, tcq4_div(1.0f, step), -8.0f, 7.0f, q);
    return largest <= 3.402823466e38f ? step : tcq4_float_of_bits(0x7fc00000u);
}

// --- the parity encoder: byte for byte what llama.cpp-rrs writes ---

// Encodes 256 rotated values as a row of a tile.
TCQ4_FN void tcq4_encode_row(const float * y, int row, tcq4_tile * tile) {
    float scales[TCQ4_GROUPS];
    float top = 0.0f;
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        const float scale = tcq4_div(tcq4_largest(y + 32*g, TCQ4_GROUP), 7.0f);
        scales[g] = scale < TCQ4_TINY ? 1.0f : scale;
        top       = scales[g] > top ? scales[g] : top;
    }
    tile->scale[row] = tcq4_half_of_float(top);
    tile->zero[row]  = 0;
    for (int g = 0; g < TCQ4_GROUPS; ++g) {
        const float share = tcq4_mul(tcq4_div(scales[g], top), 127.0f);
        tile->scale_code[8*row + g] = (int8_t) tcq4_round_away(tcq4_clamp(share, -127.0f, 127.0f));
        tile->zero_code [8*row + g] = 0;
        const float inverse = tcq4_div(1.0f, scales[g]);
        for (int i = 0; i < TCQ4_GROUP/2; ++i) {
            const float * pair = y + 32*g + 2*i;
            const int low  = tcq4_round_away(tcq4_clamp(tcq4_mul(pair[0], inverse), -8.0f, 7.0f));
            const int high = tcq4_round_away(tcq4_clamp(tcq4_mul(pair[1], inverse), -8.0f, 7.0f));
            tile->codes[128*g + 16*row + i] = (uint8_t) ((low & 15) | (high & 15) << 4);
        }
    }
}

// Encodes 8 rows of k weights (k % 256 == 0, row after row, permuted but not rotated) into k/256 tiles.
// Returns 0, or 1 if some scale is not finite: a weight was not, or a rotated one is above 7*65504.
TCQ4_FN int tcq4_encode_stripe(const float * rows, int64_t k, void * tiles) {
    int bad = 0;
    for (int64_t t = 0; t < k/TCQ4_CHUNK; ++t) {
        tcq4_tile * tile = (tcq4_tile *) tiles + t;
        for (int row = 0; row < TCQ4_ROWS; ++row) {
            float y[TCQ4_CHUNK];
            for (int i = 0; i < TCQ4_CHUNK; ++i) {
                y[i] = rows[row*k + t*TCQ4_CHUNK + i];
            }
            tcq4_fwht256(y);
            tcq4_encode_row(y, row, tile);
        }
        bad |= !tcq4_tile_is_finite(tile);
    }
    return bad;
}

#endif // TCQ4_K32_H
