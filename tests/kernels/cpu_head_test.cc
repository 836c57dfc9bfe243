// Searching the output layer finds what the whole product finds, bit for bit, whatever it leaves
// unread.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include <fmt/format.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/reference/reference_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kBlockBytes = 34;  // of Q8_0: a half-precision scale, 32 weights

MatrixSource Searched(const TestMatrix& matrix) {
  MatrixSource source = matrix.source();
  source.searched = true;
  return source;
}

VocabularySlices Slices(int64_t rows) { return {1000, {0, rows / 3, rows / 3, rows / 2, rows}}; }

struct Answer {
  std::vector<CandidateReply> replies;
  HeadReads reads;
};

Answer Search(Device& device, const MatrixSource& source, const std::vector<float>& x,
              std::span<const CandidateQuery> queries, float soft_cap = 0,
              std::function<void(std::span<float>)> agree = nullptr) {
  const auto head = *device.LoadMatrix(source, nullptr);
  const auto rows = static_cast<int64_t>(queries.size());
  const VocabularySlices slices = Slices(source.rows);
  HeadSearch search;
  search.head = head.get();
  search.x = Upload(device, x);
  search.soft_cap = soft_cap;
  search.slices = &slices;
  search.queries = queries;
  search.scratch = *device.AllocateFloats(rows * source.rows);
  search.agree = std::move(agree);
  Answer answer;
  answer.replies.resize(queries.size());
  const HeadReads before = device.head_reads();
  device.SearchHead(search, answer.replies);
  const HeadReads after = device.head_reads();
  answer.reads = {after.rows - before.rows, after.screened - before.screened,
                  after.completed - before.completed, after.bytes - before.bytes};
  return answer;
}

void ExpectSameCandidates(const std::vector<Candidate>& got, const std::vector<Candidate>& expected,
                          const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].id, expected[i].id) << where << " " << i;
    ASSERT_EQ(got[i].order, expected[i].order) << where << " " << i;
    ASSERT_EQ(got[i].processed, expected[i].processed) << where << " " << i;
    ASSERT_EQ(got[i].raw, expected[i].raw) << where << " " << i;
  }
}

void ExpectSameSums(const std::vector<SliceSum>& got, const std::vector<SliceSum>& expected,
                    const std::string& where) {
  ASSERT_EQ(got.size(), expected.size()) << where;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].max, expected[i].max) << where << " " << i;
    ASSERT_EQ(got[i].sum, expected[i].sum) << where << " " << i;
  }
}

void ExpectSame(const CandidateReply& got, const CandidateReply& expected,
                const std::string& where) {
  ASSERT_EQ(got.finite, expected.finite) << where;
  ASSERT_NO_FATAL_FAILURE(ExpectSameCandidates(got.best, expected.best, where));
  ASSERT_NO_FATAL_FAILURE(ExpectSameCandidates(got.raw_best, expected.raw_best, where));
  ASSERT_NO_FATAL_FAILURE(ExpectSameSums(got.sums, expected.sums, where));
  ASSERT_NO_FATAL_FAILURE(ExpectSameSums(got.raw_sums, expected.raw_sums, where));
}

class CpuHead : public testing::Test {
 protected:
  // What all devices read together. They are new: none has learned that screening does not pay.
  HeadReads ExpectEqual(const TestMatrix& matrix, const std::vector<float>& x,
                        std::span<const CandidateQuery> queries, const std::string& what,
                        float soft_cap = 0) {
    const auto reference = MakeReferenceDevice();
    const Answer expected = Search(*reference, Searched(matrix), x, queries, soft_cap);
    HeadReads reads;
    for (const NamedDevice& named : TestedDevices({1, 3})) {
      const Answer answer = Search(*named.device, Searched(matrix), x, queries, soft_cap);
      for (size_t i = 0; i < queries.size(); ++i) {
        ExpectSame(answer.replies[i], expected.replies[i],
                   fmt::format("{}, {}, row {}", named.name, what, i));
      }
      reads.rows += answer.reads.rows;
      reads.screened += answer.reads.screened;
      reads.completed += answer.reads.completed;
    }
    return reads;
  }
};

CandidateQuery Greedy() { return {}; }

CandidateQuery Sampled(uint64_t key, float temperature) {
  CandidateQuery query;
  query.gumbel = true;
  query.key = key;
  query.inverse_temperature = 1 / temperature;
  return query;
}

CandidateQuery Top(int count, float temperature) {
  CandidateQuery query;
  query.count = count;
  query.inverse_temperature = 1 / temperature;
  return query;
}

std::vector<LogitEdit> MakeEdits(int64_t rows, Random& random) {
  std::vector<LogitEdit> edits;
  for (int32_t row = 0; row < rows; row += 1 + static_cast<int32_t>(random() % 97)) {
    LogitEdit edit{row, 0, 1, 0};
    if (random() % 2 == 0) edit.bias = random() % 5 == 0 ? -kInfinity : random() % 2 == 0 ? -4 : 3;
    if (random() % 2 == 0) edit.repetition = random() % 2 == 0 ? 1.3f : 0.8f;
    if (random() % 2 == 0) edit.subtract = 0.7f;
    edits.push_back(edit);
  }
  return edits;
}

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

TEST_F(CpuHead, LeavesMostRowsUnread) {
  Random random(2);
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ6_K}) {
    const TestMatrix matrix = MakeMatrix(type, 20000, 512, 0.05f, random);
    const std::vector<float> x = MakeActivations(1, 512, random);
    for (const CandidateQuery& query : {Greedy(), Sampled(5, 1), Top(10, 1)}) {
      const HeadReads reads = ExpectEqual(matrix, x, std::span(&query, 1), "large");
      EXPECT_EQ(reads.screened, reads.rows) << FormatOf(type).name;
      EXPECT_GT(reads.completed, 0);
      EXPECT_LT(reads.completed, reads.rows / 2) << FormatOf(type).name << " " << query.count;
    }
  }
}

// A matrix of Q8_0 with one scale and the weights weight(row, column).
template <typename Weight>
TestMatrix MakeHead(int64_t rows, int64_t columns, const Weight& weight) {
  TestMatrix matrix{"output.weight", TensorType::kQ8_0, rows, columns, {}, {}};
  matrix.bytes.resize(static_cast<size_t>(rows * columns / 32 * kBlockBytes));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < columns; ++k) {
      std::byte* block = &matrix.bytes[static_cast<size_t>((row * columns + k) / 32 * kBlockBytes)];
      const uint16_t scale = 0x2000;  // 2^-7
      std::memcpy(block, &scale, 2);
      block[2 + k % 32] = static_cast<std::byte>(weight(row, k));
    }
  }
  return matrix;
}

std::vector<CandidateQuery> EveryQuestion(Random& random) {
  return {Greedy(), Sampled(random(), 1), Sampled(random(), 2), Top(2, 1), Top(15, 2)};
}

TEST_F(CpuHead, TellsRowsApartThatDifferInTheLowBitsOnly) {
  Random random(3);
  std::vector<float> x = MakeFloats(64, 1, random);
  // All rows share their high bits: nothing can be left unread. Or only some of them do.
  for (const int shared : {2000, 50}) {
    const TestMatrix matrix = MakeHead(2000, 64, [&](int64_t row, int64_t k) {
      const bool same = row >= 900 && row < 900 + shared;
      const int high =
          shared == 2000 || same ? (x[k] > 0 ? 96 : -96) : 16 * (int(random() % 8) - 4);
      return high + static_cast<int>(random() % 16);
    });
    // Negative biases, bans and penalties, also of those that are told apart by their low bits.
    std::vector<LogitEdit> edits = MakeEdits(2000, random);
    std::erase_if(edits, [](const LogitEdit& edit) { return edit.row >= 900 && edit.row < 950; });
    const auto at = std::find_if(edits.begin(), edits.end(),
                                 [](const LogitEdit& edit) { return edit.row >= 950; });
    std::vector<LogitEdit> among;
    for (int32_t row = 900; row < 950; row += 3) {
      among.push_back({row, row % 2 == 0 ? -0.25f : 0, row % 4 < 2 ? 1.1f : 1, 0.125f});
    }
    edits.insert(at, among.begin(), among.end());
    for (CandidateQuery query : EveryQuestion(random)) {
      ExpectEqual(matrix, x, std::span(&query, 1), fmt::format("{} share high bits", shared));
      query.edits = edits;
      ExpectEqual(matrix, x, std::span(&query, 1),
                  fmt::format("{} share high bits, with edits", shared));
    }
  }
}

// The residual of one row points along the activations, those of its rivals against them: the
// bound is nearly reached, and what the high bits say is the wrong way round. A tenth of the
// columns, to which all rows have the same weights, draws the attention of the first pass.
TEST_F(CpuHead, FindsAWinnerThatOnlyTheLowBitsMake) {
  constexpr int kDrawing = 128;
  constexpr int kColumns = 1280;
  Random random(4);
  std::vector<float> x(kColumns);
  for (int k = 0; k < kColumns; ++k) x[k] = (k % 2 == 0 ? 1.0f : -1.0f) * (k < kDrawing ? 3 : 1);
  // The winner's logit is 1152 x 15.5, a rival's 576 + 16 lead.
  for (const int lead : {1079, 1078, 1070, 1000, 500, 0}) {
    const int64_t winner = static_cast<int64_t>(random() % 1500);
    const TestMatrix matrix = MakeHead(1500, kColumns, [&](int64_t row, int64_t k) {
      if (k < kDrawing) return 8;
      const int sign = k % 2 == 0 ? 1 : -1;
      if (row == winner) return sign > 0 ? 15 : -16;  // taken for 8 and -8
      const int ahead = k - kDrawing < lead ? 16 : 0;
      if (row % 50 == 1) return sign > 0 ? ahead : -1 - ahead;  // half a step is taken back
      return sign * -40;
    });
    const CandidateQuery query = Greedy();
    const HeadReads reads =
        ExpectEqual(matrix, x, std::span(&query, 1), fmt::format("lead {}", lead));
    EXPECT_LT(reads.completed, reads.screened / 2);
  }
}

TEST_F(CpuHead, TiesGoToTheLowestIds) {
  Random random(5);
  const std::vector<float> x = MakeFloats(96, 1, random);
  const TestMatrix matrix = MakeHead(4000, 96, [&](int64_t row, int64_t k) {
    const int best = x[static_cast<size_t>(k)] > 0 ? 100 : -100;
    return row == 3999 || row == 1777 || row % 1000 == 999 ? best : (row * 31 + k * 7) % 100 - 50;
  });
  for (const int count : {1, 2, 3, 5, 40}) {
    const CandidateQuery query = Top(count, 1);
    ExpectEqual(matrix, x, std::span(&query, 1), std::to_string(count));
  }
}

TEST_F(CpuHead, AnswersForUnusualActivations) {
  Random random(6);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 3000, 320, 0.05f, random);
  const auto expect_equal = [&](const std::string& what, const auto& value) {
    std::vector<float> x(320);
    for (int k = 0; k < 320; ++k) x[static_cast<size_t>(k)] = value(k);
    for (const CandidateQuery& query : EveryQuestion(random)) {
      ASSERT_NO_FATAL_FAILURE(ExpectEqual(matrix, x, std::span(&query, 1), what));
    }
  };
  expect_equal("zeros", [](int) { return 0.0f; });
  expect_equal("all equal", [](int) { return 0.5f; });
  expect_equal("one outlier", [](int k) { return k == 77 ? 1e4f : 1e-3f; });
  expect_equal("one channel", [](int k) { return k == 300 ? -2.0f : 0.0f; });
  expect_equal("tiny", [](int k) { return 1e-30f * static_cast<float>(k % 7 - 3); });
  expect_equal("subnormal", [](int k) { return 1e-41f * static_cast<float>(k % 7 - 3); });
  expect_equal("huge", [](int k) { return 1e34f * static_cast<float>(k % 7 - 3); });
  expect_equal("infinite", [](int k) { return k == 3 ? kInfinity : 1.0f; });
  expect_equal("not a number", [](int k) { return k == 3 ? std::nanf("") : 1.0f; });
}

TEST_F(CpuHead, EditsDecide) {
  Random random(7);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 3000, 128, 0.05f, random);
  const std::vector<float> x = MakeActivations(1, 128, random);
  const auto reference = MakeReferenceDevice();
  const CandidateQuery plain = Top(3, 1);
  const Answer order = Search(*reference, Searched(matrix), x, std::span(&plain, 1));
  const int32_t first = order.replies[0].best[0].id - 1000;
  const int32_t other = first == 5 ? 6 : 5;
  for (const LogitEdit change :
       {LogitEdit{first, -kInfinity, 1, 0}, LogitEdit{first, -3, 1, 0}, LogitEdit{first, 0, 9, 0},
        LogitEdit{first, 0, 1, 2}, LogitEdit{other, 1000, 1, 0}, LogitEdit{other, 0, 0.001f, 0},
        LogitEdit{other, 0, 1, -50}, LogitEdit{first, kInfinity, 1, 0}, LogitEdit{first, 0, 0, 0},
        LogitEdit{other, 0, -1, 0}}) {
    for (CandidateQuery query : EveryQuestion(random)) {
      query.edits = std::span(&change, 1);
      ExpectEqual(matrix, x, std::span(&query, 1),
                  fmt::format("bias {} repetition {} subtract {}", change.bias, change.repetition,
                              change.subtract));
    }
  }
  std::vector<LogitEdit> ban_all;
  for (int32_t row = 0; row < 3000; ++row) ban_all.push_back({row, -kInfinity, 1, 0});
  for (CandidateQuery query : EveryQuestion(random)) {
    query.edits = ban_all;
    ExpectEqual(matrix, x, std::span(&query, 1), "everything banned");
    query.edits = {};
    query.inverse_temperature = 3e38f;
    ExpectEqual(matrix, x, std::span(&query, 1), "a tiny temperature");
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

// Two ranks share a head. What one of them knows spares the other one rows, and the candidates of
// both are those of the whole.
TEST_F(CpuHead, RanksThatAgreeOnFloorsFindTheBestOfAll) {
  Random random(11);
  constexpr int kRows = 4000;
  const TestMatrix whole = MakeMatrix(TensorType::kQ8_0, 2 * kRows, 512, 0.05f, random);
  const auto half = [&](int rank) {
    TestMatrix part = whole;
    part.rows = kRows;
    const auto bytes = static_cast<ptrdiff_t>(whole.bytes.size() / 2);
    part.bytes.assign(whole.bytes.begin() + rank * bytes, whole.bytes.begin() + (rank + 1) * bytes);
    if (rank == 1) {  // smaller logits: this rank's best is far below the other's
      for (size_t block = 0; block < part.bytes.size(); block += kBlockBytes) {
        const uint16_t scale = 0x1000;
        std::memcpy(&part.bytes[block], &scale, 2);
      }
    }
    return part;
  };
  const TestMatrix parts[] = {half(0), half(1)};
  const std::vector<float> x = MakeActivations(1, 512, random);
  int64_t spared = 0;
  for (CandidateQuery query : {Greedy(), Sampled(5, 2), Top(3, 1), Top(40, 1)}) {
    for (const bool sums : {false, true}) {
      query.sums = sums;
      for (int variant = 0; variant < static_cast<int>(TestedDevices({1, 3}).size()); ++variant) {
        float floors[2];
        std::vector<Candidate> alone, together;
        HeadReads reads[2];
        for (int round = 0; round < 2; ++round) {
          for (int rank = 0; rank < 2; ++rank) {
            auto devices = TestedDevices({1, 3});
            int calls = 0;
            const auto agree = [&](std::span<float> mine) {
              ++calls;
              ASSERT_EQ(mine.size(), 1u);
              if (round == 0) floors[rank] = mine[0];
              if (round == 1) mine[0] = std::max(floors[0], floors[1]);
            };
            const Answer answer = Search(*devices[static_cast<size_t>(variant)].device,
                                         Searched(parts[rank]), x, std::span(&query, 1), 0, agree);
            EXPECT_EQ(calls, 1);
            auto& best = round == 0 ? alone : together;
            const auto& found = answer.replies[0].best;
            for (Candidate candidate : found) {
              candidate.id += rank * kRows;
              best.push_back(candidate);
            }
            if (rank == 1) reads[round] = answer.reads;
          }
        }
        for (auto* best : {&alone, &together}) {
          std::sort(best->begin(), best->end(), [](const Candidate& a, const Candidate& b) {
            return a.order != b.order ? a.order > b.order : a.id < b.id;
          });
          ASSERT_GE(static_cast<int>(best->size()), query.count);
          best->resize(static_cast<size_t>(query.count));
        }
        for (size_t i = 0; i < alone.size(); ++i) {
          EXPECT_EQ(together[i].id, alone[i].id);
          EXPECT_EQ(together[i].order, alone[i].order);
          EXPECT_EQ(together[i].raw, alone[i].raw);
        }
        EXPECT_LE(reads[1].completed, reads[0].completed);
        spared += reads[0].completed - reads[1].completed;
      }
    }
  }
  EXPECT_GT(spared, 0);
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

class SplitMatrix : public testing::TestWithParam<TensorType> {};

TEST_P(SplitMatrix, MultipliesEmbedsAndWeighsAsOtherwise) {
  Random random(10);
  const int64_t block = FormatOf(GetParam()).elements;
  std::vector<NamedDevice> devices = TestedDevices({1, 2});
  for (const int64_t rows : {1, 31, 33, 100}) {
    const TestMatrix matrix = MakeMatrix(GetParam(), rows, 512 / block * block, 0.05f, random);
    const std::vector<float> x = MakeActivations(67, matrix.columns, random);
    for (const NamedDevice& named : devices) {
      Device& device = *named.device;
      const auto whole = *device.LoadMatrix(matrix.source(), nullptr);
      const auto split = *device.LoadMatrix(Searched(matrix), nullptr);
      for (const int batch : {1, 2, 5, 6, 7, 13, 67}) {  // 67: panels are unpacked
        const auto product = [&](const Matrix* part) {
          const Floats out = *device.AllocateFloats(batch * rows);
          device.Product(std::span(&part, 1), Upload(device, x), batch, out);
          return Download(device, out);
        };
        ASSERT_EQ(FirstDifference(product(split.get()), product(whole.get())), -1) << named.name;
      }
      const auto embed = [&](const Matrix& table) {
        const std::vector<int32_t> ids = {static_cast<int32_t>(rows - 1), 0};
        const Floats out = *device.AllocateFloats(2 * matrix.columns);
        device.EmbedRows(table, ids, 25.298221f, out);
        return Download(device, out);
      };
      ASSERT_EQ(FirstDifference(embed(*split), embed(*whole)), -1) << named.name;
      EXPECT_LE(static_cast<double>(split->packed_bytes()),
                1.01 * static_cast<double>(whole->packed_bytes()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SplitMatrix, testing::Values(TensorType::kQ8_0, TensorType::kQ6_K),
                         [](const auto& info) { return std::string(FormatOf(info.param).name); });

}  // namespace
}  // namespace facet
