#include "shard_worker/runtime/placement.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "base/status.h"

namespace facet {
namespace {

// A node's processors that no rank has taken yet.
class Node {
 public:
  explicit Node(int id) : id_(id) {}

  void Add(const HostCore& core) {
    if (levels_.size() < core.processors.size()) levels_.resize(core.processors.size());
    for (size_t i = 0; i < core.processors.size(); ++i) levels_[i].push_back(core.processors[i]);
    all_.insert(all_.end(), core.processors.begin(), core.processors.end());
  }

  int id() const { return id_; }
  const std::vector<int>& all() const { return all_; }
  int cores() const { return static_cast<int>(levels_.front().size()); }
  int processors() const {
    int count = 0;
    for (const std::vector<int>& level : levels_) count += static_cast<int>(level.size());
    return count;
  }
  // How well `threads` threads would run here: the larger, the better.
  std::tuple<bool, bool, int, int> Merit(int threads) const {
    return {cores() >= threads, processors() >= threads, cores(), processors()};
  }

  // Up to `threads` of them, first threads of cores before second ones.
  std::vector<int> Take(int threads) {
    std::vector<int> taken;
    for (std::vector<int>& level : levels_) {
      const auto count = std::min(level.size(), static_cast<size_t>(threads) - taken.size());
      const auto end = level.begin() + static_cast<std::ptrdiff_t>(count);
      taken.insert(taken.end(), level.begin(), end);
      level.erase(level.begin(), end);
    }
    return taken;
  }

 private:
  int id_;
  std::vector<int> all_;
  std::vector<std::vector<int>> levels_;  // first, second, ... hardware threads of its cores
};

std::vector<Node> NodesOf(std::span<const HostCore> cores) {
  std::vector<Node> nodes;
  for (const HostCore& core : cores) {
    auto node = std::ranges::find(nodes, core.node, &Node::id);
    if (node == nodes.end()) node = nodes.insert(nodes.end(), Node(core.node));
    node->Add(core);
  }
  return nodes;
}

// What one rank gets, and from which nodes.
struct Share {
  std::vector<int> processors;
  std::vector<size_t> nodes;
};

// REQUIRES: the nodes have as many processors left.
Share TakeShare(int threads, std::vector<Node>* nodes) {
  Share share;
  while (static_cast<int>(share.processors.size()) < threads) {
    const int rest = threads - static_cast<int>(share.processors.size());
    const auto best =
        std::ranges::max_element(*nodes, {}, [&](const Node& node) { return node.Merit(rest); });
    const std::vector<int> taken = best->Take(rest);
    share.processors.insert(share.processors.end(), taken.begin(), taken.end());
    share.nodes.push_back(static_cast<size_t>(best - nodes->begin()));
  }
  return share;
}

// Of the rank `index`, when all before it have taken theirs.
Share ShareOf(int index, int threads, std::vector<Node> nodes) {
  for (int before = 0; before < index; ++before) TakeShare(threads, &nodes);
  return TakeShare(threads, &nodes);
}

std::string Count(int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::string Ranks(int count, int threads) {
  return fmt::format("{} of {}", Count(count, "rank"), Count(threads, "thread"));
}

// What auto means here, and why.
std::pair<Pinning, std::string> Decide(std::span<const HostCore> cores, size_t nodes,
                                       const HostShare& share, int threads) {
  if (share.count == 0) return {Pinning::kOff, "how many ranks share this host is not known"};
  const std::string ranks = Ranks(share.count, threads);
  const int64_t wanted = int64_t{share.count} * threads;
  const auto there = static_cast<int64_t>(cores.size());
  // Who takes most of the cores meets others on them wherever it runs: pinned it loses least to
  // them (with every core taken and a busy process beside, it made a fifth more tokens on two
  // cores). Who takes fewer may have neighbours that would be pinned to the same ones.
  if (wanted <= there && 2 * wanted > there) {
    return {Pinning::kCores, fmt::format("{} take most of {}", ranks, Count(there, "core"))};
  }
  const std::string why = wanted > there
                              ? fmt::format("{} share {}", ranks, Count(there, "core"))
                              : fmt::format("{} leave room on {}", ranks, Count(there, "core"));
  return {nodes > 1 ? Pinning::kNode : Pinning::kOff, why};
}

// Writes down where the threads of a rank with this share run.
void Settle(const Share& share, const std::vector<Node>& nodes, int threads, PlacementPlan* plan) {
  std::vector<int> of_nodes;
  for (const size_t node : share.nodes) {
    of_nodes.insert(of_nodes.end(), nodes[node].all().begin(), nodes[node].all().end());
  }
  for (int thread = 0; thread < threads; ++thread) {
    plan->processors.push_back(plan->pinning == Pinning::kCores
                                   ? std::vector<int>{share.processors[static_cast<size_t>(thread)]}
                                   : of_nodes);
  }
  if (share.nodes.size() == 1 && nodes.size() > 1) {
    plan->node = nodes[share.nodes.front()].id();
    plan->node_processors = of_nodes;
  }
}

std::string Describe(const PlacementPlan& plan, std::string_view why) {
  std::string text;
  if (plan.pinning == Pinning::kOff) {
    text = "threads are not pinned";
  } else if (plan.pinning == Pinning::kCores) {
    std::vector<int> processors;
    for (const std::vector<int>& own : plan.processors) processors.push_back(own.front());
    text = fmt::format("threads are pinned to processors {}", fmt::join(processors, ", "));
    if (plan.node >= 0) text += fmt::format(" of NUMA node {}", plan.node);
  } else {
    text = plan.node >= 0 ? fmt::format("threads stay on NUMA node {}", plan.node)
                          : std::string("threads stay on their NUMA nodes");
  }
  return why.empty() ? text : fmt::format("{}: {}", text, why);
}

}  // namespace

absl::StatusOr<PlacementPlan> PlanPlacement(std::span<const HostCore> cores,
                                            const PlacementOptions& options, int threads) {
  const std::vector<Node> nodes = NodesOf(cores);
  PlacementPlan plan;
  plan.pinning = options.pinning;
  std::string why;
  if (plan.pinning == Pinning::kAuto) {
    std::tie(plan.pinning, why) = Decide(cores, nodes.size(), options.share, threads);
  }
  if (plan.pinning == Pinning::kOff) {
    plan.why = Describe(plan, why);
    return plan;
  }
  const HostShare host = options.share.count == 0 ? HostShare{0, 1} : options.share;
  int64_t processors = 0;
  for (const Node& node : nodes) processors += node.processors();
  Share share;
  if (int64_t{host.count} * threads <= processors) {
    share = ShareOf(host.index, threads, nodes);
  } else if (plan.pinning == Pinning::kNode) {
    share.nodes = {static_cast<size_t>(host.index) % nodes.size()};
  } else {
    return FailedPrecondition("{} cannot be pinned to {}", Ranks(host.count, threads),
                              Count(processors, "processor"));
  }
  Settle(share, nodes, threads, &plan);
  plan.why = Describe(plan, why);
  return plan;
}

absl::StatusOr<std::unique_ptr<Placement>> Placement::Make(const PlacementOptions& options,
                                                           int threads) {
  const auto none = [](std::string why) {
    PlacementPlan plan;
    plan.why = Describe(plan, why);
    return std::unique_ptr<Placement>(new Placement(std::nullopt, std::move(plan)));
  };
  if (options.pinning == Pinning::kOff) return none("");
  absl::StatusOr<HostTopology> host = HostTopology::Load();
  if (!host.ok()) {
    if (options.pinning == Pinning::kAuto) return none(MessageOf(host.status()));
    return host.status();
  }
  FACET_ASSIGN_OR_RETURN(PlacementPlan plan,
                         PlanPlacement(host->Cores(host->AllowedProcessors()), options, threads));
  std::optional<HostTopology> kept;
  if (plan.pinning != Pinning::kOff) kept = *std::move(host);
  return std::unique_ptr<Placement>(new Placement(std::move(kept), std::move(plan)));
}

// Errors are left alone: a thread that runs elsewhere computes the same.
void Placement::Bind(int thread) const {
  if (host_) host_->BindThread(plan_.processors[static_cast<size_t>(thread)]).IgnoreError();
}

void Placement::BindCaller() const {
  thread_local const Placement* bound_by = nullptr;
  if (bound_by == this) return;
  bound_by = this;
  Bind(0);
}

void Placement::Move(std::span<const std::byte> range) const {
  if (host_ && plan_.node >= 0) host_->MoveMemory(range, plan_.node).IgnoreError();
}

Placement::OnNode::OnNode(const Placement& placement) : placement_(placement) {
  const std::vector<int>& processors = placement.plan_.node_processors;
  if (processors.empty()) return;
  before_ = placement.host_->AllowedProcessors();
  placement.host_->BindThread(processors).IgnoreError();
}

Placement::OnNode::~OnNode() {
  if (!before_.empty()) placement_.host_->BindThread(before_).IgnoreError();
}

}  // namespace facet
