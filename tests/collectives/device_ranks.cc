#include "tests/collectives/device_ranks.h"

#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/forwarding_communicator.h"

namespace facet {
namespace {

// An array on a device that grows.
class DeviceArray {
 public:
  explicit DeviceArray(Device* device) : device_(device) {}

  Floats First(int64_t size) {
    if (size > floats_.size) {
      auto larger = device_->AllocateFloats(2 * size);
      FACET_CHECK(larger.ok(), "{}", MessageOf(larger.status()));
      floats_ = *larger;
    }
    return {floats_.data, size};
  }
  Floats Put(std::span<const float> values) {
    const Floats floats = First(static_cast<int64_t>(values.size()));
    device_->CopyIn(values, floats);
    return floats;
  }

 private:
  Device* const device_;
  Floats floats_;
};

class FromHost final : public ForwardingCommunicator {
 public:
  FromHost(Device* device, std::unique_ptr<Communicator> inner)
      : ForwardingCommunicator(std::move(inner)), device_(device), in_(device), out_(device) {
    FACET_CHECK(this->inner().on_device());
  }

  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override {
    const Floats mine = in_.Put({roots, static_cast<size_t>(tree.root_count(rank()) * elements)});
    const Floats sums = out_.First(elements);
    FACET_RETURN_IF_ERROR(inner().AllReduceSum(tree, mine.data, elements, sums.data));
    FACET_RETURN_IF_ERROR(inner().Finish());
    device_->CopyOut(sums, {out, static_cast<size_t>(elements)});
    return absl::OkStatus();
  }

  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override {
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    const bool in_place = mine.data() >= out && mine.data() < out + total;
    const Floats all = out_.First(total);
    Floats own;
    if (in_place) {
      own = {all.data + (mine.data() - out), static_cast<int64_t>(mine.size())};
      device_->CopyIn(mine, own);
    } else {
      own = in_.Put(mine);
    }
    FACET_RETURN_IF_ERROR(inner().AllGather({own.data, mine.size()}, counts, all.data));
    FACET_RETURN_IF_ERROR(inner().Finish());
    device_->CopyOut(all, {out, static_cast<size_t>(total)});
    return absl::OkStatus();
  }

 private:
  Device* const device_;
  DeviceArray in_;
  DeviceArray out_;
};

}  // namespace

std::unique_ptr<Communicator> FromHostMemory(Device* device, std::unique_ptr<Communicator> inner) {
  return std::make_unique<FromHost>(device, std::move(inner));
}

}  // namespace facet
