/* What the kernels of all processors share: moduli, tables, and the operations each kernel offers.
 *
 * A kernel works on `lanes` numbers side by side, each held as `limbs` digits of `radix` bits, one
 * digit per 64-bit lane. A residue modulo n^2 is a pair A + B n: 2 x limbs digits, A first.
 */
#ifndef GRADLEDGER_LANES_H
#define GRADLEDGER_LANES_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian processors; others use gmpy2"
#endif

#define TEETH_MAX 10
#define SPARE_BITS 6 /* R >= 64 n: sums of a few residues below 2n need no subtraction */

typedef struct {
    size_t bits;      /* of n */
    size_t words;     /* 64-bit words of n */
    size_t limbs;     /* a multiple of the kernel's block; R = 2^(radix limbs) */
    unsigned radix;
    unsigned chunk;   /* block products that an accumulator takes between two carries */
    uint64_t mask;    /* 2^radix - 1 */
    uint64_t inverse; /* -1/n mod 2^radix */
    uint64_t word_inverse; /* -1/n mod 2^64 */
    uint64_t *number; /* n, words */
    uint64_t *digits; /* n, limbs */
    uint64_t *offset; /* -(R - 1) mod n, limbs */
} modulus;

typedef struct kernel kernel;

typedef struct {
    const kernel *kernel;
    modulus n;
    size_t teeth, blocks, depth, exponent_bits;
    void *table;
    int fast;         /* look-ups at addresses that depend on the exponent */
} comb;

typedef struct {
    modulus p;
    size_t exponent_bits;
    size_t pieces;       /* of `limbs` digits that a ciphertext has */
    uint64_t *exponent;  /* p - 1, words */
    uint64_t *scale;     /* in [0, p), limbs digits */
    uint64_t *one;       /* R mod p^2 as a pair, 2 limbs digits */
    uint64_t *shifts;    /* R^(i+2) mod p^2, pairs, `pieces` of them */
} prime;

struct kernel {
    const char *name;
    size_t lanes, block, vector_bytes;
    unsigned teeth, blocks;           /* of the table that is scanned */
    unsigned radix_min, radix_max;
    unsigned accumulator_bits;
    int split;                        /* products are added as two halves of radix bits */
    size_t digit_bytes;               /* of a table's digit */
    size_t picked;                    /* entries that the scan of a table reads at once */
    int (*available)(void);
    int (*fill)(comb *table, const uint64_t *base);
    int (*encrypt)(const comb *table, const uint8_t *exponents, const uint64_t *messages,
                   size_t message_words, size_t count, uint8_t *out, size_t width);
    int (*decrypt)(const prime *key, const uint8_t *numbers, size_t width, size_t count,
                   uint64_t *out, size_t out_words);
    int (*multiply)(const modulus *n, uint64_t *totals, const uint8_t *numbers, size_t width,
                    size_t count);
    int (*finish)(const modulus *n, uint64_t *totals, size_t factors, uint8_t *out,
                  size_t width, size_t count);
    int (*product)(const modulus *n, const uint8_t *numbers, size_t width, size_t count,
                   uint64_t *out);
};

extern const kernel kernel_portable, kernel_avx2, kernel_ifma, kernel_ifma_emulated;

/* limbs.c */
void *take(size_t count, size_t bytes); /* zeroed, 64-byte aligned; NULL if there is none */
void drop(void *memory, size_t count, size_t bytes); /* wipes before it frees */
void wipe(void *memory, size_t bytes);
int modulus_make(modulus *m, const kernel *k, const uint64_t *number, size_t words);
void modulus_drop(modulus *m);
void power_of_two(uint64_t *out, const modulus *m, size_t exponent); /* mod n, words */
void pair_power_of_two(uint64_t *out, const modulus *m, size_t exponent); /* mod n^2, 2 words */
void to_digits(uint64_t *digits, size_t count, size_t stride, unsigned radix, const uint64_t *words,
               size_t n_words, size_t first_bit);
void from_digits(uint64_t *words, size_t n_words, const uint64_t *digits, size_t count,
                 size_t stride, unsigned radix);
void read_big_endian(uint64_t *words, size_t n_words, const uint8_t *bytes, size_t width);
void write_big_endian(uint8_t *bytes, size_t width, const uint64_t *words, size_t n_words);
/* Canonical A, B (words + 1 each, the last zero) of a pair below 2n whose digits lie `stride` apart. */
void canonical_pair(uint64_t *low, uint64_t *high, const modulus *m, const uint64_t *digits,
                    size_t stride);
void pair_value(uint64_t *out, const uint64_t *low, const uint64_t *high, const modulus *m);
/* x -= n if x >= n, without a branch; x has `x_words` >= `words`. */
uint64_t reduce_once(uint64_t *x, const uint64_t *n, size_t words, size_t x_words);
/* out = x y / 2^(64 words) mod n, for x, y < n; `room` has words + 2. */
void montgomery_words(uint64_t *out, const uint64_t *x, const uint64_t *y, const modulus *m,
                      uint64_t *room);

#endif
