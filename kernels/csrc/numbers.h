/* Element types with the numbers of ../native.py, and their conversion to float. */
#ifndef TERSELY_NUMBERS_H
#define TERSELY_NUMBERS_H

#include <stdint.h>
#include <string.h>

/* GCC and Clang only; with another compiler the build fails, which is optional anyway. */
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

enum kind { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* Vector instructions in ascending order; AMX is AVX512 plus a matrix unit. */
enum level { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AMX = 3 };

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return float_of_bits(sign | ((rest << 13) + (112u << 23)));
    float value = (float)rest * 0x1p-24f; /* subnormal */
    return sign ? -value : value;
}

INLINE int64_t size_of(int kind) { return kind == FLOAT32 ? 4 : 2; }

INLINE float number_at(const char *from, int64_t i, int kind) {
    if (kind == FLOAT32) {
        float value;
        memcpy(&value, from + 4 * i, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, from + 2 * i, sizeof half);
    return kind == BFLOAT16 ? float_of_bits((uint32_t)half << 16) : float_of_half(half);
}

/* exp(y) = 2^n * (1 + f * (C1 + f * (...))), where n is y * log2(e) rounded to an integer, and f the remainder: relative
 * error 1.1e-7 (minimax over -0.5..0.5). At or below EXP_CUT the result is zero, so that 2^n is never subnormal. */
#define LOG2_E 1.44269504f
#define EXP_CUT (-86.0f)
#define EXP_C1 0.6931470036506653f
#define EXP_C2 0.24022242426872253f
#define EXP_C3 0.05550733581185341f
#define EXP_C4 0.009671512991189957f
#define EXP_C5 0.001326472731307149f

#endif
