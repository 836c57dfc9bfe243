#ifndef FACET_KERNELS_CUDA_NCCL_COMMUNICATOR_H_
#define FACET_KERNELS_CUDA_NCCL_COMMUNICATOR_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/communicator.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/launch_queue.h"
#include "kernels/cuda/nccl_link.h"
#include "kernels/cuda/stream_wait.h"

namespace facet::cuda {

// Where a communicator works: a device's stream, behind whose work it puts its own, and a buffer in
// its memory.
struct NcclPlace {
  int device = 0;
  StreamWait* wait = nullptr;  // for the stream
  LaunchQueue* launches = nullptr;
  float* buffer = nullptr;  // none is needed by a group of one
  int64_t buffer_floats = 0;
};

// The collectives between the memories of CUDA devices: what the `nccl` backend does. Calls on the
// device put kernels and transfers into its LaunchQueue and return. NCCL knows nothing of steps, so
// before a sequence of launches goes to the stream there is one Meet() of the host's communicator
// about all calls in it, which fails on all ranks unless all are about to put the same operations,
// sizes and layouts there, in the same step: then nothing of it goes to NCCL. Ranks must therefore
// cut their calls into sequences alike: each waits for the device, and begins a step, between the
// same calls. A call of what is in host memory goes over that communicator alone, after everything
// that was put before it.
//
// Who waits for the stream (StreamWait) does so with this guard: until the deadline, an error that
// NCCL reports, or what the host's communicator says of the group. Then this rank's NCCL
// communicator is aborted, so that the stream runs out, and its peers learn from the host's why:
// what failed and the oldest step that was under way. A group of one copies on the device.
class NcclCommunicator final : public Communicator, private StreamGuard {
 public:
  // Borrows what is at `place`.
  NcclCommunicator(std::unique_ptr<Communicator> host, const NcclPlace& place,
                   const NcclOptions& options);
  ~NcclCommunicator() override;

  // Finds the other ranks and connects to them, once, before any call; all or none succeed. Takes
  // the reason why this rank cannot as well, so that peers need not wait to learn it.
  // REQUIRES: world() > 1, with NCCL room for 2 world() floats in the buffer, and no other
  // communicator of several ranks on the stream.
  absl::Status Form(const absl::StatusOr<Nccl*>& nccl);

  int rank() const override { return host_->rank(); }
  int world() const override { return host_->world(); }
  bool on_device() const override { return true; }
  void SetStep(uint64_t step) override;
  void SetTimeout(std::chrono::milliseconds timeout) override;
  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override;
  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override;
  absl::Status AllGatherBytes(std::span<const std::byte> mine,
                              std::vector<std::vector<std::byte>>* out) override;
  absl::Status Broadcast(std::vector<std::byte>* message) override;
  absl::Status Finish() override;
  absl::Status Meet(const CallSubject& subject) override;
  void Abort() override { host_->Abort(); }
  absl::Status Look() override;
  absl::Status Fail(const absl::Status& reason) override { return host_->Fail(reason); }
  // The device works apart from the host, so what it moves and adds is not among them.
  Times TakeTimes() override;

 private:
  using Clock = NcclLink::Clock;

  // One all-reduce.
  struct Reduction {
    const SumTree& tree;
    const float* roots;
    int64_t elements;
    int64_t piece;  // how many elements go at a time
    float* out;
  };
  // A step whose exchanges are on the stream, and the place behind the last of them.
  struct StepOnStream {
    CallHeader header;  // of the last of them
    Event end = nullptr;
  };
  // So many steps are told apart; who puts another waits for the oldest.
  static constexpr int kStepsOnStream = 8;

  absl::Status Enter() override;
  void Entered(bool whole) override;
  absl::Status Await(const std::function<bool()>& done) override;
  absl::Status failure() const override { return failure_; }

  // Counts a call whose work `body` puts into the queue.
  template <typename Body>
  absl::Status Call(const CallSubject& subject, const Body& body);
  // Brings the calls that wait in the queue to the stream.
  absl::Status Launch();
  absl::Status Connect();
  absl::Status AwaitEvent(Event event);
  // Takes steps that the stream has passed off the list.
  void DropPassed();
  // Ends all exchanges for a reason of this rank's own.
  absl::Status GiveUp(const absl::Status& status, const std::string& where);
  void End();

  void ReduceEverywhere(const Reduction& r);
  void ReduceInSlices(const Reduction& r);
  void ExchangeSlices(const Reduction& r, int64_t begin, int64_t length);
  // out = the tree over the roots of all ranks, which lie side by side in the buffer.
  void AddRoots(const SumTree& tree, int64_t elements, float* out);
  // Brings counts[r] floats of every rank r side by side to `out`; `mine` may be there already.
  void Gather(const float* mine, std::span<const int64_t> counts, float* out);
  // `count` floats, unless they are there already.
  void Copy(const float* from, int64_t count, float* to);
  void Exchange(std::vector<Transfer> transfers);

  const std::unique_ptr<Communicator> host_;
  const NcclPlace place_;
  const NcclOptions options_;
  std::optional<NcclLink> link_;  // of more than one rank

  uint64_t step_ = 0;
  std::chrono::milliseconds timeout_{10'000};
  CallSequence calls_;    // in the queue, and not agreed in
  CallHeader agreed_;     // of what went to the stream last
  absl::Status failure_;  // why there are no more exchanges
  std::deque<StepOnStream> on_stream_;
  std::vector<Event> events_;  // that no step has
  double work_s_ = 0;
  double met_s_ = 0;             // of the call under way: waiting for the others
  std::vector<int64_t> counts_;  // kept for its capacity
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NCCL_COMMUNICATOR_H_
