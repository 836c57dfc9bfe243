#include "kernels/collectives/local.h"

#include <cstddef>
#include <new>

#include "base/check.h"
#include "kernels/collectives/arena_communicator.h"

namespace facet {
namespace {

constexpr std::align_val_t kPage{4096};

std::shared_ptr<std::byte> AllocatePages(size_t bytes) {
  std::byte* memory = static_cast<std::byte*>(::operator new(bytes, kPage));
  return {memory, [](std::byte* pages) { ::operator delete(pages, kPage); }};
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalGroup(int world, const ArenaOptions& options) {
  FACET_CHECK(world >= 1 && world <= kMaxRanks, "world is {}", world);
  const Arena arena = Arena::Create(AllocatePages(Arena::BytesFor(world, options.slot_bytes)),
                                    world, options.slot_bytes, 0);
  std::vector<std::unique_ptr<Communicator>> group;
  for (int rank = 0; rank < world; ++rank) {
    group.push_back(std::make_unique<ArenaCommunicator>(arena, rank, options));
  }
  return group;
}

}  // namespace facet
