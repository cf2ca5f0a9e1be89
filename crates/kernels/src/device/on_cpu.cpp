// Runs a kernel of learning.cu on a CPU, a block at a time with a thread for each of its threads: for tests on machines
// without a device. Reads one request from stdin, writes what the kernel filled to stdout.
//
// A request, in numbers of 64 bits: kernel, grid (3), numbers to fill, arrays of f32, arrays of u32, counts; then each
// array with its length before it, then the counts.

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

struct Index {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
static float2 make_float2(float x, float y) { return {x, y}; }
static float rsqrtf(float x) { return 1 / sqrtf(x); }
#define __expf expf // glibc has a function of this name
static thread_local Index threadIdx, blockIdx;
static Index gridDim;
static std::barrier<> gate(ROWS / R);

// The lanes of a warp meet at the same gate as all others: every warp of a block asks for this equally often.
static float lanes[ROWS];
static float __shfl_xor_sync(unsigned, float mine, int other) {
    lanes[threadIdx.x] = mine;
    gate.arrive_and_wait();
    float theirs = lanes[threadIdx.x ^ other];
    gate.arrive_and_wait();
    return theirs;
}

#define __global__
#define __device__ static
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __syncthreads() gate.arrive_and_wait()
#include "learning.cu"

static uint64_t number() {
    uint64_t n;
    if (fread(&n, sizeof n, 1, stdin) != 1) exit(1);
    return n;
}

template <class T> static std::vector<std::vector<T>> arrays(uint64_t count) {
    std::vector<std::vector<T>> all(count);
    for (auto &one : all) {
        one.resize(number());
        if (fread(one.data(), sizeof(T), one.size(), stdin) != one.size()) exit(1);
    }
    return all;
}

int main() {
    uint64_t kernel = number();
    gridDim.x = number(), gridDim.y = number(), gridDim.z = number();
    // What no thread writes is seen to be missing.
    std::vector<float> filled(number(), NAN);
    uint64_t n_numbers = number(), n_places = number(), n_counts = number();
    auto n = arrays<float>(n_numbers);
    auto p = arrays<unsigned>(n_places);
    std::vector<uint64_t> c(n_counts);
    for (auto &one : c) one = number();
    auto f = [&](int i) { return n[i].data(); };
    auto u = [&](int i) { return p[i].data(); };
    auto run = [&](int i) { return (const Run *)p[i].data(); };
    auto run_one = [&] {
        float *to = filled.data();
        switch (kernel) {
        case 0: return largest(f(0), f(1), to, c[0], c[1]);
        case 1: return gather(f(0), f(1), f(2), run(0), to, c[0]);
        case 2: return derivative(f(0), f(1), f(2), f(3), run(0), to, c[0]);
        case 3: return scatter(f(0), f(1), f(2), run(0), to, c[0]);
        case 4: return attend(f(0), u(0), run(1), to, c[0]);
        case 5:
            queries_backward(f(0), f(1), f(2), u(0), run(1), to, c[0]);
            __syncthreads();
            return keys_backward(f(0), f(1), f(2), u(0), run(1), to, c[0]);
        case 6: return normalise(f(0), f(1), f(2), to, c[0], c[1]);
        case 7: return norm_backward(f(0), f(1), f(2), to, c[0], c[1]);
        case 8: return gelu_backward(f(0), f(1), to, c[0]);
        case 10: return biased(f(0), f(1), to, c[0], c[1]);
        case 9: return sum_rows(f(0), u(0), u(1), to, c[0], c[1]);
        }
    };
    auto thread = [&](unsigned i) {
        threadIdx = {i, 0, 0};
        for (unsigned z = 0; z < gridDim.z; z++)
            for (unsigned y = 0; y < gridDim.y; y++)
                for (unsigned x = 0; x < gridDim.x; x++) {
                    blockIdx = {x, y, z};
                    run_one();
                    __syncthreads(); // Shared memory is one for all blocks.
                }
    };
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < THREADS; i++) threads.emplace_back(thread, i);
    for (auto &one : threads) one.join();
    fwrite(filled.data(), sizeof(float), filled.size(), stdout);
}
