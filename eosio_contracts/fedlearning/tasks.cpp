// Tasks and their members: createtask, admit, remove, issueset, join.

#include "rules.hpp"

namespace gradledger {

namespace {

void check_terms(const task_terms& terms) {
   if (!is_account(terms.token_contract.value))
      fail("bad_parameter: token_contract: expected an account, got '", terms.token_contract, "'");
   check_range("token_symbol precision", terms.token_symbol.raw & 0xff, 0, 18);
   uint32_t letters = 0;
   for (uint64_t rest = terms.token_symbol.raw >> 8; rest; rest >>= 8, ++letters)
      if ((rest & 0xff) < 'A' || (rest & 0xff) > 'Z') fail("bad_parameter: token_symbol: expected letters A to Z");
   if (letters == 0) fail("bad_parameter: token_symbol: expected 1 to 7 letters, got none");
   check_range("mode", terms.mode, 0, mode_sealed);
   check_range("is_public", terms.is_public, 0, 1);
   check_range("validators_kind", terms.validators_kind, 0, validators_producers);
   check_range("silence", terms.silence, 0, silence_pay);
   check_range("classes", terms.classes, 1, limits::classes_max);
   check_range("errors_max", terms.errors_max, 2, limits::errors_max);
   check_range("cost_max", terms.cost_max, 1, UINT32_MAX);
   check_range("devices_max", terms.devices_max, 1, UINT16_MAX);
   check_range("parameters", terms.parameters, 1, INT32_MAX);
   check_range("clip_e6", terms.clip_e6, 1, UINT32_MAX);
   check_nonzero("card_hash", terms.card_hash);
   check_range("lot_e6", terms.lot_e6, 0, terms.mode == mode_paillier ? limits::error_scale : 0);
   check_range("bar_rounds", terms.bar_rounds, 0, limits::bar_rounds_max);
   if (terms.mode == mode_paillier) {
      check_range("sum_min", terms.sum_min, limits::sum_min_floor, terms.devices_max);
      check_range("slot_bits", terms.slot_bits, 17, 32);
      if (uint64_t{terms.devices_max} * 65535 >> terms.slot_bits)
         fail("bad_parameter: slot_bits: ", terms.devices_max, " devices x 65535 do not fit ", terms.slot_bits,
              " bits");
      check_nonzero("key_hash", terms.key_hash);
   } else if (!terms.key_hash.is_zero()) {
      fail("bad_parameter: key_hash: expected zero in sealed mode");
   }
}

uint64_t class_mask(uint8_t classes) { return classes == 64 ? ~uint64_t{0} : (uint64_t{1} << classes) - 1; }

}  // namespace

void fedlearning::createtask(name id, name owner, const task_terms& terms) {
   require_auth(owner.value);
   if (id == name()) fail("bad_parameter: task: expected a name, got none");
   if (db_find_i64(get_self().value, get_self().value, tasks_name, id.value) >= 0)
      fail("task_exists: expected a new name, got that of task ", id);
   check_terms(terms);
   task row{};
   row.id = id;
   row.owner = owner;
   row.terms = terms;
   db_store_i64(get_self().value, tasks_name, owner.value, id.value, &row, sizeof row);
}

void fedlearning::admit(name id, view<name> accounts, uint8_t role) {
   auto task = get_task(get_self(), id);
   require_auth(task.row.owner.value);
   if (accounts.size() > limits::admit_max)
      fail("limit_exceeded: expected at most ", limits::admit_max, " accounts, got ", accounts.size());
   if (accounts.empty()) fail("bad_parameter: accounts: expected at least 1, got 0");
   if (role != role_device && role != role_validator)
      fail("wrong_role: expected 1 (device) or 2 (validator), got ", role);
   const uint32_t max = role == role_device ? task.row.terms.devices_max : limits::validators_max;
   const uint32_t count = accounts.size() + (role == role_device ? task.row.devices : task.row.validators);
   if (count > max)
      fail("limit_exceeded: expected at most ", max, role == role_device ? " devices, got " : " validators, got ",
           count);
   (role == role_device ? task.row.devices : task.row.validators) = static_cast<uint16_t>(count);
   for (uint32_t i = 0; i < accounts.size(); ++i) {
      const name account = accounts[i];
      if (!is_account(account.value)) fail("bad_parameter: accounts: '", account, "' is no account");
      if (account == task.row.owner)
         fail("owner_cannot_upload: the owner ", account, " cannot be a member of task ", id);
      if (account == get_self()) fail("bad_parameter: accounts: the contract cannot be a member");
      if (db_find_i64(get_self().value, id.value, members_name, account.value) >= 0)
         fail("already_member: ", account, " is a member of task ", id);
      member row{};
      row.account = account;
      row.role = role;
      const uint64_t payer = task.row.owner.value;
      db_store_i64(id.value, members_name, payer, account.value, &row, sizeof row);
      const bool     is_device = role == role_device;
      const uint64_t key = is_device ? account.value : 0;
      db_idx64_store(id.value, is_device ? byhash_name : validators_name, payer, account.value, &key);
      if (is_device) ballot_pages::grow(id, task.row.owner, count - accounts.size() + i + 1);
   }
   task.save();
}

void fedlearning::remove(name id, name account) {
   auto task = get_task(get_self(), id);
   if (!has_auth(account.value)) require_auth(task.row.owner.value);
   stored<member> member;
   if (!member.find(get_self(), id.value, members_name, account.value))
      fail("not_a_member: ", account, " is no member of task ", id);
   const bool is_device = member.row.role == role_device;
   round_row  round;
   if (load_unsettled(get_self(), task.row, round)) {
      if (is_device && member.row.upload_version == task.row.version)
         fail("round_open: ", account, " has an upload in round ", task.row.version, ", which is not settled");
      if (!is_device && round.position(account) < round.validators())
         fail("round_open: ", account, " is a validator of round ", task.row.version, ", which is not settled");
   }
   uint64_t      key;
   const int32_t entry = db_idx64_find_primary(get_self().value, id.value, is_device ? byhash_name : validators_name,
                                               &key, account.value);
   db_idx64_remove(entry);
   db_remove_i64(member.at);
   --(is_device ? task.row.devices : task.row.validators);
   if (is_device) ballot_pages::shrink(get_self(), id, task.row.devices);
   task.save();
}

void fedlearning::issueset(name id, name device, uint32_t version, view<char> cid, view<char> hash) {
   const auto task = get_task(get_self(), id);
   require_auth(task.row.owner.value);
   // A set belongs to the round that is open or, between rounds, to the next one: the sealed mode's
   // validators measure on it, so that no other may take its place before they have.
   round_row  round;
   const bool is_unsettled = load_unsettled(get_self(), task.row, round);
   if (version != task.row.version + 1) {
      check_version(task.row, version);
      if (!is_unsettled || round.head().state != round_open) fail_state("round_not_open", "open", round.head());
   } else if (is_unsettled) {
      fail_state("round_open", "settled", round.head());
   }
   stored<member> member;
   if (!member.find(get_self(), id.value, members_name, device.value))
      fail("not_a_member: ", device, " is no member of task ", id);
   if (member.row.role != role_device) fail("wrong_role: expected a device, ", device, " is a validator");
   if (!member.row.joined) fail("not_joined: ", device, " has not joined task ", id);
   if (member.row.upload_version == version)
      fail("already_uploaded: expected no upload of ", device, " for version ", version, " yet");
   member.row.set_version = version;
   member.row.set_cid = get_cid_digest("cid", cid);
   member.row.set_hash = get_hash("hash", hash);
   member.save();
}

void fedlearning::join(name id, name account, const hash256& enc_key, uint64_t classes) {
   require_auth(account.value);
   const auto     task = get_task(get_self(), id);
   stored<member> member;
   if (!member.find(get_self(), id.value, members_name, account.value))
      fail("not_a_member: ", account, " is no member of task ", id);
   round_row round;
   if (member.row.joined && load_unsettled(get_self(), task.row, round))
      fail("round_open: ", account, " has joined and round ", task.row.version, " is not settled");
   if (enc_key.is_zero()) fail("bad_parameter: enc_key: expected an X25519 public key, got 32 zero bytes");
   if (member.row.role == role_device ? classes == 0 || classes & ~class_mask(task.row.terms.classes) : classes != 0)
      fail("bad_parameter: classes: expected ",
           member.row.role == role_device ? "a set of some of the classes, of which there are " : "none of ",
           task.row.terms.classes, ", got ", classes);
   member.row.joined = 1;
   member.row.enc_key = enc_key;
   member.row.classes = classes;
   member.save();
}

}  // namespace gradledger
