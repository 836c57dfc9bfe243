// Random events against leaders that compute each token from (sequence seed, position), so that
// what a client must see is known whatever happened on the way.

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/prng.h"
#include "router/core/router_core.h"

namespace facet {
namespace {

constexpr int kGroups = 3;
constexpr int kQueueMax = 8;

TokenId TokenAt(uint64_t seed, int position) {
  return static_cast<TokenId>(Mix64(seed, static_cast<uint64_t>(position)) % 1000);
}

// Some sequences end on their own, at an output length that is a function of their seed.
int NaturalLength(uint64_t seed) { return 1 + static_cast<int>(Mix64(seed) % 20); }

class World {
 public:
  explicit World(uint32_t seed)
      : random_(seed), core_({.queue = {.requests_max = kQueueMax, .tokens_max = 200}}, 0) {
    for (int i = 0; i < kGroups; ++i) leaders_[core_.AddGroup()];
  }

  void RandomEvent() {
    switch (Roll(14)) {
      case 0:
      case 1:
        Submit();
        break;
      case 2:
        if (!clients_.empty()) core_.Cancel(RandomRequest(), now_);
        break;
      case 3:
        if (!clients_.empty()) StopOne();
        break;
      case 4:
        Flip(GroupId{static_cast<uint32_t>(Roll(kGroups))});
        break;
      case 5:
        if (!clients_.empty()) core_.Pause(RandomRequest());
        break;
      case 6:
        if (!clients_.empty()) core_.Resume(RandomRequest(), now_);
        break;
      case 7:
        now_ += Roll(4'000'000);
        core_.Tick(now_);
        break;
      default:
        Advance(GroupId{static_cast<uint32_t>(Roll(kGroups))});
    }
    Absorb();
  }

  // Everything comes up and runs to its end.
  void Settle() {
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
    for (auto& [id, leader] : leaders_) EXPECT_TRUE(leader.sequences.empty());
  }

  int ended() const { return ended_; }
  int whole() const { return whole_; }
  const RouterCoreCounters& counters() const { return core_.counters(); }

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
    bool ended = false;
    bool stopped = false;
  };
  struct Client {
    uint64_t seed;
    int n;
    int max_tokens;
    std::vector<Choice> choices;  // by prompt, then n
  };

  int Roll(int bound) { return std::uniform_int_distribution<int>(0, bound - 1)(random_); }

  RequestId RandomRequest() {
    auto it = clients_.begin();
    std::advance(it, Roll(static_cast<int>(clients_.size())));
    return it->first;
  }

  void Submit() {
    RouterRequest request;
    request.client_id = std::to_string(next_client_++);
    request.n = 1 + Roll(3);
    request.seed = random_();
    request.priority = Roll(3);
    if (Roll(3) == 0) request.deadline = now_ + 1 + Roll(20'000'000);
    const int prompts = 1 + Roll(2);
    const int max_tokens = 1 + Roll(15);
    for (int i = 0; i < prompts; ++i) {
      request.prompts.push_back({std::vector<TokenId>(1 + Roll(20), 5), max_tokens});
    }
    Client client{request.seed, request.n, max_tokens,
                  std::vector<Choice>(static_cast<size_t>(prompts) * request.n)};
    const bool full = core_.stats().queued_requests >= kQueueMax;
    const int64_t paused_beyond = std::max<int64_t>(0, core_.stats().queued_requests - kQueueMax);
    const auto id = core_.Submit(std::move(request), now_);
    EXPECT_FALSE(full && id.ok());
    if (id.ok()) clients_.emplace(*id, std::move(client));
    // Resumed requests come back whatever the bound.
    EXPECT_LE(core_.stats().queued_requests, kQueueMax + paused_beyond);
  }

  void StopOne() {
    const RequestId id = RandomRequest();
    Client& client = clients_.at(id);
    const int index = Roll(static_cast<int>(client.choices.size()));
    if (client.choices[index].got.empty()) return;  // text ends after a token, never before
    client.choices[index].stopped = true;
    core_.Stop(id, index / client.n, index % client.n, now_);
  }

  void Flip(GroupId id) {
    Leader& leader = leaders_.at(id);
    leader.up = !leader.up;
    leader.sequences.clear();
    leader.submits = 0;
    if (!leader.up) return core_.OnGroupDown(id, now_);
    core_.OnGroupUp(id, {id.value == 0 ? "odd" : "even", 200});
    SendState(id);
  }

  void SendState(GroupId id) {
    Leader& leader = leaders_.at(id);
    core_.OnGroupState(id,
                       {.running = std::ssize(leader.sequences),
                        .credit_tokens = 50 - 10 * std::ssize(leader.sequences),
                        .submits_received = leader.submits},
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

  void Absorb() {
    CoreActions actions = core_.TakeActions();
    for (const SubmitAction& submit : actions.submits) {
      Leader& leader = leaders_.at(submit.group);
      ASSERT_TRUE(leader.up) << "a submit to a dead group";
      ++leader.submits;
      const int emitted = static_cast<int>(submit.tokens.size()) - submit.prompt_length;
      for (int i = 0; i < emitted; ++i) {
        ASSERT_EQ(submit.tokens[submit.prompt_length + i], TokenAt(submit.seed, i));
      }
      leader.sequences.emplace(submit.sequence, Running{submit.seed, emitted, submit.max_tokens});
    }
    for (const CancelAction& cancel : actions.cancels) {
      leaders_.at(cancel.group).sequences.erase(cancel.sequence);
    }
    for (const ChoiceDelta& delta : actions.deltas) Deliver(delta);
  }

  void Deliver(const ChoiceDelta& delta) {
    const auto found = clients_.find(delta.request);
    ASSERT_NE(found, clients_.end()) << "a delta after the request's end";
    Client& client = found->second;
    Choice& choice = client.choices[delta.prompt_index * client.n + delta.choice_index];
    ASSERT_FALSE(choice.ended) << "a delta after the end";
    ASSERT_EQ(delta.offset, std::ssize(choice.got));
    const uint64_t seed = SequenceSeed(client.seed, delta.prompt_index, delta.choice_index);
    for (const OutputToken& token : delta.tokens) {
      ASSERT_EQ(token.id, TokenAt(seed, static_cast<int>(choice.got.size())));
      choice.got.push_back(token.id);
    }
    ASSERT_LE(std::ssize(choice.got), client.max_tokens);
    if (!delta.end) return;
    choice.ended = true;
    ++ended_;
    const EndReason reason = delta.end->reason;
    if (choice.stopped) {
      EXPECT_TRUE(reason != EndReason::kLength || std::ssize(choice.got) == client.max_tokens);
    } else if (reason == EndReason::kStop || reason == EndReason::kLength) {
      EXPECT_EQ(std::ssize(choice.got), std::min(client.max_tokens, NaturalLength(seed)));
      ++whole_;
    }
    bool all = true;
    for (const Choice& other : client.choices) all = all && other.ended;
    ASSERT_EQ(delta.end->request_done, all);
    if (all) clients_.erase(found);
  }

  std::mt19937 random_;
  RouterCore core_;
  TimeUs now_ = 0;
  std::map<GroupId, Leader> leaders_;
  std::map<RequestId, Client> clients_;
  int next_client_ = 0;
  int ended_ = 0;
  int whole_ = 0;
};

TEST(RouterCoreRandom, EverySequenceEndsOnceWithItsTokensInOrder) {
  int ended = 0, whole = 0;
  int64_t resubmissions = 0, poisoned = 0, duplicates = 0;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    World world(seed);
    for (int i = 0; i < 400; ++i) {
      world.RandomEvent();
      ASSERT_FALSE(::testing::Test::HasFatalFailure());
    }
    world.Settle();
    ASSERT_FALSE(::testing::Test::HasFailure());
    ended += world.ended();
    whole += world.whole();
    resubmissions += world.counters().resubmissions;
    poisoned += world.counters().poisoned;
    duplicates += world.counters().duplicate_tokens;
  }
  // The walk has reached what it is there for.
  EXPECT_GT(ended, 10'000);
  EXPECT_GT(whole, 3'000);
  EXPECT_GT(resubmissions, 500);
  EXPECT_GT(poisoned, 20);
  EXPECT_GT(duplicates, 1'000);
}

}  // namespace
}  // namespace facet
