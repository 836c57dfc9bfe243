#ifndef FACET_TESTS_SIMULATION_MESSAGES_H_
#define FACET_TESTS_SIMULATION_MESSAGES_H_

// What travels over the wires, and the translations that protos and services do in production.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "router/core/router_core.h"
#include "shard_worker/engine/leader_core.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/wire.h"

namespace facet::sim {

// A client's call to a router.
struct Call {
  const RequestPlan* plan = nullptr;
  std::string client_id;
  TimeUs remaining = kNever;  // of the deadline
  std::vector<ResumePoint> resume;
  bool takes_over = false;
  bool prompt_logprobs = false;
};

// A router's message to a client.
struct Reply {
  std::vector<ChoiceDelta> deltas;
  bool done = false;    // all choices have ended
  absl::Status status;  // not OK: refused, or broken off for good
};

// Where clients' calls arrive. The wire's far end is the router's.
class RouterPort {
 public:
  using Sink = std::function<void(const Reply& reply)>;
  virtual ~RouterPort() = default;
  // `sink` takes replies at the client; it is called when they arrive there. With `slow`, the
  // router sends the next reply only after Acknowledge().
  virtual void Take(std::shared_ptr<Wire> wire, Call call, Sink sink) = 0;
  virtual void Acknowledge(const Wire* wire) = 0;
};

struct ToLeader {
  TimeUs sent = 0;
  std::vector<SubmitAction> submits;
  std::vector<CancelAction> cancels;
};

struct FromLeader {
  GroupFacts facts;  // in the first message of a session
  SessionNews news;
};

// Where routers' sessions arrive. The wire's far end is the leader's.
class LeaderPort {
 public:
  using Sink = std::function<void(const FromLeader& message)>;
  virtual ~LeaderPort() = default;
  virtual void Open(std::shared_ptr<Wire> wire, int router, Sink sink) = 0;
  virtual void Take(const Wire* wire, const ToLeader& message) = 0;
  // Since when the leader's process has lived and its group moved; kNever: it does not.
  virtual TimeUs SteadySince() const = 0;
};

// What leaders need of a request and the router core only passes on.
struct SimParams : SequenceParams {
  explicit SimParams(const RequestPlan& request) : plan(request) {}
  const RequestPlan& plan;
};

RouterRequest ToRouterRequest(const Call& call, TimeUs now);
EngineRequest ToEngineRequest(const SubmitAction& submit, TimeUs sent, TimeUs now);
LeaderDelta ToLeaderDelta(const SequenceNews& news);
GroupState ToGroupState(const LeaderState& state);
GroupCacheNews ToGroupCacheNews(const CachePart& part);

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_MESSAGES_H_
