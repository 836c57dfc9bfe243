#include "kernels/collectives/shm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/status.h"
#include "kernels/collectives/arena_communicator.h"
#include "kernels/collectives/rendezvous.h"

namespace facet {
namespace {

absl::Status CheckArguments(std::string_view name, int world, const ArenaOptions& options) {
  if (name.empty() || name.size() > kShmNameBytesMax) {
    return InvalidArgument("a group's name has 1 to {} bytes, not {}", kShmNameBytesMax,
                           name.size());
  }
  if (world < 1 || world > kMaxRanks) {
    return InvalidArgument("a group has 1 to {} ranks, not {}", kMaxRanks, world);
  }
  if (options.slot_bytes < kMinSlotBytes || options.slot_bytes > kMaxSlotBytes ||
      options.slot_bytes % kSlotBytesUnit != 0) {
    return InvalidArgument("slot_bytes is a multiple of {} from {} to {}, not {}", kSlotBytesUnit,
                           kMinSlotBytes, kMaxSlotBytes, options.slot_bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> MakeMemoryFile(size_t bytes) {
  UniqueFd fd(memfd_create("facet-collectives", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Unavailable("memfd_create: {}", std::strerror(errno));
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return ResourceExhausted("{} bytes of shared memory: {}", bytes, std::strerror(errno));
  }
  // Nobody can shorten it under a peer, which would be killed by SIGBUS.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Unavailable("sealing shared memory: {}", std::strerror(errno));
  }
  return fd;
}

absl::StatusOr<std::shared_ptr<std::byte>> Map(int fd, size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    return ResourceExhausted("mapping {} bytes of shared memory: {}", bytes, std::strerror(errno));
  }
  return std::shared_ptr<std::byte>(static_cast<std::byte*>(memory),
                                    [bytes](std::byte* mapped) { munmap(mapped, bytes); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> CreateShmGroup(std::string_view name, int world,
                                                             const ShmOptions& options) {
  const auto deadline = RendezvousClock::now() + options.attach_timeout;
  FACET_RETURN_IF_ERROR(CheckArguments(name, world, options.arena));
  const size_t bytes = Arena::BytesFor(world, options.arena.slot_bytes);
  FACET_ASSIGN_OR_RETURN(const UniqueFd fd, MakeMemoryFile(bytes));
  FACET_ASSIGN_OR_RETURN(std::shared_ptr<std::byte> memory, Map(fd.get(), bytes));
  const Arena arena =
      Arena::Create(std::move(memory), world, options.arena.slot_bytes, options.nonce);
  const GroupName group = {name, options.nonce, world};
  if (absl::Status status = HandOut(fd.get(), group, deadline); !status.ok()) {
    // Ranks that have the arena already hear of it in their first call.
    return arena.Fail(status.code(), MessageOf(status));
  }
  return std::make_unique<ArenaCommunicator>(arena, 0, options.arena);
}

absl::StatusOr<std::unique_ptr<Communicator>> AttachShmGroup(std::string_view name, int rank,
                                                             int world, const ShmOptions& options) {
  const auto deadline = RendezvousClock::now() + options.attach_timeout;
  FACET_RETURN_IF_ERROR(CheckArguments(name, world, options.arena));
  if (rank < 1 || rank >= world) {
    return InvalidArgument("rank {} cannot attach to a group of {}", rank, world);
  }
  const GroupName group = {name, options.nonce, world};
  FACET_ASSIGN_OR_RETURN(const UniqueFd fd, Fetch(group, rank, deadline));
  struct stat file = {};
  if (fstat(fd.get(), &file) != 0) return Unavailable("fstat: {}", std::strerror(errno));
  const size_t bytes = static_cast<size_t>(file.st_size);
  FACET_ASSIGN_OR_RETURN(std::shared_ptr<std::byte> memory, Map(fd.get(), bytes));
  FACET_ASSIGN_OR_RETURN(Arena arena, Arena::Open(std::move(memory), bytes, world, options.nonce));
  return std::make_unique<ArenaCommunicator>(std::move(arena), rank, options.arena);
}

}  // namespace facet
