#pragma once

#include "../common/cid.hpp"
#include "../common/csves.hpp"
#include "../common/lots.hpp"
#include "../common/merkle.hpp"
#include "../common/price.hpp"
#include "../common/quorum.hpp"
#include "view.hpp"

#include <eosio/contract.hpp>
#include <eosio/name.hpp>

namespace gradledger {

using eosio::name;
class reader;
class round_row;
class ballot_pages;

/// Limits that hold for every task. A task may ask for less, never for more.
namespace limits {
constexpr uint32_t errors_max = 64;           ///< points in a series v_E
constexpr uint32_t error_scale = 1'000'000;   ///< an error of 1.0
constexpr uint32_t classes_max = 64;          ///< bits of the class set
constexpr uint32_t validators_max = 32;       ///< bytes of ballot::verdicts
constexpr uint32_t page_ballots = 32;         ///< ballots in one row of table `ballots`
constexpr uint32_t admit_max = 100;           ///< accounts in one `admit`
constexpr uint32_t prefix_max = 16;           ///< hashes of a task with the same first eight bytes
constexpr uint32_t attest_max = 500;          ///< verdicts in one `attest`
constexpr uint32_t phase_sec_max = 30 * 86400;///< length of one phase of a round
constexpr uint32_t sum_min_floor = 3;         ///< fewest devices whose sum may be released
constexpr uint32_t bar_rounds_max = 10'000;
}  // namespace limits

enum mode : uint8_t { mode_paillier = 0, mode_sealed = 1 };
enum role : uint8_t { role_device = 1, role_validator = 2 };
enum validators_kind : uint8_t { validators_named = 0, validators_producers = 1 };
enum silence : uint8_t { silence_refund = 0, silence_pay = 1 };
enum round_state : uint8_t {
   round_open = 1,       ///< uploads and verdicts
   round_verifying = 2,  ///< closed to uploads; CIDs are revealed, some verdicts still pending
   round_drawing = 3,    ///< every verdict is in; the lots are revealed and decide who is audited
   round_auditing = 4,   ///< who was drawn opens its upload; verdicts on that
   round_summing = 5,    ///< the validators attest the sum (paillier mode)
   round_summed = 6,     ///< the sum is attested, or none will be
   round_settled = 7     ///< Merkle root recorded, transient RAM handed back
};
enum upload_state : uint8_t {
   upload_none = 0,
   upload_pending = 1,   ///< waits for verdicts
   upload_paid = 2,
   upload_refused = 3,
   upload_accepted = 4,  ///< its pay waits for the lots
   upload_drawn = 5      ///< its pay waits for an audit
};

/// What the validators may say about one upload, in this order.
enum ballot_stage : uint8_t {
   ballot_none = 0,
   ballot_hidden = 1,    ///< its CID is not revealed: refusals, after the reveal deadline
   ballot_open = 2,      ///< verdicts
   ballot_decided = 3,   ///< verdicts without effect
   ballot_drawn = 4,     ///< under audit and not opened: none
   ballot_opened = 5,    ///< verdicts of the audit
   ballot_audited = 6    ///< verdicts of the audit without effect
};

/// A validator's verdict on one upload; 0 in ballot::verdicts means "none yet".
enum verdict_code : uint8_t {
   verdict_accept = 1,
   verdict_unavailable = 2,      ///< the bytes could not be fetched in time
   verdict_hash_mismatch = 3,    ///< SHA-256 of the bytes is not the recorded hash
   verdict_malformed = 4,        ///< the envelope or its payload has a wrong length or form
   verdict_header_mismatch = 5,  ///< task, version, device, codec or size in the header differ
   verdict_wrong_key = 6,        ///< made under another Paillier key
   verdict_out_of_range = 7,     ///< a ciphertext or code outside its range
   verdict_duplicate = 8,        ///< the same payload as another device's
   verdict_error_mismatch = 9,   ///< a measured error is not the reported one
   verdict_replayed_series = 10, ///< nor is it new: the device has reported this series before
   verdict_copied_series = 11,   ///< nor is it its own: another device reported this series
   verdict_class_claim = 12,     ///< a declared class that the update knows nothing of
   verdict_no_update = 13,       ///< an update of zero
   verdict_norm = 14,            ///< an update longer than the round's norm_max_e6
   verdict_no_gain = 15,         ///< the measured doubt did not fall
   verdict_opening_mismatch = 16,///< audit: what was opened is not what was uploaded
   verdict_unrevealed = 17,      ///< the CID was not revealed in time
   verdict_code_last = 17,
   reason_silence = 20,          ///< nobody judged in time and the task refunds silence
   reason_undelivered = 21,      ///< nobody pushed the payment before the last deadline
   reason_unanswered = 22        ///< drawn for an audit, and not opened in time
};

/*
 * Rows and arguments below lie in memory exactly as they are serialised (little endian, unaligned),
 * so that a row is read and written as it is. In the ABI hash256 is `checksum256`, seconds is
 * `time_point_sec`, symbol is `symbol`, asset is `asset`, cid_text and view<char> are `string` or
 * `bytes`, view<T> is `T[]`.
 */
#pragma pack(push, 1)

using seconds = uint32_t;  ///< since 1970

struct symbol {
   uint64_t raw;           ///< precision, then up to seven capital letters
   bool operator==(const symbol& other) const { return raw == other.raw; }
   bool operator!=(const symbol& other) const { return raw != other.raw; }
};

struct asset {
   int64_t amount;
   symbol  sym;
};

/// A CIDv0 as text: a string of constant length.
struct cid_text {
   uint8_t length;         ///< cid_chars
   char    chars[cid_chars];
};

/// How a device trains in this round, so that equal data gives equal updates.
struct recipe {
   uint16_t epochs;
   uint16_t batch_size;
   uint32_t rate_e6;   ///< learning rate x 1e6
   uint16_t measures;  ///< validation errors to take, evenly spread over the training
   uint64_t seed;
};

/// What a task fixes for its whole life; a device reads it before it joins.
struct task_terms {
   name     token_contract;
   symbol   token_symbol;
   uint8_t  mode;             ///< enum mode
   uint8_t  is_public;        ///< 1: the model is not sealed
   uint8_t  validators_kind;  ///< enum validators_kind
   uint8_t  silence;          ///< enum silence: what an upload without verdict gets
   uint8_t  classes;          ///< number of classes, 1..64
   uint16_t errors_max;       ///< 2..limits::errors_max
   uint32_t cost_max;         ///< largest data cost of one upload, in examples
   uint16_t devices_max;      ///< bounds the slot of the codec: devices_max x 65535 < 2^slot_bits
   uint16_t sum_min;          ///< fewest accepted uploads whose sum is released (paillier mode)
   uint32_t parameters;       ///< length of an update
   uint8_t  slot_bits;        ///< 17..32
   uint32_t clip_e6;          ///< updates are clipped to +-clip_e6 / 1e6
   hash256  key_hash;         ///< SHA-256 of n, big endian without leading zeros (zero in sealed mode)
   cid_text card_cid;         ///< the task card on IPFS (CIDv0): key n, class names, description
   hash256  card_hash;        ///< SHA-256 of the card's bytes
   uint32_t lot_e6;          ///< share of the accepted uploads that each validator's lot draws; 0: no audits
   uint16_t bar_rounds;      ///< for how many rounds who fails an audit may not upload
};

/// What one round adds. In the action it follows `model_cid`, the CIDv0 of the envelope of the model
/// T_(version-1), which is a string there.
struct round_terms {
   hash256  model_hash;      ///< SHA-256 of that envelope
   int64_t  price;           ///< smallest token units per example, > 0
   int64_t  budget;          ///< units kept for this round until it is closed
   uint32_t open_sec;        ///< uploads are taken for so long
   uint32_t verdict_sec;     ///< then verdicts; after as long again nothing is paid any more
   uint32_t sum_sec;         ///< then the sum
   uint32_t reveal_sec;      ///< CIDs are revealed for so long once the round is closed; 0: with the upload
   uint32_t audit_sec;       ///< length of drawing, and of auditing; 0 in a task without lots
   uint16_t close_after;     ///< the owner may close early after so many uploads; 0: never
   uint8_t  rule;            ///< enum rule
   uint32_t tau;             ///< CSVES-Th threshold, 1e-6 units
   uint32_t eta_e6;          ///< aggregation rate x 1e6
   uint32_t norm_max_e6;     ///< largest L2 norm of an update x 1e6, where validators see it; 0: no bound
   recipe   training;
};

/// One verdict inside `attest`.
struct verdict {
   uint32_t slot;   ///< of the upload that is judged: member::upload_slot
   hash256  hash;   ///< its hash
   uint8_t  code;   ///< enum verdict_code
};

/// What the validators said about one upload.
struct ballot {
   name    device;
   hash256 hash;       ///< of the upload
   uint8_t stage;      ///< enum ballot_stage
   hash256 verdicts;   ///< byte i: verdict code of validator i of the round; anew in an audit
};

/// What one validator said about the sum of a round.
struct sum_vote {
   hash256 hash;   ///< SHA-256 of the sum's plaintext bytes; zero: no vote yet
   hash256 cid;    ///< digest of the CIDv0 of that validator's sealed copy
};

/// One validator's part in deciding who is audited, see common/lots.hpp.
struct lot {
   hash256 commitment;   ///< zero: none yet
   hash256 value;        ///< zero: not revealed
};

/**
 * Table `tasks`, scope: the contract. RAM: the task's owner.
 *
 * The money of a task, in smallest units of its token, at any time:
 *    deposited = paid + withdrawn + reserved + free
 * where `paid` here counts settled rounds and the unsettled round adds its own `paid` and
 * `reserved`; `free` is what is left. While a round is open, the part of its budget that is not
 * yet used is not withdrawable.
 */
struct [[eosio::table("tasks")]] task {
   name       id;
   name       owner;
   task_terms terms;
   uint32_t   version;      ///< of the newest round; 0 before the first
   uint16_t   devices;      ///< admitted devices
   uint16_t   validators;   ///< admitted validators
   int64_t    deposited;
   int64_t    paid;         ///< by settled rounds
   int64_t    withdrawn;
};

/**
 * Table `members`, scope: the task. RAM: the task's owner.
 *
 * A row has one size from `admit` on, so that neither `join`, an upload nor a verdict takes RAM
 * from anybody: the newest upload of a device lives in its row and the next one overwrites it.
 *
 * Index 2 `byhash` has the devices alone: the first eight bytes of the newest upload's hash, big
 * endian (before the first upload the account), finds an upload and refuses a repeated hash.
 * Index 3 `validators` has the validators alone (key: 0), so that `openround` need not look at
 * every device.
 */
struct [[eosio::table("members")]] member {
   name        account;
   uint8_t     role;            ///< enum role
   uint8_t     joined;          ///< 1 once the account agreed by `join`
   hash256     enc_key;         ///< X25519 public key
   uint64_t    classes;         ///< bit c: has data of class c
   uint32_t    set_version;     ///< round for which the validation set was issued; 0: none
   hash256     set_cid;         ///< digest of the CIDv0
   hash256     set_hash;        ///< SHA-256 of the envelope
   uint32_t    upload_version;  ///< round of the newest upload; 0: none
   uint32_t    upload_slot;     ///< place in that round's order of uploads, from 0: its ballot's
   hash256     upload_hash;
   hash256     upload_cid;      ///< digest of the CIDv0; zero: not revealed yet
   hash256     series_hash;     ///< SHA-256 of v_E as little-endian 32-bit integers
   uint32_t    upload_cost;     ///< examples
   uint32_t    error_first;     ///< first, last but one and last of v_E, 1e-6 units
   uint32_t    error_before;    ///< of one point: that point
   uint32_t    error_last;
   uint8_t     upload_state;    ///< enum upload_state
   uint8_t     upload_reason;   ///< verdict code of the decision; 0 while there is none
   uint32_t    barred_until;    ///< last round in which it may not upload; 0: none
   hash256     opening_cid;     ///< digest of the CIDv0 of the opened upload, in an audit; zero: none
};

/**
 * Table `ballots`, scope: the task. RAM: the task's owner.
 *
 * The ballots of the newest round in the order of its uploads, page_ballots in a row, so that one
 * validator's verdicts on many uploads change few rows: what an upload costs the chain hardly grows
 * with the number of validators. `admit` and `remove` keep as many rows as ballots for all admitted
 * devices need. Ballots from round::uploads on are an earlier round's.
 */
struct [[eosio::table("ballots")]] ballot_page {
   uint32_t page;      ///< slot / page_ballots
   uint8_t  count;     ///< page_ballots: the length of what follows, a vector in the ABI
   ballot   ballots[limits::page_ballots];
};

/**
 * Table `rounds`, scope: the task. RAM: the task's owner; `validators`, `sums`, `lots` and
 * `frontier` are emptied by `settle`, the rest stays as the record that any payment can be proven against.
 */
struct [[eosio::table("rounds")]] round {
   uint32_t       version;
   uint8_t        state;             ///< enum round_state
   hash256        model_cid;         ///< digest of the CIDv0
   hash256        model_hash;
   int64_t        price;
   int64_t        budget;
   seconds        deadline;          ///< of uploads
   uint32_t       verdict_sec;
   seconds        verdict_deadline;  ///< set when the round closes
   uint32_t       sum_sec;
   seconds        sum_deadline;      ///< set when the last verdict is in
   uint32_t       reveal_sec;
   seconds        reveal_deadline;   ///< set when the round closes; 0 without reveal_sec
   uint32_t       audit_sec;
   seconds        audit_deadline;    ///< of drawing, then of auditing; set when each begins
   uint32_t       opened_block;      ///< number of the block that has `openround`
   uint16_t       close_after;
   uint8_t        rule;
   uint32_t       tau;
   uint32_t       eta_e6;
   uint32_t       norm_max_e6;
   recipe         training;
   uint32_t       uploads;
   uint32_t       pending;
   uint32_t       accepted;          ///< by the validators; only these are in the sum
   uint32_t       refused;           ///< the rest of `uploads`: below, pending, or paid for silence
   uint32_t       held;              ///< accepted, and not yet drawn or paid
   uint32_t       drawn;             ///< under audit
   int64_t        reserved;
   int64_t        paid;
   hash256        sum_hash;          ///< attested by the quorum; zero: none
   hash256        sum_cid;           ///< one validator's sealed copy
   hash256        root;              ///< Merkle root over the uploads, set by `settle`
   uint32_t       settled;           ///< uploads already in the tree
   name           cursor;            ///< the next account `settle` and `push` look at
   // Behind it lie four vectors, see round_row:
   //   name[] validators      the round's validators, ascending
   //   sum_vote[] sums        one per validator
   //   lot[] lots             one per validator; none in a task without lots
   //   hash256[] frontier     16 subtree roots of the growing tree
};

#pragma pack(pop)

// The serialised sizes; a change here is a change of the ABI.
static_assert(sizeof(recipe) == 18 && sizeof(task_terms) == 157 && sizeof(round_terms) == 101);
static_assert(sizeof(task) == 205 && sizeof(member) == 276 && sizeof(round) == 306);
static_assert(sizeof(verdict) == 37 && sizeof(sum_vote) == 64 && sizeof(lot) == 64);
static_assert(sizeof(ballot) == 73 && sizeof(ballot_page) == 2341);

/**
 * Records federated-learning contributions and pays for them out of escrow.
 *
 * `uploadgrad` and `payment` refuse every caller but an inline action of this contract; not even the
 * contract account's own key can call them.
 *
 * Every refusal is a `check` whose message is `code: what was expected and what came`.
 * One round of a task at a time: open -> verifying -> summing -> summed -> settled; in a task with lots
 * drawing and auditing come between verifying and summing.
 */
class [[eosio::contract("fedlearning")]] fedlearning : public eosio::contract {
public:
   using contract::contract;

   // ---- owner ------------------------------------------------------------------------------

   /// Create a task. @auth owner (pays the RAM of the whole task)
   void createtask(name task, name owner, const task_terms& terms);

   /// Admit accounts as devices or validators. @pre no account is the owner or already a member.
   /// @auth the task's owner (pays the RAM of the rows)
   void admit(name task, view<name> accounts, uint8_t role);

   /// Take a member out. @pre it has no upload in an unsettled round and is no validator of one.
   /// @auth the task's owner, or the account itself
   void remove(name task, name account);

   /// Record the validation set issued to a device for round `version`: the open one, as long as the
   /// device has not uploaded, or the next one, when the round before it is settled.
   /// @auth the task's owner
   void issueset(name task, name device, uint32_t version, view<char> cid, view<char> hash);

   /// Open round `version`. @pre version == task.version + 1; the round before is settled; the
   /// budget is free; at least one validator has joined. @auth the task's owner (pays RAM)
   void openround(name task, uint32_t version, view<char> model_cid, const round_terms& terms);

   /// Pay `quantity` back to the owner. @pre it is free and no open round may still need it.
   /// @auth the task's owner
   void withdraw(name task, asset quantity);

   // ---- members ----------------------------------------------------------------------------

   /// Agree to the task's terms; give the X25519 key and (devices) the set of classes.
   /// May be repeated between rounds, to change either. @auth account
   void join(name task, name account, const hash256& enc_key, uint64_t classes);

   /// FederatedLearning: the only action a device calls. Checks the role, forwards to `uploadgrad`.
   /// @auth device
   void fedlearn(name task, name device, uint32_t version, view<char> hash, view<char> cid,
                 uint32_t cost, view<uint32_t> errors);

   /// In a round with reveal_sec: tell the CID of this round's upload, once the round is closed.
   /// @pre state verifying, before the reveal deadline. @auth device
   void reveal(name task, name device, uint32_t version, view<char> cid);

   /// Tell the CID of this round's opened upload (docs/protocol.md), since it was drawn for an audit.
   /// @pre state auditing, before its deadline. @auth device
   void openupload(name task, name device, uint32_t version, view<char> cid);

   /// UploadGradient: checks every field, CSVES and the budget; records and reserves.
   /// @auth the contract alone
   void uploadgrad(name task, name device, uint32_t version, view<char> hash, view<char> cid,
                   uint32_t cost, view<uint32_t> errors);

   /// Verdicts of one validator on uploads of round `version`. At a quorum of acceptances an upload is
   /// paid, in this transaction (in a task with lots its pay waits for them); at a quorum of refusals,
   /// whatever their reasons, it is refused, for the reason that most of them gave (of equals the
   /// smallest code). A verdict on an upload that is decided already is recorded without effect (once it
   /// is drawn: ignored), so that a late batch does not fail; a second one is refused. An undecided
   /// upload takes verdicts until twice verdict_sec after the reveal deadline (or closing).
   /// @auth validator
   void attest(name task, uint32_t version, name validator, view<verdict> verdicts);

   /// Verdicts of one validator on drawn uploads, from what their devices opened; as `attest`, but that
   /// a quorum of refusals also bars the device. Until twice audit_sec after the audit deadline.
   /// @auth validator
   void attestaudit(name task, uint32_t version, name validator, view<verdict> verdicts);

   /// Commit to a value that will decide which uploads are audited, before there are any.
   /// @pre state open, no upload yet. @auth validator
   void commitlot(name task, uint32_t version, name validator, const hash256& commitment);

   /// Reveal the value behind `commitlot`. @pre state drawing. @auth validator
   void reveallot(name task, uint32_t version, name validator, const hash256& value);

   /// Payment: sends `quantity`, which `attest` or `push` took from the round's reserve, to the
   /// device. @auth the contract alone
   void payment(name task, uint32_t version, name device, asset quantity);

   /// One validator's word on the product of all accepted ciphertexts. @pre state summing.
   /// @auth validator
   void attestsum(name task, uint32_t version, name validator, const hash256& hash, view<char> cid);

   // ---- pushing a round on -----------------------------------------------------------------

   /// Close the round to uploads. After the deadline: anyone. Before it: the owner, once
   /// close_after uploads are in.
   void closeround(name task, uint32_t version, name caller);

   /// Push up to `limit` members' uploads on, each phase once its deadline has passed; anyone.
   /// Verifying: what got no verdict is decided as the task's `silence` says, what was not revealed is
   /// refused. Drawing (also before the deadline, once all lots are revealed): what is drawn is put under
   /// audit, the rest is paid. Auditing: what was not opened is refused and its device barred; what was
   /// opened has audit_sec more for verdicts, then `silence` decides. When as long again has passed (in
   /// auditing, after that), all that is left is refunded: it could not be delivered. Summing: the
   /// sum is given up. `start` may be left out; otherwise it is the member to begin with instead of
   /// where the last call ended, so that a device that cannot be paid (its own contract refuses the
   /// money) holds up nobody behind it.
   void push(name task, uint32_t version, uint16_t limit, name start);

   /// Put up to `limit` members' uploads into the Merkle tree, in ascending order of account; with
   /// the last one record the root and hand the transient RAM back. @pre state summed. The owner
   /// at once; anyone after the sum deadline.
   void settle(name task, uint32_t version, uint16_t limit, name caller);

   // ---- notifications ----------------------------------------------------------------------

   /// A `transfer` to the contract with the task's name as memo is a deposit.
   void on_transfer(name from, name to, asset quantity, view<char> memo);

   /// Read the arguments of `act` and call its function.
   void call(name act, reader arguments);

private:
   /// Refuse every caller but an inline action of this contract.
   void check_internal() const;

   /// Pay an upload or give its reserve back, and say why; who fails an audit is barred. The caller
   /// saves round and upload.
   void decide(const task& row, round& head, member& upload, uint8_t reason, bool pays);

   /// `attest`, or (is_audit) `attestaudit`.
   void judge(name task, uint32_t version, name validator, view<verdict> verdicts, bool is_audit);

   /// What `push` does with one upload of the round. @return whether it changed
   bool push_upload(const task& task, round_row& row, ballot_pages& pages, member& upload, uint8_t phase,
                    bool is_last);
};

}  // namespace gradledger
