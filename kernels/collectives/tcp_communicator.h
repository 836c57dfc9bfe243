#ifndef FACET_KERNELS_COLLECTIVES_TCP_COMMUNICATOR_H_
#define FACET_KERNELS_COLLECTIVES_TCP_COMMUNICATOR_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/exchange.h"

namespace facet {

// The collectives over connections between all pairs of ranks: what the `tcp` backend does.
class TcpCommunicator final : public Communicator {
 public:
  // `buffer_bytes`: for the roots of peers in an all-reduce, which goes in as many pieces as that
  // asks for. REQUIRES: the same on all ranks, at least kTcpBufferBytesMin.
  TcpCommunicator(int rank, std::vector<UniqueFd> sockets, size_t buffer_bytes,
                  const ExchangeOptions& options);

  int rank() const override { return exchange_.rank(); }
  int world() const override { return exchange_.world(); }
  void SetStep(uint64_t step) override { exchange_.SetStep(step); }
  void SetTimeout(std::chrono::milliseconds timeout) override { exchange_.SetTimeout(timeout); }
  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override;
  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override;
  absl::Status AllGatherBytes(std::span<const std::byte> mine,
                              std::vector<std::vector<std::byte>>* out) override;
  absl::Status Broadcast(std::vector<std::byte>* message) override;
  absl::Status Meet(const CallSubject& subject) override;
  void Abort() override;
  absl::Status Look() override;
  absl::Status Fail(const absl::Status& reason) override;
  Times TakeTimes() override { return exchange_.TakeTimes(); }

 private:
  // Runs `body`, a call's exchanges.
  template <typename Body>
  absl::Status Call(const CallSubject& subject, const Body& body);
  // fn(peer) for every other rank.
  template <typename Fn>
  void ForPeers(const Fn& fn);

  absl::Status ReduceEverywhere(const SumTree& tree, const float* roots, int64_t elements,
                                int64_t piece, float* out);
  absl::Status ReduceInSlices(const SumTree& tree, const float* roots, int64_t elements,
                              int64_t piece, float* out);
  // Elements [begin, begin + length) of each root of this rank.
  std::span<const iovec> RootParts(const SumTree& tree, const float* roots, int64_t elements,
                                   int64_t begin, int64_t length);
  // Wants `length` elements of every root of the peers, side by side in buffer_.
  void WantRoots(const SumTree& tree, int64_t length);
  // Finishes the tree for elements [begin, begin + length), the peers' roots being in buffer_.
  void FinishTree(const SumTree& tree, const float* roots, int64_t elements, int64_t begin,
                  int64_t length, float* out);

  // Held during a call. Abort() takes it to tell the peers when no call is under way.
  std::mutex mutex_;
  Exchange exchange_;
  std::vector<float> buffer_;
  std::vector<iovec> parts_;  // kept for their capacity
  std::vector<const float*> root_addresses_;
};

inline constexpr size_t kTcpBufferBytesMin = 64 << 10;

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_TCP_COMMUNICATOR_H_
