#ifndef FACET_KERNELS_CUDA_CUDA_MODULE_H_
#define FACET_KERNELS_CUDA_CUDA_MODULE_H_

// What libfacet_cuda.so and the process that opens it agree on. The module is opened at run time,
// so that one build serves machines with and without GPUs; it stays open, because what it makes
// has its code. Needs no CUDA header.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace facet::cuda {

struct CudaDeviceOptions {
  int device = 0;  // which of the machine's GPUs
  // --arithmetic=fast: products in other orders, by batch (kernels/cuda/README.md).
  bool fast = false;
  // Device memory for weights that are rounded to bf16 on their way into cuBLASLt, a panel at a
  // time, and for cuBLASLt itself.
  int64_t panel_bytes = int64_t{32} << 20;
  int64_t library_bytes = int64_t{32} << 20;
  // How large a step can be.
  int rows = 512;
  int sequences = 64;
  int64_t context = 16384;  // tokens of one sequence
  // So many blocks of threads fill the GPU. How work is cut follows it, results do not.
  int full_blocks = 256;
  // Splits of keys that attention computes before it merges them, so many at most.
  int splits_per_pass = 256;
  // Device memory for what lives as long as one operation.
  int64_t workspace_bytes = int64_t{64} << 20;
  // Kernels in all the sequences that a decode step may be replayed from; 0: each is launched.
  int64_t graph_launches = 32768;
  // Device memory that is left free for CUDA graphs. Where they need more than there is, what
  // would be replayed is launched kernel by kernel.
  int64_t graph_bytes = int64_t{64} << 20;
  // False, for tests: a graph that cannot be made ends the process.
  bool graph_fallback = true;
};

// What the module's one symbol, `facet_cuda_module`, returns.
struct CudaModule {
  // FACET_CUDA_ABI as the module was built: a digest of the headers that both sides must share
  // (kernels/cuda/CMakeLists.txt). Where it is another, the rest means nothing.
  const char* abi = "";
  absl::StatusOr<int> (*device_count)() = nullptr;  // FailedPrecondition says why there is none
  absl::StatusOr<std::unique_ptr<Device>> (*make_device)(const CudaDeviceOptions&) = nullptr;
  // The PCI address of a GPU ("0000:3b:00.0"), by which others than CUDA know it.
  absl::StatusOr<std::string> (*bus_id)(int device) = nullptr;
  // FailedPrecondition says why there is none.
  absl::StatusOr<int> (*nccl_version)() = nullptr;
  absl::StatusOr<int64_t> (*cublaslt_version)() = nullptr;
};
using CudaModuleEntry = const CudaModule* (*)();
inline constexpr const char* kCudaModuleSymbol = "facet_cuda_module";
inline constexpr const char* kCudaModuleFile = "libfacet_cuda.so";

// Opens the module at `path`, or kCudaModuleFile beside this executable if empty. NotFound where
// there is no such file, FailedPrecondition where it cannot be used; both say why.
absl::StatusOr<const CudaModule*> OpenCudaModule(std::string_view path = {});

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_MODULE_H_
