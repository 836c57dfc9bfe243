#ifndef FACET_SHARD_WORKER_ENGINE_SCHEDULER_H_
#define FACET_SHARD_WORKER_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "shard_worker/engine/block_manager.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/engine/sequence.h"

namespace facet {

// Decides who runs, and how many tokens of whom the next step computes. Places are given by
// arrival, and blocks are taken back from whoever loses the least work; README.md has the argument
// why everybody comes to an end.
class Scheduler {
 public:
  explicit Scheduler(const EngineOptions& options);

  // To the end of the queue. The scheduler borrows `sequence` until Remove().
  void Add(Sequence* sequence);
  // Lets go of its blocks and its slot, whatever it does.
  void Remove(Sequence* sequence);

  // Sets `planned` of every running sequence, admitting and preempting as blocks allow: decodes
  // first, then the prompts that have begun, then the queue. Nobody is preempted while a step is
  // outstanding.
  void Reserve(bool step_outstanding);
  // The planned tokens of `sequence` go into a step.
  void Issued(Sequence* sequence);
  // `tokens` of `sequence` have been computed, in the oldest outstanding step, and of its proposals
  // all but one of `sampled` tokens that were chosen (0: none was to be). They are already among
  // the sequence's.
  void Computed(Sequence* sequence, int64_t tokens, int64_t sampled);

  // Slots that started sequences have left since the last call.
  std::vector<SlotId> TakeEnds();

  // Prompt + output of a sequence, at most.
  int context_tokens() const { return context_tokens_; }
  const std::vector<Sequence*>& running() const { return running_; }
  const std::deque<Sequence*>& waiting() const { return waiting_; }
  const BlockManager& blocks() const { return blocks_; }
  CacheNews TakeCacheNews() { return blocks_.tree().TakeNews(); }
  int64_t preemptions() const { return preemptions_; }
  int64_t prompt_tokens_done() const { return prompt_tokens_done_; }
  int64_t cached_tokens() const { return cached_tokens_; }
  int64_t proposed_tokens() const { return proposed_tokens_; }
  int64_t accepted_tokens() const { return accepted_tokens_; }

  // Internal, with a sentence about the first invariant that is broken.
  absl::Status Check() const;

 private:
  // Tokens that the step being made may compute of a running sequence.
  int64_t Wanted(const Sequence& sequence) const;
  // Tokens that prompts may have beside so many that decode.
  int MixedPrefill(int decodes) const;
  // Plans up to `wanted` tokens, as far as blocks are there. False: not one.
  bool Extend(Sequence* sequence, int64_t wanted);
  // The same, taking blocks from others if it has to.
  void ReserveFor(Sequence* sequence);

  // --- Speculation.
  bool Speculates() const { return options_.speculation.proposals_max > 0; }
  void LookAhead(Sequence* sequence) const;
  bool WaitsForToken(const Sequence& sequence) const;
  int ProposalsMax(const Sequence& sequence) const;
  void Propose();

  // --- Admission.
  void Admit();
  bool Enter(Sequence* sequence);
  bool IsOldest(const Sequence& sequence) const;
  int64_t SecuredTokens(const Sequence& sequence) const;
  bool HasRoomFor(const Sequence& sequence, const PrefixMatch& match, int64_t secured) const;

  // --- Sharing of prefixes.
  bool UsesCache(const Sequence& sequence) const;
  void AdoptWhatIsCached(Sequence* sequence);
  void Adopt(Sequence* sequence, const PrefixMatch& match);
  void FindLeader(Sequence* sequence, int held);
  bool WaitsForLeader(Sequence* sequence);
  void UpdateLinks(Sequence* sequence) const;
  void CountPrompt(Sequence* sequence, bool cached);

  // --- Preemption.
  bool MayBePreempted(const Sequence& sequence) const;
  Sequence* ChooseVictim(const Sequence& needy) const;
  Sequence* ChooseVictim(const Sequence& needy, bool at_once) const;
  void Preempt(Sequence* victim);
  void LeaveSlot(Sequence* sequence);

  absl::Status CheckRunning(const Sequence& sequence) const;

  const EngineOptions options_;
  BlockManager blocks_;
  const int context_tokens_;
  uint64_t arrivals_ = 0;
  std::vector<Sequence*> running_;  // oldest first
  std::deque<Sequence*> waiting_;   // oldest first
  std::vector<SlotId> free_slots_;  // a stack
  std::vector<SlotId> ends_;
  int budget_ = 0;  // tokens left in the step being made
  bool step_outstanding_ = false;
  bool preemption_due_ = false;  // once no step is outstanding
  int64_t preemptions_ = 0;
  int64_t prompt_tokens_done_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t proposed_tokens_ = 0;
  int64_t accepted_tokens_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_SCHEDULER_H_
