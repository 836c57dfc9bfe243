#ifndef FACET_TESTS_CORE_GROUP_MODEL_H_
#define FACET_TESTS_CORE_GROUP_MODEL_H_

// Groups of a fixed speed in virtual time, and tenants that ask them through a router core: how
// much is done, how soon first tokens come and who gets what, the same on every machine.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/prng.h"
#include "router/core/router_core.h"

namespace facet {

// One group: every step, a token for each running sequence, and prompts with the tokens left.
struct GroupModelOptions {
  int slots = 8;
  int step_tokens = 64;
  TimeUs step_us = 10'000;
};

struct TenantLoad {
  std::string name;
  double requests_per_s = 1;
  int prompt_tokens = 20;  // in the mean
  int output_tokens = 20;
};

// What became of one tenant's requests that came in the measured time.
struct TenantOutcome {
  int64_t asked = 0;
  int64_t refused = 0;  // by Submit()
  int64_t shed = 0;
  int64_t completed = 0;
  int64_t output_tokens = 0;
  std::vector<TimeUs> ttft;  // of those that got a first token

  TimeUs TtftPercentile(double percent) {
    if (ttft.empty()) return 0;
    std::sort(ttft.begin(), ttft.end());
    return ttft[static_cast<size_t>(percent / 100 * static_cast<double>(ttft.size() - 1))];
  }
};

class ClusterModel {
 public:
  ClusterModel(const RouterCoreOptions& options, const GroupModelOptions& group, int groups,
               uint64_t seed)
      : group_(group), core_(options, 0), seed_(seed) {
    for (int i = 0; i < groups; ++i) {
      const GroupId id = core_.AddGroup();
      core_.OnGroupUp(id, {.fingerprint = "f", .context_tokens = 1'000'000});
      groups_.push_back({.next_step = group_.step_us * (i + 1) / groups});
      SendState(id);
    }
  }

  // Requests of `loads` come until `end`; those from `measure_from` on count.
  void Run(const std::vector<TenantLoad>& loads, TimeUs measure_from, TimeUs end) {
    std::vector<TimeUs> arrivals;
    for (const TenantLoad& load : loads) arrivals.push_back(now_ + Gap(load));
    while (now_ < end) {
      const auto arrival = std::min_element(arrivals.begin(), arrivals.end());
      const TimeUs next = std::min({*arrival, NextStep(), core_.NextWake(), end});
      now_ = std::max(now_, next);
      measuring_ = now_ >= measure_from;
      if (now_ >= *arrival) {
        const TenantLoad& load = loads[static_cast<size_t>(arrival - arrivals.begin())];
        Arrive(load);
        *arrival += Gap(load);
      }
      if (now_ >= core_.NextWake()) core_.Tick(now_);
      for (uint32_t i = 0; i < groups_.size(); ++i) {
        if (groups_[i].next_step <= now_) Step(GroupId{i});
      }
      Absorb();
      queue_most_ = std::max(queue_most_, core_.stats().queued_requests);
    }
  }

  TenantOutcome& outcome(const std::string& tenant) { return outcomes_[tenant]; }
  TenantOutcome Total() const {
    TenantOutcome total;
    for (const auto& [name, outcome] : outcomes_) {
      total.asked += outcome.asked;
      total.refused += outcome.refused;
      total.shed += outcome.shed;
      total.completed += outcome.completed;
      total.output_tokens += outcome.output_tokens;
      total.ttft.insert(total.ttft.end(), outcome.ttft.begin(), outcome.ttft.end());
    }
    return total;
  }
  RouterCore& core() { return core_; }
  TimeUs now() const { return now_; }
  int64_t queue_most() const { return queue_most_; }

 private:
  struct Running {
    SequenceId number;
    int prompt_left = 0;
    int emitted = 0;
    int max_tokens = 0;
  };
  struct Group {
    TimeUs next_step = 0;
    int64_t submits = 0;
    std::deque<Running> waiting;
    std::vector<Running> running;
  };
  struct Asked {
    std::string tenant;
    TimeUs at = 0;
    bool counts = false;
    bool answered = false;
  };

  // Poisson arrivals.
  TimeUs Gap(const TenantLoad& load) {
    const double uniform =
        static_cast<double>((Mix64(seed_, ++draws_) >> 11) + 1) / 9007199254740993.0;
    return static_cast<TimeUs>(-std::log(uniform) * 1e6 / load.requests_per_s) + 1;
  }

  // From half to one and a half of it.
  int About(int mean) {
    return mean - mean / 2 + static_cast<int>(Mix64(seed_, ++draws_) % (2 * (mean / 2) + 1));
  }

  TimeUs NextStep() const {
    TimeUs next = kNever;
    for (const Group& group : groups_) next = std::min(next, group.next_step);
    return next;
  }

  void Arrive(const TenantLoad& load) {
    RouterRequest request;
    request.client_id = std::to_string(++clients_);
    request.tenant = load.name;
    request.prompts = {
        {std::vector<TokenId>(About(load.prompt_tokens), 1), About(load.output_tokens)}};
    TenantOutcome& outcome = outcomes_[load.name];
    outcome.asked += measuring_;
    const auto id = core_.Submit(std::move(request), now_);
    if (id.ok()) {
      asked_.emplace(*id, Asked{load.name, now_, measuring_});
    } else {
      outcome.refused += measuring_;
    }
    Absorb();
  }

  void Step(GroupId id) {
    Group& group = groups_[id.value];
    group.next_step += group_.step_us;
    int budget = group_.step_tokens;
    std::vector<LeaderDelta> deltas;
    for (Running& running : group.running) {
      if (running.prompt_left > 0) continue;
      --budget;
      deltas.push_back(OneToken(running));
    }
    while (!group.waiting.empty() && std::ssize(group.running) < group_.slots) {
      group.running.push_back(group.waiting.front());
      group.waiting.pop_front();
    }
    for (Running& running : group.running) {
      const int chunk = std::clamp(budget, 0, running.prompt_left);
      if (chunk == 0) continue;
      budget -= chunk;
      running.prompt_left -= chunk;
      if (running.prompt_left == 0) deltas.push_back(OneToken(running));
    }
    std::erase_if(group.running,
                  [](const Running& running) { return running.emitted == running.max_tokens; });
    for (LeaderDelta& delta : deltas) core_.OnDelta(id, std::move(delta), now_);
    SendState(id);
  }

  static LeaderDelta OneToken(Running& running) {
    LeaderDelta delta{.sequence = running.number, .offset = running.emitted};
    delta.tokens.push_back({.id = 1});
    if (++running.emitted == running.max_tokens) delta.finish = EndReason::kLength;
    return delta;
  }

  void SendState(GroupId id) {
    const Group& group = groups_[id.value];
    int64_t waiting_tokens = 0, pending = 0;
    for (const Running& running : group.waiting) waiting_tokens += running.prompt_left;
    for (const Running& running : group.running) pending += running.prompt_left;
    const int64_t sequences = std::ssize(group.running) + std::ssize(group.waiting);
    const int64_t room = group_.step_tokens - waiting_tokens;
    core_.OnGroupState(
        id,
        {.running = std::ssize(group.running),
         .waiting = std::ssize(group.waiting),
         .credit_tokens = sequences >= group_.slots ? 0 : std::max<int64_t>(0, room),
         .submits_received = group.submits,
         .pending_prompt_tokens = pending + waiting_tokens,
         .prefill_tokens_per_s = group_.step_tokens * 1e6 / static_cast<double>(group_.step_us)},
        now_);
  }

  void Absorb() {
    CoreActions actions = core_.TakeActions();
    for (const SubmitAction& submit : actions.submits) {
      Group& group = groups_[submit.group.value];
      ++group.submits;
      const int known = static_cast<int>(submit.tokens.size());
      group.waiting.push_back({.number = submit.sequence,
                               .prompt_left = known,
                               .emitted = known - submit.prompt_length,
                               .max_tokens = submit.max_tokens});
    }
    for (const CancelAction& cancel : actions.cancels) {
      Group& group = groups_[cancel.group.value];
      const auto is = [&](const Running& running) { return running.number == cancel.sequence; };
      std::erase_if(group.waiting, is);
      std::erase_if(group.running, is);
    }
    for (const ChoiceDelta& delta : actions.deltas) {
      const auto found = asked_.find(delta.request);
      Asked& asked = found->second;
      TenantOutcome& outcome = outcomes_[asked.tenant];
      if (measuring_) outcome.output_tokens += std::ssize(delta.tokens);
      if (!delta.tokens.empty() && !std::exchange(asked.answered, true) && asked.counts) {
        outcome.ttft.push_back(now_ - asked.at);
      }
      if (!delta.end) continue;
      outcome.completed += asked.counts && delta.end->reason == EndReason::kLength;
      outcome.shed += asked.counts && delta.end->reason == EndReason::kError;
      asked_.erase(found);
    }
  }

  GroupModelOptions group_;
  RouterCore core_;
  uint64_t seed_;
  uint64_t draws_ = 0;
  TimeUs now_ = 0;
  bool measuring_ = false;
  std::vector<Group> groups_;
  std::map<RequestId, Asked> asked_;
  std::map<std::string, TenantOutcome> outcomes_;
  int64_t clients_ = 0;
  int64_t queue_most_ = 0;
};

}  // namespace facet

#endif  // FACET_TESTS_CORE_GROUP_MODEL_H_
