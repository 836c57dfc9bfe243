#include "shard_worker/service/collective.h"

#include <unistd.h>

#include <chrono>
#include <random>
#include <string>
#include <string_view>

#include "base/status.h"
#include "kernels/collectives/local.h"
#include "kernels/collectives/shm.h"

namespace facet {
namespace {

constexpr std::string_view kShm = "shm:";
// All ranks are ready when they are told to attach: who is not here soon has died.
constexpr std::chrono::milliseconds kAttachTimeout{2000};

}  // namespace

v1::GroupMessage::Start NewCollective() {
  std::random_device random;
  const uint64_t nonce = (uint64_t{random()} << 32) | random();
  v1::GroupMessage::Start start;
  start.set_nonce(nonce);
  start.set_collective(fmt::format("{}facet-{}-{:016x}", kShm, getpid(), nonce));
  return start;
}

absl::StatusOr<std::unique_ptr<Communicator>> AttachCollective(const v1::GroupMessage::Start& start,
                                                               int rank, int world) {
  if (world == 1) return std::move(MakeLocalGroup(1).front());
  const std::string_view collective = start.collective();
  if (!collective.starts_with(kShm)) {
    return Unimplemented("collective: this worker does not know '{}'", collective);
  }
  const std::string_view name = collective.substr(kShm.size());
  ShmOptions options;
  options.nonce = start.nonce();
  options.attach_timeout = kAttachTimeout;
  return rank == 0 ? CreateShmGroup(name, world, options)
                   : AttachShmGroup(name, rank, world, options);
}

}  // namespace facet
