#ifndef FACET_BASE_IDS_H_
#define FACET_BASE_IDS_H_

// Ids are types, not ints: a BlockId cannot be passed where a SequenceId is meant.

#include <compare>
#include <cstdint>
#include <functional>

namespace facet {

template <typename Tag, typename Int>
struct StrongId {
  Int value = 0;
  friend auto operator<=>(StrongId, StrongId) = default;
  template <typename H>
  friend H AbslHashValue(H h, StrongId id) {
    return H::combine(std::move(h), id.value);
  }
};

// A token of the model's vocabulary. Arithmetic on it is legitimate (offsets into a vocabulary
// slice), so it stays a plain integer.
using TokenId = int32_t;

// One sequence of one group: unique within a leader's life.
using SequenceId = StrongId<struct SequenceTag, uint64_t>;
// A KV block of one pool.
using BlockId = StrongId<struct BlockTag, int32_t>;
// A place for the per-sequence state that the runtime keeps on every rank.
using SlotId = StrongId<struct SlotTag, int32_t>;
// A group (tensor-parallel replica) as one router numbers it.
using GroupId = StrongId<struct GroupTag, uint32_t>;

}  // namespace facet

template <typename Tag, typename Int>
struct std::hash<facet::StrongId<Tag, Int>> {
  size_t operator()(facet::StrongId<Tag, Int> id) const { return std::hash<Int>()(id.value); }
};

#endif  // FACET_BASE_IDS_H_
