#pragma once

#include "fedlearning.hpp"

#include <eosio/action.h>
#include <eosio/chain.h>
#include <eosio/crypto.h>
#include <eosio/db.h>
#include <eosio/system.h>

/// Of protocol feature GET_BLOCK_NUM; the CDT's headers do not declare it everywhere.
extern "C" __attribute__((import_name("get_block_num"), eosio_wasm_import)) uint32_t get_block_num();

namespace gradledger {

// ---- refusals -------------------------------------------------------------------------------

/// The text of one refusal, built only when there is one. Longer texts are cut.
class message {
public:
   void add(const char* text) {
      while (*text) add(*text++);
   }
   void add(char c) {
      if (length_ < sizeof text_) text_[length_++] = c;
   }
   void add(uint64_t number) {
      char     digits[20];
      uint32_t count = 0;
      do digits[count++] = static_cast<char>('0' + number % 10);
      while (number /= 10);
      while (count) add(digits[--count]);
   }
   void add(uint32_t number) { add(uint64_t{number}); }
   void add(uint16_t number) { add(uint64_t{number}); }
   void add(uint8_t number) { add(uint64_t{number}); }
   void add(int64_t number) {
      if (number < 0) add('-');
      add(number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number));
   }
   void add(name account) {
      char        text[13];
      char* const end = account.write_as_string(text, text + sizeof text);
      for (const char* c = text; c != end; ++c) add(*c);
   }
   void add(symbol sym) {
      for (uint64_t letters = sym.raw >> 8; letters; letters >>= 8) {
         const char c = static_cast<char>(letters);
         add(c >= 'A' && c <= 'Z' ? c : '?');
      }
   }
   void add(asset quantity) {
      const uint32_t precision = quantity.sym.raw & 0xff;
      if (quantity.amount < 0) add('-');
      uint64_t units = quantity.amount < 0 ? 0 - static_cast<uint64_t>(quantity.amount)
                                           : static_cast<uint64_t>(quantity.amount);
      uint64_t scale = 1;
      for (uint32_t i = 0; i < precision && i < 18; ++i) scale *= 10;
      add(units / scale);
      if (scale > 1) add('.');
      for (units %= scale; scale > 1; units %= scale) add(static_cast<char>('0' + units / (scale /= 10)));
      add(' ');
      add(quantity.sym);
   }
   void add(view<char> text) {
      for (uint32_t i = 0; i < text.size() && i < 64; ++i) add(text[i] >= ' ' && text[i] <= '~' ? text[i] : '?');
   }
   /// @return how many of the first `max` bytes were copied
   uint32_t copy(char* to, uint32_t max) const {
      const uint32_t length = length_ < max ? length_ : max;
      memcpy(to, text_, length);
      return length;
   }
   [[noreturn]] void refuse() const {
      eosio_assert_message(0, text_, length_);
      __builtin_unreachable();
   }

private:
   char     text_[400];
   uint32_t length_ = 0;
};

/// End the transaction with `code: text`. Nothing that it did remains.
template <typename... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(Parts... parts) {
   message text;
   (text.add(parts), ...);
   text.refuse();
}

inline void check_range(const char* field, uint64_t value, uint64_t low, uint64_t high) {
   if (value < low || value > high)
      fail("bad_parameter: ", field, ": expected ", low, " to ", high, ", got ", value);
}

// ---- the chain ------------------------------------------------------------------------------

/// Time of this block, whole seconds.
inline seconds now() { return static_cast<seconds>(current_time() / 1'000'000); }

/// SHA-256 by the host.
struct host_sha256 {
   hash256 operator()(const uint8_t* bytes, uint32_t length) const {
      capi_checksum256 digest;
      sha256(reinterpret_cast<const char*>(bytes), length, &digest);
      hash256 result;
      memcpy(result.bytes, digest.hash, sizeof result.bytes);
      return result;
   }
};

/// Arguments of an action, in the order in which they are read. Refuses to read past the end.
class reader {
public:
   reader(const char* begin, const char* end) : at_(begin), end_(end) {}

   template <typename T>
   T get() {
      T value;
      memcpy(&value, take(sizeof(T)), sizeof(T));
      return value;
   }

   template <typename T>
   view<T> get_vector() {
      uint32_t count = 0;
      for (uint32_t shift = 0;; shift += 7) {
         const uint8_t byte = get<uint8_t>();
         if (shift == 28 && byte > 15) fail("bad_parameter: a length of the action's data is over 32 bits");
         count |= uint32_t{byte & 127u} << shift;
         if (byte < 128) break;
      }
      if (count > static_cast<uint32_t>(end_ - at_) / sizeof(T)) short_data();
      const char* const bytes = take(count * sizeof(T));
      return {bytes, count};
   }

   bool is_finished() const { return at_ == end_; }

   void finish() const {
      if (at_ != end_)
         fail("bad_parameter: the action's data is ", static_cast<uint32_t>(end_ - at_), " bytes too long");
   }

   const char* take(uint32_t length) {
      if (length > static_cast<uint32_t>(end_ - at_)) short_data();
      const char* const bytes = at_;
      at_ += length;
      return bytes;
   }

private:
   [[noreturn, gnu::noinline, gnu::cold]] static void short_data() {
      fail("bad_parameter: the action's data ends before its last field");
   }

   const char* at_;
   const char* end_;
};

/// Send `data` to action `act` of contract `code` with this contract's own authority.
inline void send_action(name self, name code, name act, const void* data, uint32_t length) {
   constexpr uint32_t data_max = 1024;
   if (length > data_max) fail("bad_parameter: expected at most ", data_max, " bytes, got ", length);
   struct [[gnu::packed]] {
      uint64_t code, act;
      uint8_t  levels;
      uint64_t actor, permission;
      char     data[2 + data_max];
   } packed;
   packed.code = code.value;
   packed.act = act.value;
   packed.levels = 1;
   packed.actor = self.value;
   packed.permission = "active"_n.value;
   char* at = packed.data;
   if (length >= 128) {
      *at++ = static_cast<char>((length & 127) | 128);
      *at++ = static_cast<char>(length >> 7);
   } else {
      *at++ = static_cast<char>(length);
   }
   memcpy(at, data, length);
   char* const begin = reinterpret_cast<char*>(&packed);
   send_inline(begin, static_cast<size_t>(at + length - begin));
}

// ---- rows -----------------------------------------------------------------------------------

constexpr uint64_t tasks_name = "tasks"_n.value;
constexpr uint64_t members_name = "members"_n.value;
constexpr uint64_t rounds_name = "rounds"_n.value;
constexpr uint64_t ballots_name = "ballots"_n.value;
constexpr uint64_t byhash_name = members_name & ~uint64_t{15};
constexpr uint64_t validators_name = byhash_name | 1;
constexpr uint64_t same_payer = 0;

/// A row of constant size and where it lies.
template <typename Row>
struct stored {
   int32_t at;
   Row     row;

   void load(int32_t iterator) {
      at = iterator;
      db_get_i64(at, &row, sizeof row);
   }
   /// @return false if there is no such row
   bool find(name self, uint64_t scope, uint64_t table, uint64_t key) {
      const int32_t iterator = db_find_i64(self.value, scope, table, key);
      if (iterator < 0) return false;
      load(iterator);
      return true;
   }
   void save() const { db_update_i64(at, same_payer, &row, sizeof row); }
};

/// A row of table `rounds` with its four vectors.
class round_row {
public:
   int32_t at;

   round&       head() { return *reinterpret_cast<round*>(bytes_); }
   uint32_t     validators() const { return static_cast<uint8_t>(bytes_[sizeof(round)]); }
   name         validator(uint32_t index) const { return read<name>(names_at() + index * sizeof(name)); }
   sum_vote     vote(uint32_t index) const { return read<sum_vote>(votes_at() + index * sizeof(sum_vote)); }
   void         set_vote(uint32_t index, const sum_vote& vote) {
      memcpy(bytes_ + votes_at() + index * sizeof(sum_vote), &vote, sizeof vote);
   }
   lot          draw(uint32_t index) const { return read<lot>(lots_at() + index * sizeof(lot)); }
   void         set_draw(uint32_t index, const lot& draw) {
      memcpy(bytes_ + lots_at() + index * sizeof(lot), &draw, sizeof draw);
   }
   hash256* frontier() { return reinterpret_cast<hash256*>(bytes_ + frontier_at()); }

   /// Position of `account` among the validators, or their number.
   uint32_t position(name account) const {
      uint32_t index = 0;
      while (index < validators() && validator(index) != account) ++index;
      return index;
   }

   /// Lay the vectors out for these validators, empty of votes.
   void lay_out(const name* accounts, uint32_t count, bool has_lots) {
      memset(bytes_ + sizeof(round), 0, sizeof bytes_ - sizeof(round));
      bytes_[sizeof(round)] = static_cast<char>(count);
      memcpy(bytes_ + names_at(), accounts, count * sizeof(name));
      bytes_[votes_at() - 1] = static_cast<char>(count);
      bytes_[lots_at() - 1] = static_cast<char>(has_lots ? count : 0);
      bytes_[frontier_at() - 1] = static_cast<char>(merkle_levels);
      size_ = frontier_at() + merkle_levels * sizeof(hash256);
   }
   /// Empty the vectors.
   void shrink() {
      memset(bytes_ + sizeof(round), 0, vectors);
      size_ = sizeof(round) + vectors;
   }

   void load(name self, name task, uint32_t version) {
      at = db_find_i64(self.value, task.value, rounds_name, version);
      if (at < 0) fail("round_not_open: task ", task, " has no round ", version);
      size_ = static_cast<uint32_t>(db_get_i64(at, bytes_, sizeof bytes_));
   }
   void store(name task, name payer) {
      at = db_store_i64(task.value, rounds_name, payer.value, head().version, bytes_, size_);
   }
   void save() const { db_update_i64(at, same_payer, bytes_, size_); }

private:
   template <typename T>
   T read(uint32_t offset) const {
      T value;
      memcpy(&value, bytes_ + offset, sizeof value);
      return value;
   }
   uint32_t names_at() const { return sizeof(round) + 1; }
   uint32_t votes_at() const { return names_at() + validators() * sizeof(name) + 1; }
   uint32_t lots_at() const { return votes_at() + validators() * sizeof(sum_vote) + 1; }
   uint32_t frontier_at() const {
      return lots_at() + static_cast<uint8_t>(bytes_[lots_at() - 1]) * sizeof(lot) + 1;
   }

   static constexpr uint32_t vectors = 4;  // each begins with a byte of its length

   uint32_t size_;
   char     bytes_[sizeof(round) + vectors +
               limits::validators_max * (sizeof(name) + sizeof(sum_vote) + sizeof(lot)) +
               merkle_levels * sizeof(hash256)];
};

/// The ballots of a task's newest round, one page in memory at a time.
class ballot_pages {
public:
   ballot_pages(name self, name task) : self_(self), task_(task) {}

   /// The ballot of this slot, valid until the next call. @pre slot < round::uploads
   const ballot& get(uint32_t slot) {
      load(slot / limits::page_ballots);
      return page_.row.ballots[slot % limits::page_ballots];
   }
   /// The same, to change it: `save` writes it.
   ballot& change(uint32_t slot) {
      load(slot / limits::page_ballots);
      is_changed_ = true;
      return page_.row.ballots[slot % limits::page_ballots];
   }
   void save() {
      if (is_changed_) page_.save();
      is_changed_ = false;
   }

   /// Make room for the ballots of `devices` devices where there was some for one less.
   static void grow(name task, name payer, uint32_t devices) {
      if (devices % limits::page_ballots != 1) return;
      ballot_page row{};
      row.page = devices / limits::page_ballots;
      row.count = limits::page_ballots;
      db_store_i64(task.value, ballots_name, payer.value, row.page, &row, sizeof row);
   }
   /// Leave room for `devices` where there was some for one more.
   static void shrink(name self, name task, uint32_t devices) {
      if (devices % limits::page_ballots != 0) return;
      db_remove_i64(db_find_i64(self.value, task.value, ballots_name, devices / limits::page_ballots));
   }

private:
   [[gnu::noinline]] void load(uint32_t number) {
      if (is_loaded_ && page_.row.page == number) return;
      save();
      page_.find(self_, task_.value, ballots_name, number);
      is_loaded_ = true;
   }

   name                self_, task_;
   bool                is_loaded_ = false, is_changed_ = false;
   stored<ballot_page> page_;
};

}  // namespace gradledger
