#pragma once

#include "hash256.hpp"

namespace gradledger {

/// Levels of a growing tree: room for 2^16 - 1 leaves, as many as a task can have devices.
constexpr uint32_t merkle_levels = 16;

/**
 * RFC 6962: SHA-256(0x00 || record).
 * @tparam Sha - hash256 operator()(const uint8_t* bytes, uint32_t length)
 * @tparam length - bytes of a record
 */
template <uint32_t length, typename Sha>
hash256 merkle_leaf(const uint8_t* record, Sha&& sha) {
   uint8_t bytes[1 + length];
   bytes[0] = 0;
   memcpy(bytes + 1, record, length);
   return sha(bytes, 1 + length);
}

/// RFC 6962: SHA-256(0x01 || left || right).
template <typename Sha>
hash256 merkle_node(const hash256& left, const hash256& right, Sha&& sha) {
   uint8_t bytes[65];
   bytes[0] = 1;
   memcpy(bytes + 1, left.bytes, 32);
   memcpy(bytes + 33, right.bytes, 32);
   return sha(bytes, 65);
}

/**
 * Put one more leaf behind the `count` that are in the tree already.
 *
 * frontier[i] is the root of a full subtree of 2^i leaves wherever bit i of `count` is set: adding a
 * leaf merges full subtrees as adding one to `count` carries.
 *
 * @pre count < 2^merkle_levels - 1
 */
template <typename Sha>
void merkle_append(hash256* frontier, uint32_t count, hash256 leaf, Sha&& sha) {
   uint32_t level = 0;
   for (; count >> level & 1; ++level) leaf = merkle_node(frontier[level], leaf, sha);
   frontier[level] = leaf;
}

/// Root of the tree of `count` leaves; without leaves SHA-256 of the empty string.
template <typename Sha>
hash256 merkle_root(const hash256* frontier, uint32_t count, Sha&& sha) {
   if (count == 0) return sha(nullptr, 0);
   uint32_t level = 0;
   while (!(count >> level & 1)) ++level;
   hash256 root = frontier[level];
   for (++level; level < merkle_levels; ++level)
      if (count >> level & 1) root = merkle_node(frontier[level], root, sha);
   return root;
}

}  // namespace gradledger
