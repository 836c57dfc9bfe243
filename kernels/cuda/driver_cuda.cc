#include <cuda_runtime_api.h>

#include "base/status.h"
#include "kernels/cuda/driver.h"

namespace facet::cuda {
namespace {

// "cudaMemcpyAsync: an illegal memory access was encountered (cudaErrorIllegalAddress)"
absl::Status Explain(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // so that the next call does not report it again
  const std::string text =
      fmt::format("{}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error));
  if (error == cudaErrorMemoryAllocation) return ResourceExhausted("{}", text);
  return Internal("{}", text);
}

}  // namespace

absl::StatusOr<int> DeviceCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return FailedPrecondition("{}", MessageOf(Explain(error, "cudaGetDeviceCount")));
  }
  if (count == 0) return FailedPrecondition("the CUDA driver knows no device");
  return count;
}

absl::StatusOr<DeviceProperties> Properties(int device) {
  cudaDeviceProp found;
  FACET_RETURN_IF_ERROR(
      Explain(cudaGetDeviceProperties(&found, device), "cudaGetDeviceProperties"));
  DeviceProperties properties;
  properties.name = found.name;
  for (const char byte : found.uuid.bytes) {
    properties.uuid += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  }
  properties.major = found.major;
  properties.minor = found.minor;
  properties.multiprocessors = found.multiProcessorCount;
  properties.memory_bytes = static_cast<int64_t>(found.totalGlobalMem);
  properties.shared_bytes_max = static_cast<int64_t>(found.sharedMemPerBlock);
  properties.bus_id =
      fmt::format("{:04x}:{:02x}:{:02x}.0", found.pciDomainID, found.pciBusID, found.pciDeviceID);
  return properties;
}

absl::Status UseDevice(int device) { return Explain(cudaSetDevice(device), "cudaSetDevice"); }

absl::StatusOr<int64_t> FreeMemory() {
  size_t free = 0, total = 0;
  FACET_RETURN_IF_ERROR(Explain(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  return static_cast<int64_t>(free);
}

absl::StatusOr<void*> Allocate(int64_t bytes) {
  void* memory = nullptr;
  FACET_RETURN_IF_ERROR(Explain(cudaMalloc(&memory, static_cast<size_t>(bytes)), "cudaMalloc"));
  return memory;
}

// Nothing can be done about a failure: the context is gone, and its memory with it.
void Free(void* memory) { cudaFree(memory); }

absl::StatusOr<void*> AllocatePinned(int64_t bytes) {
  void* memory = nullptr;
  FACET_RETURN_IF_ERROR(Explain(
      cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocDefault), "cudaHostAlloc"));
  return memory;
}

void FreePinned(void* memory) { cudaFreeHost(memory); }

absl::StatusOr<Stream> MakeStream() {
  Stream stream = nullptr;
  FACET_RETURN_IF_ERROR(Explain(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                "cudaStreamCreateWithFlags"));
  return stream;
}

void DestroyStream(Stream stream) { cudaStreamDestroy(stream); }

absl::Status Wait(Stream stream) {
  return Explain(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

absl::Status CopyToDevice(void* device, const void* host, int64_t bytes, Stream stream) {
  return Explain(
      cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream),
      "cudaMemcpyAsync to the device");
}

absl::Status CopyToHost(void* host, const void* device, int64_t bytes, Stream stream) {
  return Explain(
      cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream),
      "cudaMemcpyAsync to the host");
}

absl::Status CopyOnDevice(void* to, const void* from, int64_t bytes, Stream stream) {
  return Explain(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
      "cudaMemcpyAsync on the device");
}

absl::Status Fill(void* device, uint8_t value, int64_t bytes, Stream stream) {
  return Explain(cudaMemsetAsync(device, value, static_cast<size_t>(bytes), stream),
                 "cudaMemsetAsync");
}

absl::StatusOr<Event> MakeEvent() {
  Event event = nullptr;
  FACET_RETURN_IF_ERROR(Explain(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                                "cudaEventCreateWithFlags"));
  return event;
}

void DestroyEvent(Event event) { cudaEventDestroy(event); }

absl::Status Record(Event event, Stream stream) {
  return Explain(cudaEventRecord(event, stream), "cudaEventRecord");
}

absl::Status Wait(Event event) {
  return Explain(cudaEventSynchronize(event), "cudaEventSynchronize");
}

absl::StatusOr<bool> Passed(Event event) {
  const cudaError_t error = cudaEventQuery(event);
  if (error == cudaErrorNotReady) {
    cudaGetLastError();  // no error, so that no launch reports it
    return false;
  }
  FACET_RETURN_IF_ERROR(Explain(error, "cudaEventQuery"));
  return true;
}

absl::Status BeginCapture(Stream stream) {
  return Explain(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCapture");
}

absl::StatusOr<Graph> EndCapture(Stream stream) {
  cudaGraph_t captured = nullptr;
  FACET_RETURN_IF_ERROR(Explain(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture"));
  Graph graph = nullptr;
  const absl::Status status =
      Explain(cudaGraphInstantiate(&graph, captured, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(captured);
  if (!status.ok()) return status;
  return graph;
}

absl::Status LaunchGraph(Graph graph, Stream stream) {
  return Explain(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
}

// One that is on its way is freed when it is done.
void DestroyGraph(Graph graph) { cudaGraphExecDestroy(graph); }

absl::Status LaunchStatus(int code) {
  return Explain(static_cast<cudaError_t>(code), "a kernel's launch");
}

}  // namespace facet::cuda
