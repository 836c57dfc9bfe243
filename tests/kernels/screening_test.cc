// What the first pass over a split head leaves unread, and that no winner is among it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/head_search.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

using Screening = HeadTest;

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

TEST_F(Screening, LeavesMostRowsUnread) {
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

TEST_F(Screening, TellsRowsApartThatDifferInTheLowBitsOnly) {
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
TEST_F(Screening, FindsAWinnerThatOnlyTheLowBitsMake) {
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

TEST_F(Screening, TiesGoToTheLowestIds) {
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

TEST_F(Screening, AnswersForUnusualActivations) {
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

TEST_F(Screening, EditsDecide) {
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

// Two ranks share a head. What one of them knows spares the other one rows, and the candidates of
// both are those of the whole.
TEST_F(Screening, RanksThatAgreeOnFloorsFindTheBestOfAll) {
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

}  // namespace
}  // namespace facet
