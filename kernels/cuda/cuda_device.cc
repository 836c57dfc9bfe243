#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/cuda_attention.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/cuda_product.h"
#include "kernels/cuda/cuda_vocabulary.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/kept_tokens.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch_queue.h"
#include "kernels/cuda/nccl_collectives.h"

namespace facet::cuda {
namespace {

// The first architecture with the instructions of language.cuh.
constexpr int kMajorMin = 8;
// Arguments of an operation that travel to the device: row numbers, queries, edits of logits.
constexpr int64_t kUploadBytes = int64_t{8} << 20;
// Lists of rows that one step may name before their place is used again, without waiting.
constexpr int64_t kRowListBytes = int64_t{1} << 20;

const CudaMatrix& Own(const Matrix& matrix) { return static_cast<const CudaMatrix&>(matrix); }

int64_t BytesOf(size_t floats) { return static_cast<int64_t>(floats * sizeof(float)); }

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDeviceOptions& options, const DeviceProperties& properties)
      : index_(options.device),
        name_(fmt::format("cuda:{} ({}, sm_{}{})", options.device, properties.name,
                          properties.major, properties.minor)),
        arithmetic_(fmt::format("cuda-sm{}{}-{}", properties.major, properties.minor,
                                options.fast ? "fast" : "mma")),
        uuid_(properties.uuid),
        memory_(name_),
        attention_(context_, {options.rows, options.sequences, options.context, options.full_blocks,
                              options.splits_per_pass}),
        product_(context_),
        vocabulary_(context_),
        tokens_(context_) {}

  ~CudaDevice() override {
    if (context_.stream == nullptr) return;
    // What a broken device says no longer matters.
    UseDevice(index_).IgnoreError();
    Wait(context_.stream).IgnoreError();
    DestroyStream(context_.stream);
  }

  absl::Status Init(const CudaDeviceOptions& options) {
    FACET_RETURN_IF_ERROR(UseDevice(index_));
    FACET_ASSIGN_OR_RETURN(context_.stream, MakeStream());
    FACET_RETURN_IF_ERROR(wait_.Init(context_.stream));
    context_.wait = &wait_;
    context_.memory = &memory_;
    context_.launches = &launches_;
    context_.uploads = &uploads_;
    FACET_RETURN_IF_ERROR(uploads_.Create("work spaces", kUploadBytes, &memory_, &wait_));
    FACET_RETURN_IF_ERROR(row_lists_.Create("work spaces", kRowListBytes, &memory_, &wait_));
    FACET_ASSIGN_OR_RETURN(void* const workspace,
                           memory_.Allocate("work spaces", options.workspace_bytes));
    context_.workspace = static_cast<std::byte*>(workspace);
    context_.workspace_bytes = options.workspace_bytes;
    FACET_RETURN_IF_ERROR(
        launches_.Init({options.graph_launches, options.graph_bytes, options.graph_fallback},
                       &memory_, context_.stream));
    collectives_.Init({.device = index_, .wait = &wait_, .launches = &launches_}, uuid_, &memory_);
    FACET_RETURN_IF_ERROR(vocabulary_.Init());
    FACET_RETURN_IF_ERROR(tokens_.Init());
    if (options.fast) {
      FACET_RETURN_IF_ERROR(Annotate(
          product_.MakeFast({options.panel_bytes, options.library_bytes}), "--arithmetic=fast"));
    }
    return attention_.AllocateKv({});
  }

  std::string name() const override { return name_; }
  bool host_memory() const override { return false; }
  bool asynchronous() const override { return true; }
  DeviceCollectives* collectives() override { return &collectives_; }
  int ReplayedRows(int rows) const override {
    return launches_.defers() && rows <= kReplayedRowsMax ? BucketOf(rows) : 0;
  }
  std::string arithmetic() const override { return arithmetic_; }

  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const MatrixSource& source,
                                                     const LeafCut* cut) override {
    FACET_RETURN_IF_ERROR(UseDevice(index_));
    launches_.Flush();
    FACET_ASSIGN_OR_RETURN(std::unique_ptr<CudaMatrix> matrix,
                           CudaMatrix::Load(source, cut, &memory_, context_.stream));
    FACET_RETURN_IF_ERROR(Annotate(product_.Prepare(*matrix), source.name));
    // Any matrix may be the output layer, which has the most rows.
    FACET_RETURN_IF_ERROR(Annotate(vocabulary_.Prepare(source.rows), source.name));
    return matrix;
  }

  absl::StatusOr<Floats> AllocateFloats(int64_t size) override {
    if (size < 0) return InvalidArgument("an array of {} floats", size);
    FACET_RETURN_IF_ERROR(UseDevice(index_));
    const int64_t bytes = size * static_cast<int64_t>(sizeof(float));
    FACET_ASSIGN_OR_RETURN(void* const memory, memory_.Allocate("activations", bytes));
    if (size > 0) FACET_RETURN_IF_ERROR(Fill(memory, 0, bytes, context_.stream));
    return Floats{static_cast<float*>(memory), size};
  }

  absl::Status AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) override {
    FACET_RETURN_IF_ERROR(UseDevice(index_));
    launches_.Flush();
    return attention_.AllocateKv(pools);
  }

  absl::Status AllocateTokens(int places) override {
    FACET_RETURN_IF_ERROR(UseDevice(index_));
    return tokens_.Allocate(places);
  }

  int AddRope(RopeSpec spec) override {
    CheckOk(UseDevice(index_), "set-up");
    launches_.Flush();
    return attention_.AddRope(std::move(spec));
  }

  void CopyIn(std::span<const float> host, Floats device) override {
    FACET_CHECK(static_cast<int64_t>(host.size()) <= device.size, "{} floats into {}", host.size(),
                device.size);
    if (host.empty()) return;
    CheckOk(UseDevice(index_), "a copy");
    Synchronize();  // a copy of memory that is not pinned may wait itself, with nobody's patience
    CheckOk(CopyToDevice(device.data, host.data(), BytesOf(host.size()), context_.stream),
            "a copy");
    Synchronize();  // the caller may change `host` now
  }

  void CopyOut(Floats device, std::span<float> host) override {
    FACET_CHECK(static_cast<int64_t>(host.size()) <= device.size, "{} floats out of {}",
                host.size(), device.size);
    if (host.empty()) return;
    CheckOk(UseDevice(index_), "a copy");
    Synchronize();  // as above
    CheckOk(CopyToHost(host.data(), device.data, BytesOf(host.size()), context_.stream), "a copy");
    Synchronize();
  }

  void Synchronize() override {
    launches_.Flush();
    context_.CheckDone(wait_.All(), "the device");
  }

  void BeginStep(const StepLayout& layout) override {
    CheckOk(UseDevice(index_), "a step");
    launches_.Defer(layout.rows <= kReplayedRowsMax);
    row_lists_.Restart();
    attention_.BeginStep(layout);
  }

  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override {
    const CudaMatrix& matrix = Own(table);
    const int64_t width = matrix.columns();
    FACET_CHECK(static_cast<int64_t>(rows.size()) * width <= out.size);
    for (const int32_t row : rows) {
      FACET_CHECK(IsKept(row) ? PlaceOfKept(row) < context_.places : row < matrix.rows(),
                  "row {} of {}", row, matrix.rows());
    }
    if (rows.empty()) return;
    const int count = context_.LaunchedRows(static_cast<int>(rows.size()), {{out.size, width}});
    EmbeddedRows args;
    args.type = matrix.type();
    args.table = matrix.data();
    args.row_bytes = matrix.row_bytes();
    args.table_rows = matrix.rows();
    args.first_token = first_token;
    args.rows = PutList(rows, count, rows.back());
    args.kept = context_.tokens;
    args.count = count;
    args.width = static_cast<int>(width);
    args.scale = scale;
    args.out = out.data;
    launches_.Put<&cuda::EmbedRows>("embedding", args);
  }

  void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) override {
    FACET_CHECK(static_cast<int64_t>(rows.size()) * width <= out.size);
    for (const int32_t row : rows) {
      FACET_CHECK(row >= 0 && (int64_t{row} + 1) * width <= x.size, "row {}", row);
    }
    if (rows.empty()) return;
    const int count = context_.LaunchedRows(static_cast<int>(rows.size()), {{out.size, width}});
    launches_.Put<&cuda::GatherRows>("gathered rows", x.data, PutList(rows, count, rows.back()),
                                     count, width, out.data);
  }

  void GatherBrought(const BroughtRows& brought, int width, Floats out) override {
    FACET_CHECK(static_cast<int64_t>(brought.rows.size()) * width <= out.size);
    FACET_CHECK(brought.token_ends.size() == brought.begins.size());
    const int32_t last = brought.begins.empty() ? 0 : std::ranges::max(brought.begins);
    std::vector<BroughtRow> rows;
    for (const facet::BroughtRow& row : brought.rows) {
      const int64_t end = int64_t{row.row} + 1 + (row.place < 0 ? 0 : last);
      FACET_CHECK(row.row >= 0 && end * width <= brought.x.size, "row {}", row.row);
      FACET_CHECK(row.place < context_.places, "place {} of {}", row.place, context_.places);
      rows.push_back({row.row, row.place});
    }
    if (rows.empty()) return;
    const auto ranks = static_cast<int>(brought.begins.size());
    RowsOfRanks args;
    ReserveLists(ListBytes<BroughtRow>(rows.size()) +
                 2 * ListBytes<int32_t>(brought.begins.size()));
    args.count = context_.LaunchedRows(static_cast<int>(rows.size()), {{out.size, width}});
    args.x = brought.x.data;
    args.rows = PutList(std::span<const BroughtRow>(rows), args.count, rows.back());
    args.kept = context_.tokens;
    args.token_ends = PutList(brought.token_ends, ranks, 0);
    args.begins = PutList(brought.begins, ranks, 0);
    args.ranks = ranks;
    args.width = width;
    args.out = out.data;
    launches_.Put<&cuda::GatherBrought>("rows of all ranks", args);
  }

  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override {
    FACET_CHECK(int64_t{rows} * width <= std::min(x.size, out.size) && width <= weight.size);
    const int count = context_.LaunchedRows(rows, {{x.size, width}, {out.size, width}});
    launches_.Put<&cuda::RmsNorm>("a norm", x.data, count, width, weight.data, epsilon, out.data);
  }

  void ResidualNorm(const ResidualNormArgs& args) override {
    const int64_t size = int64_t{args.rows} * args.width;
    FACET_CHECK(size <= std::min({args.residual.size, args.update.size, args.out.size}));
    FACET_CHECK(args.width <= args.next_weight.size);
    FACET_CHECK(!args.post_weight || args.width <= args.post_weight.size);
    const int64_t width = args.width;
    const int rows = context_.LaunchedRows(
        args.rows,
        {{args.residual.size, width}, {args.update.size, width}, {args.out.size, width}});
    launches_.Put<&cuda::ResidualNorm>(
        "a norm",
        ResidualNormRows{args.residual.data, args.update.data, args.post_weight.data,
                         args.next_weight.data, args.out.data, rows, args.width, args.epsilon});
  }

  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override {
    CheckProduct(*parts.front(), x, rows);
    int64_t width = 0;
    std::vector<const CudaMatrix*> own;
    for (const Matrix* part : parts) {
      FACET_CHECK(part->columns() == parts.front()->columns() && part->root_count() == 1);
      own.push_back(&Own(*part));
      width += part->rows();
    }
    FACET_CHECK(rows * width <= out.size);
    const int64_t columns = parts.front()->columns();
    const int count = context_.LaunchedRows(rows, {{x.size, columns}, {out.size, width}});
    product_.Product(own, x.data, count, out.data);
  }

  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override {
    CheckProduct(gate, x, rows);
    FACET_CHECK(up.rows() == gate.rows() && up.columns() == gate.columns());
    FACET_CHECK(gate.root_count() == 1 && up.root_count() == 1 && rows * gate.rows() <= out.size);
    const Gate kind = activation == Activation::kSilu ? Gate::kSilu : Gate::kGeluTanh;
    const int count =
        context_.LaunchedRows(rows, {{x.size, gate.columns()}, {out.size, gate.rows()}});
    product_.GatedProduct(kind, Own(gate), Own(up), x.data, count, out.data);
  }

  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override {
    CheckProduct(matrix, x, rows);
    FACET_CHECK(matrix.root_count() * rows * matrix.rows() <= roots.size);
    // Of several roots the second begins where the rows of the first end.
    const int count = matrix.root_count() > 1
                          ? rows
                          : context_.LaunchedRows(
                                rows, {{x.size, matrix.columns()}, {roots.size, matrix.rows()}});
    product_.ProductRoots(Own(matrix), x.data, count, roots.data);
  }

  void RopeAndStore(const AttentionSpec& spec, Floats qkv) override {
    attention_.RopeAndStore(spec, qkv);
  }

  void Attend(const AttentionSpec& spec, Floats qkv, Floats out) override {
    attention_.Attend(spec, qkv, out);
  }

  void SoftCap(Floats x, int64_t size, float cap) override {
    FACET_CHECK(size <= x.size);
    launches_.Put<&cuda::SoftCap>("a soft cap", x.data, size, cap);
  }

  void FindCandidates(Floats logits, const VocabularySlices& slices, const CandidateQuery& query,
                      CandidateReply* reply) override {
    FACET_CHECK(slices.starts.size() >= 2 && slices.starts.back() <= logits.size);
    vocabulary_.Find({logits, &slices, std::span(&query, 1)}, std::span(reply, 1));
  }

  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override {
    if (search.agree && !search.queries.empty()) {  // all is read: a floor would save nothing
      std::vector<float> floors(search.queries.size(), -std::numeric_limits<float>::infinity());
      search.agree(floors);
    }
    vocabulary_.Find(ComputeLogits(search), replies);
  }

  void AskHead(const HeadSearch& search, Floats best) override {
    FACET_CHECK(!search.agree, "an answer that others wait for cannot be read later");
    vocabulary_.FindBest(ComputeLogits(search), best);
  }

  void KeepBest(Floats all, int ranks, std::span<const int32_t> keep) override {
    const auto kept = static_cast<int>(keep.size());
    const auto rows = static_cast<int>(all.size / (int64_t{ranks} * kBestKeyFloats));
    FACET_CHECK(kept <= rows, "{} rows of {}", kept, rows);
    for (const int32_t place : keep) {
      FACET_CHECK(place < context_.places, "place {} of {}", place, context_.places);
    }
    KeysOfRanks keys;
    keys.all = reinterpret_cast<const uint64_t*>(all.data);
    keys.ranks = ranks;
    keys.rows = rows;
    keys.places = PutList(keep, rows, -1);
    tokens_.Keep(keys, kept);
    vocabulary_.Flushed();
  }

  absl::Status ReadBest(std::span<BestToken> tokens) override { return tokens_.Read(tokens); }

  void DropBest() override { tokens_.Drop(); }

  HeadReads head_reads() const override { return reads_; }

 private:
  LogitQueries ComputeLogits(const HeadSearch& search) {
    const int rows = static_cast<int>(search.queries.size());
    const int64_t size = search.head->rows();
    FACET_CHECK(search.slices->starts.back() == size);
    Product(std::span(&search.head, 1), search.x, rows, search.scratch);
    if (search.soft_cap > 0) {
      const int count = context_.LaunchedRows(rows, {{search.scratch.size, size}});
      SoftCap(search.scratch, count * size, search.soft_cap);
    }
    reads_.rows += rows * size;
    return {search.scratch, search.slices, search.queries};
  }

  static void CheckProduct(const Matrix& matrix, Floats x, int rows) {
    FACET_CHECK(rows * matrix.columns() <= x.size, "{} rows of {} in {} floats", rows,
                matrix.columns(), x.size);
  }

  // What a list of so many takes, made up to the bucket of an operation.
  template <typename T>
  static int64_t ListBytes(size_t count) {
    return UploadArea::Padded(BucketOf(static_cast<int>(count)) * int64_t{sizeof(T)});
  }

  // Lists that one operation needs together must have room together.
  void ReserveLists(int64_t bytes) {
    if (row_lists_.room() >= bytes) return;
    launches_.Flush();  // of what still has to read the lists before
    row_lists_.Restart();
  }

  // A list of `count` on the device: the values, and `more` again and again.
  template <typename T>
  const T* PutList(std::span<const T> values, int count, const std::type_identity_t<T>& more) {
    ReserveLists(UploadArea::Padded(int64_t{count} * int64_t{sizeof(T)}));
    const T* device = nullptr;
    const std::span<T> list = row_lists_.Make(count, &device);
    std::fill(std::copy(values.begin(), values.end(), list.begin()), list.end(), more);
    row_lists_.Flush();
    return device;
  }

  const int index_;
  const std::string name_;
  const std::string arithmetic_;
  const std::string uuid_;
  StreamWait wait_;
  DeviceMemory memory_;
  UploadArea uploads_;
  UploadArea row_lists_;
  LaunchQueue launches_;
  CudaContext context_;
  CudaAttention attention_;
  CudaProduct product_;
  CudaVocabulary vocabulary_;
  KeptTokens tokens_;
  NcclCollectives collectives_;
  HeadReads reads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options) {
  FACET_ASSIGN_OR_RETURN(const int count, DeviceCount());
  if (options.device < 0 || options.device >= count) {
    return FailedPrecondition("there is no device cuda:{}, only {}", options.device, count);
  }
  FACET_ASSIGN_OR_RETURN(const DeviceProperties properties, Properties(options.device));
  if (properties.major < kMajorMin) {
    return FailedPrecondition("cuda:{} ({}) has compute capability {}.{}, {}.0 is needed",
                              options.device, properties.name, properties.major, properties.minor,
                              kMajorMin);
  }
  auto device = std::make_unique<CudaDevice>(options, properties);
  FACET_RETURN_IF_ERROR(device->Init(options));
  return device;
}

}  // namespace facet::cuda
