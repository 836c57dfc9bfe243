// Random events against leaders that compute each token from (sequence seed, position), so that
// what a client must see is known whatever happened on the way.

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/prefix_hash.h"
#include "base/prng.h"
#include "router/core/cache_salt.h"
#include "router/core/router_core.h"

namespace facet {
namespace {

constexpr int kGroups = 3;
constexpr int kTenants = 4;
constexpr int kQueueMax = 8;
constexpr int kBlockTokens = 4;
constexpr int kMirrorLinksMax = 16;

TokenId TokenAt(uint64_t seed, int position) {
  return static_cast<TokenId>(Mix64(seed, static_cast<uint64_t>(position)) % 1000);
}

// Some sequences end on their own, at an output length that is a function of their seed.
int NaturalLength(uint64_t seed) { return 1 + static_cast<int>(Mix64(seed) % 20); }

RouterCoreOptions OptionsFor(uint32_t seed) {
  RouterCoreOptions options;
  options.queue = {.requests_max = kQueueMax, .tokens_max = 200, .bytes_max = 16'384};
  options.tenants = {.weights = {{"t1", 3}, {"t2", 0.5}}, .tenants_max = seed % 3 ? 4096 : 3};
  options.fairness.unfair_wait_us = 300'000;
  options.fairness.skew_max = 1;
  options.placement.draw_from = 2;
  options.retries = {.per_thousand_requests = 100, .burst = seed % 2 ? 2 : 100};
  if (seed % 4 == 0) options.ttft_target_us = 2'000'000;
  options.mirror_links_max = kMirrorLinksMax;
  options.rate_window_us = 500'000;
  options.seed = seed;
  return options;
}

class World {
 public:
  explicit World(uint32_t seed) : random_(seed), core_(OptionsFor(seed), 0) {
    for (int i = 0; i < kGroups; ++i) leaders_[core_.AddGroup()];
  }

  void RandomEvent() {
    switch (Roll(17)) {
      case 0:
      case 1:
      case 2:
        SubmitNew();
        break;
      case 3:
        if (!clients_.empty()) core_.Cancel(RandomRequest(), now_);
        break;
      case 4:
        if (!clients_.empty()) StopOne();
        break;
      case 5:
        Flip(GroupId{static_cast<uint32_t>(Roll(kGroups))});
        break;
      case 6:
        if (!clients_.empty()) core_.Pause(RandomRequest());
        break;
      case 7:
        if (!clients_.empty()) core_.Resume(RandomRequest(), now_);
        break;
      case 8:
        now_ += Roll(4'000'000);
        core_.Tick(now_);
        break;
      case 9:
        if (!clients_.empty()) ComeBack(RandomRequest());
        break;
      case 10:
        SendNews(GroupId{static_cast<uint32_t>(Roll(kGroups))});
        break;
      default:
        now_ += Roll(100'000);
        Advance(GroupId{static_cast<uint32_t>(Roll(kGroups))});
    }
    Absorb();
    const absl::Status status = core_.Check();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_LE(std::ssize(core_.TopTenants(2)), 2);
  }

  // Everything comes up and runs to its end.
  void Settle() {
    settling_ = true;
    for (auto& [id, leader] : leaders_) {
      if (!leader.up) Flip(id);
    }
    std::vector<RequestId> alive;
    for (const auto& [id, client] : clients_) alive.push_back(id);
    for (const RequestId id : alive) core_.Resume(id, now_);
    Absorb();
    for (int i = 0; i < 3000 && !clients_.empty(); ++i) {
      for (auto& [id, leader] : leaders_) Advance(id);
      now_ += 1000;
      core_.Tick(now_);
      Absorb();
    }
    EXPECT_TRUE(clients_.empty()) << clients_.size() << " requests never ended";
    const RouterCoreStats stats = core_.stats();
    EXPECT_EQ(stats.requests, 0);
    EXPECT_EQ(stats.queued_requests, 0);
    EXPECT_EQ(stats.queued_tokens, 0);
    EXPECT_EQ(stats.running_sequences, 0);
    EXPECT_EQ(stats.interrupted_sequences, 0);
    EXPECT_EQ(stats.queued_bytes, 0);
    for (auto& [id, leader] : leaders_) EXPECT_TRUE(leader.sequences.empty());
    EXPECT_TRUE(core_.Check().ok()) << core_.Check();
    for (const TenantStats& tenant : core_.TopTenants(kTenants)) {
      EXPECT_EQ(tenant.live_requests, 0);
      EXPECT_EQ(tenant.running_sequences, 0);
    }
  }

  int ended() const { return ended_; }
  int whole() const { return whole_; }
  int comebacks() const { return comebacks_; }
  const RouterCoreCounters& counters() const { return core_.counters(); }
  // Of all that the core has asked for and told.
  uint64_t trace() const { return trace_; }

 private:
  struct Running {
    uint64_t seed;
    int emitted;
    int max_tokens;
  };
  struct Leader {
    bool up = false;
    int64_t submits = 0;
    std::map<SequenceId, Running> sequences;
  };
  struct Choice {
    std::vector<TokenId> got;
    std::string fingerprint;
    bool fingerprint_due = true;
    bool ended = false;
    bool stopped = false;
  };
  struct Client {
    RouterRequest request;
    std::vector<Choice> choices;  // by prompt, then n

    uint64_t SeedOf(size_t index) const {
      return SequenceSeed(request.seed, static_cast<uint32_t>(index) / request.n,
                          static_cast<uint32_t>(index) % request.n);
    }
  };

  int Roll(int bound) { return std::uniform_int_distribution<int>(0, bound - 1)(random_); }

  RequestId RandomRequest() {
    auto it = clients_.begin();
    std::advance(it, Roll(static_cast<int>(clients_.size())));
    return it->first;
  }

  void SubmitNew() {
    RouterRequest request;
    request.client_id = std::to_string(next_client_++);
    request.tenant = "t" + std::to_string(std::max(0, Roll(2 * kTenants) - kTenants));
    request.n = 1 + Roll(3);
    request.seed = random_();
    request.priority = Roll(3);
    request.extra_bytes = Roll(1000);
    if (Roll(3) == 0) request.deadline = now_ + 1 + Roll(20'000'000);
    const int prompts = 1 + Roll(2);
    const int max_tokens = 1 + Roll(15);
    for (int i = 0; i < prompts; ++i) {
      request.prompts.push_back({std::vector<TokenId>(1 + Roll(20), 5), max_tokens});
    }
    const size_t choices = static_cast<size_t>(prompts) * request.n;
    Submit(Client{std::move(request), std::vector<Choice>(choices)});
  }

  void Submit(Client client) {
    const bool empty = core_.stats().queued_requests == 0;
    bool goes_on = false;
    for (const ResumePoint& point : client.request.resume) {
      goes_on = goes_on || !point.tokens.empty();
    }
    const int64_t gave_way = core_.counters().preemptions;
    const auto id = core_.Submit(client.request, now_);
    if (id.ok()) {
      clients_.emplace(*id, std::move(client));
      // What was paused, gives way or goes on comes back whatever the bound.
      if (!empty && !goes_on) {
        EXPECT_LE(core_.stats().queued_requests,
                  kQueueMax + core_.counters().preemptions - gave_way);
      }
    } else if (absl::IsResourceExhausted(id.status()) || absl::IsUnavailable(id.status())) {
      EXPECT_GT(RetryAfter(id.status()).value_or(0), 0) << id.status();
    }
  }

  // The client's stream has broken off; it asks to go on, while the old one may still be there.
  void ComeBack(RequestId old) {
    Client client = clients_.at(old);
    if (Roll(2) == 0) core_.Cancel(old, now_);
    client.request.takes_over = true;
    client.request.resume.clear();
    for (size_t i = 0; i < client.choices.size(); ++i) {
      Choice& choice = client.choices[i];
      const bool forgets = choice.got.empty() || (!choice.stopped && Roll(4) == 0);
      if (forgets && !choice.ended) {
        choice = {};
        continue;
      }
      choice.fingerprint_due = true;
      ResumePoint point{.prompt_index = static_cast<int>(i) / client.request.n,
                        .choice_index = static_cast<int>(i) % client.request.n,
                        .tokens = choice.got,
                        .fingerprint = choice.fingerprint,
                        .finished = choice.ended};
      client.request.resume.push_back(std::move(point));
    }
    ++comebacks_;
    Submit(std::move(client));
  }

  void StopOne() {
    const RequestId id = RandomRequest();
    Client& client = clients_.at(id);
    const int index = Roll(static_cast<int>(client.choices.size()));
    if (client.choices[index].got.empty()) return;  // text ends after a token, never before
    client.choices[index].stopped = true;
    core_.Stop(id, index / client.request.n, index % client.request.n, now_);
  }

  // Links that some prompts have, one that none has.
  void SendNews(GroupId id) {
    GroupCacheNews news{.reset = Roll(4) == 0};
    for (int i = Roll(4); i > 0; --i) {
      const std::string tenant = "t" + std::to_string(Roll(kTenants));
      const std::vector<TokenId> prompt(20, 5);
      const std::vector<uint64_t> links = PrefixLinks(CacheSalt(tenant), prompt, kBlockTokens);
      const uint64_t link = Roll(5) == 0 ? random_() : links[Roll(5)];
      (Roll(3) == 0 && !news.reset ? news.evicted : news.stored).push_back(link);
    }
    core_.OnCacheNews(id, news);  // also when it is down: news that come too late
  }

  void Flip(GroupId id) {
    Leader& leader = leaders_.at(id);
    leader.up = !leader.up;
    leader.sequences.clear();
    leader.submits = 0;
    if (!leader.up) return core_.OnGroupDown(id, now_);
    core_.OnGroupUp(id, {.fingerprint = FingerprintOf(id),
                         .context_tokens = 200,
                         .block_tokens = kBlockTokens,
                         .epoch = random_()});
    if (Roll(2) == 0) core_.OnCacheNews(id, {.reset = true});
    SendState(id);
  }

  static std::string FingerprintOf(GroupId id) { return id.value == 0 ? "odd" : "even"; }

  void SendState(GroupId id) {
    Leader& leader = leaders_.at(id);
    core_.OnGroupState(id,
                       {.running = std::ssize(leader.sequences),
                        .credit_tokens = 50 - 10 * std::ssize(leader.sequences),
                        .submits_received = leader.submits,
                        .draining = !settling_ && Roll(20) == 0,
                        .pending_prompt_tokens = 5 * std::ssize(leader.sequences),
                        .prefill_tokens_per_s = id.value == 1 ? 0.0 : 100.0},
                       now_);
  }

  // One step of a leader: some sequences get tokens, some deltas repeat what was said before.
  void Advance(GroupId id) {
    Leader& leader = leaders_.at(id);
    if (!leader.up) return;
    std::vector<LeaderDelta> deltas;
    for (auto it = leader.sequences.begin(); it != leader.sequences.end();) {
      auto& [number, running] = *it;
      const int end = std::min(running.max_tokens, NaturalLength(running.seed));
      const int from = std::max(0, running.emitted - Roll(2));
      const int to = std::min(end, running.emitted + Roll(3));
      LeaderDelta delta{.sequence = number, .offset = from};
      for (int i = from; i < to; ++i) delta.tokens.push_back({.id = TokenAt(running.seed, i)});
      running.emitted = to;
      if (to == end) {
        delta.finish = end == running.max_tokens ? EndReason::kLength : EndReason::kStop;
      }
      deltas.push_back(delta);
      it = to == end ? leader.sequences.erase(it) : std::next(it);
    }
    for (LeaderDelta& delta : deltas) core_.OnDelta(id, std::move(delta), now_);
    SendState(id);
  }

  void Note(uint64_t fact) { trace_ = Mix64(trace_ ^ fact); }

  void Absorb() {
    CoreActions actions = core_.TakeActions();
    for (const SubmitAction& submit : actions.submits) {
      Note(submit.sequence.value);
      Note(submit.group.value);
      Leader& leader = leaders_.at(submit.group);
      ASSERT_TRUE(leader.up) << "a submit to a dead group";
      ++leader.submits;
      const int emitted = static_cast<int>(submit.tokens.size()) - submit.prompt_length;
      for (int i = 0; i < emitted; ++i) {
        ASSERT_EQ(submit.tokens[submit.prompt_length + i], TokenAt(submit.seed, i));
      }
      ASSERT_LT(emitted, submit.max_tokens);
      leader.sequences.emplace(submit.sequence, Running{submit.seed, emitted, submit.max_tokens});
    }
    for (const CancelAction& cancel : actions.cancels) {
      Note(cancel.sequence.value);
      leaders_.at(cancel.group).sequences.erase(cancel.sequence);
    }
    for (const ChoiceDelta& delta : actions.deltas) Deliver(delta);
    for (const RequestId id : actions.done) {
      Note(id.value);
      for (const Choice& choice : clients_.at(id).choices) ASSERT_TRUE(choice.ended);
      clients_.erase(id);
    }
  }

  void Deliver(const ChoiceDelta& delta) {
    Note(delta.request.value);
    Note(delta.tokens.size());
    const auto found = clients_.find(delta.request);
    ASSERT_NE(found, clients_.end()) << "a delta after the request's end";
    Client& client = found->second;
    const size_t index = delta.prompt_index * client.request.n + delta.choice_index;
    Choice& choice = client.choices[index];
    ASSERT_FALSE(choice.ended) << "a delta after the end";
    ASSERT_EQ(delta.offset, std::ssize(choice.got));
    ASSERT_EQ(!delta.fingerprint.empty(), !delta.tokens.empty() && choice.fingerprint_due);
    if (!delta.fingerprint.empty()) {
      // Only what is new may come from another group.
      if (delta.offset > 0) {
        ASSERT_EQ(delta.fingerprint, choice.fingerprint);
      }
      choice.fingerprint = delta.fingerprint;
      choice.fingerprint_due = false;
    }
    if (delta.migration_gap) {
      ASSERT_FALSE(delta.tokens.empty());
      ASSERT_GT(delta.offset, 0);
      ASSERT_GE(*delta.migration_gap, 0);
    }
    const uint64_t seed = client.SeedOf(index);
    for (const OutputToken& token : delta.tokens) {
      ASSERT_EQ(token.id, TokenAt(seed, static_cast<int>(choice.got.size())));
      choice.got.push_back(token.id);
    }
    const int max_tokens = client.request.prompts[delta.prompt_index].max_tokens;
    ASSERT_LE(std::ssize(choice.got), max_tokens);
    if (delta.end) End(found, index, *delta.end);
  }

  void End(std::map<RequestId, Client>::iterator found, size_t index, const ChoiceEnd& end) {
    Client& client = found->second;
    Choice& choice = client.choices[index];
    choice.ended = true;
    ++ended_;
    Note(static_cast<uint64_t>(end.reason));
    const int max_tokens = client.request.prompts[index / client.request.n].max_tokens;
    if (choice.stopped) {
      EXPECT_TRUE(end.reason != EndReason::kLength || std::ssize(choice.got) == max_tokens);
    } else if (end.reason == EndReason::kStop || end.reason == EndReason::kLength) {
      EXPECT_EQ(std::ssize(choice.got), std::min(max_tokens, NaturalLength(client.SeedOf(index))));
      ++whole_;
    }
    if (end.reason == EndReason::kError) {
      EXPECT_TRUE(absl::IsInternal(end.status) || RetryAfter(end.status)) << end.status;
    }
    bool all = true;
    for (const Choice& other : client.choices) all = all && other.ended;
    ASSERT_EQ(end.request_done, all);
    if (all) clients_.erase(found);
  }

  std::mt19937 random_;
  RouterCore core_;
  TimeUs now_ = 0;
  std::map<GroupId, Leader> leaders_;
  std::map<RequestId, Client> clients_;
  int next_client_ = 0;
  uint64_t trace_ = 0;
  bool settling_ = false;
  int comebacks_ = 0;
  int ended_ = 0;
  int whole_ = 0;
};

struct Reached {
  int64_t ended = 0, whole = 0, comebacks = 0;
  int64_t resubmissions = 0, migrations = 0, poisoned = 0, duplicates = 0, takeovers = 0;
  int64_t preemptions = 0, prefix_tokens = 0, refusals = 0, evictions = 0, ttft = 0, retries = 0;

  void Add(const World& world) {
    const RouterCoreCounters& counters = world.counters();
    ended += world.ended();
    whole += world.whole();
    comebacks += world.comebacks();
    resubmissions += counters.resubmissions;
    migrations += counters.migrations;
    poisoned += counters.poisoned;
    duplicates += counters.duplicate_tokens;
    takeovers += counters.takeovers;
    preemptions += counters.preemptions;
    prefix_tokens += counters.prefix_tokens;
    refusals += counters.refusals[RefusalReason::kQueueRequests];
    evictions += counters.sheds[RefusalReason::kTenantShare];
    ttft += counters.sheds[RefusalReason::kTtft];
    retries += counters.sheds[RefusalReason::kRetries];
  }
};

// One walk; the hash of all that came out.
uint64_t Walk(uint32_t seed, Reached& reached) {
  World world(seed);
  for (int i = 0; i < 400 && !::testing::Test::HasFatalFailure(); ++i) world.RandomEvent();
  if (!::testing::Test::HasFatalFailure()) world.Settle();
  reached.Add(world);
  return world.trace();
}

TEST(RouterCoreRandom, EverySequenceEndsOnceWithItsTokensInOrder) {
  Reached reached, again;
  for (uint32_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    const uint64_t trace = Walk(seed, reached);
    ASSERT_FALSE(::testing::Test::HasFailure());
    if (seed % 8 == 0) {
      ASSERT_EQ(trace, Walk(seed, again)) << "the same seed, another run";
    }
  }
  // The walk has reached what it is there for.
  EXPECT_GT(reached.ended, 10'000);
  EXPECT_GT(reached.whole, 3'000);
  EXPECT_GT(reached.comebacks, 3'000);
  EXPECT_GT(reached.resubmissions, 500);
  EXPECT_GT(reached.migrations, 500);
  EXPECT_GT(reached.poisoned, 20);
  EXPECT_GT(reached.duplicates, 1'000);
  EXPECT_GT(reached.takeovers, 500);
  EXPECT_GT(reached.preemptions, 100);
  EXPECT_GT(reached.prefix_tokens, 500);
  EXPECT_GT(reached.refusals, 500);
  EXPECT_GT(reached.evictions, 100);
  EXPECT_GT(reached.ttft, 100);
  EXPECT_GT(reached.retries, 20);
}

}  // namespace
}  // namespace facet
