#include "kernels/collectives/staged.h"

#include <numeric>
#include <utility>

#include "base/status.h"
#include "kernels/collectives/forwarding_communicator.h"

namespace facet {
namespace {

class StagedCommunicator final : public ForwardingCommunicator {
 public:
  StagedCommunicator(Device* device, std::unique_ptr<Communicator> inner)
      : ForwardingCommunicator(std::move(inner)), device_(device) {}

  bool on_device() const override { return true; }

  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override {
    Fetch(roots, tree.root_count(rank()) * elements);
    result_.resize(static_cast<size_t>(elements));
    FACET_RETURN_IF_ERROR(inner().AllReduceSum(tree, mine_.data(), elements, result_.data()));
    device_->CopyIn(result_, {out, elements});
    return absl::OkStatus();
  }

  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override {
    Fetch(mine.data(), static_cast<int64_t>(mine.size()));
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    result_.resize(static_cast<size_t>(total));
    FACET_RETURN_IF_ERROR(inner().AllGather(mine_, counts, result_.data()));
    device_->CopyIn(result_, {out, total});
    return absl::OkStatus();
  }

 private:
  // The device's floats into mine_. A step is bounded, and so are the two copies.
  void Fetch(const float* floats, int64_t size) {
    mine_.resize(static_cast<size_t>(size));
    device_->CopyOut({const_cast<float*>(floats), size}, mine_);
  }

  Device* const device_;
  std::vector<float> mine_;
  std::vector<float> result_;
};

}  // namespace

std::unique_ptr<Communicator> MakeStagedCommunicator(Device* device,
                                                     std::unique_ptr<Communicator> inner) {
  return std::make_unique<StagedCommunicator>(device, std::move(inner));
}

}  // namespace facet
