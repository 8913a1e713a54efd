// What validators say: attest, attestaudit, commitlot, reveallot, attestsum.

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

/// What the verdicts on an upload come to: the reason of a quorum's decision, or 0.
uint8_t decided_by(const hash256& verdicts, uint32_t validators) {
   uint8_t  votes[verdict_code_last + 1] = {};
   uint32_t refusals = 0;
   for (uint32_t v = 0; v < validators; ++v) {
      const uint8_t code = verdicts.bytes[v];
      ++votes[code];
      refusals += code > verdict_accept;
   }
   const uint32_t quorum = quorum_of(validators);
   if (votes[verdict_accept] >= quorum) return verdict_accept;
   if (refusals < quorum) return 0;
   uint8_t reason = verdict_accept + 1;
   for (uint8_t code = reason; code <= verdict_code_last; ++code)
      if (votes[code] > votes[reason]) reason = code;
   return reason;
}

}  // namespace

void fedlearning::attest(name id, uint32_t version, name validator, view<verdict> verdicts) {
   judge(id, version, validator, verdicts, false);
}

void fedlearning::attestaudit(name id, uint32_t version, name validator, view<verdict> verdicts) {
   judge(id, version, validator, verdicts, true);
}

void fedlearning::judge(name id, uint32_t version, name validator, view<verdict> verdicts, bool is_audit) {
   require_auth(validator.value);
   const auto task = get_task(get_self(), id);
   check_validator(get_self(), id, validator);
   round_row      row;
   const uint32_t place = load_judged(get_self(), task.row, version, validator, row);
   round&         head = row.head();
   if (verdicts.size() > limits::attest_max)
      fail("limit_exceeded: expected at most ", limits::attest_max, " verdicts, got ", verdicts.size());
   if (verdicts.empty()) fail("bad_parameter: verdicts: expected at least 1, got 0");
   // what changes when an upload is decided: one of these, and with it the round's row
   const uint32_t before[] = {head.pending, head.held, head.drawn};
   for (uint32_t i = 0; i < verdicts.size(); ++i) {
      const verdict said = verdicts[i];
      if (said.code == 0 || said.code > verdict_code_last)
         fail("bad_verdict: expected 1 to ", uint8_t{verdict_code_last}, ", got ", said.code);
      auto upload = find_upload(get_self(), id, version, said.hash);
      const bool is_opened = !upload.row.opening_cid.is_zero();
      if (is_audit && !is_opened)
         fail("not_opened: expected a verdict on an opened upload, that of ", upload.row.account, " is not");
      // the verdict before the audit came too late, and is none in the audit
      if (!is_audit && (is_opened || upload.row.upload_state == upload_drawn)) continue;
      if (upload.row.verdicts.bytes[place] != 0)
         fail("already_attested: ", validator, " has judged the upload of ", upload.row.account, " in round ",
              version);
      upload.row.verdicts.bytes[place] = said.code;
      // a verdict that comes after the decision is recorded and changes nothing
      if (upload.row.upload_state == (is_audit ? upload_drawn : upload_pending)) {
         if (upload.row.upload_cid.is_zero() &&
             (said.code == verdict_accept || head.state == round_open || now() < head.reveal_deadline))
            fail("not_revealed: expected a refusal after ", head.reveal_deadline, ", the CID of ",
                 upload.row.account, " is not known");
         const seconds last = is_audit ? head.audit_deadline + 2 * head.audit_sec : head.verdict_deadline + head.verdict_sec;
         if (head.state != round_open && now() >= last)
            fail("deadline_passed: expected verdicts before ", last, ", the time is ", now());
         const uint8_t reason = decided_by(upload.row.verdicts, row.validators());
         if (reason == verdict_accept && !is_audit && task.row.terms.lot_e6 != 0) {
            upload.row.upload_state = upload_accepted;
            --head.pending;
            ++head.held;
         } else if (reason != 0) {
            decide(task.row, head, upload.row, reason, reason == verdict_accept);
         }
      }
      upload.save();
   }
   if (head.pending == before[0] && head.held == before[1] && head.drawn == before[2]) return;
   advance(task.row, head);
   row.save();
}

void fedlearning::commitlot(name id, uint32_t version, name validator, const hash256& commitment) {
   require_auth(validator.value);
   const auto task = get_task(get_self(), id);
   check_validator(get_self(), id, validator);
   round_row      row;
   const uint32_t place = load_judged(get_self(), task.row, version, validator, row);
   if (task.row.terms.lot_e6 == 0) fail("no_lots: expected a task with audits, ", id, " has none");
   if (row.head().state != round_open) fail_state("round_not_open", "open", row.head());
   if (row.head().uploads != 0)
      fail("uploads_begun: expected a lot before the first upload, there are ", row.head().uploads);
   check_nonzero("commitment", commitment);
   if (!row.draw(place).commitment.is_zero())
      fail("already_committed: ", validator, " has a lot in round ", version);
   row.set_draw(place, {commitment, hash256{}});
   row.save();
}

void fedlearning::reveallot(name id, uint32_t version, name validator, const hash256& value) {
   require_auth(validator.value);
   const auto task = get_task(get_self(), id);
   check_validator(get_self(), id, validator);
   round_row      row;
   const uint32_t place = load_judged(get_self(), task.row, version, validator, row);
   if (row.head().state != round_drawing) fail_state("not_drawing", "drawing", row.head());
   check_nonzero("value", value);
   lot draw = row.draw(place);
   if (!draw.value.is_zero()) fail("already_revealed: ", validator, " has revealed its lot of round ", version);
   if (draw.commitment != lot_commitment(id.value, version, validator.value, value, host_sha256()))
      fail("wrong_lot: expected the value that ", validator, " committed to in round ", version);
   draw.value = value;
   row.set_draw(place, draw);
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
