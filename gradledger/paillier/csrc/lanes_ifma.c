/* Eight lanes of AVX-512 IFMA: 52 x 52-bit products, low and high half (vpmadd52luq, -huq). With
 * -DEMULATE_IFMA the same in plain C, so that the kernel is tested on every processor. */
#if defined(EMULATE_IFMA) || defined(__x86_64__)

#define LANES 8
#define BLOCK 5 /* divides the digits of all usual key lengths: 20, 30, 40, 60, 80 */
#define SPLIT 1
#define PICKED 16
#define DIGIT uint64_t
#define RADIX 52

#ifdef EMULATE_IFMA
#include <stdint.h>

#define UNROLL /* it need not be fast, but it is built wherever the package is */

typedef struct {
    uint64_t of[LANES];
} V;
typedef V A;

#define EACH for (int l = 0; l < LANES; l++)

static inline V v_all(uint64_t x)
{
    V v;
    EACH v.of[l] = x;
    return v;
}
static inline V v_add(V a, V b)
{
    EACH a.of[l] += b.of[l];
    return a;
}
static inline V v_subtract(V a, V b)
{
    EACH a.of[l] -= b.of[l];
    return a;
}
static inline V v_and(V a, V b)
{
    EACH a.of[l] &= b.of[l];
    return a;
}
static inline V v_or(V a, V b)
{
    EACH a.of[l] |= b.of[l];
    return a;
}
static inline V v_equal(V a, V b)
{
    EACH a.of[l] = (((a.of[l] ^ b.of[l]) | (0 - (a.of[l] ^ b.of[l]))) >> 63) - 1;
    return a;
}
static inline V v_shift(V a, unsigned by)
{
    EACH a.of[l] >>= by;
    return a;
}
static inline uint64_t digit_of(uint64_t x) { return x & (((uint64_t)1 << RADIX) - 1); }
static inline V v_multiply_low(V sum, V a, V b)
{
    EACH sum.of[l] += digit_of(digit_of(a.of[l]) * digit_of(b.of[l]));
    return sum;
}
static inline V v_multiply_high(V sum, V a, V b)
{
    EACH sum.of[l] += (uint64_t)((unsigned __int128)digit_of(a.of[l]) * digit_of(b.of[l]) >> RADIX);
    return sum;
}
static inline V v_pick(V found, V mask, V index, V one, V two)
{
    EACH {
        uint64_t value = 0;
        for (uint64_t e = 0; e < LANES; e++) {
            value |= one.of[e] & (0 - (uint64_t)((index.of[l] & 15) == e));
            value |= two.of[e] & (0 - (uint64_t)((index.of[l] & 15) == e + LANES));
        }
        found.of[l] |= value & mask.of[l];
    }
    return found;
}

#define V_LOAD(p) (*(p))
#define V_STORE(p, v) (*(p) = (v))
#define V_ALL(x) v_all(x)
#define V_ADD(a, b) v_add(a, b)
#define V_SUB(a, b) v_subtract(a, b)
#define V_AND(a, b) v_and(a, b)
#define V_OR(a, b) v_or(a, b)
#define V_EQUAL(a, b) v_equal(a, b)
#define V_SHIFT(a, by) v_shift(a, by)
#define MASK V
#define MASK_OF(index, i) V_EQUAL(V_SHIFT(index, 4), V_ALL(i))
#define PICK(found, mask, index, entries) \
    v_pick(found, mask, index, V_LOAD((const V *)(entries)), V_LOAD((const V *)(entries) + 1))
#define MULTIPLY_LOW(acc, a, b) ((acc) = v_multiply_low(acc, a, b))
#define MULTIPLY_HIGH(acc, a, b) ((acc) = v_multiply_high(acc, a, b))
#define KERNEL kernel_ifma_emulated
#define NAME "ifma-emulated"

#else

#include <immintrin.h>

#include "cpu.h"

#if defined(__clang__)
#if __clang_major__ >= 18 && __clang_major__ <= 20 /* these tell vectors of 512 bits apart */
#define FEATURES "avx512f,avx512ifma,avx512vl,avx512dq,evex512"
#else
#define FEATURES "avx512f,avx512ifma,avx512vl,avx512dq"
#endif
#pragma clang attribute push(__attribute__((target(FEATURES))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512ifma,avx512vl,avx512dq")
#endif

typedef __m512i V;
typedef __m512i A;

#define V_LOAD(p) _mm512_load_si512(p)
#define V_STORE(p, v) _mm512_store_si512(p, v)
#define V_ALL(x) _mm512_set1_epi64((long long)(x))
#define V_ADD(a, b) _mm512_add_epi64(a, b)
#define V_SUB(a, b) _mm512_sub_epi64(a, b)
#define V_AND(a, b) _mm512_and_si512(a, b)
#define V_OR(a, b) _mm512_or_si512(a, b)
#define V_EQUAL(a, b) _mm512_maskz_set1_epi64(_mm512_cmpeq_epi64_mask(a, b), -1)
#define V_SHIFT(a, by) _mm512_srli_epi64(a, by)
/* A permutation picks one of sixteen digits for each lane. */
#define MASK __mmask8
#define MASK_OF(index, i) _mm512_cmpeq_epi64_mask(V_SHIFT(index, 4), V_ALL(i))
#define PICK(found, mask, index, entries)                                                   \
    _mm512_mask_mov_epi64(found, mask,                                                      \
                          _mm512_permutex2var_epi64(V_LOAD((const V *)(entries)), index,    \
                                                    V_LOAD((const V *)(entries) + 1)))
#define MULTIPLY_LOW(acc, a, b) ((acc) = _mm512_madd52lo_epu64(acc, a, b))
#define MULTIPLY_HIGH(acc, a, b) ((acc) = _mm512_madd52hi_epu64(acc, a, b))
#define KERNEL kernel_ifma
#define NAME "ifma"

#endif

#define A_ZERO() V_ALL(0)
#define A_ADD(a, b) V_ADD(a, b)
#define A_PLUS_DIGIT(a, v) V_ADD(a, v)
#define A_SHIFT(a, m) V_SHIFT(a, RADIX)
#define A_MASK(a, m) V_AND(a, V_ALL(((uint64_t)1 << RADIX) - 1))
#define A_DIGIT(a, m) A_MASK(a, m)
#define QUOTIENT(a, m) quotient_digit(a, (m)->inverse)

static inline __attribute__((always_inline)) V quotient_digit(V sum, unsigned long long inverse)
{
    V digit = V_ALL(0);
    MULTIPLY_LOW(digit, sum, V_ALL(inverse));
    return digit;
}

#include "kernel.h"

static int available(void)
{
#ifdef EMULATE_IFMA
    return 1;
#else
    return cpu_has(HAS_AVX512, ZMM_STATE);
#endif
}

const kernel KERNEL = {
    .name = NAME, .teeth = 8, .blocks = 16, .radix_min = RADIX, .radix_max = RADIX,
    KERNEL_FIELDS(64), .available = available,
};

#if !defined(EMULATE_IFMA)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif
