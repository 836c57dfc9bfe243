#ifndef FACET_SHARD_WORKER_MODEL_FORWARD_H_
#define FACET_SHARD_WORKER_MODEL_FORWARD_H_

// One rank's forward pass: walks the layers of a spec over a device and a communicator. Owns the
// activation buffers, all allocated in Create(). One thread.

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernels/collectives/communicator.h"
#include "kernels/device.h"
#include "shard_worker/model/model_spec.h"
#include "shard_worker/model/shard_plan.h"
#include "shard_worker/model/weights.h"

namespace facet {

// Rows of logits that exist at a time; more are computed tile by tile. 32 rows of a 262,144-id
// vocabulary are 32 MiB.
inline constexpr int kLogitRowsMax = 32;

class Forward {
 public:
  // Borrows everything; `rows_max` bounds the rows of a step, `places` those of its tokens that
  // only the device knows: it gets so many places for them, which Ask() and RowOfKept() name.
  static absl::StatusOr<std::unique_ptr<Forward>> Create(const ModelSpec& spec,
                                                         const ShardPlan& plan, int rank,
                                                         const Weights& weights, Device* device,
                                                         int rows_max, int places = 0);

  // `progress` is called twice a layer from then on, on the thread of Run().
  void OnProgress(std::function<void()> progress) { progress_ = std::move(progress); }

  // The KV pools that the attention layers of this rank need, without their block counts.
  std::array<KvPoolSpec, kKvPools> pools() const { return pools_; }

  // Computes the final hidden states of the step's rows, as far as `wanted` asks for them: rows,
  // ascending, the same on all ranks. `tokens` has one id per row, or RowOfKept(place) for the one
  // that Ask() kept there on every rank; the same on all ranks.
  absl::Status Run(const StepLayout& layout, std::span<const TokenId> tokens,
                   std::span<const int32_t> wanted, Communicator* communicator);
  // This rank's logits of up to kLogitRowsMax rows of the step just run, [rows.size(), slice].
  // Valid until the next call. REQUIRES, as Search(): the rows were wanted.
  Floats Logits(std::span<const int32_t> rows);
  // What Device::SearchHead() says of the same logits, which need not all be computed. All ranks
  // search the same rows at the same time: of a few rows they agree on floors through the
  // communicator of the step just run. If that fails, so does the communicator's next call.
  // REQUIRES: as many queries and replies as rows.
  void Search(std::span<const int32_t> rows, const VocabularySlices& slices,
              std::span<const CandidateQuery> queries, std::span<CandidateReply> replies);
  // The best candidate of all ranks for each row, for queries that want no more, to be read in the
  // order of asking: that may come after the next steps' Ask(). keep[i], unless -1, is the place
  // that gets row i's token, on every rank. All ranks ask for the same rows at the same time.
  absl::Status Ask(std::span<const int32_t> rows, const VocabularySlices& slices,
                   std::span<const CandidateQuery> queries, std::span<const int32_t> keep);
  absl::Status ReadBest(std::span<BestToken> tokens) { return device_->ReadBest(tokens); }
  // Forgets what was asked and not read.
  void DropBest() { device_->DropBest(); }
  int64_t vocabulary_rows() const { return vocabulary_rows_; }

 private:
  Forward(const ModelSpec& spec, const ShardPlan& plan, int rank, const Weights& weights,
          Device* device);

  struct Layer {
    AttentionSpec attention;
    SumTree attention_tree;
    SumTree ffn_tree;
    std::vector<const Matrix*> qkv;
    int ffn = 0;  // columns of this rank
  };
  // The last layer with keys and values only: all that rows which nobody asks for are still good
  // for.
  struct KeysAndValues {
    AttentionSpec attention;  // no query heads
    std::vector<const Matrix*> matrices;
  };

  void PlanLayers();
  absl::Status Allocate(int rows_max, int places);
  absl::Status Embed(std::span<const TokenId> tokens);
  // The rows that an exchange of `rows` of the step's rows is made up to.
  int ExchangedRows(int rows) const;
  void PlanGather(std::span<const TokenId> tokens);
  void PlanEvenGather(std::span<const TokenId> tokens, int rows);
  // out = the ranks' floats side by side, as gather_counts_ has them.
  absl::Status GatherAll(Floats mine, Floats out);
  // The matrices that read each array of products' inputs.
  struct Readers {
    std::vector<const Matrix*> normed, attended, gated;
  };
  Readers FindReaders() const;
  absl::Status RunLayer(int layer, int rows);
  // Stores the last layer's keys and values and goes on with the wanted rows. Returns how many.
  int Narrow(const StepLayout& layout);
  // Moves the wanted rows, of the model's width, to the front.
  void KeepWanted(Floats rows);
  void PlanNarrowStep(const StepLayout& layout);
  // The given rows of the step to where they lie in final_.
  std::span<const int32_t> PlacesOf(std::span<const int32_t> rows);
  absl::Status RunAttention(int layer, int rows);
  absl::Status RunFfn(int layer, int rows);
  // update_ = the product of all ranks' x with the matrix that they share.
  absl::Status ProductOfAll(const Matrix& matrix, const SumTree& tree, Floats x, int rows);
  HeadSearch MakeSearch(std::span<const int32_t> rows, const VocabularySlices& slices,
                        std::span<const CandidateQuery> queries);
  // floors[i] = the largest of all ranks' floors[i].
  void AgreeOnFloors(std::span<float> floors);
  // x += update, normed; out = RMS(x; next).
  void AddResidual(int rows, Floats post_norm, Floats next_norm, Floats out);
  // What the attention of a layer reads.
  Floats AttentionInputs(int layer) const;

  const ModelSpec& spec_;
  const ShardPlan& plan_;
  const int rank_;
  const Weights& weights_;
  Device* const device_;
  std::function<void()> progress_ = [] {};
  Communicator* communicator_ = nullptr;  // of the step just run
  std::vector<Layer> layers_;
  KeysAndValues last_;
  std::array<KvPoolSpec, kKvPools> pools_;
  int64_t vocabulary_rows_ = 0;

  Floats residual_, update_;          // [rows, width]
  Floats normed_, attended_, gated_;  // what only products read
  Floats qkv_;
  // The norms of rows that are gathered: after the last layer, and before it where it is narrow.
  Floats final_;
  Floats roots_;  // [roots, rows, width]
  Floats owned_embeddings_, all_embeddings_;
  Floats logit_inputs_, logits_;  // [kLogitRowsMax, width], [kLogitRowsMax, slice]
  Floats best_, all_best_;        // keys: [kLogitRowsMax], [world, kLogitRowsMax]
  // Of the step's rows, for the exchange of embeddings: what this rank sends, and where each row is
  // then; by rank, where its next row that it alone sends and its first of those that all send lie.
  std::vector<int32_t> sent_, known_next_, shared_begins_;
  std::vector<BroughtRow> brought_;
  std::vector<int32_t> token_ends_;     // by rank
  std::vector<int64_t> gather_counts_;  // floats by rank
  // The rows asked for, and whether only they go through the last layer.
  std::vector<int32_t> wanted_, wanted_places_;
  std::vector<SequenceRun> wanted_runs_;
  StepLayout wanted_layout_;
  bool narrow_ = false;
  std::vector<float> all_floors_;  // [world, rows]
  std::vector<int64_t> floor_counts_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_FORWARD_H_
