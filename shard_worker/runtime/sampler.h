#ifndef FACET_SHARD_WORKER_RUNTIME_SAMPLER_H_
#define FACET_SHARD_WORKER_RUNTIME_SAMPLER_H_

// Chooses tokens without gathering logits. Every rank looks at its slice of the vocabulary, the
// ranks exchange their best candidates and sums, and all of them draw the same conclusion: a
// choice is a function of the logits and of (sequence seed, position, token id) alone.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/collectives/communicator.h"
#include "kernels/device.h"
#include "shard_worker/engine/step_plan.h"
#include "shard_worker/runtime/sequence_slots.h"

namespace facet {

// One row of logits: those after the token at `position`.
struct SampleRow {
  const SequenceState* state = nullptr;
  int64_t position = 0;
  bool sample = false;               // choose the token at position + 1
  std::optional<TokenId> score;      // report the log-probability of this token at position + 1
  // Sampled tokens up to `position` that the state does not know: proposals, taken as right.
  std::span<const TokenId> assumed = {};
};

struct SampleOutcome {
  bool finite = true;
  std::optional<ScoredToken> sampled;
  std::optional<ScoredToken> scored;
};

class Sampler {
 public:
  // `slices`: this rank's part of the vocabulary; `vocabulary`: all ranks' ids.
  Sampler(Device* device, VocabularySlices slices, int64_t vocabulary);

  // `logits`: [rows.size(), slice]. Every rank passes the same rows.
  absl::StatusOr<std::vector<SampleOutcome>> Run(Floats logits, std::span<const SampleRow> rows,
                                                 Communicator* communicator);

  // True for rows that need their logits themselves or sums over them, so that only Run() will do.
  static bool NeedsLogits(const SampleRow& row);
  // Answers the device's queries about this rank's slice, one per row, in the rows' order.
  using AskHead =
      std::function<void(std::span<const CandidateQuery>, std::span<CandidateReply>)>;
  // The same as Run() for rows of which none needs its logits. Every rank decides alike.
  absl::StatusOr<std::vector<SampleOutcome>> Search(const AskHead& ask,
                                                    std::span<const SampleRow> rows,
                                                    Communicator* communicator);
  const VocabularySlices& slices() const { return slices_; }

 private:
  CandidateQuery MakeQuery(const SampleRow& row, int count,
                           std::span<const LogitEdit> edits) const;
  void Look(Floats logits, const SampleRow& row, int count, std::vector<std::byte>* out);
  float RawLogit(Floats row_logits, TokenId id) const;

  Device* const device_;
  const VocabularySlices slices_;
  const int64_t vocabulary_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_SAMPLER_H_
