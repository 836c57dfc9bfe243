#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/canonical_math.h"
#include "kernels/reference/reference_device.h"
#include "tests/kernels/test_data.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

CandidateReply Ask(const std::vector<float>& logits, const VocabularySlices& slices,
                   const CandidateQuery& query) {
  const auto device = MakeReferenceDevice();
  const Floats row = Upload(*device, logits);
  CandidateReply reply;
  device->FindCandidates(row, slices, query, &reply);
  EXPECT_EQ(Download(*device, row), logits);
  return reply;
}

std::vector<int32_t> Ids(const std::vector<Candidate>& candidates) {
  std::vector<int32_t> ids;
  for (const Candidate& candidate : candidates) ids.push_back(candidate.id);
  return ids;
}

TEST(ReferenceCandidates, AreOrderedByLogitThenById) {
  CandidateQuery query;
  query.count = 4;
  const CandidateReply reply = Ask({1, 3, -2, 3, 0}, {100, {0, 5}}, query);
  EXPECT_TRUE(reply.finite);
  EXPECT_EQ(Ids(reply.best), (std::vector<int32_t>{101, 103, 100, 104}));
  EXPECT_EQ(reply.best[0].order, 3);
  EXPECT_TRUE(reply.raw_best.empty() && reply.sums.empty() && reply.raw_sums.empty());
}

TEST(ReferenceCandidates, EditsApplyInTheirOrder) {
  // bias, then repetition (which divides positive and multiplies negative logits), then subtract,
  // then temperature.
  const LogitEdit edits[] = {{0, 2, 2, 0.5f}, {1, 0, 2, 0}, {2, -5, 4, 1}, {3, -kInfinity, 1, 0}};
  CandidateQuery query;
  query.edits = edits;
  query.inverse_temperature = 0.5f;
  query.count = 9;
  query.raw_count = 2;
  query.sums = true;
  query.raw_sums = true;
  const CandidateReply reply = Ask({1, -3, 4, 9, 0.5f}, {0, {0, 2, 5}}, query);
  ASSERT_TRUE(reply.finite);
  EXPECT_EQ(Ids(reply.best), (std::vector<int32_t>{0, 4, 2, 1, 3}));
  EXPECT_EQ(reply.best[0].processed, ((1 + 2) / 2.0f - 0.5f) * 0.5f);
  EXPECT_EQ(reply.best[1].processed, 0.25f);
  EXPECT_EQ(reply.best[2].processed, ((4 - 5) * 4.0f - 1) * 0.5f);
  EXPECT_EQ(reply.best[3].processed, -3.0f);
  EXPECT_EQ(reply.best[4].processed, -kInfinity);
  EXPECT_EQ(reply.best[4].raw, 9);
  EXPECT_EQ(Ids(reply.raw_best), (std::vector<int32_t>{3, 2}));
  EXPECT_EQ(reply.raw_best[0].order, 9);
  ASSERT_EQ(reply.sums.size(), 2u);
  EXPECT_EQ(reply.sums[0].max, 0.5f);
  EXPECT_FLOAT_EQ(reply.sums[0].sum, 1 + std::exp(-3.5f));
  EXPECT_FLOAT_EQ(reply.raw_sums[1].sum, 1 + std::exp(-5.0f) + std::exp(-8.5f));
}

TEST(ReferenceCandidates, GumbelOrdersByNoisyLogits) {
  Random random(1);
  const std::vector<float> logits = MakeFloats(500, 2, random);
  CandidateQuery query;
  query.gumbel = true;
  query.key = 77;
  query.count = 500;
  const CandidateReply reply = Ask(logits, {40, {0, 500}}, query);
  ASSERT_EQ(reply.best.size(), 500u);
  for (size_t i = 0; i < 500; ++i) {
    const Candidate& candidate = reply.best[i];
    EXPECT_EQ(candidate.order, candidate.raw + GumbelNoise(77, candidate.id));
    EXPECT_EQ(candidate.raw, logits[candidate.id - 40]);
    if (i > 0) {
      EXPECT_GE(reply.best[i - 1].order, candidate.order);
    }
  }
}

TEST(ReferenceCandidates, GumbelDrawsWithTheSoftmaxProbabilities) {
  const std::vector<float> logits = {0, 1, 2, -1};
  const auto device = MakeReferenceDevice();
  const Floats row = Upload(*device, logits);
  double total = 0;
  for (const float logit : logits) total += std::exp(logit);
  std::vector<int> drawn(4);
  constexpr int kDraws = 100'000;
  for (int i = 0; i < kDraws; ++i) {
    CandidateQuery query;
    query.gumbel = true;
    query.key = PositionKey(5, i);
    CandidateReply reply;
    device->FindCandidates(row, {0, {0, 4}}, query, &reply);
    ++drawn[reply.best[0].id];
  }
  for (int id = 0; id < 4; ++id) {
    const double p = std::exp(logits[id]) / total;
    EXPECT_NEAR(drawn[id] / static_cast<double>(kDraws), p, 5 * std::sqrt(p * (1 - p) / kDraws));
  }
}

TEST(ReferenceCandidates, BannedSlicesSumToNothing) {
  CandidateQuery query;
  query.sums = true;
  const CandidateReply reply = Ask({-kInfinity, -kInfinity, 1}, {0, {0, 2, 3}}, query);
  EXPECT_TRUE(reply.finite);
  EXPECT_EQ(reply.sums[0].max, -kInfinity);
  EXPECT_EQ(reply.sums[0].sum, 0);
  EXPECT_EQ(reply.sums[1].sum, 1);
}

TEST(ReferenceCandidates, RefuseWhatIsNotANumber) {
  CandidateQuery query;
  query.sums = true;
  EXPECT_FALSE(Ask({1, kInfinity, 2}, {0, {0, 3}}, query).finite);
  query.inverse_temperature = 1e38f;
  EXPECT_FALSE(Ask({1, 100, 2}, {0, {0, 3}}, query).finite);
  const auto device = MakeReferenceDevice();
  const std::vector<float> logits = {1, std::nanf(""), 2};
  CandidateReply reply;
  device->FindCandidates(Upload(*device, logits), {0, {0, 3}}, CandidateQuery(), &reply);
  EXPECT_FALSE(reply.finite);
  EXPECT_TRUE(reply.best.empty());
}

}  // namespace
}  // namespace facet
