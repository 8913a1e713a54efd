#pragma once

#include <stdint.h>
#include <string.h>

namespace gradledger {

/// A vector inside the action's data, read where it lies (elements need not be aligned).
template <typename T>
class view {
public:
   constexpr view() = default;
   constexpr view(const char* bytes, uint32_t count) : bytes_(bytes), count_(count) {}

   constexpr uint32_t size() const { return count_; }
   constexpr bool empty() const { return count_ == 0; }
   const char* bytes() const { return bytes_; }

   /// @pre index < size()
   T operator[](uint32_t index) const {
      T value;
      memcpy(&value, bytes_ + index * sizeof(T), sizeof(T));
      return value;
   }

private:
   const char* bytes_ = nullptr;
   uint32_t    count_ = 0;
};

}  // namespace gradledger
