// A CUDA driver without a GPU: the calls that tcq4 makes of libcuda.so, with kernels run by emulate.h. Compiled as a shared library of that name and put
// before the real one in the search path of the loader, it lets the whole program run what it would run on a GPU: launches, shapes, checks.
//
// Memory is the host's, everything is done at once and in order, time is the host's. What a cubin says of its kernels (static shared memory, the most threads)
// and what a GPU allows decide which launches are refused; the code in it is taken on trust: a kernel is found by its name.
// Where TCQ4_EMULATED_LAUNCHES names a file, the names of launched kernels go there, a line each.
// TCQ4_NATIVE_INT4 (0 or 1) as for the other checks; the device says that it is of compute capability 9.0 or 8.6 accordingly.

#include "emulate.h"

#include "../kernels/activations.cu"
#include "../kernels/dequantize.cu"
#include "../kernels/encode.cu"
#include "../kernels/fwht.cu"
#include "../kernels/gather.cu"
#include "../kernels/gram.cu"
#include "../kernels/mul_mat.cu"
#include "../kernels/mul_mat_id.cu"
#include "../kernels/mul_vec.cu"
#include "../kernels/smooth.cu"
#include "../kernels/statistics.cu"

#include <chrono>
#include <elf.h>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

// Takes the arguments from where the parameters point; what it gives runs a thread with them.
typedef std::function<std::function<void()>(void **)> kernel;

template <typename... types, size_t... at>
static std::function<void()> bound(void (*f)(types...), void ** parameters, std::index_sequence<at...>) {
    const std::tuple<types...> arguments(*(types *) parameters[at]...);
    return [=] { std::apply(f, arguments); };
}

template <typename... types> static kernel taken(void (*f)(types...)) {
    return [f](void ** parameters) { return bound(f, parameters, std::index_sequence_for<types...>()); };
}

#define KERNEL(name) { #name, taken(name) }
#define OF_FLOATS(name) KERNEL(name##_f32), KERNEL(name##_f16)
#define OF_TOKENS(name) KERNEL(name##_m1), KERNEL(name##_m2), KERNEL(name##_m4), KERNEL(name##_m8)
#define OF_ACTS(name) KERNEL(name##_int8), KERNEL(name##_int4)
#define OF_BLOCKS(name) KERNEL(name##_block4), KERNEL(name##_block8)

static const std::map<std::string, kernel> kernels = {
    OF_FLOATS(tcq4_fwht), OF_FLOATS(tcq4_gather),
    OF_FLOATS(tcq4_round_int8), OF_FLOATS(tcq4_round_int4_g32), OF_FLOATS(tcq4_round_int4_g256), OF_FLOATS(tcq4_round_int4_fork),
    OF_FLOATS(tcq4_round_block_g256), OF_FLOATS(tcq4_round_block_fork), OF_FLOATS(tcq4_round_wide_g256), OF_FLOATS(tcq4_round_wide_fork),
    OF_TOKENS(tcq4_mul_vec_int8), OF_TOKENS(tcq4_mul_vec_int4), OF_TOKENS(tcq4_mul_vec_fused_int8), OF_TOKENS(tcq4_mul_vec_fused_int4),
    OF_ACTS(tcq4_mul_vec_id), OF_ACTS(tcq4_mul_mat), OF_BLOCKS(tcq4_mul_mat), OF_ACTS(tcq4_mul_mat_id), OF_BLOCKS(tcq4_mul_mat_id),
    KERNEL(tcq4_sort_experts), OF_FLOATS(tcq4_dequantize), OF_FLOATS(tcq4_encode_parity), OF_FLOATS(tcq4_encode_default),
    KERNEL(tcq4_statistics), KERNEL(tcq4_gram),
    KERNEL(tcq4_channel_max), KERNEL(tcq4_smooth_rank), KERNEL(tcq4_smooth_scales), KERNEL(tcq4_smooth_round),
};

// What a block may have, and what it may have without asking.
static constexpr size_t most_shared  = (TCQ4_NATIVE_INT4 ? 99 : 227) << 10;
static constexpr size_t usual_shared = 48 << 10;

// A kernel of a module: what its code says, and what was set.
struct function {
    const kernel * run            = nullptr;
    unsigned       most_threads   = 1024;
    size_t         static_shared  = 0;
    size_t         dynamic_shared = 0; // that it may have
};

typedef std::map<std::string, function> module;

// The most threads of a block, from the attributes of a kernel: format and number, then a value of two bytes or its size before it.
static unsigned most_threads(const unsigned char * at, size_t size) {
    enum { SIZED = 4, MAX_THREADS = 5 };
    for (size_t i = 0; i + 4 <= size;) {
        uint16_t value;
        memcpy(&value, at + i + 2, sizeof(value));
        if (at[i] == SIZED && at[i + 1] == MAX_THREADS) {
            uint32_t threads;
            memcpy(&threads, at + i + 4, sizeof(threads));
            return threads;
        }
        i += at[i] == SIZED ? 4 + value : 4;
    }
    return 1024;
}

// The kernels of a cubin.
static module * read_module(const unsigned char * image) {
    module * read = new module;
    const Elf64_Ehdr & head     = *(const Elf64_Ehdr *) image;
    const Elf64_Shdr * sections = (const Elf64_Shdr *) (image + head.e_shoff);
    const char *       names    = (const char *) image + sections[head.e_shstrndx].sh_offset;
    for (int i = 0; i < head.e_shnum; ++i) {
        const std::string name = names + sections[i].sh_name;
        const auto of = [&](const char * prefix) { return name.rfind(prefix, 0) == 0 ? name.substr(strlen(prefix)) : ""; };
        if (const std::string info = of(".nv.info."); !info.empty()) {
            (*read)[info].most_threads = most_threads(image + sections[i].sh_offset, sections[i].sh_size);
        }
        if (const std::string shared = of(".nv.shared."); !shared.empty()) {
            (*read)[shared].static_shared = sections[i].sh_size;
        }
    }
    for (auto & [name, one] : *read) {
        const auto known = kernels.find(name);
        one.run            = known == kernels.end() ? nullptr : &known->second;
        one.dynamic_shared = usual_shared - one.static_shared;
    }
    return read;
}

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

typedef std::chrono::steady_clock watch;
typedef std::vector<std::function<void()>> recording;

static std::mutex one_at_a_time; // the emulation is of one block
static thread_local void * current; // context
static recording * captured; // what is put in meanwhile

static int put(std::function<void()> work) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (captured) {
        captured->push_back(std::move(work));
    } else {
        work();
    }
    return SUCCESS;
}

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int * version) { *version = 12040; return SUCCESS; }
int cuDeviceGet(int * device, int) { *device = 0; return SUCCESS; }
int cuDeviceGetCount(int * count) { *count = 1; return SUCCESS; }
int cuDeviceGetName(char * name, int length, int) { snprintf(name, (size_t) length, "emulated GPU"); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t * bytes, int) { *bytes = (size_t) 256 << 20; return SUCCESS; }

int cuDeviceGetAttribute(int * value, int attribute, int) {
    switch (attribute) {
        case 16:  *value = 4; break;                        // multiprocessors
        case 38:  *value = 1 << 16; break;                  // L2 cache
        case 75:  *value = TCQ4_NATIVE_INT4 ? 8 : 9; break; // compute capability
        case 76:  *value = TCQ4_NATIVE_INT4 ? 6 : 0; break;
        case 97:  *value = most_shared; break;
        case 115: *value = 1; break;                        // memory pools
        default:  *value = 0; break;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void ** context, int) { *context = &one_at_a_time; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void ** context) { *context = current; return SUCCESS; }
int cuCtxSetCurrent(void * context) { current = context; return SUCCESS; }

int cuStreamCreate(void ** stream, unsigned) { *stream = new int; return SUCCESS; }
int cuStreamDestroy_v2(void * stream) { delete (int *) stream; return SUCCESS; }
int cuStreamSynchronize(void *) { return current ? SUCCESS : INVALID_CONTEXT; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }

int cuMemAllocAsync(void ** at, size_t bytes, void *) {
    *at = aligned_alloc(256, (bytes + 255)/256*256);
    memset(*at, 0xee, bytes);
    return current && bytes ? SUCCESS : INVALID_VALUE;
}

int cuMemFreeAsync(void * at, void *) {
    // What was recorded may use it again.
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (!captured) {
        free(at);
    }
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(void * to, const void * from, size_t bytes, void *) { return put([=] { memcpy(to, from, bytes); }); }
int cuMemcpyDtoHAsync_v2(void * to, const void * from, size_t bytes, void *) { return put([=] { memcpy(to, from, bytes); }); }
int cuMemcpyDtoDAsync_v2(void * to, const void * from, size_t bytes, void *) { return put([=] { memcpy(to, from, bytes); }); }
int cuMemsetD8Async(void * at, unsigned char byte, size_t bytes, void *) { return put([=] { memset(at, byte, bytes); }); }

int cuModuleLoadData(void ** module, const void * image) {
    if (memcmp(image, "\x7f" "ELF", 4) != 0) {
        return INVALID_VALUE;
    }
    *module = read_module((const unsigned char *) image);
    return SUCCESS;
}

int cuModuleUnload(void * unloaded) { delete (module *) unloaded; return SUCCESS; }

int cuModuleGetFunction(void ** found, void * of, const char * name) {
    const auto one = ((module *) of)->find(name);
    if (one == ((module *) of)->end() || !one->second.run) {
        return NOT_FOUND;
    }
    *found = &one->second;
    return SUCCESS;
}

int cuFuncGetAttribute(int * value, int attribute, void * of) {
    enum { SHARED_SIZE_BYTES = 1 };
    *value = (int) ((const function *) of)->static_shared;
    return attribute == SHARED_SIZE_BYTES ? SUCCESS : INVALID_VALUE;
}

int cuFuncSetAttribute(void * of, int attribute, int bytes) {
    enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };
    function & one = *(function *) of;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || bytes < 0 || (size_t) bytes + one.static_shared > most_shared) {
        return INVALID_VALUE;
    }
    one.dynamic_shared = (size_t) bytes;
    return SUCCESS;
}

int cuLaunchKernel(
        void * launched, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y, unsigned threads_z, unsigned shared, void *,
        void ** parameters, void **) {
    const function & one = *(const function *) launched;
    const bool grid  = x > 0 && x <= INT32_MAX && y > 0 && y <= 65535 && z > 0 && z <= 65535;
    const bool block = threads%32 == 0 && threads <= one.most_threads && threads_y*threads_z == 1;
    if (!current || !grid || !block || shared > one.dynamic_shared) {
        return INVALID_VALUE;
    }
    if (const char * path = getenv("TCQ4_EMULATED_LAUNCHES")) {
        const std::lock_guard<std::mutex> lock(one_at_a_time);
        FILE * file = fopen(path, "a");
        for (const auto & [name, known] : kernels) {
            if (file && one.run == &known) {
                fprintf(file, "%s\n", name.c_str());
            }
        }
        if (file) {
            fclose(file);
        }
    }
    // The arguments are copied at once: the caller's are gone when a recording is played.
    const std::function<void()> thread = (*one.run)(parameters);
    return put([=] { launch({ x, y, z }, (int) threads, shared, thread); });
}

int cuEventCreate(void ** event, unsigned) { *event = new watch::time_point; return SUCCESS; }
int cuEventDestroy_v2(void * event) { delete (watch::time_point *) event; return SUCCESS; }
int cuEventSynchronize(void *) { return SUCCESS; }
int cuEventRecord(void * event, void *) { return put([=] { *(watch::time_point *) event = watch::now(); }); }

int cuEventElapsedTime(float * milliseconds, void * begin, void * end) {
    const std::chrono::duration<float, std::milli> elapsed = *(watch::time_point *) end - *(watch::time_point *) begin;
    *milliseconds = elapsed.count();
    return SUCCESS;
}

int cuStreamBeginCapture_v2(void *, int) { captured = new recording; return SUCCESS; }

int cuStreamEndCapture(void *, void ** graph) {
    *graph = std::exchange(captured, nullptr);
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(void ** played, void * graph, unsigned long long) { *played = graph; return SUCCESS; }
int cuGraphExecDestroy(void *) { return SUCCESS; }
int cuGraphDestroy(void * graph) { delete (recording *) graph; return SUCCESS; }

int cuGraphLaunch(void * played, void *) {
    for (const auto & work : *(recording *) played) {
        put(work);
    }
    return SUCCESS;
}

int cuGetErrorString(int error, const char ** text) {
    *text = error == INVALID_VALUE ? "invalid argument" : error == NOT_FOUND ? "named symbol not found" : "an error of the emulated driver";
    return SUCCESS;
}

int cuGetErrorName(int, const char ** text) { *text = "CUDA_ERROR_EMULATED"; return SUCCESS; }

}
