#pragma once

#include "host.hpp"

namespace gradledger {

/// Checks and look-ups that several topics share.

inline stored<task> get_task(name self, name id) {
   stored<task> found;
   if (!found.find(self, self.value, tasks_name, id.value))
      fail("unknown_task: expected the name of a task, got '", id, "'");
   return found;
}

inline const char* state_name(uint8_t state) {
   switch (state) {
      case round_open: return "open";
      case round_verifying: return "verifying";
      case round_drawing: return "drawing";
      case round_auditing: return "auditing";
      case round_summing: return "summing";
      case round_summed: return "summed";
      default: return "settled";
   }
}

[[noreturn, gnu::noinline, gnu::cold]] inline void fail_state(const char* code, const char* expected,
                                                              const round& head) {
   fail(code, ": expected round ", head.version, " to be ", expected, ", it is ", state_name(head.state));
}

/// @pre some round was opened
inline void check_version(const task& row, uint32_t version) {
   if (row.version == 0) fail("round_not_open: task ", row.id, " has no round yet");
   if (version < row.version)
      fail("stale_version: got version ", version, ", the current version is ", row.version);
   if (version > row.version)
      fail("future_version: got version ", version, ", the current version is ", row.version);
}

/// Read the newest round. @return whether it is still unsettled (false: there is none)
inline bool load_unsettled(name self, const task& row, round_row& found) {
   if (row.version == 0) return false;
   found.load(self, row.id, row.version);
   return found.head().state != round_settled;
}

/// Money that neither a device nor the owner got and that no upload reserves.
/// @param head - the unsettled round, or nullptr
inline int64_t free_money(const task& row, const round* head) {
   const int64_t settled = row.deposited - row.paid - row.withdrawn;
   return head ? settled - head->paid - head->reserved : settled;
}

inline hash256 get_hash(const char* field, view<char> bytes) {
   if (bytes.size() != sizeof(hash256))
      fail("short_hash: ", field, ": expected 32 bytes, got ", bytes.size());
   hash256 hash;
   memcpy(hash.bytes, bytes.bytes(), sizeof hash.bytes);
   if (hash.is_zero()) fail("empty_hash: ", field, ": expected a SHA-256, got 32 zero bytes");
   return hash;
}

/// The digest of a CIDv0; never zero, which in a row says that there is none.
inline hash256 get_cid_digest(const char* field, view<char> text) {
   hash256 digest;
   if (!decode_cid(text.bytes(), text.size(), digest) || digest.is_zero())
      fail("bad_cid: ", field, ": expected a CIDv0 of 46 base58 characters that starts with Qm, got ",
           text.size(), " characters that are none");
   return digest;
}

inline void check_nonzero(const char* field, const hash256& hash) {
   if (hash.is_zero()) fail("empty_hash: ", field, ": expected 32 bytes that are not all zero");
}

/// Key of index `byhash`.
inline uint64_t by_hash(const hash256& hash) {
   uint64_t big_endian;
   memcpy(&big_endian, hash.bytes, sizeof big_endian);
   return __builtin_bswap64(big_endian);
}

/// Go on to the next phase where nothing is left to do in this one; past those that are not due.
inline void advance(const task& row, round& head) {
   if (head.state == round_verifying && head.pending == 0 && head.held != 0) {
      head.state = round_drawing;
   } else if (head.state == round_drawing && head.held == 0 && head.drawn != 0) {
      head.state = round_auditing;
   } else {
      const bool is_over = head.state == round_verifying  ? head.pending == 0
                           : head.state == round_drawing  ? head.held == 0
                           : head.state == round_auditing ? head.drawn == 0
                                                          : false;
      if (!is_over) return;
      const bool sum_due = row.terms.mode == mode_paillier && head.accepted >= row.terms.sum_min;
      head.state = sum_due ? round_summing : round_summed;
      head.sum_deadline = now() + head.sum_sec;
   }
   if (head.state == round_drawing || head.state == round_auditing) head.audit_deadline = now() + head.audit_sec;
   head.cursor = name();
}

}  // namespace gradledger
