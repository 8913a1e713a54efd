#pragma once

#include "checked.hpp"

namespace gradledger {

/**
 * amount = cost x price, exact.
 * @param cost - examples
 * @param price - smallest token units per example, >= 0
 * @return false if the amount is more than an asset can hold
 */
constexpr bool checked_price(uint32_t cost, int64_t price, int64_t& amount) {
   if (price < 0 || __builtin_mul_overflow(int64_t{cost}, price, &amount)) return false;
   return amount <= amount_max;
}

}  // namespace gradledger
