// The tested devices find the same candidates and sums as the reference device.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void ExpectSameCandidates(const std::vector<Candidate>& got, const std::vector<Candidate>& expected,
                          const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].id, expected[i].id) << what << " " << i;
    ASSERT_EQ(got[i].order, expected[i].order) << what << " " << i;
    ASSERT_EQ(got[i].processed, expected[i].processed) << what << " " << i;
    ASSERT_EQ(got[i].raw, expected[i].raw) << what << " " << i;
  }
}

void ExpectSameSums(const std::vector<SliceSum>& got, const std::vector<SliceSum>& expected,
                    const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].max, expected[i].max) << what << " " << i;
    ASSERT_EQ(got[i].sum, expected[i].sum) << what << " " << i;
  }
}

void ExpectSame(const CandidateReply& got, const CandidateReply& expected,
                const std::string& what) {
  ASSERT_EQ(got.finite, expected.finite) << what;
  ASSERT_NO_FATAL_FAILURE(ExpectSameCandidates(got.best, expected.best, what));
  ASSERT_NO_FATAL_FAILURE(ExpectSameCandidates(got.raw_best, expected.raw_best, what));
  ASSERT_NO_FATAL_FAILURE(ExpectSameSums(got.sums, expected.sums, what));
  ASSERT_NO_FATAL_FAILURE(ExpectSameSums(got.raw_sums, expected.raw_sums, what));
}

class DeviceCandidates : public testing::Test {
 protected:
  void ExpectEqual(const std::vector<float>& logits, const VocabularySlices& slices,
                   const CandidateQuery& query, const std::string& what) {
    CandidateReply expected;
    const auto reference = MakeReferenceDevice();
    reference->FindCandidates(Upload(*reference, logits), slices, query, &expected);
    for (const NamedDevice& named : devices_) {
      const std::string where = named.name + ", " + what;
      const Floats row = Upload(*named.device, logits);
      CandidateReply reply;
      named.device->FindCandidates(row, slices, query, &reply);
      ASSERT_NO_FATAL_FAILURE(ExpectSame(reply, expected, where));
      const std::vector<float> after = Download(*named.device, row);
      ASSERT_EQ(FirstDifference(after, logits), -1) << where;
    }
  }

  std::vector<NamedDevice> devices_ = TestedDevices({1, 3});
};

std::vector<LogitEdit> MakeEdits(int64_t rows, Random& random) {
  std::vector<LogitEdit> edits;
  for (int32_t row = 0; row < rows; row += 1 + static_cast<int32_t>(random() % 97)) {
    LogitEdit edit{row, 0, 1, 0};
    if (random() % 2 == 0) edit.bias = random() % 5 == 0 ? -kInfinity : 3;
    if (random() % 2 == 0) edit.repetition = 1.3f;
    if (random() % 2 == 0) edit.subtract = 0.7f;
    edits.push_back(edit);
  }
  return edits;
}

TEST_F(DeviceCandidates, EqualTheReferenceForEveryQuestion) {
  Random random(1);
  for (const int64_t rows :
       Shapes<int64_t>({1, 15, 16, 17, 1000, 1024, 1025, 5000}, {1, 17, 1025})) {
    const std::vector<float> logits = MakeFloats(rows, 3, random);
    const std::vector<LogitEdit> edits = MakeEdits(rows, random);
    for (const int count : Shapes<int>({0, 1, 2, 64, 5000}, {0, 1, 64})) {
      for (const bool gumbel : {false, true}) {
        CandidateQuery query;
        query.count = count;
        query.gumbel = gumbel;
        query.key = random();
        query.raw_count = count / 2;
        query.sums = count != 2;
        query.raw_sums = count == 64;
        query.inverse_temperature = gumbel ? 1.25f : 1;
        if (count != 1) query.edits = edits;
        const VocabularySlices slices{1000, {0, rows / 3, rows / 3, rows / 2, rows}};
        ASSERT_NO_FATAL_FAILURE(
            ExpectEqual(logits, slices, query,
                        fmt::format("{} rows, {} wanted, gumbel {}", rows, count, gumbel)));
      }
    }
  }
}

// Rows of one search that are asked different things, each with edits of its own.
TEST_F(DeviceCandidates, OfABatchAreTheReferences) {
  Random random(2);
  const int64_t rows = 1100;  // more than are sorted together
  const TestMatrix head = MakeMatrix(TensorType::kQ8_0, rows, 64, 0.1f, random);
  const VocabularySlices slices{1000, {0, rows / 3, rows / 3, rows / 2, rows}};
  for (const int batch : Shapes<int>({2, 7, 40}, {7})) {
    const std::vector<float> x = MakeActivations(batch, 64, random);
    std::vector<std::vector<LogitEdit>> edits;
    std::vector<CandidateQuery> queries;
    for (int i = 0; i < batch; ++i) {
      edits.push_back(i % 3 == 1 ? std::vector<LogitEdit>() : MakeEdits(rows, random));
      CandidateQuery query;
      query.count = i % 5 * 4;
      query.gumbel = i % 2 == 1;
      query.key = random();
      query.inverse_temperature = 1 / (0.5f + static_cast<float>(i));
      query.sums = i % 3 == 0;
      query.raw_count = i % 4 * 3;
      query.raw_sums = i % 4 == 2;
      queries.push_back(query);
    }
    for (int i = 0; i < batch; ++i) queries[i].edits = edits[i];
    for (const float soft_cap : {0.0f, 3.0f}) {
      const auto search = [&](Device& device) {
        const auto loaded = *device.LoadMatrix(head.source(), nullptr);
        HeadSearch search;
        search.head = loaded.get();
        search.x = Upload(device, x);
        search.soft_cap = soft_cap;
        search.slices = &slices;
        search.queries = queries;
        search.scratch = *device.AllocateFloats(batch * rows);
        std::vector<CandidateReply> replies(queries.size());
        device.SearchHead(search, replies);
        return replies;
      };
      const std::vector<CandidateReply> expected = search(*MakeReferenceDevice());
      for (const NamedDevice& named : devices_) {
        const std::vector<CandidateReply> replies = search(*named.device);
        for (size_t i = 0; i < replies.size(); ++i) {
          const std::string where =
              fmt::format("{}, {} rows, cap {}, row {}", named.name, batch, soft_cap, i);
          ASSERT_NO_FATAL_FAILURE(ExpectSame(replies[i], expected[i], where));
        }
      }
    }
  }
}

TEST_F(DeviceCandidates, TiesGoToTheLowestIds) {
  std::vector<float> logits(3000, 1.0f);
  for (size_t i = 7; i < logits.size(); i += 13) logits[i] = 2.0f;
  logits[2900] = -0.0f;
  logits[2901] = 0.0f;
  for (const int count : Shapes<int>({1, 5, 100, 300, 3000}, {1, 5, 300})) {
    CandidateQuery query;
    query.count = count;
    query.raw_count = count;
    ExpectEqual(logits, {0, {0, 1500, 3000}}, query, std::to_string(count));
  }
}

TEST_F(DeviceCandidates, NoiseDecidesAmongEqualsAndAgainstOutliers) {
  const size_t rows = TestedDevicesAreSlow() ? 3000 : 20000;
  std::vector<float> flat(rows, 0.0f);
  std::vector<float> peaked(rows, 0.0f);
  peaked[rows / 2 + 345] = 30;
  peaked[77] = 14;
  for (const auto& logits : {flat, peaked}) {
    for (uint64_t key = 0; key < 5; ++key) {
      CandidateQuery query;
      query.gumbel = true;
      query.key = key;
      query.count = key == 4 ? 40 : 1;
      ExpectEqual(logits, {5, {0, 1400, static_cast<int64_t>(rows)}}, query, std::to_string(key));
    }
  }
}

TEST_F(DeviceCandidates, BannedTokensAreLast) {
  Random random(3);
  std::vector<float> logits = MakeFloats(2000, 1, random);
  for (size_t i = 0; i < 2000; i += 2) logits[i] = -kInfinity;
  std::fill(logits.begin() + 1200, logits.end(), -kInfinity);
  for (const bool gumbel : {false, true}) {
    for (const int count : Shapes<int>({1, 700, 2000}, {1, 70})) {
      CandidateQuery query;
      query.count = count;
      query.gumbel = gumbel;
      query.sums = true;
      query.raw_sums = true;
      ExpectEqual(logits, {0, {0, 1200, 2000}}, query, std::to_string(count));
    }
  }
}

TEST_F(DeviceCandidates, RefuseWhatIsNotFinite) {
  Random random(4);
  std::vector<float> logits = MakeFloats(2000, 1, random);
  CandidateQuery query;
  query.sums = true;
  for (const float bad : {std::nanf(""), kInfinity}) {
    for (const size_t at : {size_t{0}, size_t{1023}, size_t{1999}}) {
      std::vector<float> poisoned = logits;
      poisoned[at] = bad;
      for (const NamedDevice& named : devices_) {
        CandidateReply reply;
        named.device->FindCandidates(Upload(*named.device, poisoned), {0, {0, 900, 2000}}, query,
                                     &reply);
        EXPECT_FALSE(reply.finite) << named.name << " " << at;
        EXPECT_TRUE(reply.best.empty());
      }
    }
  }
  const LogitEdit edits[] = {{1500, kInfinity, 1, 0}};
  query.edits = edits;
  ExpectEqual(logits, {0, {0, 2000}}, query, "an infinite bias");
  query.edits = {};
  query.inverse_temperature = 3e38f;
  ExpectEqual(logits, {0, {0, 2000}}, query, "a tiny temperature");
}

}  // namespace
}  // namespace facet
