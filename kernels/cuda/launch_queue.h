#ifndef FACET_KERNELS_CUDA_LAUNCH_QUEUE_H_
#define FACET_KERNELS_CUDA_LAUNCH_QUEUE_H_

#include <cstdint>
#include <list>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/stream_wait.h"
#include "kernels/cuda/transfers.h"

namespace facet::cuda {

// A function of kernels.h, a library's product or transfers between ranks, with the arguments that
// it will be called with.
template <auto kFunction>
struct Call;
template <typename... Arguments, int (*kFunction)(Stream, Arguments...)>
struct Call<kFunction> {
  std::tuple<std::decay_t<Arguments>...> arguments;
  bool operator==(const Call&) const = default;
  int Run(Stream stream) const {
    return std::apply([&](const auto&... values) { return kFunction(stream, values...); },
                      arguments);
  }
};

struct KernelCall {
  const char* what = "";  // for the sentence where it fails
  std::variant<Call<&GatherRows>, Call<&GatherBrought>, Call<&EmbedRows>, Call<&RmsNorm>,
               Call<&ResidualNorm>, Call<&SoftCap>, Call<&ApplyGate>, Call<&QuantizeRows>,
               Call<&IntegerProducts>, Call<&FloatProducts>, Call<&VectorProducts>,
               Call<&RoundToBf16>, Call<&RunLibraryProduct>, Call<&StoreProducts>, Call<&SumLeaves>,
               Call<&RopeAndStore>, Call<&Attend>, Call<&AttendTiles>, Call<&ProcessLogits>,
               Call<&SumSlices>, Call<&SelectTop>, Call<&SelectBest>, Call<&KeepBest>,
               Call<&SumTreeRoots>, Call<&RunTransfers>>
      call;
  bool operator==(const KernelCall& other) const { return call == other.call; }
};

// Every kernel of a device goes through here, and every exchange, in the order of the calls.
//
// At first a kernel is put on the stream at once. While deferring (steps of few rows), kernels wait
// until Flush(), which the device calls before the host waits, copies or reads anything. The
// sequence that waited is then compared, argument by argument, with those that came before: the
// second time that it comes it is captured, from the third on one launch of its graph replays it.
// A graph's kernels have the arguments that they were captured with, so what differs from step to
// step lies in memory, at addresses that do not differ (UploadArea). Where an argument does differ,
// it is another sequence.
//
// Where a capture fails, for want of memory or because the driver or NCCL refuses, sequences that
// have no graph yet are launched kernel by kernel from then on.
//
// A sequence with exchanges asks their guard before it goes to the stream, once, and is dropped if
// not all ranks are about to put the same there. Used by the device's thread.
class LaunchQueue {
 public:
  struct Options {
    int64_t calls_max = 0;  // that all remembered sequences have together; 0: nothing is deferred
    int64_t bytes = 0;      // of device memory, held back during set-up for graphs
    bool fallback = true;   // false: a capture that fails ends the process
  };

  LaunchQueue() = default;
  LaunchQueue(const LaunchQueue&) = delete;
  LaunchQueue& operator=(const LaunchQueue&) = delete;
  ~LaunchQueue();

  absl::Status Init(const Options& options, DeviceMemory* memory, Stream stream);

  // Whether anything can be deferred at all.
  bool defers() const { return options_.calls_max > 0; }
  // Flushes, and says what becomes of the kernels from now on.
  void Defer(bool on);
  bool deferring() const { return deferring_; }

  // Of all exchanges from now on; nullptr: there are none.
  void SetGuard(StreamGuard* guard) { guard_ = guard; }
  // Drops what waits and forgets what is remembered of exchanges by `link`, which will not be
  // again: its graphs are destroyed, and free as soon as the stream has left them.
  void Forget(const NcclLink* link);

  template <auto kFunction, typename... Arguments>
  void Put(const char* what, const Arguments&... arguments) {
    KernelCall& call = waiting_.emplace_back();
    call.what = what;
    call.call = Call<kFunction>{{arguments...}};
    if constexpr (std::is_same_v<Call<kFunction>, Call<&RunTransfers>>) exchanges_ = true;
    if (!deferring_) Flush();
  }
  // Everything is on the stream afterwards, unless the guard refused.
  void Flush();

 private:
  struct Sequence {
    uint64_t hash = 0;
    std::vector<KernelCall> calls;
    Graph graph = nullptr;  // from the second time on
  };
  using Sequences = std::list<Sequence>;

  void Launch();
  void LaunchEach();
  void Replay(Sequences::iterator sequence);
  void Capture(Sequence* sequence);
  void Remember(uint64_t hash);
  void Forget(Sequences::iterator sequence);

  Options options_;
  DeviceMemory* memory_ = nullptr;
  Stream stream_ = nullptr;
  void* reserve_ = nullptr;  // options_.bytes, until the first capture
  bool deferring_ = false;
  bool capturing_ = true;  // false once a capture has failed
  StreamGuard* guard_ = nullptr;
  std::vector<KernelCall> waiting_;
  bool exchanges_ = false;  // some of what waits are
  bool whole_ = true;       // all exchanges of what is being launched got to the stream
  Sequences remembered_;    // the last used first
  std::unordered_map<uint64_t, Sequences::iterator> by_hash_;
  int64_t remembered_calls_ = 0;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_LAUNCH_QUEUE_H_
