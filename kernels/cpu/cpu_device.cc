#include "kernels/cpu/cpu_device.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_head.h"
#include "kernels/cpu/cpu_product.h"
#include "kernels/cpu/cpu_vocabulary.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_images.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/processor.h"
#include "kernels/cpu/rotation_table.h"
#include "kernels/cpu/unpack.h"
#include "kernels/host/host_device.h"

namespace facet {
namespace {

// An element of an embedding takes as long as so many of elementwise work: its row is a few bytes
// of every other line of a panel.
constexpr int64_t kEmbeddingCost = 16;

const KernelTable& Avx512Bf16Kernels() {
  static const KernelTable table = [] {
    KernelTable replaced = avx512::Kernels();
    avx512bf16::AddBfloatKernels(&replaced);
    return replaced;
  }();
  return table;
}

// A form of the kernels.
struct Form {
  CpuDeviceOptions::Isa isa;
  const char* name;  // of the device
  const char* needs;
  bool (*runs_here)();
  const KernelTable& (*kernels)();
};
// The best first.
constexpr Form kForms[] = {
    {CpuDeviceOptions::kAvx512Bf16, "cpu-avx512-bf16", "AVX-512 (F, BW, DQ, VL, VNNI, BF16)",
     HasAvx512Bf16, Avx512Bf16Kernels},
    {CpuDeviceOptions::kAvx512, "cpu-avx512", "AVX-512 (F, BW, DQ, VL, VNNI)", HasAvx512,
     avx512::Kernels},
    {CpuDeviceOptions::kAvx2, "cpu-avx2", "AVX2, FMA or F16C", HasAvx2, avx2::Kernels},
};

const PackedMatrix& Own(const Matrix& matrix) { return static_cast<const PackedMatrix&>(matrix); }

// A row of a panel is a few bytes of every other line: read one after the other, each would be
// waited for. The next row's come while this one is unpacked.
void PrefetchPanel(const PackedMatrix& matrix, int64_t panel) {
  for (int64_t at = 0; at < matrix.panel_bytes(); at += 64) {
    __builtin_prefetch(matrix.panel(panel) + at);
  }
  for (int64_t at = 0; at < matrix.low_bytes(); at += 64) {
    __builtin_prefetch(matrix.low(panel) + at);
  }
}

// Row `row` of the table times `scale`; zeros, where it has none.
void EmbedRow(const PackedMatrix& matrix, std::optional<int32_t> row, float scale, float* out) {
  const int64_t width = matrix.columns();
  if (!row) {
    std::fill_n(out, width, 0.0f);
    return;
  }
  const int64_t panel = *row / kPanelColumns;
  UnpackRow(matrix.format(), {matrix.panel(panel), matrix.low(panel)}, *row % kPanelColumns, width,
            scale, out);
}

class CpuDevice final : public HostDevice {
 public:
  CpuDevice(std::string name, const KernelTable& kernels, const CpuDeviceOptions& options)
      : name_(std::move(name)),
        kernels_(kernels),
        pool_(options.threads, options.begin_thread),
        product_(kernels_, &pool_),
        attention_(kernels_, &pool_),
        vocabulary_(kernels_, &pool_),
        head_(kernels_, &pool_, &product_, &vocabulary_) {}

  std::string name() const override { return name_; }

  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const MatrixSource& source,
                                                     const LeafCut* cut) override {
    return PackedMatrix::Pack(source, cut, &pool_);
  }

  const MatrixImages* images() const override { return &images_; }

  absl::StatusOr<Floats> AllocateInputs(int64_t size,
                                        std::span<const Matrix* const> readers) override {
    FACET_ASSIGN_OR_RETURN(const Floats floats, AllocateFloats(size));
    const bool integers = std::all_of(readers.begin(), readers.end(), [](const Matrix* reader) {
      return Own(*reader).integer_product();
    });
    if (integers) product_.AddInputs(floats.data, floats.data + size);
    return floats;
  }

  void BeginStep(const StepLayout& layout) override {
    HostDevice::BeginStep(layout);
    for (RotationTable& table : rotations_) table.Forget();
  }

  void CopyIn(std::span<const float> host, Floats device) override {
    Written(device);
    HostDevice::CopyIn(host, device);
  }

  void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) override {
    Written(out);
    HostDevice::GatherRows(x, rows, width, out);
  }

  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override {
    Written(out);
    const PackedMatrix& matrix = Own(table);
    const int64_t width = matrix.columns();
    FACET_CHECK(static_cast<int64_t>(rows.size()) * width <= out.size);
    const auto row_at = [&](int64_t i) {
      return TableRow(matrix, first_token, rows[static_cast<size_t>(i)]);
    };
    const auto prefetch = [&](int64_t i) {
      if (const auto row = row_at(i)) PrefetchPanel(matrix, *row / kPanelColumns);
    };
    const auto count = static_cast<int64_t>(rows.size());
    ForRanges(count, kEmbeddingCost * width, [&](int64_t begin, int64_t end) {
      prefetch(begin);
      for (int64_t i = begin; i < end; ++i) {
        if (i + 1 < end) prefetch(i + 1);
        EmbedRow(matrix, row_at(i), scale, out.data + i * width);
      }
    });
  }

  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override {
    FACET_CHECK(int64_t{rows} * width <= std::min(x.size, out.size) && width <= weight.size);
    WriteNorms(out, rows, width, [&](int64_t first, int count, float* to) {
      for (int64_t r = first; r < first + count; ++r, to += width) {
        kernels_.norm(x.data + r * width, width, weight.data, epsilon, to);
      }
    });
  }

  void ResidualNorm(const ResidualNormArgs& args) override {
    const int64_t size = int64_t{args.rows} * args.width;
    FACET_CHECK(size <= std::min({args.residual.size, args.update.size, args.out.size}));
    FACET_CHECK(args.width <= args.next_weight.size);
    FACET_CHECK(!args.post_weight || args.width <= args.post_weight.size);
    Written(args.residual);
    WriteNorms(args.out, args.rows, args.width, [&](int64_t first, int count, float* to) {
      const int64_t offset = first * args.width;
      kernels_.residual_norm({.rows = count,
                              .width = args.width,
                              .epsilon = args.epsilon,
                              .residual = args.residual.data + offset,
                              .update = args.update.data + offset,
                              .post_weight = args.post_weight.data,
                              .weight = args.next_weight.data,
                              .out = to});
    });
  }

  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override {
    int64_t width = 0;
    for (const Matrix* part : parts) width += part->rows();
    CheckProduct(*parts.front(), x, rows);
    FACET_CHECK(rows * width <= out.size);
    Written(out);
    parts_.clear();
    float* to = out.data;
    for (const Matrix* part : parts) {
      FACET_CHECK(part->columns() == parts.front()->columns() && part->root_count() == 1);
      parts_.push_back({&Own(*part), to, width, 0});
      to += part->rows();
    }
    product_.Run(parts_, x.data, rows);
  }

  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override {
    CheckProduct(gate, x, rows);
    FACET_CHECK(up.rows() == gate.rows() && up.columns() == gate.columns());
    FACET_CHECK(gate.root_count() == 1 && up.root_count() == 1 && rows * gate.rows() <= out.size);
    Written(out);
    CpuProduct::Part part = {&Own(gate), out.data, gate.rows(), 0};
    part.up = &Own(up);
    part.gate = activation == Activation::kSilu ? kernels_.silu_gate : kernels_.gelu_gate;
    part.inputs = product_.CutInputs(out.data, rows, gate.rows());
    product_.Run(std::span(&part, 1), x.data, rows);
  }

  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override {
    CheckProduct(matrix, x, rows);
    FACET_CHECK(matrix.root_count() * rows * matrix.rows() <= roots.size);
    Written(roots);
    const CpuProduct::Part part = {&Own(matrix), roots.data, matrix.rows(), rows * matrix.rows()};
    product_.Run(std::span(&part, 1), x.data, rows);
  }

  void RopeAndStore(const AttentionSpec& spec, Floats qkv) override {
    CheckAttention(spec, qkv);
    Written(qkv);
    const int width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    const RotationTable* rotations = spec.rope < 0 ? nullptr : &Rotations(spec.rope);
    row_runs_.clear();
    for (const SequenceRun& run : layout().runs) row_runs_.insert(row_runs_.end(), run.rows, &run);
    ForRows(layout().rows, width, [&](int64_t r) {
      RopeAndStoreRow(spec, *row_runs_[static_cast<size_t>(r)], r, rotations, qkv.data + r * width);
    });
  }

  void Attend(const AttentionSpec& spec, Floats qkv, Floats out) override {
    CheckAttention(spec, qkv);
    FACET_CHECK(int64_t{layout().rows} * spec.heads * spec.head_dim <= out.size);
    Written(out);
    attention_.Run(
        spec, layout(), &kv(spec.pool), qkv.data, out.data,
        product_.CutInputs(out.data, layout().rows, int64_t{spec.heads} * spec.head_dim));
  }

  void SoftCap(Floats x, int64_t size, float cap) override {
    FACET_CHECK(size <= x.size);
    Written(x);
    constexpr int64_t kStep = 4096;
    ForRows((size + kStep - 1) / kStep, kStep, [&](int64_t i) {
      kernels_.soft_cap(x.data + i * kStep, std::min(kStep, size - i * kStep), cap);
    });
  }

  void FindCandidates(Floats logits, const VocabularySlices& slices, const CandidateQuery& query,
                      CandidateReply* reply) override {
    FACET_CHECK(slices.starts.size() >= 2 && slices.starts.back() <= logits.size);
    vocabulary_.Find(logits.data, slices, query, reply);
  }

  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override {
    const int rows = static_cast<int>(search.queries.size());
    CheckProduct(*search.head, search.x, rows);
    FACET_CHECK(replies.size() == search.queries.size() && search.head->root_count() == 1);
    FACET_CHECK(rows * search.head->rows() <= search.scratch.size);
    FACET_CHECK(search.slices->starts.back() == search.head->rows());
    Written(search.scratch);
    if (rows > 0) head_.Search(search, replies);
  }

  HeadReads head_reads() const override { return head_.reads(); }

 private:
  // Calls body(begin, end) for all rows, range by range, in parallel if there is enough to do.
  template <typename Body>
  void ForRanges(int64_t rows, int64_t width, const Body& body) {
    const int64_t step = std::max<int64_t>(1, kTaskFloats / std::max<int64_t>(width, 1));
    pool_.ParallelFor((rows + step - 1) / step, [&](int64_t task, int) {
      body(task * step, std::min(rows, (task + 1) * step));
    });
  }
  // Calls body(row) for every row.
  template <typename Body>
  void ForRows(int64_t rows, int64_t width, const Body& body) {
    ForRanges(rows, width, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) body(row);
    });
  }

  // Every operation says what it is about to write: what products knew of it is no longer true.
  void Written(Floats out) { product_.Written(out.data, out.data + out.size); }

  // norm(first, count, to) writes rows [first, first + count) of `out` to `to`.
  template <typename Norm>
  void WriteNorms(Floats out, int rows, int width, const Norm& norm) {
    Written({out.data, int64_t{rows} * width});
    if (rows == 0) return;
    if (const QuantizedRows* inputs = product_.CutInputs(out.data, rows, width)) {
      product_.WriteRows(*inputs, norm);
    } else {
      ForRanges(rows, width, [&](int64_t begin, int64_t end) {
        norm(begin, static_cast<int>(end - begin), out.data + begin * width);
      });
    }
  }

  static void CheckProduct(const Matrix& matrix, Floats x, int rows) {
    FACET_CHECK(rows * matrix.columns() <= x.size, "{} rows of {} in {} floats", rows,
                matrix.columns(), x.size);
  }

  const RotationTable& Rotations(int index) {
    rotations_.resize(std::max(rotations_.size(), static_cast<size_t>(index) + 1));
    RotationTable& table = rotations_[static_cast<size_t>(index)];
    table.Prepare(rope(index).inverse_frequency, layout(), &pool_);
    return table;
  }

  void RopeAndStoreRow(const AttentionSpec& spec, const SequenceRun& run, int64_t row,
                       const RotationTable* rotations, float* qkv) {
    HeadVector vector;
    vector.size = spec.head_dim;
    vector.epsilon = spec.norm_epsilon;
    if (rotations != nullptr) {
      vector.pairs = rotations->pairs();
      vector.cosines = rotations->cosines(row);
      vector.sines = rotations->sines(row);
    }
    const int width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    // The next row: a step's rows have left the second-level cache since a product wrote them.
    for (int i = 0; i < width; i += 16) __builtin_prefetch(qkv + width + i, 1);
    for (int head = 0; head < spec.heads + spec.kv_heads; ++head) {
      vector.x = qkv + head * spec.head_dim;
      vector.weight = (head < spec.heads ? spec.q_norm : spec.k_norm).data;
      kernels_.norm_rotate(vector);
    }
    const std::span<const int32_t> blocks = run.blocks[static_cast<size_t>(spec.pool)];
    const int64_t position = run.first_position + row - run.first_row;
    KvMemory& pool = kv(spec.pool);
    for (int head = 0; head < spec.kv_heads; ++head) {
      const float* key = qkv + (spec.heads + head) * spec.head_dim;
      const float* value = key + spec.kv_heads * spec.head_dim;
      Store(key, pool, pool.Key(spec.pool_layer, head, blocks, position));
      Store(value, pool, pool.Value(spec.pool_layer, head, blocks, position));
    }
  }

  void Store(const float* from, const KvMemory& pool, std::byte* to) const {
    const int head_dim = pool.spec().head_dim;
    if (pool.spec().type == KvType::kF16) {
      kernels_.to_half(from, head_dim, reinterpret_cast<uint16_t*>(to));
    } else {
      std::memcpy(to, from, static_cast<size_t>(head_dim) * sizeof(float));
    }
  }

  const std::string name_;
  const KernelTable& kernels_;
  const PackedImages images_;
  ThreadPool pool_;
  CpuProduct product_;
  CpuAttention attention_;
  CpuVocabulary vocabulary_;
  CpuHead head_;
  std::vector<CpuProduct::Part> parts_;
  std::vector<RotationTable> rotations_;  // by rope
  std::vector<const SequenceRun*> row_runs_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> MakeCpuDevice(const CpuDeviceOptions& options) {
  if (options.threads < 1) return InvalidArgument("{} threads", options.threads);
  const char* lacking = nullptr;
  for (const Form& form : kForms) {
    if (options.isa != CpuDeviceOptions::kAuto && options.isa != form.isa) continue;
    if (form.runs_here()) return std::make_unique<CpuDevice>(form.name, form.kernels(), options);
    lacking = form.needs;
  }
  return FailedPrecondition("this processor lacks {}", lacking);
}

}  // namespace facet
