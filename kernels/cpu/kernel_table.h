#ifndef FACET_KERNELS_CPU_KERNEL_TABLE_H_
#define FACET_KERNELS_CPU_KERNEL_TABLE_H_

// What is compiled once per instruction set: inner loops over plain memory. The device decides
// who computes what and calls them through a table chosen at start-up. Plain data only: this
// header is also compiled into the files that are built for AVX-512. All functions are
// thread-safe and equal the reference device bit for bit.

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/packed_format.h"

namespace facet {

// A product works on tiles of up to this many rows of activations.
inline constexpr int kTileRows = 6;

// The activations of one tile of `rows` rows. Integer products read the quantised form, products of
// bfloat16 the pairs, other float products `x`.
struct ActivationTile {
  int rows = 0;
  const float* x = nullptr;  // [rows][columns]
  int64_t columns = 0;
  int8_t* q = nullptr;          // [columns / 4][rows][4]
  float* scale = nullptr;       // [columns / 32][rows]
  float* scaled_sum = nullptr;  // [columns / 32][rows]: scale x float(sum of q)
  // [columns / 32][rows], -128 x the sum of q: over the block, its first and its second half.
  int32_t* offset_sum[3] = {};
  // [rows][pair_stride]: columns 2i and 2i + 1 rounded to bfloat16, the first in the low half,
  // subnormal ones as zeros, zeros behind the last.
  int32_t* pairs = nullptr;
  int64_t pair_stride = 0;  // a multiple of 16
};

// Products of one panel with tiles of activations.
struct PanelArgs {
  const std::byte* panel = nullptr;
  const std::byte* low = nullptr;  // of split formats
  std::byte* unpacked = nullptr;   // for keeping_product: room for the panel in UnpackedFormat()
  const ActivationTile* tiles = nullptr;
  int tile_count = 0;
  // Sums the columns [leaf_starts[i], leaf_starts[i + 1]) of each leaf by itself, and the leaves
  // [root_begin[k], root_begin[k + 1]) of each root by the tree of kernels/sum_tree.h. Leaves begin
  // at multiples of LeafUnit().
  const int64_t* leaf_starts = nullptr;
  const int* root_begin = nullptr;
  int roots = 0;
  // Row r of root k to out + k root_stride + r row_stride, rows counted from the first tile's.
  float* out = nullptr;
  int64_t row_stride = 0;
  int64_t root_stride = 0;
  int columns = 0;  // of the panel, that are written
  // What is read next, to be prefetched meanwhile, and of split formats its low bits.
  const std::byte* next = nullptr;
  int64_t next_lines = 0;  // of 64 bytes
  const std::byte* next_low = nullptr;
  int64_t next_low_lines = 0;
};

// One split of attention for a tile of queries that share a KV head.
struct SplitArgs {
  int queries = 0;
  int dim = 0;                  // head_dim rounded up to 16, the rest zeros
  const float* q = nullptr;     // [queries][dim]
  const float* keys = nullptr;  // [64][stride] by position in the split
  const float* values = nullptr;
  int stride = 0;
  // In the place of both where few queries would not repay their conversion: where each key and
  // value lies as it is stored, [64], halves or floats. Keys that no query sees lie at any other's.
  const std::byte* const* key_rows = nullptr;
  const std::byte* const* value_rows = nullptr;
  const std::byte* const* next_key_rows = nullptr;  // [64]: what to prefetch meanwhile
  bool half = false;
  const int* begin = nullptr;  // [queries]: the keys [begin, end) of the split are seen
  const int* end = nullptr;    // none if begin >= end
  float scale = 1;
  float soft_cap = 0;        // 0: none
  float* weights = nullptr;  // [queries][64] scratch
  float* max = nullptr;      // [queries]
  float* sum = nullptr;      // [queries]
  float* out = nullptr;      // [queries][dim]
};

// Partial results of attention: a sum of 0 says that nothing has been seen yet.
struct Partials {
  float* max = nullptr;
  float* sum = nullptr;
  float* out = nullptr;
};

// The narrow pass works on tiles of up to this many rows of activations.
inline constexpr int kNarrowRows = 4;
// Added to every upper bound: more than all underflow in a product can amount to.
inline constexpr float kNarrowFloor = 0x1p-100f;

// The narrow pass over one panel of a split format.
struct NarrowArgs {
  const std::byte* panel = nullptr;
  const std::byte* low = nullptr;
  int64_t ahead = 0;  // how many panels further on to prefetch; 0: nothing
  int64_t blocks = 0;
  int columns = 0;                  // of the panel that are the matrix's
  const int8_t* q = nullptr;        // [columns / 4][rows][4]
  const float* scale = nullptr;     // [blocks][rows]
  const int32_t* start = nullptr;   // [blocks][parts][rows]: where the dot product begins
  const float* spread = nullptr;    // [blocks][parts][rows]: bound per weight scale and residual
  const uint8_t* chosen = nullptr;  // [blocks]: bit g: the low bits of granule g are read too
  float* out = nullptr;             // upper bounds of row r from out + r out_stride
  int64_t out_stride = 0;
};

// The exact products of half of a panel of a split format with one row of activations.
struct CompleteArgs {
  const std::byte* panel = nullptr;
  const std::byte* low = nullptr;
  int half = 0;
  const std::byte* next = nullptr;  // the panel whose half to prefetch, or null
  const std::byte* next_low = nullptr;
  int next_half = 0;
  int64_t blocks = 0;
  const ActivationTile* tile = nullptr;  // of one row
  float* out = nullptr;                  // [16]
};

// What reading low bits of one part of a block changes in a bound.
struct RefinedPart {
  int32_t block = 0;
  int32_t part = 0;
  uint32_t chosen = 0;  // as in NarrowArgs, of this part
  int32_t start = 0;    // where the dot product begins
  float scale = 0;
  float less = 0;  // of the spread
};

// Lower bounds, by more low bits, for half of a panel and one row of activations.
struct RefineArgs {
  const std::byte* panel = nullptr;
  const std::byte* low = nullptr;
  int half = 0;
  const std::byte* next = nullptr;  // the panel whose half to prefetch, or null
  const std::byte* next_low = nullptr;
  int next_half = 0;
  const RefinedPart* parts = nullptr;
  int part_count = 0;
  const int8_t* q = nullptr;  // [columns]
  float* upper = nullptr;     // [16], of the first pass; lowered
};

struct SplitKernels {
  void (*narrow[kNarrowRows])(const NarrowArgs&) = {};  // by rows - 1
  void (*refine)(const RefineArgs&) = nullptr;
  void (*complete)(const CompleteArgs&) = nullptr;
};

// Of each of `rows` rows, which follow on each other everywhere: residual +=
// RMS(update; post_weight), or += update without one; out = RMS(residual; weight).
struct ResidualRows {
  int rows = 0;
  int width = 0;
  float epsilon = 0;
  float* residual = nullptr;
  const float* update = nullptr;
  const float* post_weight = nullptr;  // or null
  const float* weight = nullptr;
  float* out = nullptr;
};

// One head of a query or key: x = RMS(x; weight) if there is one; then (x[i], x[i + pairs]) rotated
// by the angle with cosine cosines[i] and sine sines[i].
struct HeadVector {
  float* x = nullptr;
  int size = 0;
  const float* weight = nullptr;  // or null
  float epsilon = 0;
  const float* cosines = nullptr;
  const float* sines = nullptr;
  int pairs = 0;  // at most size / 2
};

struct KernelTable {
  // By PackedFormat.
  void (*product[kPackedFormats])(const PanelArgs&) = {};
  // To UnpackedFormat(); null where this instruction set does not gain by it.
  void (*unpack[kPackedFormats])(const std::byte* panel, int64_t blocks, std::byte* to) = {};
  // As `product`, of split formats: unpacks while it works on its first tile. Null as above.
  void (*keeping_product[kPackedFormats])(const PanelArgs&) = {};
  SplitKernels split[2];  // of kQ8Split and kQ6KSplit

  // The quantised form of a tile from its `x`.
  void (*quantize_tile)(const ActivationTile& tile) = nullptr;
  // The pairs of a tile from its `x`.
  void (*round_tile)(const ActivationTile& tile) = nullptr;
  // Block `block` of the quantised form of some tiles from `x`, [rows of all tiles][32].
  void (*quantize_block)(const ActivationTile* tiles, int tile_count, int64_t block,
                         const float* x) = nullptr;
  // out = RMS(x; weight); out may be x.
  void (*norm)(const float* x, int width, const float* weight, float epsilon, float* out) = nullptr;
  // out = act(gate) x up.
  void (*gelu_gate)(const float* gate, const float* up, int64_t width, float* out) = nullptr;
  void (*silu_gate)(const float* gate, const float* up, int64_t width, float* out) = nullptr;
  void (*soft_cap)(float* x, int64_t size, float cap) = nullptr;
  void (*residual_norm)(const ResidualRows& rows) = nullptr;
  void (*norm_rotate)(const HeadVector& head) = nullptr;

  void (*to_half)(const float* x, int64_t size, uint16_t* out) = nullptr;
  // `count` vectors of `size` elements, each filled up with zeros to a multiple of 16, to vectors
  // that begin `stride` floats apart.
  void (*widen_half)(const uint16_t* x, int count, int size, int stride, float* out) = nullptr;
  void (*widen_float)(const float* x, int count, int size, int stride, float* out) = nullptr;
  void (*attend_split)(const SplitArgs&) = nullptr;
  // Adds a later split's results; `begin` and `end` as in SplitArgs.
  void (*merge_split)(const SplitArgs& split, const Partials& total) = nullptr;
  // out[size] = total x (1 / sum).
  void (*finish_query)(const float* total, float sum, int size, float* out) = nullptr;

  // out[i] = x[i] x factor. False if an x or a result is NaN or +infinity.
  bool (*scale_logits)(const float* x, int64_t size, float factor, float* out) = nullptr;
  float (*max)(const float* x, int64_t size) = nullptr;  // -infinity if size is 0
  // a[i mod 16] += exp(x[i] - max).
  void (*sum_exp)(const float* x, int64_t size, float max, float* a) = nullptr;
  // Writes the indices i with x[i] >= threshold, ascending, and returns how many.
  int (*select)(const float* x, int size, float threshold, int32_t* indices) = nullptr;
  // order[i] = x[i] + Gumbel noise of (key, first_id + i), or, some of those that are below the
  // threshold, -infinity.
  void (*gumbel)(const float* x, int size, uint64_t key, uint32_t first_id, float threshold,
                 float* order) = nullptr;
};

namespace avx2 {
const KernelTable& Kernels();
}
namespace avx512 {
const KernelTable& Kernels();
}
namespace avx512bf16 {
// Replaces those of avx512.
void AddBfloatKernels(KernelTable* table);
}  // namespace avx512bf16

}  // namespace facet

#endif  // FACET_KERNELS_CPU_KERNEL_TABLE_H_
