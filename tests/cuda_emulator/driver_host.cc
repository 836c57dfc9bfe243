#include "tests/cuda_emulator/driver_host.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "kernels/cuda/driver.h"
#include "tests/cuda_emulator/machine.h"
#include "tests/cuda_emulator/stream.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t put = 0;  // of the stream's work, when it was recorded
};

struct CUgraphExec_st {
  std::vector<facet::cuda_emulator::Piece> pieces;
  void* memory = nullptr;
};

namespace facet::cuda_emulator {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kGuardBytes = 256;  // before and after
constexpr std::byte kGuard{0x5a};
constexpr int kUndefined = 0xff;

struct Memory {
  std::mutex mutex;
  std::array<int64_t, kDevices> used{};
  struct Piece {
    int device;
    int64_t bytes;
  };
  std::map<void*, Piece> pieces;
  int64_t pinned = 0;
  std::map<void*, int64_t> pinned_pieces;
};

Memory& TheMemory() {
  static Memory memory;
  return memory;
}

std::atomic<int64_t> device_bytes{int64_t{4} << 30};
std::atomic<int64_t> pinned_bytes{int64_t{1} << 30};
std::atomic<uint64_t> stream_seed{0};
std::atomic<uint64_t> streams_made{0};
std::atomic<int64_t> graphs_made{0};
std::atomic<int64_t> graph_launches{0};
thread_local int current_device = 0;

// With the address sanitizer a touch of a guard is an error at once.
#if defined(__SANITIZE_ADDRESS__)
void Forbid(void* from, int64_t bytes) { __asan_poison_memory_region(from, bytes); }
void Allow(void* from, int64_t bytes) { __asan_unpoison_memory_region(from, bytes); }
#else
void Forbid(void*, int64_t) {}
void Allow(void*, int64_t) {}
#endif

std::byte* TakeGuarded(int64_t bytes) {
  const int64_t whole = (bytes + 2 * kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* raw = static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole));
  FACET_CHECK(raw != nullptr, "the host has no memory for {} bytes", bytes);
  std::fill_n(raw, kGuardBytes, kGuard);
  std::memset(raw + kGuardBytes, kUndefined, bytes);
  std::fill(raw + kGuardBytes + bytes, raw + whole, kGuard);
  Forbid(raw, kGuardBytes);
  Forbid(raw + kGuardBytes + bytes, whole - kGuardBytes - bytes);
  return raw + kGuardBytes;
}

void CheckGuards(std::byte* memory, int64_t bytes) {
  Allow(memory - kGuardBytes, kGuardBytes + bytes + kGuardBytes);
  const auto whole = [](std::byte value) { return value == kGuard; };
  FACET_CHECK(std::all_of(memory - kGuardBytes, memory, whole),
              "something wrote before an allocation of {} bytes", bytes);
  FACET_CHECK(std::all_of(memory + bytes, memory + bytes + kGuardBytes, whole),
              "something wrote beyond an allocation of {} bytes", bytes);
}

}  // namespace

void SetDeviceMemory(int64_t bytes) { device_bytes = bytes; }
void SetPinnedMemory(int64_t bytes) { pinned_bytes = bytes; }
void SetStreamSeed(uint64_t seed) { stream_seed = seed; }

int64_t GraphsMade() { return graphs_made; }
int64_t GraphLaunches() { return graph_launches; }

int64_t AllocatedBytes() {
  std::lock_guard lock(TheMemory().mutex);
  int64_t bytes = 0;
  for (const int64_t used : TheMemory().used) bytes += used;
  return bytes;
}

bool InDeviceMemory(const void* from, int64_t bytes) {
  Memory& memory = TheMemory();
  std::lock_guard lock(memory.mutex);
  auto piece = memory.pieces.upper_bound(const_cast<void*>(from));
  if (piece == memory.pieces.begin()) return false;
  --piece;
  const auto* const begin = static_cast<const std::byte*>(piece->first);
  return static_cast<const std::byte*>(from) + bytes <= begin + piece->second.bytes;
}

}  // namespace facet::cuda_emulator

namespace facet::cuda {

using namespace facet::cuda_emulator;  // NOLINT: this is the emulator's side of the seam

absl::StatusOr<int> DeviceCount() { return kDevices; }

absl::StatusOr<DeviceProperties> Properties(int device) {
  if (device < 0 || device >= kDevices) return Internal("there is no emulated device {}", device);
  DeviceProperties properties;
  properties.name = "emulated";
  properties.uuid = fmt::format("emulated-{}", device);
  properties.major = 8;
  properties.minor = 0;
  properties.multiprocessors = 4;
  properties.memory_bytes = device_bytes;
  properties.shared_bytes_max = 48 * 1024;
  return properties;
}

absl::Status UseDevice(int device) {
  if (device < 0 || device >= kDevices) return Internal("there is no emulated device {}", device);
  current_device = device;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> FreeMemory() {
  std::lock_guard lock(TheMemory().mutex);
  return device_bytes - TheMemory().used[current_device];
}

absl::StatusOr<void*> Allocate(int64_t bytes) {
  FACET_CHECK(bytes > 0, "an allocation of {} bytes", bytes);
  Memory& memory = TheMemory();
  std::lock_guard lock(memory.mutex);
  if (memory.used[current_device] + bytes > device_bytes) {
    return ResourceExhausted("cudaMalloc: out of memory (emulated)");
  }
  void* piece = TakeGuarded(bytes);
  memory.used[current_device] += bytes;
  memory.pieces[piece] = {current_device, bytes};
  return piece;
}

void Free(void* piece) {
  if (piece == nullptr) return;
  Memory& memory = TheMemory();
  std::lock_guard lock(memory.mutex);
  const auto found = memory.pieces.find(piece);
  FACET_CHECK(found != memory.pieces.end(), "Free() of what Allocate() did not give");
  CheckGuards(static_cast<std::byte*>(piece), found->second.bytes);
  memory.used[found->second.device] -= found->second.bytes;
  memory.pieces.erase(found);
  std::free(static_cast<std::byte*>(piece) - kGuardBytes);
}

absl::StatusOr<void*> AllocatePinned(int64_t bytes) {
  Memory& memory = TheMemory();
  std::lock_guard lock(memory.mutex);
  if (memory.pinned + bytes > pinned_bytes) {
    return ResourceExhausted("cudaHostAlloc: out of memory (emulated)");
  }
  const int64_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* piece = std::aligned_alloc(kAlignment, whole);
  FACET_CHECK(piece != nullptr, "the host has no memory for {} bytes", bytes);
  std::memset(piece, kUndefined, bytes);
  memory.pinned += bytes;
  memory.pinned_pieces[piece] = bytes;
  return piece;
}

void FreePinned(void* piece) {
  Memory& memory = TheMemory();
  std::lock_guard lock(memory.mutex);
  const auto found = memory.pinned_pieces.find(piece);
  FACET_CHECK(found != memory.pinned_pieces.end(),
              "FreePinned() of what AllocatePinned() did not "
              "give");
  memory.pinned -= found->second;
  memory.pinned_pieces.erase(found);
  std::free(piece);
}

absl::StatusOr<Stream> MakeStream() { return new CUstream_st(Mix64(stream_seed, streams_made++)); }

void DestroyStream(Stream stream) {
  stream->Finish();
  delete stream;
}

namespace {

absl::Status Explain(int code, const char* what) {
  if (code == 0) return absl::OkStatus();
  if (code == kErrorInvalidConfiguration) {
    return Internal("{}: invalid configuration argument (emulated)", what);
  }
  if (code == kErrorLaunchFailure)
    return Internal("{}: unspecified launch failure (emulated)", what);
  return Internal("{}: error {} (emulated)", what, code);
}

// Of what a driver refuses during a capture.
absl::Status CheckNotCapturing(Stream stream, const char* what) {
  if (!stream->capturing()) return absl::OkStatus();
  return Internal("{}: operation not permitted when stream is capturing (emulated)", what);
}

absl::Status Copy(void* to, const void* from, int64_t bytes, Stream stream) {
  FACET_CHECK(bytes >= 0, "a copy of {} bytes", bytes);
  FACET_RETURN_IF_ERROR(CheckNotCapturing(stream, "a copy"));
  stream->Put([to, from, bytes] {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
    return 0;
  });
  return absl::OkStatus();
}

}  // namespace

absl::Status Wait(Stream stream) {
  FACET_RETURN_IF_ERROR(CheckNotCapturing(stream, "waiting for a stream"));
  return Explain(stream->Finish(), "waiting for a stream");
}

absl::Status CopyToDevice(void* device, const void* host, int64_t bytes, Stream stream) {
  return Copy(device, host, bytes, stream);
}

absl::Status CopyToHost(void* host, const void* device, int64_t bytes, Stream stream) {
  return Copy(host, device, bytes, stream);
}

absl::Status CopyOnDevice(void* to, const void* from, int64_t bytes, Stream stream) {
  return Copy(to, from, bytes, stream);
}

absl::Status Fill(void* device, uint8_t value, int64_t bytes, Stream stream) {
  FACET_CHECK(bytes >= 0, "a fill of {} bytes", bytes);
  FACET_RETURN_IF_ERROR(CheckNotCapturing(stream, "a fill"));
  stream->Put([device, value, bytes] {
    if (bytes > 0) std::memset(device, value, static_cast<size_t>(bytes));
    return 0;
  });
  return absl::OkStatus();
}

absl::StatusOr<Event> MakeEvent() { return new CUevent_st; }
void DestroyEvent(Event event) { delete event; }

absl::Status Record(Event event, Stream stream) {
  FACET_RETURN_IF_ERROR(CheckNotCapturing(stream, "an event"));
  *event = {stream, stream->put()};
  return absl::OkStatus();
}

absl::Status Wait(Event event) {
  if (event->stream == nullptr) return absl::OkStatus();
  return Explain(event->stream->FinishUntil(event->put), "waiting for an event");
}

absl::StatusOr<bool> Passed(Event event) {
  if (event->stream == nullptr) return true;
  const bool passed = event->stream->TryUntil(event->put);
  FACET_RETURN_IF_ERROR(Explain(event->stream->error(), "asking for an event"));
  return passed;
}

absl::Status BeginCapture(Stream stream) {
  FACET_RETURN_IF_ERROR(CheckNotCapturing(stream, "a capture"));
  stream->BeginCapture();
  return absl::OkStatus();
}

absl::StatusOr<Graph> EndCapture(Stream stream) {
  FACET_CHECK(stream->capturing(), "EndCapture() without BeginCapture()");
  std::vector<Piece> pieces = stream->EndCapture();
  const auto kernels = static_cast<int64_t>(pieces.size());
  FACET_ASSIGN_OR_RETURN(void* const memory,
                         Allocate(std::max<int64_t>(1, kernels * kGraphBytesPerKernel)));
  ++graphs_made;
  return new CUgraphExec_st{std::move(pieces), memory};
}

absl::Status LaunchGraph(Graph graph, Stream stream) {
  FACET_RETURN_IF_ERROR(CheckNotCapturing(stream, "a graph"));
  ++graph_launches;
  for (const Piece& piece : graph->pieces) stream->Put(Piece{piece.ready, piece.work});
  return absl::OkStatus();
}

void DestroyGraph(Graph graph) {
  Free(graph->memory);
  delete graph;
}

absl::Status LaunchStatus(int code) { return Explain(code, "a launch"); }

}  // namespace facet::cuda
