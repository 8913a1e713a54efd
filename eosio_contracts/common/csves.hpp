#pragma once

#include <stdint.h>

namespace gradledger {

/// Which of the two tests a series of validation errors must pass.
enum rule : uint8_t { rule_trend = 1, rule_threshold = 2, rule_either = 3, rule_both = 4 };

/**
 * Numerator of the least-squares slope of e_0..e_{m-1} over x = 0..m-1:
 *    m * sum(x e) - sum(x) * sum(e)
 * Its denominator is positive, so its sign is the sign of the slope. Below 2^37 for the series the
 * contract takes (m <= 64, e <= 10^6).
 *
 * @tparam Series - has size() and operator[] with unsigned 32-bit elements
 */
template <typename Series>
constexpr int64_t slope_numerator(const Series& errors) {
   const int64_t m = static_cast<int64_t>(errors.size());
   int64_t sum_e = 0, sum_xe = 0;
   for (int64_t x = 0; x < m; ++x) {
      const int64_t e = errors[static_cast<uint32_t>(x)];
      sum_e += e;
      sum_xe += x * e;
   }
   return m * sum_xe - m * (m - 1) / 2 * sum_e;
}

/// CSVES-Tr: the series falls. One point has no trend.
template <typename Series>
constexpr bool meets_trend(const Series& errors) {
   return errors.size() >= 2 && slope_numerator(errors) < 0;
}

/// CSVES-Th: the last error lies below tau. @pre the series is not empty
template <typename Series>
constexpr bool meets_threshold(const Series& errors, uint32_t tau) {
   return errors[static_cast<uint32_t>(errors.size() - 1)] < tau;
}

/// The test that `which` (enum rule) names. @pre the series is not empty
template <typename Series>
constexpr bool meets(uint8_t which, const Series& errors, uint32_t tau) {
   switch (which) {
      case rule_trend: return meets_trend(errors);
      case rule_threshold: return meets_threshold(errors, tau);
      case rule_either: return meets_threshold(errors, tau) || meets_trend(errors);
      case rule_both: return meets_threshold(errors, tau) && meets_trend(errors);
      default: return false;
   }
}

}  // namespace gradledger
