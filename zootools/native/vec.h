// One vector holds one number of LANES models, one model a lane. No arithmetic crosses lanes, so what a model
// computes cannot depend on its neighbours. GCC's and Clang's vector types make this portable.
#pragma once
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

// Whether one instruction multiplies and adds. Without, every product needs a register of its own (SSE).
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool FUSED = true;
#else
constexpr bool FUSED = false;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Int __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));

// x - 0 is x for every x, so this is a plain broadcast.
static inline Vec all(float x) { return x - Vec{}; }

static inline Vec load(const float *lanes) {
    Vec v;
    __builtin_memcpy(&v, lanes, sizeof v);
    return v;
}

static inline Bits load(const uint32_t *lanes) {
    Bits v;
    __builtin_memcpy(&v, lanes, sizeof v);
    return v;
}

// The same value, read from memory once and then kept in a register. GCC would rather read it again for every product.
static INLINE Vec in_register(Vec x) {
#if defined(__AVX512F__)
    __asm__ volatile("" : "+v"(x));
#elif defined(__FMA__)
    __asm__ volatile("" : "+x"(x));
#elif defined(__aarch64__)
    __asm__ volatile("" : "+w"(x));
#endif
    return x;
}

// From here on memory is read anew. GCC would keep what the next turn of a loop reads as well, and spill sums for it.
static INLINE void forget_loads() { __asm__ volatile("" : : : "memory"); }

static inline Vec square_root(Vec x) {
    for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_sqrtf(x[lane]);  // becomes one instruction
    return x;
}

static inline Vec floats(Int x) { return __builtin_convertvector(x, Vec); }
static inline Int whole(Vec x) { return __builtin_convertvector(x, Int); }

// --- images in lanes: the only place where numbers change their lane ---------------------------------------

template <int... LANE> struct Lanes {};
template <int COUNT, int... LANE> struct Counted : Counted<COUNT - 1, COUNT - 1, LANE...> {};
template <int... LANE> struct Counted<0, LANE...> {
    using Type = Lanes<LANE...>;
};

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Int{__VA_ARGS__})
#endif

// Exchanges the right half of every 2 x WIDTH lanes of a with the left half of b.
template <int WIDTH, int... LANE> static INLINE void exchange(Vec &a, Vec &b, Lanes<LANE...>) {
    const Vec left = SHUFFLE(a, b, (LANE & WIDTH ? LANES + LANE - WIDTH : LANE)...);
    b = SHUFFLE(a, b, (LANE & WIDTH ? LANES + LANE : LANE + WIDTH)...);
    a = left;
}

// Row i, lane j becomes row j, lane i.
template <int WIDTH> static INLINE void transpose(Vec (&rows)[LANES]) {
    if constexpr (WIDTH < LANES) {
        UNROLL for (int i = 0; i < LANES; i++)
            if (!(i & WIDTH)) exchange<WIDTH>(rows[i], rows[i + WIDTH], Counted<LANES>::Type());
        transpose<2 * WIDTH>(rows);
    }
}

// --- functions of one number, each a polynomial in one fixed order of operations ---------------------------
// Comparisons with NaN are false, so every select below lets a NaN through to the result.

static INLINE Vec magnitude(Vec x) { return (Vec)((Int)x & 0x7fffffff); }
static INLINE Vec with_sign_of(Vec x, Vec magnitude) { return (Vec)((Int)magnitude | ((Int)x & ~0x7fffffff)); }

// e^x = scale (1 + rest), to about one unit in the last place of rest: scale is a power of two, |rest| below 0.42.
// x is cut at -87, where float ends; the callers have none above 0.
static INLINE void split_exponential(Vec x, Vec &scale, Vec &rest) {
    x = x < -87.0f ? all(-87.0f) : x;
    // x = n ln 2 + r with |r| <= ln(2)/2; adding 1.5 * 2^23 rounds to the nearest whole number
    Vec n = x * 1.44269504f + 12582912.0f - 12582912.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in few bits
    // (e^r - 1 - r) / r^2: least squares, relative error of e^r - 1 below 2e-8
    Vec p = all(1.38581541e-3f);
    p = p * r + 8.36668013e-3f;
    p = p * r + 4.16675968e-2f;
    p = p * r + 1.66665419e-1f;
    p = p * r + 0.499999967f;
    rest = p * r * r + r;
    scale = (Vec)((whole(n) + 127) << 23);
}

// e^x for x <= 0.
static INLINE Vec exponential(Vec x) {
    Vec scale, rest;
    split_exponential(x, scale, rest);
    return scale * rest + scale;
}

// ln x for normal x >= 1.
static INLINE Vec logarithm(Vec x) {
    Int bits = (Int)x;
    Int n = (bits - 0x3f3504f3) >> 23;  // mantissa between sqrt(1/2) and sqrt(2)
    Vec m = (Vec)(bits - (n << 23));
    Vec t = (m - 1.0f) / (m + 1.0f), t2 = t * t;  // ln m = 2 artanh t
    Vec series = ((t2 * (1.0f / 9) + 1.0f / 7) * t2 + 1.0f / 5) * t2 + 1.0f / 3;
    return floats(n) * 0.693147181f + 2.0f * (t + t * t2 * series);
}

static INLINE Vec sigmoid(Vec x) {
    Vec e = exponential(-magnitude(x));  // nothing overflows
    return (x < 0.0f ? e : all(1.0f)) / (1.0f + e);
}

// x P(x^2) / Q(x^2), minimax on [-9.1, 9.1] with relative error 2.3e-8 before rounding. Never beyond 1, so that no slope
// 1 - y^2 is negative, and exactly 1 where tanh rounds to 1.
static INLINE Vec hyperbolic_tangent(Vec x) {
    const Vec t = x * x;
    Vec p = t * 1.31775106e-8f + 2.04811768e-5f, q = t * 7.70404085e-7f + 3.27291928e-4f;
    p = p * t + 3.48781049e-3f, q = q * t + 2.58473866e-2f;
    p = p * t + 1.33744745e-1f, q = q * t + 4.67077881e-1f;
    p = p * t + 1.0f, q = q * t + 1.0f;
    Vec y = x * p / q;
    y = (x > 9.01f) | (y > 1.0f) ? all(1.0f) : y;
    y = (x < -9.01f) | (y < -1.0f) ? all(-1.0f) : y;
    return y;
}

// The normal distribution: its density, and its integral from minus infinity (Abramowitz and Stegun 7.1.26,
// absolute error below 1.5e-7).
static INLINE void normal(Vec x, Vec &density, Vec &integral) {
    Vec e = exponential(-0.5f * x * x);
    Vec t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * magnitude(x));
    Vec p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Vec tail = 0.5f * p * t * e;
    density = 0.398942280f * e;
    integral = x < 0.0f ? tail : 1.0f - tail;
}
