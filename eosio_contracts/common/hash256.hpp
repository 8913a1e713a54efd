#pragma once

#include <stdint.h>
#include <string.h>

namespace gradledger {

/// 32 bytes as they lie in a table row: `checksum256` in the ABI, without word swapping.
struct hash256 {
   uint8_t bytes[32];

   bool is_zero() const {
      uint64_t word[4];
      memcpy(word, bytes, sizeof word);
      return (word[0] | word[1] | word[2] | word[3]) == 0;
   }
};

inline bool operator==(const hash256& a, const hash256& b) {
   uint64_t left[4], right[4];
   memcpy(left, a.bytes, sizeof left);
   memcpy(right, b.bytes, sizeof right);
   return ((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) | (left[3] ^ right[3])) == 0;
}

inline bool operator!=(const hash256& a, const hash256& b) { return !(a == b); }

}  // namespace gradledger
