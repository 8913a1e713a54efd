// The life of a round: openround, closeround, push, settle.

#include "rules.hpp"

namespace gradledger {

namespace {

void check_round_terms(const task_terms& task, const round_terms& terms) {
   check_nonzero("model_hash", terms.model_hash);
   check_range("price", static_cast<uint64_t>(terms.price), 1, amount_max);
   check_range("budget", static_cast<uint64_t>(terms.budget), 0, amount_max);
   check_range("open_sec", terms.open_sec, 1, limits::phase_sec_max);
   check_range("verdict_sec", terms.verdict_sec, 1, limits::phase_sec_max);
   check_range("sum_sec", terms.sum_sec, 1, limits::phase_sec_max);
   check_range("reveal_sec", terms.reveal_sec, 0, limits::phase_sec_max);
   const bool has_lots = task.lot_e6 != 0;
   check_range("audit_sec", terms.audit_sec, has_lots, has_lots ? limits::phase_sec_max : 0);
   check_range("rule", terms.rule, rule_trend, rule_gain);
   check_range("tau", terms.tau, 0, limits::error_scale + 1);
   check_range("training.epochs", terms.training.epochs, 1, UINT16_MAX);
   check_range("training.batch_size", terms.training.batch_size, 1, UINT16_MAX);
   const bool is_gain = terms.rule == rule_gain;  // two doubts at least, and one error more
   check_range("training.measures", terms.training.measures, 1 + is_gain, task.errors_max - is_gain);
   int64_t amount;
   if (!checked_price(task.cost_max, terms.price, amount))
      fail("overflow: ", uint32_t(task.cost_max), " x ", int64_t(terms.price), " is more than an asset can hold");
}

/// All joined validators of the task, ascending. @return their number
uint32_t joined_validators(name self, name id, name* accounts) {
   uint64_t key = 0, account = 0;
   uint32_t count = 0;
   int32_t  at = db_idx64_lowerbound(self.value, id.value, validators_name, &key, &account);
   for (; at >= 0 && count < limits::validators_max; at = db_idx64_next(at, &account)) {
      stored<member> member;
      member.find(self, id.value, members_name, account);
      if (member.row.joined) accounts[count++] = name(account);
   }
   return count;
}

/**
 * The validators of a new round, ascending. Of producers the whole active schedule is taken, so that
 * the quorum counts those that have not joined as well; at least one must have joined.
 */
uint32_t choose_validators(name self, const task& row, name* chosen) {
   name     joined[limits::validators_max];
   uint32_t joined_count = joined_validators(self, row.id, joined);
   uint32_t count = joined_count;
   if (row.terms.validators_kind == validators_named) {
      memcpy(chosen, joined, sizeof joined);
   } else {
      constexpr uint32_t producers_max = 125;  // of an Antelope chain
      uint64_t           producers[producers_max];
      count = get_active_producers(producers, sizeof producers) / sizeof(uint64_t);
      if (count > limits::validators_max)
         fail("limit_exceeded: expected at most ", limits::validators_max, " active producers, got ", count);
      for (uint32_t i = 0; i < count; ++i) {
         uint32_t place = i;
         for (; place > 0 && chosen[place - 1].value > producers[i]; --place) chosen[place] = chosen[place - 1];
         chosen[place] = name(producers[i]);
      }
      uint32_t active = 0;
      for (uint32_t i = 0; i < joined_count; ++i)
         for (uint32_t j = 0; j < count; ++j) active += joined[i] == chosen[j];
      joined_count = active;
   }
   if (joined_count == 0) fail("not_a_validator: expected at least 1 joined validator of task ", name(row.id), ", got 0");
   return count;
}

/// Visits up to `limit` members in ascending order, beginning at `head.cursor`, which moves on.
/// @return whether the last member was visited
template <typename Visit>
bool visit_members(name self, name id, round& head, uint16_t limit, Visit&& visit) {
   if (limit == 0) fail("bad_parameter: limit: expected at least 1, got 0");
   int32_t  at = db_lowerbound_i64(self.value, id.value, members_name, head.cursor.value);
   uint64_t next = 0;
   for (; at >= 0 && limit > 0; --limit) {
      stored<member> member;
      member.load(at);
      visit(member);
      at = db_next_i64(at, &next);
   }
   head.cursor = at >= 0 ? name(next) : name();
   return at < 0;
}

/// Whether every lot that was committed to is revealed.
bool is_drawn_up(const round_row& row) {
   for (uint32_t v = 0; v < row.validators(); ++v) {
      const lot draw = row.draw(v);
      if (!draw.commitment.is_zero() && draw.value.is_zero()) return false;
   }
   return true;
}

/// Whether any lot draws the upload with this hash for an audit.
bool is_drawn(const task& task, const round_row& row, const hash256& upload) {
   for (uint32_t v = 0; v < row.validators(); ++v) {
      const lot draw = row.draw(v);
      if (!draw.value.is_zero() && draws(draw.value, upload, task.terms.lot_e6, host_sha256())) return true;
   }
   return false;
}

/// The leaf of an upload: docs/protocol.md section 5.
hash256 upload_leaf(const task& row, const round& head, const member& upload) {
   struct [[gnu::packed]] {
      uint64_t task;
      uint32_t version;
      uint64_t device;
      hash256  hash, cid;
      uint32_t cost, error_last;
      uint8_t  state, reason;
      int64_t  paid;
   } record{row.id.value, head.version, upload.account.value, upload.upload_hash, upload.upload_cid,
            upload.upload_cost, upload.error_last, upload.upload_state, upload.upload_reason, 0};
   static_assert(sizeof record == 102);
   int64_t amount;
   if (upload.upload_state == upload_paid && checked_price(upload.upload_cost, head.price, amount))
      record.paid = amount;
   return merkle_leaf<sizeof record>(reinterpret_cast<const uint8_t*>(&record), host_sha256());
}

}  // namespace

void fedlearning::openround(name id, uint32_t version, view<char> model_cid, const round_terms& terms) {
   auto task = get_task(get_self(), id);
   require_auth(task.row.owner.value);
   if (version != task.row.version + 1)
      fail(version <= task.row.version ? "stale_version: expected version " : "future_version: expected version ",
           task.row.version + 1, ", got ", version, ", the current version is ", uint32_t(task.row.version));
   round_row row;
   if (load_unsettled(get_self(), task.row, row))
      fail("round_open: expected round ", uint32_t(task.row.version), " to be settled, it is ",
           state_name(row.head().state));
   check_round_terms(task.row.terms, terms);
   const int64_t free = free_money(task.row, nullptr);
   if (terms.budget > free) {
      const symbol sym = task.row.terms.token_symbol;
      fail("budget_short: expected ", asset{terms.budget, sym}, " free, got ", asset{free, sym}, ", short by ",
           asset{terms.budget - free, sym});
   }
   name           validators[limits::validators_max];
   const uint32_t count = choose_validators(get_self(), task.row, validators);

   round& head = row.head();
   head = round{};
   head.version = version;
   head.state = round_open;
   head.model_cid = get_cid_digest("model_cid", model_cid);
   head.model_hash = terms.model_hash;
   head.price = terms.price;
   head.budget = terms.budget;
   head.deadline = now() + terms.open_sec;
   head.verdict_sec = terms.verdict_sec;
   head.sum_sec = terms.sum_sec;
   head.reveal_sec = terms.reveal_sec;
   head.audit_sec = terms.audit_sec;
   head.opened_block = get_block_num();
   head.close_after = terms.close_after;
   head.rule = terms.rule;
   head.tau = terms.tau;
   head.eta_e6 = terms.eta_e6;
   head.norm_max_e6 = terms.norm_max_e6;
   head.training = terms.training;
   row.lay_out(validators, count, task.row.terms.lot_e6 != 0);
   row.store(id, task.row.owner);
   task.row.version = version;
   task.save();
}

void fedlearning::closeround(name id, uint32_t version, name caller) {
   require_auth(caller.value);
   const auto task = get_task(get_self(), id);
   check_version(task.row, version);
   round_row row;
   row.load(get_self(), id, version);
   round& head = row.head();
   if (head.state != round_open) fail_state("round_not_open", "open", head);
   const bool is_early_allowed =
      caller == task.row.owner && head.close_after != 0 && head.uploads >= head.close_after;
   if (now() < head.deadline && !is_early_allowed)
      fail("deadline_not_passed: expected a time of at least ", head.deadline, ", it is ", now());
   head.state = round_verifying;
   if (head.reveal_sec != 0) head.reveal_deadline = now() + head.reveal_sec;
   head.verdict_deadline = now() + head.reveal_sec + head.verdict_sec;
   advance(task.row, head);
   row.save();
}

void fedlearning::push(name id, uint32_t version, uint16_t limit, name start) {
   const auto task = get_task(get_self(), id);
   check_version(task.row, version);
   round_row row;
   row.load(get_self(), id, version);
   round& head = row.head();
   constexpr auto phases = "verifying, drawing, auditing or summing";
   if (head.state == round_open) fail_state("round_not_closed", phases, head);
   if (head.state > round_summing) fail_state("not_summing", phases, head);
   const bool    is_audit = head.state == round_drawing || head.state == round_auditing;
   const seconds deadline = is_audit                         ? head.audit_deadline
                            : head.state == round_verifying ? head.verdict_deadline
                                                            : head.sum_deadline;
   if (now() < deadline && !(head.state == round_drawing && is_drawn_up(row)))
      fail("deadline_not_passed: expected a time of at least ", deadline, ", it is ", now());
   if (head.state == round_summing) {
      head.state = round_summed;
      row.save();
      return;
   }
   const bool is_last = now() >= deadline + (is_audit ? head.audit_sec : head.verdict_sec);
   const name cursor = head.cursor;
   if (start != name()) head.cursor = start;
   const uint8_t phase = head.state;
   ballot_pages  pages(get_self(), id);
   visit_members(get_self(), id, head, limit, [&](stored<member>& upload) {
      if (upload.row.upload_version != version) return;
      if (push_upload(task.row, row, pages, upload.row, phase, is_last)) upload.save();
   });
   pages.save();
   if (start != name()) head.cursor = cursor;
   advance(task.row, head);
   row.save();
}

bool fedlearning::push_upload(const task& task, round_row& row, ballot_pages& pages, member& upload, uint8_t phase,
                              bool is_last) {
   round&     head = row.head();
   const bool pays = task.terms.silence == silence_pay;
   if (phase == round_verifying && upload.upload_state == upload_pending) {
      pages.change(upload.upload_slot).stage = ballot_decided;
      if (upload.upload_cid.is_zero()) decide(task, head, upload, verdict_unrevealed, false);
      else decide(task, head, upload, is_last ? reason_undelivered : reason_silence, pays && !is_last);
   } else if (phase == round_drawing && upload.upload_state == upload_accepted) {
      if (is_last) {
         decide(task, head, upload, reason_undelivered, false);
      } else if (is_drawn(task, row, upload.upload_hash)) {
         upload.upload_state = upload_drawn;
         ballot& drawn = pages.change(upload.upload_slot);
         drawn.stage = ballot_drawn;
         drawn.verdicts = hash256{};
         --head.held;
         ++head.drawn;
      } else {
         decide(task, head, upload, verdict_accept, true);
      }
   } else if (phase == round_auditing && upload.upload_state == upload_drawn) {
      // what was opened at the last moment must be judged as well, before silence decides
      const bool is_gone = now() >= head.audit_deadline + 2 * head.audit_sec;
      if (upload.opening_cid.is_zero()) {
         decide(task, head, upload, reason_unanswered, false);
      } else {
         if (!is_last) return false;
         pages.change(upload.upload_slot).stage = ballot_audited;
         decide(task, head, upload, is_gone ? reason_undelivered : reason_silence, pays && !is_gone);
      }
   } else {
      return false;
   }
   return true;
}

void fedlearning::settle(name id, uint32_t version, uint16_t limit, name caller) {
   require_auth(caller.value);
   auto task = get_task(get_self(), id);
   check_version(task.row, version);
   round_row row;
   row.load(get_self(), id, version);
   round& head = row.head();
   if (head.state != round_summed) fail_state("not_summed", "summed", head);
   if (caller != task.row.owner && now() < head.sum_deadline)
      fail("deadline_not_passed: expected the owner or a time of at least ", head.sum_deadline, ", it is ", now());
   const bool is_done = visit_members(get_self(), id, head, limit, [&](const stored<member>& upload) {
      if (upload.row.upload_version != version) return;
      merkle_append(row.frontier(), head.settled, upload_leaf(task.row, head, upload.row), host_sha256());
      ++head.settled;
   });
   if (is_done) {
      head.root = merkle_root(row.frontier(), head.settled, host_sha256());
      head.state = round_settled;
      row.shrink();
      task.row.paid += head.paid;
      task.save();
   }
   row.save();
}

}  // namespace gradledger
