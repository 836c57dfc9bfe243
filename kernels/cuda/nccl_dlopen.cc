#include <dlfcn.h>
#include <nccl.h>

#include <bit>
#include <memory>
#include <utility>

#include "base/status.h"
#include "kernels/cuda/nccl_api.h"

namespace facet::cuda {
namespace {

constexpr const char* kLibrary = "libnccl.so.2";
// The first whose ncclCommAbort ends a communicator in every state, initialisation included.
constexpr int kVersionMin = NCCL_VERSION(2, 18, 1);

static_assert(static_cast<int>(NcclResult::kSuccess) == ncclSuccess);
static_assert(static_cast<int>(NcclResult::kUnhandledCudaError) == ncclUnhandledCudaError);
static_assert(static_cast<int>(NcclResult::kInvalidUsage) == ncclInvalidUsage);
static_assert(static_cast<int>(NcclResult::kRemoteError) == ncclRemoteError);
static_assert(static_cast<int>(NcclResult::kInProgress) == ncclInProgress);
static_assert(sizeof(NcclId) == sizeof(ncclUniqueId));

NcclResult ResultOf(ncclResult_t result) { return static_cast<NcclResult>(result); }

// What is called, by the types of the header's declarations.
struct Functions {
  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRankConfig) init_rank;
  decltype(&ncclCommGetAsyncError) get_async_error;
  decltype(&ncclCommAbort) abort;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclSend) send;
  decltype(&ncclRecv) receive;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclGetErrorString) error_string;
  decltype(&ncclGetLastError) last_error;
};

class OpenedNccl final : public Nccl {
 public:
  OpenedNccl(const Functions& functions, int version) : f_(functions), version_(version) {}

  int version() override { return version_; }

  NcclResult GetUniqueId(NcclId* id) override {
    ncclUniqueId made;
    const ncclResult_t result = f_.get_unique_id(&made);
    *id = std::bit_cast<NcclId>(made);
    return ResultOf(result);
  }

  NcclResult InitRank(NcclComm* comm, int world, const NcclId& id, int rank) override {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return ResultOf(f_.init_rank(comm, world, std::bit_cast<ncclUniqueId>(id), rank, &config));
  }

  NcclResult GetAsyncError(NcclComm comm, NcclResult* error) override {
    ncclResult_t found = ncclInternalError;
    const ncclResult_t result = f_.get_async_error(comm, &found);
    *error = ResultOf(found);
    return ResultOf(result);
  }

  NcclResult Abort(NcclComm comm) override { return ResultOf(f_.abort(comm)); }
  NcclResult GroupStart() override { return ResultOf(f_.group_start()); }
  NcclResult GroupEnd() override { return ResultOf(f_.group_end()); }

  NcclResult Send(const float* from, size_t count, int peer, NcclComm comm,
                  Stream stream) override {
    return ResultOf(f_.send(from, count, ncclFloat32, peer, comm, stream));
  }
  NcclResult Receive(float* to, size_t count, int peer, NcclComm comm, Stream stream) override {
    return ResultOf(f_.receive(to, count, ncclFloat32, peer, comm, stream));
  }
  NcclResult AllGather(const float* from, float* to, size_t count, NcclComm comm,
                       Stream stream) override {
    return ResultOf(f_.all_gather(from, to, count, ncclFloat32, comm, stream));
  }

  std::string Describe(NcclResult result, NcclComm comm) override {
    const std::string text = f_.error_string(static_cast<ncclResult_t>(result));
    const char* const last = f_.last_error(comm);
    return last == nullptr || *last == '\0' ? text : fmt::format("{}: {}", text, last);
  }

 private:
  const Functions f_;
  const int version_;
};

template <typename Function>
absl::Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return FailedPrecondition("{} has no {}", kLibrary, name);
}

absl::StatusOr<Functions> FindAll(void* library) {
  Functions f;
  FACET_RETURN_IF_ERROR(Find(library, "ncclGetVersion", &f.get_version));
  FACET_RETURN_IF_ERROR(Find(library, "ncclGetUniqueId", &f.get_unique_id));
  FACET_RETURN_IF_ERROR(Find(library, "ncclCommInitRankConfig", &f.init_rank));
  FACET_RETURN_IF_ERROR(Find(library, "ncclCommGetAsyncError", &f.get_async_error));
  FACET_RETURN_IF_ERROR(Find(library, "ncclCommAbort", &f.abort));
  FACET_RETURN_IF_ERROR(Find(library, "ncclGroupStart", &f.group_start));
  FACET_RETURN_IF_ERROR(Find(library, "ncclGroupEnd", &f.group_end));
  FACET_RETURN_IF_ERROR(Find(library, "ncclSend", &f.send));
  FACET_RETURN_IF_ERROR(Find(library, "ncclRecv", &f.receive));
  FACET_RETURN_IF_ERROR(Find(library, "ncclAllGather", &f.all_gather));
  FACET_RETURN_IF_ERROR(Find(library, "ncclGetErrorString", &f.error_string));
  FACET_RETURN_IF_ERROR(Find(library, "ncclGetLastError", &f.last_error));
  return f;
}

absl::StatusOr<std::unique_ptr<Nccl>> Open() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const text = dlerror();
    return FailedPrecondition("NCCL: {}", text == nullptr ? "unknown error" : text);
  }
  FACET_ASSIGN_OR_RETURN(const Functions functions, FindAll(library));
  int version = 0;
  if (functions.get_version(&version) != ncclSuccess || version < kVersionMin ||
      version / 10000 != NCCL_MAJOR) {
    return FailedPrecondition("{} is of version {}; {} to {}9999 is needed", kLibrary, version,
                              kVersionMin, NCCL_MAJOR);
  }
  return std::make_unique<OpenedNccl>(functions, version);
}

}  // namespace

absl::StatusOr<Nccl*> OpenNccl() {
  static const auto* const kOpened = new absl::StatusOr<std::unique_ptr<Nccl>>(Open());
  if (!kOpened->ok()) return kOpened->status();
  return (*kOpened)->get();
}

}  // namespace facet::cuda
