#include <set>
#include <utility>
#include <vector>

#include "base/status.h"
#include "shard_worker/engine/scheduler.h"

namespace facet {

absl::Status Scheduler::CheckRunning(const Sequence& sequence) const {
  const uint64_t id = sequence.request.id.value;
  if (sequence.planned != 0) return Internal("sequence {} has a plan that was not issued", id);
  if (sequence.next() > sequence.size() + sequence.samples_in_flight) {
    return Internal("sequence {} computes {} tokens of {}", id, sequence.next(), sequence.size());
  }
  if (int64_t{sequence.table.stored} * options_.block_tokens > sequence.computed) {
    return Internal("sequence {} has stored {} blocks of {} computed tokens", id,
                    sequence.table.stored, sequence.computed);
  }
  if (options_.prefix_cache && !sequence.table.collided &&
      sequence.table.stored != sequence.computed / options_.block_tokens) {
    return Internal("sequence {} has stored {} blocks, not all of {} computed tokens", id,
                    sequence.table.stored, sequence.computed);
  }
  for (int pool = 0; pool < kBlockPools; ++pool) {
    const auto held = static_cast<int64_t>(sequence.table.blocks[pool].size());
    const int64_t end = sequence.next() + sequence.proposals;
    if (options_.blocks[pool] > 0 && held * options_.block_tokens < end) {
      return Internal("sequence {} has no block for position {}", id, end - 1);
    }
    if ((held - 1) * options_.block_tokens >= end) {
      return Internal("sequence {} has {} blocks for {} positions", id, held, end);
    }
  }
  const bool may_propose = sequence.in_flight > 0 && sequence.samples_in_flight == 1;
  if (sequence.proposals < 0 || sequence.proposals > options_.speculation.proposals_max ||
      (sequence.proposals > 0 && !may_propose)) {
    return Internal("sequence {} has {} proposals in no step", id, sequence.proposals);
  }
  if (sequence.leader != nullptr && sequence.leader->arrival >= sequence.arrival) {
    return Internal("sequence {} waits for a younger one", id);
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Check() const {
  std::vector<const BlockTable*> tables;
  std::set<SlotId> slots(free_slots_.begin(), free_slots_.end());
  uint64_t last_arrival = 0;
  for (const Sequence* sequence : running_) {
    const uint64_t id = sequence->request.id.value;
    if (!slots.insert(sequence->slot).second) {
      return Internal("slot {} of sequence {} is not its own", sequence->slot.value, id);
    }
    if (std::exchange(last_arrival, sequence->arrival) >= sequence->arrival) {
      return Internal("sequence {} runs out of order", id);
    }
    FACET_RETURN_IF_ERROR(CheckRunning(*sequence));
    tables.push_back(&sequence->table);
  }
  if (static_cast<int>(slots.size()) != options_.sequences_max) {
    return Internal("{} slots are free or taken of {}", slots.size(), options_.sequences_max);
  }
  last_arrival = 0;
  for (const Sequence* sequence : waiting_) {
    const uint64_t id = sequence->request.id.value;
    if (sequence->slot.value >= 0 || sequence->computed > 0 || sequence->in_flight > 0) {
      return Internal("sequence {} waits and runs", id);
    }
    if (std::exchange(last_arrival, sequence->arrival) >= sequence->arrival) {
      return Internal("sequence {} waits out of order", id);
    }
    if (sequence->preemptions > options_.preemptions_max) {
      return Internal("sequence {} was preempted {} times", id, sequence->preemptions);
    }
    tables.push_back(&sequence->table);
  }
  return blocks_.Check(tables);
}

}  // namespace facet
