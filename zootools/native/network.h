// A sequential network of the layers in layers.h: forward, backward, optimizer step, scores.
//
// One sample of all LANES models goes through the whole network at a time, forward and backward, and everything
// it touches stays in the L1 and L2 caches; gradients add up in memory over the batch.
#pragma once
#include "layers.h"

// These numbers, and the structures below, are shared with kernel.py.
enum Activation { TANH, RELU, SIGMOID, GELU, LEAKY_RELU, SILU };
enum Optimizer { ADAM, SGD, RMSPROP };

// What one group of LANES models is trained with. [LANES] arrays hold one number per model.
struct Training {
    const float *images;      // [images][pixels], shared by all models
    const int64_t *labels;    // [images]
    const int32_t *order;     // [samples of the epoch][LANES]: which image each model sees; 0 beyond its count
    const int64_t *counts;    // [LANES]: samples of one epoch
    int64_t batch;            // samples of one step
    Vec *weights;             // [PARAMETERS][LANES]
    Vec *first, *second;      // optimizer state alike: first moment or momentum, second moment
    Vec *gradients;           // alike; working memory
    void *workspace;          // lanes_workspace() bytes
    const float *rates;       // [steps][LANES]: step size; for Adam with the correction of the first moment
    const float *corrections; // [steps][LANES]: of the root of Adam's second moment
    const float *decay[2];    // [LANES]: what a bias and a kernel add to their gradient, per unit; or null
    const uint8_t *is_kernel; // [PARAMETERS]
    const float *momentum;    // [LANES], of SGD
    const uint32_t *keys;     // [layers][LANES]: of the dropout of this epoch; null without
    const uint32_t *thresholds; // [LANES]: units whose bits lie below are dropped
    const float *scale;       // [LANES]: what the units that stay are multiplied with
    int32_t activation, optimizer;
};

struct Evaluation {
    const float *images;    // [images][pixels]
    const int64_t *labels;  // [images]
    const int64_t *limits;  // [LANES]: how many of the first images count for each model
    const Vec *weights;     // [PARAMETERS][LANES]
    void *workspace;
    double *loss;           // [LANES]: sum of the cross-entropies, added to
    int64_t *confusion;     // [LANES][classes][classes]: label, prediction; added to
    int32_t activation;
};

// What one sample brings along on its way through the layers.
struct Sample {
    const Training *training;
    int64_t position;  // in the epoch
    Int labels;
    Vec weights;  // in the mean over the batch
};

// --- activations and dropout -------------------------------------------------------------------------------

template <bool TRAIN, class F> static void activate_with(Vec *out, Vec *slope, int units, F f) {
    for (int i = 0; i < units; i++) {
        Vec derivative;
        out[i] = f(out[i], derivative);
        if (TRAIN) slope[i] = derivative;
    }
}

template <bool TRAIN> static void activate(int activation, Vec *out, Vec *slope, int units) {
    switch (activation) {
    case TANH:
        return activate_with<TRAIN>(out, slope, units, [](Vec x, Vec &derivative) {
            Vec y = hyperbolic_tangent(x);
            derivative = 1.0f - y * y;
            return y;
        });
    case RELU:
        return activate_with<TRAIN>(out, slope, units, [](Vec x, Vec &derivative) {
            derivative = x > 0.0f ? all(1.0f) : Vec{};
            return x < 0.0f ? Vec{} : x;
        });
    case SIGMOID:
        return activate_with<TRAIN>(out, slope, units, [](Vec x, Vec &derivative) {
            Vec y = sigmoid(x);
            derivative = y * (1.0f - y);
            return y;
        });
    case GELU:
        return activate_with<TRAIN>(out, slope, units, [](Vec x, Vec &derivative) {
            Vec density, integral;
            normal(x, density, integral);
            derivative = integral + x * density;
            return x * integral;
        });
    case LEAKY_RELU:
        return activate_with<TRAIN>(out, slope, units, [](Vec x, Vec &derivative) {
            derivative = x > 0.0f ? all(1.0f) : all(0.01f);
            return x * derivative;
        });
    case SILU:
        return activate_with<TRAIN>(out, slope, units, [](Vec x, Vec &derivative) {
            Vec s = sigmoid(x);
            derivative = s + x * s * (1.0f - s);
            return x * s;
        });
    }
}

static INLINE Bits mix(Bits bits) {
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6Bu;
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35u;
    return bits ^ (bits >> 16);
}

// As zootools.streams.dropout_bits: a hash of the unit's number in the epoch.
static void drop(const Sample &sample, int layer, Vec *out, Vec *slope, int units) {
    const Training &t = *sample.training;
    const Bits key = load(t.keys + layer * LANES), threshold = load(t.thresholds);
    const Vec scale = load(t.scale);
    const uint32_t first = uint32_t(sample.position) * uint32_t(units);
    for (int i = 0; i < units; i++) {
        Bits bits = mix(mix((first + uint32_t(i)) * 0x9E3779B1u + key) + key);
        Vec factor = bits < threshold ? Vec{} : scale;
        out[i] *= factor;
        slope[i] *= factor;
    }
}

// --- the chain of layers -----------------------------------------------------------------------------------

// A layer of layers.h with what follows it up to the next one, in the order of zootools.architectures.Layer.
template <class Core, bool ACTIVATION, bool DROPOUT, bool AVERAGE> struct Stage {
    static constexpr int PARAMETERS = Core::PARAMETERS;
    static constexpr int OUTPUTS = AVERAGE ? Core::UNITS / Core::PLACES : Core::UNITS;

    struct Memory {
        typename Core::Memory kept;
        typename Core::Scratch scratch;
        Vec average[AVERAGE ? OUTPUTS : 1];
        Vec dout[Core::UNITS];  // gradient of what the stage hands on; its first OUTPUTS are used
    };

    static const Vec *output(const Memory &memory) {
        if constexpr (AVERAGE) return memory.average;
        return memory.kept.out;
    }

    template <bool TRAIN>
    static void forward(const Vec *x, const Vec *w, Memory &memory, int activation, const Sample &sample, int layer) {
        auto &kept = memory.kept;
        Core::template forward<TRAIN>(x, w, kept, memory.scratch);
        if constexpr (ACTIVATION)
            activate<TRAIN>(activation, kept.out, kept.slope, Core::UNITS);
        else if constexpr (TRAIN)
            for (Vec &slope : kept.slope) slope = all(1.0f);
        if constexpr (TRAIN && DROPOUT)
            if (sample.training->keys) drop(sample, layer, kept.out, kept.slope, Core::UNITS);
        if constexpr (AVERAGE)
            for (int o = 0; o < OUTPUTS; o++) {
                Vec sum{};
                for (int i = 0; i < Core::PLACES; i++) sum += kept.out[o * Core::PLACES + i];
                memory.average[o] = sum * (1.0f / Core::PLACES);
            }
    }

    static void backward(const Vec *x, const Vec *w, Vec *dw, Memory &memory, Vec *dx) {
        if constexpr (AVERAGE)
            for (int o = OUTPUTS - 1; o >= 0; o--) {
                const Vec share = memory.dout[o] * (1.0f / Core::PLACES);
                for (int i = 0; i < Core::PLACES; i++) memory.dout[o * Core::PLACES + i] = share;
            }
        Core::backward(x, w, dw, memory.dout, dx, memory.kept, memory.scratch);
    }
};

// Gradient of the cross-entropy, weighted by the sample's share in the mean: softmax minus one-hot.
template <int CLASSES> static void loss_gradient(const Vec *logits, const Sample &sample, Vec *dlogits) {
    Vec highest = logits[0], sum{};
    for (int c = 1; c < CLASSES; c++) highest = logits[c] > highest ? logits[c] : highest;
    for (int c = 0; c < CLASSES; c++) sum += dlogits[c] = exponential(logits[c] - highest);
    for (int c = 0; c < CLASSES; c++)
        dlogits[c] = (dlogits[c] / sum - (sample.labels == c ? all(1.0f) : Vec{})) * sample.weights;
}

template <class... Stages> struct Network {
    static constexpr int PARAMETERS = 0;
    struct Memory {};
};

template <class First, class... Rest> struct Network<First, Rest...> {
    using After = Network<Rest...>;
    static constexpr bool LAST = sizeof...(Rest) == 0;
    static constexpr int PARAMETERS = First::PARAMETERS + After::PARAMETERS;

    struct Memory {
        typename First::Memory here;
        typename After::Memory after;
    };

    // Returns the logits.
    template <bool TRAIN>
    static const Vec *forward(const Vec *x, const Vec *w, Memory &memory, int activation, const Sample &sample,
                              int layer = 0) {
        First::template forward<TRAIN>(x, w, memory.here, activation, sample, layer);
        const Vec *out = First::output(memory.here);
        if constexpr (LAST)
            return out;
        else
            return After::template forward<TRAIN>(out, w + First::PARAMETERS, memory.after, activation, sample,
                                                  layer + 1);
    }

    // After forward on the same x. The gradients of the weights add to dw; dx is null where nobody needs it.
    static void backward(const Vec *x, const Vec *w, Vec *dw, Memory &memory, const Sample &sample, Vec *dx) {
        const Vec *out = First::output(memory.here);
        if constexpr (LAST)
            loss_gradient<First::OUTPUTS>(out, sample, memory.here.dout);
        else
            After::backward(out, w + First::PARAMETERS, dw + First::PARAMETERS, memory.after, sample,
                            memory.here.dout);
        First::backward(x, w, dw, memory.here, dx);
    }
};

// --- optimizer ---------------------------------------------------------------------------------------------

// One step of torch.optim's Adam, SGD or RMSprop with its defaults. Models that are not `active` have no data
// left in this epoch and must not move.
template <int PARAMETERS> static void update(const Training &t, int64_t step, Int active) {
    const Vec rate = load(t.rates + step * LANES);
    Vec correction{}, momentum{}, decay[2]{};
    if (t.optimizer == ADAM) correction = load(t.corrections + step * LANES);
    if (t.optimizer == SGD) momentum = load(t.momentum);
    if (t.decay[0])
        for (int kernel = 0; kernel < 2; kernel++) decay[kernel] = load(t.decay[kernel]);
    bool everybody = true;
    for (int lane = 0; lane < LANES; lane++) everybody &= active[lane] != 0;

    auto each = [&](auto rule) {
        for (int i = 0; i < PARAMETERS; i++) {
            const Vec w = t.weights[i];
            Vec gradient = t.gradients[i];
            if (t.decay[0]) gradient += decay[t.is_kernel[i]] * w;
            Vec first = t.first[i], second = t.second[i];
            const Vec moved = w - rate * rule(gradient, first, second);
            if (everybody) {
                t.weights[i] = moved, t.first[i] = first, t.second[i] = second;
            } else {
                t.weights[i] = active ? moved : w;
                t.first[i] = active ? first : t.first[i];
                t.second[i] = active ? second : t.second[i];
            }
        }
    };
    switch (t.optimizer) {
    case ADAM:
        return each([&](Vec gradient, Vec &first, Vec &second) {
            first += (gradient - first) * 0.1f;
            second = second * 0.999f + gradient * gradient * 0.001f;
            return first / (square_root(second) * correction + 1e-8f);
        });
    case SGD:
        return each([&](Vec gradient, Vec &first, Vec &) { return first = first * momentum + gradient; });
    case RMSPROP:
        return each([&](Vec gradient, Vec &, Vec &second) {
            second = second * 0.99f + gradient * gradient * 0.01f;
            return gradient / (square_root(second) + 1e-8f);
        });
    }
}

// --- whole steps and whole evaluations ---------------------------------------------------------------------

// Numbers below 1e-38 count as zero while this lives: moments of weights without a gradient decay into that
// range, where processors are slow.
struct FlushToZero {
#if defined(__SSE__)
    unsigned before = __builtin_ia32_stmxcsr();
    FlushToZero() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushToZero() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushToZero() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before));
        __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    }
    ~FlushToZero() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

template <class Net, int PIXELS> struct Workspace {
    typename Net::Memory memory;
    Vec image[PIXELS];
};

// Each model's image into its own lane: LANES pixels of all models at a time, transposed in registers.
template <int PIXELS> static void gather(const float *images, const int32_t *order, Vec *image) {
    const float *from[LANES];
    for (int lane = 0; lane < LANES; lane++) from[lane] = images + int64_t(order[lane]) * PIXELS;
    int pixel = 0;
    for (; pixel + LANES <= PIXELS; pixel += LANES) {
        Vec block[LANES];
        UNROLL for (int lane = 0; lane < LANES; lane++) block[lane] = load(from[lane] + pixel);
        transpose<1>(block);
        UNROLL for (int i = 0; i < LANES; i++) image[pixel + i] = block[i];
    }
    for (; pixel < PIXELS; pixel++)
        for (int lane = 0; lane < LANES; lane++) image[pixel][lane] = from[lane][pixel];
}

template <class Net, int PIXELS> static void train_steps(const Training &t, int64_t first_step, int64_t last_step) {
    FlushToZero flush;
    auto &space = *static_cast<Workspace<Net, PIXELS> *>(t.workspace);
    for (int64_t step = first_step; step < last_step; step++) {
        __builtin_memset(t.gradients, 0, sizeof(Vec) * Net::PARAMETERS);
        Int active{};
        for (int64_t b = 0; b < t.batch; b++) {
            Sample sample{&t, step * t.batch + b, {}, {}};
            const int32_t *order = t.order + sample.position * LANES;
            bool anybody = false;
            for (int lane = 0; lane < LANES; lane++) {
                const int64_t count = t.counts[lane], whole = count / t.batch * t.batch;
                if (sample.position >= count) continue;  // its weight stays zero
                anybody = true;
                active[lane] = -1;
                sample.weights[lane] = 1.0f / float(sample.position < whole ? t.batch : count - whole);
                sample.labels[lane] = int32_t(t.labels[order[lane]]);
            }
            if (!anybody) break;
            gather<PIXELS>(t.images, order, space.image);
            Net::template forward<true>(space.image, t.weights, space.memory, t.activation, sample);
            Net::backward(space.image, t.weights, t.gradients, space.memory, sample, nullptr);
        }
        update<Net::PARAMETERS>(t, step, active);
    }
}

template <class Net, int PIXELS, int CLASSES> static void evaluate_images(const Evaluation &e, int64_t first, int64_t last) {
    FlushToZero flush;
    auto &space = *static_cast<Workspace<Net, PIXELS> *>(e.workspace);
    const Sample nothing{};
    for (int64_t index = first; index < last; index++) {
        const float *image = e.images + index * PIXELS;
        for (int i = 0; i < PIXELS; i++) space.image[i] = all(image[i]);
        const Vec *logits = Net::template forward<false>(space.image, e.weights, space.memory, e.activation, nothing);
        const int64_t label = e.labels[index];
        Vec highest = logits[0], sum{};
        Int prediction{};
        for (int c = 1; c < CLASSES; c++) {
            Int higher = logits[c] > highest;
            highest = higher ? logits[c] : highest;
            prediction = higher ? Int{} + c : prediction;
        }
        for (int c = 0; c < CLASSES; c++) sum += exponential(logits[c] - highest);
        const Vec loss = logarithm(sum) - (logits[label] - highest);
        for (int lane = 0; lane < LANES; lane++) {
            if (index >= e.limits[lane]) continue;
            e.loss[lane] += double(loss[lane]);
            e.confusion[(lane * CLASSES + label) * CLASSES + prediction[lane]]++;
        }
    }
}

// --- what Python calls: the generated source ends with this -----------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))
#define EXPORT_NETWORK(NET, PIXELS, CLASSES)                                                                      \
    EXPORT int32_t lanes_width() { return LANES; }                                                                \
    EXPORT int32_t lanes_parameters() { return NET::PARAMETERS; }                                                 \
    EXPORT int64_t lanes_workspace() { return sizeof(Workspace<NET, PIXELS>); }                                   \
    EXPORT void lanes_train(const Training *t, int64_t first_step, int64_t last_step) {                           \
        train_steps<NET, PIXELS>(*t, first_step, last_step);                                                      \
    }                                                                                                             \
    EXPORT void lanes_evaluate(const Evaluation *e, int64_t first, int64_t last) {                                \
        evaluate_images<NET, PIXELS, CLASSES>(*e, first, last);                                                   \
    }
