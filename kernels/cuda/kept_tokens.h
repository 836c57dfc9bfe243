#ifndef FACET_KERNELS_CUDA_KEPT_TOKENS_H_
#define FACET_KERNELS_CUDA_KEPT_TOKENS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/kernels.h"
#include "kernels/device.h"

namespace facet::cuda {

// Tokens that stay on the device, and their copies on the way to the host: Device::KeepBest(),
// ReadBest() and DropBest(). Copies arrive in one of a few places of pinned memory; who keeps more
// while all are taken waits for the oldest.
class KeptTokens {
 public:
  explicit KeptTokens(CudaContext& context) : context_(context) {}
  KeptTokens(const KeptTokens&) = delete;
  KeptTokens& operator=(const KeptTokens&) = delete;
  ~KeptTokens();

  absl::Status Init();
  // Makes the context's places. REQUIRES: there are none yet.
  absl::Status Allocate(int places);

  // What KeepBest() is asked for: `rows` rows, launched for as many as keys.rows; this fills in
  // where tokens go. What was put into the queue is on the stream then.
  void Keep(KeysOfRanks keys, int rows);
  absl::Status Read(std::span<BestToken> tokens);
  void Drop() { unread_.clear(); }

 private:
  struct Arrival {
    std::byte* host = nullptr;
    Event event = nullptr;  // the tokens are there
  };
  struct Unread {
    std::vector<BestToken> tokens;  // those that have been taken from the arrival
    Arrival* arrival = nullptr;     // null: all have
  };
  // Rows of a step that are searched a few at a time, and those of the step beside it.
  static constexpr size_t kArrivals = 16;
  static constexpr int64_t kArrivalBytes = int64_t{16} << 10;

  Arrival* TakeArrival();
  absl::Status Settle(Unread* unread) const;

  CudaContext& context_;
  std::byte* host_ = nullptr;  // pinned, the arrivals'
  std::array<Arrival, kArrivals> arrivals_;
  size_t next_arrival_ = 0;  // they are taken in turn
  std::deque<Unread> unread_;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_KEPT_TOKENS_H_
