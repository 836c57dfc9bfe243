#include "kernels/host/kv_memory.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {

absl::Status KvMemory::Allocate(const KvPoolSpec& spec) {
  spec_ = spec;
  memory_ = AlignedBuffer();
  if (spec.layers == 0 || spec.blocks == 0) return absl::OkStatus();
  if (spec.layers < 0 || spec.blocks < 0 || spec.block_tokens < 1 || spec.kv_heads < 1 ||
      spec.head_dim < 1) {
    return InvalidArgument("a KV pool of {} layers, {} blocks of {} tokens, {} heads of {}",
                           spec.layers, spec.blocks, spec.block_tokens, spec.kv_heads,
                           spec.head_dim);
  }
  const size_t vectors = size_t{2} * static_cast<size_t>(spec.layers) *
                         static_cast<size_t>(spec.blocks) * static_cast<size_t>(spec.block_tokens) *
                         static_cast<size_t>(spec.kv_heads);
  FACET_ASSIGN_OR_RETURN(memory_, AlignedBuffer::Make(vectors * static_cast<size_t>(spec.head_dim) *
                                                      static_cast<size_t>(element_bytes())));
  return absl::OkStatus();
}

std::byte* KvMemory::Vector(int layer, int which, int kv_head, std::span<const int32_t> blocks,
                            int64_t position) {
  const int64_t index = position / spec_.block_tokens;
  FACET_CHECK(layer >= 0 && layer < spec_.layers, "layer {} of {}", layer, spec_.layers);
  FACET_CHECK(index >= 0 && index < static_cast<int64_t>(blocks.size()),
              "position {} lies beyond the block table's {} blocks", position, blocks.size());
  const int32_t block = blocks[static_cast<size_t>(index)];
  FACET_CHECK(block >= 0 && block < spec_.blocks, "position {} is in block {} of {}", position,
              block, spec_.blocks);
  const int64_t head = (int64_t{layer} * spec_.blocks + block) * 2 + which;
  const int64_t token =
      (head * spec_.kv_heads + kv_head) * spec_.block_tokens + position % spec_.block_tokens;
  return memory_.data() + token * spec_.head_dim * element_bytes();
}

}  // namespace facet
