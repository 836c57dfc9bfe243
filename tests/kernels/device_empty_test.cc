// Nothing to do is done by every device: no rows, no sizes, no queries (device.h says where that is
// allowed). What the result would have overwritten stays as it was.

#include <gtest/gtest.h>

#include <functional>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr float kUntouched = 7;

// Runs on the reference and on every tested device: `operation` gets a device and an array that
// must come back untouched.
void ExpectNothingHappens(const std::function<void(Device&, Floats)>& operation) {
  std::vector<NamedDevice> devices = TestedDevices({1, 3});
  devices.push_back({"reference", 1, MakeReferenceDevice()});
  for (const NamedDevice& named : devices) {
    SCOPED_TRACE(named.name);
    const std::vector<float> before(8, kUntouched);
    const Floats out = Upload(*named.device, before);
    operation(*named.device, out);
    EXPECT_EQ(FirstDifference(Download(*named.device, out), before), -1);
    EXPECT_TRUE(Download(*named.device, *named.device->AllocateFloats(0)).empty());
  }
}

Floats Nothing(Device& device) { return Upload(device, {}); }

TEST(DeviceEmpty, ElementwiseOperationsOfNoRows) {
  ExpectNothingHappens([](Device& device, Floats out) {
    const Floats weight = Upload(device, std::vector<float>(5, 1.0f));
    device.RmsNorm(Nothing(device), 0, 5, weight, 1e-5f, out);
    ResidualNormArgs args;
    args.residual = args.out = out;
    args.update = Nothing(device);
    args.next_weight = weight;
    args.width = 5;
    device.ResidualNorm(args);
    args.post_weight = weight;
    device.ResidualNorm(args);
    device.SoftCap(out, 0, 3);
    device.GatherRows(Nothing(device), {}, 5, out);
  });
}

class DeviceEmptyProduct : public testing::TestWithParam<TensorType> {};

TEST_P(DeviceEmptyProduct, NoRowsOfActivations) {
  Random random(31);
  const TestMatrix matrix = MakeMatrix(GetParam(), 3, 256, 0.1f, random);
  // Of a mixed pair the gate takes another path.
  const TestMatrix other = MakeMatrix(TensorType::kF32, 3, 256, 0.1f, random);
  const LeafCut cut{8, 1, CutColumns(256, 5, 32)};
  ExpectNothingHappens([&](Device& device, Floats out) {
    const auto whole = *device.LoadMatrix(matrix.source(), nullptr);
    const auto leaves = *device.LoadMatrix(matrix.source(), &cut);
    const auto floats = *device.LoadMatrix(other.source(), nullptr);
    const Matrix* const parts[] = {whole.get(), floats.get()};
    device.Product(parts, Nothing(device), 0, out);
    device.GatedProduct(Activation::kSilu, *whole, *whole, Nothing(device), 0, out);
    device.GatedProduct(Activation::kSilu, *whole, *floats, Nothing(device), 0, out);
    device.ProductRoots(*leaves, Nothing(device), 0, out);
    device.EmbedRows(*whole, 0, {}, 2, out);
  });
}

INSTANTIATE_TEST_SUITE_P(Types, DeviceEmptyProduct, testing::ValuesIn(AllTensorTypes()),
                         [](const auto& type) { return std::string(FormatOf(type.param).name); });

TEST(DeviceEmpty, AMatrixHasRowsAndColumns) {
  Random random(32);
  const TestMatrix matrix = MakeMatrix(TensorType::kF32, 3, 8, 0.1f, random);
  ExpectNothingHappens([&](Device& device, Floats) {
    MatrixSource source = matrix.source();
    source.rows = 0;
    EXPECT_EQ(device.LoadMatrix(source, nullptr).status().code(),
              absl::StatusCode::kInvalidArgument);
    source = matrix.source();
    source.columns = 0;
    EXPECT_EQ(device.LoadMatrix(source, nullptr).status().code(),
              absl::StatusCode::kInvalidArgument);
  });
}

TEST(DeviceEmpty, AStepOfNoRows) {
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    ExpectNothingHappens([&](Device& device, Floats out) {
      std::array<KvPoolSpec, kKvPools> pools;
      pools[kFullPool] = {1, 2, 16, 1, 16, type};
      ASSERT_TRUE(device.AllocateKv(pools).ok());
      AttentionSpec spec;
      spec.heads = 2;
      spec.kv_heads = 1;
      spec.head_dim = 16;
      spec.kv_of_head = {0, 0};
      spec.rope = device.AddRope({std::vector<float>(8, 0.5f)});
      const StepLayout layout;
      device.BeginStep(layout);
      device.RopeAndStore(spec, Nothing(device));
      device.Attend(spec, Nothing(device), out);
    });
  }
}

TEST(DeviceEmpty, PoolsWithoutLayersOrBlocksTakeNothing) {
  ExpectNothingHappens([](Device& device, Floats) {
    std::array<KvPoolSpec, kKvPools> pools;
    pools[kFullPool] = {0, 5, 16, 1, 16, KvType::kF16};
    pools[kWindowPool] = {5, 0, 16, 1, 16, KvType::kF16};
    EXPECT_TRUE(device.AllocateKv(pools).ok());
    EXPECT_TRUE(device.AllocateKv({}).ok());
  });
}

TEST(DeviceEmpty, SlicesWithoutLogitsAndQuestionsWithoutCandidates) {
  std::vector<NamedDevice> devices = TestedDevices({1, 3});
  devices.push_back({"reference", 1, MakeReferenceDevice()});
  for (const NamedDevice& named : devices) {
    SCOPED_TRACE(named.name);
    CandidateQuery query;
    query.count = 0;
    query.sums = true;
    CandidateReply reply;
    const Floats logit = Upload(*named.device, std::vector<float>{3.0f});
    named.device->FindCandidates(logit, {9, {0, 0, 1, 1}}, query, &reply);
    EXPECT_TRUE(reply.best.empty());
    ASSERT_EQ(reply.sums.size(), 3u);
    EXPECT_EQ(reply.sums[0].sum, 0);
    EXPECT_EQ(reply.sums[1].max, 3.0f);
    EXPECT_EQ(reply.sums[1].sum, 1);
    EXPECT_EQ(reply.sums[2].sum, 0);
  }
}

// Ranks exchange floors in `agree`: each must call it as often as the others, whatever it leaves
// unread.
TEST(DeviceSearch, AgreesOnceUnlessThereAreNoQueries) {
  Random random(33);
  const TestMatrix head = MakeMatrix(TensorType::kQ8_0, 70, 64, 0.1f, random);
  const VocabularySlices slices{0, {0, 40, 70}};
  std::vector<NamedDevice> devices = TestedDevices({1, 3});
  devices.push_back({"reference", 1, MakeReferenceDevice()});
  for (const NamedDevice& named : devices) {
    const auto loaded = *named.device->LoadMatrix(head.source(), nullptr);
    for (const size_t rows : {0, 1, 3, 6}) {
      SCOPED_TRACE(named.name + ", " + std::to_string(rows) + " rows");
      const auto count = static_cast<int64_t>(rows);
      const std::vector<CandidateQuery> queries(rows);
      std::vector<CandidateReply> replies(rows);
      int calls = 0;
      HeadSearch search;
      search.head = loaded.get();
      search.x = Upload(*named.device, MakeActivations(count, 64, random));
      search.slices = &slices;
      search.queries = queries;
      search.scratch = *named.device->AllocateFloats(count * 70);
      search.agree = [&](std::span<float> floors) {
        ++calls;
        EXPECT_EQ(floors.size(), rows);
      };
      named.device->SearchHead(search, replies);
      EXPECT_EQ(calls, rows == 0 ? 0 : 1);
      for (const CandidateReply& reply : replies) EXPECT_EQ(reply.best.size(), 1u);
    }
  }
}

}  // namespace
}  // namespace facet
