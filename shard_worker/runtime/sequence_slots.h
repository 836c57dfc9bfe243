#ifndef FACET_SHARD_WORKER_RUNTIME_SEQUENCE_SLOTS_H_
#define FACET_SHARD_WORKER_RUNTIME_SEQUENCE_SLOTS_H_

// What every rank remembers of a running sequence between steps: how it samples, the counts that
// penalties need, and a digest of its logits where a test asks for one.

#include <cstdint>
#include <map>
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
  explicit SequenceState(SequenceStart start);

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

  // The logit edits inside [first_id, first_id + rows) that bias and penalties ask for, by row, as
  // if the tokens `assumed` had been appended.
  std::vector<LogitEdit> Edits(int32_t first_id, int64_t rows,
                               std::span<const TokenId> assumed) const;

 private:
  bool penalises() const { return Penalises(start_.sampling); }
  void Count(TokenId token, bool output);
  LogitEdit Penalty(int32_t row, int64_t output) const;

  SequenceStart start_;
  struct Counts {
    int all = 0;  // in prompt and output
    int output = 0;
  };
  std::map<TokenId, Counts> counts_;  // ordered: edits come out by row
  std::optional<TokenId> last_sampled_;
  bool kept_ = false;
  Sha256 digest_;
};

class SequenceSlots {
 public:
  explicit SequenceSlots(int slots) : states_(static_cast<size_t>(slots)) {}

  // Forgets the plan's ends, then makes its starts.
  void Apply(const StepPlan& plan);
  SequenceState& operator[](SlotId slot);
  const SequenceState& operator[](SlotId slot) const;

 private:
  std::vector<std::unique_ptr<SequenceState>> states_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_SEQUENCE_SLOTS_H_
