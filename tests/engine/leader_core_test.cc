#include "shard_worker/engine/leader_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "base/status.h"
#include "shard_worker/runtime/fake_executor.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr TimeUs kStepUs = 1000;
constexpr SessionId kA{1}, kB{2};

LeaderCoreOptions SmallOptions() {
  LeaderCoreOptions options;
  options.engine.block_tokens = 16;
  options.engine.blocks = {64, 64};
  options.engine.window = 32;
  options.engine.context_tokens = 512;
  options.engine.vocabulary_size = 500;
  options.engine.step_tokens_max = 32;
  options.engine.prefill_chunk_max = 32;
  options.engine.sequences_max = 4;
  options.engine.waiting_max = 4;
  options.canary.enabled = false;
  options.epoch = 77;
  return options;
}

EngineRequest Request(int prompt, int max_tokens) {
  EngineRequest request;
  for (int i = 0; i < prompt; ++i) request.tokens.push_back((i * 7 + prompt) % 500);
  request.prompt_length = prompt;
  request.max_tokens = max_tokens;
  request.seed = 5;
  return request;
}

// What a session was told of one of its sequences.
struct Answer {
  std::vector<TokenId> tokens;
  std::optional<EngineFinish> finish;
  absl::Status refusal;
};

// A leader: core and fake executor, with a clock of its own. Steps take kStepUs each.
class Leader {
 public:
  explicit Leader(const LeaderCoreOptions& options, std::optional<CanaryAnswer> canary = {},
                  std::optional<TokenId> poison = {})
      : options_(options), core(options, std::move(canary), 0), executor_(options.engine, poison) {}

  // Plans what may be planned and completes one step, if one is outstanding.
  bool Step() {
    Plan();
    if (plans_.empty()) return false;
    now += kStepUs;
    core.Complete(*executor_.Run(plans_.front()), now);
    plans_.pop_front();
    Listen();
    return true;
  }
  void Plan() {
    while (core.outstanding() < options_.engine.steps_max) {
      std::optional<StepPlan> plan = core.Plan(now);
      if (!plan) break;
      segments += static_cast<int>(plan->segments.size());
      plans_.push_back(*std::move(plan));
    }
    Listen();
  }
  void Listen() {
    EXPECT_TRUE(core.Check().ok()) << core.Check();
    for (SessionNews& news : core.TakeNews(now)) {
      ++messages[news.session];
      for (SequenceNews& sequence : news.sequences) {
        Answer& answer = answers[news.session][sequence.number];
        EXPECT_FALSE(answer.finish) << "news after the end";
        if (!sequence.refusal.ok()) {
          answer.refusal = sequence.refusal;
          continue;
        }
        EXPECT_EQ(sequence.delta.offset, static_cast<int>(answer.tokens.size()));
        for (const ScoredToken& token : sequence.delta.tokens) answer.tokens.push_back(token.id);
        answer.finish = sequence.delta.finish;
      }
      news.sequences.clear();
      last[news.session] = std::move(news);
    }
  }
  // Lives until `end`, as its owner would: a step as soon as there is one, else until the wake-up.
  void LiveUntil(TimeUs end) {
    while (now < end) {
      if (Step()) continue;
      const TimeUs wake = core.NextWake();
      ASSERT_GT(wake, now) << "the core wants to be woken and does nothing";
      now = std::min(end, wake);
      Listen();
    }
  }
  void RunDry() {
    while (core.sequences() > 0) ASSERT_TRUE(Step() || core.sequences() == 0);
  }

  const LeaderCoreOptions options_;
  LeaderCore core;
  TimeUs now = 0;
  int segments = 0;  // planned
  std::map<SessionId, std::map<uint64_t, Answer>> answers;
  std::map<SessionId, SessionNews> last;
  std::map<SessionId, int> messages;

 private:
  FakeExecutor executor_;
  std::deque<StepPlan> plans_;
};

std::vector<TokenId> Expected(const EngineRequest& request, const EngineOptions& options) {
  std::vector<TokenId> tokens = request.tokens;
  for (int i = 0; i < request.max_tokens; ++i) {
    const uint64_t logits = FakeExecutor::LogitsAfter(tokens, options);
    const auto position = static_cast<int64_t>(tokens.size());
    tokens.push_back(FakeExecutor::Choose(logits, options, request.seed, position, 0).id);
  }
  return {tokens.begin() + request.prompt_length, tokens.end()};
}

TEST(LeaderCore, FirstMessageSaysWhatThereIs) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.Listen();
  const SessionNews& news = leader.last[kA];
  EXPECT_TRUE(news.first);
  ASSERT_TRUE(news.cache.has_value());
  EXPECT_TRUE(news.cache->reset);
  EXPECT_EQ(news.state.credit_tokens, 32);
  EXPECT_EQ(news.state.kv_tokens_total, 1024);
  EXPECT_EQ(news.state.block_tokens, 16);
  EXPECT_EQ(news.state.epoch, 77u);
  EXPECT_FALSE(news.state.draining);
}

TEST(LeaderCore, SessionsHearOfTheirOwnSequencesOnly) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.core.Open(kB);
  const EngineRequest for_a = Request(5, 20), for_b = Request(40, 10);
  EXPECT_TRUE(leader.core.Submit(kA, 1, for_a, 0).ok());
  EXPECT_TRUE(leader.core.Submit(kB, 1, for_b, 0).ok());
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].tokens, Expected(for_a, leader.options_.engine));
  EXPECT_EQ(leader.answers[kB][1].tokens, Expected(for_b, leader.options_.engine));
  EXPECT_EQ(leader.answers[kA].size(), 1u);
  EXPECT_EQ(leader.last[kB].state.submits_received, 1);
  EXPECT_EQ(leader.last[kB].state.prompt_tokens_done, 45);
}

TEST(LeaderCore, TokensOfShortStepsShareAMessage) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  Leader leader(options);
  leader.core.Open(kA);
  leader.Listen();
  const EngineRequest request = Request(5, 51);
  EXPECT_TRUE(leader.core.Submit(kA, 1, request, 0).ok());
  leader.Step();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 1u) << "the first does not wait";
  const int before = leader.messages[kA];
  const TimeUs begin = leader.now;
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].tokens, Expected(request, options.engine));
  EXPECT_EQ(leader.now, begin + 50 * kStepUs) << "nor does the end";
  EXPECT_EQ(leader.messages[kA] - before, 5);
}

TEST(LeaderCore, TokensThatWaitAreToldInTimeDuringALongStep) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  const TimeUs told = leader.now;
  leader.Step();
  leader.Plan();
  EXPECT_FALSE(leader.core.HasNews(leader.now));
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 1u);
  ASSERT_EQ(leader.core.NextWake(), told + options.news_period);
  leader.now = leader.core.NextWake();
  EXPECT_TRUE(leader.core.HasNews(leader.now));
  leader.Listen();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 2u);
  // Those of a step that took longer do not wait.
  leader.now += options.news_period;
  leader.Listen();
  EXPECT_GT(leader.core.NextWake(), leader.now);
  leader.Step();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 3u);
}

TEST(LeaderCore, ThatASequenceHasBegunIsNewsForWhoWaitsForCredit) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.Step();
  EXPECT_FALSE(leader.core.HasNews(leader.now));
  EXPECT_TRUE(leader.core.Submit(kA, 2, Request(5, 400), leader.now).ok());
  leader.Listen();
  EXPECT_TRUE(leader.core.Plan(leader.now).has_value());
  EXPECT_TRUE(leader.core.HasNews(leader.now));
}

TEST(LeaderCore, ADeadlineThatPassesInTheQueueIsNewsAtOnce) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  options.engine.steps_max = 1;
  options.engine.sequences_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  leader.core.Open(kB);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  EngineRequest waiting = Request(5, 5);
  waiting.deadline = leader.now + kStepUs / 2;
  EXPECT_TRUE(leader.core.Submit(kB, 1, waiting, leader.now).ok());
  leader.Step();
  EXPECT_TRUE(leader.core.Plan(leader.now).has_value());
  EXPECT_TRUE(leader.core.HasNews(leader.now));
  leader.Listen();
  EXPECT_EQ(leader.answers[kB][1].finish, EngineFinish::kDeadline);
}

TEST(LeaderCore, NumberInUseIsTheRoutersFault) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 20), 0).ok());
  const absl::Status status = leader.core.Submit(kA, 1, Request(5, 20), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  leader.RunDry();
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 20), 0).ok()) << "it has ended: free again";
}

TEST(LeaderCore, RefusalsAreNewsAndCounted) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EngineRequest digest = Request(5, 5);
  digest.logits_digest = true;
  EXPECT_TRUE(leader.core.Submit(kA, 1, digest, 0).ok());
  EXPECT_TRUE(leader.core.Submit(kA, 2, Request(0, 5), 0).ok());
  for (uint64_t number = 3; number < 8; ++number) {
    EXPECT_TRUE(leader.core.Submit(kA, number, Request(5, 5), 0).ok());
  }
  leader.core.Drain(0);
  EXPECT_TRUE(leader.core.Submit(kA, 8, Request(5, 5), 0).ok());
  leader.Listen();
  auto& answers = leader.answers[kA];
  EXPECT_EQ(answers[1].refusal.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(answers[2].refusal.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(answers[7].refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(answers[8].refusal.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(leader.core.stats().refusals, ElementsAre(1, 1, 1, 1));
  EXPECT_EQ(leader.last[kA].state.submits_received, 8);
}

TEST(LeaderCore, EndOfASessionEndsItsSequences) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.Plan();
  leader.core.Close(kA, leader.now);
  leader.core.Close(kA, leader.now);
  EXPECT_EQ(leader.core.sequences(), 0);
  leader.Step();
  leader.Step();
  EXPECT_EQ(leader.core.stats().engine.blocks_used[0], 0);
  EXPECT_EQ(leader.core.stats().finishes[static_cast<size_t>(EngineFinish::kCancelled)], 1);
}

TEST(LeaderCore, CancelEndsASequence) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.core.Cancel(kA, 1, leader.now);
  leader.core.Cancel(kA, 9, leader.now);
  leader.core.Cancel(kB, 1, leader.now);
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].finish, EngineFinish::kCancelled);
}

TEST(LeaderCore, CreditIsWhatTheNextStepCanBegin) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.Listen();
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(20, 3), 0).ok());
  leader.LiveUntil(leader.now + 1);
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 32) << "it has begun";
}

TEST(LeaderCore, NoCreditWhileEverySlotIsTaken) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.core.Open(kB);
  leader.Listen();
  for (uint64_t number = 1; number <= 4; ++number) {
    EXPECT_TRUE(leader.core.Submit(kA, number, Request(5, number == 1 ? 10 : 100), 0).ok());
  }
  leader.Step();
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 0);
  EXPECT_EQ(leader.last[kB].state.credit_tokens, 16) << "told before";
  while (!leader.answers[kA][1].finish) {
    leader.now += 50'000;  // time for everybody to hear the state
    ASSERT_TRUE(leader.Step());
    if (!leader.answers[kA][1].finish && leader.messages[kB] > 1) {
      EXPECT_EQ(leader.last[kB].state.credit_tokens, 0);
    }
  }
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 32);
  EXPECT_EQ(leader.last[kB].state.credit_tokens, 1) << "at once, though nothing of its own ended";
}

TEST(LeaderCore, SessionsThatSendShareTheCredit) {
  Leader leader(SmallOptions());
  const SessionId c{3};
  for (const SessionId session : {kA, kB, c}) leader.core.Open(session);
  leader.Listen();
  EXPECT_EQ(leader.last[c].state.credit_tokens, 11) << "nobody sends";
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 50), 0).ok());
  leader.Step();
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 32) << "one sends";
  EXPECT_TRUE(leader.core.Submit(kB, 1, Request(5, 50), leader.now).ok());
  leader.Step();
  leader.Step();
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 16) << "two send";
  leader.RunDry();
  leader.LiveUntil(leader.now + 2'000'000);
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 11) << "nobody has sent for a while";
}

TEST(LeaderCore, SilentSessionsHearTheStateAndIdleGroupsAnEmptyPlan) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.LiveUntil(4'000'000);
  EXPECT_GE(leader.messages[kA], 8);
  EXPECT_LE(leader.messages[kA], 11);
  EXPECT_EQ(leader.segments, 0);
}

TEST(LeaderCore, DeadlineThatPassesInAStepWantsNoWakeUp) {
  LeaderCoreOptions options = SmallOptions();
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EngineRequest request = Request(5, 400);
  request.deadline = 500;
  EXPECT_TRUE(leader.core.Submit(kA, 1, request, 0).ok());
  leader.Plan();
  leader.now = 600;
  leader.Listen();
  EXPECT_GT(leader.core.NextWake(), leader.now);
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].finish, EngineFinish::kDeadline);
}

TEST(LeaderCore, DrainingIsToldAtOnceAndEnds) {
  LeaderCoreOptions options = SmallOptions();
  options.drain = 50'000;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 20), 0).ok());
  leader.Step();
  leader.core.Drain(leader.now);
  leader.Listen();
  EXPECT_TRUE(leader.last[kA].state.draining);
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 0);
  EXPECT_FALSE(leader.core.Drained(leader.now));
  leader.RunDry();
  EXPECT_TRUE(leader.core.Drained(leader.now));

  Leader late(options);
  late.core.Open(kA);
  EXPECT_TRUE(late.core.Submit(kA, 1, Request(5, 400), 0).ok());
  late.core.Drain(0);
  late.LiveUntil(49'000);
  EXPECT_FALSE(late.core.Drained(late.now));
  EXPECT_TRUE(late.core.Drained(50'000));
}

TEST(LeaderCore, PrefillRateIsThatOfTheStepsWithPrompts) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.Listen();
  EXPECT_EQ(leader.last[kA].state.prefill_tokens_per_s, 0);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(320, 50), 0).ok());
  leader.RunDry();
  EXPECT_NEAR(leader.last[kA].state.prefill_tokens_per_s, 32e6 / kStepUs, 1);
}

// --- Canaries.

LeaderCoreOptions WithCanary() {
  LeaderCoreOptions options = SmallOptions();
  options.canary.enabled = true;
  options.canary.rest_factor = 2000;
  return options;
}

TEST(Canary, OpensTheEpoch) {
  Leader leader(WithCanary());
  EXPECT_EQ(leader.core.ready_until(), 0);
  leader.Step();
  EXPECT_EQ(leader.core.ready_until(), 0);
  leader.Step();
  EXPECT_GT(leader.core.ready_until(), leader.now + 1'000'000);
  EXPECT_EQ(leader.core.stats().canary.runs, 1);
  EXPECT_EQ(leader.core.stats().prompt_tokens_done, 0);
  EXPECT_EQ(leader.core.stats().output_tokens_done, 0);
  ASSERT_TRUE(leader.core.canary_answer().has_value());
  EXPECT_EQ(leader.core.canary_answer()->tokens.size(), 2u);
}

TEST(Canary, RestsInProportionToItsCost) {
  Leader leader(WithCanary());
  leader.LiveUntil(20'000'000);
  // Two steps of 1 ms, and 2000 times as long of rest.
  EXPECT_EQ(leader.core.stats().canary.runs, 5);
  EXPECT_GT(leader.core.ready_until(), leader.now);
  EXPECT_TRUE(leader.core.verdict().ok());
}

TEST(Canary, RealWorkThatGoesForwardNeedsNone) {
  Leader leader(WithCanary());
  leader.core.Open(kA);
  leader.Step();
  leader.Step();
  uint64_t number = 0;
  for (const TimeUs start = leader.now; leader.now < start + 10'000'000;) {
    if (leader.core.sequences() == 0) {
      EXPECT_TRUE(leader.core.Submit(kA, ++number, Request(300, 100), leader.now).ok());
    }
    ASSERT_TRUE(leader.Step());
    EXPECT_GT(leader.core.ready_until(), leader.now);
  }
  EXPECT_EQ(leader.core.stats().canary.runs, 1);
}

TEST(Canary, StepThatStandsStillEndsReadiness) {
  Leader leader(WithCanary());
  leader.core.Open(kA);
  leader.LiveUntil(10'000);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(30, 10), leader.now).ok());
  leader.Plan();
  EXPECT_EQ(leader.core.ready_until(), leader.now + 1'500'000);
  leader.now += 1'000'000;
  leader.core.Moved(leader.now);  // a long step, and layers get done
  EXPECT_EQ(leader.core.ready_until(), leader.now + 1'500'000);
}

TEST(Canary, ThatNobodyRunsEndsReadiness) {
  Leader leader(WithCanary());
  leader.LiveUntil(10'000);
  const TimeUs ready = leader.core.ready_until();
  EXPECT_LE(ready, leader.now + 5'000'000);
}

TEST(Canary, OtherAnswerCondemnsTheGroup) {
  Leader good(WithCanary());
  good.LiveUntil(10'000);
  CanaryAnswer answer = *good.core.canary_answer();

  Leader same(WithCanary(), answer);
  same.LiveUntil(10'000);
  EXPECT_TRUE(same.core.verdict().ok());

  answer.logprob_bits[1] ^= 1;
  Leader other(WithCanary(), answer);
  other.LiveUntil(10'000);
  EXPECT_THAT(MessageOf(other.core.verdict()), HasSubstr("has changed"));
  EXPECT_EQ(other.core.ready_until(), 0);
  EXPECT_EQ(other.core.stats().canary.failures, 1);
  EXPECT_EQ(*other.core.canary_answer(), answer) << "the first answer stays the measure";
}

// Where bits depend on the batch, as in --arithmetic=fast.
TEST(Canary, OtherBitsAreNoFaultWhereBitsAreNotExact) {
  Leader good(WithCanary());
  good.LiveUntil(10'000);
  CanaryAnswer answer = *good.core.canary_answer();
  answer.logprob_bits[1] ^= 1;
  LeaderCoreOptions options = WithCanary();
  options.canary.exact = false;
  Leader other(options, answer);
  other.LiveUntil(10'000);
  EXPECT_TRUE(other.core.verdict().ok());
  EXPECT_EQ(other.core.stats().canary.failures, 0);
  Leader broken(options, {}, TokenId{2});
  broken.LiveUntil(10'000);
  EXPECT_THAT(MessageOf(broken.core.verdict()), HasSubstr("not finite"));
}

TEST(Canary, ThatIsNotANumberCondemnsTheGroup) {
  Leader leader(WithCanary(), {}, TokenId{2});  // one of its prompt
  leader.LiveUntil(10'000);
  EXPECT_THAT(MessageOf(leader.core.verdict()), HasSubstr("not finite"));
  EXPECT_EQ(leader.core.ready_until(), 0);
}

// --- What routers hear of the cache.

TEST(CacheFeed, BeginsWithAllThereIsInMessagesOfBoundedSize) {
  const std::vector<uint64_t> links = {5, 3, 9, 1, 7};
  CacheFeed feed(2, links);
  CachePart part = feed.Take();
  EXPECT_TRUE(part.reset);
  EXPECT_THAT(part.stored, ElementsAre(5, 3));
  EXPECT_TRUE(feed.full());
  part = feed.Take();
  EXPECT_FALSE(part.reset);
  EXPECT_THAT(part.stored, ElementsAre(9, 1));
  EXPECT_FALSE(feed.full());
  EXPECT_THAT(feed.Take().stored, ElementsAre(7));
  EXPECT_TRUE(feed.empty());
}

TEST(CacheFeed, AnEmptyCacheIsNewsOnce) {
  CacheFeed feed(2, {});
  EXPECT_FALSE(feed.empty());
  EXPECT_TRUE(feed.Take().reset);
  EXPECT_TRUE(feed.empty());
}

TEST(CacheFeed, TellsTheLastChangeOfALink) {
  CacheFeed feed(8, {});
  feed.Take();
  feed.Add({{1, 2, 3}, {4}});
  feed.Add({{4}, {2}});
  const CachePart part = feed.Take();
  EXPECT_THAT(part.stored, ElementsAre(1, 3, 4));
  EXPECT_THAT(part.evicted, ElementsAre(2));
  EXPECT_TRUE(feed.empty());
}

}  // namespace
}  // namespace facet
