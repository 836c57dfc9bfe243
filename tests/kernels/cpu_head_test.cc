// Searching the output layer finds what the reference finds, bit for bit, whatever is asked of how
// many rows.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/head_search.h"

namespace facet {
namespace {

using CpuHead = HeadTest;

TEST_F(CpuHead, EqualsTheReferenceForEveryShapeAndQuestion) {
  Random random(1);
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ6_K}) {
    const int64_t block = FormatOf(type).elements;
    for (const int64_t rows : {1, 2, 15, 16, 17, 31, 32, 33, 64, 257, 3001}) {
      for (const int64_t columns : {block, 3 * block, 640 / block * block}) {
        const TestMatrix matrix = MakeMatrix(type, rows, columns, 0.05f, random);
        const std::vector<LogitEdit> edits = MakeEdits(rows, random);
        for (const int batch : {1, 2, 3, 4, 5}) {
          const std::vector<float> x = MakeActivations(batch, columns, random);
          std::vector<CandidateQuery> queries;
          for (int i = 0; i < batch; ++i) {
            CandidateQuery query = random() % 3 == 0   ? Greedy()
                                   : random() % 2 == 0 ? Sampled(random(), 2)
                                                       : Top(1 + random() % 18, 0.7f);
            if (random() % 2 == 0) query.edits = edits;
            queries.push_back(query);
          }
          ASSERT_NO_FATAL_FAILURE(ExpectEqual(
              matrix, x, queries,
              fmt::format("{} {} x {}, {} rows", FormatOf(type).name, rows, columns, batch)));
        }
      }
    }
  }
}

TEST_F(CpuHead, QuestionsAboutAllLogitsReadThemAll) {
  Random random(8);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 1500, 128, 0.05f, random);
  const std::vector<float> x = MakeActivations(2, 128, random);
  std::vector<CandidateQuery> queries = {Top(10, 1), Greedy()};
  queries[0].sums = true;
  EXPECT_EQ(ExpectEqual(matrix, x, queries, "sums").screened, 0);
  queries[0].sums = false;
  queries[0].raw_sums = true;
  queries[0].raw_count = 5;
  EXPECT_EQ(ExpectEqual(matrix, x, queries, "log-probabilities").screened, 0);
  queries[0].raw_sums = false;
  queries[0].raw_count = 0;
  EXPECT_EQ(ExpectEqual(matrix, x, queries, "a soft cap", 30.0f).screened, 0);
  EXPECT_GT(ExpectEqual(matrix, x, queries, "neither").screened, 0);
}

// Batches with everything that can be asked at once, over pieces and slices that begin inside of
// panels; more rows than are searched together, and more candidates.
TEST_F(CpuHead, BatchesOfMixedQuestionsEqualTheReference) {
  Random random(12);
  for (const int batch : {1, 6, 33, 67}) {
    for (const int64_t rows : {7, 1100, 2500}) {
      const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, rows, 64, 0.05f, random);
      const std::vector<LogitEdit> edits = MakeEdits(rows, random);
      std::vector<float> x = MakeActivations(batch, 64, random);
      for (const bool sums : {false, true}) {
        std::vector<CandidateQuery> queries;
        for (int i = 0; i < batch; ++i) {
          CandidateQuery query = i % 3 == 0   ? Greedy()
                                 : i % 3 == 1 ? Sampled(random(), 1.5f)
                                              : Top(1 + static_cast<int>(random() % rows), 0.7f);
          if (i % 2 == 0) query.edits = edits;
          if (i % 5 == 1) query.raw_count = 1 + static_cast<int>(random() % 20);
          if (i % 7 == 2) query.count = 0;
          query.sums = sums && i % 2 == 0;
          query.raw_sums = sums && i % 4 == 1;
          queries.push_back(query);
        }
        const std::string what = fmt::format("{} rows of {}, sums {}", batch, rows, sums);
        ASSERT_NO_FATAL_FAILURE(ExpectEqual(matrix, x, queries, what));
        ASSERT_NO_FATAL_FAILURE(ExpectEqual(matrix, x, queries, what + ", capped", 2.0f));
        x[static_cast<size_t>(batch / 2 * 64)] = std::nanf("");  // one row is not finite
        ASSERT_NO_FATAL_FAILURE(ExpectEqual(matrix, x, queries, what + ", not finite"));
        x[static_cast<size_t>(batch / 2 * 64)] = 1;
      }
    }
  }
}

// Slices of several chunks, that begin inside of panels, for one row or some of a batch.
TEST_F(CpuHead, SumsOverSlicesOfManyChunksEqualTheReference) {
  Random random(14);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 9000, 32, 0.05f, random);
  const std::vector<float> x = MakeActivations(7, 32, random);
  for (const int summed : {1, 2, 7}) {
    std::vector<CandidateQuery> queries(7, Sampled(random(), 1));
    for (int i = 0; i < summed; ++i) {  // the last rows: others lie before them
      CandidateQuery& query = queries[queries.size() - 1 - static_cast<size_t>(i)];
      query.sums = i % 2 == 1;
      query.raw_sums = true;
      query.raw_count = 3 * i;
    }
    ExpectEqual(matrix, x, queries, fmt::format("{} of 7 rows want sums", summed));
  }
}

// A row that had better not be searched with the others costs another reading of the head.
TEST_F(CpuHead, ABatchReadsTheHeadOnce) {
  Random random(13);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 1000, 64, 0.05f, random);
  const auto device = *MakeCpuDevice({.threads = 2});
  const auto head = *device->LoadMatrix(Searched(matrix), nullptr);
  const auto passes = [&](int batch, int count) {
    const std::vector<CandidateQuery> queries(static_cast<size_t>(batch), Top(count, 1));
    const std::vector<float> x = MakeActivations(batch, 64, random);
    const HeadReads reads = Search(*device, Searched(matrix), x, queries).reads;
    return reads.bytes / static_cast<double>(head->packed_bytes());
  };
  EXPECT_EQ(passes(5, 1), 1);
  EXPECT_EQ(passes(64, 1), 1);
  EXPECT_EQ(passes(65, 1), 2);
  EXPECT_EQ(passes(64, 999), 4);  // at most sixteen thousand candidates at once
}

// The types that cannot be split, or need not be, are searched whole.
TEST_F(CpuHead, SearchesEveryType) {
  Random random(9);
  for (const TensorType type : AllTensorTypes()) {
    const TestMatrix matrix = MakeMatrix(type, 100, 512, 0.05f, random);
    const std::vector<float> x = MakeActivations(2, 512, random);
    const std::vector<CandidateQuery> queries = {Greedy(), Sampled(1, 1)};
    ExpectEqual(matrix, x, queries, std::string(FormatOf(type).name));
  }
}

}  // namespace
}  // namespace facet
