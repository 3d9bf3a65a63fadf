// What the kernels need of a device and CUDA spells in its own way: entry points, shared memory, halves, copies that overlap with work, and f32
// arithmetic that no compiler flag changes.
//
// For nvcc, NVRTC and the emulation of cuda/dev; no host header.

#ifndef TCQ4_DEVICE_CUH
#define TCQ4_DEVICE_CUH

#include "tcq4_k32.h"

#define TCQ4_KERNEL extern "C" __global__ void

#if defined(TCQ4_EMULATED)
#define TCQ4_DYNAMIC_SHARED(name) unsigned char * const name = emulated_dynamic_shared()
#else
#define TCQ4_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// --- halves ---

static __device__ __forceinline__ float tcq4_load(const float * x) { return *x; }

static __device__ __forceinline__ float tcq4_wide(uint16_t half) {
#if defined(__CUDA_ARCH__)
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
#else
    return tcq4_float_of_half(half);
#endif
}

static __device__ __forceinline__ uint16_t tcq4_narrow(float x) {
#if defined(__CUDA_ARCH__)
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
#else
    return tcq4_half_of_float(x);
#endif
}

static __device__ __forceinline__ float tcq4_load(const uint16_t * x) { return tcq4_wide(*x); }

static __device__ __forceinline__ void tcq4_put(float    * y, float x) { *y = x; }
static __device__ __forceinline__ void tcq4_put(uint16_t * y, float x) { *y = tcq4_narrow(x); }

// Eight consecutive values; x is aligned to them.
static __device__ __forceinline__ void tcq4_load8(const float * x, float (&v)[8]) {
    const float4 low  = ((const float4 *) x)[0];
    const float4 high = ((const float4 *) x)[1];
    v[0] = low.x;  v[1] = low.y;  v[2] = low.z;  v[3] = low.w;
    v[4] = high.x; v[5] = high.y; v[6] = high.z; v[7] = high.w;
}

static __device__ __forceinline__ void tcq4_load8(const uint16_t * x, float (&v)[8]) {
    const uint4 all = *(const uint4 *) x;
    const uint32_t words[4] = { all.x, all.y, all.z, all.w };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v[2*i]     = tcq4_wide((uint16_t) (words[i] & 0xffffu));
        v[2*i + 1] = tcq4_wide((uint16_t) (words[i] >> 16));
    }
}

static __device__ __forceinline__ void tcq4_store8(float * x, const float (&v)[8]) {
    ((float4 *) x)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4 *) x)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

static __device__ __forceinline__ void tcq4_store8(uint16_t * x, const float (&v)[8]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        words[i] = (uint32_t) tcq4_narrow(v[2*i]) | (uint32_t) tcq4_narrow(v[2*i + 1]) << 16;
    }
    *(uint4 *) x = make_uint4(words[0], words[1], words[2], words[3]);
}

// --- f32 arithmetic that is rounded after every operation and keeps subnormals, whatever the flags ---

#if defined(__CUDA_ARCH__)
#define TCQ4_EXACT(name, instruction) \
    static __device__ __forceinline__ float name(float a, float b) { \
        float x; \
        asm(instruction " %0, %1, %2;" : "=f"(x) : "f"(a), "f"(b)); \
        return x; \
    }
TCQ4_EXACT(tcq4_add_exact, "add.rn.f32")
TCQ4_EXACT(tcq4_sub_exact, "sub.rn.f32")
TCQ4_EXACT(tcq4_mul_exact, "mul.rn.f32")
TCQ4_EXACT(tcq4_div_exact, "div.rn.f32")
#undef TCQ4_EXACT

// a*b + c, rounded once.
static __device__ __forceinline__ float tcq4_fma_exact(float a, float b, float c) {
    float x;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(x) : "f"(a), "f"(b), "f"(c));
    return x;
}
#else
static inline float tcq4_fma_exact(float a, float b, float c) { return fmaf(a, b, c); }
static inline float tcq4_add_exact(float a, float b) { return tcq4_opaque(a + b); }
static inline float tcq4_sub_exact(float a, float b) { return tcq4_opaque(a - b); }
static inline float tcq4_mul_exact(float a, float b) { return tcq4_opaque(a*b); }
static inline float tcq4_div_exact(float a, float b) { return tcq4_opaque(a/b); }
#endif

// --- copies to shared memory that overlap with work; synchronous where the device has no such instruction ---

static __device__ __forceinline__ void tcq4_copy16(void * shared, const void * global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((uint32_t) __cvta_generic_to_shared(shared)), "l"(global) : "memory");
#elif defined(TCQ4_EMULATED)
    emulated_copy16(shared, global);
#else
    *(uint4 *) shared = *(const uint4 *) global;
#endif
}

static __device__ __forceinline__ void tcq4_copies_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#elif defined(TCQ4_EMULATED)
    emulated_copies_wait();
#endif
}

// Brings a line of 128 bytes to the L2 cache.
static __device__ __forceinline__ void tcq4_prefetch(const void * global) {
#if defined(__CUDA_ARCH__)
    asm volatile("prefetch.global.L2 [%0];" :: "l"(global));
#else
    (void) global;
#endif
}

#endif // TCQ4_DEVICE_CUH
