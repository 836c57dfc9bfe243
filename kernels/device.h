#ifndef FACET_KERNELS_DEVICE_H_
#define FACET_KERNELS_DEVICE_H_

// The seam between a model and what computes it. A device knows bytes, matrices and a step's
// layout; it knows no request, no model family and no rank. `reference/` is the scalar oracle,
// `cpu/` equals it bit for bit; the order of every addition is fixed in kernels/README.md.
//
// Memory: a Floats or Matrix belongs to the device that made it, lives as long as the device, and
// its address means something to that device and to a communicator built for it, to nobody else.
// Threads: one thread calls a device. Operations run in the order of the calls; Synchronize()
// waits for them, and the host reads results only after it.
// Nothing: every count of rows, elements, queries or edits that an operation takes may be 0, and so
// may an array's size; nothing is read or written then. At least 1: a matrix's rows and columns,
// widths, heads, the rows of a SequenceRun.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoint/block_formats.h"
#include "kernels/sum_tree.h"

namespace facet {

// An array of floats in device memory.
struct Floats {
  float* data = nullptr;
  int64_t size = 0;
  explicit operator bool() const { return data != nullptr; }
};

// A matrix as it lies in a model file: `rows` outputs by `columns` inputs, possibly a slice.
struct MatrixSource {
  std::string name;  // of the tensor, for errors
  TensorType type = TensorType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;              // a whole number of the type's blocks
  const std::byte* data = nullptr;  // the first block of source row 0
  int64_t row_stride = 0;           // bytes from one source row to the next
  std::span<const int32_t> row_order = {};  // output row i is source row row_order[i]; empty: i
  bool searched = false;  // the output layer: packed so that SearchHead() need not read all of it
};

// How the columns of a row-parallel matrix are cut into the leaves of the sum tree.
struct LeafCut {
  int leaves_total = 1;             // in the whole tree, over all ranks
  int first_leaf = 0;               // this matrix's first leaf
  std::vector<int64_t> starts;      // column where each local leaf begins, and `columns` at the end
  int leaves() const { return static_cast<int>(starts.size()) - 1; }
};

// A matrix packed for its device. Immutable.
class Matrix {
 public:
  virtual ~Matrix() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t packed_bytes() const = 0;
  // The subtree roots that ProductRoots() writes; one, over everything, without a LeafCut.
  virtual int root_count() const = 0;
};

enum class KvType { kF16, kF32 };

// A pool of KV blocks shared by the layers that have the same lifetime of keys.
struct KvPoolSpec {
  int layers = 0;
  int blocks = 0;
  int block_tokens = 0;
  int kv_heads = 0;  // on this rank
  int head_dim = 0;
  KvType type = KvType::kF16;
};

inline constexpr int kKvPools = 2;        // 0: layers that keep every key; 1: sliding windows
inline constexpr int kFullPool = 0;
inline constexpr int kWindowPool = 1;
// Attention merges partial results at fixed absolute positions, every kSplitTokens keys.
inline constexpr int kSplitTokens = 64;

// Consecutive tokens of one sequence that a step computes.
struct SequenceRun {
  int first_row = 0;  // in the step's rows
  int rows = 0;
  int64_t first_position = 0;
  // Block ids by position / block_tokens, per pool; -1 where the window has left them behind.
  std::array<std::span<const int32_t>, kKvPools> blocks;
};

struct StepLayout {
  int rows = 0;
  std::span<const SequenceRun> runs;  // cover rows [0, rows) in order
};

// Rotates the pairs (i, i + rotary/2) of the first `rotary` elements of every head by
// position x inverse_frequency[i] (the half-split or "NEOX" form).
struct RopeSpec {
  std::vector<float> inverse_frequency;  // rotary / 2
};

struct AttentionSpec {
  int pool = kFullPool;
  int pool_layer = 0;  // which layer of the pool
  int heads = 0;       // query heads on this rank
  int kv_heads = 0;    // on this rank
  int head_dim = 0;
  std::vector<int> kv_of_head;  // [heads]: local KV head that each query head reads
  int64_t window = 0;           // 0: all keys; else key k is seen by query q iff q - k < window
  float scale = 1;              // of q.k
  float soft_cap = 0;           // 0: none; else s = cap * tanh(s / cap)
  int rope = -1;                // from AddRope, -1: none
  Floats q_norm, k_norm;        // [head_dim] RMS weights before the rotation, or empty
  float norm_epsilon = 0;
};

enum class Activation { kGeluTanh, kSilu };

// x += RMS(update; post_weight) or x += update; then out = RMS(x; next_weight).
struct ResidualNormArgs {
  Floats residual;     // [rows, width], updated
  Floats update;       // [rows, width]
  Floats post_weight;  // [width], or empty: the update is added as it is
  Floats next_weight;  // [width]
  Floats out;          // [rows, width]
  int rows = 0;
  int width = 0;
  float epsilon = 0;
};

// value = repeat(raw + bias) - subtract, where repeat divides a positive and multiplies a
// negative logit by `repetition`.
struct LogitEdit {
  int32_t row = 0;  // of this rank's slice of the head
  float bias = 0;
  float repetition = 1;
  float subtract = 0;
};

// Stands among the rows of EmbedRows() for the row of the token that lies in a place of the
// device's (AllocateTokens()).
constexpr int32_t RowOfKept(int32_t place) { return -1 - place; }
constexpr bool IsKept(int32_t row) { return row < 0; }
constexpr int32_t PlaceOfKept(int32_t row) { return -1 - row; }

// What a rank is asked about its slice of one row of logits.
struct CandidateQuery {
  std::span<const LogitEdit> edits;  // rows ascending, each at most once
  float inverse_temperature = 1;     // processed = edited * inverse_temperature
  bool gumbel = false;               // order by processed + Gumbel noise of (key, token id)
  uint64_t key = 0;                  // PositionKey of the sequence and position
  int count = 1;                     // best candidates wanted by that order
  bool sums = false;                 // (max, sum) of the processed logits per vocabulary slice
  int raw_count = 0;                 // best by raw logit wanted, for log-probabilities
  bool raw_sums = false;             // (max, sum) of the raw logits per vocabulary slice
};

// Ordered by `order` descending, ties by id ascending.
struct Candidate {
  float order = 0;      // what it was ordered by
  float processed = 0;  // after edits and temperature
  float raw = 0;
  int32_t id = 0;  // of the whole vocabulary
};

// max over a vocabulary slice, and sum of exp(logit - max) over it.
struct SliceSum {
  float max = 0;
  float sum = 0;
};

struct CandidateReply {
  std::vector<Candidate> best;
  std::vector<SliceSum> sums;
  std::vector<Candidate> raw_best;
  std::vector<SliceSum> raw_sums;
  bool finite = true;  // false: a logit was NaN or +infinity
};

// This rank's rows of the output layer: global ids and the canonical vocabulary slices.
struct VocabularySlices {
  int32_t first_id = 0;
  std::vector<int64_t> starts;  // local row where each slice begins, and the row count at the end
};

// Which of the rows of logits that an output layer could give are wanted.
struct HeadSearch {
  const Matrix* head = nullptr;
  Floats x;  // [queries.size(), head->columns()]
  float soft_cap = 0;  // of the logits; 0: none
  const VocabularySlices* slices = nullptr;
  std::span<const CandidateQuery> queries;  // one per row of x
  Floats scratch;                           // [queries.size(), head->rows()]; left undefined
  // keep[i]: the place (AllocateTokens()) that gets the id of row i's best candidate, -1: none. Of
  // logits that are not finite it gets some id of the head. Who keeps one wants one candidate, or
  // more of them up to 512. Empty: nothing is kept.
  std::span<const int32_t> keep = {};
  // Of a head that several ranks share: called exactly once (without queries: not at all), on the
  // calling thread, whatever the device leaves unread. floors[i] is an order that queries[i].count candidates of this rank
  // reach (-infinity: not known); afterwards one that as many candidates of all ranks reach.
  // Candidates below it may be missing from the reply. Null: nobody to agree with.
  std::function<void(std::span<float> floors)> agree;
};

// What searches of the output layer have read so far, in rows of the head.
struct HeadReads {
  int64_t rows = 0;       // asked about: rows of x times rows of the head
  int64_t screened = 0;   // of these, first read in part
  int64_t completed = 0;  // of these, then read whole, because they could still win
  double bytes = 0;       // of the packed head
};

class MatrixImages;
class DeviceCollectives;

class Device {
 public:
  virtual ~Device() = default;

  // "cpu-avx512-bf16", "cpu-avx2", "reference", "cuda:0 (NVIDIA H100, sm_90)": goes into logs.
  virtual std::string name() const = 0;
  // Whether Floats lie in host memory, so that a communicator of the host can work on them.
  virtual bool host_memory() const { return true; }
  // Whether operations run apart from the thread that calls them, so that a step can be asked for
  // while the one before it runs.
  virtual bool asynchronous() const { return false; }
  // How ranks exchange Floats that are not in host memory (collectives/device_collectives.h); null
  // where nothing but the host can.
  virtual DeviceCollectives* collectives() { return nullptr; }
  // Names an arithmetic that is not known to give the reference's bits; empty where it is. Goes
  // into the group's fingerprint.
  virtual std::string arithmetic() const { return {}; }

  // --- Set-up. Everything is allocated before the first step.

  // Packs a matrix. InvalidArgument names the tensor if a scale is not finite. With a cut,
  // ProductRoots() is available.
  virtual absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const MatrixSource& source,
                                                             const LeafCut* cut) = 0;
  // How whole packed matrices are kept and shared (matrix_images.h); null where they cannot be.
  virtual const MatrixImages* images() const { return nullptr; }
  virtual absl::StatusOr<Floats> AllocateFloats(int64_t size) = 0;
  // The same for rows that nothing but products with `readers` reads, and only all the rows
  // together that one operation has written to its front: what lies there between the two is the
  // device's business.
  virtual absl::StatusOr<Floats> AllocateInputs(int64_t size,
                                                std::span<const Matrix* const> /*readers*/) {
    return AllocateFloats(size);
  }
  // Keys and values of every layer of both pools; a pool without layers takes nothing.
  virtual absl::Status AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) = 0;
  // Places for token ids in device memory, [0, places), each 0 at first: what a search keeps there
  // an embedding finds there, in the next step too, and the host need not have read it meanwhile.
  // REQUIRES: there are none yet.
  virtual absl::Status AllocateTokens(int places) = 0;
  virtual int AddRope(RopeSpec spec) = 0;
  virtual void CopyIn(std::span<const float> host, Floats device) = 0;
  virtual void CopyOut(Floats device, std::span<float> host) = 0;
  virtual void Synchronize() = 0;

  // --- One step. An output has what is asked of it in the rows named; what lies behind them in the
  // array may be overwritten.

  // Names the rows that the following calls are about; `layout` must outlive them.
  virtual void BeginStep(const StepLayout& layout) = 0;
  // Names some of the step's rows as those that the rest of its calls are about.
  virtual void NarrowStep(const StepLayout& layout) { BeginStep(layout); }
  // out[i] = scale * row `rows[i]` of the table, dequantised.  [rows.size(), columns]
  // RowOfKept(place) is the row of the token in that place, a row of the table.
  virtual void EmbedRows(const Matrix& table, std::span<const int32_t> rows, float scale,
                         Floats out) = 0;
  // out[i] = x[rows[i]].  width floats each
  virtual void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) = 0;
  // out = RMS(x; weight).  [rows, width]
  virtual void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon,
                       Floats out) = 0;
  virtual void ResidualNorm(const ResidualNormArgs& args) = 0;
  // out[r] = the products of x[r] with all parts, side by side. The parts share their columns;
  // out has the sum of their rows per row of x.
  virtual void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) = 0;
  // out[r] = act(the product of x[r] with `gate`) * its product with `up`.  [rows, gate.rows()]
  // The matrices have the same shape.
  virtual void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x,
                            int rows, Floats out) = 0;
  // roots[k][r] = the sums over the leaves of the k-th root.  [root_count, rows, matrix.rows()]
  virtual void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) = 0;
  // qkv: [rows, (heads + 2 kv_heads) head_dim], q then k then v. Norms and rotates q and k in
  // place and stores k and v at the rows' positions.
  virtual void RopeAndStore(const AttentionSpec& spec, Floats qkv) = 0;
  // out: [rows, heads head_dim]. Reads q from qkv and all keys from the pool.
  virtual void Attend(const AttentionSpec& spec, Floats qkv, Floats out) = 0;
  // x = cap * tanh(x / cap)
  virtual void SoftCap(Floats x, int64_t size, float cap) = 0;
  // Looks at one row of logits of this rank's slice; the row is the same afterwards.
  virtual void FindCandidates(Floats logits, const VocabularySlices& slices,
                              const CandidateQuery& query, CandidateReply* reply) = 0;
  // replies[i] = what FindCandidates() says of the (soft-capped) products of x[i] with the head,
  // but for candidates below the agreed floor.
  // A device may leave rows of the head unread that provably change no reply.
  virtual void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) = 0;
  // SearchHead() in two halves, the second of which may come after the calls of the next step: a
  // device that is asynchronous() waits for nothing in between. What `search` borrows need not
  // outlive the call. The caller bounds what is asked and not read. REQUIRES: no `agree`.
  virtual void AskHead(const HeadSearch& search) = 0;
  // The replies to the oldest search that was asked and not read, one per query. An error says what
  // has gone wrong on the device since it was begun, or after; it says nothing else from then on.
  virtual absl::Status ReadReplies(std::span<CandidateReply> replies) = 0;
  // Forgets what was asked and not read; what was kept stays.
  virtual void DropReplies() = 0;
  virtual HeadReads head_reads() const = 0;
  // The step's last operation has been called. Nothing depends on it, and a step that breaks off has
  // none: it is for devices that tell where time goes.
  virtual void EndStep() {}
};

}  // namespace facet

#endif  // FACET_KERNELS_DEVICE_H_
