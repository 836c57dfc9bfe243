#include "shard_worker/runtime/device_choice.h"

#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_module.h"
#include "kernels/reference/reference_device.h"

namespace facet {
namespace {

absl::StatusOr<std::unique_ptr<Device>> MakeCpu(const DeviceChoice& choice,
                                                CpuDeviceOptions::Isa isa) {
  return MakeCpuDevice({choice.threads, isa, choice.begin_thread});
}

struct Gpu {
  std::unique_ptr<Device> device;
  std::string bus_id;
};

// GPU `index`, or the rank's turn.
absl::StatusOr<Gpu> MakeCuda(const DeviceChoice& choice, std::optional<int> index) {
  FACET_ASSIGN_OR_RETURN(const cuda::CudaModule* const module,
                         cuda::OpenCudaModule(choice.cuda_module));
  FACET_ASSIGN_OR_RETURN(const int count, module->device_count());
  cuda::CudaDeviceOptions options;
  options.device = index.value_or(choice.rank % count);
  options.fast = choice.fast;
  options.rows = choice.rows;
  options.sequences = choice.sequences;
  options.context = choice.context;
  Gpu gpu;
  FACET_ASSIGN_OR_RETURN(gpu.device, module->make_device(options));
  FACET_ASSIGN_OR_RETURN(gpu.bus_id, module->bus_id(options.device));
  return gpu;
}

ChosenDevice Explained(Gpu gpu, std::string_view why) {
  std::string text = fmt::format("computing on {}: {}", gpu.device->name(), why);
  return {std::move(gpu.device), std::move(gpu.bus_id), std::move(text)};
}

// The CPU only where there is no GPU to use: a GPU that fails is an error, not a reason to be slow.
absl::StatusOr<ChosenDevice> ChooseAuto(const DeviceChoice& choice) {
  absl::StatusOr<Gpu> gpu = MakeCuda(choice, std::nullopt);
  if (gpu.ok()) return Explained(*std::move(gpu), "a GPU was found");
  if (!absl::IsNotFound(gpu.status()) && !absl::IsFailedPrecondition(gpu.status())) {
    return gpu.status();
  }
  if (choice.fast) {
    return FailedPrecondition("--arithmetic=fast needs a GPU, and there is none to use: {}",
                              MessageOf(gpu.status()));
  }
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<Device> cpu, MakeCpu(choice, CpuDeviceOptions::kAuto));
  return Explained({std::move(cpu), {}}, fmt::format("no GPU, as {}", MessageOf(gpu.status())));
}

// N of "cuda:N"; nullopt for another name.
std::optional<int> CudaIndex(std::string_view name) {
  constexpr std::string_view kPrefix = "cuda:";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  int index = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  const bool whole = error == std::errc() && end == name.data() + name.size() && index >= 0;
  return whole ? std::optional(index) : std::nullopt;
}

absl::StatusOr<std::unique_ptr<Device>> MakeNamedCpu(const DeviceChoice& choice) {
  const std::string& name = choice.name;
  if (name == "reference") return MakeReferenceDevice();
  if (name == "cpu") return MakeCpu(choice, CpuDeviceOptions::kAuto);
  if (name == "avx512") return MakeCpu(choice, CpuDeviceOptions::kAvx512);
  if (name == "avx2") return MakeCpu(choice, CpuDeviceOptions::kAvx2);
  return InvalidArgument(
      "device: '{}' is not one of auto, cuda, cuda:N, cpu, avx512, avx2, reference", name);
}

absl::StatusOr<Gpu> MakeNamed(const DeviceChoice& choice) {
  if (choice.name == "cuda") return MakeCuda(choice, std::nullopt);
  if (const std::optional<int> index = CudaIndex(choice.name)) return MakeCuda(choice, index);
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<Device> device, MakeNamedCpu(choice));
  if (choice.fast) {
    return InvalidArgument(
        "--arithmetic=fast: {} computes in canonical arithmetic only, as every device but GPUs",
        device->name());
  }
  return Gpu{std::move(device), {}};
}

}  // namespace

absl::StatusOr<ChosenDevice> ChooseDevice(const DeviceChoice& choice) {
  if (choice.name == "auto") return ChooseAuto(choice);
  FACET_ASSIGN_OR_RETURN(Gpu chosen, MakeNamed(choice));
  return Explained(std::move(chosen), fmt::format("--device={}", choice.name));
}

}  // namespace facet
