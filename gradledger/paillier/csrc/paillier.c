/* What Python calls (native.py), by ctypes: no Python in here, so one binary serves every version.
 *
 * Numbers come as 64-bit words, least first; ciphertexts as `width` big-endian bytes each. Callers
 * check lengths. Functions return 0, or -1 when there is no memory or an argument is impossible,
 * unless they say otherwise.
 */
#include <math.h>
#include <string.h>

#include "paillier.h"

#define API 1
#define FAST_TEETH TEETH_MAX
#define FAST_BLOCKS 14

static const kernel *const KERNELS[] = {
#if defined(__x86_64__)
    &kernel_ifma,
    &kernel_avx2,
#endif
    &kernel_portable,
    &kernel_ifma_emulated,
};

#define KERNEL_COUNT (sizeof KERNELS / sizeof *KERNELS)

int gl_api(void) { return API; }

/* The name of kernel `index`, fastest first; NULL above the last one. */
const char *gl_kernel_name(size_t index)
{
    return index < KERNEL_COUNT ? KERNELS[index]->name : NULL;
}

int gl_kernel_available(size_t index)
{
    return index < KERNEL_COUNT && KERNELS[index]->available();
}

size_t gl_kernel_lanes(size_t index)
{
    return index < KERNEL_COUNT ? KERNELS[index]->lanes : 0;
}

/* ---- codes --------------------------------------------------------------------------------- */

/* Codes of values, as in docs/protocol.md, section 2.1: in double precision, operation by operation
 * (setup.py forbids the compiler to contract them), ties to even. Returns -1, or the place of the
 * first value that is not finite. */
#define QUANTISE(name, type)                                                                \
    int64_t name(const type *values, size_t count, double clip, uint16_t *codes)            \
    {                                                                                       \
        const double round = 6755399441055744.0; /* 1.5 x 2^52: a sum with it is rounded */ \
        for (size_t i = 0; i < count; i++) {                                                \
            double value = (double)values[i];                                               \
            if (!isfinite(value)) return (int64_t)i;                                        \
            value = value < -clip ? -clip : value > clip ? clip : value;                    \
            value += clip;                                                                  \
            value /= 2 * clip;                                                              \
            value *= 65535;                                                                 \
            value += round;                                                                 \
            value -= round;                                                                 \
            codes[i] = (uint16_t)value;                                                     \
        }                                                                                   \
        return -1;                                                                          \
    }

QUANTISE(gl_quantise_float, float)
QUANTISE(gl_quantise_double, double)

/* Plaintexts of `words` words each, `slots` codes of `slot_bits` bits in each of them. */
void gl_pack(const uint16_t *codes, size_t count, unsigned slot_bits, size_t slots,
                    uint64_t *messages, size_t words)
{
    for (size_t start = 0; start < count; start += slots, messages += words) {
        const size_t end = count - start < slots ? count : start + slots;
        size_t bit = 0;
        memset(messages, 0, 8 * words);
        for (size_t i = start; i < end; i++, bit += slot_bits) {
            const size_t word = bit / 64, shift = bit % 64;
            messages[word] |= (uint64_t)codes[i] << shift;
            if (shift > 48) messages[word + 1] |= (uint64_t)codes[i] >> (64 - shift);
        }
    }
}

/* ---- encryption ---------------------------------------------------------------------------- */

size_t gl_comb_bytes(const comb *c)
{
    return (c->blocks << c->teeth) * 2 * c->n.limbs * c->kernel->digit_bytes;
}

void gl_comb_free(comb *c)
{
    if (!c) return;
    drop(c->table, gl_comb_bytes(c), 1);
    modulus_drop(&c->n);
    drop(c, 1, sizeof *c);
}

/* A table of powers of `base`, a pair (A, B) of `words` words each, for exponents of
 * `exponent_bits` bits. `teeth` and `blocks` may be 0: the kernel's own. */
comb *gl_comb_new(size_t index, const uint64_t *n, size_t words, const uint64_t *base,
                         size_t exponent_bits, int fast, size_t teeth, size_t blocks)
{
    if (index >= KERNEL_COUNT || !KERNELS[index]->available() || !exponent_bits || teeth > TEETH_MAX)
        return NULL;
    comb *c = take(1, sizeof *c);
    if (!c) return NULL;
    const kernel *k = c->kernel = KERNELS[index];
    if (modulus_make(&c->n, k, n, words) || c->n.words != words) goto failed;
    c->fast = fast;
    c->teeth = teeth ? teeth : fast ? FAST_TEETH : k->teeth;
    blocks = blocks ? blocks : fast ? FAST_BLOCKS : k->blocks;
    if ((size_t)1 << c->teeth < k->picked) goto failed;
    c->exponent_bits = exponent_bits;
    c->depth = (exponent_bits + c->teeth * blocks - 1) / (c->teeth * blocks);
    c->blocks = (exponent_bits + c->teeth * c->depth - 1) / (c->teeth * c->depth);
    c->table = take(gl_comb_bytes(c), 1);
    if (c->table && k->fill(c, base) == 0) return c;
failed:
    gl_comb_free(c);
    return NULL;
}

/* `count` ciphertexts from exponents (little endian, whole bytes each) and messages below n. */
int gl_comb_encrypt(const comb *c, const uint8_t *exponents, const uint64_t *messages,
                           size_t message_words, size_t count, uint8_t *out, size_t width)
{
    return c->kernel->encrypt(c, exponents, messages, message_words, count, out, width);
}

/* ---- decryption ---------------------------------------------------------------------------- */

struct private_key {
    const kernel *kernel;
    prime of[2];
    uint64_t *lift; /* 2^(64 words) / p mod q, as words of q */
};

static int prime_make(prime *k, const kernel *by, const uint64_t *p, const uint64_t *scale,
                      size_t words, size_t number_bits)
{
    if (modulus_make(&k->p, by, p, words)) return -1;
    const modulus *m = &k->p;
    const size_t limbs = m->limbs, piece_bits = limbs * m->radix;
    k->pieces = (number_bits + piece_bits - 1) / piece_bits;
    k->exponent_bits = m->bits;
    k->exponent = take(m->words, 8);
    k->scale = take(limbs, 8);
    k->one = take(2 * limbs, 8);
    k->shifts = take(2 * limbs * k->pieces, 8);
    uint64_t *pair = take(2 * m->words, 8);
    int status = -1;
    if (!k->exponent || !k->scale || !k->one || !k->shifts || !pair) goto done;
    memcpy(k->exponent, m->number, 8 * m->words);
    k->exponent[0] -= 1; /* p is odd */
    to_digits(k->scale, limbs, 1, m->radix, scale, words, 0);
    for (size_t i = 0; i <= k->pieces; i++) {
        uint64_t *to = i ? k->shifts + (i - 1) * 2 * limbs : k->one;
        pair_power_of_two(pair, m, (i ? i + 1 : 1) * piece_bits);
        to_digits(to, limbs, 1, m->radix, pair, m->words, 0);
        to_digits(to + limbs, limbs, 1, m->radix, pair + m->words, m->words, 0);
    }
    status = 0;
done:
    drop(pair, 2 * m->words, 8);
    return status;
}

static void prime_drop(prime *k)
{
    drop(k->exponent, k->p.words, 8);
    drop(k->scale, k->p.limbs, 8);
    drop(k->one, 2 * k->p.limbs, 8);
    drop(k->shifts, 2 * k->p.limbs * k->pieces, 8);
    modulus_drop(&k->p);
}

void gl_private_free(private_key *key)
{
    if (!key) return;
    drop(key->lift, key->of[1].p.words, 8);
    prime_drop(&key->of[0]);
    prime_drop(&key->of[1]);
    drop(key, 1, sizeof *key);
}

/* The key of primes p < q, `words` words each. `scale_p` is 1 / -q mod p, `scale_q` 1 / -p mod q;
 * `inverse` is 1 / p mod q. */
private_key *gl_private_new(size_t index, const uint64_t *p, const uint64_t *q,
                                   const uint64_t *scale_p, const uint64_t *scale_q,
                                   const uint64_t *inverse, size_t words, size_t number_bits)
{
    if (index >= KERNEL_COUNT || !KERNELS[index]->available()) return NULL;
    private_key *key = take(1, sizeof *key);
    if (!key) return NULL;
    key->kernel = KERNELS[index];
    uint64_t *room = NULL;
    if (prime_make(&key->of[0], key->kernel, p, scale_p, words, number_bits)
        || prime_make(&key->of[1], key->kernel, q, scale_q, words, number_bits))
        goto failed;
    const modulus *m = &key->of[1].p;
    key->lift = take(m->words, 8);
    room = take(3 * m->words + 2, 8);
    if (!key->lift || !room) goto failed;
    power_of_two(room, m, 128 * m->words);
    montgomery_words(key->lift, room, inverse, m, room + m->words);
    drop(room, 3 * m->words + 2, 8);
    return key;
failed:
    gl_private_free(key);
    return NULL;
}

/* Plaintexts, `out_width` little-endian bytes each. Returns 1 if a number shares a factor with n. */
int gl_private_decrypt(const private_key *key, const uint8_t *numbers, size_t width,
                              size_t count, uint8_t *out, size_t out_width)
{
    const modulus *p = &key->of[0].p, *q = &key->of[1].p;
    const size_t words = q->words; /* p < q */
    const size_t value_words = p->words + words;
    uint64_t *of_p = take(count * words, 8), *of_q = take(count * words, 8);
    uint64_t *room = take(4 * words + 4 + value_words, 8);
    int status = -1;
    if (!of_p || !of_q || !room) goto done;
    status = key->kernel->decrypt(&key->of[0], numbers, width, count, of_p, words);
    if (status == 0)
        status = key->kernel->decrypt(&key->of[1], numbers, width, count, of_q, words);
    for (size_t i = 0; status == 0 && i < count; i++) {
        /* m = m_p + p ((m_q - m_p) / p mod q) */
        uint64_t *rest = room, *product = rest + words + 1, *value = product + 2 * words + 3;
        uint64_t borrow = 0;
        for (size_t j = 0; j < words; j++) { /* m_q + q - m_p, in (0, 2q) */
            const unsigned __int128 sum = (unsigned __int128)of_q[i * words + j] + q->number[j]
                                          + borrow;
            rest[j] = (uint64_t)sum;
            borrow = (uint64_t)(sum >> 64);
        }
        rest[words] = borrow;
        borrow = 0;
        for (size_t j = 0; j <= words; j++) {
            const unsigned __int128 less = (unsigned __int128)rest[j]
                                           - (j < words ? of_p[i * words + j] : 0) - borrow;
            rest[j] = (uint64_t)less;
            borrow = (uint64_t)(less >> 64) & 1;
        }
        reduce_once(rest, q->number, words, words + 1);
        montgomery_words(product, rest, key->lift, q, product + words);
        memset(value, 0, 8 * value_words);
        memcpy(value, of_p + i * words, 8 * p->words);
        for (size_t j = 0; j < words; j++) {
            uint64_t carry = 0;
            for (size_t l = 0; l < p->words; l++) {
                const unsigned __int128 sum = (unsigned __int128)product[j] * p->number[l]
                                              + value[j + l] + carry;
                value[j + l] = (uint64_t)sum;
                carry = (uint64_t)(sum >> 64);
            }
            for (size_t l = j + p->words; l < value_words; l++) {
                const unsigned __int128 sum = (unsigned __int128)value[l] + carry;
                value[l] = (uint64_t)sum;
                carry = (uint64_t)(sum >> 64);
            }
        }
        for (size_t j = 0; j < out_width; j++)
            out[i * out_width + j] =
                j / 8 < value_words ? (uint8_t)(value[j / 8] >> j % 8 * 8) : 0;
    }
done:
    drop(of_p, count * words, 8);
    drop(of_q, count * words, 8);
    drop(room, 4 * words + 4 + value_words, 8);
    return status;
}

/* ---- sums and checks ----------------------------------------------------------------------- */

struct factors {
    const kernel *kernel;
    modulus m;
    size_t group_digits; /* of `lanes` totals, pairs */
};

void gl_factors_free(factors *f)
{
    if (!f) return;
    modulus_drop(&f->m);
    drop(f, 1, sizeof *f);
}

/* Products of ciphertexts modulo n^2, for sums, and modulo n, for the check. */
factors *gl_factors_new(size_t index, const uint64_t *n, size_t words)
{
    if (index >= KERNEL_COUNT || !KERNELS[index]->available()) return NULL;
    factors *f = take(1, sizeof *f);
    if (!f) return NULL;
    f->kernel = KERNELS[index];
    if (modulus_make(&f->m, f->kernel, n, words) || f->m.words != words) {
        gl_factors_free(f);
        return NULL;
    }
    f->group_digits = 2 * f->m.limbs * f->kernel->lanes;
    return f;
}

/* Memory for `count` totals, all 1. */
uint64_t *gl_totals_new(const factors *f, size_t count)
{
    const size_t groups = (count + f->kernel->lanes - 1) / f->kernel->lanes;
    uint64_t *totals = take(groups * f->group_digits, 8);
    for (size_t group = 0; totals && group < groups; group++)
        for (size_t lane = 0; lane < f->kernel->lanes; lane++)
            totals[group * f->group_digits + lane] = 1;
    return totals;
}

void gl_totals_free(uint64_t *totals) { drop(totals, 0, 0); }

/* Multiply totals first .. first + count by numbers; `first` is a multiple of the lanes. */
int gl_totals_multiply(const factors *f, uint64_t *totals, size_t first,
                              const uint8_t *numbers, size_t width, size_t count)
{
    return f->kernel->multiply(&f->m, totals + first / f->kernel->lanes * f->group_digits, numbers,
                               width, count);
}

/* Write totals first .. first + count, each of which took `taken` numbers. */
int gl_totals_write(const factors *f, uint64_t *totals, size_t first, size_t taken,
                           uint8_t *out, size_t width, size_t count)
{
    return f->kernel->finish(&f->m, totals + first / f->kernel->lanes * f->group_digits, taken, out,
                             width, count);
}

/* `lanes` numbers below n; one of them shares a factor with n exactly if one of the numbers does. */
int gl_product(const factors *f, const uint8_t *numbers, size_t width, size_t count,
                      uint64_t *out)
{
    return f->kernel->product(&f->m, numbers, width, count, out);
}

/* The place of the first number that is 0 or not below `bound` (big endian), or -1. */
int64_t gl_out_of_range(const uint8_t *numbers, size_t width, size_t count,
                               const uint8_t *bound)
{
    for (size_t i = 0; i < count; i++) {
        const uint8_t *number = numbers + i * width;
        size_t j = 0;
        while (j < width && !number[j]) j++;
        if (j == width || memcmp(number, bound, width) >= 0) return (int64_t)i;
    }
    return -1;
}
