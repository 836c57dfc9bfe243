// Searches of the output layer that are read later: the replies of those that are read at once, and
// their best tokens in places of the device, where embeddings find them.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr int64_t kRows = 700;  // of the head; the table has as many
constexpr int64_t kWidth = 64;
constexpr int kPlaces = 12;
constexpr int kQueriesMax = 4;

class DeviceAsked : public testing::Test {
 protected:
  // A device with what it searches and reads.
  struct Loaded {
    Device* device = nullptr;
    std::unique_ptr<Matrix> head, table;
    Floats scratch;
  };

  Loaded Load(Device* device) {
    EXPECT_TRUE(device->AllocateTokens(kPlaces).ok());
    return {device, *device->LoadMatrix(head_.source(), nullptr),
            *device->LoadMatrix(table_.source(), nullptr),
            *device->AllocateFloats(kQueriesMax * kRows)};
  }

  HeadSearch Search(const Loaded& on, const std::vector<float>& x,
                    std::span<const CandidateQuery> queries) {
    HeadSearch search;
    search.head = on.head.get();
    search.x = Upload(*on.device, x);
    search.soft_cap = 3;
    search.slices = &slices_;
    search.queries = queries;
    search.scratch = on.scratch;
    return search;
  }

  std::vector<float> Embed(const Loaded& on, std::span<const int32_t> rows) {
    const auto size = static_cast<int64_t>(rows.size()) * kWidth;
    const Floats out = *on.device->AllocateFloats(size);
    on.device->EmbedRows(*on.table, rows, 1.25f, out);
    return Download(*on.device, out);
  }

  Random random_{51};
  const TestMatrix head_ = MakeMatrix(TensorType::kQ8_0, kRows, kWidth, 0.1f, random_);
  const TestMatrix table_ = MakeMatrix(TensorType::kQ8_0, kRows, kWidth, 0.1f, random_);
  const VocabularySlices slices_{0, {0, 300, kRows}};
  const std::unique_ptr<Device> oracle_ = MakeReferenceDevice();
  std::vector<NamedDevice> devices_ = TestedDevices({1, 3});
};

// Greedy, noisy and edited rows.
std::vector<CandidateQuery> Queries(size_t rows, std::span<const LogitEdit> edits) {
  std::vector<CandidateQuery> queries(rows);
  for (size_t i = 0; i < rows; ++i) {
    if (i % 2 == 1) {
      queries[i].gumbel = true;
      queries[i].key = 77 + i;
      queries[i].inverse_temperature = 0.6f;
    }
    if (i % 3 == 2) queries[i].edits = edits;
  }
  return queries;
}

// More searches at a time than there are places where answers arrive, of different sizes.
TEST_F(DeviceAsked, RepliesComeInOrderAndEmbeddingsFindTheTokens) {
  const LogitEdit edits[] = {{3, 100, 1, 0}, {699, 2, 1.5f, 0.5f}};
  const std::vector<std::vector<int32_t>> places = {{4},          {-1, 11, 0}, {7, 2},
                                                    {5, 6, 8, 9}, {10},        {1}};
  std::vector<std::vector<float>> x;
  std::vector<std::vector<CandidateReply>> want;
  const Loaded oracle = Load(oracle_.get());
  std::vector<int32_t> kept(kPlaces, 0);
  for (const std::vector<int32_t>& keep : places) {
    x.push_back(MakeActivations(static_cast<int64_t>(keep.size()), kWidth, random_));
    const std::vector<CandidateQuery> queries = Queries(keep.size(), edits);
    oracle.device->SearchHead(Search(oracle, x.back(), queries), want.emplace_back(keep.size()));
    for (size_t i = 0; i < keep.size(); ++i) {
      if (keep[i] >= 0) kept[static_cast<size_t>(keep[i])] = want.back()[i].best.front().id;
    }
  }
  kept[3] = 0;  // which nobody has kept
  std::vector<int32_t> rows, plain;
  for (int32_t place = kPlaces - 1; place >= 0; --place) {
    rows.push_back(RowOfKept(place));
    plain.push_back(kept[static_cast<size_t>(place)]);
  }
  rows.push_back(17);  // one that the host knows
  plain.push_back(17);

  devices_.push_back({"reference", 1, MakeReferenceDevice()});
  for (const NamedDevice& named : devices_) {
    SCOPED_TRACE(named.name);
    const Loaded on = Load(named.device.get());
    for (size_t s = 0; s < places.size(); ++s) {
      std::vector<CandidateQuery> queries = Queries(places[s].size(), edits);
      std::vector<int32_t> keep = places[s];
      HeadSearch search = Search(on, x[s], queries);
      search.keep = keep;
      named.device->AskHead(search);
      // What was asked no longer needs these.
      keep.assign(keep.size(), 3);
      queries.assign(queries.size(), CandidateQuery());
    }
    EXPECT_EQ(FirstDifference(Embed(on, rows), Embed(oracle, plain)), -1);
    for (const std::vector<CandidateReply>& expected : want) {
      std::vector<CandidateReply> got(expected.size());
      ASSERT_TRUE(named.device->ReadReplies(got).ok());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(got[i].finite);
        ASSERT_EQ(got[i].best.size(), 1u);
        EXPECT_EQ(got[i].best[0].id, expected[i].best[0].id);
        EXPECT_EQ(got[i].best[0].order, expected[i].best[0].order);
      }
    }
  }
}

// What is dropped is answered to nobody, and what comes next to whom it is for.
TEST_F(DeviceAsked, DroppedSearchesAreForgotten) {
  const std::vector<CandidateQuery> queries(1);
  for (const NamedDevice& named : devices_) {
    SCOPED_TRACE(named.name);
    const Loaded on = Load(named.device.get());
    for (int i = 0; i < 3; ++i) {
      named.device->AskHead(Search(on, MakeActivations(1, kWidth, random_), queries));
    }
    named.device->DropReplies();
    const std::vector<float> x = MakeActivations(1, kWidth, random_);
    const int32_t place = 2;
    HeadSearch search = Search(on, x, queries);
    search.keep = std::span(&place, 1);
    named.device->AskHead(search);
    std::vector<CandidateReply> asked(1), at_once(1);
    named.device->SearchHead(Search(on, x, queries), at_once);  // beside it
    ASSERT_TRUE(named.device->ReadReplies(asked).ok());
    EXPECT_EQ(asked[0].best[0].id, at_once[0].best[0].id);
    const int32_t kept = RowOfKept(2);
    EXPECT_EQ(FirstDifference(Embed(on, std::span(&kept, 1)),
                              Embed(on, std::span(&asked[0].best[0].id, 1))),
              -1);
  }
}

// A step that goes on from logits that are no numbers computes something, and nobody asks what.
TEST_F(DeviceAsked, SomeTokenIsKeptOfWhatIsNotFinite) {
  const std::vector<CandidateQuery> queries(1);
  for (const NamedDevice& named : devices_) {
    SCOPED_TRACE(named.name);
    const Loaded on = Load(named.device.get());
    std::vector<float> x = MakeActivations(1, kWidth, random_);
    x[5] = std::nanf("");
    const int32_t place = 7;
    HeadSearch search = Search(on, x, queries);
    search.keep = std::span(&place, 1);
    named.device->AskHead(search);
    const int32_t kept = RowOfKept(7);
    EXPECT_EQ(Embed(on, std::span(&kept, 1)).size(), size_t{kWidth});
    std::vector<CandidateReply> reply(1);
    ASSERT_TRUE(named.device->ReadReplies(reply).ok());
    EXPECT_FALSE(reply[0].finite);
  }
}

}  // namespace
}  // namespace facet
