#include "tests/simulation/world.h"

#include <algorithm>
#include <optional>
#include <set>

namespace facet::sim {
namespace {

constexpr TimeUs kPatience = 3600 * kSecond;  // after the last fault everything has ended by then
constexpr TimeUs kQuiet = 5 * kSecond;        // so long the world goes on after the last request
constexpr int64_t kEventsMax = 3'000'000;

}  // namespace

World::World(uint64_t seed, bool print_trace)
    : scenario_(DrawScenario(seed)), stage_(print_trace), dice_(seed, "world") {
  for (size_t i = 0; i < scenario_.groups.size(); ++i) {
    groups_.push_back(std::make_unique<SimGroup>(&stage_, scenario_, static_cast<int>(i)));
    leaders_.push_back(groups_.back().get());
  }
  for (int i = 0; i < scenario_.routers; ++i) {
    routers_.push_back(std::make_unique<SimRouter>(&stage_, scenario_, i, leaders_));
    ports_.push_back(routers_.back().get());
  }
  for (const RequestPlan& plan : scenario_.requests) {
    clients_.push_back(std::make_unique<Client>(&stage_, scenario_, plan, ports_));
    stage_.queue.At(plan.arrival, [client = clients_.back().get()] { client->Start(); });
  }
  ScheduleFaults();
}

void World::ScheduleFaults() {
  for (int fault = 0; fault < kFaults; ++fault) {
    if (scenario_.fault_interval[fault] != kNever) NextFault(static_cast<Fault>(fault));
  }
}

void World::NextFault(Fault fault) {
  const TimeUs interval = scenario_.fault_interval[static_cast<int>(fault)];
  const TimeUs at = stage_.now() + dice_.In(1, 2 * interval);
  if (at >= scenario_.faults_end) return;
  stage_.queue.At(at, [this, fault] {
    Inject(fault);
    NextFault(fault);
  });
}

void World::Inject(Fault fault) {
  SimGroup& group = *dice_.Of(groups_);
  SimRouter& router = *dice_.Of(routers_);
  const auto link = static_cast<size_t>(dice_.In(0, std::ssize(groups_) - 1));
  switch (fault) {
    case Fault::kRouterCrash:
      return router.Crash();
    case Fault::kLeaderCrash:
      return group.CrashLeader();
    case Fault::kRankDeath:
      return group.LoseRank();
    case Fault::kHang:
      return group.Hang();
    case Fault::kSlowRank:
      return group.SlowDown(stage_.now() + dice_.In(100, 3000) * kMs);
    case Fault::kDrain:
      return group.Drain();
    case Fault::kSessionBreak:
      if (router.process() == nullptr) return;
      ++stage_.sights.breaks;
      stage_.Note("the connection between a router and group {} breaks", link);
      return router.process()->BreakSession(link);
    case Fault::kSessionPartition:
      if (router.process() == nullptr) return;
      ++stage_.sights.partitions;
      stage_.Note("nothing passes between a router and group {}", link);
      return router.process()->HoldSession(link, stage_.now() + dice_.Low(50, 6000) * kMs);
    case Fault::kClientBreak:
      Client& client = *dice_.Of(clients_);
      if (!client.connected()) return;
      ++stage_.sights.breaks;
      stage_.Note("the connection of client {} breaks", client.plan().number);
      return client.Break();
  }
}

bool World::AllEnded() const {
  return std::all_of(clients_.begin(), clients_.end(),
                     [](const auto& client) { return client->ended(); });
}

std::string World::Unfinished() const {
  std::string text;
  for (const auto& client : clients_) {
    if (!client->ended()) text += "; " + client->Describe();
  }
  return text;
}

void World::RunUntil(TimeUs end, bool only_requests) {
  while (stage_.failure.empty() && !(only_requests && AllEnded())) {
    if (!stage_.queue.RunNext(end)) return;
    if (stage_.queue.done() > kEventsMax) {
      stage_.Fail("{} events, and no end{}", kEventsMax, Unfinished());
    }
  }
}

void World::CheckLeftovers() {
  for (const auto& router : routers_) {
    if (!stage_.Require(router->process() != nullptr, "a router did not come back")) return;
    router->process()->CheckIdle();
  }
  for (size_t i = 0; i < groups_.size(); ++i) {
    LeaderProcess* leader = groups_[i]->process();
    if (!stage_.Require(leader != nullptr, "a group did not come back")) return;
    leader->CheckIdle();
    const std::optional<std::set<uint64_t>> links = leader->TakeLinks();
    if (!links) continue;
    for (const auto& router : routers_) router->process()->CheckLinks(i, *links);
  }
}

Outcome World::Run() {
  RunUntil(scenario_.faults_end + kPatience, /*only_requests=*/true);
  if (stage_.failure.empty() && !AllEnded()) {
    stage_.Fail("not ended {} s after the last fault{}", kPatience / kSecond, Unfinished());
  }
  RunUntil(std::max(stage_.now(), scenario_.faults_end + scenario_.restart_most) + kQuiet,
           /*only_requests=*/false);
  if (stage_.failure.empty()) CheckLeftovers();
  if (!stage_.failure.empty()) stage_.Note("BROKEN: {}", stage_.failure);
  return {stage_.trace.hash(), stage_.queue.done(), stage_.failure, stage_.sights};
}

Outcome RunWorld(uint64_t seed, bool print_trace) { return World(seed, print_trace).Run(); }

}  // namespace facet::sim
