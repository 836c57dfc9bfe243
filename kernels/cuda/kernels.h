#ifndef FACET_KERNELS_CUDA_KERNELS_H_
#define FACET_KERNELS_CUDA_KERNELS_H_

// What the host code of the CUDA device launches. Every function puts kernels on a stream and
// returns driver.h's launch code; all pointers are to device memory. Sizes may be 0 but for widths
// and counts of heads: nothing is launched then. The order of every operation is that of
// kernels/README.md.
//
// The host calls them through LaunchQueue, which may call a function once and run its kernels many
// times. So what they launch follows from their arguments alone, which can be compared.

#include <cstdint>

#include "checkpoint/block_formats.h"
#include "kernels/cuda/launch_shape.h"

namespace facet::cuda {

// --- row_kernels.cu

// out[i] = x[rows[i]], `width` floats each.
int GatherRows(Stream stream, const float* x, const int32_t* rows, int count, int width,
               float* out);
// out[i] = scale * row rows[i] of the table, whose rows (row_layout.h) lie `row_bytes` apart.
// A row below 0 is the one of the token kept[-1 - rows[i]], row 0 being that of `first_token`;
// zeros where there is none.
struct EmbeddedRows {
  TensorType type = TensorType::kF32;
  const uint8_t* table = nullptr;
  int64_t row_bytes = 0;
  int64_t table_rows = 0;
  int32_t first_token = 0;
  const int32_t* rows = nullptr;  // [count]
  const int32_t* kept = nullptr;
  int count = 0;
  int width = 0;
  float scale = 1;
  float* out = nullptr;
  bool operator==(const EmbeddedRows&) const = default;
};
int EmbedRows(Stream stream, const EmbeddedRows& args);
// out[i] = x[rows[i].row], or, where that has a place, x[begins[r] + rows[i].row], r being the rank
// that owns the token in kept[rows[i].place].
struct BroughtRow {
  int32_t row;
  int32_t place;  // -1: none
};
struct RowsOfRanks {
  const float* x = nullptr;
  const BroughtRow* rows = nullptr;  // [count]
  const int32_t* kept = nullptr;
  const int32_t* token_ends = nullptr;  // [ranks], of the tokens that each owns
  const int32_t* begins = nullptr;      // [ranks]
  int ranks = 0;
  int count = 0;
  int width = 0;
  float* out = nullptr;
  bool operator==(const RowsOfRanks&) const = default;
};
int GatherBrought(Stream stream, const RowsOfRanks& args);
// out may be x.
int RmsNorm(Stream stream, const float* x, int rows, int width, const float* weight, float epsilon,
            float* out);

struct ResidualNormRows {
  float* residual = nullptr;
  const float* update = nullptr;
  const float* post_weight = nullptr;  // null: the update is added as it is
  const float* next_weight = nullptr;
  float* out = nullptr;
  int rows = 0;
  int width = 0;
  float epsilon = 0;
  bool operator==(const ResidualNormRows&) const = default;
};
int ResidualNorm(Stream stream, const ResidualNormRows& args);
int SoftCap(Stream stream, float* x, int64_t size, float cap);
enum class Gate { kNone, kGeluTanh, kSilu };
// x = act(x) * up.
int ApplyGate(Stream stream, Gate gate, const float* up, int64_t size, float* x);

// --- product_kernels.cu, float_product_kernels.cu

// Activations, quantised in blocks of 32 columns.
struct QuantizedActivations {
  int8_t* q = nullptr;           // [rows, columns]
  float* scales = nullptr;       // [rows, columns / 32]
  float* scaled_sums = nullptr;  // [rows, columns / 32]: scale x float(sum of q)
  bool operator==(const QuantizedActivations&) const = default;
};
int QuantizeRows(Stream stream, const float* x, int rows, int64_t columns,
                 const QuantizedActivations& out);

// Products of `x_rows` rows of activations with a matrix, one sum per leaf:
// out[leaf * leaf_stride + r * out_stride + row].
struct LeafProducts {
  TensorType type = TensorType::kF32;
  const uint8_t* weights = nullptr;
  const uint8_t* up = nullptr;  // with a gate: a second matrix of the same shape
  Gate gate = Gate::kNone;
  int rows = 0;  // of the matrix
  int64_t columns = 0;
  int64_t row_bytes = 0;
  const int32_t* leaf_starts = nullptr;  // [leaves + 1] columns
  int leaves = 1;
  int x_rows = 0;
  const float* x = nullptr;        // float products
  QuantizedActivations quantized;  // integer products
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t leaf_stride = 0;
  bool operator==(const LeafProducts&) const = default;
};
// REQUIRES: HasIntegerProduct(type).
int IntegerProducts(Stream stream, const LeafProducts& args);
// REQUIRES: F32, F16 or BF16.
int FloatProducts(Stream stream, const LeafProducts& args);

// --- vector_product_kernels.cu

// The same products in another order of additions, for --arithmetic=fast and a few rows of
// activations: the lanes of a warp, or of four, have shares of the columns. Which share a column is
// in, and the order in which shares are added, follow from the matrix's shape alone.
// REQUIRES: args.x_rows <= kVectorRowsMax.
inline constexpr int kVectorRowsMax = 8;
int VectorProducts(Stream stream, const LeafProducts& args);

// --- bf16_kernels.cu, for --arithmetic=fast

// out[i * stride + k] = column begin + k of row i, rounded to bf16; zero from `columns` to `stride`
// and from `rows` to `out_rows`. REQUIRES: stride is a multiple of 8, out aligned to 16 bytes; of
// quantised rows stride == columns, out_rows == rows, and begin a multiple of 32.
struct Bf16Rows {
  TensorType type = TensorType::kF32;
  const uint8_t* from = nullptr;  // row 0
  int64_t row_bytes = 0;
  int rows = 0;
  int64_t begin = 0;
  int64_t columns = 0;
  int out_rows = 0;
  int64_t stride = 0;
  uint16_t* out = nullptr;
  bool operator==(const Bf16Rows&) const = default;
};
int RoundToBf16(Stream stream, const Bf16Rows& args);
// out[r * out_stride + i] = values[r * stride + i]; with a gate act(values) * up.
struct StoredProducts {
  const float* values = nullptr;
  const float* up = nullptr;
  Gate gate = Gate::kNone;
  int rows = 0;
  int width = 0;
  int64_t stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  bool operator==(const StoredProducts&) const = default;
};
int StoreProducts(Stream stream, const StoredProducts& args);

// --- product_kernels.cu

// roots[k * elements + i] = the sum tree over element i of leaves [root_begin[k],
// root_begin[k + 1]), which lie `leaf_stride` floats apart.
inline constexpr int kRootLeavesMax = 255;
int SumLeaves(Stream stream, const float* leaves, int64_t leaf_stride, const int32_t* root_begin,
              int roots, int64_t elements, int64_t root_stride, float* out);

// --- attention_kernels.cu, tensor_attention_kernels.cu

// Where the step's rows stand. All arrays are by row.
struct RowPlaces {
  const int32_t* positions = nullptr;
  const int32_t* table_begins = nullptr;  // where the run's block table begins in `blocks`
  const int32_t* blocks = nullptr;
  bool operator==(const RowPlaces&) const = default;
};

// One pool of keys and values: [layer][block][key, value][kv_head][token][head_dim].
struct PoolMemory {
  uint8_t* data = nullptr;
  int blocks = 0;
  int block_tokens = 0;
  bool half = true;  // f16, else f32
  bool operator==(const PoolMemory&) const = default;
};

// Query heads of a rank, at most; the map to KV heads travels with the launch.
inline constexpr int kHeadsMax = 256;

struct AttentionLayer {
  PoolMemory pool;
  int layer = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  uint8_t kv_of_head[kHeadsMax] = {};
  // The heads that read KV head k: head_order[first_head[k]] up to head_order[first_head[k + 1]].
  uint8_t head_order[kHeadsMax] = {};
  int16_t first_head[kHeadsMax + 1] = {};
  int64_t window = 0;
  float scale = 1;
  float soft_cap = 0;
  int pairs = 0;                   // of the rotation; 0: none
  const float* cosines = nullptr;  // [rows, pairs]
  const float* sines = nullptr;
  const float* q_norm = nullptr;  // [head_dim], or null
  const float* k_norm = nullptr;
  float norm_epsilon = 0;
  bool operator==(const AttentionLayer&) const = default;
};

int RopeAndStore(Stream stream, const AttentionLayer& layer, const RowPlaces& places, int rows,
                 float* qkv);

// Attends some rows to some of their splits of kSplitTokens keys: the splits numbered
// [first_split, first_split + splits) from the row's first visible one. Runs of calls with
// ascending first_split from 0 cover a row; the last one (`last`) writes `out`.
struct AttentionPass {
  int first_row = 0;
  int rows = 0;
  int first_split = 0;
  int splits = 0;
  bool last = false;
  bool direct = false;         // AttendTiles() alone: all splits at once, straight to `out`
  const float* qkv = nullptr;  // of row 0
  float* out = nullptr;        // of row 0
  float* partials = nullptr;   // [rows, heads, splits, head_dim + 2]
  float* totals = nullptr;     // [rows, heads, head_dim + 2], kept from pass to pass
  bool operator==(const AttentionPass&) const = default;
};
// In the reference's order and float32, over keys of any type.
int Attend(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
           const AttentionPass& pass);
// The second half of a pass, which the two others launch: the totals of its partial results.
int MergeSplits(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
                const AttentionPass& pass);

// A step's rows, at most kTileTokens neighbours of one run per tile.
inline constexpr int kTileTokens = 64;
struct RowTiles {
  const int32_t* first_rows = nullptr;  // [count]
  const int32_t* rows = nullptr;        // [count]; 0: nothing
  int count = 0;
  int rows_max = 0;  // of one tile
  bool operator==(const RowTiles&) const = default;
};
// What AttendTiles() can take: it reads 16 bytes of a key at a time, and keeps a block's results of
// a head in registers.
inline constexpr int kTensorHeadUnit = 8;
inline constexpr int kTensorHeadMax = 256;
// On tensor cores, over half-precision keys and values. `pass` has all rows of the step.
// REQUIRES: layer.pool.half, head_dim a multiple of kTensorHeadUnit up to kTensorHeadMax.
int AttendTiles(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
                const RowTiles& tiles, const AttentionPass& pass);
// How much such a launch has to do for each split, in groups of four warps.
int TileBlocks(const AttentionLayer& layer, const RowTiles& tiles);

// --- vocabulary_kernels.cu

struct EditOnDevice {
  int32_t row;  // of the head
  float bias;
  float repetition;
  float subtract;
};
struct QueryOnDevice {
  uint64_t key;
  float inverse_temperature;
  int32_t gumbel;
  int32_t edits_begin;
  int32_t edits_end;
  int32_t sums;
  int32_t raw_sums;
};
struct SliceOnDevice {
  float max;
  float sum;
  float raw_max;
  float raw_sum;
  int32_t finite;
};
struct CandidateOnDevice {
  float order;
  float processed;
  float raw;
  int32_t id;
};

struct LogitRows {
  const float* logits = nullptr;  // [rows, size]
  float* processed = nullptr;     // [rows, size]
  int rows = 0;
  int64_t size = 0;
  int32_t first_id = 0;
  const QueryOnDevice* queries = nullptr;  // [rows]
  const EditOnDevice* edits = nullptr;
  int edits_max = 0;  // of one row
  bool operator==(const LogitRows&) const = default;
};
// Fills `processed`: edits, then temperature.
int ProcessLogits(Stream stream, const LogitRows& rows);
// out: [rows, slices]. Sums only where the query asks for them.
int SumSlices(Stream stream, const LogitRows& rows, const int32_t* starts, int slices,
              SliceOnDevice* out);

// At most so many of a row are selected.
inline constexpr int kTopMax = 512;
// Keys that one list of a row needs while `count` are selected.
int64_t TopKeys(int64_t size, int count);
// The best `count` of every row, best first; [rows, count]. By raw logit if `raw`, else as the
// query orders. `lists`: two lists of TopKeys(size, count) keys per row.
// REQUIRES: 1 <= count <= min(kTopMax, size).
int SelectTop(Stream stream, const LogitRows& rows, bool raw, int count, uint64_t* lists,
              CandidateOnDevice* out);
// best[row] = the BestKey (kernels/best_key.h) of the row, whose slices are what SumSlices() has
// given. `lists`: as SelectTop()'s for one candidate. REQUIRES: size > 0.
int SelectBest(Stream stream, const LogitRows& rows, const SliceOnDevice* sums, int slices,
               uint64_t* lists, uint64_t* best);

// winners[row] = the largest of `ranks` keys of a row, all[rank * rows + row]; its token goes to
// kept[places[row]], unless that place is -1.
struct KeysOfRanks {
  const uint64_t* all = nullptr;
  int ranks = 0;
  int rows = 0;
  const int32_t* places = nullptr;  // [rows]
  int32_t* kept = nullptr;
  uint64_t* winners = nullptr;  // [rows]
  bool operator==(const KeysOfRanks&) const = default;
};
int KeepBest(Stream stream, const KeysOfRanks& args);

// --- collective_kernels.cu

// The sum tree over the roots of all ranks, left to right: the i-th is added to the last merges[i]
// sums that wait, the latest of them first, and then waits itself.
inline constexpr int kTreeRootsMax = 512;
inline constexpr int kTreeLevelsMax = 16;  // sums that wait at once
struct TreeSum {
  int count = 0;  // of roots, at least one
  uint8_t merges[kTreeRootsMax] = {};
  const float* roots = nullptr;  // the i-th at roots + i * stride
  int64_t stride = 0;
  int64_t elements = 0;
  float* out = nullptr;
  bool operator==(const TreeSum&) const = default;
};
// Of one root: a copy.
int SumTreeRoots(Stream stream, const TreeSum& args);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_KERNELS_H_
