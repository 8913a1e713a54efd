#pragma once

#include "hash256.hpp"

namespace gradledger {

constexpr uint32_t cid_chars = 46;  ///< length of every CIDv0

/// Value of a base58btc character, or -1.
constexpr int32_t base58_value(char c) {
   if (c >= '1' && c <= '9') return c - '1';
   if (c >= 'A' && c <= 'H') return c - 'A' + 9;
   if (c >= 'J' && c <= 'N') return c - 'J' + 17;
   if (c >= 'P' && c <= 'Z') return c - 'P' + 22;
   if (c >= 'a' && c <= 'k') return c - 'a' + 33;
   if (c >= 'm' && c <= 'z') return c - 'm' + 44;
   return -1;
}

/**
 * Decode a CIDv0: base58btc of the bytes 0x12 0x20 and a SHA-256 digest, always 46 characters.
 *
 * The number grows by five characters at a time (58^5 < 2^32), in ten groups of which the first
 * has one character: 90 products of 32 bits in all.
 *
 * @return false if the text is not a CIDv0 (digest is then untouched)
 */
inline bool decode_cid(const char* text, uint32_t length, hash256& digest) {
   if (length != cid_chars) return false;
   constexpr uint32_t limbs = 9;  // 288 bits >= 46 x log2(58) = 269.5
   uint32_t number[limbs] = {};   // least significant first
   for (uint32_t begin = 0, end = 1; begin < cid_chars; begin = end, end += 5) {
      uint32_t group = 0, factor = 1;
      for (uint32_t i = begin; i < end; ++i) {
         const int32_t value = base58_value(text[i]);
         if (value < 0) return false;
         group = group * 58 + static_cast<uint32_t>(value);
         factor *= 58;
      }
      uint64_t carry = group;
      for (uint32_t& limb : number) {
         carry += uint64_t{limb} * factor;
         limb = static_cast<uint32_t>(carry);
         carry >>= 32;
      }
   }
   if (number[limbs - 1] != 0x1220) return false;
   for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t limb = number[7 - i];
      digest.bytes[4 * i] = static_cast<uint8_t>(limb >> 24);
      digest.bytes[4 * i + 1] = static_cast<uint8_t>(limb >> 16);
      digest.bytes[4 * i + 2] = static_cast<uint8_t>(limb >> 8);
      digest.bytes[4 * i + 3] = static_cast<uint8_t>(limb);
   }
   return true;
}

}  // namespace gradledger
