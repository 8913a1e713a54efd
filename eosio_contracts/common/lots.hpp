#pragma once

#include "hash256.hpp"

#include <stdint.h>
#include <string.h>

namespace gradledger {

/**
 * Who is audited. Before there is an upload each validator commits to a value; when every verdict is in
 * it reveals it. An upload is drawn if the value of any validator draws it: nobody's value, told or
 * kept back, saves an upload from another's draw, and one honest validator is enough.
 */

/// What a validator commits to: SHA-256(task || version || validator || value), integers little endian.
template <typename Sha256>
hash256 lot_commitment(uint64_t task, uint32_t version, uint64_t validator, const hash256& value, Sha256&& sha256) {
   uint8_t text[8 + 4 + 8 + 32];
   memcpy(text, &task, 8);
   memcpy(text + 8, &version, 4);
   memcpy(text + 12, &validator, 8);
   memcpy(text + 20, value.bytes, 32);
   return sha256(text, sizeof text);
}

/// Whether a value draws an upload: the first eight bytes of SHA-256(value || upload's hash), big
/// endian, lie below lot_e6 parts in a million of 2^64 (rounded down a little; 1,000,000 draws all).
template <typename Sha256>
bool draws(const hash256& value, const hash256& upload, uint32_t lot_e6, Sha256&& sha256) {
   if (lot_e6 >= 1'000'000) return true;
   uint8_t text[64];
   memcpy(text, value.bytes, 32);
   memcpy(text + 32, upload.bytes, 32);
   const hash256 digest = sha256(text, sizeof text);
   uint64_t      place = 0;
   for (uint32_t i = 0; i < 8; ++i) place = place << 8 | digest.bytes[i];
   return place < uint64_t{lot_e6} * 18'446'744'073'709u;
}

}  // namespace gradledger
