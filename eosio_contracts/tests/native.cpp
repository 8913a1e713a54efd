// The contract's pure arithmetic as a program: one question a line on standard input, one answer a
// line on standard output. tests/contracts/test_native.py asks.
//
//    csves TAU HELD E0 E1 ...  numerator trend threshold either both excess gain
//    price COST PRICE          amount, or - where it does not fit
//    add A B | sub A B         result, or - where it does not fit
//    quorum V                  equal verdicts that decide
//    decided V HASH            reason that the verdicts of V validators decide for, or 0; a byte each
//    lot TASK VERSION NAME V   what a validator commits to, in hex; names as integers, V 32 bytes in hex
//    draws V HASH LOT_E6       1 if the value draws the upload with this hash
//    cid TEXT                  digest in hex, or - where it is no CIDv0
//    merkle RECORD ...         root in hex; records of 102 bytes in hex
//    merkle_count N            root of N records, record i being i (4 bytes, little endian) and 98 zeros

#include "../common/cid.hpp"
#include "../common/csves.hpp"
#include "../common/lots.hpp"
#include "../common/merkle.hpp"
#include "../common/price.hpp"
#include "../common/quorum.hpp"

#include <stdio.h>
#include <stdlib.h>

using namespace gradledger;

namespace {

constexpr uint32_t record_bytes = 102;
constexpr uint8_t  verdict_accept = 1, verdict_code_last = 17;

/// FIPS 180-4; the contract itself asks the chain.
struct sha256 {
   static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

   /// The first 32 bits of the fractional part of a prime's root, by exact integer search.
   static uint32_t root_bits(uint32_t prime, bool cube) {
      // largest r with r^2 <= prime * 2^64 (or r^3 <= prime * 2^96); its low 32 bits
      unsigned __int128 low = 0, high = static_cast<unsigned __int128>(1) << 38;
      while (high - low > 1) {
         const unsigned __int128 r = (low + high) / 2;
         bool fits;
         if (cube) {
            const unsigned __int128 square = r * r;  // < 2^76
            // r^3 <= prime * 2^96  <=>  r^2 * r / 2^96 <= prime, exactly by halves
            const unsigned __int128 top = (square >> 40) * r, rest = (square & 0xffffffffff) * r;
            const unsigned __int128 sum = top + (rest >> 40);  // floor(r^3 / 2^40)
            fits = sum < static_cast<unsigned __int128>(prime) << 56;
         } else {
            fits = r * r < static_cast<unsigned __int128>(prime) << 64;
         }
         (fits ? low : high) = r;
      }
      return static_cast<uint32_t>(low);
   }

   hash256 operator()(const uint8_t* bytes, uint32_t length) const {
      static uint32_t k[64], initial[8];
      if (k[0] == 0) {
         uint32_t count = 0;
         for (uint32_t n = 2; count < 64; ++n) {
            bool is_prime = true;
            for (uint32_t d = 2; d * d <= n; ++d) is_prime = is_prime && n % d != 0;
            if (!is_prime) continue;
            if (count < 8) initial[count] = root_bits(n, false);
            k[count++] = root_bits(n, true);
         }
      }
      uint32_t h[8];
      memcpy(h, initial, sizeof h);
      const uint64_t padded = (uint64_t{length} + 9 + 63) / 64 * 64;
      for (uint64_t at = 0; at < padded; at += 64) {
         uint32_t w[64] = {};
         for (uint64_t i = at; i < at + 64; ++i) {
            uint32_t byte = i < length ? bytes[i] : i == length ? 0x80 : 0;
            if (i >= padded - 8) byte = static_cast<uint8_t>(uint64_t{length} * 8 >> (8 * (padded - 1 - i)));
            w[(i - at) / 4] |= byte << (24 - 8 * (i % 4));
         }
         for (int i = 16; i < 64; ++i)
            w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
                   (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
         uint32_t s[8];
         memcpy(s, h, sizeof s);
         for (int i = 0; i < 64; ++i) {
            const uint32_t one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) +
                                 ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            const uint32_t two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) +
                                 ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            memmove(s + 1, s, 7 * sizeof *s);
            s[4] += one;
            s[0] = one + two;
         }
         for (int i = 0; i < 8; ++i) h[i] += s[i];
      }
      hash256 digest;
      for (int i = 0; i < 32; ++i) digest.bytes[i] = static_cast<uint8_t>(h[i / 4] >> (24 - 8 * (i % 4)));
      return digest;
   }
};

void print_hash(const hash256& hash) {
   for (const uint8_t byte : hash.bytes) printf("%02x", byte);
   printf("\n");
}

hash256 read_hash(const char* text) {
   hash256 hash;
   for (uint32_t i = 0; i < sizeof hash.bytes; ++i) {
      const char byte[3] = {text[2 * i], text[2 * i + 1], 0};
      hash.bytes[i] = static_cast<uint8_t>(strtoul(byte, nullptr, 16));
   }
   return hash;
}

struct series {
   uint32_t errors[64];
   uint32_t count;
   uint32_t size() const { return count; }
   uint32_t operator[](uint32_t index) const { return errors[index]; }
};

void answer(char* line) {
   char*       rest = nullptr;
   const char* what = strtok_r(line, " \n", &rest);
   const auto  next = [&] { return strtok_r(nullptr, " \n", &rest); };
   if (what == nullptr) return;
   if (strcmp(what, "csves") == 0) {
      const uint32_t tau = static_cast<uint32_t>(strtoul(next(), nullptr, 10));
      const uint32_t held = static_cast<uint32_t>(strtoul(next(), nullptr, 10));
      series         found{};
      while (const char* text = next()) found.errors[found.count++] = static_cast<uint32_t>(strtoul(text, nullptr, 10));
      printf("%lld", static_cast<long long>(slope_numerator(found)));
      for (uint8_t rule = rule_trend; rule <= rule_both; ++rule) printf(" %d", meets(rule, found, tau, held));
      printf(" %lld %d\n", static_cast<long long>(gain_excess(found, held)), meets(rule_gain, found, tau, held));
   } else if (strcmp(what, "merkle") == 0 || strcmp(what, "merkle_count") == 0) {
      hash256  frontier[merkle_levels] = {};
      uint32_t count = 0;
      uint8_t  record[record_bytes] = {};
      const auto append = [&] { merkle_append(frontier, count++, merkle_leaf<record_bytes>(record, sha256()), sha256()); };
      if (what[6] == '_') {
         const uint32_t leaves = static_cast<uint32_t>(strtoul(next(), nullptr, 10));
         while (count < leaves) {
            memcpy(record, &count, sizeof count);
            append();
         }
      } else {
         while (const char* text = next()) {
            for (uint32_t i = 0; i < record_bytes; ++i) {
               const char byte[3] = {text[2 * i], text[2 * i + 1], 0};
               record[i] = static_cast<uint8_t>(strtoul(byte, nullptr, 16));
            }
            append();
         }
      }
      print_hash(merkle_root(frontier, count, sha256()));
   } else if (strcmp(what, "cid") == 0) {
      const char* text = next();
      hash256     digest;
      if (decode_cid(text ? text : "", text ? static_cast<uint32_t>(strlen(text)) : 0, digest)) print_hash(digest);
      else printf("-\n");
   } else if (strcmp(what, "lot") == 0) {
      const uint64_t task = strtoull(next(), nullptr, 10);
      const uint32_t version = static_cast<uint32_t>(strtoul(next(), nullptr, 10));
      const uint64_t validator = strtoull(next(), nullptr, 10);
      print_hash(lot_commitment(task, version, validator, read_hash(next()), sha256()));
   } else if (strcmp(what, "draws") == 0) {
      const hash256 value = read_hash(next()), upload = read_hash(next());
      printf("%d\n", draws(value, upload, static_cast<uint32_t>(strtoul(next(), nullptr, 10)), sha256()));
   } else if (strcmp(what, "decided") == 0) {
      const uint32_t validators = static_cast<uint32_t>(strtoul(next(), nullptr, 10));
      printf("%u\n", decided_by<verdict_accept, verdict_code_last>(read_hash(next()), validators));
   } else if (strcmp(what, "quorum") == 0) {
      printf("%u\n", quorum_of(static_cast<uint32_t>(strtoul(next(), nullptr, 10))));
   } else {
      const int64_t a = strtoll(next(), nullptr, 10), b = strtoll(next(), nullptr, 10);
      int64_t       result = 0;
      bool          fits = false;
      if (strcmp(what, "price") == 0) fits = checked_price(static_cast<uint32_t>(a), b, result);
      if (strcmp(what, "add") == 0) fits = checked_add(a, b, result);
      if (fits) printf("%lld\n", static_cast<long long>(result));
      else printf("-\n");
   }
}

}  // namespace

int main() {
   static char line[1 << 20];
   while (fgets(line, sizeof line, stdin)) answer(line);
}
