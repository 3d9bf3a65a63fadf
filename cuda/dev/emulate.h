// Runs device functions of cuda/include on the CPU, without a GPU: every thread of a block is a fiber, warps exchange registers in step.
//
// For tests of meaning (which lane holds what), not of speed. Shuffles, dp4a, conversions and mma are done as the PTX manual defines them; one
// block runs at a time on one host thread, and all threads of a warp must reach every exchange. Asynchronous copies are done when they are waited for. Threads
// run one after the other, from the last to the first where TCQ4_EMULATED_BACKWARDS is set: a missing barrier shows in one of the two orders at least where a
// thread reads what another one writes. Shared memory holds rubbish before every block. Needs ucontext.h and a linker for ELF (Linux).

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
#include <utility>
#include <vector>

#define TCQ4_EMULATED 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__      static __attribute__((section("emulated_shared")))
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

// The ends of the section, where there is one.
extern "C" {
__attribute__((weak, visibility("hidden"))) extern unsigned char __start_emulated_shared[], __stop_emulated_shared[];
}

static constexpr unsigned char emulated_rubbish = 0xff; // NaN, -1

[[noreturn]] static inline void emulated_failure(const char * what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

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
    std::vector<std::pair<void *, const void *>> copies; // that were begun
};

static struct {
    std::vector<std::unique_ptr<emulated_fiber>> fibers;
    std::vector<emulated_warp>                   warps;
    emulated_barrier                             barrier;
    ucontext_t                                   scheduler;
    const std::function<void()> *                body;
    std::vector<unsigned char>                   dynamic_shared;
    int                                          votes;    // of __syncthreads_or
    bool                                         advanced; // whether a thread went on since this was last looked at
} the_block;

static inline emulated_warp & own_warp() { return the_block.warps[threadIdx.x/32]; }
static inline int             own_lane() { return (int) threadIdx.x%32; }

static inline void emulated_thread() {
    the_block.advanced = true;
    (*the_block.body)();
    emulated_fiber & fiber = *the_block.fibers[threadIdx.x];
    fiber.done = true;
    if (!fiber.copies.empty()) {
        emulated_failure("a thread ends without having waited for its copies");
    }
}

// Lets the other threads run until all have come here.
static inline void wait(emulated_barrier & barrier) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == barrier.threads) {
        barrier.arrived = 0;
        ++barrier.generation;
        the_block.advanced = true;
        return;
    }
    while (barrier.generation == generation) {
        swapcontext(&the_block.fibers[threadIdx.x]->context, &the_block.scheduler);
    }
    the_block.advanced = true;
}

static inline void emulated_copy16(void * shared, const void * global) { the_block.fibers[threadIdx.x]->copies.emplace_back(shared, global); }

static inline void emulated_copies_wait() {
    std::vector<std::pair<void *, const void *>> & copies = the_block.fibers[threadIdx.x]->copies;
    for (const auto & [shared, global] : copies) {
        memcpy(shared, global, 16);
    }
    copies.clear();
}

// Calls `body` in so many threads, which are a block.
static inline void emulate(int threads, const std::function<void()> & body) {
    static const bool backwards = getenv("TCQ4_EMULATED_BACKWARDS") != nullptr;
    const size_t stack = 128*1024;
    memset(__start_emulated_shared, emulated_rubbish, (size_t) (__stop_emulated_shared - __start_emulated_shared));
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
    for (int running = threads; running > 0;) {
        the_block.advanced = false;
        for (int n = 0; n < threads; ++n) {
            const int i = backwards ? threads - 1 - n : n;
            if (!the_block.fibers[i]->done) {
                threadIdx.x = (unsigned) i;
                swapcontext(&the_block.scheduler, &the_block.fibers[i]->context);
                running -= the_block.fibers[i]->done;
            }
        }
        if (!the_block.advanced) {
            emulated_failure("threads wait for each other at different barriers, or for one that has ended");
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
                the_block.dynamic_shared.assign(shared_bytes + 16 + fence, emulated_rubbish);
                emulate(threads, body);
                for (size_t i = 0; i < fence; ++i) {
                    if (the_block.dynamic_shared[shared_bytes + 16 + i] != emulated_rubbish) {
                        emulated_failure("a block wrote behind its dynamic shared memory");
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

// Adds to the four results of a lane in an mma of 16 tokens x 8 rows: those of tokens lane/4 (0, 1) and lane/4 + 8 (2, 3) and of rows 2*(lane%4) + 0, 1.
// `dot` multiplies what the lane of a token and that of a row hold, given the registers by number, for the lower (0) or the upper token (1).
template <int n, typename F> static inline void emulated_mma(int (&d)[4], const uint32_t (&registers)[n], F dot) {
    exchange(registers, n, [&](uint32_t (&slots)[8][32]) {
        for (int i = 0; i < 4; ++i) {
            for (int part = 0; part < 4; ++part) {
                const int token = own_lane()/4*4 + part;
                const int row   = 4*(2*(own_lane()%4) + i%2) + part;
                d[i] += dot([&](int slot) { return slots[slot][token]; }, [&](int slot) { return slots[slot][row]; }, i/2);
            }
        }
        return 0;
    });
}

// mma.m16n8k32 of INT8: a[0], a[2]: token lane/4, columns 4*(lane%4) + 0..3 of the lower and the upper half; a[1], a[3]: token lane/4 + 8;
// b[0], b[1]: row lane/4, the same columns.
static inline void emulated_mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated_mma(d, { a[0], a[1], a[2], a[3], b[0], b[1] }, [](auto token, auto row, int upper) {
        return __dp4a((int) token(upper + 2), (int) row(5), __dp4a((int) token(upper), (int) row(4), 0));
    });
}

// mma.m16n8k16 of INT8: low, high: tokens lane/4 and lane/4 + 8, columns 4*(lane%4) + 0..3; b: row lane/4, the same columns.
static inline void emulated_mma_s8_k16(int (&d)[4], uint32_t low, uint32_t high, uint32_t b) {
    emulated_mma(d, { low, high, b }, [](auto token, auto row, int upper) { return __dp4a((int) token(upper), (int) row(2), 0); });
}

// mma.m16n8k32 of INT4: low, high: tokens lane/4 and lane/4 + 8, columns 8*(lane%4) + 0..7; b: row lane/4, the same columns.
static inline void emulated_mma_s4(int (&d)[4], uint32_t low, uint32_t high, uint32_t b) {
    emulated_mma(d, { low, high, b }, [](auto token, auto row, int upper) {
        int sum = 0;
        for (int k = 0; k < 8; ++k) {
            const auto code = [&](uint32_t word) { return (int) ((word >> 4*k & 15) ^ 8) - 8; };
            sum += code(token(upper))*code(row(2));
        }
        return sum;
    });
}

#endif // TCQ4_EMULATE_H
