#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "base/status.h"
#include "kernels/cuda/cuda_module.h"

namespace facet::cuda {
namespace {

std::string BesideThisExecutable() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / kCudaModuleFile).string();
}

std::string LastError() {
  const char* const text = dlerror();
  return text == nullptr ? "unknown error" : text;
}

}  // namespace

absl::StatusOr<const CudaModule*> OpenCudaModule(std::string_view path) {
  const std::string file = path.empty() ? BesideThisExecutable() : std::string(path);
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return NotFound("there is no {}", file);
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return FailedPrecondition("{}", LastError());
  const auto entry = reinterpret_cast<CudaModuleEntry>(dlsym(library, kCudaModuleSymbol));
  if (entry == nullptr) return FailedPrecondition("{}", LastError());
  const CudaModule* const module = entry();
  if (module == nullptr || std::string_view(module->abi) != FACET_CUDA_ABI) {
    return FailedPrecondition("{} is of another build: its interface is {}, this program's {}",
                              file, module == nullptr ? "absent" : module->abi, FACET_CUDA_ABI);
  }
  return module;
}

}  // namespace facet::cuda
