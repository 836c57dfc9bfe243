#ifndef FACET_TESTS_CUDA_EMULATOR_MACHINE_H_
#define FACET_TESTS_CUDA_EMULATOR_MACHINE_H_

// Runs the threads of a grid on the calling thread: one block after the other, the threads of a
// block as fibers that go on until they have to wait for each other. The order of blocks and
// threads comes from a seed. Each host thread has a machine of its own.
//
// A fault (findings.h) is reported, unwinds all threads of the block and ends the launch.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/launch_shape.h"
#include "tests/cuda_emulator/fiber.h"
#include "tests/cuda_emulator/findings.h"
#include "tests/cuda_emulator/ready_set.h"
#include "tests/cuda_emulator/shared_memory.h"

namespace facet::cuda_emulator {

using cuda::Dim3;
using cuda::LaunchShape;

// Error codes of the CUDA runtime.
inline constexpr int kErrorInvalidConfiguration = 9;
inline constexpr int kErrorLaunchFailure = 719;

// What the lanes of a warp do together.
enum class WarpStep { kBarrier, kShuffle, kBallot, kMma, kLoadMatrix };

// Leaves the thread's code after a fault. Only the machine throws and catches it.
struct KernelStopped {};

class Machine {
 public:
  static constexpr int kThreadsMax = kWarpsMax * kLanes;
  static_assert(kThreadsMax == ReadySet::kSize);
  // What a lane brings to a WarpStep.
  using Operand = std::array<uint32_t, 8>;
  using Operands = std::array<Operand, kLanes>;

  static Machine& OfThisThread();
  // Of the launches from now on, on this thread. Each has an order of its own.
  void SetSeed(uint64_t seed);

  // Runs `body` as every thread of the grid. Returns 0 or CUDA's error code.
  int Run(const LaunchShape& shape, const std::function<void()>& body);

  // --- For the code of the thread that is running. `place` is where it is in the kernel.

  Dim3 thread_index() const { return running_->index; }
  Dim3 block_index() const { return block_index_; }
  const LaunchShape& shape() const { return shape_; }
  int lane() const { return running_->id % kLanes; }

  void BlockBarrier(const Place& place);
  // Brings `operand` and returns what every lane brought, once all are there. The result stays
  // until this thread's next step but one.
  const Operands& Meet(WarpStep step, const Operand& operand, const Place& place);
  void WarpBarrier(const Place& place);

  void ReadShared(Range range, void* to, const Place& place);
  void WriteShared(Range range, const void* from, const Place& place);
  // An atomic on one word; returns what was there. Others may go on first, now.
  uint32_t UpdateShared(Range range, const std::function<uint32_t(uint32_t)>& update,
                        const Place& place);
  // For atomics on other memory: this thread goes on when its turn comes again.
  void BeOvertaken(const Place& place);
  // Where the fixed array is that `declared` stands for: in one place for the whole launch.
  Range StaticShared(const void* declared, uint32_t bytes, const Place& place);
  // 16 bytes, zeros where `from` is null.
  void CopyAsync(Range range, const void* from, const Place& place);
  void CopyAsyncCommit();
  void CopyAsyncWait(size_t newest);

  // Ends the launch with a finding about the thread that is running.
  [[noreturn]] void Fail(Fault fault, const std::string& text, const Place& place);

 private:
  enum class State { kReady, kAtBarrier, kAtWarpStep, kDone };
  // How the next thread is chosen.
  enum class Order { kAny, kFirst, kLast };

  struct Copy {
    Range to;
    const void* from;
  };
  struct Thread {
    int id = 0;
    Dim3 index;
    State state = State::kDone;
    Place place;
    uint32_t steps = 0;                     // WarpSteps so far
    std::vector<Copy> copies;               // not yet committed
    std::vector<std::vector<Copy>> groups;  // committed, the oldest first
    std::unique_ptr<Fiber> fiber;
  };
  struct StaticArray {
    const void* declared;
    Range range;
  };
  struct Warp {
    uint32_t arrived = 0;  // bit per lane
    WarpStep step = WarpStep::kBarrier;
    Place place;
    std::array<Operands, 2> operands;  // of this step and the one before
  };

  Machine() = default;
  bool CheckShape(const LaunchShape& shape) const;
  void PrepareThreads(int count);
  bool RunBlock(const std::function<void()>& body);
  int PickReady();
  void BecomeReady(int thread);
  void RunThread(const std::function<void()>& entry, int thread);
  void ThreadMain(const std::function<void()>& body);
  void Wait(State state, const Place& place);
  bool ReleaseBarrier();
  void FailStuck();
  void Stop();
  void FinishGroup(Thread& thread);
  void ReportAbout(const Thread& thread, Fault fault, const std::string& text, const Place& place);

  uint64_t seed_ = 0;
  uint64_t launches_ = 0;
  std::mt19937_64 random_;
  Order order_ = Order::kAny;
  LaunchShape shape_;
  Dim3 block_index_;
  std::vector<StaticArray> static_arrays_;  // of this launch, as its threads came by
  uint32_t static_bytes_ = 0;
  int thread_count_ = 0;  // of the block
  int at_barrier_ = 0;
  bool stopped_ = false;  // a fault: the block's threads are to unwind
  Thread* running_ = nullptr;
  std::vector<Thread> threads_;
  std::array<Warp, kWarpsMax> warps_;
  ReadySet ready_;
  SharedBytes shared_;
};

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_MACHINE_H_
