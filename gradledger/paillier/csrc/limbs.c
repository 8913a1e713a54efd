/* Numbers as 64-bit words, least first. Nothing here branches on a number's value. */
#include <stdlib.h>
#include <string.h>

#include "lanes.h"

typedef unsigned __int128 uint128;

void wipe(void *memory, size_t bytes)
{
    static void *(*const volatile set)(void *, int, size_t) = memset;
    if (memory) set(memory, 0, bytes);
}

void *take(size_t count, size_t bytes)
{
    if (bytes && count > SIZE_MAX / 2 / bytes) return NULL;
    const size_t size = (count * bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, size ? size : 64);
    if (memory) memset(memory, 0, size);
    return memory;
}

void drop(void *memory, size_t count, size_t bytes)
{
    wipe(memory, count * bytes);
    free(memory);
}

/* All ones if x < n, else zero; x has `x_words` words, n has `words`. */
static uint64_t below(const uint64_t *x, size_t x_words, const uint64_t *n, size_t words)
{
    uint64_t borrow = 0;
    for (size_t i = 0; i < x_words; i++) {
        const uint128 rest = (uint128)x[i] - (i < words ? n[i] : 0) - borrow;
        borrow = (uint64_t)(rest >> 64) & 1;
    }
    return 0 - borrow;
}

uint64_t reduce_once(uint64_t *x, const uint64_t *n, size_t words, size_t x_words)
{
    const uint64_t keep = below(x, x_words, n, words);
    uint64_t borrow = 0;
    for (size_t i = 0; i < x_words; i++) {
        const uint128 rest = (uint128)x[i] - ((i < words ? n[i] : 0) & ~keep) - borrow;
        x[i] = (uint64_t)rest;
        borrow = (uint64_t)(rest >> 64) & 1;
    }
    return ~keep & 1;
}

/* x = 2 x + bit mod n; x has words + 1 words. Returns whether n was subtracted. */
static uint64_t double_modulo(uint64_t *x, uint64_t bit, const modulus *m)
{
    for (size_t i = 0; i <= m->words; i++) {
        const uint64_t next = x[i] >> 63;
        x[i] = x[i] << 1 | bit;
        bit = next;
    }
    return reduce_once(x, m->number, m->words, m->words + 1);
}

void power_of_two(uint64_t *out, const modulus *m, size_t exponent)
{
    uint64_t *x = take(m->words + 1, 8);
    if (!x) abort();
    x[0] = 1;
    while (exponent--) double_modulo(x, 0, m);
    memcpy(out, x, 8 * m->words);
    drop(x, m->words + 1, 8);
}

void pair_power_of_two(uint64_t *out, const modulus *m, size_t exponent)
{
    uint64_t *low = take(2 * m->words + 2, 8), *high = low + m->words + 1;
    if (!low) abort();
    low[0] = 1;
    while (exponent--) double_modulo(high, double_modulo(low, 0, m), m);
    memcpy(out, low, 8 * m->words);
    memcpy(out + m->words, high, 8 * m->words);
    drop(low, 2 * m->words + 2, 8);
}

void to_digits(uint64_t *digits, size_t count, size_t stride, unsigned radix, const uint64_t *words,
               size_t n_words, size_t first_bit)
{
    const uint64_t mask = ((uint64_t)1 << radix) - 1;
    size_t i = 0, bit = first_bit;
    if (radix <= 57) /* a digit lies within eight bytes from its first one on */
        for (; i < count && bit / 8 + 8 <= 8 * n_words; i++, bit += radix) {
            uint64_t eight;
            memcpy(&eight, (const uint8_t *)words + bit / 8, 8);
            digits[i * stride] = eight >> bit % 8 & mask;
        }
    for (; i < count; i++, bit += radix) {
        const size_t word = bit / 64, shift = bit % 64;
        uint64_t digit = word < n_words ? words[word] >> shift : 0;
        if (shift + radix > 64 && word + 1 < n_words) digit |= words[word + 1] << (64 - shift);
        digits[i * stride] = digit & mask;
    }
}

void from_digits(uint64_t *words, size_t n_words, const uint64_t *digits, size_t count,
                 size_t stride, unsigned radix)
{
    memset(words, 0, 8 * n_words);
    for (size_t i = 0, bit = 0; i < count; i++, bit += radix) {
        const size_t word = bit / 64, shift = bit % 64;
        if (word < n_words) words[word] |= digits[i * stride] << shift;
        if (shift + radix > 64 && word + 1 < n_words)
            words[word + 1] |= digits[i * stride] >> (64 - shift);
    }
}

void read_big_endian(uint64_t *words, size_t n_words, const uint8_t *bytes, size_t width)
{
    size_t left = width;
    for (size_t i = 0; i < n_words; i++) {
        uint64_t word = 0;
        if (left >= 8) {
            memcpy(&word, bytes + left - 8, 8);
            word = __builtin_bswap64(word);
            left -= 8;
        } else {
            for (unsigned shift = 0; left; shift += 8) word |= (uint64_t)bytes[--left] << shift;
        }
        words[i] = word;
    }
}

void write_big_endian(uint8_t *bytes, size_t width, const uint64_t *words, size_t n_words)
{
    for (size_t i = 0; i < width; i++) {
        const size_t word = i / 8;
        bytes[width - 1 - i] = word < n_words ? (uint8_t)(words[word] >> i % 8 * 8) : 0;
    }
}

void canonical_pair(uint64_t *low, uint64_t *high, const modulus *m, const uint64_t *digits,
                    size_t stride)
{
    const size_t words = m->words + 1;
    from_digits(low, words, digits, m->limbs, stride, m->radix);
    from_digits(high, words, digits + m->limbs * stride, m->limbs, stride, m->radix);
    uint64_t carry = reduce_once(low, m->number, m->words, words);
    for (size_t i = 0; i < words; i++) {
        const uint128 sum = (uint128)high[i] + carry;
        high[i] = (uint64_t)sum;
        carry = (uint64_t)(sum >> 64);
    }
    reduce_once(high, m->number, m->words, words); /* it was at most 2n */
    reduce_once(high, m->number, m->words, words);
}

void pair_value(uint64_t *out, const uint64_t *low, const uint64_t *high, const modulus *m)
{
    memcpy(out, low, 8 * m->words);
    memset(out + m->words, 0, 8 * m->words);
    for (size_t i = 0; i < m->words; i++) {
        uint64_t carry = 0;
        for (size_t j = 0; j < m->words; j++) {
            const uint128 sum = (uint128)high[i] * m->number[j] + out[i + j] + carry;
            out[i + j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        out[i + m->words] = carry;
    }
}

void montgomery_words(uint64_t *out, const uint64_t *x, const uint64_t *y, const modulus *m,
                      uint64_t *room)
{
    const size_t words = m->words;
    memset(room, 0, 8 * (words + 2));
    for (size_t i = 0; i < words; i++) {
        uint64_t carry = 0;
        for (size_t j = 0; j < words; j++) {
            const uint128 sum = (uint128)x[i] * y[j] + room[j] + carry;
            room[j] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        uint128 top = (uint128)room[words] + carry;
        room[words] = (uint64_t)top;
        room[words + 1] = (uint64_t)(top >> 64);
        const uint64_t digit = room[0] * m->word_inverse;
        carry = (uint64_t)(((uint128)digit * m->number[0] + room[0]) >> 64);
        for (size_t j = 1; j < words; j++) {
            const uint128 sum = (uint128)digit * m->number[j] + room[j] + carry;
            room[j - 1] = (uint64_t)sum;
            carry = (uint64_t)(sum >> 64);
        }
        top = (uint128)room[words] + carry;
        room[words - 1] = (uint64_t)top;
        room[words] = room[words + 1] + (uint64_t)(top >> 64);
    }
    reduce_once(room, m->number, words, words + 1);
    memcpy(out, room, 8 * words);
}

/* The radix of a kernel that multiplies fastest, and how many block products an accumulator holds. */
static void choose_radix(modulus *m, const kernel *k)
{
    double least = 0;
    for (unsigned radix = k->radix_min; radix <= k->radix_max; radix++) {
        const size_t digits = (m->bits + SPARE_BITS + radix - 1) / radix;
        const size_t limbs = (digits + k->block - 1) / k->block * k->block;
        size_t chunk = SIZE_MAX; /* of a split product: 4,096 halves fit, at most 4 limbs come */
        if (!k->split) {
            const unsigned room = k->accumulator_bits - 2 * radix;
            chunk = (((size_t)1 << (room < 32 ? room : 32)) - 1) / k->block;
        }
        /* A carry costs about as much as two thirds of a block product. */
        const double cost = (double)limbs * (double)limbs * (1 + 0.67 / (double)chunk);
        if (!least || cost < least) {
            least = cost;
            m->radix = radix;
            m->limbs = limbs;
            m->chunk = chunk < UINT32_MAX ? (unsigned)chunk : UINT32_MAX;
        }
    }
}

int modulus_make(modulus *m, const kernel *k, const uint64_t *number, size_t words)
{
    memset(m, 0, sizeof *m);
    while (words && !number[words - 1]) words--;
    if (!words || !(number[0] & 1)) return -1;
    m->words = words;
    m->bits = 64 * words - (size_t)__builtin_clzll(number[words - 1]);
    choose_radix(m, k);
    m->mask = ((uint64_t)1 << m->radix) - 1;
    uint64_t inverse = number[0]; /* right modulo 8; each step doubles the bits */
    for (int i = 0; i < 5; i++) inverse *= 2 - number[0] * inverse;
    m->word_inverse = 0 - inverse;
    m->inverse = m->word_inverse & m->mask;
    m->number = take(words, 8);
    m->digits = take(m->limbs, 8);
    m->offset = take(m->limbs, 8);
    uint64_t *rest = take(words + 1, 8);
    if (!m->number || !m->digits || !m->offset || !rest) {
        drop(rest, words + 1, 8);
        modulus_drop(m);
        return -1;
    }
    memcpy(m->number, number, 8 * words);
    to_digits(m->digits, m->limbs, 1, m->radix, m->number, words, 0);
    /* -(R - 1) = 1 - R: n + 1 - (R mod n), which is at most n. */
    power_of_two(rest, m, m->radix * m->limbs);
    uint64_t borrow = 0, carry = 1;
    for (size_t i = 0; i <= words; i++) {
        const uint128 less = (uint128)(i < words ? number[i] : 0) - rest[i] - borrow;
        borrow = (uint64_t)(less >> 64) & 1;
        const uint128 sum = (uint128)(uint64_t)less + carry;
        rest[i] = (uint64_t)sum;
        carry = (uint64_t)(sum >> 64);
    }
    to_digits(m->offset, m->limbs, 1, m->radix, rest, words + 1, 0);
    drop(rest, words + 1, 8);
    return 0;
}

void modulus_drop(modulus *m)
{
    drop(m->number, m->words, 8);
    drop(m->digits, m->limbs, 8);
    drop(m->offset, m->limbs, 8);
    wipe(m, sizeof *m);
}
