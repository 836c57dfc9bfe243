#ifndef FACET_KERNELS_CUDA_CUDA_ATTENTION_H_
#define FACET_KERNELS_CUDA_CUDA_ATTENTION_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/kernels.h"
#include "kernels/device.h"

namespace facet::cuda {

// How large a step can be.
struct StepBounds {
  int rows = 512;
  int sequences = 64;
  int64_t context = 16384;  // tokens of one sequence
  // So many blocks fill the device: from then on one block attends all splits of its rows. Never
  // shows in a result.
  int full_blocks = 256;
  int splits_per_pass = 256;  // that are computed before they are merged
};

// Keys and values in device memory, the rows of the current step, and attention between them: on
// tensor cores over half-precision keys, in the reference's order over others (kernels/README.md).
class CudaAttention {
 public:
  CudaAttention(const CudaContext& context, const StepBounds& bounds)
      : context_(context), bounds_(bounds) {}

  absl::Status AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools);
  // Before the first step.
  int AddRope(RopeSpec spec);

  // Puts the step's positions, block tables and rotations on the device, at addresses that follow
  // from the number of rows alone. If launches are being deferred, rows are added that make the
  // step up to its bucket (BucketOf): sequences of one token, at position 0 of a block of their own
  // that no other sequence has.
  void BeginStep(const StepLayout& layout);
  // `qkv` and `out` are on the device and hold the step's rows.
  void RopeAndStore(const AttentionSpec& spec, Floats qkv);
  void Attend(const AttentionSpec& spec, Floats qkv, Floats out);

 private:
  struct Rotations {
    const float* cosines = nullptr;  // [rows, pairs]
    const float* sines = nullptr;
  };

  int64_t PairsOf(int rope) const {
    return static_cast<int64_t>(ropes_[static_cast<size_t>(rope)].inverse_frequency.size());
  }
  // Bytes that the tables of a step take on the device.
  int64_t TableBytes(int64_t rows, int64_t table_entries) const;
  absl::Status AllocateTables();
  void CheckLayout(const StepLayout& layout) const;
  // Sets layout_: the step, and the rows that are added.
  void PadLayout(const StepLayout& layout);
  void PutPositions(const StepLayout& layout);
  void PutTiles(const StepLayout& layout);
  void PutBegins(const StepLayout& layout);
  void PutBlocks(const StepLayout& layout);
  void PutRotations(const StepLayout& layout, int rope);
  void CheckSpec(const AttentionSpec& spec, Floats qkv) const;
  AttentionLayer LayerOf(const AttentionSpec& spec) const;
  // Totals and results of splits that the work space holds, of one row each; 2 at least.
  int64_t RoomFor(const AttentionSpec& spec) const;
  bool OnTensorCores(const AttentionSpec& spec) const;
  // `rows` of layout_ are launched for.
  void AttendInReferenceOrder(const AttentionSpec& spec, int rows, AttentionPass pass);
  void AttendOnTensorCores(const AttentionSpec& spec, int rows, AttentionPass pass);
  // The most splits that a row of the step sees; rounded up if launches are being deferred, because
  // splits beyond a row's last cost next to nothing and another number is another launch.
  int SplitsOf(const AttentionSpec& spec) const;

  const CudaContext& context_;
  const StepBounds bounds_;
  std::array<KvPoolSpec, kKvPools> specs_;
  std::array<uint8_t*, kKvPools> pools_ = {};
  std::vector<RopeSpec> ropes_;
  UploadArea tables_;
  // The current step.
  int rows_ = 0;  // without those that were added
  std::vector<SequenceRun> runs_;
  StepLayout layout_;  // with them; its runs are runs_
  // Tables of the blocks that stand for nobody's keys: each pool's last, which no caller knows of.
  std::array<std::array<int32_t, 1>, kKvPools> spare_blocks_ = {};
  std::array<RowPlaces, kKvPools> places_;
  RowTiles tiles_;     // of layout_; if launches are being deferred, one per row, some of no rows
  int own_tiles_ = 0;  // the first ones, without those of rows that were added
  std::vector<Rotations> rotations_;  // by rope
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_ATTENTION_H_
