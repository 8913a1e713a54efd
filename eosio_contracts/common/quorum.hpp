#pragma once

#include <stdint.h>

namespace gradledger {

/// Equal verdicts that decide among `validators` of them: 2f+1 of 3f+1.
constexpr uint32_t quorum_of(uint32_t validators) { return validators * 2 / 3 + 1; }

}  // namespace gradledger
