#include "shard_worker/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace facet {

Scheduler::Scheduler(const EngineOptions& options)
    : options_(options), blocks_(options.block_tokens, options.blocks, options.window) {
  FACET_CHECK(options.step_tokens_max > 0 && options.prefill_chunk_max > 0 &&
              options.sequences_max > 0);
  for (int slot = options.sequences_max - 1; slot >= 0; --slot) free_slots_.push_back({slot});
}

void Scheduler::Add(Sequence* sequence) { waiting_.push_back(sequence); }

void Scheduler::Remove(Sequence* sequence) {
  if (sequence->slot.value >= 0) {
    LeaveSlot(sequence);
    std::erase(running_, sequence);
  } else {
    std::erase(waiting_, sequence);
  }
}

void Scheduler::Reserve() {
  budget_ = options_.step_tokens_max;
  // A preemption takes sequences off the end of running_, so the loops index.
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->pending() == 1) ReserveFor(running_[i], 1);
  }
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->pending() > 1) ReserveFor(running_[i], Chunk(*running_[i]));
  }
  Admit();
}

int64_t Scheduler::Chunk(const Sequence& sequence) const {
  return std::min<int64_t>(sequence.pending(), options_.prefill_chunk_max);
}

void Scheduler::ReserveFor(Sequence* sequence, int64_t wanted) {
  wanted = std::min<int64_t>(wanted, budget_);
  if (wanted == 0) return;
  const int64_t end = sequence->computed + wanted;
  int64_t reach = blocks_.Reach(sequence->table, end);
  while (reach == sequence->computed && running_.back() != sequence) {
    PreemptYoungest();
    reach = blocks_.Reach(sequence->table, end);
  }
  blocks_.Grow(&sequence->table, reach);
  sequence->planned = static_cast<int>(reach - sequence->computed);
  budget_ -= sequence->planned;
}

void Scheduler::Admit() {
  while (!waiting_.empty() && !free_slots_.empty() && budget_ > 0 &&
         HasRoomFor(*waiting_.front())) {
    Sequence* sequence = waiting_.front();
    waiting_.pop_front();
    sequence->slot = free_slots_.back();
    free_slots_.pop_back();
    running_.push_back(sequence);
    ReserveFor(sequence, Chunk(*sequence));
    FACET_CHECK(sequence->planned > 0);
  }
}

// Room for all tokens it has so far, beside what the running ones need for theirs: prompts do not
// preempt each other, only growing outputs do; and while a running one waits for blocks, nobody
// enters.
bool Scheduler::HasRoomFor(const Sequence& sequence) const {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    int64_t needed = blocks_.Lacking(pool, sequence.table, sequence.size());
    for (const Sequence* other : running_) {
      needed += blocks_.Lacking(pool, other->table, other->size());
    }
    if (needed > blocks_.free(pool)) return false;
  }
  return true;
}

void Scheduler::PreemptYoungest() {
  Sequence* victim = running_.back();
  running_.pop_back();
  budget_ += victim->planned;
  LeaveSlot(victim);
  waiting_.push_front(victim);
  ++preemptions_;
}

void Scheduler::LeaveSlot(Sequence* sequence) {
  if (sequence->started) ends_.push_back(sequence->slot);
  free_slots_.push_back(std::exchange(sequence->slot, SlotId{-1}));
  sequence->started = false;
  sequence->computed = 0;
  sequence->planned = 0;
  blocks_.Release(&sequence->table);
}

void Scheduler::Computed(Sequence* sequence) {
  sequence->computed += std::exchange(sequence->planned, 0);
  blocks_.Leave(&sequence->table, sequence->computed);
}

std::vector<SlotId> Scheduler::TakeEnds() { return std::exchange(ends_, {}); }

}  // namespace facet
