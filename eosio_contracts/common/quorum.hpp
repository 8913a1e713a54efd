#pragma once

#include "hash256.hpp"

#include <stdint.h>
#include <string.h>

namespace gradledger {

/// Equal verdicts that decide among `validators` of them: 2f+1 of 3f+1.
constexpr uint32_t quorum_of(uint32_t validators) { return validators * 2 / 3 + 1; }

/// How many of the 32 bytes differ from `code`. @pre code and every byte are below 128
static uint32_t count_others(const hash256& verdicts, uint8_t code) {
   constexpr uint64_t ones = 0x0101010101010101;
   uint64_t           word[4];
   memcpy(word, verdicts.bytes, sizeof word);
   uint32_t count = 0;
   for (uint64_t eight : word) count += __builtin_popcountll(((eight ^ ones * code) + ones * 0x7f) & ones * 0x80);
   return count;
}

/**
 * What the verdicts on an upload come to: the reason of a quorum's decision, or 0.
 * @tparam accept - the code that accepts; every other up to `last` refuses, 0 is none yet
 * @pre byte i is the code of validator i, and those from `validators` on are 0
 */
template <uint8_t accept, uint8_t last>
static uint8_t decided_by(const hash256& verdicts, uint32_t validators) {
   static_assert(0 < accept && accept < last && last < 128);
   const uint32_t given = count_others(verdicts, 0);
   const uint32_t accepting = sizeof verdicts.bytes - count_others(verdicts, accept);
   const uint32_t quorum = quorum_of(validators);
   if (accepting >= quorum) return accept;
   if (given - accepting < quorum) return 0;
   uint8_t votes[last + 1] = {};
   for (uint32_t v = 0; v < validators; ++v) ++votes[verdicts.bytes[v]];
   uint8_t reason = accept + 1;
   for (uint8_t code = reason; code <= last; ++code)
      if (votes[code] > votes[reason]) reason = code;
   return reason;
}

}  // namespace gradledger
