// Sampling through a real group against the definition applied to whole rows of logits.

#include "shard_worker/runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <thread>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/canonical_math.h"
#include "kernels/collectives/local.h"
#include "kernels/reference/reference_device.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr int kVocabulary = 1000;

std::vector<float> SomeLogits(uint64_t seed, float spread) {
  std::vector<float> logits(kVocabulary);
  for (int i = 0; i < kVocabulary; ++i) {
    logits[i] = spread * (static_cast<float>(Mix64(seed, i) >> 40) * 0x1p-24f - 0.5f);
  }
  logits[17] = logits[900];  // a tie
  return logits;
}

// Runs one row through `world` samplers whose slices partition the vocabulary.
std::vector<SampleOutcome> Sample(const std::vector<float>& logits, const SequenceStart& start,
                                  int world, std::optional<TokenId> score = std::nullopt) {
  constexpr int kSlices = 16;
  const auto slice_start = [](int slice) { return int64_t{slice} * kVocabulary / kSlices; };
  auto communicators = MakeLocalGroup(world);
  std::vector<SampleOutcome> outcomes(world);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([&, rank] {
      VocabularySlices slices;
      const int first = rank * kSlices / world, last = (rank + 1) * kSlices / world;
      slices.first_id = static_cast<int32_t>(slice_start(first));
      for (int slice = first; slice <= last; ++slice) {
        slices.starts.push_back(slice_start(slice) - slice_start(first));
      }
      std::unique_ptr<Device> device = MakeReferenceDevice();
      const Floats row = *device->AllocateFloats(slices.starts.back());
      device->CopyIn(std::span(logits).subspan(slices.first_id, slices.starts.back()), row);
      Sampler sampler(device.get(), slices, kVocabulary);
      const SequenceState state(start, 64);
      const SampleRow sample{&state, 41, true, score};
      std::vector<SampleOutcome> outcome;
      const absl::Status ran =
          sampler.Run(row, std::span(&sample, 1), communicators[rank].get(), &outcome);
      ASSERT_TRUE(ran.ok()) << ran;
      outcomes[rank] = outcome.front();
      const SamplingParams& p = start.sampling;
      const bool asks_again = p.temperature != 0 && p.top_k <= 0 && (p.top_p < 1 || p.min_p > 0);
      EXPECT_EQ(Sampler::NeedsLogits(sample), score.has_value() || asks_again);
      if (Sampler::NeedsLogits(sample)) return;
      const auto ask = [&](std::span<const CandidateQuery> queries,
                           std::span<CandidateReply> replies) {
        device->FindCandidates(row, slices, queries[0], &replies[0]);
      };
      const absl::Status searched =
          sampler.Search(ask, std::span(&sample, 1), communicators[rank].get(), &outcome);
      ASSERT_TRUE(searched.ok()) << searched;
      EXPECT_EQ(outcome.front().finite, outcomes[rank].finite);
      EXPECT_EQ(outcome.front().sampled, outcomes[rank].sampled);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  return outcomes;
}

// The definition, on the whole row: edit, scale, sort, filter, draw.
TokenId Naive(std::vector<float> logits, const SequenceStart& start) {
  const SamplingParams& p = start.sampling;
  for (const auto& [id, bias] : p.logit_bias) logits[id] += bias;
  std::vector<int> all(kVocabulary), output(kVocabulary);
  for (size_t i = 0; i < start.history.size(); ++i) {
    ++all[start.history[i]];
    if (static_cast<int>(i) >= start.prompt_length) ++output[start.history[i]];
  }
  for (int id = 0; id < kVocabulary; ++id) {
    if (all[id] > 0 && p.repetition_penalty != 1) {
      logits[id] =
          logits[id] > 0 ? logits[id] / p.repetition_penalty : logits[id] * p.repetition_penalty;
    }
    if (output[id] > 0) {
      logits[id] -= p.presence_penalty + p.frequency_penalty * static_cast<float>(output[id]);
    }
  }
  std::vector<int> order(kVocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  if (p.temperature == 0) return order[0];
  const float inverse = 1 / p.temperature;
  for (float& logit : logits) logit *= inverse;
  if (p.top_k > 0) order.resize(p.top_k);
  std::vector<double> weights;
  double total = 0;
  for (const int id : order) {
    weights.push_back(std::exp(double{logits[id]} - logits[order[0]]));
    total += weights.back();
  }
  size_t keep = 0;
  for (double mass = 0; keep < order.size(); ++keep) {
    if (p.top_p < 1 && keep > 0 && mass >= double{p.top_p} * total) break;
    if (p.min_p > 0 && weights[keep] < p.min_p) break;
    mass += weights[keep];
  }
  const uint64_t key = PositionKey(start.seed, 42);
  TokenId best = -1;
  float best_order = 0;
  for (size_t i = 0; i < keep; ++i) {
    const float noisy = logits[order[i]] + GumbelNoise(key, static_cast<uint32_t>(order[i]));
    if (best < 0 || noisy > best_order) {
      best = order[i];
      best_order = noisy;
    }
  }
  return best;
}

void ExpectNaive(const SequenceStart& start, float spread) {
  const std::vector<float> logits = SomeLogits(start.seed, spread);
  const TokenId expected = Naive(logits, start);
  for (const int world : {1, 2, 3, 5}) {
    for (const SampleOutcome& outcome : Sample(logits, start, world)) {
      ASSERT_TRUE(outcome.sampled.has_value());
      EXPECT_EQ(outcome.sampled->id, expected) << "world " << world << " seed " << start.seed;
    }
  }
}

SequenceStart Start(uint64_t seed) {
  SequenceStart start;
  start.seed = seed;
  return start;
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  std::vector<float> logits(kVocabulary, -1);
  logits[700] = logits[31] = 2;
  SequenceStart start = Start(1);
  start.sampling.temperature = 0;
  for (const int world : {1, 4}) EXPECT_EQ(Sample(logits, start, world)[0].sampled->id, 31);
}

TEST(Sampler, EveryFilterMatchesItsDefinition) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SequenceStart start = Start(seed);
    ExpectNaive(start, 20);  // plain
    start.sampling.temperature = 0.7f;
    start.sampling.top_k = 40;
    ExpectNaive(start, 20);
    start.sampling.top_p = 0.9f;
    ExpectNaive(start, 20);
    start.sampling.top_k = 0;
    ExpectNaive(start, 20);
    start.sampling.min_p = 0.05f;
    ExpectNaive(start, 20);
    start.sampling.top_p = 1;
    ExpectNaive(start, 20);
  }
}

// The nucleus is larger than the first candidates asked for.
TEST(Sampler, FlatDistributionsAskAgain) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SequenceStart start = Start(seed);
    start.sampling.top_p = 0.95f;
    ExpectNaive(start, 0.5f);
    start.sampling.top_p = 1;
    start.sampling.min_p = 0.001f;
    ExpectNaive(start, 0.5f);
  }
}

TEST(Sampler, BiasAndPenaltiesMatchTheirDefinition) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SequenceStart start = Start(seed);
    start.sampling.repetition_penalty = 1.7f;
    start.sampling.presence_penalty = 0.5f;
    start.sampling.frequency_penalty = 0.25f;
    start.sampling.logit_bias = {{3, 4.0f}, {450, -INFINITY}, {999, 6.0f}};
    for (int i = 0; i < 300; ++i) {
      start.history.push_back(static_cast<TokenId>(Mix64(seed + 5, i) % kVocabulary));
    }
    start.prompt_length = 200;
    ExpectNaive(start, 10);
    start.sampling.temperature = 0;
    ExpectNaive(start, 10);
  }
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  const std::vector<float> logits = SomeLogits(9, 12);
  SequenceStart start = Start(9);
  start.sampling.temperature = 0;
  start.sampling.logit_bias = {{5, 100.0f}};
  start.logprobs = 4;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  std::vector<int> order(kVocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  const SampleOutcome one = Sample(logits, start, 1, 123)[0];
  EXPECT_EQ(one.sampled->id, 5);
  EXPECT_NEAR(one.sampled->logprob, logits[5] - std::log(sum), 1e-5);
  EXPECT_NEAR(one.scored->logprob, logits[123] - std::log(sum), 1e-5);
  ASSERT_EQ(one.sampled->top.size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(one.sampled->top[i].first, order[i]);
  for (const int world : {2, 3, 5}) {
    for (const SampleOutcome& other : Sample(logits, start, world, 123)) {
      EXPECT_EQ(*other.sampled, *one.sampled);
      EXPECT_EQ(*other.scored, *one.scored);
    }
  }
  for (const int world : {1, 3}) {  // searched, too, as no logit is scored
    for (const SampleOutcome& other : Sample(logits, start, world)) {
      EXPECT_EQ(*other.sampled, *one.sampled);
    }
  }
}

TEST(Sampler, LogitsThatAreNotNumbersAreReported) {
  std::vector<float> logits = SomeLogits(1, 1);
  logits[800] = NAN;
  for (const SampleOutcome& outcome : Sample(logits, Start(1), 3)) {
    EXPECT_FALSE(outcome.finite);
    EXPECT_FALSE(outcome.sampled.has_value());
  }
}

// The frequency of draws follows the softmax: a chi-square test over the ten likeliest tokens.
TEST(Sampler, GumbelDrawsFollowTheSoftmax) {
  std::vector<float> logits(kVocabulary, -30);
  for (int i = 0; i < 10; ++i) logits[i * 7] = 0.3f * static_cast<float>(i);
  double total = 0;
  for (int i = 0; i < 10; ++i) total += std::exp(double{logits[i * 7]});
  constexpr int kDraws = 4000;
  std::map<TokenId, int> counts;
  for (int draw = 0; draw < kDraws; ++draw) {
    ++counts[Sample(logits, Start(1000 + draw), 1)[0].sampled->id];
  }
  double chi_square = 0;
  for (int i = 0; i < 10; ++i) {
    const double expected = kDraws * std::exp(double{logits[i * 7]}) / total;
    chi_square += std::pow(counts[i * 7] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 27.9);  // 9 degrees of freedom: one chance in a thousand
}

}  // namespace
}  // namespace facet::testing
