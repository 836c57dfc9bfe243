#include "kernels/collectives/staged.h"

#include <numeric>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(Device* device, std::unique_ptr<Communicator> inner)
      : device_(device), inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int world() const override { return inner_->world(); }
  bool on_device() const override { return true; }
  void SetStep(uint64_t step) override { inner_->SetStep(step); }
  void SetTimeout(std::chrono::milliseconds timeout) override { inner_->SetTimeout(timeout); }

  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override {
    Fetch(roots, tree.root_count(rank()) * elements);
    result_.resize(static_cast<size_t>(elements));
    FACET_RETURN_IF_ERROR(inner_->AllReduceSum(tree, mine_.data(), elements, result_.data()));
    device_->CopyIn(result_, {out, elements});
    return absl::OkStatus();
  }

  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override {
    Fetch(mine.data(), static_cast<int64_t>(mine.size()));
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    result_.resize(static_cast<size_t>(total));
    FACET_RETURN_IF_ERROR(inner_->AllGather(mine_, counts, result_.data()));
    device_->CopyIn(result_, {out, total});
    return absl::OkStatus();
  }

  absl::Status AllGatherBytes(std::span<const std::byte> mine,
                              std::vector<std::vector<std::byte>>* out) override {
    return inner_->AllGatherBytes(mine, out);
  }
  absl::Status Broadcast(std::vector<std::byte>* message) override {
    return inner_->Broadcast(message);
  }
  absl::Status Meet(const CallSubject& subject) override { return inner_->Meet(subject); }
  void Abort() override { inner_->Abort(); }
  absl::Status Look() override { return inner_->Look(); }
  absl::Status Fail(const absl::Status& reason) override { return inner_->Fail(reason); }
  Times TakeTimes() override { return inner_->TakeTimes(); }

 private:
  // The device's floats into mine_. A step is bounded, and so are the two copies.
  void Fetch(const float* floats, int64_t size) {
    mine_.resize(static_cast<size_t>(size));
    device_->CopyOut({const_cast<float*>(floats), size}, mine_);
  }

  Device* const device_;
  const std::unique_ptr<Communicator> inner_;
  std::vector<float> mine_;
  std::vector<float> result_;
};

}  // namespace

std::unique_ptr<Communicator> MakeStagedCommunicator(Device* device,
                                                     std::unique_ptr<Communicator> inner) {
  return std::make_unique<StagedCommunicator>(device, std::move(inner));
}

}  // namespace facet
