#ifndef FACET_SHARD_WORKER_RUNTIME_FAKE_EXECUTOR_H_
#define FACET_SHARD_WORKER_RUNTIME_FAKE_EXECUTOR_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/executor.h"

namespace facet {

// An executor without a model, for tests and simulation. Its KV blocks hold token ids, and a row's
// "logits" are a hash of the history read back through the block tables: of all of it from pool 0
// and of the window's from pool 1. So a wrong block, a lost chunk or a doubled token changes the
// output. It repeats itself as text does, so that speculation has something to find: of eight
// tokens, six follow from the two before them alone. It remembers no token but the last one that
// each slot sampled (and what SequenceStart brings). It checks the plan's contract as a rank would,
// and stops the process at a breach.
class FakeExecutor : public Executor {
 public:
  // Uses the block, window and vocabulary fields. Rows whose token is `poison` have logits that
  // are not finite.
  explicit FakeExecutor(const EngineOptions& options, std::optional<TokenId> poison = {});

  absl::StatusOr<StepResult> Run(const StepPlan& plan) override;

  // The same computed naively from plain tokens: the "logits" after `history`, ...
  static uint64_t LogitsAfter(std::span<const TokenId> history, const EngineOptions& options);
  // ... the token chosen from them at position history.size(), ...
  static ScoredToken Choose(uint64_t logits, const EngineOptions& options, uint64_t seed,
                            int64_t position, int logprobs);
  // ... the score of `next` under them, ...
  static ScoredToken Score(uint64_t logits, const EngineOptions& options, TokenId next,
                           int logprobs);
  // ... and the digest once the logits after each of the first `positions` tokens were computed.
  static std::string DigestOf(std::span<const TokenId> tokens, int64_t positions,
                              const EngineOptions& options);

 private:
  struct Slot {
    SequenceStart start;  // its history grows with the output
    int64_t next_position = 0;
    uint64_t digest = 0;
    std::optional<TokenId> last_sampled;
  };

  void ApplyEndsAndStarts(const StepPlan& plan);
  // Puts the token that kSampledToken stands for in its place.
  Segment Resolve(Segment segment) const;
  void Store(const Segment& segment);
  SegmentResult Compute(const Segment& segment);
  void Remember(const std::vector<ScoredToken>& sampled, Slot* slot);
  // The token after that of the row, of a segment that samples.
  ScoredToken Sample(const Segment& segment, int64_t row, uint64_t logits) const;
  // Positions [first, end) of the segment's sequence as `pool` holds them.
  std::vector<TokenId> Read(const Segment& segment, int pool, int64_t first, int64_t end) const;
  uint64_t ReadLogits(const Segment& segment, int64_t position) const;
  size_t Index(const Segment& segment, int pool, int64_t position) const;

  const EngineOptions options_;
  const std::optional<TokenId> poison_;
  std::array<std::vector<TokenId>, kBlockPools> kv_;
  std::unordered_map<SlotId, Slot> slots_;
  uint64_t last_step_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_FAKE_EXECUTOR_H_
