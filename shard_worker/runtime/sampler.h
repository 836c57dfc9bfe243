#ifndef FACET_SHARD_WORKER_RUNTIME_SAMPLER_H_
#define FACET_SHARD_WORKER_RUNTIME_SAMPLER_H_

// Chooses tokens without gathering logits. Every rank looks at its slice of the vocabulary, the
// ranks exchange their best candidates and sums, and all of them draw the same conclusion: a
// choice is a function of the logits and of (sequence seed, position, token id) alone.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/communicator.h"
#include "kernels/device.h"
#include "shard_worker/engine/step_plan.h"
#include "shard_worker/runtime/sequence_slots.h"

namespace facet {

// One row of logits: those after the token at `position`.
struct SampleRow {
  const SequenceState* state = nullptr;
  int64_t position = 0;
  bool sample = false;           // choose the token at position + 1
  std::optional<TokenId> score;  // report the log-probability of this token at position + 1
  // Sampled tokens up to `position` that the state does not know: proposals, taken as right.
  std::span<const TokenId> assumed = {};
};

struct SampleOutcome {
  bool finite = true;
  std::optional<ScoredToken> sampled;
  std::optional<ScoredToken> scored;
};

// All ranks' replies about one row.
struct Gathered {
  std::vector<Candidate> best, raw_best;
  std::vector<SliceSum> sums, raw_sums;  // in slice order
  std::vector<float> scored;             // raw logit of the row's scored token, from its owner
  bool finite = true;

  void Clear();
};

// Keeps its memory from call to call: what needs no more than calls before allocates nothing.
class Sampler {
 public:
  // `slices`: this rank's part of the vocabulary; `vocabulary`: all ranks' ids.
  Sampler(Device* device, VocabularySlices slices, int64_t vocabulary);

  // `logits`: [rows.size(), slice]. Every rank passes the same rows, and gets the same *outcomes.
  absl::Status Run(Floats logits, std::span<const SampleRow> rows, Communicator* communicator,
                   std::vector<SampleOutcome>* outcomes);

  // True for rows that ask for single logits, or may ask again, so that only Run() will do.
  static bool NeedsLogits(const SampleRow& row);
  // Answers the device's queries about this rank's slice, one per row, in the rows' order.
  using AskHead = std::function<void(std::span<const CandidateQuery>, std::span<CandidateReply>)>;
  // The same as Run() for rows of which none needs its logits. Every rank decides alike.
  absl::Status Search(const AskHead& ask, std::span<const SampleRow> rows,
                      Communicator* communicator, std::vector<SampleOutcome>* outcomes);
  // True for sequences whose tokens are the best candidate of a query that no earlier token of
  // theirs changes: of several steps all can be asked before any is answered, and what is chosen
  // follows from the candidates' keys alone.
  static bool BestIsChosen(const SequenceStart& start);
  // What Search() would ask about such rows. Valid until the next call.
  std::span<const CandidateQuery> Queries(std::span<const SampleRow> rows);
  const VocabularySlices& slices() const { return slices_; }
  // Takes the memory of a token of earlier outcomes that nobody reads any more.
  void TakeBack(ScoredToken* token);

 private:
  // Makes *outcomes empty ones of so many rows.
  void Clear(size_t rows, std::vector<SampleOutcome>* outcomes);
  // What the row's sequence edits in this rank's slice, in the given one of edits_.
  std::span<const LogitEdit> EditsOf(const SampleRow& row, size_t index);
  CandidateQuery MakeQuery(const SampleRow& row, int count, std::span<const LogitEdit> edits) const;
  // Empty replies.
  std::span<CandidateReply> MakeRoom(size_t replies);
  // Appends this rank's reply about one row to mine_.
  void Look(Floats logits, const SampleRow& row, int count);
  float RawLogit(Floats row_logits, TokenId id) const;
  // Sends mine_ to all and gets theirs.
  absl::Status Exchange(Communicator* communicator);
  // Reads all ranks' replies about the next row into all_.
  absl::Status ReadReplies();
  // How many of all_.best survive top_k, top_p and min_p; nothing if that takes more candidates.
  std::optional<size_t> Survivors(const SamplingParams& p);
  // The token that the row samples, or nothing if more candidates are needed.
  std::optional<Candidate> Choose(const SampleRow& row);
  ScoredToken Score(TokenId id, float raw, const SequenceState& state);

  Device* const device_;
  const VocabularySlices slices_;
  const int64_t vocabulary_;
  // Alternatives of tokens that were taken back.
  std::vector<std::vector<std::pair<TokenId, float>>> spare_;
  // Of the call that runs:
  std::vector<int> counts_;                    // candidates asked for, by row
  std::vector<size_t> open_;                   // rows without an outcome yet
  std::vector<std::vector<LogitEdit>> edits_;  // by row
  std::vector<CandidateQuery> queries_;
  std::vector<CandidateReply> found_;
  std::vector<std::byte> mine_;
  std::vector<std::vector<std::byte>> replies_;   // by rank
  std::vector<std::span<const std::byte>> rest_;  // of each, not read yet
  Gathered all_;
  std::vector<float> weights_;  // of all_.best
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_SAMPLER_H_
