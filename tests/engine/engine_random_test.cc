// Random workloads on random small engines. Whatever the scheduler does (chunks, shared prefixes,
// preemptions, windows, overlapped steps, speculation, cancels, deadlines), every sequence must
// print what a naive loop over plain tokens prints, every pool must come back whole, everybody must
// finish, and the engine's invariants hold after every event.

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "base/prng.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/fake_executor.h"

namespace facet {
namespace {

class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  int In(int low, int high) {
    return low + static_cast<int>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool OneIn(int n) { return In(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

EngineOptions RandomOptions(Dice* dice) {
  EngineOptions options;
  options.block_tokens = dice->In(1, 5);
  options.window = dice->In(1, 20);
  options.blocks = {dice->In(4, 30), dice->In(2, 30)};
  if (dice->OneIn(4)) options.blocks[dice->In(0, 1)] = 0;
  options.context_tokens = dice->In(8, 60);
  options.vocabulary_size = 400;
  options.step_tokens_max = dice->In(1, 24);
  options.sequences_max = dice->In(1, 8);
  options.prefill_chunk_max = dice->In(1, 16);
  options.mixed_prefill_max = dice->In(1, 16);
  options.steps_max = dice->In(1, 3);
  options.preemptions_max = dice->In(1, 4);
  options.prefix_cache = !dice->OneIn(5);
  if (dice->OneIn(2)) {
    options.speculation.proposals_max = dice->In(1, 8);
    options.speculation.step_rows_max = dice->In(4, 40);
    // In most of them a proposal is worth a row however unlikely it is.
    options.speculation.free_rows = dice->OneIn(3) ? 10 : 1000;
    options.speculation.lookup_entries_max = 1 << dice->In(3, 10);
  }
  return options;
}

// What a request must give if nothing ends it early.
struct Expected {
  std::vector<ScoredToken> output;  // beyond what the request brought
  EngineFinish finish;
  std::vector<ScoredToken> prompt;
  std::string digest;
};

Expected Naive(const EngineRequest& request, const EngineOptions& options, int context_tokens,
               TokenId poison) {
  Expected expected;
  std::vector<TokenId> tokens = request.tokens;
  const auto logits = [&](size_t size) {
    return FakeExecutor::LogitsAfter(std::span(tokens).first(size), options);
  };
  const auto is_stop = [&](TokenId id) {
    return std::count(request.stop_token_ids.begin(), request.stop_token_ids.end(), id) > 0;
  };
  const int logprobs = std::max(0, request.logprobs);
  const bool brought = static_cast<int>(tokens.size()) > request.prompt_length;
  bool ended = brought && is_stop(tokens.back());
  if (ended) expected.finish = EngineFinish::kStopToken;
  while (!ended) {
    const int output = static_cast<int>(tokens.size()) - request.prompt_length;
    if (output >= request.max_tokens || static_cast<int>(tokens.size()) >= context_tokens) {
      expected.finish = EngineFinish::kLength;
      break;
    }
    if (std::count(tokens.begin(), tokens.end(), poison) > 0) {
      expected.finish = EngineFinish::kError;
      break;
    }
    const ScoredToken next = FakeExecutor::Choose(logits(tokens.size()), options, request.seed,
                                                  static_cast<int64_t>(tokens.size()), logprobs);
    tokens.push_back(next.id);
    expected.output.push_back(next);
    if (is_stop(next.id)) {
      expected.finish = EngineFinish::kStopToken;
      break;
    }
  }
  const bool ran = !expected.output.empty() || !brought;
  if (request.prompt_logprobs && ran) {
    for (int i = 1; i < request.prompt_length; ++i) {
      expected.prompt.push_back(
          FakeExecutor::Score(logits(static_cast<size_t>(i)), options, tokens[i], logprobs));
    }
  }
  if (request.logits_digest && ran) {
    const auto size = static_cast<int64_t>(tokens.size());
    const int64_t positions = expected.output.empty() ? size : size - 1;
    expected.digest = FakeExecutor::DigestOf(tokens, positions, options);
  }
  return expected;
}

// One request, when things happen to it, and what came back.
struct Case {
  EngineRequest request;
  int arrival = 0;
  int cancel = -1;  // at this step; -1: never
  Expected expected;
  std::vector<ScoredToken> output;
  std::vector<ScoredToken> prompt;
  std::optional<EngineFinish> finish;
  std::vector<size_t> starts;  // output at each: the first, and after preemptions
};

// What the runs of all seeds have reached, so that a generator gone tame is noticed.
struct Coverage {
  std::map<EngineFinish, int> finishes;
  int64_t preemptions = 0;
  int64_t cached_tokens = 0;
  int64_t evicted = 0;
  int64_t accepted = 0, rejected = 0;
  int overlapped = 0;
  int resumed = 0;
  int cancelled_in_step = 0;
};

class RandomRun {
 public:
  RandomRun(uint64_t seed, Coverage* coverage)
      : dice_(seed),
        options_(RandomOptions(&dice_)),
        engine_(options_),
        executor_(options_, kPoison),
        coverage_(coverage) {
    const int cases = dice_.In(1, kCasesMax);
    for (int i = 0; i < cases; ++i) cases_.push_back(RandomCase(i));
  }

  void Run() {
    // Generous: a step of one token for every token, each recomputed for every other sequence.
    const int steps_max = 60 * 60 * 13;
    int step = 0;
    while (!Done()) {
      ASSERT_LT(++step, steps_max) << "somebody starves";
      ASSERT_NO_FATAL_FAILURE(Step(step));
    }
    const EngineStats stats = engine_.stats();
    EXPECT_EQ(stats.running + stats.waiting, 0);
    EXPECT_EQ(stats.blocks_used[0], 0);
    EXPECT_EQ(stats.blocks_used[1], 0);
    EXPECT_EQ(engine_.NextDeadline(), std::nullopt);
    coverage_->preemptions += stats.preemptions;
    coverage_->cached_tokens += stats.cached_tokens;
    coverage_->accepted += stats.accepted_tokens;
    coverage_->rejected += stats.proposed_tokens - stats.accepted_tokens;
    for (const Case& c : cases_) CheckCase(c);
  }

 private:
  static constexpr TokenId kPoison = 399;
  static constexpr int kCasesMax = 20;

  Case RandomCase(int index) {
    Case c;
    EngineRequest& request = c.request;
    request.id = SequenceId{static_cast<uint64_t>(index)};
    const int context = engine_.context_tokens();
    request.max_tokens = dice_.OneIn(8) ? 0 : dice_.In(1, 30);
    const int prompt_max = request.max_tokens > 0 ? context - 1 : context;
    const int prompt_wish = dice_.OneIn(2) ? 60 : 3;  // short ones run together, and grow
    request.prompt_length =
        dice_.OneIn(8) ? prompt_max : std::min(prompt_max, dice_.In(1, prompt_wish));
    // Prompts begin alike, and part somewhere.
    const int shared =
        dice_.OneIn(4) ? 0 : dice_.In(request.prompt_length / 2, request.prompt_length);
    const uint64_t family = static_cast<uint64_t>(dice_.In(0, 1));
    for (int i = 0; i < request.prompt_length; ++i) {
      request.tokens.push_back(i < shared ? static_cast<TokenId>(Mix64(family, i) % 399)
                                          : dice_.In(0, 398));
    }
    request.cache_salt = dice_.OneIn(4) ? 1 : 0;
    if (dice_.OneIn(20)) request.tokens[dice_.In(0, request.prompt_length - 1)] = kPoison;
    request.seed = static_cast<uint64_t>(dice_.In(0, 1000) * kCasesMax + index);
    request.logprobs = dice_.In(-1, 2);
    request.prompt_logprobs = dice_.OneIn(6);
    request.logits_digest = dice_.OneIn(6);
    if (dice_.OneIn(3)) request.sampling.frequency_penalty = 1;
    for (int i = dice_.OneIn(2) ? 20 : 0; i > 0; --i) {
      request.stop_token_ids.push_back(dice_.In(0, 398));
    }
    if (dice_.OneIn(5)) request.deadline = dice_.In(0, 120);
    if (dice_.OneIn(5)) c.cancel = dice_.In(1, 60);
    c.arrival = dice_.OneIn(2) ? 1 : dice_.In(1, 30);
    if (dice_.OneIn(4)) Resume(&request);
    c.expected = Naive(request, options_, context, kPoison);
    return c;
  }

  // As after a failover: the request brings some or all of its own output along.
  void Resume(EngineRequest* request) {
    const Expected whole = Naive(*request, options_, engine_.context_tokens(), kPoison);
    if (whole.output.empty()) return;
    const int count = dice_.In(1, static_cast<int>(whole.output.size()));
    for (int i = 0; i < count; ++i) request->tokens.push_back(whole.output[i].id);
    ++coverage_->resumed;
  }

  bool Done() const {
    return std::all_of(cases_.begin(), cases_.end(), [](const Case& c) { return c.finish; });
  }

  void Step(int step) {
    for (Case& c : cases_) {
      if (c.cancel == step) engine_.Cancel(c.request.id, step);
      if (c.arrival != step) continue;
      ASSERT_TRUE(engine_.Submit(c.request, step).ok());
      ASSERT_NO_FATAL_FAILURE(Look());
    }
    bool planned = false;
    if (engine_.outstanding() < options_.steps_max) {
      std::optional<StepPlan> plan = engine_.Plan(step);
      planned = plan.has_value();
      ASSERT_NO_FATAL_FAILURE(Look());
      if (planned) {
        ASSERT_NO_FATAL_FAILURE(CheckPlan(*plan));
        coverage_->overlapped += !plans_.empty();
        plans_.push_back(std::move(*plan));
      } else if (plans_.empty()) {
        const EngineStats stats = engine_.stats();
        ASSERT_EQ(stats.running + stats.waiting, 0) << "nobody can move";
        if (dice_.OneIn(2)) {
          ASSERT_TRUE(executor_.Run(engine_.PlanIdle()).ok());
        }
      }
    }
    if (step < 100 && dice_.OneIn(40)) CancelDuringStep(step);
    if (plans_.empty() || (planned && dice_.OneIn(2))) return;
    const absl::StatusOr<StepResult> result = executor_.Run(plans_.front());
    ASSERT_TRUE(result.ok());
    plans_.pop_front();
    engine_.Complete(*result, step);
    ASSERT_NO_FATAL_FAILURE(Look());
  }

  void CancelDuringStep(int step) {
    Case& c = cases_[static_cast<size_t>(dice_.In(0, static_cast<int>(cases_.size()) - 1))];
    if (c.finish || c.arrival > step) return;
    c.cancel = step;
    coverage_->cancelled_in_step += engine_.outstanding() > 0;
    engine_.Cancel(c.request.id, step);
    Look();
  }

  void Look() {
    const absl::Status status = engine_.Check();
    ASSERT_TRUE(status.ok()) << status;
    TakeDeltas();
    const CacheNews news = engine_.TakeCacheNews();
    for (const uint64_t link : news.stored) ASSERT_TRUE(links_.insert(link).second);
    for (const uint64_t link : news.evicted) ASSERT_EQ(links_.erase(link), 1u);
    coverage_->evicted += static_cast<int64_t>(news.evicted.size());
    const std::vector<uint64_t> links = engine_.CachedLinks();
    ASSERT_EQ(std::set<uint64_t>(links.begin(), links.end()), links_);
  }

  void CheckPlan(const StepPlan& plan) {
    int tokens = 0, proposals = 0;
    std::set<SlotId> slots;
    std::map<std::pair<int, int32_t>, int> users;
    for (const Segment& segment : plan.segments) {
      ASSERT_TRUE(slots.insert(segment.slot).second) << "two segments of one slot";
      const int known = static_cast<int>(segment.tokens.size()) - segment.proposals;
      ASSERT_GE(known, 1);
      ASSERT_LE(known, options_.prefill_chunk_max);
      ASSERT_LE(segment.proposals, options_.speculation.proposals_max);
      tokens += known + segment.proposals;
      proposals += segment.proposals;
      for (int pool = 0; pool < kBlockPools; ++pool) {
        for (int32_t id : segment.blocks[pool]) ++users[{pool, id}];
      }
    }
    for (const Segment& segment : plan.segments) {
      const auto first = static_cast<size_t>(segment.first_position / options_.block_tokens);
      for (int pool = 0; pool < kBlockPools; ++pool) {
        for (size_t i = first; i < segment.blocks[pool].size(); ++i) {
          ASSERT_EQ((users[{pool, segment.blocks[pool][i]}]), 1) << "a written block of two";
        }
      }
    }
    for (const SequenceStart& start : plan.starts) {
      Case& c = cases_[start.seed % kCasesMax];
      c.starts.push_back(c.output.size());
      ASSERT_LE(static_cast<int>(c.starts.size()), 1 + options_.preemptions_max);
      const size_t count = c.starts.size();
      ASSERT_TRUE(count <= 2 || c.starts[count - 1] > c.starts[count - 2]) << "no progress";
    }
    ASSERT_GT(tokens, 0);
    ASSERT_LE(tokens, options_.step_tokens_max);
    if (proposals > 0) {
      ASSERT_LE(tokens, options_.speculation.step_rows_max);
    }
    ASSERT_LE(engine_.stats().running, options_.sequences_max);
  }

  void TakeDeltas() {
    for (EngineDelta& delta : engine_.TakeDeltas()) {
      Case& c = cases_.at(delta.id.value);
      ASSERT_FALSE(c.finish) << "news after the end";
      const int brought = static_cast<int>(c.request.tokens.size()) - c.request.prompt_length;
      ASSERT_EQ(delta.offset, brought + static_cast<int>(c.output.size()));
      if (!delta.prompt.empty()) {
        ASSERT_EQ(delta.prompt_offset, 1 + static_cast<int>(c.prompt.size()));
      }
      c.output.insert(c.output.end(), delta.tokens.begin(), delta.tokens.end());
      c.prompt.insert(c.prompt.end(), delta.prompt.begin(), delta.prompt.end());
      c.finish = delta.finish;
      const bool natural =
          delta.finish == EngineFinish::kStopToken || delta.finish == EngineFinish::kLength;
      if (natural && c.request.logits_digest && !c.expected.digest.empty()) {
        ASSERT_EQ(delta.logits_sha256, c.expected.digest);
      }
    }
  }

  void CheckCase(const Case& c) {
    ++coverage_->finishes[*c.finish];
    const Expected& expected = c.expected;
    if (c.finish == EngineFinish::kCancelled || c.finish == EngineFinish::kDeadline) {
      EXPECT_TRUE(c.finish == EngineFinish::kDeadline ? c.request.deadline.has_value()
                                                      : c.cancel >= 0);
      ASSERT_LE(c.output.size(), expected.output.size());
      EXPECT_TRUE(std::equal(c.output.begin(), c.output.end(), expected.output.begin()));
      return;
    }
    EXPECT_EQ(c.output, expected.output) << "sequence " << c.request.id.value;
    if (*c.finish == EngineFinish::kError) {  // the poison may lie before the last chunk
      EXPECT_EQ(std::count(c.request.tokens.begin(), c.request.tokens.end(), kPoison) +
                        std::count_if(c.output.begin(), c.output.end(),
                                      [](const ScoredToken& t) { return t.id == kPoison; }) >
                    0,
                true);
      return;
    }
    EXPECT_EQ(*c.finish, expected.finish) << "sequence " << c.request.id.value;
    EXPECT_EQ(c.prompt, expected.prompt) << "sequence " << c.request.id.value;
  }

  Dice dice_;
  const EngineOptions options_;
  Engine engine_;
  FakeExecutor executor_;
  Coverage* const coverage_;
  std::vector<Case> cases_;
  std::deque<StepPlan> plans_;  // outstanding
  std::set<uint64_t> links_;    // as the cache news tell
};

TEST(EngineRandom, EverySequencePrintsWhatItPrintsAlone) {
  Coverage coverage;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomRun(seed, &coverage).Run();
    if (HasFailure()) return;
  }
  EXPECT_EQ(coverage.finishes.size(), 5u);
  EXPECT_GT(coverage.preemptions, 500);
  EXPECT_GT(coverage.cached_tokens, 5000);
  EXPECT_GT(coverage.evicted, 5000);
  EXPECT_GT(coverage.accepted, 1000);
  EXPECT_GT(coverage.rejected, 1000);
  EXPECT_GT(coverage.overlapped, 5000);
  EXPECT_GT(coverage.resumed, 1000);
  EXPECT_GT(coverage.cancelled_in_step, 100);
}

}  // namespace
}  // namespace facet
