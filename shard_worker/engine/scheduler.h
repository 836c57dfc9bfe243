#ifndef FACET_SHARD_WORKER_ENGINE_SCHEDULER_H_
#define FACET_SHARD_WORKER_ENGINE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "shard_worker/engine/block_manager.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/engine/sequence.h"

namespace facet {

// Decides who runs, and how many tokens of whom the next step computes. Strictly by arrival:
// every running sequence is older than every waiting one, and only the youngest loses its place.
// So the oldest sequence always makes progress and nobody starves.
class Scheduler {
 public:
  explicit Scheduler(const EngineOptions& options);

  // To the end of the queue. The scheduler borrows `sequence` until Remove().
  void Add(Sequence* sequence);
  // Frees its blocks and its slot. REQUIRES: no step with tokens of it is outstanding.
  void Remove(Sequence* sequence);

  // Sets `planned` of every running sequence, admitting and preempting as blocks allow: decodes
  // first, then the prompts that have begun, then the queue.
  // REQUIRES: what was planned before has been computed (Computed()).
  void Reserve();
  // The planned tokens of `sequence` have been computed.
  void Computed(Sequence* sequence);

  // Slots that started sequences have left since the last call.
  std::vector<SlotId> TakeEnds();

  const std::vector<Sequence*>& running() const { return running_; }
  const std::deque<Sequence*>& waiting() const { return waiting_; }
  const BlockManager& blocks() const { return blocks_; }
  int64_t preemptions() const { return preemptions_; }

 private:
  // Plans up to `wanted` tokens of a running sequence, taking blocks from younger ones if it has
  // to. It may get fewer, or none where only older ones hold blocks.
  void ReserveFor(Sequence* sequence, int64_t wanted);
  void Admit();
  bool HasRoomFor(const Sequence& sequence) const;
  void PreemptYoungest();
  void LeaveSlot(Sequence* sequence);
  int64_t Chunk(const Sequence& sequence) const;

  const EngineOptions options_;
  BlockManager blocks_;
  std::vector<Sequence*> running_;  // oldest first
  std::deque<Sequence*> waiting_;   // oldest first
  std::vector<SlotId> free_slots_;  // a stack
  std::vector<SlotId> ends_;
  int budget_ = 0;  // tokens left in the step being made
  int64_t preemptions_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_SCHEDULER_H_
