// Learning on a CUDA device: what plain tensors would write to memory and read again stays in registers here.
//
// Compiled at run time, once for each width of a head. Rust passes every constant that it shares with the kernels: E
// numbers per head, F random features per head, FEATURE_EPS added to each feature, NORM_EPS added to a norm's variance,
// ROWS rows per block, WARP lanes per warp, and R rows per thread: as many as registers hold, because each number from
// shared memory then serves R products. Exponentials are the device's quick ones, off by some 1e-6 of themselves where
// they matter. Every array is f32, row after row; a row of heads holds head after head. No kernel depends on the order
// in which blocks run, none adds atomically: the same inputs give the same bits.
//
// Two ways to share out work. Where rows are asked for, a thread takes R rows and goes through what is common
// (features, keys), which its block brings to shared memory tile by tile. Where sums over rows are asked for, a thread
// takes R features or keys and goes through the rows. Either way sums stay in the thread that makes them.

#define E4 ((E + 3) / 4 * 4)
#define THREADS (ROWS / R)
#define TILE 32  // what is brought to shared memory at once
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

// A run of rows of one cell: cell, first row, row past the last.
struct Run {
    unsigned cell, first, last;
};

__device__ unsigned tile(unsigned left) { return left < TILE ? left : TILE; }

__device__ float dot(const float *a, const float *b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < E4; i++) sum += a[i] * b[i];
    return sum;
}

__device__ void add(float *to, float times, const float *what) {
#pragma unroll
    for (int i = 0; i < E4; i++) to[i] += times * what[i];
}

// E numbers, and zeros up to E4.
__device__ void read(float *to, const float *from, float times) {
#pragma unroll
    for (int i = 0; i < E4; i++) to[i] = i < E ? from[i] * times : 0;
}

// Brings rows of E (and of one number more, where `more` is an array) to shared memory; `stride` apart.
__device__ void bring(float *to, float *more, const float *from, unsigned rows, size_t stride) {
    for (unsigned at = threadIdx.x; at < rows * E4; at += THREADS) {
        unsigned row = at / E4, i = at % E4;
        to[at] = i < E ? from[row * stride + i] : 0;
    }
    if (more)
        for (unsigned row = threadIdx.x; row < rows; row += THREADS) more[row] = from[row * stride + E];
}

// Brings the next features, and their rows of sums with one number more, once all threads are done with those before.
__device__ unsigned bring_features(float *sw, float *st, float *last, const float *w, const float *t, unsigned f0) {
    unsigned n = tile(F - f0);
    __syncthreads();
    bring(sw, nullptr, w + (size_t)f0 * E, n, E);
    bring(st, last, t + (size_t)f0 * (E + 1), n, E + 1);
    __syncthreads();
    return n;
}

// The same with keys and values of `left` tokens from one on, whose query of this head `query` points to.
__device__ unsigned bring_keys(float *sk, float *sv, const float *query, unsigned left, unsigned heads) {
    unsigned n = tile(left);
    size_t part = (size_t)heads * E;
    __syncthreads();
    bring(sk, nullptr, query + part, n, 3 * part);
    bring(sv, nullptr, query + 2 * part, n, 3 * part);
    __syncthreads();
    return n;
}

#define EACH _Pragma("unroll") for (int r = 0; r < R; r++)

// Random features of a row x with the largest projection m subtracted: exp(x'w - x'x/2 - m) + FEATURE_EPS, x scaled by
// E^-1/4.
#define SCALE rsqrtf(sqrtf((float)E))

// [rows, heads, E] -> [rows, heads]: the largest projection x'w over the features.
extern "C" __global__ void largest(const float *x, const float *w, float *out, unsigned rows, unsigned heads) {
    __shared__ __align__(16) float sw[TILE * E4];
    unsigned first = blockIdx.x * ROWS + threadIdx.x, head = blockIdx.y;
    float xs[R][E4], most[R];
    EACH {
        unsigned row = first + r * THREADS;
        // Rows past the last repeat the first: they are computed and not written.
        read(xs[r], x + ((size_t)(row < rows ? row : 0) * heads + head) * E, SCALE);
        most[r] = -INFINITY;
    }
    for (unsigned f0 = 0; f0 < F; f0 += TILE) {
        unsigned n = tile(F - f0);
        __syncthreads();
        bring(sw, nullptr, w + (size_t)f0 * E, n, E);
        __syncthreads();
        for (unsigned f = 0; f < n; f++) EACH most[r] = fmaxf(most[r], dot(xs[r], sw + f * E4));
    }
    EACH {
        unsigned row = first + r * THREADS;
        if (row < rows) out[(size_t)row * heads + head] = most[r];
    }
}

// A row with its largest projection, [E + 1]: x scaled, and what is subtracted from its projections.
__device__ float prepare(float *xs, const float *row) {
    read(xs, row, SCALE);
    return row[E] + 0.5f * dot(xs, xs);
}

// Which row of a run a thread takes; past the last one the run's first, whose results are not written.
__device__ unsigned row_of(Run run, int r, bool *is_own) {
    unsigned row = run.first + threadIdx.x + r * THREADS;
    *is_own = row < run.last;
    return *is_own ? row : run.first;
}

// xl [rows, heads, E + 1], t [cells, heads, F, E + 1] -> [rows, heads, E + 1]: sums over features of feature times t.
extern "C" __global__ void gather(const float *xl, const float *w, const float *t, const Run *runs, float *out,
                                  unsigned heads) {
    __shared__ __align__(16) float sw[TILE * E4];
    __shared__ __align__(16) float st[TILE * E4];
    __shared__ float last[TILE];
    Run run = runs[blockIdx.x];
    unsigned head = blockIdx.y;
    float xs[R][E4], sums[R][E4] = {}, more[R] = {}, shift[R];
    bool own[R];
    EACH shift[r] = prepare(xs[r], xl + ((size_t)row_of(run, r, &own[r]) * heads + head) * (E + 1));
    const float *of_cell = t + ((size_t)run.cell * heads + head) * F * (E + 1);
    for (unsigned f0 = 0; f0 < F; f0 += TILE) {
        unsigned n = bring_features(sw, st, last, w, of_cell, f0);
        for (unsigned f = 0; f < n; f++) EACH {
            float feature = __expf(dot(xs[r], sw + f * E4) - shift[r]) + FEATURE_EPS;
            add(sums[r], feature, st + f * E4);
            more[r] += feature * last[f];
        }
    }
    EACH if (own[r]) {
        float *to = out + ((size_t)row_of(run, r, &own[r]) * heads + head) * (E + 1);
#pragma unroll
        for (int i = 0; i < E; i++) to[i] = sums[r][i];
        to[E] = more[r];
    }
}

// xl, r [rows, heads, E + 1], t as above -> [rows, heads, E]: the gradient over x of sum(feature(x) * (r't)).
extern "C" __global__ void derivative(const float *xl, const float *weights, const float *w, const float *t,
                                      const Run *runs,
                                 float *out, unsigned heads) {
    __shared__ __align__(16) float sw[TILE * E4];
    __shared__ __align__(16) float st[TILE * E4];
    __shared__ float last[TILE];
    Run run = runs[blockIdx.x];
    unsigned head = blockIdx.y;
    float xs[R][E4], ws[R][E4], dx[R][E4] = {}, more[R], total[R] = {}, shift[R];
    bool own[R];
    EACH {
        size_t at = ((size_t)row_of(run, r, &own[r]) * heads + head) * (E + 1);
        shift[r] = prepare(xs[r], xl + at);
        read(ws[r], weights + at, 1);
        more[r] = weights[at + E];
    }
    const float *of_cell = t + ((size_t)run.cell * heads + head) * F * (E + 1);
    for (unsigned f0 = 0; f0 < F; f0 += TILE) {
        unsigned n = bring_features(sw, st, last, w, of_cell, f0);
        for (unsigned f = 0; f < n; f++) EACH {
            float g = (dot(ws[r], st + f * E4) + more[r] * last[f]) * __expf(dot(xs[r], sw + f * E4) - shift[r]);
            add(dx[r], g, sw + f * E4);
            total[r] += g;
        }
    }
    EACH if (own[r]) {
        float *to = out + ((size_t)row_of(run, r, &own[r]) * heads + head) * E;
#pragma unroll
        for (int i = 0; i < E; i++) to[i] = (dx[r][i] - total[r] * xs[r][i]) * SCALE;
    }
}

// xl, r [rows, heads, E + 1] -> [runs, heads, F, E + 1]: sums over the rows of a run of feature times r. A thread takes
// features.
extern "C" __global__ void scatter(const float *xl, const float *weights, const float *w, const Run *runs, float *out,
                                   unsigned heads) {
    __shared__ __align__(16) float sx[TILE * E4];
    __shared__ __align__(16) float sr[TILE * E4];
    __shared__ float shift[TILE];
    __shared__ float last[TILE];
    unsigned f0 = blockIdx.z * ROWS + threadIdx.x, head = blockIdx.y;
    Run run = runs[blockIdx.x];
    float ws[R][E4], sums[R][E4] = {}, more[R] = {};
    // Scaled here, so that rows come as they are. Features past the last repeat the first and are not written.
    EACH read(ws[r], w + (size_t)(f0 + r * THREADS < F ? f0 + r * THREADS : 0) * E, SCALE);
    for (unsigned first = run.first; first < run.last; first += TILE) {
        unsigned n = tile(run.last - first);
        size_t at = ((size_t)first * heads + head) * (E + 1);
        __syncthreads();
        bring(sx, shift, xl + at, n, (size_t)heads * (E + 1));
        bring(sr, last, weights + at, n, (size_t)heads * (E + 1));
        __syncthreads();
        const float *own = sx + threadIdx.x * E4;
        if (threadIdx.x < n) shift[threadIdx.x] += 0.5f * SCALE * SCALE * dot(own, own);
        __syncthreads();
        for (unsigned row = 0; row < n; row++) EACH {
            float feature = __expf(dot(ws[r], sx + row * E4) - shift[row]) + FEATURE_EPS;
            add(sums[r], feature, sr + row * E4);
            more[r] += feature * last[row];
        }
    }
    EACH if (f0 + r * THREADS < F) {
        float *to = out + (((size_t)blockIdx.x * heads + head) * F + f0 + r * THREADS) * (E + 1);
#pragma unroll
        for (int i = 0; i < E; i++) to[i] = sums[r][i];
        to[E] = more[r];
    }
}

// qkv [tokens, 3, heads, E] -> [tokens, heads, E + 1]: attention within a cell, and the logarithm of the sum of
// exponentials.
extern "C" __global__ void attend(const float *qkv, const unsigned *starts, const Run *runs, float *out,
                                  unsigned heads) {
    __shared__ __align__(16) float sk[TILE * E4];
    __shared__ __align__(16) float sv[TILE * E4];
    Run run = runs[blockIdx.x];
    unsigned head = blockIdx.y;
    size_t stride = (size_t)3 * heads * E, to_head = (size_t)head * E;
    float q[R][E4], mixed[R][E4] = {}, most[R], total[R] = {};
    bool own[R];
    EACH {
        read(q[r], qkv + row_of(run, r, &own[r]) * stride + to_head, rsqrtf((float)E));
        most[r] = -INFINITY;
    }
    for (unsigned first = starts[run.cell], end = starts[run.cell + 1]; first < end; first += TILE) {
        unsigned n = bring_keys(sk, sv, qkv + first * stride + to_head, end - first, heads);
        for (unsigned key = 0; key < n; key++) EACH {
            float score = dot(q[r], sk + key * E4);
            if (score > most[r]) {
                float less = __expf(most[r] - score);
                total[r] *= less;
#pragma unroll
                for (int i = 0; i < E4; i++) mixed[r][i] *= less;
                most[r] = score;
            }
            float weight = __expf(score - most[r]);
            total[r] += weight;
            add(mixed[r], weight, sv + key * E4);
        }
    }
    EACH if (own[r]) {
        float *to = out + ((size_t)row_of(run, r, &own[r]) * heads + head) * (E + 1);
#pragma unroll
        for (int i = 0; i < E; i++) to[i] = mixed[r][i] / total[r];
        to[E] = most[r] + logf(total[r]);
    }
}

// Sum of a query's gradient times its result: what the mean of its weights' gradients is.
__device__ float along(const float *mixed, const float *g) {
    float sum = 0;
    for (int i = 0; i < E; i++) sum += mixed[i] * g[i];
    return sum;
}

// What `attend` took and gave, and the gradient g [tokens, heads, E] of what it gave -> the queries' part of [tokens,
// 3, heads, E].
extern "C" __global__ void queries_backward(const float *qkv, const float *given, const float *g,
                                            const unsigned *starts,
                                        const Run *runs, float *out, unsigned heads) {
    __shared__ __align__(16) float sk[TILE * E4];
    __shared__ __align__(16) float sv[TILE * E4];
    Run run = runs[blockIdx.x];
    unsigned head = blockIdx.y;
    size_t stride = (size_t)3 * heads * E, to_head = (size_t)head * E;
    float q[R][E4], gs[R][E4], dq[R][E4] = {}, sum[R], mean[R];
    bool own[R];
    EACH {
        unsigned row = row_of(run, r, &own[r]);
        size_t at = (size_t)row * heads + head;
        read(q[r], qkv + row * stride + to_head, rsqrtf((float)E));
        read(gs[r], g + at * E, 1);
        sum[r] = given[at * (E + 1) + E];
        mean[r] = along(given + at * (E + 1), g + at * E);
    }
    for (unsigned first = starts[run.cell], end = starts[run.cell + 1]; first < end; first += TILE) {
        unsigned n = bring_keys(sk, sv, qkv + first * stride + to_head, end - first, heads);
        for (unsigned key = 0; key < n; key++) EACH {
            float weight = __expf(dot(q[r], sk + key * E4) - sum[r]);
            add(dq[r], weight * (dot(gs[r], sv + key * E4) - mean[r]), sk + key * E4);
        }
    }
    EACH if (own[r]) {
        float *to = out + row_of(run, r, &own[r]) * stride + to_head;
#pragma unroll
        for (int i = 0; i < E; i++) to[i] = dq[r][i] * rsqrtf((float)E);
    }
}

// The same for keys and values: a thread takes keys and goes through the queries.
extern "C" __global__ void keys_backward(const float *qkv, const float *given, const float *g, const unsigned *starts,
                                     const Run *runs, float *out, unsigned heads) {
    __shared__ __align__(16) float sq[TILE * E4];
    __shared__ __align__(16) float sg[TILE * E4];
    __shared__ float sum[TILE];
    __shared__ float mean[TILE];
    Run run = runs[blockIdx.x];
    unsigned head = blockIdx.y;
    size_t stride = (size_t)3 * heads * E, to_head = (size_t)head * E, part = (size_t)heads * E;
    float k[R][E4], v[R][E4], dk[R][E4] = {}, dv[R][E4] = {};
    bool own[R];
    EACH {
        size_t at = row_of(run, r, &own[r]) * stride + to_head;
        // Scaled here, so that queries come as they are.
        read(k[r], qkv + at + part, rsqrtf((float)E));
        read(v[r], qkv + at + 2 * part, 1);
    }
    for (unsigned first = starts[run.cell], end = starts[run.cell + 1]; first < end; first += TILE) {
        unsigned n = tile(end - first);
        __syncthreads();
        bring(sq, nullptr, qkv + first * stride + to_head, n, stride);
        bring(sg, nullptr, g + (size_t)first * part + to_head, n, part);
        if (threadIdx.x < n) {
            size_t at = ((size_t)(first + threadIdx.x) * heads + head);
            sum[threadIdx.x] = given[at * (E + 1) + E];
            mean[threadIdx.x] = along(given + at * (E + 1), g + at * E);
        }
        __syncthreads();
        for (unsigned query = 0; query < n; query++) EACH {
            float weight = __expf(dot(k[r], sq + query * E4) - sum[query]);
            add(dv[r], weight, sg + query * E4);
            add(dk[r], weight * (dot(v[r], sg + query * E4) - mean[query]), sq + query * E4);
        }
    }
    EACH if (own[r]) {
        float *to = out + row_of(run, r, &own[r]) * stride + part + to_head;
#pragma unroll
        for (int i = 0; i < E; i++) {
            to[i] = dk[r][i] * rsqrtf((float)E);
            to[part + i] = dv[r][i];
        }
    }
}

// The sum of what the lanes of a warp hold.
__device__ float warp_sum(float mine) {
#pragma unroll
    for (int other = WARP / 2; other > 0; other /= 2) mine += __shfl_xor_sync(~0u, mine, other);
    return mine;
}

// Mean and inverse deviation of a row, of which a warp's lanes take each WARPth number.
__device__ float2 moments(const float *x, unsigned width, unsigned lane) {
    float sum = 0, squares = 0;
    for (unsigned i = lane; i < width; i += WARP) sum += x[i];
    float mean = warp_sum(sum) / width;
    for (unsigned i = lane; i < width; i += WARP) squares += (x[i] - mean) * (x[i] - mean);
    return make_float2(mean, rsqrtf(warp_sum(squares) / width + NORM_EPS));
}

// x [rows, width] -> the same: norm of each row, times weight, plus bias. A warp takes a row; of warps past the last,
// the last.
extern "C" __global__ void normalise(const float *x, const float *weight, const float *bias, float *out, unsigned width,
                                     unsigned rows) {
    unsigned row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    size_t at = (size_t)(row < rows ? row : rows - 1) * width;
    float2 m = moments(x + at, width, lane);
    if (row < rows)
        for (unsigned i = lane; i < width; i += WARP) out[at + i] = (x[at + i] - m.x) * m.y * weight[i] + bias[i];
}

// Gradient g of what `normalise` gave -> [2, rows, width]: x's, and g times the row's norm, whose sum over rows is the
// weight's.
extern "C" __global__ void norm_backward(const float *x, const float *weight, const float *g, float *out,
                                         unsigned width,
                                     unsigned rows) {
    unsigned row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    size_t at = (size_t)(row < rows ? row : rows - 1) * width;
    float2 m = moments(x + at, width, lane);
    float sum = 0, product = 0;
    for (unsigned i = lane; i < width; i += WARP) {
        float gw = g[at + i] * weight[i];
        sum += gw;
        product += gw * (x[at + i] - m.x) * m.y;
    }
    sum = warp_sum(sum) / width;
    product = warp_sum(product) / width;
    if (row < rows)
        for (unsigned i = lane; i < width; i += WARP) {
            float normed = (x[at + i] - m.x) * m.y;
            out[at + i] = (g[at + i] * weight[i] - sum - normed * product) * m.y;
            out[(size_t)rows * width + at + i] = g[at + i] * normed;
        }
}

// x [rows, width] -> the same plus a bias.
extern "C" __global__ void biased(const float *x, const float *bias, float *out, unsigned width, size_t count) {
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < count; i += (size_t)gridDim.x * THREADS)
        out[i] = x[i] + bias[i % width];
}

// Gradient g of gelu(x) -> x's: g * (Phi(x) + x * phi(x)).
extern "C" __global__ void gelu_backward(const float *x, const float *g, float *out, size_t count) {
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < count; i += (size_t)gridDim.x * THREADS) {
        float v = x[i];
        out[i] = g[i] * (0.5f + 0.5f * erff(v * 0.70710678f) + v * 0.39894228f * __expf(-0.5f * v * v));
    }
}

// Rows [sources, width], lists of rows -> [lists, width]: the sum of the rows of each list.
extern "C" __global__ void sum_rows(const float *x, const unsigned *starts, const unsigned *sources, float *out,
                                    unsigned width, size_t count) {
    for (size_t at = blockIdx.x * (size_t)THREADS + threadIdx.x; at < count; at += (size_t)gridDim.x * THREADS) {
        size_t list = at / width, i = at % width;
        float sum = 0;
        for (unsigned n = starts[list]; n < starts[list + 1]; n++) sum += x[sources[n] * (size_t)width + i];
        out[at] = sum;
    }
}
