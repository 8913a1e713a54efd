// What a device sends: fedlearning (FederatedLearning), uploadgrad (UploadGradient), reveal, openupload.

#include "rules.hpp"

namespace gradledger {

namespace {

/// Refuse a hash that another device's newest upload has (or this device's own).
void check_new_hash(name self, name id, const hash256& hash) {
   const uint64_t key = by_hash(hash);
   uint64_t       account = 0, found = key;
   int32_t        at = db_idx64_lowerbound(self.value, id.value, byhash_name, &found, &account);
   for (uint32_t same = 1; at >= 0 && found == key; ++same) {
      stored<member> other;
      other.find(self, id.value, members_name, account);
      if (other.row.upload_version != 0 && other.row.upload_hash == hash)
         fail("repeated_hash: expected a hash not used before, ", other.row.account, " used it in round ",
              other.row.upload_version);
      if (same == limits::prefix_max)
         fail("repeated_hash: expected a new hash, ", same, " uploads have its first eight bytes");
      at = db_idx64_next(at, &account);
      if (at >= 0 && db_idx64_find_primary(self.value, id.value, byhash_name, &found, account) < 0) break;
   }
}

/// Refuse an upload that comes before a quorum of lots: who is audited must be open when it is made.
void check_lots(const task& row, const round_row& round) {
   if (row.terms.lot_e6 == 0) return;
   uint32_t committed = 0;
   for (uint32_t v = 0; v < round.validators(); ++v) committed += !round.draw(v).commitment.is_zero();
   if (committed < quorum_of(round.validators()))
      fail("lots_missing: expected the lots of ", quorum_of(round.validators()), " validators before an upload, got ",
           committed);
}

/// The CID as its digest; zero in a round whose CIDs are revealed later.
hash256 get_upload_cid(const round& head, view<char> cid) {
   if (head.reveal_sec == 0) return get_cid_digest("cid", cid);
   if (!cid.empty()) fail("bad_cid: cid: expected none before the round is closed, got ", cid.size(), " characters");
   return hash256{};
}

hash256 get_series_hash(view<uint32_t> errors) {
   return host_sha256()(reinterpret_cast<const uint8_t*>(errors.bytes()), errors.size() * sizeof(uint32_t));
}

void set_stage(name self, name id, const member& upload, ballot_stage stage) {
   ballot_pages pages(self, id);
   pages.change(upload.upload_slot).stage = stage;
   pages.save();
}

/// The device's row, with an upload in this round. Refuses every other.
stored<member> get_upload(name self, name id, name device, uint32_t version) {
   stored<member> found;
   if (!found.find(self, id.value, members_name, device.value))
      fail("not_a_member: ", device, " is no member of task ", id);
   if (found.row.role != role_device || found.row.upload_version != version)
      fail("unknown_upload: ", device, " has no upload in round ", version);
   return found;
}

void check_errors(const task_terms& terms, view<uint32_t> errors) {
   if (errors.empty()) fail("no_errors: expected 1 to ", terms.errors_max, " validation errors, got 0");
   if (errors.size() > terms.errors_max)
      fail("too_many_errors: expected 1 to ", terms.errors_max, " validation errors, got ", errors.size());
   for (uint32_t i = 0; i < errors.size(); ++i)
      if (errors[i] > limits::error_scale)
         fail("error_out_of_range: error ", i, ": expected 0 to ", limits::error_scale, ", got ", errors[i]);
}

[[noreturn, gnu::noinline, gnu::cold]] void fail_csves(const round& head, view<uint32_t> errors,
                                                             uint32_t held) {
   const int64_t  slope = slope_numerator(errors);
   const uint32_t last = errors[errors.size() - 1];
   switch (head.rule) {
      case rule_trend: fail("csves_trend: expected a slope below 0, got numerator ", slope);
      case rule_threshold: fail("csves_threshold: expected a last error below ", head.tau, ", got ", last);
      case rule_either:
         fail("csves_either: expected a slope below 0 or a last error below ", head.tau, ", got numerator ", slope,
              " and ", last);
      case rule_gain:
         fail("csves_gain: expected an excess of doubt below 0 and a last error below ",
              gain_limit(head.tau, held), ", got ", gain_excess(errors, held), " and ", last);
      default:
         fail("csves_both: expected a slope below 0 and a last error below ", head.tau, ", got numerator ", slope,
              " and ", last);
   }
}

}  // namespace

void fedlearning::fedlearn(name id, name device, uint32_t, view<char>, view<char>, uint32_t, view<uint32_t>) {
   require_auth(device.value);
   const auto     task = get_task(get_self(), id);
   stored<member> member;
   if (device == task.row.owner) fail("owner_cannot_upload: ", device, " is the owner of task ", id);
   if (!member.find(get_self(), id.value, members_name, device.value))
      fail("not_a_member: ", device, " is no member of task ", id);
   if (member.row.role != role_device) fail("wrong_role: expected a device, ", device, " is a validator");
   if (!member.row.joined) fail("not_joined: ", device, " has not joined task ", id);
   // uploadgrad has the same arguments, so that they are forwarded as they came
   send_action(get_self(), get_self(), "uploadgrad"_n, get_datastream().pos(), get_datastream().remaining());
}

void fedlearning::uploadgrad(name id, name device, uint32_t version, view<char> hash_bytes, view<char> cid,
                             uint32_t cost, view<uint32_t> errors) {
   check_internal();
   const auto task = get_task(get_self(), id);
   check_version(task.row, version);
   round_row row;
   row.load(get_self(), id, version);
   round& head = row.head();
   if (head.state != round_open) fail_state("round_not_open", "open", head);
   if (now() >= head.deadline)
      fail("deadline_passed: expected an upload before ", head.deadline, ", the time is ", now());
   stored<member> member;
   member.find(get_self(), id.value, members_name, device.value);
   if (member.row.upload_version == version)
      fail("second_upload: expected one upload of ", device, " for version ", version);
   if (version <= member.row.barred_until)
      fail("barred: ", device, " failed an audit and may upload again after version ", member.row.barred_until,
           ", got version ", version);
   check_lots(task.row, row);
   if (cost == 0 || cost > task.row.terms.cost_max)
      fail("bad_cost: expected a data cost of 1 to ", task.row.terms.cost_max, ", got ", cost);
   const hash256 hash = get_hash("hash", hash_bytes);
   check_new_hash(get_self(), id, hash);
   const hash256 digest = get_upload_cid(head, cid);
   check_errors(task.row.terms, errors);
   const uint32_t held = static_cast<uint32_t>(__builtin_popcountll(member.row.classes));
   if (!meets(head.rule, errors, head.tau, held)) fail_csves(head, errors, held);
   int64_t amount;
   if (!checked_price(cost, head.price, amount))
      fail("overflow: ", cost, " x ", head.price, " is more than an asset can hold");
   const int64_t free = free_money(task.row, &head);
   if (amount > free) {
      const symbol sym = task.row.terms.token_symbol;
      fail("budget_short: expected ", asset{amount, sym}, " free, got ", asset{free, sym}, ", short by ",
           asset{amount - free, sym});
   }

   member.row.upload_version = version;
   member.row.upload_slot = head.uploads;
   member.row.upload_hash = hash;
   member.row.upload_cid = digest;
   member.row.series_hash = get_series_hash(errors);
   member.row.upload_cost = cost;
   member.row.error_first = errors[0];
   member.row.error_before = errors[errors.size() > 1 ? errors.size() - 2 : 0];
   member.row.error_last = errors[errors.size() - 1];
   member.row.upload_state = upload_pending;
   member.row.upload_reason = 0;
   member.row.opening_cid = hash256{};
   member.save();
   ballot_pages pages(get_self(), id);
   pages.change(head.uploads) = {device, hash, digest.is_zero() ? ballot_hidden : ballot_open, hash256{}};
   pages.save();
   uint64_t       old_key;
   const uint64_t key = by_hash(hash);
   const int32_t  entry =
      db_idx64_find_primary(get_self().value, id.value, byhash_name, &old_key, device.value);
   db_idx64_update(entry, same_payer, &key);
   ++head.uploads;
   ++head.pending;
   head.reserved += amount;
   row.save();
}

void fedlearning::reveal(name id, name device, uint32_t version, view<char> cid) {
   require_auth(device.value);
   const auto task = get_task(get_self(), id);
   check_version(task.row, version);
   round_row row;
   row.load(get_self(), id, version);
   const round& head = row.head();
   auto         member = get_upload(get_self(), id, device, version);
   if (head.state != round_verifying) fail_state("round_not_closed", "verifying", head);
   if (now() >= head.reveal_deadline)
      fail("deadline_passed: expected a CID before ", head.reveal_deadline, ", the time is ", now());
   if (!member.row.upload_cid.is_zero())
      fail("already_revealed: the CID of the upload of ", device, " for version ", version, " is known");
   member.row.upload_cid = get_cid_digest("cid", cid);
   member.save();
   set_stage(get_self(), id, member.row, ballot_open);
}

void fedlearning::openupload(name id, name device, uint32_t version, view<char> cid) {
   require_auth(device.value);
   const auto task = get_task(get_self(), id);
   check_version(task.row, version);
   round_row row;
   row.load(get_self(), id, version);
   const round& head = row.head();
   auto         member = get_upload(get_self(), id, device, version);
   if (head.state != round_auditing) fail_state("not_auditing", "auditing", head);
   if (member.row.upload_state != upload_drawn)
      fail("not_drawn: the upload of ", device, " for version ", version, " is not under audit");
   if (now() >= head.audit_deadline)
      fail("deadline_passed: expected an opened upload before ", head.audit_deadline, ", the time is ", now());
   if (!member.row.opening_cid.is_zero())
      fail("already_opened: the upload of ", device, " for version ", version, " was opened");
   member.row.opening_cid = get_cid_digest("cid", cid);
   member.save();
   set_stage(get_self(), id, member.row, ballot_opened);
}

}  // namespace gradledger
