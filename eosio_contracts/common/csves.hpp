#pragma once

#include <stdint.h>

namespace gradledger {

/// Which test a series of validation errors must pass: the paper's two, together or one of them, or
/// the third.
enum rule : uint8_t { rule_trend = 1, rule_threshold = 2, rule_either = 3, rule_both = 4, rule_gain = 5 };

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

constexpr int64_t gain_allowed = 80'000, gain_allowed_less = 150'000;  // docs/csves.md

/// Declared classes as the third rule counts them: there is no guessing among one.
constexpr int64_t gain_classes(uint32_t held) { return held < 2 ? 2 : held; }

/**
 * The third rule's excess of doubt. The series is the doubts e_0..e_n, e_0 before training, and behind
 * them the trained model's share of wrong answers. With h = max(2, held) and all rises
 * R = sum(max(0, e_i - e_{i-1})):
 *    h * (sum(e_1..e_n) - n * e_0 + n * R) - n * (80000 h - 150000)
 * Below 2^39 for the series the contract takes. 0 where there is no second doubt.
 *
 * @param held - declared classes, 1..64
 */
template <typename Series>
constexpr int64_t gain_excess(const Series& errors, uint32_t held) {
   const int64_t h = gain_classes(held);
   int64_t       later = 0, change = 0, rises = 0;
   for (uint32_t i = 1; i + 1 < errors.size(); ++i) {
      const int64_t step = static_cast<int64_t>(errors[i]) - static_cast<int64_t>(errors[i - 1]);
      if (step > 0) rises += step;
      change += static_cast<int64_t>(errors[i]) - static_cast<int64_t>(errors[0]);
      ++later;
   }
   return h * (change + later * rises) - later * (gain_allowed * h - gain_allowed_less);
}

/// What the share of wrong answers must lie below: tau parts of what guessing leaves, rounded up.
constexpr int64_t gain_limit(uint32_t tau, uint32_t held) {
   const int64_t h = gain_classes(held);
   return (tau * (h - 1) + h - 1) / h;
}

/// The third rule: training took doubt away, and leaves few wrong answers. @pre the series is not empty
template <typename Series>
constexpr bool meets_gain(const Series& errors, uint32_t tau, uint32_t held) {
   return errors[static_cast<uint32_t>(errors.size() - 1)] < gain_limit(tau, held) && gain_excess(errors, held) < 0;
}

/// The test that `which` (enum rule) names. @param held - declared classes @pre the series is not empty
template <typename Series>
constexpr bool meets(uint8_t which, const Series& errors, uint32_t tau, uint32_t held) {
   switch (which) {
      case rule_trend: return meets_trend(errors);
      case rule_threshold: return meets_threshold(errors, tau);
      case rule_either: return meets_threshold(errors, tau) || meets_trend(errors);
      case rule_both: return meets_threshold(errors, tau) && meets_trend(errors);
      case rule_gain: return meets_gain(errors, tau, held);
      default: return false;
   }
}

}  // namespace gradledger
