#include "kernels/cuda/launch_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "kernels/cuda/cuda_context.h"

namespace facet::cuda {
namespace {

// A graph's launch costs about as much as so many kernels'.
constexpr size_t kReplayedMin = 4;

// Parts of an argument by which most sequences differ. Equality decides, so a part that is left out
// costs nothing but a sequence forgotten now and then.
template <typename T>
uint64_t HashOf(const T& value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<uintptr_t>(value);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<uint64_t>(value);
  } else {
    return 0;
  }
}
uint64_t HashOf(const LeafProducts& args) {
  return Mix64(HashOf(args.weights), Mix64(HashOf(args.out), HashOf(args.x_rows)));
}
uint64_t HashOf(const ResidualNormRows& args) {
  return Mix64(HashOf(args.next_weight), HashOf(args.rows));
}
uint64_t HashOf(const AttentionLayer& layer) {
  return Mix64(HashOf(layer.pool.data), HashOf(layer.layer));
}
uint64_t HashOf(const AttentionPass& pass) { return Mix64(HashOf(pass.rows), HashOf(pass.splits)); }
uint64_t HashOf(const LogitRows& rows) { return Mix64(HashOf(rows.rows), HashOf(rows.edits_max)); }

uint64_t HashOf(const TreeSum& sum) { return Mix64(HashOf(sum.out), HashOf(sum.elements)); }
uint64_t HashOf(const Transfers& transfers) {
  uint64_t hash = transfers.list.size();
  for (const Transfer& transfer : transfers.list) {
    hash = Mix64(hash, Mix64(HashOf(transfer.from), HashOf(transfer.count)));
  }
  return hash;
}

uint64_t HashOf(const std::vector<KernelCall>& calls) {
  uint64_t hash = calls.size();
  for (const KernelCall& call : calls) {
    hash = Mix64(hash, call.call.index());
    std::visit(
        [&](const auto& c) {
          std::apply([&](const auto&... values) { ((hash = Mix64(hash, HashOf(values))), ...); },
                     c.arguments);
        },
        call.call);
  }
  return hash;
}

int Run(const KernelCall& call, Stream stream) {
  return std::visit([&](const auto& c) { return c.Run(stream); }, call.call);
}

bool BelongsTo(const KernelCall& call, const NcclLink* link) {
  const auto* const exchange = std::get_if<Call<&RunTransfers>>(&call.call);
  return exchange != nullptr && std::get<0>(exchange->arguments).link == link;
}

// What a call in a capture returned.
absl::Status CapturedStatus(int code) {
  return code == kTransfersFailed ? Internal("NCCL refuses the capture") : CallStatus(code);
}

}  // namespace

LaunchQueue::~LaunchQueue() {
  while (!remembered_.empty()) Forget(remembered_.begin());
}

absl::Status LaunchQueue::Init(const Options& options, DeviceMemory* memory, Stream stream) {
  options_ = options;
  memory_ = memory;
  stream_ = stream;
  if (options_.calls_max == 0 || options_.bytes == 0) return absl::OkStatus();
  FACET_ASSIGN_OR_RETURN(reserve_, memory->Allocate("graphs", options_.bytes));
  return absl::OkStatus();
}

void LaunchQueue::Defer(bool on) {
  Flush();
  deferring_ = on && defers();
}

void LaunchQueue::Flush() {
  if (waiting_.empty()) return;
  const bool exchanges = std::exchange(exchanges_, false);
  FACET_CHECK(!exchanges || guard_ != nullptr, "exchanges that nobody guards");
  if (exchanges && !guard_->Enter().ok()) return waiting_.clear();
  Launch();
  waiting_.clear();
  if (exchanges) guard_->Entered(std::exchange(whole_, true));
}

void LaunchQueue::Launch() {
  if (!deferring_ || waiting_.size() < kReplayedMin) return LaunchEach();
  const uint64_t hash = HashOf(waiting_);
  const auto found = by_hash_.find(hash);
  if (found != by_hash_.end() && found->second->calls == waiting_) {
    Replay(found->second);
  } else {
    LaunchEach();
    Remember(hash);
  }
}

void LaunchQueue::LaunchEach() {
  for (const KernelCall& call : waiting_) {
    const int code = Run(call, stream_);
    whole_ = code != kTransfersFailed;
    if (!whole_) return;  // nothing behind it has what it needs
    CheckLaunch(code, call.what);
  }
}

void LaunchQueue::Replay(Sequences::iterator sequence) {
  remembered_.splice(remembered_.begin(), remembered_, sequence);
  if (sequence->graph == nullptr && capturing_) Capture(&*sequence);
  if (sequence->graph == nullptr) return LaunchEach();
  CheckOk(LaunchGraph(sequence->graph, stream_), "a graph");
}

// All its kernels have run before, so that none is loaded during the capture, which drivers refuse.
void LaunchQueue::Capture(Sequence* sequence) {
  if (reserve_ != nullptr) memory_->Release(std::exchange(reserve_, nullptr));
  absl::Status status = BeginCapture(stream_);
  if (status.ok()) {
    for (const KernelCall& call : sequence->calls) {
      status.Update(CapturedStatus(Run(call, stream_)));
    }
    absl::StatusOr<Graph> graph = EndCapture(stream_);
    status.Update(graph.status());
    if (graph.ok()) sequence->graph = *graph;
  }
  if (status.ok()) return;
  FACET_CHECK(options_.fallback, "a graph: {}", MessageOf(status));
  // What is wrong with the device, if anything is, the same kernels will show one by one.
  capturing_ = false;
  if (sequence->graph != nullptr) DestroyGraph(std::exchange(sequence->graph, nullptr));
}

void LaunchQueue::Remember(uint64_t hash) {
  const auto size = static_cast<int64_t>(waiting_.size());
  if (size > options_.calls_max) return;
  if (const auto other = by_hash_.find(hash); other != by_hash_.end()) Forget(other->second);
  while (remembered_calls_ + size > options_.calls_max) Forget(std::prev(remembered_.end()));
  remembered_.push_front({hash, waiting_, nullptr});
  by_hash_[hash] = remembered_.begin();
  remembered_calls_ += size;
}

void LaunchQueue::Forget(Sequences::iterator sequence) {
  if (sequence->graph != nullptr) DestroyGraph(sequence->graph);
  remembered_calls_ -= static_cast<int64_t>(sequence->calls.size());
  by_hash_.erase(sequence->hash);
  remembered_.erase(sequence);
}

void LaunchQueue::Forget(const NcclLink* link) {
  const auto theirs = [link](const KernelCall& call) { return BelongsTo(call, link); };
  if (std::ranges::any_of(waiting_, theirs)) {
    waiting_.clear();
    exchanges_ = false;
  }
  for (auto sequence = remembered_.begin(); sequence != remembered_.end();) {
    const auto next = std::next(sequence);
    if (std::ranges::any_of(sequence->calls, theirs)) Forget(sequence);
    sequence = next;
  }
}

}  // namespace facet::cuda
