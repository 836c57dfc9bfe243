#ifndef FACET_KERNELS_COLLECTIVES_FORWARDING_COMMUNICATOR_H_
#define FACET_KERNELS_COLLECTIVES_FORWARDING_COMMUNICATOR_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/communicator.h"

namespace facet {

// Another communicator, but for what its calls do with floats and where these are, which a derived
// class says.
class ForwardingCommunicator : public Communicator {
 public:
  explicit ForwardingCommunicator(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  int rank() const final { return inner_->rank(); }
  int world() const final { return inner_->world(); }
  void SetStep(uint64_t step) final { inner_->SetStep(step); }
  void SetTimeout(std::chrono::milliseconds timeout) final { inner_->SetTimeout(timeout); }
  absl::Status AllGatherBytes(std::span<const std::byte> mine,
                              std::vector<std::vector<std::byte>>* out) final {
    return inner_->AllGatherBytes(mine, out);
  }
  absl::Status Broadcast(std::vector<std::byte>* message) final {
    return inner_->Broadcast(message);
  }
  absl::Status Finish() final { return inner_->Finish(); }
  absl::Status Meet(const CallSubject& subject) final { return inner_->Meet(subject); }
  void Abort() final { inner_->Abort(); }
  absl::Status Look() final { return inner_->Look(); }
  absl::Status Fail(const absl::Status& reason) final { return inner_->Fail(reason); }
  Times TakeTimes() final { return inner_->TakeTimes(); }

 protected:
  Communicator& inner() { return *inner_; }

 private:
  const std::unique_ptr<Communicator> inner_;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_FORWARDING_COMMUNICATOR_H_
