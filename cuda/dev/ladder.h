// What the ladders of cuda/dev share. With nvcc: kernels on the GPU, timed by events. With a C++ compiler: the emulation, checks only.

#ifndef TCQ4_LADDER_H
#define TCQ4_LADDER_H

#if !defined(__CUDACC__)
#include "emulate.h"
#endif

#include "tcq4_gemm.cuh"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#if defined(__CUDACC__)
// Memory that both sides see; filled with rubbish.
template <typename T> static T * allocate(size_t n) {
    T * at = nullptr;
    if (cudaMallocManaged((void **) &at, n*sizeof(T)) != cudaSuccess) {
        fprintf(stderr, "no device, or no memory\n");
        exit(1);
    }
    memset((void *) at, 0xc3, n*sizeof(T));
    return at;
}

// Ends the program where CUDA refused something.
static void expect(cudaError_t error) {
    if (error != cudaSuccess) {
        fprintf(stderr, "a kernel failed: %s\n", cudaGetErrorString(error));
        exit(1);
    }
}

// Waits for what was launched.
static void finish() {
    expect(cudaGetLastError());
    expect(cudaDeviceSynchronize());
}

// A launch as a value: grid, threads and dynamic shared memory of a kernel with its arguments.
#define LAUNCH(kernel, x, y, threads, shared, ...) [&] { \
        expect(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) (shared))); \
        kernel<<<dim3(x, y), threads, shared>>>(__VA_ARGS__); \
    }

// Milliseconds of a launch, the mean of 20 after one that does not count.
static float milliseconds(const std::function<void()> & run) {
    cudaEvent_t before, after;
    cudaEventCreate(&before);
    cudaEventCreate(&after);
    run();
    finish();
    cudaEventRecord(before);
    for (int i = 0; i < 20; ++i) {
        run();
    }
    cudaEventRecord(after);
    finish();
    float time = 0.0f;
    expect(cudaEventElapsedTime(&time, before, after));
    return time/20;
}
#else
template <typename T> static T * allocate(size_t n) {
    T * at = (T *) aligned_alloc(64, (n*sizeof(T) + 63)/64*64);
    memset((void *) at, 0xc3, n*sizeof(T));
    return at;
}

static void finish() {}

#define LAUNCH(kernel, x, y, threads, shared, ...) [&] { launch({ (unsigned) (x), (unsigned) (y), 1 }, threads, shared, [&] { kernel(__VA_ARGS__); }); }

static float milliseconds(const std::function<void()> & run) {
    run();
    return 0.0f;
}
#endif

static int failures = 0;

// The larger of two errors; NaN if one is.
static double worse(double a, double b) { return a != a || b != b ? NAN : a > b ? a : b; }

// What a rung writes: nothing of the rung before may be left of it.
struct output {
    void * at;
    size_t bytes;
};

// Runs a rung, checks it and prints what it reached. `work`: bytes or operations of a run; `unit` names a thousand million of them a second.
static void rung(
        const char * name, output out, const std::function<void()> & run, const std::function<double()> & error, double most, double work, const char * unit) {
    memset(out.at, 0xc3, out.bytes);
    const float  time  = milliseconds(run);
    const double found = error();
    failures += !(found <= most);
    printf("%s: %s (%.3g)", found <= most ? "ok" : "FAILED", name, found);
    printf(time > 0.0f ? ", %.3f ms, %.0f %s\n" : "\n", time, work/time*1e-6, unit);
}

static std::mt19937 generator(42);

static void fill_normal(float * x, size_t n, float scale) {
    std::normal_distribution<float> draw(0.0f, scale);
    for (size_t i = 0; i < n; ++i) {
        x[i] = draw(generator);
    }
}

#endif // TCQ4_LADDER_H
