// The money: deposits, payment (Payment), withdraw.

#include "rules.hpp"

namespace gradledger {

namespace {

/// Inline `transfer` of the task's token out of the contract's account.
void send_money(name self, const task_terms& terms, name to, asset quantity, const char* why, name id) {
   message memo;
   memo.add(why);
   memo.add(id);
   struct [[gnu::packed]] {
      uint64_t from, to;
      asset    quantity;
      char     memo[1 + 64];
   } transfer;
   transfer.from = self.value;
   transfer.to = to.value;
   transfer.quantity = quantity;
   transfer.memo[0] = static_cast<char>(memo.copy(transfer.memo + 1, 64));
   send_action(self, terms.token_contract, "transfer"_n, &transfer,
               sizeof transfer - 64 + static_cast<uint8_t>(transfer.memo[0]));
}

/// The name that a memo spells, or none where it spells no valid name.
name parse_name(view<char> text) {
   if (text.empty() || text.size() > 13) return name();
   uint64_t value = 0;
   for (uint32_t i = 0; i < 13; ++i) {
      uint64_t digit = 0;
      if (i < text.size()) {
         const char c = text[i];
         if (c >= 'a' && c <= 'z') digit = static_cast<uint64_t>(c - 'a' + 6);
         else if (c >= '1' && c <= '5') digit = static_cast<uint64_t>(c - '1' + 1);
         else if (c != '.') return name();
      }
      if (i == 12 && digit > 15) return name();
      value |= i < 12 ? digit << (59 - 5 * i) : digit;
   }
   return name(value);
}

}  // namespace

void fedlearning::check_internal() const {
   const name sender(::get_sender());
   if (sender != get_self())
      fail("internal_only: expected an inline action of ", get_self(), ", got a call from ",
           sender == name() ? "outside" : "another contract");
}

void fedlearning::decide(const task& row, round& head, member& upload, uint8_t reason, bool pays) {
   int64_t amount = 0;
   checked_price(upload.upload_cost, head.price, amount);  // fits: it was reserved
   head.reserved -= amount;
   const bool is_audit = upload.upload_state == upload_drawn;
   --(is_audit ? head.drawn : upload.upload_state == upload_accepted ? head.held : head.pending);
   upload.upload_reason = reason;
   upload.upload_state = pays ? upload_paid : upload_refused;
   if (!pays) {
      ++head.refused;
      const bool is_caught = is_audit && reason != reason_silence && reason != reason_undelivered;
      if (is_caught) upload.barred_until = head.version + row.terms.bar_rounds;
      return;
   }
   if (reason == verdict_accept) ++head.accepted;
   head.paid += amount;
   struct [[gnu::packed]] {
      uint64_t task;
      uint32_t version;
      uint64_t device;
      asset    quantity;
   } arguments{row.id.value, head.version, upload.account.value, {amount, row.terms.token_symbol}};
   send_action(get_self(), get_self(), "payment"_n, &arguments, sizeof arguments);
}

void fedlearning::payment(name id, uint32_t, name device, asset quantity) {
   check_internal();
   const auto task = get_task(get_self(), id);
   send_money(get_self(), task.row.terms, device, quantity, "paid by ", id);
}

void fedlearning::withdraw(name id, asset quantity) {
   auto task = get_task(get_self(), id);
   require_auth(task.row.owner.value);
   const symbol sym = task.row.terms.token_symbol;
   if (quantity.sym != sym) fail("wrong_symbol: expected ", sym, ", got ", quantity.sym);
   if (quantity.amount <= 0) fail("not_positive: expected a positive quantity, got ", quantity);
   round_row    row;
   const bool   is_unsettled = load_unsettled(get_self(), task.row, row);
   const round& head = row.head();
   int64_t      available = free_money(task.row, is_unsettled ? &head : nullptr);
   if (is_unsettled && head.state == round_open) {
      const int64_t unused = head.budget - head.paid - head.reserved;
      if (unused > 0) available -= unused;
      if (available < 0) available = 0;
   }
   if (quantity.amount > available)
      fail("reserved_money: expected at most ", asset{available, sym}, ", got ", quantity);
   if (!checked_add(task.row.withdrawn, quantity.amount, task.row.withdrawn))
      fail("overflow: the withdrawals of task ", id, " are more than 64 bits can count");
   task.save();
   send_money(get_self(), task.row.terms, task.row.owner, quantity, "withdrawn from ", id);
}

void fedlearning::on_transfer(name from, name to, asset quantity, view<char> memo) {
   if (from == get_self() || to != get_self()) return;
   const name   id = parse_name(memo);
   stored<task> task;
   if (!task.find(get_self(), get_self().value, tasks_name, id.value))
      fail("unknown_task: expected the name of a task as memo, got '", memo, "'");
   const task_terms& terms = task.row.terms;
   if (get_first_receiver() != terms.token_contract)
      fail("fake_token: expected a token of ", name(terms.token_contract), ", got one of ", get_first_receiver());
   if (quantity.sym != terms.token_symbol)
      fail("wrong_symbol: expected ", symbol(terms.token_symbol), ", got ", quantity.sym);
   if (quantity.amount <= 0) fail("not_positive: expected a positive quantity, got ", quantity);
   if (!checked_add(task.row.deposited, quantity.amount, task.row.deposited))
      fail("overflow: the deposits of task ", id, " are more than 64 bits can count");
   task.save();
}

}  // namespace gradledger
