// A sequential network on a GPU: training and scores, one block of threads per model.
//
// A launch takes many steps of all models. Weights, gradients and the activations of some samples are in shared memory,
// the optimizer state is in global memory. Every phase is a loop over items; a thread alone writes the results of an
// item, summed in an order that the item determines, and barriers separate the phases. So no bit depends on the order
// of the threads, or on other models.
//
// zootools.native.cuda compiles this file behind the sizes of a schema, and defines
//   THREADS       threads of a block,
//   SLOPES        1 to keep the derivative of every unit, 0 to compute it from the unit's output,
//   SHARED_LIMIT  bytes of shared memory that a block can have, SHARED_TOTAL those of a multiprocessor.
// tests/servers/gpu_host.h compiles it as C++, with a few threads of the processor in the place of these.
#pragma once

#ifdef __CUDACC__
#define ENTRY extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
#define CONSTANT extern "C" __device__ const int
#define DEVICE static __forceinline__
DEVICE int thread() { return threadIdx.x; }
constexpr int threads() { return THREADS; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE void barrier() { __syncthreads(); }
template <class T> DEVICE T &shared_memory() {
    extern __shared__ float4 memory[];
    return *reinterpret_cast<T *>(memory);
}
#endif
#define ITEMS(item, count) for (int item = thread(); item < (count); item += threads())

// These numbers, and the structures below, are shared with cuda.py.
enum Activation { TANH, RELU, SIGMOID, GELU, LEAKY_RELU, SILU };
enum Optimizer { ADAM, SGD, RMSPROP };

struct Training {
    float *weights, *first, *second;   // [models][PARAMETERS]; first moment or momentum, second moment
    const float *images;               // [images][pixels], shared by all models
    const long long *labels;           // [images]
    const int *order;                  // [models][places]: which image a model sees at each place of the epoch
    const int *counts;                 // [models]: samples of one epoch
    const double *rates;               // [models]: learning rates
    const double *first_corrections;   // by the number of the step in the training: 1 - 0.9^t, of Adam's first moment
    const float *second_corrections;   // 1 / root(1 - 0.999^t)
    const float *decay;                // [2][models]: what a bias and a kernel add to their gradient per unit; or null
    const unsigned char *is_kernel;    // [PARAMETERS]
    const float *momentum;             // [models], of SGD
    const unsigned *keys;              // [layers][models]: of the dropout of this epoch; null without
    const unsigned *thresholds;        // [models]: units whose bits lie below are dropped
    const float *scale;                // [models]: what the units that stay are multiplied with
    const int *activations, *optimizers;  // [models]
    long long places;
    int batch, models, epochs_before, first_step, last_step;
};

struct Evaluation {
    const float *weights;      // [models][PARAMETERS]
    const float *images;       // [images][pixels]
    const long long *labels;   // [images]
    const int *limits;         // [models]: how many of the first images count
    const int *activations;    // [models]
    double *losses;            // [models][parts]: sum of the cross-entropies of each part of the images
    unsigned long long *confusion;  // [models][classes][classes]: label, prediction; added to
    int models, parts, part_images;
};

// What the units of a model need besides their weights.
struct Model {
    int activation;
    const unsigned *keys;  // of the first layer; those of the next one follow after `models`; null without dropout
    int models;
    unsigned threshold;
    float scale;
    unsigned position;  // in the epoch, of the first sample in shared memory
};

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

// The outputs that a thread computes together, of `outputs` at each of `places`: each is multiplied with `values` that
// are loaded once for all, and `taps` weights. As many as cost the fewest loads, if a quarter of the threads has work.
constexpr int together(int outputs, int most, int places, int values, int taps) {
    int best = 1;
    long long least = -1;
    for (int size = 1; size <= smaller(outputs, most); size++) {
        const int items = outputs / size * places, width = size % 4 == 0 ? 4 : size % 2 == 0 ? 2 : 1;
        if (outputs % size != 0 || (size > 1 && 4 * items < THREADS)) continue;
        const long long loads = (long long)(values + taps * size / width) * ((items + 31) / 32);
        if (least < 0 || loads <= least) least = loads, best = size;
    }
    return best;
}

// Consecutive numbers in as few instructions as their alignment allows, which is that of N numbers.
template <int N> DEVICE void load(float (&to)[N], const float *from) {
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(from + i);
            to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
        }
    } else if constexpr (N % 2 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const float2 two = *reinterpret_cast<const float2 *>(from + i);
            to[i] = two.x, to[i + 1] = two.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = from[i];
    }
}

// --- activations and dropout -------------------------------------------------------------------------------

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE float activate(int activation, float x, float &slope) {
    switch (activation) {
    case TANH: {
        const float y = tanhf(x);
        slope = 1.0f - y * y;
        return y;
    }
    case RELU:
        slope = x > 0.0f ? 1.0f : 0.0f;
        return x < 0.0f ? 0.0f : x;
    case SIGMOID: {
        const float y = sigmoid(x);
        slope = y * (1.0f - y);
        return y;
    }
    case GELU: {
        const float integral = 0.5f * (1.0f + erff(x * 0.70710678f));
        slope = integral + x * 0.39894228f * expf(-0.5f * x * x);
        return x * integral;
    }
    case LEAKY_RELU:
        slope = x > 0.0f ? 1.0f : 0.01f;
        return x * slope;
    default: {
        const float s = sigmoid(x);
        slope = s + x * s * (1.0f - s);
        return x * s;
    }
    }
}

// The derivative where the output determines it.
DEVICE float slope_of_output(int activation, float y) {
    switch (activation) {
    case TANH: return 1.0f - y * y;
    case RELU: return y > 0.0f ? 1.0f : 0.0f;
    case SIGMOID: return y * (1.0f - y);
    default: return y > 0.0f ? 1.0f : 0.01f;
    }
}

DEVICE unsigned mix(unsigned bits) {
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6Bu;
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35u;
    return bits ^ (bits >> 16);
}

// As zootools.rng.dropout_bits: a hash of the unit's number in the epoch.
DEVICE float kept(const Model &model, int layer, unsigned number) {
    const unsigned key = model.keys[layer * model.models];
    return mix(mix(number * 0x9E3779B1u + key) + key) < model.threshold ? 0.0f : model.scale;
}

// --- layers ------------------------------------------------------------------------------------------------

// Valid convolution of CHANNELS x HEIGHT x WIDTH to OUTPUTS, and max-pooling over POOL x POOL of the sums. A linear
// layer is one on images of one pixel. Rows and columns that no whole window covers are never computed.
template <int CHANNELS_, int HEIGHT, int WIDTH, int OUTPUTS_, int KERNEL, int STRIDE, int POOL_, bool BIAS>
struct Conv {
    static constexpr int CHANNELS = CHANNELS_, OUTPUTS = OUTPUTS_, POOL = POOL_;
    static constexpr int OUT_ROWS = ((HEIGHT - KERNEL) / STRIDE + 1) / POOL;
    static constexpr int OUT_COLUMNS = ((WIDTH - KERNEL) / STRIDE + 1) / POOL;
    static constexpr int SUM_ROWS = OUT_ROWS * POOL, SUM_COLUMNS = OUT_COLUMNS * POOL;
    static constexpr int PLACES = OUT_ROWS * OUT_COLUMNS, UNITS = OUTPUTS * PLACES;
    static constexpr int INPUTS = CHANNELS * HEIGHT * WIDTH;
    static constexpr int TAPS = KERNEL * KERNEL, FAN_IN = CHANNELS * TAPS, KERNELS = OUTPUTS * FAN_IN;
    static constexpr int BIASES = BIAS ? OUTPUTS : 0, PARAMETERS = KERNELS + BIASES;

    // The rows of all kernels; where they are fewer than threads, the places are divided into parts.
    static constexpr int ROWS = OUTPUTS * CHANNELS * KERNEL;
    static constexpr int PARTS = larger(1, smaller(THREADS / ROWS, PLACES)), PART = (PLACES + PARTS - 1) / PARTS;

    // Those of convolutions twice, so that the ones that a thread needs at once are neighbours in both directions.
    template <bool INPUT> struct Weights {
        static constexpr bool TWICE = !INPUT && TAPS > 1;
        alignas(16) float forward[KERNELS];               // [input][tap][output]
        alignas(16) float backward[TWICE ? KERNELS : 1];  // [output][tap][input]
        float bias[BIAS ? OUTPUTS : 1];

        void set(int i, float value) {
            if (i >= KERNELS) {
                bias[i - KERNELS] = value;
                return;
            }
            const int o = i / FAN_IN, c = i / TAPS % CHANNELS, tap = i % TAPS;
            forward[(c * TAPS + tap) * OUTPUTS + o] = value;
            if constexpr (TWICE) backward[(o * TAPS + tap) * CHANNELS + c] = value;
        }

        // The weights from some inputs, from `first` on, to one output.
        template <int BLOCK> void load_inputs(float (&to)[BLOCK], int o, int tap, int first) const {
            if constexpr (TWICE) return load(to, backward + (o * TAPS + tap) * CHANNELS + first);
            for (int c = 0; c < BLOCK; c++) to[c] = forward[((first + c) * TAPS + tap) * OUTPUTS + o];
        }
    };

    // Calls store(sample, output, place, sums of the window) for every window.
    template <int SAMPLES, class W, class Store>
    static void sum(const float *x, const W &weights, int samples, Store store) {
        constexpr int SUMS = POOL * POOL, SIDE = (POOL - 1) * STRIDE + KERNEL;
        constexpr int BLOCK = together(OUTPUTS, larger(1, smaller(8, 32 / SUMS)), SAMPLES * PLACES, SIDE * SIDE, TAPS);
        constexpr int BLOCKS = OUTPUTS / BLOCK;
        ITEMS(item, samples * BLOCKS * PLACES) {
            const int n = item / (BLOCKS * PLACES), first = item / PLACES % BLOCKS * BLOCK, place = item % PLACES;
            const float *corner = x + n * INPUTS + (place / OUT_COLUMNS * WIDTH + place % OUT_COLUMNS) * POOL * STRIDE;
            float sums[BLOCK][SUMS];
#pragma unroll
            for (int o = 0; o < BLOCK; o++)
#pragma unroll
                for (int v = 0; v < SUMS; v++) sums[o][v] = BIAS ? weights.bias[first + o] : 0.0f;
            for (int c = 0; c < CHANNELS; c++) {
                float patch[SIDE][SIDE];
#pragma unroll
                for (int r = 0; r < SIDE; r++)
#pragma unroll
                    for (int q = 0; q < SIDE; q++) patch[r][q] = corner[(c * HEIGHT + r) * WIDTH + q];
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) {
                    float weight[BLOCK];
                    load(weight, weights.forward + (c * TAPS + tap) * OUTPUTS + first);
#pragma unroll
                    for (int o = 0; o < BLOCK; o++)
#pragma unroll
                        for (int v = 0; v < SUMS; v++)
                            sums[o][v] = fmaf(weight[o],
                                              patch[tap / KERNEL + v / POOL * STRIDE][tap % KERNEL + v % POOL * STRIDE],
                                              sums[o][v]);
                }
            }
#pragma unroll
            for (int o = 0; o < BLOCK; o++) store(n, first + o, place, sums[o]);
        }
    }

    // Row and column of the sum that a unit has its value from; `winner` is its place in the window.
    static int row(int place, int winner) { return place / OUT_COLUMNS * POOL + winner / POOL; }
    static int column(int place, int winner) { return place % OUT_COLUMNS * POOL + winner % POOL; }

    // Adds the gradients of the weights to `gradients`, or stores those of each part in `parts`, to be added later.
    template <class M>
    static void weight_gradients(const float *x, const M &memory, int samples, float *gradients, float *parts) {
        ITEMS(item, PARTS * (ROWS + BIASES)) {
            const int part = item / (ROWS + BIASES), line = item % (ROWS + BIASES);
            const int begin = part * PART, end = smaller(PLACES, begin + PART);
            const bool is_bias = line >= ROWS;
            // Neighbours have one input channel, so that they read different banks of the shared memory.
            const int o = is_bias ? line - ROWS : line / KERNEL % OUTPUTS;
            const int c = line / (OUTPUTS * KERNEL) % CHANNELS, ky = line % KERNEL;
            float sums[KERNEL];
#pragma unroll
            for (int k = 0; k < KERNEL; k++) sums[k] = 0.0f;
            for (int n = 0; n < samples; n++)
                for (int place = begin; place < end; place++) {
                    const int unit = o * PLACES + place, winner = memory.winner_of(n, unit);
                    const float gradient = memory.out[n][unit];
                    if (is_bias) {
                        sums[0] += gradient;
                        continue;
                    }
                    const float *values = x + n * INPUTS + (c * HEIGHT + row(place, winner) * STRIDE + ky) * WIDTH +
                                          column(place, winner) * STRIDE;
#pragma unroll
                    for (int k = 0; k < KERNEL; k++) sums[k] = fmaf(gradient, values[k], sums[k]);
                }
            float *to = PARTS > 1 ? parts + part * PARAMETERS : gradients;
            to += is_bias ? KERNELS + o : ((o * CHANNELS + c) * KERNEL + ky) * KERNEL;
#pragma unroll
            for (int k = 0; k < KERNEL; k++)
                if (k == 0 || !is_bias) to[k] = PARTS > 1 ? sums[k] : to[k] + sums[k];
        }
    }

    static void add_parts(const float *parts, float *gradients) {
        if constexpr (PARTS > 1)
            ITEMS(i, PARAMETERS) {
                float sum = gradients[i];
                for (int part = 0; part < PARTS; part++) sum += parts[part * PARAMETERS + i];
                gradients[i] = sum;
            }
    }

    // The gradients of all sums: that of a unit at the place of its winner, else zero.
    template <class M> static void spread(const M &memory, int samples, float *sums) {
        if constexpr (POOL > 1)
            ITEMS(item, samples * OUTPUTS * SUM_ROWS * SUM_COLUMNS) {
                const int column = item % SUM_COLUMNS, row = item / SUM_COLUMNS % SUM_ROWS;
                const int output = item / (SUM_COLUMNS * SUM_ROWS) % OUTPUTS;
                const int n = item / (SUM_COLUMNS * SUM_ROWS * OUTPUTS);
                const int unit = output * PLACES + row / POOL * OUT_COLUMNS + column / POOL;
                const bool won = memory.winner[n][unit] == row % POOL * POOL + column % POOL;
                sums[item] = won ? memory.out[n][unit] : 0.0f;
            }
    }

    // Calls give(sample, input, gradient) for every input; `sums` are the gradients of all sums.
    template <int SAMPLES, class W, class Give>
    static void input_gradients(const float *sums, const W &weights, int samples, Give give) {
        constexpr int STEPS = (KERNEL + STRIDE - 1) / STRIDE;  // rows of sums that a row of inputs belongs to
        constexpr int BLOCK = together(CHANNELS, 8, SAMPLES * HEIGHT * WIDTH, OUTPUTS, OUTPUTS);
        constexpr int BLOCKS = CHANNELS / BLOCK;
        ITEMS(item, samples * BLOCKS * HEIGHT * WIDTH) {
            const int n = item / (BLOCKS * HEIGHT * WIDTH), pixel = item % (HEIGHT * WIDTH);
            const int first = item / (HEIGHT * WIDTH) % BLOCKS * BLOCK, y = pixel / WIDTH, x = pixel % WIDTH;
            float gradients[BLOCK];
#pragma unroll
            for (int c = 0; c < BLOCK; c++) gradients[c] = 0.0f;
            for (int i = 0; i < STEPS; i++)
                for (int j = 0; j < STEPS; j++) {
                    const int row = y / STRIDE - i, ky = y % STRIDE + i * STRIDE;
                    const int column = x / STRIDE - j, kx = x % STRIDE + j * STRIDE;
                    if (row < 0 || row >= SUM_ROWS || ky >= KERNEL) continue;
                    if (column < 0 || column >= SUM_COLUMNS || kx >= KERNEL) continue;
                    const float *from = sums + (n * OUTPUTS * SUM_ROWS + row) * SUM_COLUMNS + column;
#pragma unroll 4
                    for (int o = 0; o < OUTPUTS; o++) {
                        const float gradient = from[o * SUM_ROWS * SUM_COLUMNS];
                        float weight[BLOCK];
                        weights.load_inputs(weight, o, ky * KERNEL + kx, first);
#pragma unroll
                        for (int c = 0; c < BLOCK; c++) gradients[c] = fmaf(gradient, weight[c], gradients[c]);
                    }
                }
#pragma unroll
            for (int c = 0; c < BLOCK; c++) give(n, (first + c) * HEIGHT * WIDTH + pixel, gradients[c]);
        }
    }
};

// --- the chain of layers -----------------------------------------------------------------------------------

// A layer with what follows it up to the next one, in the order of zootools.architectures.Layer; INPUT for the first.
template <int SAMPLES, bool INPUT, class Core, bool ACTIVATION, bool DROPOUT, bool AVERAGE> struct Stage {
    static constexpr int PARAMETERS = Core::PARAMETERS, UNITS = Core::UNITS, PLACES = Core::PLACES;
    static constexpr int OUTPUTS = AVERAGE ? Core::OUTPUTS : UNITS;
    static constexpr bool KEEPS_SLOPES = SLOPES && (ACTIVATION || DROPOUT), POOLED = Core::POOL > 1;
    // In the scratch memory: gradients of the weights by parts of the places, then those of all sums.
    static constexpr int OF_PARTS = Core::PARTS > 1 ? Core::PARTS * PARAMETERS : 0;
    static constexpr int SCRATCH = OF_PARTS + (POOLED && !INPUT ? SAMPLES * UNITS * Core::POOL * Core::POOL : 0);

    struct Memory {
        typename Core::template Weights<INPUT> weights;
        float out[SAMPLES][UNITS];  // after pooling, activation and dropout; then the gradients of the pooled sums
        float slope[KEEPS_SLOPES ? SAMPLES : 1][KEEPS_SLOPES ? UNITS : 1];
        float average[AVERAGE ? SAMPLES : 1][OUTPUTS];
        unsigned char winner[POOLED ? SAMPLES : 1][POOLED ? UNITS : 4];

        int winner_of(int n, int unit) const { return POOLED ? winner[n][unit] : 0; }
    };

    static const float *output(const Memory &memory) {
        return AVERAGE ? &memory.average[0][0] : &memory.out[0][0];
    }

    template <bool TRAIN>
    static void forward(const float *x, Memory &memory, int samples, const Model &model, int layer) {
        Core::template sum<SAMPLES>(x, memory.weights, samples, [&](int n, int o, int place, const auto &sums) {
            finish<TRAIN>(memory, n, o * PLACES + place, sums, model, layer);
        });
        barrier();
        if constexpr (AVERAGE) {
            ITEMS(item, samples * OUTPUTS) {
                const float *units = &memory.out[item / OUTPUTS][item % OUTPUTS * PLACES];
                float sum = 0.0f;
                for (int i = 0; i < PLACES; i++) sum += units[i];
                memory.average[item / OUTPUTS][item % OUTPUTS] = sum * (1.0f / PLACES);
            }
            barrier();
        }
    }

    // Stores the gradient of one output, before `backward`.
    static void take(Memory &memory, int n, int i, float gradient, const Model &model) {
        if constexpr (AVERAGE)
            memory.average[n][i] = gradient;
        else
            memory.out[n][i] = gradient * slope(memory, n, i, model);
    }

    // After `take` of all outputs and a barrier.
    template <class Give>
    static void backward(const float *x, Memory &memory, float *scratch, float *gradients, int samples,
                                    const Model &model, Give give) {
        if constexpr (AVERAGE) {
            ITEMS(item, samples * UNITS) {
                const int n = item / UNITS, unit = item % UNITS;
                const float share = memory.average[n][unit / PLACES] * (1.0f / PLACES);
                memory.out[n][unit] = share * slope(memory, n, unit, model);
            }
            barrier();
        }
        Core::weight_gradients(x, memory, samples, gradients, scratch);
        if constexpr (!INPUT) Core::spread(memory, samples, scratch + OF_PARTS);
        barrier();
        Core::add_parts(scratch, gradients);
        if constexpr (!INPUT) {
            const float *sums = POOLED ? scratch + OF_PARTS : &memory.out[0][0];
            Core::template input_gradients<SAMPLES>(sums, memory.weights, samples, give);
        }
        barrier();
    }

  private:
    // A unit from the sums of its window.
    template <bool TRAIN, class Sums>
    static void finish(Memory &memory, int n, int unit, const Sums &sums, const Model &model, int layer) {
        float value = sums[0], slope = 1.0f;
        int winner = 0;
#pragma unroll
        for (int v = 1; v < Core::POOL * Core::POOL; v++)
            if (sums[v] > value) value = sums[v], winner = v;  // the first of equal values wins, as in torch
        if constexpr (ACTIVATION) value = activate(model.activation, value, slope);
        if constexpr (TRAIN && DROPOUT)
            if (model.keys) {
                const float factor = kept(model, layer, (model.position + n) * UNITS + unit);
                value *= factor, slope *= factor;
            }
        memory.out[n][unit] = value;
        if constexpr (TRAIN && KEEPS_SLOPES) memory.slope[n][unit] = slope;
        if constexpr (TRAIN && POOLED) memory.winner[n][unit] = winner;
    }

    static float slope(const Memory &memory, int n, int unit, const Model &model) {
        if constexpr (KEEPS_SLOPES) return memory.slope[n][unit];
        if constexpr (ACTIVATION) return slope_of_output(model.activation, memory.out[n][unit]);
        return 1.0f;
    }
};

template <int SAMPLES, class... Stages> struct Network {
    static constexpr int PARAMETERS = 0, SCRATCH = 1;
    struct Memory {
        void set(int, float) {}
    };
};

template <int SAMPLES, class First, class... Rest> struct Network<SAMPLES, First, Rest...> {
    using After = Network<SAMPLES, Rest...>;
    static constexpr bool LAST = sizeof...(Rest) == 0;
    static constexpr int PARAMETERS = First::PARAMETERS + After::PARAMETERS;
    static constexpr int SCRATCH = larger(First::SCRATCH, After::SCRATCH);

    struct Memory {
        typename First::Memory here;
        typename After::Memory after;

        void set(int i, float value) {
            if (i < First::PARAMETERS)
                here.weights.set(i, value);
            else
                after.set(i - First::PARAMETERS, value);
        }
    };

    // Returns the logits, [SAMPLES][classes].
    template <bool TRAIN>
    static const float *forward(const float *x, Memory &memory, int samples, const Model &model, int layer = 0) {
        First::template forward<TRAIN>(x, memory.here, samples, model, layer);
        const float *out = First::output(memory.here);
        if constexpr (LAST)
            return out;
        else
            return After::template forward<TRAIN>(out, memory.after, samples, model, layer + 1);
    }

    // After forward on the same x. label(sample) and share(sample): its weight in the mean over the batch.
    template <class Label, class Share, class Give>
    static void backward(const float *x, Memory &memory, float *scratch, float *gradients, int samples,
                                    const Model &model, Label label, Share share, Give give) {
        const float *out = First::output(memory.here);
        auto take = [&](int n, int i, float gradient) { First::take(memory.here, n, i, gradient, model); };
        if constexpr (LAST) {
            constexpr int CLASSES = First::OUTPUTS;
            ITEMS(n, samples) {  // the gradient of the cross-entropy: softmax minus one-hot
                const float *logits = out + n * CLASSES;
                float highest = logits[0], sum = 0.0f;
                for (int c = 1; c < CLASSES; c++) highest = logits[c] > highest ? logits[c] : highest;
                for (int c = 0; c < CLASSES; c++) sum += expf(logits[c] - highest);
                for (int c = 0; c < CLASSES; c++)
                    take(n, c, (expf(logits[c] - highest) / sum - (label(n) == c ? 1.0f : 0.0f)) * share(n));
            }
            barrier();
        } else {
            float *further = gradients + First::PARAMETERS;
            After::backward(out, memory.after, scratch, further, samples, model, label, share, take);
        }
        First::backward(x, memory.here, scratch, gradients, samples, model, give);
    }
};

template <class Net, int SAMPLES, int PIXELS> struct Shared {
    typename Net::Memory memory;
    float gradients[Net::PARAMETERS];
    float image[SAMPLES][PIXELS];
    float scratch[Net::SCRATCH];
    float losses[SAMPLES];
};

// --- whole steps and whole evaluations ---------------------------------------------------------------------

// One step of torch.optim's Adam, SGD or RMSprop with its defaults, for the weight i of model m.
DEVICE float updated(const Training &t, int m, int i, long long at, float w, float gradient, double rate,
                     float correction) {
    if (t.decay) gradient += t.decay[t.is_kernel[i] * t.models + m] * w;
    switch (t.optimizers[m]) {
    case ADAM: {
        float first = t.first[at], second = t.second[at];
        first += (gradient - first) * 0.1f;
        second = second * 0.999f + gradient * gradient * 0.001f;
        t.first[at] = first, t.second[at] = second;
        return w - float(rate) * first / (sqrtf(second) * correction + 1e-8f);
    }
    case SGD: {
        const float first = t.first[at] * t.momentum[m] + gradient;
        t.first[at] = first;
        return w - float(rate) * first;
    }
    default: {
        const float second = t.second[at] * 0.99f + gradient * gradient * 0.01f;
        t.second[at] = second;
        return w - float(rate) * gradient / (sqrtf(second) + 1e-8f);
    }
    }
}

template <class Net, int SAMPLES, int PIXELS>
static void train_steps(const Training &t, int m, Shared<Net, SAMPLES, PIXELS> &shared) {
    const long long start = (long long)m * Net::PARAMETERS;
    const int *order = t.order + m * t.places;
    const int count = t.counts[m], whole = count / t.batch * t.batch, steps = (count + t.batch - 1) / t.batch;
    Model model{t.activations[m], t.keys ? t.keys + m : nullptr, t.models, t.thresholds[m], t.scale[m], 0};
    ITEMS(i, Net::PARAMETERS) {
        shared.memory.set(i, t.weights[start + i]);
        shared.gradients[i] = 0.0f;
    }
    barrier();
    for (int step = t.first_step; step < smaller(steps, t.last_step); step++) {
        const int begin = step * t.batch, end = smaller(count, begin + t.batch);
        const float share = 1.0f / float(begin < whole ? t.batch : count - whole);
        for (int position = begin; position < end; position += SAMPLES) {
            const int samples = smaller(SAMPLES, end - position);
            model.position = unsigned(position);
            ITEMS(i, samples * PIXELS) {
                const float *image = t.images + (long long)order[position + i / PIXELS] * PIXELS;
                shared.image[i / PIXELS][i % PIXELS] = image[i % PIXELS];
            }
            barrier();
            const float *x = &shared.image[0][0];
            Net::template forward<true>(x, shared.memory, samples, model);
            Net::backward(
                x, shared.memory, shared.scratch, shared.gradients, samples, model,
                [&](int n) { return int(t.labels[order[position + n]]); }, [&](int) { return share; },
                [](int, int, float) {});
        }
        double rate = t.rates[m];
        float correction = 1.0f;
        if (t.optimizers[m] == ADAM) {
            const long long time = (long long)t.epochs_before * steps + step;
            rate /= t.first_corrections[time], correction = t.second_corrections[time];
        }
        ITEMS(i, Net::PARAMETERS) {
            const float w = updated(t, m, i, start + i, t.weights[start + i], shared.gradients[i], rate, correction);
            t.weights[start + i] = w;
            shared.memory.set(i, w);
            shared.gradients[i] = 0.0f;
        }
        barrier();
    }
}

template <class Net, int SAMPLES, int PIXELS, int CLASSES>
static void evaluate_part(const Evaluation &e, int m, int part, Shared<Net, SAMPLES, PIXELS> &shared) {
    const long long start = (long long)m * Net::PARAMETERS;
    const int begin = part * e.part_images, end = smaller(e.limits[m], begin + e.part_images);
    const Model model{e.activations[m], nullptr, e.models, 0u, 1.0f, 0u};
    ITEMS(i, Net::PARAMETERS) shared.memory.set(i, e.weights[start + i]);
    double loss = 0.0;
    for (int index = begin; index < end; index += SAMPLES) {
        const int samples = smaller(SAMPLES, end - index);
        ITEMS(i, samples * PIXELS) shared.image[i / PIXELS][i % PIXELS] = e.images[(long long)index * PIXELS + i];
        barrier();
        const float *out = Net::template forward<false>(&shared.image[0][0], shared.memory, samples, model);
        ITEMS(n, samples) {
            const float *logits = out + n * CLASSES;
            const int label = int(e.labels[index + n]);
            int prediction = 0;
            for (int c = 1; c < CLASSES; c++)
                if (logits[c] > logits[prediction]) prediction = c;
            float sum = 0.0f;
            for (int c = 0; c < CLASSES; c++) sum += expf(logits[c] - logits[prediction]);
            shared.losses[n] = logf(sum) - (logits[label] - logits[prediction]);
            atomicAdd(e.confusion + ((long long)m * CLASSES + label) * CLASSES + prediction, 1ull);
        }
        barrier();
        if (thread() == 0)
            for (int n = 0; n < samples; n++) loss += double(shared.losses[n]);
        barrier();
    }
    if (thread() == 0) e.losses[(long long)m * e.parts + part] = loss;
}

// --- what Python calls: the generated source ends with this -------------------------------------------------

// The samples in shared memory: as many as let two blocks share a multiprocessor, or else one.
template <template <int> class Net, int PIXELS, int SAMPLES> constexpr long long needed() {
    return sizeof(Shared<Net<SAMPLES>, SAMPLES, PIXELS>) + 1024;  // which CUDA keeps for itself
}
template <template <int> class Net, int PIXELS> constexpr int samples_that_fit() {
    for (int blocks = 2; blocks > 0; blocks--) {
        const long long room = smaller(SHARED_LIMIT + 1024, SHARED_TOTAL / blocks);
        if (needed<Net, PIXELS, 4>() <= room) return 4;
        if (needed<Net, PIXELS, 2>() <= room) return 2;
        if (needed<Net, PIXELS, 1>() <= room) return 1;
    }
    return 0;
}

#define EXPORT_NETWORK(NET, PIXELS, CLASSES)                                                                      \
    constexpr int SAMPLES = samples_that_fit<NET, PIXELS>();                                                      \
    static_assert(SAMPLES > 0, "the network does not fit the shared memory of a block");                         \
    using Memory = Shared<NET<larger(1, SAMPLES)>, larger(1, SAMPLES), PIXELS>;                                   \
    constexpr int BLOCKS = larger(1, smaller(768 / THREADS, SHARED_TOTAL / int(sizeof(Memory) + 1024)));          \
    CONSTANT block_shared_bytes = sizeof(Memory);                                                                 \
    ENTRY train(Training t) { train_steps(t, block_x(), shared_memory<Memory>()); }                               \
    ENTRY evaluate(Evaluation e) {                                                                                \
        evaluate_part<NET<SAMPLES>, SAMPLES, PIXELS, CLASSES>(e, block_x(), block_y(), shared_memory<Memory>());  \
    }
