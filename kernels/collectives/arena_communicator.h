#ifndef FACET_KERNELS_COLLECTIVES_ARENA_COMMUNICATOR_H_
#define FACET_KERNELS_COLLECTIVES_ARENA_COMMUNICATOR_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/arena.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/rounds.h"

namespace facet {

// The collectives over an arena: all that the `local` and the `shm` backend do.
class ArenaCommunicator final : public Communicator {
 public:
  // REQUIRES: every rank of the arena has exactly one communicator.
  ArenaCommunicator(Arena arena, int rank, const ArenaOptions& options);

  int rank() const override { return rounds_.rank(); }
  int world() const override { return rounds_.world(); }
  void SetStep(uint64_t step) override { rounds_.SetStep(step); }
  void SetTimeout(std::chrono::milliseconds timeout) override { rounds_.SetTimeout(timeout); }
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
  Times TakeTimes() override { return rounds_.TakeTimes(); }

 private:
  // Runs `body`, a call's rounds.
  template <typename Body>
  absl::Status Call(const CallSubject& subject, const Body& body);

  absl::Status ReduceEverywhere(const SumTree& tree, const float* roots, int64_t elements,
                                float* out);
  absl::Status ReduceInSlices(const SumTree& tree, const float* roots, int64_t elements,
                              float* out);
  void FinishTree(const SumTree& tree, const float* roots, int64_t elements, int64_t begin,
                  int64_t stride, int64_t offset, int64_t length, float* out);
  // Sends `mine` to all. After the first round `places` says where each rank's bytes go.
  template <typename Places>
  absl::Status Gather(std::span<const std::byte> mine, const Places& places);
  absl::Status SendBroadcast(std::span<const std::byte> message);
  absl::Status ReceiveBroadcast(std::vector<std::byte>* message);
  absl::Status CheckMessageSize(int sender, uint64_t bytes) const;

  Rounds rounds_;
  const size_t message_bytes_max_;
  // Kept for their capacity.
  std::vector<const float*> root_addresses_;
  std::vector<std::span<std::byte>> places_;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_ARENA_COMMUNICATOR_H_
