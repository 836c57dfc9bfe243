#ifndef FACET_KERNELS_HOST_KV_MEMORY_H_
#define FACET_KERNELS_HOST_KV_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/host/aligned_buffer.h"

namespace facet {

// The keys and values of one pool in host memory:
// [layer][block][key, value][kv_head][token][head_dim], so that the keys of one head in one block
// are consecutive. Pages that were never written cost nothing.
class KvMemory {
 public:
  absl::Status Allocate(const KvPoolSpec& spec);

  const KvPoolSpec& spec() const { return spec_; }
  int element_bytes() const { return spec_.type == KvType::kF16 ? 2 : 4; }

  // head_dim elements. `blocks` is a run's block table for this pool. CHECKs that the position's
  // block is there.
  std::byte* Key(int layer, int kv_head, std::span<const int32_t> blocks, int64_t position) {
    return Vector(layer, 0, kv_head, blocks, position);
  }
  std::byte* Value(int layer, int kv_head, std::span<const int32_t> blocks, int64_t position) {
    return Vector(layer, 1, kv_head, blocks, position);
  }

 private:
  std::byte* Vector(int layer, int which, int kv_head, std::span<const int32_t> blocks,
                    int64_t position);

  KvPoolSpec spec_;
  AlignedBuffer memory_;
};

}  // namespace facet

#endif  // FACET_KERNELS_HOST_KV_MEMORY_H_
