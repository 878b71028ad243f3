// A prototype: the training of cnn_small (tanh, Adam, full batches, images of 28 x 28) in one kernel, one block of
// threads per model, for all steps of an epoch. benchmarks/gpu.py compiles it, compares its weights with those of the
// stacked trainer, and measures it. It is not used by the package.
//
// Weights of convolutions, gradients and activations of four samples are in shared memory; moments in global memory.
// Each phase is a loop over items, of which a thread writes its own only, so no result depends on the order of threads.
// Without nvcc the file is C++ with one thread per block, to test the arithmetic on a processor.

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define SYNC __syncthreads()
constexpr int T = 256;
#else
#define SYNC
#define __global__
#define __device__
#define __launch_bounds__(...)
constexpr int T = 1;
#endif

constexpr int P = 2464, S = 4;  // parameters; samples of one pass
constexpr int C1B = 200, C2W = 208, C2B = 1408, C3W = 1414, C3B = 1510, F1W = 1514, F1B = 2234, F2W = 2254, F2B = 2454;
constexpr int PARTS = 6;

struct Shared {
    alignas(16) float w1[25][8];      // conv1: tap, output
    alignas(16) float w2[8][25][8];   // conv2 forward: input, tap, output (6 used)
    alignas(16) float w2t[6][25][8];  // conv2 backward: output, tap, input
    float rest[P - C3W];              // the parameters from conv3 on
    float b1[8], b2[6];
    float g[P];
    float image[S][784];
    float a1[S][8][144];  // pooled activations of conv1, then the gradients before the activation
    union {
        float y2[S][6][64];
        float part[PARTS][208];
    };
    float a2[S][6][16], d2[S][6][16];
    float a3[S][36], d3[S][36], a4[S][20], d4[S][20], d5[S][10];
    uint8_t i1[S][8][144];  // winner of each window of conv1: 0 to 3
    uint8_t p2[S][6][16];   // place of each winner of conv2: row * 8 + column
};

__device__ inline void update(Shared& s, int i, float w) {
    if (i < C1B) s.w1[i % 25][i / 25] = w;
    else if (i < C2W) s.b1[i - C1B] = w;
    else if (i < C2B) {
        int o = (i - C2W) / 200, c = (i - C2W) / 25 % 8, tap = (i - C2W) % 25;
        s.w2[c][tap][o] = w;
        s.w2t[o][tap][c] = w;
    } else if (i < C3W) s.b2[i - C2B] = w;
    else s.rest[i - C3W] = w;
}

__device__ inline void forward(Shared& s, int ns, int tid) {
    for (int item = tid; item < ns * 144; item += T) {  // conv1, pooling, activation
        int n = item / 144, p = item % 144, top = p / 12 * 2 * 28 + p % 12 * 2;
        float acc[8][4], x[6][6];
        for (int r = 0; r < 6; r++)
            for (int q = 0; q < 6; q++) x[r][q] = s.image[n][top + r * 28 + q];
        for (int c = 0; c < 8; c++)
            for (int v = 0; v < 4; v++) acc[c][v] = 0;
#pragma unroll
        for (int ky = 0; ky < 5; ky++)
#pragma unroll
            for (int kx = 0; kx < 5; kx++)
#pragma unroll
                for (int c = 0; c < 8; c++) {
                    float w = s.w1[ky * 5 + kx][c];
#pragma unroll
                    for (int v = 0; v < 4; v++) acc[c][v] = fmaf(w, x[ky + v / 2][kx + v % 2], acc[c][v]);
                }
#pragma unroll
        for (int c = 0; c < 8; c++) {
            int best = 0;
            float most = acc[c][0];
#pragma unroll
            for (int v = 1; v < 4; v++)
                if (acc[c][v] > most) most = acc[c][v], best = v;
            s.a1[n][c][p] = tanhf(most + s.b1[c]);
            s.i1[n][c][p] = best;
        }
    }
    SYNC;
    for (int item = tid; item < ns * 64; item += T) {  // conv2
        int n = item / 64, p = item % 64, top = p / 8 * 12 + p % 8;
        float acc[6] = {0, 0, 0, 0, 0, 0};
        for (int c = 0; c < 8; c++)
#pragma unroll
            for (int tap = 0; tap < 25; tap++) {
                float x = s.a1[n][c][top + tap / 5 * 12 + tap % 5];
#pragma unroll
                for (int o = 0; o < 6; o++) acc[o] = fmaf(s.w2[c][tap][o], x, acc[o]);
            }
        for (int o = 0; o < 6; o++) s.y2[n][o][p] = acc[o] + s.b2[o];
    }
    SYNC;
    for (int item = tid; item < ns * 96; item += T) {  // pooling, activation
        int n = item / 96, o = item / 16 % 6, p = item % 16, top = p / 4 * 16 + p % 4 * 2, best = top;
        for (int v = 1; v < 4; v++) {
            int place = top + v / 2 * 8 + v % 2;
            if (s.y2[n][o][place] > s.y2[n][o][best]) best = place;
        }
        s.a2[n][o][p] = tanhf(s.y2[n][o][best]);
        s.p2[n][o][p] = best;
    }
    SYNC;
    for (int item = tid; item < ns * 36; item += T) {  // conv3
        int n = item / 36, o = item / 9 % 4, p = item % 9, top = p / 3 * 4 + p % 3;
        float y = s.rest[C3B - C3W + o];
        for (int c = 0; c < 6; c++)
            for (int tap = 0; tap < 4; tap++) y = fmaf(s.rest[(o * 6 + c) * 4 + tap], s.a2[n][c][top + tap / 2 * 4 + tap % 2], y);
        s.a3[n][item % 36] = tanhf(y);
    }
    SYNC;
    for (int item = tid; item < ns * 20; item += T) {
        int n = item / 20, o = item % 20;
        float y = s.rest[F1B - C3W + o];
        for (int i = 0; i < 36; i++) y = fmaf(s.rest[F1W - C3W + o * 36 + i], s.a3[n][i], y);
        s.a4[n][o] = tanhf(y);
    }
    SYNC;
    for (int item = tid; item < ns * 10; item += T) {
        int n = item / 10, o = item % 10;
        float y = s.rest[F2B - C3W + o];
        for (int i = 0; i < 20; i++) y = fmaf(s.rest[F2W - C3W + o * 20 + i], s.a4[n][i], y);
        s.d5[n][o] = y;
    }
    SYNC;
}

__device__ inline void backward(Shared& s, int ns, int tid) {
    for (int item = tid; item < ns * 20; item += T) {
        int n = item / 20, i = item % 20;
        float d = 0;
        for (int o = 0; o < 10; o++) d = fmaf(s.rest[F2W - C3W + o * 20 + i], s.d5[n][o], d);
        s.d4[n][i] = d * (1 - s.a4[n][i] * s.a4[n][i]);
    }
    for (int item = tid; item < 210; item += T)
        for (int n = 0; n < ns; n++)
            s.g[F2W + item] += item < 200 ? s.d5[n][item / 20] * s.a4[n][item % 20] : s.d5[n][item - 200];
    SYNC;
    for (int item = tid; item < ns * 36; item += T) {
        int n = item / 36, i = item % 36;
        float d = 0;
        for (int o = 0; o < 20; o++) d = fmaf(s.rest[F1W - C3W + o * 36 + i], s.d4[n][o], d);
        s.d3[n][i] = d * (1 - s.a3[n][i] * s.a3[n][i]);
    }
    for (int item = tid; item < 740; item += T)
        for (int n = 0; n < ns; n++)
            s.g[F1W + item] += item < 720 ? s.d4[n][item / 36] * s.a3[n][item % 36] : s.d4[n][item - 720];
    SYNC;
    for (int item = tid; item < ns * 96; item += T) {
        int n = item / 96, c = item / 16 % 6, p = item % 16, y = p / 4, x = p % 4;
        float d = 0;
        for (int o = 0; o < 4; o++)
            for (int tap = 0; tap < 4; tap++) {
                int r = y - tap / 2, q = x - tap % 2;
                if (r >= 0 && q >= 0 && r < 3 && q < 3) d = fmaf(s.rest[(o * 6 + c) * 4 + tap], s.d3[n][o * 9 + r * 3 + q], d);
            }
        s.d2[n][c][p] = d * (1 - s.a2[n][c][p] * s.a2[n][c][p]);
    }
    for (int item = tid; item < 100; item += T) {
        float d = 0;
        int o = item < 96 ? item / 24 : item - 96, c = item / 4 % 6, tap = item % 4;
        for (int n = 0; n < ns; n++)
            for (int p = 0; p < 9; p++)
                d = fmaf(s.d3[n][o * 9 + p], item < 96 ? s.a2[n][c][(p / 3 + tap / 2) * 4 + p % 3 + tap % 2] : 1.0f, d);
        s.g[C3W + item] += d;
    }
    SYNC;
    for (int item = tid; item < 246; item += T) {  // weights of conv2, a row of a kernel each, and biases
        if (item >= 240) {
            float d = 0;
            for (int n = 0; n < ns; n++)
                for (int p = 0; p < 16; p++) d += s.d2[n][item - 240][p];
            s.g[C2B + item - 240] += d;
            continue;
        }
        int o = item / 40, c = item / 5 % 8, ky = item % 5;
        float acc[5] = {0, 0, 0, 0, 0};
        for (int n = 0; n < ns; n++)
            for (int p = 0; p < 16; p++) {
                int place = s.p2[n][o][p];
                float d = s.d2[n][o][p];
                const float* x = &s.a1[n][c][(place / 8 + ky) * 12 + place % 8];
#pragma unroll
                for (int kx = 0; kx < 5; kx++) acc[kx] = fmaf(d, x[kx], acc[kx]);
            }
        for (int kx = 0; kx < 5; kx++) s.g[C2W + (o * 8 + c) * 25 + ky * 5 + kx] += acc[kx];
    }
    SYNC;
    for (int item = tid; item < ns * 144; item += T) {  // inputs of conv2, only the winners of each window
        int n = item / 144, p = item % 144, y = p / 12, x = p % 12;
        float acc[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        int r0 = y < 5 ? 0 : (y - 4) / 2, r1 = y / 2 < 3 ? y / 2 : 3, q0 = x < 5 ? 0 : (x - 4) / 2, q1 = x / 2 < 3 ? x / 2 : 3;
        for (int r = r0; r <= r1; r++)
            for (int q = q0; q <= q1; q++)
                for (int o = 0; o < 6; o++) {
                    int place = s.p2[n][o][r * 4 + q], ky = y - place / 8, kx = x - place % 8;
                    if (ky >= 0 && kx >= 0 && ky < 5 && kx < 5) {
                        float d = s.d2[n][o][r * 4 + q];
#pragma unroll
                        for (int c = 0; c < 8; c++) acc[c] = fmaf(d, s.w2t[o][ky * 5 + kx][c], acc[c]);
                    }
                }
        for (int c = 0; c < 8; c++) s.a1[n][c][p] = acc[c] * (1 - s.a1[n][c][p] * s.a1[n][c][p]);
    }
    SYNC;
    for (int item = tid; item < 40 * PARTS; item += T) {  // weights of conv1, a row of a kernel and a part of the places
        int part = item / 40, c = item / 5 % 8, ky = item % 5;
        float acc[5] = {0, 0, 0, 0, 0}, bias = 0;
        for (int n = 0; n < ns; n++)
            for (int p = part * 24; p < part * 24 + 24; p++) {
                int v = s.i1[n][c][p];
                float d = s.a1[n][c][p];
                const float* x = &s.image[n][(p / 12 * 2 + v / 2 + ky) * 28 + p % 12 * 2 + v % 2];
                bias += d;
#pragma unroll
                for (int kx = 0; kx < 5; kx++) acc[kx] = fmaf(d, x[kx], acc[kx]);
            }
        for (int kx = 0; kx < 5; kx++) s.part[part][c * 25 + ky * 5 + kx] = acc[kx];
        if (ky == 0) s.part[part][200 + c] = bias;
    }
    SYNC;
    for (int item = tid; item < 208; item += T)
        for (int part = 0; part < PARTS; part++) s.g[item] += s.part[part][item];
    SYNC;
}

struct Epoch {
    float *weights, *first, *second;
    const float* images;
    const int64_t* labels;
    const int32_t* order;
    const float *rate, *correction;
    int steps, batch, models;
};

__global__ void __launch_bounds__(256, 3) train(Epoch e
#ifndef __CUDACC__
                                                , int block
#endif
) {
#ifdef __CUDACC__
    extern __shared__ float4 memory[];
    Shared& s = *reinterpret_cast<Shared*>(memory);
    const int tid = threadIdx.x, m = blockIdx.x;
#else
    static Shared s;
    const int tid = 0, m = block;
#endif
    float *w = e.weights + int64_t(m) * P, *first = e.first + int64_t(m) * P, *second = e.second + int64_t(m) * P;
    for (int i = tid; i < P; i += T) update(s, i, w[i]), s.g[i] = 0;
    SYNC;
    for (int step = 0; step < e.steps; step++) {
        const int32_t* order = e.order + int64_t(step) * e.batch * e.models + m;
        for (int begin = 0; begin < e.batch; begin += S) {
            int ns = e.batch - begin < S ? e.batch - begin : S;
            for (int i = tid; i < ns * 784; i += T)
                s.image[i / 784][i % 784] = e.images[int64_t(order[(begin + i / 784) * e.models]) * 784 + i % 784];
            SYNC;
            forward(s, ns, tid);
            for (int n = tid; n < ns; n += T) {  // the gradient of cross-entropy: softmax minus one-hot
                float most = s.d5[n][0], sum = 0;
                for (int o = 1; o < 10; o++) most = fmaxf(most, s.d5[n][o]);
                for (int o = 0; o < 10; o++) sum += s.d5[n][o] = expf(s.d5[n][o] - most);
                for (int o = 0; o < 10; o++) s.d5[n][o] /= sum;
                s.d5[n][e.labels[order[(begin + n) * e.models]]] -= 1;
                for (int o = 0; o < 10; o++) s.d5[n][o] *= 1.0f / e.batch;
            }
            SYNC;
            backward(s, ns, tid);
        }
        float rate = e.rate[step * e.models + m], correction = e.correction[step * e.models + m];
        for (int i = tid; i < P; i += T) {  // Adam
            float g = s.g[i], a = first[i], b = second[i];
            a += 0.1f * (g - a);
            b = b * 0.999f + 0.001f * g * g;
            first[i] = a, second[i] = b;
            w[i] -= rate * a / (sqrtf(b) * correction + 1e-8f);
            update(s, i, w[i]);
            s.g[i] = 0;
        }
        SYNC;
    }
}

// Train all models for some steps; returns 0, or the number of a CUDA error.
extern "C" int train_epoch(float* weights, float* first, float* second, const float* images, const int64_t* labels,
                           const int32_t* order, const float* rate, const float* correction, int steps, int batch,
                           int models, void* stream) {
    Epoch e{weights, first, second, images, labels, order, rate, correction, steps, batch, models};
#ifdef __CUDACC__
    if (int error = cudaFuncSetAttribute(train, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared))) return error;
    train<<<models, T, sizeof(Shared), static_cast<cudaStream_t>(stream)>>>(e);
    return cudaGetLastError();
#else
    for (int block = 0; block < models; block++) train(e, block);
    return 0;
#endif
}

extern "C" int shared_bytes() { return sizeof(Shared); }
