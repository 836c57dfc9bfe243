#ifndef FACET_KERNELS_DEVICE_H_
#define FACET_KERNELS_DEVICE_H_

// The seam between a model and what computes it. A device knows bytes, matrices and a step's
// layout; it knows no request, no model family and no rank. `reference/` is the scalar oracle,
// `cpu/` equals it bit for bit; the order of every addition is fixed in kernels/README.md.
//
// Memory: a Floats or Matrix belongs to the device that made it, lives as long as the device, and
// its address means something to that device and to a communicator built for it, to nobody else.
// Threads: one thread calls a device. Operations run in the order of the calls; Synchronize()
// waits for them, and the host reads results only after it. If a communicator that was built for
// the device fails, what is computed from then on means nothing: its calls, and what waits for the
// device and returns a status, say so.
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
  int64_t columns = 0;                      // a whole number of the type's blocks
  const std::byte* data = nullptr;          // the first block of source row 0
  int64_t row_stride = 0;                   // bytes from one source row to the next
  std::span<const int32_t> row_order = {};  // output row i is source row row_order[i]; empty: i
  bool searched = false;  // the output layer: packed so that SearchHead() need not read all of it
  int64_t first_row = 0;  // what errors call the first row, of some rows of a matrix
};

// How the columns of a row-parallel matrix are cut into the leaves of the sum tree.
struct LeafCut {
  int leaves_total = 1;         // in the whole tree, over all ranks
  int first_leaf = 0;           // this matrix's first leaf
  std::vector<int64_t> starts;  // column where each local leaf begins, and `columns` at the end
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

inline constexpr int kKvPools = 2;  // 0: layers that keep every key; 1: sliding windows
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

// A row among those that several ranks have brought side by side: `row`, or, where the host does
// not know the token, begins[r] + row, r being the rank that owns the token in `place`.
struct BroughtRow {
  int32_t row = 0;
  int32_t place = -1;  // of AllocateTokens(); -1: the host knows
};
struct BroughtRows {
  Floats x;
  std::span<const BroughtRow> rows;
  // By rank. Rank r owns the tokens from the end of the rank before it up to token_ends[r].
  // REQUIRES: an end and a begin of every rank; the last end is above every token that is named.
  std::span<const int32_t> token_ends;
  std::span<const int32_t> begins;
};

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
  Floats x;            // [queries.size(), head->columns()]
  float soft_cap = 0;  // of the logits; 0: none
  const VocabularySlices* slices = nullptr;
  std::span<const CandidateQuery> queries;  // one per row of x
  Floats scratch;                           // [queries.size(), head->rows()]; left undefined
  // Of a head that several ranks share: called exactly once (without queries: not at all), on the
  // calling thread, whatever the device leaves unread. floors[i] is an order that queries[i].count
  // candidates of this rank reach (-infinity: not known); afterwards one that as many candidates of
  // all ranks reach. Candidates below it may be missing from the reply. Null: nobody to agree with.
  std::function<void(std::span<float> floors)> agree;
};

// What AskHead() says of a row: a BestKey (kernels/best_key.h) takes the place of so many floats.
// Its bits are copied, and compared by KeepBest(), but nobody computes with them.
inline constexpr int kBestKeyFloats = 2;

// The best candidate of all ranks for a row of logits.
struct BestToken {
  bool finite = true;  // false: a logit was NaN or +infinity, and `id` is some token
  int32_t id = 0;
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
  // A step of few rows may be replayed as a whole, exchanges between ranks included, if it makes
  // the calls of one before it. What an exchange of `rows` of its rows should be made up to for
  // that: operations leave something in the rows added if their arrays have room for them, and no
  // other row depends on it. 0: a step of so many rows is not replayed.
  virtual int ReplayedRows(int /*rows*/) const { return 0; }
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
  // Places for token ids in device memory, [0, places), each 0 at first: what KeepBest() puts there
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
  // RowOfKept(place) is the row of the token in that place, `first_token` being that of row 0;
  // where the table has no such row out[i] = 0.
  virtual void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                         float scale, Floats out) = 0;
  // out[i] = x[rows[i]].  width floats each
  virtual void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) = 0;
  // out[i] = the row that brought.rows[i] names, bit for bit.  width floats each
  virtual void GatherBrought(const BroughtRows& brought, int width, Floats out) = 0;
  // out = RMS(x; weight).  [rows, width]
  virtual void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) = 0;
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

  // Tokens that stay on the device, so that the next step can be called for before the host has
  // read them: a device that is asynchronous() waits for nothing before ReadBest().

  // best[i] = the key of the best candidate of row i among this rank's.  [queries.size(),
  // kBestKeyFloats]  Of logits that are not finite it is kNotFiniteKey. What `search` borrows need
  // not outlive the call. REQUIRES: no `agree`; queries that want one candidate and nothing else.
  virtual void AskHead(const HeadSearch& search, Floats best) = 0;
  // all: what AskHead() has given on each rank, side by side, and nothing more.  [ranks, rows,
  // kBestKeyFloats], the first keep.size() rows of each count. The token of row i's largest key
  // goes to the place keep[i] (-1: none), and to who reads it. The caller bounds what is kept and
  // not read.
  virtual void KeepBest(Floats all, int ranks, std::span<const int32_t> keep) = 0;
  // The tokens of the oldest KeepBest() that was not read, one per row. An error says what has gone
  // wrong on the device since the step was begun, or after; it says nothing else from then on.
  virtual absl::Status ReadBest(std::span<BestToken> tokens) = 0;
  // Forgets what was not read; what was kept stays.
  virtual void DropBest() = 0;
  virtual HeadReads head_reads() const = 0;
  // The step's last operation has been called. Nothing depends on it, and a step that breaks off
  // has none: it is for devices that tell where time goes.
  virtual void EndStep() {}
};

}  // namespace facet

#endif  // FACET_KERNELS_DEVICE_H_
