#include "tests/cuda_emulator/machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/prng.h"

namespace facet::cuda_emulator {
namespace {

constexpr uint64_t kGridSideMax = 65535;  // of y and z
constexpr uint32_t kAllLanes = 0xffffffffu;

uint64_t Volume(const Dim3& size) { return uint64_t{size.x} * size.y * size.z; }

Dim3 Unflatten(uint64_t i, const Dim3& size) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

std::string Describe(const Dim3& index) {
  return fmt::format("({},{},{})", index.x, index.y, index.z);
}

const char* Name(Fault fault) {
  switch (fault) {
    case Fault::kBadLaunch:
      return "bad launch";
    case Fault::kUninitialized:
      return "uninitialised read";
    case Fault::kRace:
      return "race";
    case Fault::kDivergentBarrier:
      return "divergent barrier";
    case Fault::kAbsentLane:
      return "absent lane";
    case Fault::kOutOfRange:
      return "out of range";
    case Fault::kMisaligned:
      return "misaligned access";
    case Fault::kUnfinishedCopy:
      return "unfinished copy";
  }
  return "fault";
}

}  // namespace

Machine& Machine::OfThisThread() {
  thread_local Machine machine;
  return machine;
}

void Machine::SetSeed(uint64_t seed) {
  seed_ = seed;
  launches_ = 0;
}

bool Machine::CheckShape(const LaunchShape& shape) const {
  const uint64_t threads = Volume(shape.block);
  std::string wrong;
  if (threads == 0 || threads > kThreadsMax) wrong = fmt::format("{} threads per block", threads);
  if (threads % kLanes != 0) wrong = fmt::format("{} threads are not whole warps", threads);
  if (shape.block.z > 64) wrong = fmt::format("a block of depth {}", shape.block.z);
  if (Volume(shape.grid) == 0 || shape.grid.x > 0x7fffffffu || shape.grid.y > kGridSideMax ||
      shape.grid.z > kGridSideMax) {
    wrong = fmt::format("a grid of {}", Describe(shape.grid));
  }
  if (shape.shared_bytes > kSharedBytesMax) {
    wrong = fmt::format("{} bytes of shared memory", shape.shared_bytes);
  }
  if (wrong.empty()) return true;
  Report({Fault::kBadLaunch, "bad launch: " + wrong});
  return false;
}

int Machine::Run(const LaunchShape& shape, const std::function<void()>& body) {
  FACET_CHECK(running_ == nullptr, "a kernel launches a kernel");
  if (!CheckShape(shape)) return kErrorInvalidConfiguration;
  random_.seed(Mix64(seed_, launches_++));
  order_ = std::array{Order::kAny, Order::kFirst, Order::kLast}[random_() % 3];
  shape_ = shape;
  static_arrays_.clear();
  static_bytes_ = 0;
  PrepareThreads(static_cast<int>(Volume(shape.block)));
  std::vector<uint64_t> blocks(Volume(shape.grid));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), random_);
  for (const uint64_t block : blocks) {
    block_index_ = Unflatten(block, shape.grid);
    if (!RunBlock(body)) return kErrorLaunchFailure;
  }
  return 0;
}

void Machine::PrepareThreads(int count) {
  thread_count_ = count;
  while (threads_.size() < static_cast<size_t>(count)) {
    threads_.emplace_back().fiber = std::make_unique<Fiber>();
  }
  for (int i = 0; i < count; ++i) {
    threads_[i].id = i;
    threads_[i].index = Unflatten(i, shape_.block);
  }
}

// False if it ended with a finding.
bool Machine::RunBlock(const std::function<void()>& body) {
  shared_.BeginBlock();
  at_barrier_ = 0;
  stopped_ = false;
  ready_.Clear();
  for (Warp& warp : warps_) warp.arrived = 0;
  for (int i = 0; i < thread_count_; ++i) {
    threads_[i].copies.clear();
    threads_[i].groups.clear();
    threads_[i].steps = 0;
    BecomeReady(i);
  }
  const std::function<void()> entry = [&] { ThreadMain(body); };
  int done = 0;
  while (!stopped_ && done < thread_count_) {
    if (ready_.empty() && !ReleaseBarrier()) {
      FailStuck();
      break;
    }
    const int next = PickReady();
    RunThread(entry, next);
    if (threads_[next].state == State::kDone) ++done;
  }
  Stop();
  return !stopped_;
}

// Takes a ready thread off the list, by this launch's order.
int Machine::PickReady() {
  if (order_ == Order::kLast) return ready_.TakeLast();
  return ready_.TakeFrom(order_ == Order::kAny ? static_cast<int>(random_() % thread_count_) : 0);
}

void Machine::BecomeReady(int thread) {
  threads_[thread].state = State::kReady;
  ready_.Add(thread);
}

void Machine::RunThread(const std::function<void()>& entry, int thread) {
  running_ = &threads_[thread];
  if (running_->fiber->done()) {
    running_->fiber->Start(entry);
  } else {
    running_->fiber->Resume();
  }
  running_ = nullptr;
}

void Machine::ThreadMain(const std::function<void()>& body) {
  try {
    body();
  } catch (const KernelStopped&) {
  }
  running_->state = State::kDone;
}

// Until another thread or the machine makes this one ready.
void Machine::Wait(State state, const Place& place) {
  running_->state = state;
  running_->place = place;
  running_->fiber->Suspend();
  if (stopped_) throw KernelStopped{};
}

// After a fault: unwinds what is still on the way.
void Machine::Stop() {
  if (!stopped_) return;
  for (int i = 0; i < thread_count_; ++i) {
    if (!threads_[i].fiber->done()) RunThread({}, i);
  }
}

void Machine::BlockBarrier(const Place& place) {
  ++at_barrier_;
  Wait(State::kAtBarrier, place);
}

// Lets everyone go on if all threads wait at one barrier. False: they do not.
bool Machine::ReleaseBarrier() {
  if (at_barrier_ != thread_count_) return false;
  for (int i = 1; i < thread_count_; ++i) {
    if (threads_[i].place.line() == threads_[0].place.line()) continue;
    ReportAbout(threads_[i], Fault::kDivergentBarrier,
                "waits here, thread 0 at " + cuda_emulator::Describe(threads_[0].place),
                threads_[i].place);
    return false;
  }
  at_barrier_ = 0;
  shared_.BlockBarrier();
  for (int i = 0; i < thread_count_; ++i) BecomeReady(i);
  return true;
}

// Nobody can go on: says who waits for whom.
void Machine::FailStuck() {
  if (stopped_) return;
  const Thread* waiting = nullptr;  // preferably at a WarpStep
  const Thread* other = nullptr;    // who is not there
  for (int i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == State::kDone) continue;
    if (waiting == nullptr || thread.state == State::kAtWarpStep) waiting = &thread;
  }
  FACET_CHECK(waiting != nullptr, "nobody waits and nobody is ready");
  const bool in_warp = waiting->state == State::kAtWarpStep;
  const int first = in_warp ? waiting->id / kLanes * kLanes : 0;
  const int end = in_warp ? first + kLanes : thread_count_;
  for (int i = first; i < end && other == nullptr; ++i) {
    if (threads_[i].state != waiting->state) other = &threads_[i];
  }
  FACET_CHECK(other != nullptr, "all wait at one place and none goes on");
  const std::string where = other->state == State::kDone
                                ? "has returned"
                                : "waits at " + cuda_emulator::Describe(other->place);
  ReportAbout(*waiting, in_warp ? Fault::kAbsentLane : Fault::kDivergentBarrier,
              fmt::format("waits here, thread {} {}", other->id, where), waiting->place);
}

const Machine::Operands& Machine::Meet(WarpStep step, const Operand& operand, const Place& place) {
  const int lane = running_->id % kLanes;
  Warp& warp = warps_[running_->id / kLanes];
  Operands& operands = warp.operands[running_->steps++ % 2];
  operands[lane] = operand;
  if (warp.arrived == 0) {
    warp.step = step;
    warp.place = place;
  } else if (warp.step != step || warp.place.line() != place.line()) {
    Fail(Fault::kAbsentLane, "is here, other lanes wait at " + cuda_emulator::Describe(warp.place),
         place);
  }
  warp.arrived |= 1u << lane;
  if (warp.arrived != kAllLanes) {
    Wait(State::kAtWarpStep, place);
    return operands;
  }
  warp.arrived = 0;
  const int first = running_->id - lane;
  if (step == WarpStep::kBarrier) shared_.WarpBarrier(first / kLanes);
  for (int i = first; i < first + kLanes; ++i) {
    if (i != running_->id) BecomeReady(i);
  }
  return operands;
}

void Machine::WarpBarrier(const Place& place) { Meet(WarpStep::kBarrier, {}, place); }

void Machine::ReadShared(Range range, void* to, const Place& place) {
  if (auto fault = shared_.Read(range, running_->id, to)) Fail(fault->fault, fault->text, place);
}

void Machine::WriteShared(Range range, const void* from, const Place& place) {
  if (auto fault = shared_.Write(range, running_->id, from)) Fail(fault->fault, fault->text, place);
}

uint32_t Machine::UpdateShared(Range range, const std::function<uint32_t(uint32_t)>& update,
                               const Place& place) {
  uint32_t before = 0;
  if (auto fault = shared_.Update(range, running_->id, update, &before)) {
    Fail(fault->fault, fault->text, place);
  }
  BeOvertaken(place);
  return before;
}

void Machine::BeOvertaken(const Place& place) {
  BecomeReady(running_->id);
  Wait(State::kReady, place);
}

Range Machine::StaticShared(const void* declared, uint32_t bytes, const Place& place) {
  for (const StaticArray& array : static_arrays_) {
    if (array.declared == declared) return array.range;
  }
  const Range range = {kSharedBytesMax + static_bytes_, bytes};
  static_bytes_ += (bytes + 15) / 16 * 16;
  const uint32_t room =
      shape_.shared_bytes > kSharedBytesWithoutAsking ? kSharedBytesMax : kSharedBytesWithoutAsking;
  if (static_bytes_ > kSharedBytesWithoutAsking || static_bytes_ + shape_.shared_bytes > room) {
    Fail(Fault::kOutOfRange, NoRoomForFixed(static_bytes_, shape_.shared_bytes), place);
  }
  static_arrays_.push_back({declared, range});
  return range;
}

void Machine::CopyAsync(Range range, const void* from, const Place& place) {
  if (auto fault = shared_.BeginCopy(range, running_->id)) Fail(fault->fault, fault->text, place);
  running_->copies.push_back({range, from});
}

void Machine::CopyAsyncCommit() { running_->groups.push_back(std::exchange(running_->copies, {})); }

// As late as the hardware might.
void Machine::CopyAsyncWait(size_t newest) {
  while (running_->groups.size() > newest) FinishGroup(*running_);
}

void Machine::FinishGroup(Thread& thread) {
  static constexpr std::array<unsigned char, 16> kZeros{};
  for (const Copy& copy : thread.groups.front()) {
    shared_.EndCopy(copy.to, thread.id, copy.from != nullptr ? copy.from : kZeros.data());
  }
  thread.groups.erase(thread.groups.begin());
}

void Machine::Fail(Fault fault, const std::string& text, const Place& place) {
  ReportAbout(*running_, fault, text, place);
  throw KernelStopped{};
}

void Machine::ReportAbout(const Thread& thread, Fault fault, const std::string& text,
                          const Place& place) {
  stopped_ = true;
  Report({fault, fmt::format("{}: block {} thread {} {} ({})", Name(fault), Describe(block_index_),
                             thread.id, text, cuda_emulator::Describe(place))});
}

}  // namespace facet::cuda_emulator
