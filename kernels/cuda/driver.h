#ifndef FACET_KERNELS_CUDA_DRIVER_H_
#define FACET_KERNELS_CUDA_DRIVER_H_

// What the CUDA device asks of the CUDA runtime: devices, memory, copies, streams, events
// and graphs.
// driver_cuda.cc gives it over the static cudart; tests/cuda_emulator gives it in host memory.
// Nothing else in kernels/cuda's host code knows the runtime; its device code knows language.cuh.
//
// Threads: the current device is a property of the calling thread (UseDevice). One thread at a
// time uses a stream, and what hangs on it.
// Errors carry CUDA's own name and sentence. An error of a copy, a wait or a launch may be that of
// any earlier operation of the stream, and all later ones will fail too.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace facet::cuda {

using Stream = ::CUstream_st*;    // cudaStream_t
using Event = ::CUevent_st*;      // cudaEvent_t
using Graph = ::CUgraphExec_st*;  // cudaGraphExec_t

struct DeviceProperties {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  std::string uuid;  // no other device of any machine has it
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t shared_bytes_max = 0;  // of a block, without asking for more
  std::string bus_id;            // PCI address, "0000:3b:00.0"; empty where it has none
};

// How many devices there are, at least one. FailedPrecondition says why there is none: no driver,
// a driver too old, no device.
absl::StatusOr<int> DeviceCount();
absl::StatusOr<DeviceProperties> Properties(int device);
// Makes `device` the one that the calling thread's next calls are about. Cheap to repeat.
absl::Status UseDevice(int device);

// Bytes that Allocate() could still give, roughly.
absl::StatusOr<int64_t> FreeMemory();
// Device memory, aligned to 256 bytes, its content undefined. ResourceExhausted if there is not as
// much. REQUIRES: bytes > 0.
absl::StatusOr<void*> Allocate(int64_t bytes);
void Free(void* memory);
// Host memory that the device can copy from and to while the host goes on.
absl::StatusOr<void*> AllocatePinned(int64_t bytes);
void FreePinned(void* memory);

absl::StatusOr<Stream> MakeStream();
void DestroyStream(Stream stream);
// Returns once everything put on the stream is done.
absl::Status Wait(Stream stream);

// Copies and fills take their turn on the stream. The host's side must stay untouched until a
// Wait(); where it is not pinned the call itself may wait.
absl::Status CopyToDevice(void* device, const void* host, int64_t bytes, Stream stream);
absl::Status CopyToHost(void* host, const void* device, int64_t bytes, Stream stream);
absl::Status CopyOnDevice(void* to, const void* from, int64_t bytes, Stream stream);
absl::Status Fill(void* device, uint8_t value, int64_t bytes, Stream stream);

// An event marks a place in a stream.
absl::StatusOr<Event> MakeEvent();
void DestroyEvent(Event event);
absl::Status Record(Event event, Stream stream);
// Returns once the stream has passed the place; at once if none was recorded.
absl::Status Wait(Event event);
// Whether it has, without waiting.
absl::StatusOr<bool> Passed(Event event);

// From here to EndCapture() the kernels put on the stream are written down, with their arguments,
// and not run. Nothing else may be asked of the stream meanwhile, and no kernel may run for the
// first time in the process.
absl::Status BeginCapture(Stream stream);
// What was written down, ready to run; it takes device memory. On an error the stream is as before
// BeginCapture(). ResourceExhausted if there is not as much memory.
absl::StatusOr<Graph> EndCapture(Stream stream);
// Puts the kernels of the graph on the stream, with the arguments that they were captured with.
absl::Status LaunchGraph(Graph graph, Stream stream);
// May be on its way still.
void DestroyGraph(Graph graph);

// What the code that language.cuh's Launch() returned means; OK for 0.
absl::Status LaunchStatus(int code);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_DRIVER_H_
