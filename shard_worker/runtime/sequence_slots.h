#ifndef FACET_SHARD_WORKER_RUNTIME_SEQUENCE_SLOTS_H_
#define FACET_SHARD_WORKER_RUNTIME_SEQUENCE_SLOTS_H_

// What every rank remembers of a running sequence between steps: how it samples, the counts that
// penalties need, and a digest of its logits where a test asks for one.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// Whether a token that is sampled changes the logits of those after it.
inline bool Penalises(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}

// An incremental SHA-256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void Update(const void* data, size_t bytes);
  // The 32 bytes so far; more may follow.
  std::string Digest() const;

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

class SequenceState {
 public:
  // Of a sequence of `tokens_max` tokens at most: it takes the room that they need now, if they are
  // counted.
  SequenceState(SequenceStart start, int64_t tokens_max);

  const SequenceStart& start() const { return start_; }  // without its history
  uint64_t seed() const { return start_.seed; }
  const SamplingParams& sampling() const { return start_.sampling; }
  int logprobs() const { return start_.logprobs; }
  bool logits_digest() const { return start_.logits_digest; }
  Sha256& digest() { return digest_; }
  const Sha256& digest() const { return digest_; }

  // Counts a token just sampled, and remembers it for the next step.
  void Append(TokenId token);
  // A token was sampled that the device keeps, in the slot's place. Nobody counts it.
  // REQUIRES: no penalties.
  void Keep();
  // Whether kSampledToken stands for the token that the device keeps.
  bool kept() const { return kept_; }
  // Else what it stands for. REQUIRES: a token was sampled.
  TokenId last_sampled() const;

  // *edits = those inside [first_id, first_id + rows) that bias and penalties ask for, by row, as
  // if the tokens `assumed` had been appended. It gets room for all that may ever be asked for.
  void FindEdits(int32_t first_id, int64_t rows, std::span<const TokenId> assumed,
                 std::vector<LogitEdit>* edits) const;

 private:
  struct Count {
    TokenId id;
    int output;  // so often among the output
  };
  bool penalises() const { return Penalises(start_.sampling); }
  // Where the token's count is, or would be inserted.
  std::vector<Count>::const_iterator CountOf(TokenId id) const;
  LogitEdit Penalty(int32_t row, int64_t output) const;

  SequenceStart start_;
  std::vector<Count> counts_;  // of the prompt's and the output's tokens, ids ascending
  std::optional<TokenId> last_sampled_;
  bool kept_ = false;
  Sha256 digest_;
};

class SequenceSlots {
 public:
  // Of sequences of `tokens_max` tokens at most.
  SequenceSlots(int slots, int64_t tokens_max)
      : tokens_max_(tokens_max), states_(static_cast<size_t>(slots)) {}

  // Forgets the plan's ends, then makes its starts.
  void Apply(const StepPlan& plan);
  SequenceState& operator[](SlotId slot);
  const SequenceState& operator[](SlotId slot) const;

 private:
  int64_t tokens_max_;
  std::vector<std::unique_ptr<SequenceState>> states_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_SEQUENCE_SLOTS_H_
