#ifndef FACET_KERNELS_COLLECTIVES_ARENA_COMMUNICATOR_H_
#define FACET_KERNELS_COLLECTIVES_ARENA_COMMUNICATOR_H_

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/arena.h"
#include "kernels/collectives/communicator.h"

namespace facet {

// The collectives over an arena: all that the `local` and the `shm` backend do.
// Every call is a sequence of rounds; in a round each rank fills its buffer, enters, and reads
// the buffers of those it has seen entering (README).
class ArenaCommunicator final : public Communicator {
 public:
  // REQUIRES: every rank of the arena has exactly one communicator.
  ArenaCommunicator(Arena arena, int rank, const ArenaOptions& options);

  int rank() const override { return rank_; }
  int world() const override { return arena_.world(); }
  void SetStep(uint64_t step) override { step_ = step; }
  void SetTimeout(std::chrono::milliseconds timeout) override;
  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override;
  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override;
  absl::Status AllGatherBytes(std::span<const std::byte> mine,
                              std::vector<std::vector<std::byte>>* out) override;
  absl::Status Broadcast(std::vector<std::byte>* message) override;
  absl::Status Barrier() override;
  void Abort() override;
  Times TakeTimes() override;

 private:
  using Clock = std::chrono::steady_clock;
  enum class Operation : uint32_t { kAllReduce = 1, kAllGather, kAllGatherBytes, kBroadcast,
                                    kBarrier };

  static const char* NameOf(uint32_t operation);
  static bool SizesMustAgree(uint32_t operation);
  static std::string Describe(const RoundHeader& header);

  // Runs `body`, a call's rounds, under its header, deadline and clock.
  template <typename Body>
  absl::Status Call(Operation operation, uint64_t size, uint32_t layout, const Body& body);

  // One round: waits until nobody reads this rank's buffer any more and returns it ...
  absl::Status NextBuffer(std::byte** buffer);
  // ... enters the round ...
  void Enter();
  // ... and waits for peers, whose buffers may be read until the next Enter().
  absl::Status Await(int peer) { return AwaitRound(peer, round_); }
  absl::Status AwaitAll();

  absl::Status AwaitRound(int peer, uint32_t round);
  absl::Status WaitFor(int peer, uint32_t round);
  uint32_t Spin(const RankState& state, uint32_t round, Clock::time_point begin) const;
  uint32_t Sleep(RankState& state, uint32_t round) const;
  absl::Status CheckHeader(int peer, uint32_t round) const;
  absl::Status FailLate(uint32_t round) const;

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

  Arena arena_;
  const int rank_;
  const std::chrono::nanoseconds spin_;
  const size_t message_bytes_max_;

  uint64_t step_ = 0;
  std::chrono::milliseconds timeout_{10'000};
  Clock::time_point deadline_;
  RoundHeader header_;  // of the current call

  uint32_t round_ = kBeforeFirstRound;  // the last one entered
  std::vector<uint32_t> agreed_;        // by peer: the last round it was seen in, its header checked
  std::vector<const float*> root_addresses_;
  Times times_;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_ARENA_COMMUNICATOR_H_
