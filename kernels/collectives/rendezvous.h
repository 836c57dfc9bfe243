#ifndef FACET_KERNELS_COLLECTIVES_RENDEZVOUS_H_
#define FACET_KERNELS_COLLECTIVES_RENDEZVOUS_H_

// How the processes of a group find each other on a host and come to hold the same file.

#include <chrono>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

struct GroupName {
  std::string_view name;
  uint64_t nonce = 0;
  int world = 0;
};

using RendezvousClock = std::chrono::steady_clock;

// Waits until ranks 1 .. world - 1 are there and gives each `fd`. All or nobody gets it, unless one
// dies while it is handed out.
absl::Status HandOut(int fd, const GroupName& group, RendezvousClock::time_point deadline);

// Goes to rank 0 as `rank` and returns its file.
absl::StatusOr<UniqueFd> Fetch(const GroupName& group, int rank,
                               RendezvousClock::time_point deadline);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_RENDEZVOUS_H_
