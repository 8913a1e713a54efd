/* Four lanes of AVX2: 32 x 32-bit products (vpmuludq), digits of 28 or 29 bits. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

typedef __m256i V;
typedef __m256i A;

#define LANES 4
#define BLOCK 4
#define SPLIT 0
#define PICKED 8
#define DIGIT uint32_t
#define MASK __m256i

#define V_LOAD(p) _mm256_load_si256(p)
#define V_STORE(p, v) _mm256_store_si256(p, v)
#define V_ALL(x) _mm256_set1_epi64x((long long)(x))
#define V_ADD(a, b) _mm256_add_epi64(a, b)
#define V_SUB(a, b) _mm256_sub_epi64(a, b)
#define V_AND(a, b) _mm256_and_si256(a, b)
#define V_OR(a, b) _mm256_or_si256(a, b)
#define V_EQUAL(a, b) _mm256_cmpeq_epi64(a, b)
/* A permutation picks one of eight digits for each lane. */
#define MASK_OF(index, i) \
    _mm256_srli_epi64(V_EQUAL(_mm256_srli_epi64(index, 3), V_ALL(i)), 32)
#define PICK(found, mask, index, entries)                                                        \
    V_OR(found, V_AND(mask, _mm256_permutevar8x32_epi32(V_LOAD((const V *)(entries)), index)))
#define A_ZERO() _mm256_setzero_si256()
#define A_ADD(a, b) _mm256_add_epi64(a, b)
#define A_PLUS_DIGIT(a, v) _mm256_add_epi64(a, v)
#define A_SHIFT(a, m) _mm256_srl_epi64(a, _mm_cvtsi32_si128((int)(m)->radix))
#define A_MASK(a, m) _mm256_and_si256(a, V_ALL((m)->mask))
#define A_DIGIT(a, m) A_MASK(a, m)
#define QUOTIENT(a, m) A_MASK(_mm256_mul_epu32(a, V_ALL((m)->inverse)), m)
/* The empty assembly keeps GCC from regrouping the sums, which would need more registers. */
#define MULTIPLY_LOW(acc, a, b)                                  \
    do {                                                         \
        (acc) = _mm256_add_epi64(acc, _mm256_mul_epu32(a, b));   \
        __asm__("" : "+x"(acc));                                 \
    } while (0)
#define MULTIPLY_HIGH(acc, a, b) ((void)0)

#include "kernel.h"

static int available(void)
{
    return cpu_has(HAS_AVX2, YMM_STATE);
}

const kernel kernel_avx2 = {
    .name = "avx2", .teeth = 7, .blocks = 24, .radix_min = 26, .radix_max = 29,
    KERNEL_FIELDS(64), .available = available,
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
