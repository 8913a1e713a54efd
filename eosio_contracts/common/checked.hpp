#pragma once

#include <stdint.h>

namespace gradledger {

/// Largest amount that an Antelope `asset` can hold.
constexpr int64_t amount_max = (int64_t{1} << 62) - 1;

/// sum = a + b. @return false if the sum does not fit 64 bits (sum is then of no use)
constexpr bool checked_add(int64_t a, int64_t b, int64_t& sum) {
   return !__builtin_add_overflow(a, b, &sum);
}

}  // namespace gradledger
