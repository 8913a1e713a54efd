/* The arithmetic, written once over a thin layer of lanes; each lanes_*.c includes it.
 *
 * The includer defines: BLOCK, LANES, SPLIT (products come in two halves); the types V (LANES digits), A
 * (LANES accumulators) and DIGIT (of a table); V_LOAD, V_STORE, V_ALL, V_ADD, V_SUB, V_AND, V_OR,
 * V_EQUAL; A_ZERO, A_ADD, A_DIGIT, A_PLUS_DIGIT, A_SHIFT, A_MASK, QUOTIENT, MULTIPLY_LOW,
 * MULTIPLY_HIGH; and for the scan of a table MASK, MASK_OF(index, i), which lanes want one of the
 * PICKED entries from i PICKED on, and PICK, which adds these.
 *
 * Pairs: with S = A + B n, T = C + D n and A C + m n = t R, the Montgomery product is
 *     S T / R = t + ((A D + B C - m) / R) n   modulo n^2,
 * which takes the products AC, AD, BC and two reductions by n: five of n's length squared in place
 * of the eight of a Montgomery product modulo n^2. Digits are proper (below 2^radix) between
 * operations; values stay below 2n and are never compared on the way.
 */
#include <string.h>

#include "lanes.h"

#define PICKS_MAX ((1 << TEETH_MAX) / PICKED)
#define INLINE static inline __attribute__((always_inline))
#define COLUMNS (2 * BLOCK)
#ifndef UNROLL
#define UNROLL _Pragma("GCC unroll 16")
#endif

enum { NONE, PRODUCT, SQUARE, CROSS, TWICE };

/* Columns of one block product: x[0..BLOCK) times y[0..BLOCK). */
INLINE void block_product(A *low, A *high, const V *x, const V *y)
{
    V b[BLOCK];
    (void)high;
    UNROLL for (int j = 0; j < BLOCK; j++) b[j] = V_LOAD(y + j);
    UNROLL for (int i = 0; i < BLOCK; i++) {
        const V a = V_LOAD(x + i);
        UNROLL for (int j = 0; j < BLOCK; j++) {
            MULTIPLY_LOW(low[i + j], a, b[j]);
            if (SPLIT) MULTIPLY_HIGH(high[i + j], a, b[j]);
        }
    }
}

/* The same with digits that all lanes share. */
INLINE void block_product_shared(A *low, A *high, const V *x, const uint64_t *y)
{
    V b[BLOCK];
    (void)high;
    UNROLL for (int j = 0; j < BLOCK; j++) b[j] = V_ALL(y[j]);
    UNROLL for (int i = 0; i < BLOCK; i++) {
        const V a = V_LOAD(x + i);
        UNROLL for (int j = 0; j < BLOCK; j++) {
            MULTIPLY_LOW(low[i + j], a, b[j]);
            if (SPLIT) MULTIPLY_HIGH(high[i + j], a, b[j]);
        }
    }
}

/* Pass carries of the columns from `first` on one column up, all at once: there is room again. */
INLINE void carry_columns(A *low, const modulus *m, const int first)
{
    A carry[COLUMNS];
    (void)m;
    UNROLL for (int c = first; c < COLUMNS - 1; c++) {
        carry[c] = A_SHIFT(low[c], m);
        low[c] = A_MASK(low[c], m);
    }
    UNROLL for (int c = first; c < COLUMNS - 1; c++) low[c + 1] = A_ADD(low[c + 1], carry[c]);
}

#define SPEND(products)                                \
    do {                                               \
        if (!SPLIT) {                                  \
            if (room < (products)) {                   \
                carry_columns(low, m, 0);              \
                room = m->chunk;                       \
            }                                          \
            room -= (products);                        \
        }                                              \
    } while (0)

/* out = (products + wide + (R - 1 - minus) + offset) / R modulo n, below 2n; its quotient digits
 * are left in `quotient`. `kind` says which products: x y, x^2, x y + u w, or 2 x y. `minus` and
 * `wide` may be null. `out` may be any of the factors: a digit is written after its last use. */
INLINE void reduce(const modulus *m, V *out, V *quotient, int kind, const V *x, const V *y,
                   const V *u, const V *w, const V *minus, const V *wide)
{
    const size_t blocks = m->limbs / BLOCK;
    A in[BLOCK];
    UNROLL for (int j = 0; j < BLOCK; j++) in[j] = A_ZERO();
    for (size_t k = 0; k < 2 * blocks; k++) {
        const size_t first = k < blocks ? 0 : k - blocks + 1;
        const size_t end = k < blocks ? k + 1 : blocks;
        A low[COLUMNS], high[COLUMNS];
        size_t room = m->chunk - 1; /* one block product is kept for what comes in */
        UNROLL for (int c = 0; c < COLUMNS; c++) low[c] = high[c] = A_ZERO();
        if (kind == PRODUCT) {
            for (size_t i = first; i < end; i++) {
                SPEND(1);
                block_product(low, high, x + i * BLOCK, y + (k - i) * BLOCK);
            }
        } else if (kind == CROSS) {
            for (size_t i = first; i < end; i++) {
                SPEND(2);
                block_product(low, high, x + i * BLOCK, y + (k - i) * BLOCK);
                block_product(low, high, u + i * BLOCK, w + (k - i) * BLOCK);
            }
        } else if (kind == TWICE || kind == SQUARE) {
            const size_t stop = kind == TWICE ? end : (k + 1) / 2;
            for (size_t i = first; i < stop; i++) {
                SPEND(2);
                block_product(low, high, x + i * BLOCK, y + (k - i) * BLOCK);
            }
            UNROLL for (int c = 0; c < COLUMNS; c++) {
                low[c] = A_ADD(low[c], low[c]);
                if (SPLIT) high[c] = A_ADD(high[c], high[c]);
            }
            if (kind == SQUARE && k % 2 == 0) { /* first <= k / 2 < end, for k <= 2 blocks - 2 */
                SPEND(1);
                block_product(low, high, x + k / 2 * BLOCK, x + k / 2 * BLOCK);
            }
        }
        UNROLL for (int j = 0; j < BLOCK; j++) low[j] = A_ADD(low[j], in[j]);
        if (minus && k < blocks)
            UNROLL for (int j = 0; j < BLOCK; j++) {
                const V rest = V_SUB(V_ALL(m->mask), V_LOAD(minus + k * BLOCK + j));
                low[j] = A_PLUS_DIGIT(low[j], V_ADD(rest, V_ALL(m->offset[k * BLOCK + j])));
            }
        if (wide)
            UNROLL for (int j = 0; j < BLOCK; j++)
                low[j] = A_PLUS_DIGIT(low[j], V_LOAD(wide + k * BLOCK + j));
        for (size_t i = first; i < (k < blocks ? k : blocks); i++) {
            SPEND(1);
            block_product_shared(low, high, quotient + i * BLOCK, m->digits + (k - i) * BLOCK);
        }
        if (SPLIT)
            UNROLL for (int c = 0; c < COLUMNS - 1; c++) low[c + 1] = A_ADD(low[c + 1], high[c]);
        if (k < blocks) {
            SPEND(1);
            UNROLL for (int j = 0; j < BLOCK; j++) {
                const V digit = QUOTIENT(low[j], m);
                V_STORE(quotient + k * BLOCK + j, digit);
                UNROLL for (int i = 0; i < BLOCK; i++) {
                    const V b = V_ALL(m->digits[i]);
                    MULTIPLY_LOW(low[i + j], digit, b);
                    if (SPLIT) MULTIPLY_HIGH(low[i + j + 1], digit, b);
                }
                low[j + 1] = A_ADD(low[j + 1], A_SHIFT(low[j], m));
            }
        } else {
            UNROLL for (int j = 0; j < BLOCK; j++) {
                V_STORE(out + (k - blocks) * BLOCK + j, A_DIGIT(low[j], m));
                low[j + 1] = A_ADD(low[j + 1], A_SHIFT(low[j], m));
            }
        }
        if (!SPLIT) carry_columns(low, m, BLOCK);
        UNROLL for (int j = 0; j < BLOCK; j++) in[j] = low[BLOCK + j];
    }
}

/* Room for one operation: low half, and the quotient digits of both reductions. */
typedef struct {
    V *low, *first, *second;
} scratch;

static __attribute__((noinline)) void multiply_low(const modulus *m, V *out, V *quotient,
                                                   const V *x, const V *y)
{
    reduce(m, out, quotient, PRODUCT, x, y, x, y, NULL, NULL);
}

static __attribute__((noinline)) void square_low(const modulus *m, V *out, V *quotient, const V *x)
{
    reduce(m, out, quotient, SQUARE, x, x, x, x, NULL, NULL);
}

static __attribute__((noinline)) void multiply_high(const modulus *m, V *out, V *quotient,
                                                    const V *x, const V *y, const V *minus)
{
    const size_t limbs = m->limbs;
    reduce(m, out, quotient, CROSS, x, y + limbs, x + limbs, y, minus, NULL);
}

static __attribute__((noinline)) void square_high(const modulus *m, V *out, V *quotient,
                                                  const V *x, const V *minus)
{
    reduce(m, out, quotient, TWICE, x, x + m->limbs, x, x, minus, NULL);
}

static __attribute__((noinline)) void reduce_wide(const modulus *m, V *out, V *quotient,
                                                  const V *wide)
{
    reduce(m, out, quotient, NONE, wide, wide, wide, wide, NULL, wide);
}

static __attribute__((noinline)) void reduce_minus(const modulus *m, V *out, V *quotient,
                                                   const V *minus)
{
    reduce(m, out, quotient, NONE, minus, minus, minus, minus, minus, NULL);
}

/* x *= y, pairs. */
static void pair_multiply(const modulus *m, V *x, const V *y, const scratch *s)
{
    multiply_low(m, s->low, s->first, x, y);
    multiply_high(m, x + m->limbs, s->second, x, y, s->first);
    memcpy(x, s->low, m->limbs * sizeof(V));
}

/* x *= x, a pair: three and a half products in place of five. */
static void pair_square(const modulus *m, V *x, const scratch *s)
{
    square_low(m, s->low, s->first, x);
    square_high(m, x + m->limbs, s->second, x, s->first);
    memcpy(x, s->low, m->limbs * sizeof(V));
}

static void pair_from_shared(V *out, const uint64_t *digits, size_t count)
{
    for (size_t i = 0; i < count; i++) V_STORE(out + i, V_ALL(digits[i]));
}

/* Make digits proper again after sums of a few numbers. */
static void carry_digits(const modulus *m, V *x)
{
    uint64_t *digits = (uint64_t *)x;
    for (size_t lane = 0; lane < LANES; lane++) {
        uint64_t carry = 0;
        for (size_t i = 0; i < m->limbs; i++) {
            const uint64_t sum = digits[i * LANES + lane] + carry;
            digits[i * LANES + lane] = sum & m->mask;
            carry = sum >> m->radix;
        }
    }
}

/* Write `count` pairs, out of Montgomery form, as numbers modulo n^2, big endian, `width` bytes each; `words` has
 * room for 4 m->words + 2. */
static void write_pairs(uint8_t *out, size_t width, size_t count, const modulus *m, const V *pairs,
                        uint64_t *words)
{
    uint64_t *low = words, *high = low + m->words + 1, *value = high + m->words + 1;
    for (size_t lane = 0; lane < count; lane++) {
        canonical_pair(low, high, m, (const uint64_t *)pairs + lane, LANES);
        pair_value(value, low, high, m);
        write_big_endian(out + lane * width, width, value, 2 * m->words);
    }
}

/* ---- comb table ---------------------------------------------------------------------------- */

/* Where a digit of an entry stands in its block: entries that are read at once lie side by side for
 * the scan; digits of one entry do where entries are read at their own addresses. */
INLINE size_t place_of(const comb *c, size_t entry, size_t digit)
{
    return c->fast ? entry * 2 * c->n.limbs + digit : (digit << c->teeth) + entry;
}

INLINE DIGIT *table_block(const comb *c, size_t block)
{
    return (DIGIT *)c->table + (block << c->teeth) * 2 * c->n.limbs;
}

static void put_entry(const comb *c, size_t block, size_t entry, const V *pair, size_t lane)
{
    const uint64_t *digits = (const uint64_t *)pair + lane;
    for (size_t i = 0; i < 2 * c->n.limbs; i++)
        table_block(c, block)[place_of(c, entry, i)] = (DIGIT)digits[i * LANES];
}

/* Read one entry per lane at the lanes' own addresses. */
static void look_up_fast(const comb *c, size_t block, const uint64_t *indexes, V *pair)
{
    const DIGIT *table = table_block(c, block);
    uint64_t *digits = (uint64_t *)pair;
    for (size_t lane = 0; lane < LANES; lane++)
        for (size_t i = 0; i < 2 * c->n.limbs; i++)
            digits[i * LANES + lane] = table[place_of(c, indexes[lane], i)];
}

/* Read one entry per lane by going through the whole block: no address depends on an index. */
static void look_up(const comb *c, size_t block, const uint64_t *indexes, V *pair)
{
    const DIGIT *here = table_block(c, block);
    const V index = V_LOAD((const V *)indexes);
    const size_t picks = ((size_t)1 << c->teeth) / PICKED;
    MASK is_here[PICKS_MAX];
    for (size_t i = 0; i < picks; i++) is_here[i] = MASK_OF(index, i);
    for (size_t digit = 0; digit < 2 * c->n.limbs; digit++) {
        V found = V_ALL(0);
        for (size_t i = 0; i < picks; i++, here += PICKED)
            found = PICK(found, is_here[i], index, here);
        V_STORE(pair + digit, found);
    }
    wipe(is_here, sizeof is_here);
}

static int scratch_take(scratch *s, size_t limbs)
{
    s->low = take(3 * limbs, sizeof(V));
    if (!s->low) return -1;
    s->first = s->low + limbs;
    s->second = s->first + limbs;
    return 0;
}

/* Fill the table from the base, a pair of plain words. */
static int kernel_fill(comb *c, const uint64_t *base)
{
    const modulus *m = &c->n;
    const size_t limbs = m->limbs, size = 2 * limbs, entries = (size_t)1 << c->teeth;
    const size_t bases = c->blocks * c->teeth, row_bits = c->blocks * c->depth;
    uint64_t *power = take(2 * m->words, 8), *digits = take(size, 8);
    uint64_t *kept = take(bases * size, 8); /* hs^(2^(row_bits row + depth block)) */
    V *x = take(size, sizeof(V)), *y = take(size, sizeof(V)), *all = take(entries * size, sizeof(V));
    scratch s = {0};
    int status = -1;
    if (!power || !digits || !kept || !x || !y || !all || scratch_take(&s, limbs)) goto done;

    pair_power_of_two(power, m, 2 * m->radix * limbs); /* R^2 takes the base to Montgomery form */
    to_digits(digits, limbs, 1, m->radix, power, m->words, 0);
    to_digits(digits + limbs, limbs, 1, m->radix, power + m->words, m->words, 0);
    pair_from_shared(x, digits, size);
    to_digits(digits, limbs, 1, m->radix, base, m->words, 0);
    to_digits(digits + limbs, limbs, 1, m->radix, base + m->words, m->words, 0);
    pair_from_shared(y, digits, size);
    pair_multiply(m, x, y, &s);
    for (size_t bit = 0; bit < c->teeth * row_bits; bit++) {
        const size_t row = bit / row_bits, block = bit % row_bits / c->depth;
        if (bit % row_bits % c->depth == 0)
            for (size_t i = 0; i < size; i++)
                kept[(block * c->teeth + row) * size + i] = ((uint64_t *)x)[i * LANES];
        if (bit + 1 < c->teeth * row_bits) pair_square(m, x, &s);
    }

    pair_power_of_two(power, m, m->radix * limbs);
    to_digits(digits, limbs, 1, m->radix, power, m->words, 0);
    to_digits(digits + limbs, limbs, 1, m->radix, power + m->words, m->words, 0);
    for (size_t block = 0; block < c->blocks; block += LANES) {
        pair_from_shared(all, digits, size);
        for (size_t entry = 1; entry < entries; entry++) {
            size_t row = c->teeth - 1;
            while (!(entry >> row)) row--;
            V *here = all + entry * size;
            for (size_t lane = 0; lane < LANES; lane++) {
                const size_t of = block + lane < c->blocks ? block + lane : block;
                for (size_t i = 0; i < size; i++)
                    ((uint64_t *)here)[i * LANES + lane] = kept[(of * c->teeth + row) * size + i];
            }
            pair_multiply(m, here, all + (entry ^ (size_t)1 << row) * size, &s);
        }
        for (size_t lane = 0; lane < LANES && block + lane < c->blocks; lane++)
            for (size_t entry = 0; entry < entries; entry++)
                put_entry(c, block + lane, entry, all + entry * size, lane);
    }
    status = 0;
done:
    drop(power, 2 * m->words, 8);
    drop(digits, size, 8);
    drop(kept, bases * size, 8);
    drop(x, size, sizeof(V));
    drop(y, size, sizeof(V));
    drop(all, entries * size, sizeof(V));
    drop(s.low, 3 * limbs, sizeof(V));
    return status;
}

/* The index of column (block, depth): one bit of each row of the exponent. */
static uint64_t column_index(const comb *c, const uint8_t *exponent, size_t block, size_t depth)
{
    uint64_t index = 0;
    for (size_t row = 0; row < c->teeth; row++) {
        const size_t bit = (row * c->blocks + block) * c->depth + depth;
        if (bit < c->exponent_bits)
            index |= (uint64_t)(exponent[bit / 8] >> bit % 8 & 1) << row;
    }
    return index;
}

/* (1 + m n) hs^a for `count` messages m and exponents a. */
static int kernel_encrypt(const comb *c, const uint8_t *exponents, const uint64_t *messages,
                          size_t message_words, size_t count, uint8_t *out, size_t width)
{
    const modulus *m = &c->n;
    const size_t limbs = m->limbs, size = 2 * limbs, exponent_bytes = (c->exponent_bits + 7) / 8;
    V *x = take(size, sizeof(V)), *y = take(size, sizeof(V)), *indexes = take(1, sizeof(V));
    uint64_t *words = take(4 * m->words + 2, 8);
    scratch s = {0};
    int status = -1;
    if (!x || !y || !indexes || !words || scratch_take(&s, limbs)) goto done;
    for (size_t start = 0; start < count; start += LANES) {
        const size_t here = count - start < LANES ? count - start : LANES;
        for (size_t step = 0; step < c->depth; step++) {
            if (step) pair_square(m, x, &s);
            for (size_t block = 0; block < c->blocks; block++) {
                for (size_t lane = 0; lane < here; lane++)
                    ((uint64_t *)indexes)[lane] =
                        column_index(c, exponents + (start + lane) * exponent_bytes, block,
                                     c->depth - 1 - step);
                V *entry = step || block ? y : x;
                if (c->fast)
                    look_up_fast(c, block, (const uint64_t *)indexes, entry);
                else
                    look_up(c, block, (const uint64_t *)indexes, entry);
                if (entry == y) pair_multiply(m, x, y, &s);
            }
        }
        /* Times (1 + m n), and out of Montgomery form, in one. */
        memset(y, 0, size * sizeof(V));
        for (size_t lane = 0; lane < here; lane++) {
            ((uint64_t *)y)[lane] = 1;
            to_digits((uint64_t *)(y + limbs) + lane, limbs, LANES, m->radix,
                      messages + (start + lane) * message_words, message_words, 0);
        }
        pair_multiply(m, x, y, &s);
        write_pairs(out + start * width, width, here, m, x, words);
    }
    status = 0;
done:
    drop(x, size, sizeof(V));
    drop(y, size, sizeof(V));
    drop(indexes, 1, sizeof(V));
    drop(words, 4 * m->words + 2, 8);
    drop(s.low, 3 * limbs, sizeof(V));
    return status;
}

/* ---- decryption ---------------------------------------------------------------------------- */

#define WINDOW 4

/* Digits of `count` big-endian numbers from the piece's first digit on, one number per lane. */
static void read_piece(const modulus *m, V *out, uint64_t *words, size_t n_words, size_t piece)
{
    const size_t lane_words = n_words;
    for (size_t lane = 0; lane < LANES; lane++)
        to_digits((uint64_t *)out + lane, m->limbs, LANES, m->radix, words + lane * lane_words,
                  n_words, piece * m->limbs * m->radix);
}

static void read_numbers(uint64_t *words, size_t n_words, const uint8_t *numbers, size_t width,
                         size_t count)
{
    for (size_t lane = 0; lane < LANES; lane++)
        if (lane < count)
            read_big_endian(words + lane * n_words, n_words, numbers + lane * width, width);
        else
            memset(words + lane * n_words, 0, 8 * n_words);
}

/* The plaintext modulo p of each number: ((c^(p-1) mod p^2) - 1) / p x scale mod p. */
static int kernel_decrypt(const prime *k, const uint8_t *numbers, size_t width, size_t count,
                          uint64_t *out, size_t out_words)
{
    const modulus *m = &k->p;
    const size_t limbs = m->limbs, size = 2 * limbs, entries = 1 << WINDOW;
    const size_t n_words = (width + 7) / 8;
    V *x = take(size, sizeof(V)), *y = take(size, sizeof(V)), *one = take(size, sizeof(V));
    V *table = take(entries * size, sizeof(V));
    uint64_t *words = take(LANES * n_words, 8), *plain = take(2 * m->words + 2, 8);
    uint64_t *expected = take(m->words, 8);
    scratch s = {0};
    int status = -1;
    if (!x || !y || !one || !table || !words || !plain || !expected || scratch_take(&s, limbs))
        goto done;
    from_digits(expected, m->words, k->scale, limbs, 1, m->radix);
    pair_from_shared(one, k->one, size);
    uint64_t wrong = 0;
    for (size_t start = 0; start < count; start += LANES) {
        const size_t here = count - start < LANES ? count - start : LANES;
        read_numbers(words, n_words, numbers + start * width, width, here);
        /* c = sum of c_i R^i; each c_i R^i enters Montgomery form as c_i times R^(i+2). */
        V *base = table + size;
        memset(base, 0, size * sizeof(V));
        for (size_t piece = 0; piece < k->pieces; piece++) {
            memset(x, 0, size * sizeof(V));
            read_piece(m, x, words, n_words, piece);
            pair_from_shared(y, k->shifts + piece * size, size);
            pair_multiply(m, x, y, &s);
            for (size_t i = 0; i < size; i++)
                V_STORE(base + i, V_ADD(V_LOAD(base + i), V_LOAD(x + i)));
        }
        carry_digits(m, base);
        carry_digits(m, base + limbs);
        pair_multiply(m, base, one, &s); /* below 2p again */
        memcpy(table, one, size * sizeof(V));
        for (size_t entry = 2; entry < entries; entry++) {
            memcpy(table + entry * size, table + (entry - 1) * size, size * sizeof(V));
            pair_multiply(m, table + entry * size, base, &s);
        }
        const size_t windows = (k->exponent_bits + WINDOW - 1) / WINDOW;
        for (size_t window = windows; window-- > 0;) {
            uint64_t digit = 0;
            for (size_t bit = 0; bit < WINDOW; bit++) {
                const size_t of = window * WINDOW + bit;
                if (of < 64 * m->words) digit |= (k->exponent[of / 64] >> of % 64 & 1) << bit;
            }
            V is_it[1 << WINDOW];
            for (size_t entry = 0; entry < entries; entry++)
                is_it[entry] = V_EQUAL(V_ALL(digit), V_ALL(entry));
            V *factor = window + 1 == windows ? x : y;
            if (factor == y)
                for (size_t bit = 0; bit < WINDOW; bit++) pair_square(m, x, &s);
            for (size_t i = 0; i < size; i++) {
                V found = V_ALL(0);
                for (size_t entry = 0; entry < entries; entry++)
                    found = V_OR(found, V_AND(is_it[entry], V_LOAD(table + entry * size + i)));
                V_STORE(factor + i, found);
            }
            if (factor == y) pair_multiply(m, x, y, &s);
        }
        /* 1 + L p times `scale`, and out of Montgomery form: scale + (L scale mod p) p. */
        memset(y, 0, size * sizeof(V));
        pair_from_shared(y, k->scale, limbs);
        pair_multiply(m, x, y, &s);
        for (size_t lane = 0; lane < here; lane++) {
            uint64_t *low = plain, *high = plain + m->words + 1;
            canonical_pair(low, high, m, (const uint64_t *)x + lane, LANES);
            for (size_t i = 0; i < m->words; i++) wrong |= low[i] ^ expected[i];
            memset(out + (start + lane) * out_words, 0, 8 * out_words);
            memcpy(out + (start + lane) * out_words, high, 8 * m->words);
        }
    }
    status = wrong ? 1 : 0;
done:
    drop(x, size, sizeof(V));
    drop(y, size, sizeof(V));
    drop(one, size, sizeof(V));
    drop(table, entries * size, sizeof(V));
    drop(words, LANES * n_words, 8);
    drop(plain, 2 * m->words + 2, 8);
    drop(expected, m->words, 8);
    drop(s.low, 3 * limbs, sizeof(V));
    return status;
}

/* ---- sums and checks ----------------------------------------------------------------------- */

/* totals *= numbers / R^2 modulo n^2, place by place; `totals` are pairs, V[groups][2 limbs].
 *
 * A number c < n^2 becomes a pair by two reductions: with c + m n = t R, c / R = t + (-m / R) n. So
 * a factor costs seven of n's length squared, where a Montgomery product modulo n^2 takes eight. */
static int kernel_multiply(const modulus *m, uint64_t *totals, const uint8_t *numbers, size_t width,
                           size_t count)
{
    const size_t limbs = m->limbs, size = 2 * limbs, n_words = (width + 7) / 8;
    V *x = take(size, sizeof(V)), *total = (V *)totals;
    uint64_t *words = take(LANES * n_words, 8);
    scratch s = {0};
    int status = -1;
    if (!x || !words || scratch_take(&s, limbs)) goto done;
    for (size_t start = 0; start < count; start += LANES, total += size) {
        const size_t here = count - start < LANES ? count - start : LANES;
        read_numbers(words, n_words, numbers + start * width, width, here);
        read_piece(m, x, words, n_words, 0);
        read_piece(m, x + limbs, words, n_words, 1);
        reduce_wide(m, x, s.first, x);
        reduce_minus(m, x + limbs, s.second, s.first);
        pair_multiply(m, total, x, &s);
    }
    status = 0;
done:
    drop(x, size, sizeof(V));
    drop(words, LANES * n_words, 8);
    drop(s.low, 3 * limbs, sizeof(V));
    return status;
}

/* The products themselves, from totals that began at 1 and took `factors` numbers. */
static int kernel_finish(const modulus *m, uint64_t *totals, size_t factors, uint8_t *out,
                         size_t width, size_t count)
{
    const size_t limbs = m->limbs, size = 2 * limbs;
    V *base = take(size, sizeof(V)), *power = take(size, sizeof(V)), *total = (V *)totals;
    uint64_t *words = take(4 * m->words + 2, 8), *digits = take(size, 8);
    scratch s = {0};
    int status = -1;
    if (!base || !power || !words || !digits || scratch_take(&s, limbs)) goto done;
    /* Each factor was divided by R^2, and the product below will be by R: with R^(2 factors) in
     * Montgomery form, R^(2 factors + 1), nothing is missing. */
    for (size_t exponent = 2; exponent > 0; exponent--) {
        pair_power_of_two(words, m, exponent * m->radix * limbs);
        to_digits(digits, limbs, 1, m->radix, words, m->words, 0);
        to_digits(digits + limbs, limbs, 1, m->radix, words + m->words, m->words, 0);
        pair_from_shared(exponent == 2 ? base : power, digits, size);
    }
    for (size_t rest = 2 * factors; rest; rest >>= 1) {
        if (rest & 1) pair_multiply(m, power, base, &s);
        pair_square(m, base, &s);
    }
    for (size_t start = 0; start < count; start += LANES, total += size) {
        const size_t here = count - start < LANES ? count - start : LANES;
        pair_multiply(m, total, power, &s);
        write_pairs(out + start * width, width, here, m, total, words);
    }
    status = 0;
done:
    drop(base, size, sizeof(V));
    drop(power, size, sizeof(V));
    drop(words, 4 * m->words + 2, 8);
    drop(digits, size, 8);
    drop(s.low, 3 * limbs, sizeof(V));
    return status;
}

/* A number that shares a factor with n exactly if one of the numbers does; below n. */
static int kernel_product(const modulus *m, const uint8_t *numbers, size_t width, size_t count,
                          uint64_t *out)
{
    const size_t limbs = m->limbs, n_words = (width + 7) / 8;
    V *x = take(2 * limbs, sizeof(V)), *total = take(limbs, sizeof(V));
    uint64_t *words = take(LANES * n_words, 8), *product = take(m->words + 1, 8);
    scratch s = {0};
    int status = -1;
    if (!x || !total || !words || !product || scratch_take(&s, limbs)) goto done;
    for (size_t lane = 0; lane < LANES; lane++) ((uint64_t *)total)[lane] = 1;
    for (size_t start = 0; start < count; start += LANES) {
        const size_t here = count - start < LANES ? count - start : LANES;
        read_numbers(words, n_words, numbers + start * width, width, here);
        for (size_t lane = here; lane < LANES; lane++) words[lane * n_words] = 1;
        read_piece(m, x, words, n_words, 0);
        read_piece(m, x + limbs, words, n_words, 1);
        reduce_wide(m, x, s.second, x);
        multiply_low(m, s.low, s.first, total, x);
        memcpy(total, s.low, limbs * sizeof(V));
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        from_digits(product, m->words + 1, (const uint64_t *)total + lane, limbs, LANES, m->radix);
        reduce_once(product, m->number, m->words, m->words + 1);
        memcpy(out + lane * m->words, product, 8 * m->words);
    }
    status = 0;
done:
    drop(x, 2 * limbs, sizeof(V));
    drop(total, limbs, sizeof(V));
    drop(words, LANES * n_words, 8);
    drop(product, m->words + 1, 8);
    drop(s.low, 3 * limbs, sizeof(V));
    return status;
}

#define KERNEL_FIELDS(bits)                                                                     \
    .lanes = LANES, .block = BLOCK, .vector_bytes = sizeof(V), .accumulator_bits = (bits),      \
    .split = SPLIT, .digit_bytes = sizeof(DIGIT), .picked = PICKED, .fill = kernel_fill,        \
    .encrypt = kernel_encrypt, .decrypt = kernel_decrypt, .multiply = kernel_multiply,          \
    .finish = kernel_finish, .product = kernel_product
