/* One lane of plain C: 64-bit processors of any kind. */
typedef unsigned __int128 A;
#include <stdint.h>
typedef uint64_t V;

#define LANES 1
#define BLOCK 4
#define SPLIT 0
#define PICKED 1
#define DIGIT uint64_t
#define MASK uint64_t

#define V_LOAD(p) (*(p))
#define V_STORE(p, v) (*(p) = (v))
#define V_ALL(x) ((uint64_t)(x))
#define V_ADD(a, b) ((a) + (b))
#define V_SUB(a, b) ((a) - (b))
#define V_AND(a, b) ((a) & (b))
#define V_OR(a, b) ((a) | (b))
#define V_EQUAL(a, b) (((((a) ^ (b)) | (0 - ((a) ^ (b)))) >> 63) - 1)
#define MASK_OF(index, i) V_EQUAL(index, (uint64_t)(i))
#define PICK(found, mask, index, entries) ((found) | ((mask) & *(entries)))
#define A_ZERO() ((A)0)
#define A_ADD(a, b) ((a) + (b))
#define A_PLUS_DIGIT(a, v) ((a) + (v))
#define A_SHIFT(a, m) ((a) >> (m)->radix)
#define A_MASK(a, m) ((A)((uint64_t)(a) & (m)->mask))
#define A_DIGIT(a, m) ((uint64_t)(a) & (m)->mask)
#define QUOTIENT(a, m) (((uint64_t)(a) * (m)->inverse) & (m)->mask)
#define MULTIPLY_LOW(acc, a, b) ((acc) += (A)(a) * (b))
#define MULTIPLY_HIGH(acc, a, b) ((void)0)

#include "kernel.h"

static int available(void) { return 1; }

const kernel kernel_portable = {
    .name = "portable", .teeth = 6, .blocks = 16, .radix_min = 54, .radix_max = 60,
    KERNEL_FIELDS(128), .available = available,
};
