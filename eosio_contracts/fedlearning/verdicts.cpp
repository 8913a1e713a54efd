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
   const seconds last = is_audit ? head.audit_deadline + 2 * head.audit_sec : head.verdict_deadline + head.verdict_sec;
   const bool     is_late = head.state != round_open && now() >= last;
   const bool     is_hidden_judged = head.state != round_open && now() >= head.reveal_deadline;
   ballot_pages   pages(get_self(), id);
   for (uint32_t i = 0; i < verdicts.size(); ++i) {
      const verdict said = verdicts[i];
      if (said.code == 0 || said.code > verdict_code_last)
         fail("bad_verdict: expected 1 to ", uint8_t{verdict_code_last}, ", got ", said.code);
      if (said.slot >= head.uploads)
         fail("unknown_upload: expected a slot below ", uint32_t(head.uploads), ", the uploads of round ", version,
              ", got ", said.slot);
      const ballot& found = pages.get(said.slot);
      if (found.hash != said.hash)
         fail("unknown_upload: expected the hash of the upload in slot ", said.slot, " of round ", version,
              ", got another");
      if (is_audit && found.stage < ballot_opened)
         fail("not_opened: expected a verdict on an opened upload, that of ", name(found.device), " is not");
      // the verdict before the audit came too late, and is none in the audit
      if (!is_audit && found.stage >= ballot_drawn) continue;
      if (found.verdicts.bytes[place] != 0)
         fail("already_attested: ", validator, " has judged the upload of ", name(found.device), " in round ",
              version);
      ballot& given = pages.change(said.slot);
      given.verdicts.bytes[place] = said.code;
      // a verdict that comes after the decision is recorded and changes nothing
      if (given.stage == ballot_decided || given.stage == ballot_audited) continue;
      if (given.stage == ballot_hidden && (said.code == verdict_accept || !is_hidden_judged))
         fail("not_revealed: expected a refusal after ", seconds(head.reveal_deadline), ", the CID of ",
              name(given.device), " is not known");
      if (is_late) fail("deadline_passed: expected verdicts before ", last, ", the time is ", now());
      const uint8_t reason = decided_by<verdict_accept, verdict_code_last>(given.verdicts, row.validators());
      if (reason == 0) continue;
      given.stage = is_audit ? ballot_audited : ballot_decided;
      stored<member> upload;
      upload.find(get_self(), id.value, members_name, given.device.value);
      if (reason == verdict_accept && !is_audit && task.row.terms.lot_e6 != 0) {
         upload.row.upload_state = upload_accepted;
         --head.pending;
         ++head.held;
      } else {
         decide(task.row, head, upload.row, reason, reason == verdict_accept);
      }
      upload.save();
   }
   pages.save();
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
