// Hands block production of a local chain to a list of producers.
//
// The eosio.bios that is at hand calls `set_proposed_producers`, which newer chains take without
// effect; this privileged contract uses its successor. It is for local networks alone.
//
//    setprods(producer_key[] schedule), producer_key: name producer, public_key key (K1 or R1)
//
// @auth the contract's own account

#include <eosio/action.h>
#include <eosio/name.hpp>
#include <eosio/privileged.h>
#include <eosio/system.h>

#include <string.h>

namespace {

constexpr uint32_t producers_max = 21;
constexpr uint32_t key_bytes = 34;

struct [[gnu::packed]] producer_key {
   uint64_t producer;
   char     key[key_bytes];
};

/// What `set_proposed_producers_ex` takes in format 1: one key with weight 1 suffices to sign.
struct [[gnu::packed]] producer_authority {
   uint64_t producer;
   uint8_t  kind = 0;  // block_signing_authority_v0
   uint32_t threshold = 1;
   uint8_t  keys = 1;
   char     key[key_bytes];
   uint16_t weight = 1;
};

}  // namespace

extern "C" void apply(uint64_t receiver, uint64_t code, uint64_t act) {
   if (code != receiver) return;
   eosio_assert(act == "setprods"_n.value, "unknown_action: expected setprods");
   require_auth(receiver);

   struct [[gnu::packed]] {
      uint8_t      count;
      producer_key producers[producers_max];
   } given;
   const uint32_t length = action_data_size();
   eosio_assert(length >= 1 && length <= sizeof given, "limit_exceeded: expected 1 to 21 producers");
   read_action_data(&given, length);
   eosio_assert(given.count >= 1 && length == 1 + given.count * sizeof(producer_key),
                "bad_parameter: expected producers with keys of 34 bytes");

   struct [[gnu::packed]] {
      uint8_t            count;
      producer_authority producers[producers_max];
   } proposed;
   proposed.count = given.count;
   for (uint32_t i = 0; i < given.count; ++i) {
      proposed.producers[i].producer = given.producers[i].producer;
      memcpy(proposed.producers[i].key, given.producers[i].key, key_bytes);
   }
   const int64_t version = set_proposed_producers_ex(1, reinterpret_cast<char*>(&proposed),
                                                     1 + given.count * sizeof(producer_authority));
   eosio_assert(version >= 0, "bad_parameter: the chain does not take this schedule");
}
