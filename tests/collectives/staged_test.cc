// Collectives of a device whose addresses mean nothing to the host give what those of a device in
// host memory give.

#include "kernels/collectives/staged.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/collectives/local.h"
#include "kernels/host/forwarding_device.h"
#include "kernels/reference/reference_device.h"

namespace facet {
namespace {

// Hands out addresses that no process has: whoever reads or writes there but the device crashes.
class RemoteDevice final : public ForwardingDevice {
 public:
  RemoteDevice() : ForwardingDevice(MakeReferenceDevice()) {}

  bool host_memory() const override { return false; }
  absl::StatusOr<Floats> AllocateFloats(int64_t size) override {
    absl::StatusOr<Floats> floats = ForwardingDevice::AllocateFloats(size);
    if (floats.ok()) floats->data = Shifted(floats->data, kShift);
    return floats;
  }
  void CopyIn(std::span<const float> host, Floats device) override {
    ForwardingDevice::CopyIn(host, {Shifted(device.data, -kShift), device.size});
  }
  void CopyOut(Floats device, std::span<float> host) override {
    ForwardingDevice::CopyOut({Shifted(device.data, -kShift), device.size}, host);
  }

 private:
  static constexpr intptr_t kShift = intptr_t{1} << 60;
  static float* Shifted(float* data, intptr_t by) {
    return reinterpret_cast<float*>(reinterpret_cast<intptr_t>(data) + by);
  }
};

Floats Upload(Device& device, const std::vector<float>& values) {
  const Floats floats = *device.AllocateFloats(static_cast<int64_t>(values.size()));
  device.CopyIn(values, floats);
  return floats;
}

std::vector<float> Download(Device& device, Floats floats) {
  std::vector<float> values(static_cast<size_t>(floats.size));
  device.CopyOut(floats, values);
  return values;
}

// Rank's roots: `count` of `elements` floats, of very different sizes, so that order shows.
std::vector<float> RootsOfRank(int rank, int count, int64_t elements) {
  std::vector<float> roots;
  for (int64_t i = 0; i < count * elements; ++i) {
    roots.push_back(static_cast<float>((i * 7 + rank * 13) % 101) * (i % 3 == 0 ? 1e6f : 1e-3f));
  }
  return roots;
}

void ForRanks(int world, const std::function<void(int, Communicator*)>& body) {
  auto group = MakeLocalGroup(world);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      group[static_cast<size_t>(rank)]->SetStep(1);
      body(rank, group[static_cast<size_t>(rank)].release());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(StagedCommunicator, SumsAsTheInnerOneDoes) {
  constexpr int64_t kElements = 37;
  for (const int world : {1, 2, 3}) {
    std::vector<int> begins;
    for (int rank = 0; rank <= world; ++rank) begins.push_back(rank * 8 / world);
    const SumTree tree(8, begins);
    ForRanks(world, [&](int rank, Communicator* released) {
      std::unique_ptr<Communicator> inner(released);
      const auto roots = RootsOfRank(rank, tree.root_count(rank), kElements);
      std::vector<float> expected(kElements);
      ASSERT_TRUE(inner->AllReduceSum(tree, roots.data(), kElements, expected.data()).ok());
      RemoteDevice device;
      const auto staged = MakeStagedCommunicator(&device, std::move(inner));
      const Floats out = *device.AllocateFloats(kElements);
      staged->SetStep(2);
      const absl::Status status =
          staged->AllReduceSum(tree, Upload(device, roots).data, kElements, out.data);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(Download(device, out), expected);
    });
  }
}

TEST(StagedCommunicator, GathersAsTheInnerOneDoes) {
  const std::vector<int64_t> counts = {3, 0, 5};
  ForRanks(3, [&](int rank, Communicator* released) {
    RemoteDevice device;
    const auto staged = MakeStagedCommunicator(&device, std::unique_ptr<Communicator>(released));
    const std::vector<float> mine(static_cast<size_t>(counts[static_cast<size_t>(rank)]),
                                  static_cast<float>(rank + 1));
    const Floats out = *device.AllocateFloats(8);
    const Floats from = Upload(device, mine);
    ASSERT_TRUE(staged->AllGather({from.data, mine.size()}, counts, out.data).ok());
    EXPECT_EQ(Download(device, out), (std::vector<float>{1, 1, 1, 3, 3, 3, 3, 3}));
  });
}

TEST(StagedCommunicator, FailsAsTheInnerOneDoes) {
  ForRanks(1, [&](int, Communicator* released) {
    RemoteDevice device;
    const auto staged = MakeStagedCommunicator(&device, std::unique_ptr<Communicator>(released));
    staged->Abort();
    const Floats out = *device.AllocateFloats(1);
    EXPECT_FALSE(staged->AllReduceSum(SumTree(1, {0, 1}), out.data, 1, out.data).ok());
  });
}

}  // namespace
}  // namespace facet
