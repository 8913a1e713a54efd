/* A program of its own: check every kernel that this processor runs, or the one that is named,
 * against tests/vectors/paillier_kernels.txt. For processors and emulators without Python.
 *
 *     cc -std=gnu11 -O2 -ffp-contract=off *.c -o selftest
 *     ./selftest ../../../tests/vectors/paillier_kernels.txt [KERNEL]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "paillier.h"

#define WORDS 130 /* of the longest number: n^2 of 4096 bits */
#define NUMBERS 32
#define LINE 16384

static int checks, failures;

static void expect(int right, const char *kernel, const char *what, size_t bits)
{
    checks++;
    if (right) return;
    failures++;
    printf("%s: wrong %s at %zu bits\n", kernel, what, bits);
}

static void parse(uint64_t *words, const char *text)
{
    const size_t length = strlen(text);
    memset(words, 0, 8 * WORDS);
    for (size_t i = 0; i < length && i < 16 * WORDS; i++) {
        const char digit = text[length - 1 - i];
        const uint64_t value = (uint64_t)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
        words[i / 16] |= value << i % 16 * 4;
    }
}

static size_t bits_of(const uint64_t *words)
{
    size_t bits = 64 * WORDS;
    while (bits && !(words[(bits - 1) / 64] >> (bits - 1) % 64 & 1)) bits--;
    return bits;
}

static void big_endian(uint8_t *out, size_t width, const uint64_t *words)
{
    for (size_t i = 0; i < width; i++)
        out[width - 1 - i] = (uint8_t)(words[i / 8] >> i % 8 * 8);
}

/* Quotient and rest, bit by bit: slow, and nothing that the kernels use. */
static void divide(uint64_t *quotient, uint64_t *rest, const uint64_t *number, const uint64_t *by)
{
    memset(quotient, 0, 8 * WORDS);
    memset(rest, 0, 8 * WORDS);
    const size_t words = bits_of(by) / 64 + 1;
    for (size_t bit = bits_of(number); bit-- > 0;) {
        for (size_t i = words - 1; i > 0; i--) rest[i] = rest[i] << 1 | rest[i - 1] >> 63;
        rest[0] = rest[0] << 1 | (number[bit / 64] >> bit % 64 & 1);
        int less = 0;
        for (size_t i = words; i-- > 0 && !less;) {
            if (rest[i] > by[i]) break;
            less = rest[i] < by[i];
        }
        if (less) continue;
        uint64_t borrow = 0;
        for (size_t i = 0; i < words; i++) {
            const unsigned __int128 step = (unsigned __int128)rest[i] - by[i] - borrow;
            rest[i] = (uint64_t)step;
            borrow = (uint64_t)(step >> 64) & 1;
        }
        quotient[bit / 64] |= (uint64_t)1 << bit % 64;
    }
}

/* 1 / number mod p by Fermat: number^(p - 2), with divide() for each product. */
static void inverse(uint64_t *out, const uint64_t *number, const uint64_t *p)
{
    static uint64_t base[WORDS], power[WORDS], product[WORDS], quotient[WORDS];
    divide(quotient, base, number, p);
    memset(power, 0, sizeof power);
    power[0] = 1;
    for (size_t bit = bits_of(p); bit-- > 0;) {
        const int set = bit ? (int)((p[bit / 64] - (bit < 64 ? 2 : 0)) >> bit % 64 & 1) : 1;
        for (int step = 0; step <= set; step++) {
            const uint64_t *by = step ? base : power;
            memset(product, 0, sizeof product);
            const size_t words = (bits_of(p) + 63) / 64 + 1; /* the last one takes carries */
            for (size_t i = 0; i < words; i++) {
                uint64_t carry = 0;
                for (size_t j = 0; j < words; j++) {
                    const unsigned __int128 sum = (unsigned __int128)power[i] * by[j]
                                                  + product[i + j] + carry;
                    product[i + j] = (uint64_t)sum;
                    carry = (uint64_t)(sum >> 64);
                }
            }
            divide(quotient, power, product, p);
        }
    }
    memcpy(out, power, sizeof power);
}

typedef struct {
    uint64_t n[WORDS], p[WORDS], q[WORDS], base[2 * WORDS];
    uint64_t scale_p[WORDS], scale_q[WORDS], inverse[WORDS];
    size_t words, prime_words, width, exponent_bits, encrypted, decrypted;
    uint64_t exponents[NUMBERS][WORDS], messages[NUMBERS][WORDS], ciphertexts[NUMBERS][WORDS];
    uint64_t numbers[NUMBERS][WORDS], plaintexts[NUMBERS][WORDS], sum[WORDS];
} vectors;

static void negative(uint64_t *x, const uint64_t *p)
{
    uint64_t borrow = 0;
    for (size_t i = 0; i < WORDS; i++) {
        const unsigned __int128 step = (unsigned __int128)p[i] - x[i] - borrow;
        x[i] = (uint64_t)step;
        borrow = (uint64_t)(step >> 64) & 1;
    }
}

static void prepare(vectors *v, const uint64_t *base)
{
    static uint64_t low[WORDS], high[WORDS];
    const size_t bits = bits_of(v->n);
    v->words = (bits + 63) / 64;
    v->prime_words = (bits_of(v->q) + 63) / 64;
    v->width = (2 * bits + 7) / 8;
    divide(high, low, base, v->n);
    memcpy(v->base, low, 8 * v->words);
    memcpy(v->base + v->words, high, 8 * v->words);
    inverse(v->inverse, v->p, v->q);
    memcpy(v->scale_q, v->inverse, sizeof v->scale_q);
    negative(v->scale_q, v->q);
    inverse(v->scale_p, v->q, v->p);
    negative(v->scale_p, v->p);
}

static void check(const vectors *v, size_t kernel)
{
    const char *name = gl_kernel_name(kernel);
    const size_t bits = bits_of(v->n), width = v->width;
    const size_t exponent_bytes = (v->exponent_bits + 7) / 8, plain_bytes = (bits + 7) / 8;
    static uint8_t exponents[NUMBERS * 8 * WORDS], out[NUMBERS * 8 * WORDS];
    static uint8_t numbers[NUMBERS * 8 * WORDS], expected[8 * WORDS];
    static uint64_t messages[NUMBERS * WORDS], product[8 * WORDS];

    for (size_t i = 0; i < v->encrypted; i++) {
        for (size_t j = 0; j < exponent_bytes; j++)
            exponents[i * exponent_bytes + j] = (uint8_t)(v->exponents[i][j / 8] >> j % 8 * 8);
        memcpy(messages + i * v->words, v->messages[i], 8 * v->words);
    }
    for (int fast = 0; fast < 2; fast++) {
        comb *table = gl_comb_new(kernel, v->n, v->words, v->base, v->exponent_bits, fast,
                                  fast ? 5 : 0, fast ? 3 : 0);
        expect(table != NULL, name, "table", bits);
        if (!table) continue;
        memset(out, 0xee, sizeof out);
        const int status = gl_comb_encrypt(table, exponents, messages, v->words, v->encrypted, out,
                                           width);
        expect(status == 0, name, "status of encryption", bits);
        for (size_t i = 0; i < v->encrypted; i++) {
            big_endian(expected, width, v->ciphertexts[i]);
            expect(!memcmp(out + i * width, expected, width), name, "ciphertext", bits);
        }
        expect(out[v->encrypted * width] == 0xee, name, "length of ciphertexts", bits);
        gl_comb_free(table);
    }

    factors *of_n = gl_factors_new(kernel, v->n, v->words);
    uint64_t *totals = of_n ? gl_totals_new(of_n, 1) : NULL;
    expect(totals != NULL, name, "factors", bits);
    if (totals) {
        for (size_t i = 0; i < v->encrypted; i++) {
            big_endian(numbers + i * width, width, v->ciphertexts[i]);
            gl_totals_multiply(of_n, totals, 0, numbers + i * width, width, 1);
        }
        gl_totals_write(of_n, totals, 0, v->encrypted, out, width, 1);
        big_endian(expected, width, v->sum);
        expect(!memcmp(out, expected, width), name, "sum", bits);
        expect(gl_product(of_n, numbers, width, v->encrypted, product) == 0, name, "product", bits);
        memset(numbers, 0, width);
        big_endian(numbers, width, v->p); /* the only factor in common with n */
        gl_product(of_n, numbers, width, v->encrypted, product);
        static uint64_t one[WORDS], quotient[WORDS], rest[WORDS];
        memset(one, 0, sizeof one);
        memcpy(one, product, 8 * v->words);
        divide(quotient, rest, one, v->p);
        expect(bits_of(rest) == 0, name, "product with a factor of n", bits);
    }
    gl_totals_free(totals);
    gl_factors_free(of_n);

    private_key *key = gl_private_new(kernel, v->p, v->q, v->scale_p, v->scale_q, v->inverse,
                                      v->prime_words, 8 * width);
    expect(key != NULL, name, "private key", bits);
    if (key) {
        for (size_t i = 0; i < v->decrypted; i++)
            big_endian(numbers + i * width, width, v->numbers[i]);
        expect(gl_private_decrypt(key, numbers, width, v->decrypted, out, plain_bytes) == 0, name,
               "status of decryption", bits);
        for (size_t i = 0; i < v->decrypted; i++)
            for (size_t j = 0; j < plain_bytes; j++)
                if (out[i * plain_bytes + j] != (uint8_t)(v->plaintexts[i][j / 8] >> j % 8 * 8)) {
                    expect(0, name, "plaintext", bits);
                    break;
                }
        big_endian(numbers, width, v->p);
        expect(gl_private_decrypt(key, numbers, width, 1, out, plain_bytes) == 1, name,
               "status for a factor of n", bits);
    }
    gl_private_free(key);
}

static void check_codes(void)
{
    const double ties[] = {0.5, 1.5, 2.5, -0.0, 65535.0, 1e300, -1e300, 5e-324};
    const uint16_t codes[] = {32768, 32768, 32768, 32768, 65535, 65535, 0, 32768};
    uint16_t out[8];
    uint64_t messages[4];
    expect(gl_quantise_double(ties, 8, 65535.0, out) == -1, "all", "status of quantising", 0);
    /* (v + 65535) / 131070 x 65535 = v / 2 + 32767.5 */
    expect(out[3] == codes[3] && out[4] == codes[4] && out[5] == codes[5] && out[6] == codes[6],
           "all", "codes", 0);
    const float bad[] = {0, 1, (float)(1e300 * 1e10)};
    expect(gl_quantise_float(bad, 3, 1.0, out) == 2, "all", "place of what is not finite", 0);
    const uint16_t slots[] = {0xffff, 1, 0xffff, 2, 0xabcd};
    gl_pack(slots, 5, 26, 3, messages, 2);
    expect(messages[0] == (0xffffull | 1ull << 26 | 0xffffull << 52) && messages[1] == 0xf
               && messages[2] == (2ull | 0xabcdull << 26) && messages[3] == 0,
           "all", "packing", 0);
}

int main(int argc, char **argv)
{
    static char line[LINE];
    static vectors v;
    static uint64_t base[WORDS];
    FILE *file = argc > 1 ? fopen(argv[1], "r") : NULL;
    if (!file) {
        fprintf(stderr, "usage: selftest VECTORS [KERNEL]\n");
        return 2;
    }
    check_codes();
    while (fgets(line, sizeof line, file)) {
        char *field[5] = {0};
        size_t fields = 0;
        for (char *part = strtok(line, " \n"); part && fields < 5; part = strtok(NULL, " \n"))
            field[fields++] = part;
        if (fields == 5 && !strcmp(field[0], "key")) {
            memset(&v, 0, sizeof v);
            parse(v.n, field[1]);
            parse(v.p, field[2]);
            parse(v.q, field[3]);
            parse(base, field[4]);
            prepare(&v, base);
        } else if (fields == 5 && !strcmp(field[0], "encrypt") && v.encrypted < NUMBERS) {
            v.exponent_bits = strtoul(field[1], NULL, 16);
            parse(v.exponents[v.encrypted], field[2]);
            parse(v.messages[v.encrypted], field[3]);
            parse(v.ciphertexts[v.encrypted++], field[4]);
        } else if (fields == 3 && !strcmp(field[0], "decrypt") && v.decrypted < NUMBERS) {
            parse(v.numbers[v.decrypted], field[1]);
            parse(v.plaintexts[v.decrypted++], field[2]);
        } else if (fields == 2 && !strcmp(field[0], "sum")) {
            parse(v.sum, field[1]);
        } else if (fields == 1 && !strcmp(field[0], "end")) {
            for (size_t kernel = 0; gl_kernel_name(kernel); kernel++)
                if (gl_kernel_available(kernel)
                    && (argc < 3 || !strcmp(argv[2], gl_kernel_name(kernel)))) {
                    printf("%s, %zu bits\n", gl_kernel_name(kernel), bits_of(v.n));
                    fflush(stdout);
                    check(&v, kernel);
                }
        } else {
            fprintf(stderr, "a line that is no record\n");
            return 2;
        }
    }
    fclose(file);
    printf("%d checks, %d failures\n", checks, failures);
    return failures || checks < 10;
}
