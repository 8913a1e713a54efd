/* What paillier.c offers: described there. */
#ifndef GRADLEDGER_PAILLIER_H
#define GRADLEDGER_PAILLIER_H

#include "lanes.h"

#define EXPORT __attribute__((visibility("default")))

typedef struct private_key private_key;
typedef struct factors factors;

EXPORT int gl_api(void);
EXPORT const char *gl_kernel_name(size_t index);
EXPORT int gl_kernel_available(size_t index);
EXPORT size_t gl_kernel_lanes(size_t index);

EXPORT int64_t gl_quantise_float(const float *values, size_t count, double clip, uint16_t *codes);
EXPORT int64_t gl_quantise_double(const double *values, size_t count, double clip, uint16_t *codes);
EXPORT void gl_pack(const uint16_t *codes, size_t count, unsigned slot_bits, size_t slots,
                    uint64_t *messages, size_t words);

EXPORT comb *gl_comb_new(size_t index, const uint64_t *n, size_t words, const uint64_t *base,
                         size_t exponent_bits, int fast, size_t teeth, size_t blocks);
EXPORT void gl_comb_free(comb *c);
EXPORT size_t gl_comb_bytes(const comb *c);
EXPORT int gl_comb_encrypt(const comb *c, const uint8_t *exponents, const uint64_t *messages,
                           size_t message_words, size_t count, uint8_t *out, size_t width);

EXPORT private_key *gl_private_new(size_t index, const uint64_t *p, const uint64_t *q,
                                   const uint64_t *scale_p, const uint64_t *scale_q,
                                   const uint64_t *inverse, size_t words, size_t number_bits);
EXPORT void gl_private_free(private_key *key);
EXPORT int gl_private_decrypt(const private_key *key, const uint8_t *numbers, size_t width,
                              size_t count, uint8_t *out, size_t out_width);

EXPORT factors *gl_factors_new(size_t index, const uint64_t *n, size_t words);
EXPORT void gl_factors_free(factors *f);
EXPORT uint64_t *gl_totals_new(const factors *f, size_t count);
EXPORT void gl_totals_free(uint64_t *totals);
EXPORT int gl_totals_multiply(const factors *f, uint64_t *totals, size_t first,
                              const uint8_t *numbers, size_t width, size_t count);
EXPORT int gl_totals_write(const factors *f, uint64_t *totals, size_t first, size_t taken,
                           uint8_t *out, size_t width, size_t count);
EXPORT int gl_product(const factors *f, const uint8_t *numbers, size_t width, size_t count,
                      uint64_t *out);
EXPORT int64_t gl_out_of_range(const uint8_t *numbers, size_t width, size_t count,
                               const uint8_t *bound);

#endif
