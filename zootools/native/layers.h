// The two kinds of layer, forward and backward, for one sample of each of LANES models.
//
// All sizes are template arguments, so every inner loop is unrolled and its accumulators live in registers.
// Arrays are indexed [channel][row][column], every element a Vec. Weights are laid out as in the layer schema:
// [output][input][kernel row][kernel column], then one bias per output.
#pragma once
#include "vec.h"

// How many accumulators a tile may have: the other registers hold the operands.
constexpr int ACCUMULATORS = REGISTERS == 32 ? 24 : FUSED ? 12 : 9;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

// Cost of one step of a tile of a x b products: its products or its loads, whichever are more, and no less than
// eight, because each accumulator must wait for its last product; among equals the one with fewer loads.
constexpr int tile_cost(int a, int b) { return a == 0 || b == 0 ? 0 : 8 * larger(larger(a * b, a + b), 8) + a + b; }

// Cost of covering ROWS x COLUMNS with tiles of a x b and the rests at the edges.
constexpr long cover_cost(int rows, int columns, int a, int b) {
    long whole_rows = rows / a, whole_columns = columns / b;
    int last_row = rows % a, last_column = columns % b;
    return whole_rows * (whole_columns * tile_cost(a, b) + tile_cost(a, last_column)) +
           whole_columns * tile_cost(last_row, b) + tile_cost(last_row, last_column);
}

struct Tile {
    int rows, columns;
};

// The cheapest tile for ROWS x COLUMNS accumulators.
constexpr Tile best_tile(int rows, int columns) {
    Tile best{1, 1};
    long least = cover_cost(rows, columns, 1, 1);
    for (int a = 1; a <= smaller(rows, ACCUMULATORS); a++)
        for (int b = 1; b <= smaller(columns, ACCUMULATORS / a); b++) {
            long cost = cover_cost(rows, columns, a, b);
            if (cost < least) least = cost, best = {a, b};
        }
    return best;
}

// sums[a][b] += left(a) * right(b). The fewer factors wait in registers while the others come from memory one by one:
// with 12 sums all 16 registers of AVX2 are in use.
template <int A, int B, class Left, class Right> static INLINE void add_products(Vec (&sums)[A][B], Left left, Right right) {
    constexpr int FEWER = smaller(A, B), MORE = larger(A, B);
    Vec factor[FEWER];
    UNROLL for (int i = 0; i < FEWER; i++) factor[i] = in_register(A <= B ? left(i) : right(i));
    UNROLL for (int j = 0; j < MORE; j++) {
        const Vec value = in_register(A <= B ? right(j) : left(j));
        UNROLL for (int i = 0; i < FEWER; i++) (A <= B ? sums[i][j] : sums[j][i]) += factor[i] * value;
    }
}

// Calls f.template operator()<size>(start) for blocks of SIZE that cover TOTAL; the last one may be smaller.
template <int TOTAL, int SIZE, class F> static INLINE void in_blocks(F f) {
    for (int start = 0; start + SIZE <= TOTAL; start += SIZE) f.template operator()<SIZE>(start);
    if constexpr (TOTAL % SIZE != 0) f.template operator()<TOTAL % SIZE>(TOTAL / SIZE * SIZE);
}

// What a layer keeps of one sample between forward and backward.
template <int UNITS, bool POOLED> struct Kept {
    Vec out[UNITS];    // after pooling, activation and dropout
    Vec slope[UNITS];  // d out / d (pooled sum): derivative of the activation, times dropout
    Int winner[POOLED ? UNITS : 1];  // which place in the window won the max-pooling
};

// --- convolution -------------------------------------------------------------------------------------------

// Valid convolution of CHANNELS x HEIGHT x WIDTH to OUTPUTS, and max-pooling over POOL x POOL of the sums.
// Rows and columns that no whole window covers are never computed.
template <int CHANNELS, int HEIGHT, int WIDTH, int OUTPUTS, int KERNEL, int STRIDE, int POOL, bool BIAS> struct Conv {
    static constexpr int OUT_ROWS = ((HEIGHT - KERNEL) / STRIDE + 1) / POOL;
    static constexpr int OUT_COLUMNS = ((WIDTH - KERNEL) / STRIDE + 1) / POOL;
    static constexpr int SUM_COLUMNS = OUT_COLUMNS * POOL;
    static constexpr int FAN_IN = CHANNELS * KERNEL * KERNEL;
    static constexpr int KERNELS = OUTPUTS * FAN_IN;
    static constexpr int PARAMETERS = KERNELS + (BIAS ? OUTPUTS : 0);
    static constexpr int PLACES = OUT_ROWS * OUT_COLUMNS;
    static constexpr int UNITS = OUTPUTS * PLACES;

    // Work is done in strips of output rows, whose sums (or their gradients) stay in the L1 cache: enough rows
    // that a weight's gradient stays in its register over some 64 places.
    static constexpr int STRIP = smaller(OUT_ROWS, larger(1, 64 / (POOL * SUM_COLUMNS)));
    static constexpr int STRIP_PLACES = STRIP * POOL * SUM_COLUMNS;

    // Rows of a kernel whose products are one stretch of instructions without a jump.
    static constexpr int KERNEL_ROWS = FUSED && KERNEL <= 5 ? KERNEL : 1;

    // Of the four sums in a window of 2 x 2 only the winner has a gradient. Where one instruction selects by a mask
    // (AVX and AVX-512), picking the winner's inputs and multiplying once is faster than multiplying four times.
    static constexpr bool BY_WINNER = POOL == 2 && STRIDE == 1 && LANES >= 8;

    using Memory = Kept<UNITS, (POOL > 1)>;
    struct Scratch {
        Vec sums[POOL > 1 ? OUTPUTS * STRIP_PLACES : 1];
    };

    template <bool TRAIN> static void forward(const Vec *x, const Vec *w, Memory &kept, Scratch &scratch) {
        for (int row = 0; row < OUT_ROWS; row++)
            if constexpr (POOL > 1) {
                for (int r = 0; r < POOL; r++)
                    sum_row(x + (row * POOL + r) * STRIDE * WIDTH, w, scratch.sums + r * SUM_COLUMNS,
                            POOL * SUM_COLUMNS);
                pool<TRAIN>(scratch.sums, kept, row);
            } else
                sum_row(x + row * STRIDE * WIDTH, w, kept.out + row * OUT_COLUMNS, PLACES);
    }

    // dout: gradient of kept.out, overwritten. Adds to the gradients dw; stores the gradient of x unless it is null.
    static void backward(const Vec *x, const Vec *w, Vec *dw, Vec *dout, Vec *dx, Memory &kept, Scratch &scratch) {
        for (int o = 0; o < OUTPUTS; o++) {
            constexpr int SUMS = smaller(PLACES, 4);  // side by side, so that they need not wait
            Vec sum[SUMS]{};
            in_blocks<PLACES, SUMS>([&]<int SIZE>(int start) INLINE_LAMBDA {
                UNROLL for (int i = 0; i < SIZE; i++) {
                    const int unit = o * PLACES + start + i;
                    sum[i] += dout[unit] *= kept.slope[unit];
                }
            });
            if constexpr (BIAS)
                UNROLL for (int i = 0; i < SUMS; i++) dw[KERNELS + o] += sum[i];
        }
        if constexpr (BY_WINNER) winner_gradients(x, dout, kept.winner, dw);
        if (BY_WINNER && !dx) return;
        if (dx) __builtin_memset(dx, 0, sizeof(Vec) * CHANNELS * HEIGHT * WIDTH);
        in_blocks<OUT_ROWS, STRIP>([&]<int ROWS>(int row) INLINE_LAMBDA {
            // How far apart the channels of the sums' gradients are: without pooling they are those of the output.
            constexpr int STEP = POOL > 1 ? ROWS * POOL * SUM_COLUMNS : PLACES;
            const Vec *sums = dout + row * OUT_COLUMNS;
            if constexpr (POOL > 1) {
                unpool<ROWS>(dout, kept, row, scratch.sums);
                sums = scratch.sums;
            }
            const int top = row * POOL * STRIDE;
            if constexpr (!BY_WINNER) weight_gradients<ROWS * POOL, STEP>(x + top * WIDTH, sums, dw);
            if (dx) input_gradients<ROWS * POOL, STEP>(w, sums, dx + top * WIDTH);
        });
    }

  private:
    // One row of sums for every output channel; `step` is how far apart the channels of `sums` are.
    static void sum_row(const Vec *x, const Vec *w, Vec *sums, int step) {
        constexpr Tile TILE = best_tile(OUTPUTS, SUM_COLUMNS);
        in_blocks<OUTPUTS, TILE.rows>([&]<int ROWS>(int o) INLINE_LAMBDA {
            in_blocks<SUM_COLUMNS, TILE.columns>([&]<int COLUMNS>(int column) INLINE_LAMBDA {
                sum_tile<ROWS, COLUMNS>(x + column * STRIDE, w + o * FAN_IN, BIAS ? w + KERNELS + o : nullptr,
                                        sums + o * step + column, step);
            });
        });
    }

    template <int ROWS, int COLUMNS>
    static NOINLINE void sum_tile(const Vec *x, const Vec *w, const Vec *bias, Vec *sums, int step) {
        Vec sum[ROWS][COLUMNS];
        UNROLL for (int o = 0; o < ROWS; o++)
            UNROLL for (int i = 0; i < COLUMNS; i++) sum[o][i] = BIAS ? bias[o] : Vec{};
        for (int c = 0; c < CHANNELS; c++)
            in_blocks<KERNEL, KERNEL_ROWS>([&]<int KYS>(int first) INLINE_LAMBDA {
                UNROLL for (int ky = 0; ky < KYS; ky++) {
                    const Vec *row = x + (c * HEIGHT + first + ky) * WIDTH;
                    const Vec *weight = w + (c * KERNEL + first + ky) * KERNEL;
                    UNROLL for (int kx = 0; kx < KERNEL; kx++)
                        add_products(
                            sum, [&](int o) { return weight[o * FAN_IN + kx]; },
                            [&](int i) { return row[i * STRIDE + kx]; });
                }
            });
        UNROLL for (int o = 0; o < ROWS; o++)
            UNROLL for (int i = 0; i < COLUMNS; i++) sums[o * step + i] = sum[o][i];
    }

    template <bool TRAIN> static void pool(const Vec *sums, Memory &kept, int row) {
        for (int o = 0; o < OUTPUTS; o++)
            for (int column = 0; column < OUT_COLUMNS; column++) {
                const Vec *window = sums + o * POOL * SUM_COLUMNS + column * POOL;
                Vec best = window[0];
                Int winner{};
                UNROLL for (int place = 1; place < POOL * POOL; place++) {
                    Vec value = window[place / POOL * SUM_COLUMNS + place % POOL];
                    Int wins = value > best;  // the first of equal values wins, as in torch
                    best = wins ? value : best;
                    winner = wins ? Int{} + place : winner;
                }
                const int unit = (o * OUT_ROWS + row) * OUT_COLUMNS + column;
                kept.out[unit] = best;
                if (TRAIN) kept.winner[unit] = winner;
            }
    }

    // Gradients of ROWS output rows become gradients of the sums: all to the winner of each window.
    template <int ROWS> static void unpool(const Vec *dout, const Memory &kept, int row, Vec *sums) {
        for (int o = 0; o < OUTPUTS; o++)
            for (int r = 0; r < ROWS; r++)
                for (int column = 0; column < OUT_COLUMNS; column++) {
                    const int unit = (o * OUT_ROWS + row + r) * OUT_COLUMNS + column;
                    Vec *window = sums + (o * ROWS + r) * POOL * SUM_COLUMNS + column * POOL;
                    UNROLL for (int place = 0; place < POOL * POOL; place++)
                        window[place / POOL * SUM_COLUMNS + place % POOL] =
                            kept.winner[unit] == place ? dout[unit] : Vec{};
                }
    }

    // A few channels times (a part of) one kernel row stay in registers while all places of the strip go by.
    template <int ROWS, int STEP> static void weight_gradients(const Vec *x, const Vec *sums, Vec *dw) {
        constexpr Tile TILE = best_tile(OUTPUTS, KERNEL);
        in_blocks<OUTPUTS, TILE.rows>([&]<int OUTS>(int o) INLINE_LAMBDA {
            for (int c = 0; c < CHANNELS; c++)
                for (int ky = 0; ky < KERNEL; ky++)
                    in_blocks<KERNEL, TILE.columns>([&]<int TAPS>(int kx) INLINE_LAMBDA {
                        weight_tile<ROWS, STEP, OUTS, TAPS>(x + (c * HEIGHT + ky) * WIDTH + kx,
                                                      sums + o * STEP,
                                                      dw + o * FAN_IN + (c * KERNEL + ky) * KERNEL + kx);
                    });
        });
    }

    template <int ROWS, int STEP, int OUTS, int TAPS>
    static NOINLINE void weight_tile(const Vec *x, const Vec *sums, Vec *dw) {
        Vec gradient[OUTS][TAPS];
        UNROLL for (int o = 0; o < OUTS; o++)
            UNROLL for (int k = 0; k < TAPS; k++) gradient[o][k] = dw[o * FAN_IN + k];
        for (int row = 0; row < ROWS; row++)
            for (int column = 0; column < SUM_COLUMNS; column++) {
                const Vec *value = x + (row * WIDTH + column) * STRIDE;
                const Vec *dsum = sums + row * SUM_COLUMNS + column;
                add_products(
                    gradient, [&](int o) { return dsum[o * STEP]; }, [&](int k) { return value[k]; });
            }
        UNROLL for (int o = 0; o < OUTS; o++)
            UNROLL for (int k = 0; k < TAPS; k++) dw[o * FAN_IN + k] = gradient[o][k];
    }

    // The weight gradients by way of the winners: (a part of) the columns of one kernel stay in registers.
    static void winner_gradients(const Vec *x, const Vec *dout, const Int *winner, Vec *dw) {
        constexpr int MOST = larger(1, (REGISTERS - 4) / (KERNEL + 1)), BLOCKS = (KERNEL + MOST - 1) / MOST;
        constexpr int TAPS = (KERNEL + BLOCKS - 1) / BLOCKS;
        constexpr int STRIP = smaller(OUT_ROWS, larger(1, 32 / OUT_COLUMNS));  // its part of x fits the L1 cache
        in_blocks<OUT_ROWS, STRIP>([&]<int ROWS>(int row) INLINE_LAMBDA {
            for (int c = 0; c < CHANNELS; c++)
                for (int o = 0; o < OUTPUTS; o++)
                    in_blocks<KERNEL, TAPS>([&]<int COLUMNS>(int kx) INLINE_LAMBDA {
                        const int unit = (o * OUT_ROWS + row) * OUT_COLUMNS;
                        winner_tile<ROWS, COLUMNS>(x + (c * HEIGHT + 2 * row) * WIDTH + kx, dout + unit, winner + unit,
                                                   dw + o * FAN_IN + c * KERNEL * KERNEL + kx);
                    });
        });
    }

    template <int ROWS, int TAPS>
    static NOINLINE void winner_tile(const Vec *x, const Vec *dout, const Int *winner, Vec *dw) {
        Vec gradient[KERNEL][TAPS];
        UNROLL for (int ky = 0; ky < KERNEL; ky++)
            UNROLL for (int k = 0; k < TAPS; k++) gradient[ky][k] = dw[ky * KERNEL + k];
        for (int row = 0; row < ROWS; row++)
            for (int column = 0; column < OUT_COLUMNS; column++) {
                if constexpr (REGISTERS == 16) forget_loads();
                const Vec *window = x + 2 * row * WIDTH + 2 * column;
                const Vec factor = dout[row * OUT_COLUMNS + column];
                const Int place = winner[row * OUT_COLUMNS + column];
                const Int right = (place & 1) != 0, low = place > 1;
                Vec above[TAPS];
                UNROLL for (int k = 0; k < TAPS; k++) above[k] = right ? window[k + 1] : window[k];
                UNROLL for (int ky = 0; ky < KERNEL; ky++) {
                    const Vec *next = window + (ky + 1) * WIDTH;
                    UNROLL for (int k = 0; k < TAPS; k++) {
                        Vec below = right ? next[k + 1] : next[k];
                        gradient[ky][k] += factor * (low ? below : above[k]);
                        above[k] = below;
                    }
                }
            }
        UNROLL for (int ky = 0; ky < KERNEL; ky++)
            UNROLL for (int k = 0; k < TAPS; k++) dw[ky * KERNEL + k] = gradient[ky][k];
    }

    // Spreads ROWS rows of gradients of the sums over the rows of x that they were computed from.
    template <int ROWS, int STEP> static void input_gradients(const Vec *w, const Vec *sums, Vec *dx) {
        constexpr Tile TILE = best_tile(KERNEL, SUM_COLUMNS);
        for (int c = 0; c < CHANNELS; c++)  // outermost: its weights fit the L1 cache
            for (int y = 0; y < (ROWS - 1) * STRIDE + KERNEL; y++) {
                const int first = y < KERNEL ? 0 : (y - KERNEL) / STRIDE + 1, last = smaller(ROWS - 1, y / STRIDE);
                in_blocks<KERNEL, TILE.rows>([&]<int TAPS>(int kx) INLINE_LAMBDA {
                    in_blocks<SUM_COLUMNS, TILE.columns>([&]<int COLUMNS>(int column) INLINE_LAMBDA {
                        input_tile<STEP, TAPS, COLUMNS>(w + (c * KERNEL + y) * KERNEL + kx, sums + column, first, last,
                                                        dx + (c * HEIGHT + y) * WIDTH + column * STRIDE + kx);
                    });
                });
            }
    }

    // Part of a row of dx: a few columns of a kernel times a few columns of the sums, added up over all outputs and
    // the rows of the sums from `first` to `last`. Only then are those that meet in one pixel added to it.
    template <int STEP, int TAPS, int COLUMNS>
    static NOINLINE void input_tile(const Vec *w, const Vec *sums, int first, int last, Vec *dx) {
        Vec gradient[TAPS][COLUMNS]{};
        for (int row = first; row <= last; row++) {
            const Vec *weight = w - row * STRIDE * KERNEL, *dsum = sums + row * SUM_COLUMNS;
            for (int o = 0; o < OUTPUTS; o++)
                add_products(
                    gradient, [&](int k) { return weight[o * FAN_IN + k]; }, [&](int i) { return dsum[o * STEP + i]; });
        }
        UNROLL for (int k = 0; k < TAPS; k++)
            UNROLL for (int i = 0; i < COLUMNS; i++) dx[i * STRIDE + k] += gradient[k][i];
    }
};

// --- linear ------------------------------------------------------------------------------------------------

template <int INPUTS, int OUTPUTS, bool BIAS> struct Linear {
    static constexpr int KERNELS = OUTPUTS * INPUTS;
    static constexpr int PARAMETERS = KERNELS + (BIAS ? OUTPUTS : 0);
    static constexpr int UNITS = OUTPUTS, PLACES = 1;
    static constexpr int BLOCK = smaller(OUTPUTS, 8);  // outputs at a time, so that sums need not wait

    using Memory = Kept<OUTPUTS, false>;
    struct Scratch {};

    template <bool TRAIN> static void forward(const Vec *x, const Vec *w, Memory &kept, Scratch &) {
        in_blocks<OUTPUTS, BLOCK>([&]<int OUTS>(int o) INLINE_LAMBDA {
            Vec sum[OUTS];
            UNROLL for (int i = 0; i < OUTS; i++) sum[i] = BIAS ? w[KERNELS + o + i] : Vec{};
            const Vec *weight = w + o * INPUTS;
            for (int k = 0; k < INPUTS; k++)
                UNROLL for (int i = 0; i < OUTS; i++) sum[i] += weight[i * INPUTS + k] * x[k];
            UNROLL for (int i = 0; i < OUTS; i++) kept.out[o + i] = sum[i];
        });
    }

    static void backward(const Vec *x, const Vec *w, Vec *dw, Vec *dout, Vec *dx, Memory &kept, Scratch &) {
        for (int o = 0; o < OUTPUTS; o++) dout[o] *= kept.slope[o];
        for (int o = 0; o < OUTPUTS; o++) {
            const Vec dsum = dout[o];
            for (int k = 0; k < INPUTS; k++) dw[o * INPUTS + k] += dsum * x[k];
            if constexpr (BIAS) dw[KERNELS + o] += dsum;
        }
        if (!dx) return;
        __builtin_memset(dx, 0, sizeof(Vec) * INPUTS);
        for (int o = 0; o < OUTPUTS; o++) {
            const Vec dsum = dout[o];
            for (int k = 0; k < INPUTS; k++) dx[k] += w[o * INPUTS + k] * dsum;
        }
    }
};
