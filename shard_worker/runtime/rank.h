#ifndef FACET_SHARD_WORKER_RUNTIME_RANK_H_
#define FACET_SHARD_WORKER_RUNTIME_RANK_H_

// One rank of a group: its slice of the model on its device, its KV pools, and its end of the
// communicator. The service layer loads it once and then, for every epoch of its group, attaches
// the communicator when all ranks are ready, makes the leader's executor or follows, and detaches.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoint/packed_cache.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/device_collectives.h"
#include "kernels/device.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/executor.h"
#include "shard_worker/runtime/placement.h"
#include "shard_worker/runtime/step_times.h"

namespace facet {

struct RankOptions {
  std::string model_path;
  int rank = 0;
  int world = 1;
  int threads = 1;
  PlacementOptions placement;   // of a device that computes in host memory
  std::string device = "auto";  // as DeviceChoice's name
  // --arithmetic=fast, as DeviceChoice's.
  bool fast_arithmetic = false;
  // Packs the output layer so that searches for tokens leave most of it unread. No token changes.
  bool screened_head = true;
  bool profile = false;  // from the start on; see Rank::Profile()
  // Whether a step may begin before the one before it is read. Unset: where the device computes
  // apart from its caller, and exchanges data with the other ranks' by itself. The same on all
  // ranks. No token changes.
  std::optional<bool> overlap;
  KvType kv_type = KvType::kF16;
  int context_tokens = 0;     // 0: the model's own
  int64_t kv_tokens = 16384;  // keys the pool of full layers holds, over all sequences
  int step_tokens_max = 512;
  // Of one sequence per step. 0: step_tokens_max; on a device in host memory 256 at most, which
  // takes less time in all.
  int prefill_chunk_max = 0;
  int mixed_prefill_max = 0;  // as EngineOptions'; 0: step_tokens_max
  int sequences_max = 64;
  // Of each collective. A leader that idles runs an empty plan well within it, and a rank that does
  // not move for 2 s inside a step is given up anyhow: this is what holds if nobody watches.
  std::chrono::milliseconds step_timeout{2500};
  // Where packed weights are kept for the next start and for other ranks; no folder: nowhere.
  PackedCacheOptions packed_cache;
  // Makes the device instead of `device`; for tests.
  std::function<std::unique_ptr<Device>()> make_device;
  // Called from Load(), by one thread at a time, with bytes packed of bytes in all, from 0 on; not
  // where all are packed already. May be empty.
  std::function<void(int64_t done, int64_t total)> progress;
  // Called from Load() with what went wrong and did no harm; may be empty.
  std::function<void(std::string_view)> warn;
  // Called from Load() with a sentence for the log, on what computes and why; may be empty.
  std::function<void(std::string_view)> notice;
};

struct ModelFacts {
  std::string architecture;
  std::string description;  // general.name
  int64_t parameters = 0;
  int context_tokens = 0;
  int vocabulary_size = 0;
  uint64_t digest = 0;
  std::string fingerprint;
};

struct RankMemory {
  int64_t weight_bytes = 0;  // packed, of this rank's slice: what a step reads
  int64_t slice_bytes = 0;   // the same slice in the model file
  int64_t kv_bytes = 0;
};

// Whether a rank moves.
struct RankProgress {
  uint64_t moved = 0;    // grows with every part of a layer, and with every step
  bool in_step = false;  // it should move soon
};

class Rank {
 public:
  // InvalidArgument or FailedPrecondition with a sentence about the file, the degree or the
  // options; the message for a degree that cannot be split says which ones can.
  static absl::StatusOr<std::unique_ptr<Rank>> Load(const RankOptions& options);
  virtual ~Rank() = default;

  virtual const ModelFacts& facts() const = 0;
  virtual std::string device_name() const = 0;
  // PCI address of the GPU that it computes on ("0000:3b:00.0"); empty: on none.
  virtual std::string gpu_bus_id() const { return {}; }
  virtual RankMemory memory() const = 0;
  // Of the shard plan, the KV pools and the options that must agree between ranks.
  virtual uint64_t plan_hash() const = 0;
  // Options of an engine that schedules for this group, with as many steps at a time as pay in the
  // epoch that is attached.
  virtual EngineOptions engine_options() const = 0;

  // How the communicator of an epoch can be one between the ranks' devices; null where they compute
  // in host memory. For the thread that attaches, between epochs.
  virtual DeviceCollectives* collectives() { return nullptr; }

  // Begins an epoch with its communicator, of the host's memory or of the device's: all that was
  // known of sequences is forgotten, the weights stay. REQUIRES: of the options' rank and world;
  // none is attached.
  virtual void Attach(std::unique_ptr<Communicator> communicator) = 0;
  // Ends it. REQUIRES: no step runs and Follow() has returned. Repeating is harmless.
  virtual void Detach() = 0;

  // On rank 0. The executor borrows the rank. What it returns of a step is its caller's: a copy of
  // the result, which each step allocates once it is computed.
  virtual std::unique_ptr<Executor> MakeExecutor() = 0;
  // On the other ranks: runs the leader's plans until it says stop (OK) or the group breaks.
  virtual absl::Status Follow() = 0;
  // On rank 0, once no step runs: lets the followers return from Follow().
  virtual absl::Status StopFollowers() = 0;
  // Any thread: breaks the group's collectives.
  virtual void Abort() = 0;
  // Any thread. From the next step on, whether the rank sums up what each operation takes. Costs
  // about 50 ns per operation, and nothing while it is off.
  virtual void Profile(bool on) = 0;
  // Since the last look. Any thread.
  virtual StepTimes TakeTimes() = 0;
  // Any thread.
  virtual RankProgress progress() const = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_RANK_H_
