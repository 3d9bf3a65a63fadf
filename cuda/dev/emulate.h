// Runs device functions of cuda/include on the CPU, without a GPU: every thread of a block is a host thread, warps exchange registers in step.
//
// For tests of meaning (which lane holds what), not of speed. Shuffles, dp4a, conversions and mma are done as the PTX manual defines them; one
// block runs at a time, and all threads of a warp must reach every exchange.

#ifndef TCQ4_EMULATE_H
#define TCQ4_EMULATE_H

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define TCQ4_EMULATED 1
#define __device__
#define __forceinline__ inline
#define __shared__      static

struct emulated_block {
    struct warp {
        std::barrier<> barrier{32};
        uint32_t       slots[8][32];
    };
    explicit emulated_block(int threads) : barrier(threads) {
        for (int i = 0; i < threads/32; ++i) {
            warps.push_back(std::make_unique<warp>());
        }
    }
    std::barrier<>                     barrier;
    std::vector<std::unique_ptr<warp>> warps;
};

static thread_local struct { unsigned x; } threadIdx;
static emulated_block * the_block;

static inline emulated_block::warp & own_warp() { return *the_block->warps[threadIdx.x/32]; }
static inline int                    own_lane() { return (int) threadIdx.x%32; }

// Calls `body` in so many threads, which are a block.
static inline void emulate(int threads, const std::function<void()> & body) {
    emulated_block block(threads);
    the_block = &block;
    std::vector<std::thread> all;
    for (int i = 0; i < threads; ++i) {
        all.emplace_back([&, i] {
            threadIdx.x = (unsigned) i;
            body();
        });
    }
    for (std::thread & one : all) {
        one.join();
    }
}

static inline void __syncthreads() { the_block->barrier.arrive_and_wait(); }

// Gives every lane's value of up to 8 registers to `use`, which may read those of the whole warp.
template <typename F> static inline auto exchange(const uint32_t * registers, int n, F use) {
    emulated_block::warp & warp = own_warp();
    for (int i = 0; i < n; ++i) {
        warp.slots[i][own_lane()] = registers[i];
    }
    warp.barrier.arrive_and_wait();
    auto result = use(warp.slots);
    warp.barrier.arrive_and_wait();
    return result;
}

template <typename T> static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    uint32_t words[2] = {};
    memcpy(words, &value, sizeof(T));
    struct pair { uint32_t words[2]; };
    const pair got = exchange(words, sizeof(T)/4, [&](uint32_t (&slots)[8][32]) {
        const int from = own_lane() ^ mask;
        return pair{{ slots[0][from], slots[1][from] }};
    });
    memcpy(&value, got.words, sizeof(T));
    return value;
}

struct alignas(8)  uint2  { uint32_t x, y; };
struct alignas(16) uint4  { uint32_t x, y, z, w; };
struct alignas(8)  float2 { float x, y; };
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return { x, y }; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return { x, y, z, w }; }

static inline int signed_byte(uint32_t word, int i) { return (int8_t) (word >> 8*i); }

static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) {
        c += signed_byte((uint32_t) a, i)*signed_byte((uint32_t) b, i);
    }
    return c;
}

static inline int   __float2int_rn(float x) { return (int) std::nearbyintf(x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// mma.m16n8k32 of INT8: a[0], a[2]: token lane/4, columns 4*(lane%4) + 0..3 of the lower and the upper half; a[1], a[3]: token lane/4 + 8;
// b[0], b[1]: row lane/4, the same columns; d: tokens lane/4 (0, 1) and lane/4 + 8 (2, 3), rows 2*(lane%4) + 0, 1.
static inline void emulated_mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t registers[6] = { a[0], a[1], a[2], a[3], b[0], b[1] };
    exchange(registers, 6, [&](uint32_t (&slots)[8][32]) {
        for (int i = 0; i < 4; ++i) {
            const int token = own_lane()/4;
            const int row   = 2*(own_lane()%4) + i%2;
            for (int part = 0; part < 4; ++part) {
                for (int half = 0; half < 2; ++half) {
                    const uint32_t x = slots[i/2 + 2*half][4*token + part];
                    d[i] = __dp4a((int) x, (int) slots[4 + half][4*row + part], d[i]);
                }
            }
        }
        return 0;
    });
}

// mma.m16n8k32 of INT4: a[0], a[1]: tokens lane/4 and lane/4 + 8, columns 8*(lane%4) + 0..7; b: row lane/4, the same columns; d as above.
static inline void emulated_mma_s4(int (&d)[4], uint32_t low, uint32_t high, uint32_t b) {
    const uint32_t registers[3] = { low, high, b };
    exchange(registers, 3, [&](uint32_t (&slots)[8][32]) {
        for (int i = 0; i < 4; ++i) {
            const int token = own_lane()/4;
            const int row   = 2*(own_lane()%4) + i%2;
            for (int part = 0; part < 4; ++part) {
                for (int k = 0; k < 8; ++k) {
                    const auto code = [&](uint32_t word) { return (int) ((word >> 4*k & 15) ^ 8) - 8; };
                    d[i] += code(slots[i/2][4*token + part])*code(slots[2][4*row + part]);
                }
            }
        }
        return 0;
    });
}

#endif // TCQ4_EMULATE_H
