// The contract as one translation unit: its topics, and the way from an action to its function.

#include "escrow.cpp"
#include "rounds.cpp"
#include "tasks.cpp"
#include "uploads.cpp"
#include "verdicts.cpp"

namespace gradledger {

namespace {

constexpr uint32_t arguments_max = 20'000;  ///< bytes; limits::attest_max verdicts take 18,522

task_terms read_task_terms(reader& in) {
   task_terms         terms;
   constexpr uint32_t head = offsetof(task_terms, card_cid);
   memcpy(&terms, in.take(head), head);
   const auto cid = in.get_vector<char>();
   get_cid_digest("card_cid", cid);
   terms.card_cid.length = cid_chars;
   memcpy(terms.card_cid.chars, cid.bytes(), cid_chars);
   constexpr uint32_t tail = offsetof(task_terms, card_hash);
   memcpy(reinterpret_cast<char*>(&terms) + tail, in.take(sizeof terms - tail), sizeof terms - tail);
   return terms;
}

}  // namespace

void fedlearning::call(name act, reader in) {
   // every action but `transfer` begins with the task
   const name task = act == "transfer"_n ? name() : in.get<name>();
   switch (act.value) {
      case "fedlearning"_n.value:
      case "uploadgrad"_n.value: {
         const auto device = in.get<name>();
         const auto version = in.get<uint32_t>();
         const auto hash = in.get_vector<char>();
         const auto cid = in.get_vector<char>();
         const auto cost = in.get<uint32_t>();
         const auto errors = in.get_vector<uint32_t>();
         in.finish();
         if (act == "fedlearning"_n) return fedlearn(task, device, version, hash, cid, cost, errors);
         return uploadgrad(task, device, version, hash, cid, cost, errors);
      }
      case "reveal"_n.value:
      case "openupload"_n.value: {
         const auto device = in.get<name>();
         const auto version = in.get<uint32_t>();
         const auto cid = in.get_vector<char>();
         in.finish();
         if (act == "reveal"_n) return reveal(task, device, version, cid);
         return openupload(task, device, version, cid);
      }
      case "commitlot"_n.value:
      case "reveallot"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto validator = in.get<name>();
         const auto hash = in.get<hash256>();
         in.finish();
         if (act == "commitlot"_n) return commitlot(task, version, validator, hash);
         return reveallot(task, version, validator, hash);
      }
      case "attest"_n.value:
      case "attestaudit"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto validator = in.get<name>();
         const auto verdicts = in.get_vector<verdict>();
         in.finish();
         if (act == "attest"_n) return attest(task, version, validator, verdicts);
         return attestaudit(task, version, validator, verdicts);
      }
      case "payment"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto device = in.get<name>();
         const auto quantity = in.get<asset>();
         in.finish();
         return payment(task, version, device, quantity);
      }
      case "attestsum"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto validator = in.get<name>();
         const auto hash = in.get<hash256>();
         const auto cid = in.get_vector<char>();
         in.finish();
         return attestsum(task, version, validator, hash, cid);
      }
      case "join"_n.value: {
         const auto account = in.get<name>();
         const auto enc_key = in.get<hash256>();
         const auto classes = in.get<uint64_t>();
         in.finish();
         return join(task, account, enc_key, classes);
      }
      case "issueset"_n.value: {
         const auto device = in.get<name>();
         const auto version = in.get<uint32_t>();
         const auto cid = in.get_vector<char>();
         const auto hash = in.get_vector<char>();
         in.finish();
         return issueset(task, device, version, cid, hash);
      }
      case "closeround"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto caller = in.get<name>();
         in.finish();
         return closeround(task, version, caller);
      }
      case "push"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto limit = in.get<uint16_t>();
         const auto start = in.is_finished() ? name() : in.get<name>();
         in.finish();
         return push(task, version, limit, start);
      }
      case "settle"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto limit = in.get<uint16_t>();
         const auto caller = in.get<name>();
         in.finish();
         return settle(task, version, limit, caller);
      }
      case "openround"_n.value: {
         const auto version = in.get<uint32_t>();
         const auto model_cid = in.get_vector<char>();
         const auto terms = in.get<round_terms>();
         in.finish();
         return openround(task, version, model_cid, terms);
      }
      case "withdraw"_n.value: {
         const auto quantity = in.get<asset>();
         in.finish();
         return withdraw(task, quantity);
      }
      case "createtask"_n.value: {
         const auto owner = in.get<name>();
         const auto terms = read_task_terms(in);
         in.finish();
         return createtask(task, owner, terms);
      }
      case "admit"_n.value: {
         const auto accounts = in.get_vector<name>();
         const auto role = in.get<uint8_t>();
         in.finish();
         return admit(task, accounts, role);
      }
      case "remove"_n.value: {
         const auto account = in.get<name>();
         in.finish();
         return remove(task, account);
      }
      case "transfer"_n.value: {
         const auto from = in.get<name>();
         const auto to = in.get<name>();
         const auto quantity = in.get<asset>();
         const auto memo = in.get_vector<char>();
         in.finish();
         return on_transfer(from, to, quantity, memo);
      }
      default: fail("unknown_action: expected an action of the contract, got '", act, "'");
   }
}

}  // namespace gradledger

/// Actions of the contract itself, and notifications of a `transfer` of any token. Other
/// notifications are none of its business.
extern "C" void apply(uint64_t receiver, uint64_t code, uint64_t act) {
   using namespace gradledger;
   const bool is_transfer = act == "transfer"_n.value;
   if (code != receiver && !is_transfer) return;
   static char    arguments[arguments_max];
   const uint32_t length = action_data_size();
   if (length > arguments_max)
      fail("limit_exceeded: expected at most ", arguments_max, " bytes of arguments, got ", length);
   if (code == receiver && is_transfer) fail("unknown_action: expected an action of the contract, got 'transfer'");
   read_action_data(arguments, length);
   fedlearning contract(name(receiver), name(code), eosio::datastream<const char*>(arguments, length));
   contract.call(name(act), reader(arguments, arguments + length));
}
