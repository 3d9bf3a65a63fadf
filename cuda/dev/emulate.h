// Runs device functions of cuda/include on the CPU, without a GPU: every thread of a block is a fiber, warps exchange registers in step.
//
// For tests of meaning (which lane holds what), not of speed. Shuffles, dp4a, conversions and mma are done as the PTX manual defines them; one
// block runs at a time on one host thread, and all threads of a warp must reach every exchange. Copies are synchronous, so missing waits do not show; missing
// barriers do where they matter for threads that run one after the other. Needs ucontext.h (Linux).

#ifndef TCQ4_EMULATE_H
#define TCQ4_EMULATE_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define TCQ4_EMULATED 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__      static
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

struct emulated_barrier {
    int      threads    = 0;
    int      arrived    = 0;
    unsigned generation = 0;
};

struct emulated_warp {
    emulated_barrier barrier;
    uint32_t         slots[8][32];
};

struct emulated_fiber {
    ucontext_t        context;
    std::vector<char> stack;
    bool              done = false;
};

static struct {
    std::vector<std::unique_ptr<emulated_fiber>> fibers;
    std::vector<emulated_warp>                   warps;
    emulated_barrier                             barrier;
    ucontext_t                                   scheduler;
    const std::function<void()> *                body;
    std::vector<unsigned char>                   dynamic_shared;
    int                                          votes; // of __syncthreads_or
} the_block;

static inline emulated_warp & own_warp() { return the_block.warps[threadIdx.x/32]; }
static inline int             own_lane() { return (int) threadIdx.x%32; }

static inline void emulated_thread() {
    (*the_block.body)();
    the_block.fibers[threadIdx.x]->done = true;
}

// Lets the other threads run until all have come here.
static inline void wait(emulated_barrier & barrier) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.threads) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == generation) {
        swapcontext(&the_block.fibers[threadIdx.x]->context, &the_block.scheduler);
    }
}

// Calls `body` in so many threads, which are a block.
static inline void emulate(int threads, const std::function<void()> & body) {
    const size_t stack = 128*1024;
    the_block.body    = &body;
    the_block.barrier = { threads, 0, 0 };
    the_block.warps.assign(threads/32, emulated_warp{ { 32, 0, 0 }, {} });
    while ((int) the_block.fibers.size() < threads) {
        the_block.fibers.push_back(std::make_unique<emulated_fiber>());
        the_block.fibers.back()->stack.resize(stack);
    }
    blockDim = { (unsigned) threads, 1, 1 };
    for (int i = 0; i < threads; ++i) {
        emulated_fiber & fiber = *the_block.fibers[i];
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp   = fiber.stack.data();
        fiber.context.uc_stack.ss_size = stack;
        fiber.context.uc_link          = &the_block.scheduler;
        makecontext(&fiber.context, emulated_thread, 0);
    }
    for (bool running = true; running;) {
        running = false;
        for (int i = 0; i < threads; ++i) {
            if (!the_block.fibers[i]->done) {
                threadIdx.x = (unsigned) i;
                swapcontext(&the_block.scheduler, &the_block.fibers[i]->context);
                running = true;
            }
        }
    }
}

// Launches a kernel: `body` calls it with its arguments. Dynamic shared memory holds rubbish before every block and has to be left alone behind its end.
static inline void launch(dim3 grid, int threads, size_t shared_bytes, const std::function<void()> & body) {
    const size_t fence = 64;
    gridDim = grid;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                the_block.dynamic_shared.assign(shared_bytes + 16 + fence, 0xa5);
                emulate(threads, body);
                for (size_t i = 0; i < fence; ++i) {
                    if (the_block.dynamic_shared[shared_bytes + 16 + i] != 0xa5) {
                        fprintf(stderr, "a block wrote behind its dynamic shared memory\n");
                        abort();
                    }
                }
            }
        }
    }
    blockIdx = { 0, 0, 0 };
}

static inline unsigned char * emulated_dynamic_shared() {
    const uintptr_t first = (uintptr_t) the_block.dynamic_shared.data();
    return (unsigned char *) ((first + 15)/16*16);
}

static inline void __syncthreads() { wait(the_block.barrier); }

static inline int __syncthreads_or(int vote) {
    the_block.votes |= vote != 0;
    wait(the_block.barrier);
    const int any = the_block.votes;
    wait(the_block.barrier);
    the_block.votes = 0;
    wait(the_block.barrier);
    return any;
}

// Gives every lane's value of up to 8 registers to `use`, which may read those of the whole warp.
template <typename F> static inline auto exchange(const uint32_t * registers, int n, F use) {
    emulated_warp & warp = own_warp();
    for (int i = 0; i < n; ++i) {
        warp.slots[i][own_lane()] = registers[i];
    }
    wait(warp.barrier);
    auto result = use(warp.slots);
    wait(warp.barrier);
    return result;
}

template <typename T> static inline T __shfl_sync(unsigned, T value, int from) {
    uint32_t words[2] = {};
    memcpy(words, &value, sizeof(T));
    struct pair { uint32_t words[2]; };
    const pair got = exchange(words, sizeof(T)/4, [&](uint32_t (&slots)[8][32]) { return pair{{ slots[0][from%32], slots[1][from%32] }}; });
    memcpy(&value, got.words, sizeof(T));
    return value;
}

template <typename T> static inline T __shfl_xor_sync(unsigned all, T value, int mask) { return __shfl_sync(all, value, own_lane() ^ mask); }

static inline unsigned __ballot_sync(unsigned, int vote) {
    const uint32_t own = vote != 0;
    return exchange(&own, 1, [](uint32_t (&slots)[8][32]) {
        unsigned all = 0;
        for (int i = 0; i < 32; ++i) {
            all |= slots[0][i] << i;
        }
        return all;
    });
}

static inline int __popc(unsigned x) { return __builtin_popcount(x); }

static inline unsigned atomicMax(unsigned * at, unsigned x) {
    const unsigned old = *at;
    *at = x > old ? x : old;
    return old;
}

struct alignas(8)  uint2  { uint32_t x, y; };
struct alignas(16) uint4  { uint32_t x, y, z, w; };
struct alignas(8)  int2   { int x, y; };
struct alignas(16) int4   { int x, y, z, w; };
struct alignas(8)  float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { return { x, y }; }
static inline float4 make_float4(float x, float y, float z, float w) { return { x, y, z, w }; }
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

// mma.m16n8k16 of INT8: low, high: tokens lane/4 and lane/4 + 8, columns 4*(lane%4) + 0..3; b: row lane/4, the same columns; d as above.
static inline void emulated_mma_s8_k16(int (&d)[4], uint32_t low, uint32_t high, uint32_t b) {
    const uint32_t registers[3] = { low, high, b };
    exchange(registers, 3, [&](uint32_t (&slots)[8][32]) {
        for (int i = 0; i < 4; ++i) {
            const int token = own_lane()/4;
            const int row   = 2*(own_lane()%4) + i%2;
            for (int part = 0; part < 4; ++part) {
                d[i] = __dp4a((int) slots[i/2][4*token + part], (int) slots[2][4*row + part], d[i]);
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
