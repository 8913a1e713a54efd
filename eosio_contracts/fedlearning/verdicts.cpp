// What validators say: attest and attestsum.

#include "rules.hpp"

namespace gradledger {

namespace {

/// Refuse a caller that is no joined validator of the task.
void check_validator(name self, name id, name validator) {
   stored<member> member;
   if (!member.find(self, id.value, members_name, validator.value) || member.row.role != role_validator ||
       !member.row.joined)
      fail("not_a_validator: ", validator, " is no joined validator of task ", id);
}

/// Read the newest round. @return the validator's place in it
uint32_t load_judged(name self, const task& row, uint32_t version, name validator, round_row& round) {
   if (version != row.version || row.version == 0)
      fail("wrong_version: expected a verdict on the current version ", row.version, ", got version ", version);
   round.load(self, row.id, version);
   if (round.head().state == round_settled) fail_state("round_not_open", "unsettled", round.head());
   const uint32_t place = round.position(validator);
   if (place == round.validators())
      fail("not_a_validator: ", validator, " is not among the validators of round ", version);
   return place;
}

/// The member whose newest upload has this hash and lies in round `version`.
stored<member> find_upload(name self, name id, uint32_t version, const hash256& hash) {
   const uint64_t key = by_hash(hash);
   uint64_t       account = 0;
   int32_t        at = db_idx64_find_secondary(self.value, id.value, byhash_name, &key, &account);
   stored<member> found;
   for (uint32_t i = 0; at >= 0 && i < limits::prefix_max; ++i) {
      uint64_t entry;
      if (db_idx64_find_primary(self.value, id.value, byhash_name, &entry, account) < 0 || entry != key) break;
      found.find(self, id.value, members_name, account);
      if (found.row.upload_version == version && found.row.upload_hash == hash) return found;
      at = db_idx64_next(at, &account);
   }
   fail("unknown_upload: no upload of round ", version, " has the hash of the verdict");
}

}  // namespace

void fedlearning::attest(name id, uint32_t version, name validator, view<verdict> verdicts) {
   require_auth(validator.value);
   const auto task = get_task(get_self(), id);
   check_validator(get_self(), id, validator);
   round_row      row;
   const uint32_t place = load_judged(get_self(), task.row, version, validator, row);
   round&         head = row.head();
   if (verdicts.size() > limits::attest_max)
      fail("limit_exceeded: expected at most ", limits::attest_max, " verdicts, got ", verdicts.size());
   if (verdicts.empty()) fail("bad_parameter: verdicts: expected at least 1, got 0");
   const uint32_t quorum = quorum_of(row.validators());
   const uint32_t pending_before = head.pending;
   const bool     is_late = head.state != round_open && now() >= head.verdict_deadline + head.verdict_sec;
   for (uint32_t i = 0; i < verdicts.size(); ++i) {
      const verdict said = verdicts[i];
      if (said.code == 0 || said.code > verdict_code_last)
         fail("bad_verdict: expected 1 to ", uint8_t{verdict_code_last}, ", got ", said.code);
      auto upload = find_upload(get_self(), id, version, said.hash);
      if (upload.row.verdicts.bytes[place] != 0)
         fail("already_attested: ", validator, " has judged the upload of ", upload.row.account, " in round ",
              version);
      upload.row.verdicts.bytes[place] = said.code;
      // a verdict that comes after the decision is recorded and changes nothing
      if (upload.row.upload_state == upload_pending) {
         if (is_late)
            fail("deadline_passed: expected verdicts before ", head.verdict_deadline + head.verdict_sec,
                 ", the time is ", now());
         uint32_t equal = 0;
         for (uint32_t v = 0; v < row.validators(); ++v) equal += upload.row.verdicts.bytes[v] == said.code;
         if (equal >= quorum) decide(task.row, head, upload.row, said.code, said.code == verdict_accept);
      }
      upload.save();
   }
   if (head.pending == pending_before) return;
   advance(task.row, head);
   row.save();
}

void fedlearning::attestsum(name id, uint32_t version, name validator, const hash256& hash, view<char> cid) {
   require_auth(validator.value);
   const auto task = get_task(get_self(), id);
   check_validator(get_self(), id, validator);
   round_row      row;
   const uint32_t place = load_judged(get_self(), task.row, version, validator, row);
   round&         head = row.head();
   if (head.state != round_summing) fail_state("not_summing", "summing", head);
   check_nonzero("hash", hash);
   if (!row.vote(place).hash.is_zero())
      fail("already_attested: ", validator, " has attested the sum of round ", version);
   row.set_vote(place, {hash, get_cid_digest("cid", cid)});
   uint32_t equal = 0;
   for (uint32_t v = 0; v < row.validators(); ++v) equal += row.vote(v).hash == hash;
   if (equal >= quorum_of(row.validators())) {
      head.state = round_summed;
      head.sum_hash = hash;
      head.sum_cid = row.vote(place).cid;
   }
   row.save();
}

}  // namespace gradledger
