#include "shard_worker/engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/prefix_hash.h"

namespace facet {
namespace {

// Tokens of prompts beside each one that decodes, between half of mixed_prefill_max and all of it.
constexpr int kPrefillPerDecode = 8;

bool IsOlder(const Sequence* a, const Sequence* b) { return a->arrival < b->arrival; }

}  // namespace

Scheduler::Scheduler(const EngineOptions& options)
    : options_(options),
      blocks_(options.block_tokens, options.blocks, options.window),
      context_tokens_(static_cast<int>(blocks_.Capacity(options.context_tokens))) {
  FACET_CHECK(options.step_tokens_max > 0 && options.prefill_chunk_max > 0 &&
              options.mixed_prefill_max > 0 && options.sequences_max > 0 && options.steps_max > 0 &&
              options.preemptions_max > 0);
  for (int slot = options.sequences_max - 1; slot >= 0; --slot) free_slots_.push_back({slot});
}

void Scheduler::Add(Sequence* sequence) {
  sequence->arrival = ++arrivals_;
  waiting_.push_back(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  if (sequence->slot.value >= 0) {
    LeaveSlot(sequence);
  } else {
    std::erase(waiting_, sequence);
  }
}

std::vector<SlotId> Scheduler::TakeEnds() { return std::exchange(ends_, {}); }

// --- A step.

void Scheduler::Reserve(bool step_outstanding) {
  step_outstanding_ = step_outstanding;
  if (preemption_due_ && step_outstanding) return;
  preemption_due_ = false;
  budget_ = options_.step_tokens_max;
  // A preemption takes sequences out of running_.
  const std::vector<Sequence*> running = running_;
  for (Sequence* sequence : running) {
    sequence->follows = false;
    AdoptWhatIsCached(sequence);  // before anything is evicted
  }
  for (Sequence* sequence : running) {
    if (sequence->pending() != 1) continue;
    LookAhead(sequence);
    ReserveFor(sequence);
  }
  const int decodes = options_.step_tokens_max - budget_;
  if (decodes > 0) budget_ = std::min(budget_, MixedPrefill(decodes));
  for (Sequence* sequence : running) {
    if (sequence->pending() > 1 && !WaitsForLeader(sequence)) ReserveFor(sequence);
  }
  Admit();
  if (Speculates()) Propose();
}

// A step that decodes little is short, and who waits for it feels a chunk more.
int Scheduler::MixedPrefill(int decodes) const {
  const int most = options_.mixed_prefill_max;
  return std::clamp(decodes * kPrefillPerDecode, (most + 1) / 2, most);
}

int64_t Scheduler::Wanted(const Sequence& sequence) const {
  // A digest hashes positions in the order of complete steps.
  if (sequence.request.logits_digest && sequence.in_flight > 0) return 0;
  if (WaitsForToken(sequence)) return 0;
  // The token that is being sampled is the last one.
  if (sequence.samples_in_flight > 0 &&
      (sequence.output() + sequence.samples_in_flight >= sequence.request.max_tokens ||
       sequence.size() + sequence.samples_in_flight >= context_tokens_)) {
    return 0;
  }
  return std::min<int64_t>({sequence.pending(), options_.prefill_chunk_max, budget_});
}

bool Scheduler::Extend(Sequence* sequence, int64_t wanted) {
  const int64_t reach = blocks_.Reach(sequence->table, sequence->next() + wanted);
  if (reach <= sequence->next()) return false;
  blocks_.Grow(&sequence->table, reach);
  sequence->planned = static_cast<int>(reach - sequence->next());
  budget_ -= sequence->planned;
  return true;
}

void Scheduler::ReserveFor(Sequence* sequence) {
  if (sequence->slot.value < 0) return;  // just preempted
  const int64_t wanted = Wanted(*sequence);
  if (wanted == 0) return;
  while (!Extend(sequence, wanted)) {
    Sequence* victim = ChooseVictim(*sequence);
    if (victim == nullptr) return;
    preemption_due_ = step_outstanding_;
    if (step_outstanding_) return;
    Preempt(victim);
    if (victim == sequence) return;
  }
}

void Scheduler::Issued(Sequence* sequence) {
  const bool samples = sequence->samples();
  sequence->in_flight += std::exchange(sequence->planned, 0);
  if (samples) ++sequence->samples_in_flight;
}

void Scheduler::Computed(Sequence* sequence, int64_t tokens, int64_t sampled) {
  const int64_t accepted = std::max<int64_t>(0, sampled - 1);
  const int proposed = std::exchange(sequence->proposals, 0);
  proposed_tokens_ += proposed;
  accepted_tokens_ += accepted;
  sequence->computed += tokens + accepted;
  sequence->in_flight -= tokens;
  if (sampled > 0) --sequence->samples_in_flight;
  if (accepted < proposed) blocks_.Shrink(&sequence->table, sequence->computed);
  CountPrompt(sequence, /*cached=*/false);
  if (options_.prefix_cache) {
    UpdateLinks(sequence);
    blocks_.Store(&sequence->table, sequence->key(), sequence->computed);
  }
  blocks_.Leave(&sequence->table, sequence->computed);
  const bool progressed = sequence->output() > sequence->output_when_preempted;
  if (sequence->table.secured_tokens > 0 && progressed &&
      sequence->preemptions < options_.preemptions_max) {
    blocks_.Unsecure(&sequence->table);
  }
}

void Scheduler::CountPrompt(Sequence* sequence, bool cached) {
  const int64_t seen = std::min<int64_t>(sequence->computed, sequence->request.prompt_length);
  const int64_t more = seen - sequence->prompt_seen;
  if (more <= 0) return;
  sequence->prompt_seen = seen;
  (cached ? cached_tokens_ : prompt_tokens_done_) += more;
  if (cached) sequence->cached_tokens += more;
}

// --- Speculation.

void Scheduler::LookAhead(Sequence* sequence) const {
  const SpeculationOptions& speculation = options_.speculation;
  if (!Speculates()) return;
  sequence->lookup.Advance(sequence->request.tokens, speculation.proposals_max,
                           speculation.lookup_entries_max);
}

// Whether an outstanding step must tell a sequence's token before the next is planned: because it
// tells which proposals count, or because proposals after it are likely to make up for the wait.
bool Scheduler::WaitsForToken(const Sequence& sequence) const {
  if (sequence.in_flight == 0 || sequence.pending() != 1) return false;
  if (sequence.proposals > 0) return true;
  double expected = 0;
  for (int i = ProposalsMax(sequence) - 1; i >= 0; --i) expected += sequence.lookup.chance(i);
  return expected >= 1;
}

// Of its guess, what it may still need: not what follows a stop token or its last token. The stop
// token itself is found without a guess, and what comes after it would be computed for nothing.
int Scheduler::ProposalsMax(const Sequence& sequence) const {
  const EngineRequest& request = sequence.request;
  const std::span<const TokenId> guess = sequence.lookup.guess();
  const int64_t wanted =
      std::min<int64_t>(request.max_tokens - sequence.output(), context_tokens_ - sequence.size()) -
      1;
  const int64_t most = std::clamp<int64_t>(wanted, 0, std::ssize(guess));
  const std::vector<TokenId>& stops = request.stop_token_ids;
  return static_cast<int>(
      std::find_first_of(guess.begin(), guess.begin() + most, stops.begin(), stops.end()) -
      guess.begin());
}

// Gives what room the step has to proposals of those that decode, always where the next one has
// the best chance, and only as long as that makes the step worth more per time. Takes no block that
// anybody else needs in this step; those that turn out to be unneeded go back when it is complete.
void Scheduler::Propose() {
  struct Bidder {
    Sequence* sequence;
    int most;
    double chance() const { return sequence->lookup.chance(sequence->proposals); }
  };
  std::vector<Bidder> bidders;
  int rows = 0;
  for (Sequence* sequence : running_) {
    rows += sequence->planned;
    if (sequence->planned != 1 || sequence->in_flight > 0 || !sequence->samples()) continue;
    LookAhead(sequence);  // it may have just begun
    if (const int most = ProposalsMax(*sequence); most > 0) bidders.push_back({sequence, most});
  }
  const SpeculationOptions& speculation = options_.speculation;
  const int rows_max = std::min(speculation.step_rows_max, options_.step_tokens_max);
  double expected = rows;
  while (rows < rows_max && !bidders.empty()) {
    const auto best =
        std::max_element(bidders.begin(), bidders.end(),
                         [](const Bidder& a, const Bidder& b) { return a.chance() < b.chance(); });
    const double chance = best->chance();
    if (chance < expected / (rows + speculation.free_rows)) return;
    Sequence* sequence = best->sequence;
    const int64_t end = sequence->next() + sequence->planned + sequence->proposals + 1;
    const bool room = blocks_.Reach(sequence->table, end) == end;
    if (room) {
      blocks_.Grow(&sequence->table, end);
      ++sequence->proposals;
      ++rows;
      expected += chance;
    }
    if (!room || sequence->proposals == best->most) bidders.erase(best);
  }
}

// --- Admission.

void Scheduler::Admit() {
  while (!waiting_.empty() && !free_slots_.empty() && budget_ > 0 && !preemption_due_) {
    if (!Enter(waiting_.front())) return;
  }
}

bool Scheduler::Enter(Sequence* sequence) {
  PrefixMatch match;
  UpdateLinks(sequence);
  if (UsesCache(*sequence)) match = blocks_.Match(sequence->table, sequence->key());
  FindLeader(sequence, match.blocks);
  const int64_t secured = SecuredTokens(*sequence);
  if (!HasRoomFor(*sequence, match, secured)) return false;
  waiting_.pop_front();
  sequence->slot = free_slots_.back();
  free_slots_.pop_back();
  running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, IsOlder), sequence);
  Adopt(sequence, match);
  if (secured > 0) blocks_.Secure(&sequence->table, secured);
  if (!WaitsForLeader(sequence)) Extend(sequence, Wanted(*sequence));
  return true;
}

bool Scheduler::IsOldest(const Sequence& sequence) const {
  return running_.empty() || sequence.arrival <= running_.front()->arrival;
}

// Positions for which a sequence must have all blocks before it may run, because nothing could be
// taken from it or given to it later; 0: none.
int64_t Scheduler::SecuredTokens(const Sequence& sequence) const {
  if (sequence.preemptions == 0 || IsOldest(sequence)) return 0;
  if (sequence.preemptions < options_.preemptions_max) return sequence.size();
  return std::min<int64_t>(context_tokens_,
                           int64_t{sequence.request.prompt_length} + sequence.request.max_tokens);
}

// Room for all tokens it has so far, beside what the running ones need for theirs: prompts do not
// preempt each other as long as those that they share a prefix with live; and while a running one
// waits for blocks, nobody enters.
bool Scheduler::HasRoomFor(const Sequence& sequence, const PrefixMatch& match,
                           int64_t secured) const {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    int64_t needed = secured > 0 ? blocks_.SecureCost(pool, match, secured)
                                 : blocks_.Cost(pool, match, sequence.size(), sequence.expected);
    for (const Sequence* other : running_) {
      needed += blocks_.Lacking(pool, other->table, other->size(), other->expected);
    }
    if (needed > blocks_.pool(pool).available()) return false;
  }
  return true;
}

// --- Sharing of prefixes.

// Who wants something of every prompt position computes every prompt position.
bool Scheduler::UsesCache(const Sequence& sequence) const {
  const EngineRequest& request = sequence.request;
  return options_.prefix_cache && !request.logits_digest &&
         (!request.prompt_logprobs || sequence.prompt_scored >= request.prompt_length);
}

void Scheduler::UpdateLinks(Sequence* sequence) const {
  const auto block = static_cast<size_t>(options_.block_tokens);
  const std::span<const TokenId> tokens = sequence->request.tokens;
  std::vector<uint64_t>& links = sequence->links;
  while ((links.size() + 1) * block <= tokens.size()) {
    const uint64_t previous = links.empty() ? sequence->request.cache_salt : links.back();
    links.push_back(PrefixLink(previous, tokens.subspan(links.size() * block, block)));
  }
}

void Scheduler::AdoptWhatIsCached(Sequence* sequence) {
  if (sequence->in_flight > 0 || sequence->pending() <= options_.block_tokens ||
      !UsesCache(*sequence) || !blocks_.AtBoundary(sequence->table)) {
    return;
  }
  const PrefixMatch match = blocks_.Match(sequence->table, sequence->key());
  if (blocks_.HasRoomFor(match)) Adopt(sequence, match);
}

void Scheduler::Adopt(Sequence* sequence, const PrefixMatch& match) {
  if (match.blocks == 0) return;
  blocks_.Adopt(&sequence->table, match);
  sequence->computed = int64_t{match.blocks} * options_.block_tokens;
  CountPrompt(sequence, /*cached=*/true);
}

// The older running sequence that is to compute most of what this one could adopt, beyond the
// `held` blocks that it has or can have at once.
void Scheduler::FindLeader(Sequence* sequence, int held) {
  sequence->leader = nullptr;
  sequence->expected = 0;
  if (!UsesCache(*sequence)) return;
  const auto most = static_cast<size_t>((sequence->size() - 1) / options_.block_tokens);
  for (Sequence* other : running_) {
    if (!IsOlder(other, sequence) || other->table.collided) continue;
    // A link stands for all before it.
    const size_t end = std::min(most, other->links.size());
    auto low = static_cast<size_t>(held), high = end;
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      const bool same = other->links[middle] == sequence->links[middle];
      (same ? low : high) = same ? middle + 1 : middle;
    }
    if (low <= static_cast<size_t>(std::max(held, sequence->expected)) || low > end) continue;
    sequence->leader = other;
    sequence->expected = static_cast<int>(low);
  }
}

// Whether the next block is better left to an older sequence that is about to compute it.
bool Scheduler::WaitsForLeader(Sequence* sequence) {
  const Sequence* leader = sequence->leader;
  if (leader == nullptr) return false;
  const int stored = sequence->table.stored;
  const bool comes =
      stored < sequence->expected && leader->computed < int64_t{stored + 1} * options_.block_tokens;
  if (!comes) {  // it came, or would have come by now
    sequence->leader = nullptr;
    sequence->expected = 0;
    return false;
  }
  const bool moves = leader->planned > 0 || leader->in_flight > 0 || leader->follows;
  sequence->follows = moves && sequence->in_flight == 0 && blocks_.AtBoundary(sequence->table);
  return sequence->follows;
}

// --- Preemption.

bool Scheduler::MayBePreempted(const Sequence& sequence) const {
  return &sequence != running_.front() && sequence.preemptions < options_.preemptions_max &&
         (sequence.preemptions == 0 || sequence.output() > sequence.output_when_preempted);
}

// Whoever has the fewest tokens to compute again, the youngest of equals; the needy one too may be
// it. Only who has what is short is worth the trouble: at once, or, if nobody has, together with
// those it shares it with.
Sequence* Scheduler::ChooseVictim(const Sequence& needy) const {
  Sequence* victim = ChooseVictim(needy, /*at_once=*/true);
  return victim != nullptr ? victim : ChooseVictim(needy, /*at_once=*/false);
}

Sequence* Scheduler::ChooseVictim(const Sequence& needy, bool at_once) const {
  const auto gives = [&](int pool, const Sequence& other) {
    return blocks_.IsShort(pool, needy.table, needy.next() + 1) &&
           (at_once ? blocks_.Frees(pool, other.table)
                    : blocks_.Holds(pool, other.table, needy.table));
  };
  Sequence* victim = nullptr;
  int64_t least = 0;
  for (Sequence* other : running_) {
    if (!MayBePreempted(*other)) continue;
    if (other != &needy && !gives(0, *other) && !gives(1, *other)) continue;
    const int64_t lost = blocks_.OnlyHere(other->table, other->computed);
    if (victim != nullptr && lost > least) continue;
    victim = other;
    least = lost;
  }
  return victim;
}

void Scheduler::Preempt(Sequence* victim) {
  budget_ += victim->planned;
  LeaveSlot(victim);
  ++victim->preemptions;
  victim->output_when_preempted = victim->output();
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), victim, IsOlder), victim);
  ++preemptions_;
}

void Scheduler::LeaveSlot(Sequence* sequence) {
  std::erase(running_, sequence);
  if (sequence->started) ends_.push_back(sequence->slot);
  free_slots_.push_back(std::exchange(sequence->slot, SlotId{-1}));
  sequence->started = false;
  sequence->computed = 0;
  sequence->in_flight = 0;
  sequence->samples_in_flight = 0;
  sequence->planned = 0;
  sequence->proposals = 0;
  sequence->follows = false;
  sequence->leader = nullptr;
  sequence->expected = 0;
  blocks_.Release(&sequence->table);
  for (Sequence* other : running_) {
    if (other->leader == sequence) FindLeader(other, other->table.stored);
  }
}

}  // namespace facet
