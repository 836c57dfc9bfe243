#include <cublasLt.h>
#include <dlfcn.h>

#include <memory>
#include <string>
#include <utility>

#include "base/status.h"
#include "kernels/cuda/cublaslt_api.h"

namespace facet::cuda {
namespace {

// Of either version, whichever lies on the machine: what is used here is the same in both.
constexpr const char* kLibraries[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
constexpr size_t kVersionMin = 120000;
static_assert(CUBLAS_VER_MAJOR == 12 || CUBLAS_VER_MAJOR == 13);

// What is called, by the types of the header's declarations.
struct Functions {
  decltype(&cublasLtGetVersion) get_version;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

template <typename T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, cublasStatus_t (*)(T)>;

// What describes a product. A column of cuBLASLt's matrices is a row of ours, so that it computes
// out^T [outputs, rows] = (weights^T)^T x^T, with no transposition in memory.
struct Description {
  Owned<cublasLtMatmulDesc_t> operation;
  Owned<cublasLtMatrixLayout_t> weights, x, out;
};

class OpenedPlan final : public LtPlan {
 public:
  OpenedPlan(const Functions& functions, cublasLtHandle_t handle, Description description,
             const cublasLtMatmulAlgo_t& algorithm, size_t workspace_bytes)
      : f_(functions),
        handle_(handle),
        description_(std::move(description)),
        algorithm_(algorithm),
        workspace_bytes_(workspace_bytes) {}

  int Run(const uint16_t* weights, const uint16_t* x, float* out, void* workspace,
          Stream stream) const override {
    const float one = 1, zero = 0;
    const Description& d = description_;
    return -static_cast<int>(f_.matmul(handle_, d.operation.get(), &one, weights, d.weights.get(),
                                       x, d.x.get(), &zero, out, d.out.get(), out, d.out.get(),
                                       &algorithm_, workspace, workspace_bytes_, stream));
  }

 private:
  const Functions& f_;
  const cublasLtHandle_t handle_;
  const Description description_;
  const cublasLtMatmulAlgo_t algorithm_;
  const size_t workspace_bytes_;
};

class OpenedHandle final : public LtHandle {
 public:
  OpenedHandle(const Functions& functions, cublasLtHandle_t handle)
      : f_(functions), handle_(handle, functions.destroy) {}

  absl::StatusOr<std::unique_ptr<LtPlan>> Plan(const LtShape& shape,
                                               int64_t workspace_bytes) override {
    FACET_ASSIGN_OR_RETURN(Description description, Describe(shape));
    FACET_ASSIGN_OR_RETURN(const Owned<cublasLtMatmulPreference_t> preference,
                           Prefer(static_cast<uint64_t>(workspace_bytes)));
    cublasLtMatmulHeuristicResult_t found = {};
    int count = 0;
    const Description& d = description;
    const cublasStatus_t status =
        f_.heuristic(handle_.get(), d.operation.get(), d.weights.get(), d.x.get(), d.out.get(),
                     d.out.get(), preference.get(), 1, &found, &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && count == 0)) {
      return absl::UnimplementedError(
          fmt::format("cuBLASLt knows no algorithm for {} x {} x {} within {} bytes of work space",
                      shape.outputs, shape.rows, shape.columns, workspace_bytes));
    }
    FACET_RETURN_IF_ERROR(CublasLtStatus(status));
    FACET_RETURN_IF_ERROR(CublasLtStatus(found.state));
    return std::make_unique<OpenedPlan>(f_, handle_.get(), std::move(description), found.algo,
                                        found.workspaceSize);
  }

 private:
  absl::StatusOr<Owned<cublasLtMatrixLayout_t>> Layout(cudaDataType_t type, int64_t rows,
                                                       int64_t columns, int64_t stride) {
    cublasLtMatrixLayout_t made = nullptr;
    FACET_RETURN_IF_ERROR(CublasLtStatus(f_.layout_create(&made, type, static_cast<uint64_t>(rows),
                                                          static_cast<uint64_t>(columns), stride)));
    return Owned<cublasLtMatrixLayout_t>(made, f_.layout_destroy);
  }

  absl::StatusOr<Description> Describe(const LtShape& shape) {
    cublasLtMatmulDesc_t made = nullptr;
    FACET_RETURN_IF_ERROR(CublasLtStatus(f_.desc_create(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F)));
    Owned<cublasLtMatmulDesc_t> operation(made, f_.desc_destroy);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    FACET_RETURN_IF_ERROR(CublasLtStatus(
        f_.desc_set(made, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed)));
    FACET_ASSIGN_OR_RETURN(auto weights,
                           Layout(CUDA_R_16BF, shape.columns, shape.outputs, shape.weight_stride));
    FACET_ASSIGN_OR_RETURN(auto x, Layout(CUDA_R_16BF, shape.columns, shape.rows, shape.x_stride));
    FACET_ASSIGN_OR_RETURN(auto out,
                           Layout(CUDA_R_32F, shape.outputs, shape.rows, shape.out_stride));
    return Description{std::move(operation), std::move(weights), std::move(x), std::move(out)};
  }

  // No sums in parts: the order of one element's additions is then the algorithm's alone.
  absl::StatusOr<Owned<cublasLtMatmulPreference_t>> Prefer(uint64_t workspace_bytes) {
    cublasLtMatmulPreference_t made = nullptr;
    FACET_RETURN_IF_ERROR(CublasLtStatus(f_.preference_create(&made)));
    Owned<cublasLtMatmulPreference_t> preference(made, f_.preference_destroy);
    const uint32_t whole = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t alignment = kLtAlignment;
    FACET_RETURN_IF_ERROR(CublasLtStatus(f_.preference_set(
        made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes)));
    FACET_RETURN_IF_ERROR(CublasLtStatus(
        f_.preference_set(made, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &whole, sizeof whole)));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      FACET_RETURN_IF_ERROR(
          CublasLtStatus(f_.preference_set(made, attribute, &alignment, sizeof alignment)));
    }
    return preference;
  }

  const Functions& f_;
  const Owned<cublasLtHandle_t> handle_;
};

class OpenedCublasLt final : public CublasLt {
 public:
  explicit OpenedCublasLt(const Functions& functions) : f_(functions) {}

  int64_t version() override { return static_cast<int64_t>(f_.get_version()); }

  absl::StatusOr<std::unique_ptr<LtHandle>> MakeHandle() override {
    cublasLtHandle_t handle = nullptr;
    FACET_RETURN_IF_ERROR(CublasLtStatus(f_.create(&handle)));
    return std::make_unique<OpenedHandle>(f_, handle);
  }

 private:
  const Functions f_;
};

struct Library {
  void* opened = nullptr;
  const char* name = "";
};

template <typename Function>
absl::Status Find(const Library& library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library.opened, name));
  if (*function != nullptr) return absl::OkStatus();
  return FailedPrecondition("{} has no {}", library.name, name);
}

absl::StatusOr<Functions> FindAll(const Library& from) {
  Functions f;
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtGetVersion", &f.get_version));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtCreate", &f.create));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtDestroy", &f.destroy));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulDescCreate", &f.desc_create));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulDescSetAttribute", &f.desc_set));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulDescDestroy", &f.desc_destroy));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatrixLayoutCreate", &f.layout_create));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatrixLayoutDestroy", &f.layout_destroy));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulPreferenceCreate", &f.preference_create));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulPreferenceSetAttribute", &f.preference_set));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulPreferenceDestroy", &f.preference_destroy));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmulAlgoGetHeuristic", &f.heuristic));
  FACET_RETURN_IF_ERROR(Find(from, "cublasLtMatmul", &f.matmul));
  return f;
}

absl::StatusOr<Library> OpenLibrary() {
  std::string errors;
  for (const char* const name : kLibraries) {
    if (void* const opened = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return Library{opened, name};
    const char* const text = dlerror();
    errors += fmt::format("{}{}", errors.empty() ? "" : "; ", text == nullptr ? name : text);
  }
  return FailedPrecondition("cuBLASLt: {}", errors);
}

absl::StatusOr<std::unique_ptr<CublasLt>> Open() {
  FACET_ASSIGN_OR_RETURN(const Library library, OpenLibrary());
  FACET_ASSIGN_OR_RETURN(const Functions functions, FindAll(library));
  if (functions.get_version() < kVersionMin) {
    return FailedPrecondition("{} is of version {}; {} is needed", library.name,
                              functions.get_version(), kVersionMin);
  }
  return std::make_unique<OpenedCublasLt>(functions);
}

}  // namespace

absl::StatusOr<CublasLt*> OpenCublasLt() {
  static const auto* const kOpened = new absl::StatusOr<std::unique_ptr<CublasLt>>(Open());
  if (!kOpened->ok()) return kOpened->status();
  return (*kOpened)->get();
}

}  // namespace facet::cuda
