#ifndef FACET_KERNELS_HOST_HOST_DEVICE_H_
#define FACET_KERNELS_HOST_HOST_DEVICE_H_

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "kernels/host/aligned_buffer.h"
#include "kernels/host/kv_memory.h"

namespace facet {

// What the devices that compute in host memory have in common: their memory is the host's, and
// every operation is done when its call returns.
class HostDevice : public Device {
 public:
  absl::StatusOr<Floats> AllocateFloats(int64_t size) override;
  absl::Status AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) override;
  absl::Status AllocateTokens(int places) override;
  int AddRope(RopeSpec spec) override;
  void CopyIn(std::span<const float> host, Floats device) override;
  void CopyOut(Floats device, std::span<float> host) override;
  void Synchronize() override {}
  void BeginStep(const StepLayout& layout) override;
  void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) override;
  void GatherBrought(const BroughtRows& brought, int width, Floats out) override;
  void AskHead(const HeadSearch& search, Floats best) override;
  void KeepBest(Floats all, int ranks, std::span<const int32_t> keep) override;
  absl::Status ReadBest(std::span<BestToken> tokens) override;
  void DropBest() override { unread_.clear(); }

 protected:
  const StepLayout& layout() const { return *layout_; }
  KvMemory& kv(int pool) { return kv_[static_cast<size_t>(pool)]; }
  const RopeSpec& rope(int index) const { return ropes_[static_cast<size_t>(index)]; }
  // The row of the table that EmbedRows() is asked for by `row`; nothing: it has none.
  std::optional<int32_t> TableRow(const Matrix& table, int32_t first_token, int32_t row) const;
  // CHECKs that a spec agrees with its pool and itself, and that `qkv` holds the step's rows.
  void CheckAttention(const AttentionSpec& spec, Floats qkv);

 private:
  const StepLayout* layout_ = nullptr;
  std::vector<AlignedBuffer> floats_;
  std::array<KvMemory, kKvPools> kv_;
  std::vector<RopeSpec> ropes_;
  std::vector<int32_t> tokens_;                // by place
  std::deque<std::vector<BestToken>> unread_;  // what was kept, and not read
  std::vector<int32_t> gathered_;              // kept for its memory
};

}  // namespace facet

#endif  // FACET_KERNELS_HOST_HOST_DEVICE_H_
