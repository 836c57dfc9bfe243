#include "kernels/reference/reference_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/float16.h"
#include "base/status.h"
#include "kernels/canonical_math.h"
#include "kernels/host/host_device.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_matrix.h"
#include "kernels/reference/reference_vocabulary.h"

namespace facet {
namespace {

const ReferenceMatrix& Own(const Matrix& matrix) {
  return static_cast<const ReferenceMatrix&>(matrix);
}

void StoreVector(const float* from, int size, KvType type, std::byte* to) {
  for (int i = 0; i < size; ++i) {
    if (type == KvType::kF32) {
      std::memcpy(to + 4 * i, from + i, 4);
    } else {
      const uint16_t half = FloatToHalf(from[i]);
      std::memcpy(to + 2 * i, &half, 2);
    }
  }
}

void LoadVector(const std::byte* from, int size, KvType type, float* to) {
  for (int i = 0; i < size; ++i) {
    if (type == KvType::kF32) {
      std::memcpy(to + i, from + 4 * i, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, from + 2 * i, 2);
      to[i] = HalfToFloat(half);
    }
  }
}

class ReferenceDevice final : public HostDevice {
 public:
  std::string name() const override { return "reference"; }

  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const MatrixSource& source,
                                                     const LeafCut* cut) override {
    return ReferenceMatrix::Load(source, cut);
  }

  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override {
    const int64_t width = table.columns();
    for (size_t i = 0; i < rows.size(); ++i) {
      float* to = out.data + static_cast<int64_t>(i) * width;
      const std::optional<int32_t> row = TableRow(table, first_token, rows[i]);
      if (!row) {
        std::fill_n(to, width, 0.0f);
        continue;
      }
      Own(table).Dequantize(*row, to);
      for (int64_t k = 0; k < width; ++k) to[k] *= scale;
    }
  }

  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override {
    for (int64_t r = 0; r < rows; ++r) {
      std::memmove(out.data + r * width, x.data + r * width, sizeof(float) * width);
      NormInPlace(out.data + r * width, width, weight.data, epsilon);
    }
  }

  void ResidualNorm(const ResidualNormArgs& args) override {
    std::vector<float> update(args.width);
    for (int64_t r = 0; r < args.rows; ++r) {
      float* residual = args.residual.data + r * args.width;
      std::memcpy(update.data(), args.update.data + r * args.width, sizeof(float) * args.width);
      NormInPlace(update.data(), args.width, args.post_weight.data, args.epsilon);
      for (int i = 0; i < args.width; ++i) residual[i] += update[i];
    }
    RmsNorm(args.residual, args.rows, args.width, args.next_weight, args.epsilon, args.out);
  }

  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override {
    int64_t stride = 0;
    for (const Matrix* part : parts) stride += part->rows();
    FACET_CHECK(rows * stride <= out.size && rows * parts[0]->columns() <= x.size);
    const QuantizedRows quantized = QuantizeRows(x.data, rows, parts[0]->columns());
    float* to = out.data;
    for (const Matrix* part : parts) {
      FACET_CHECK(part->columns() == quantized.columns && part->root_count() == 1);
      for (int64_t row = 0; row < part->rows(); ++row) {
        Own(*part).MultiplyRow(row, quantized, rows, 0, to++, stride);
      }
    }
  }

  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override {
    const int64_t width = gate.rows();
    FACET_CHECK(up.rows() == width && rows * width <= out.size);
    std::vector<float> both(static_cast<size_t>(2 * rows * width));
    const Matrix* parts[] = {&gate, &up};
    Product(parts, x, rows, {both.data(), 2 * rows * width});
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = both.data() + 2 * r * width;
      for (int64_t i = 0; i < width; ++i) {
        const float act = activation == Activation::kSilu ? Silu(from[i]) : GeluTanh(from[i]);
        out.data[r * width + i] = act * from[width + i];
      }
    }
  }

  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override {
    FACET_CHECK(matrix.root_count() * rows * matrix.rows() <= roots.size);
    const QuantizedRows quantized = QuantizeRows(x.data, rows, matrix.columns());
    for (int root = 0; root < matrix.root_count(); ++root) {
      float* to = roots.data + int64_t{root} * rows * matrix.rows();
      for (int64_t row = 0; row < matrix.rows(); ++row) {
        Own(matrix).MultiplyRow(row, quantized, rows, root, to++, matrix.rows());
      }
    }
  }

  void RopeAndStore(const AttentionSpec& spec, Floats qkv) override {
    CheckAttention(spec, qkv);
    const int width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    for (const SequenceRun& run : layout().runs) {
      for (int i = 0; i < run.rows; ++i) {
        RopeAndStoreRow(spec, run, run.first_position + i,
                        qkv.data + int64_t{run.first_row + i} * width);
      }
    }
  }

  void Attend(const AttentionSpec& spec, Floats qkv, Floats out) override {
    CheckAttention(spec, qkv);
    const int width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
    const int64_t out_width = int64_t{spec.heads} * spec.head_dim;
    FACET_CHECK(layout().rows * out_width <= out.size);
    for (const SequenceRun& run : layout().runs) {
      for (int i = 0; i < run.rows; ++i) {
        const int64_t row = run.first_row + i;
        for (int head = 0; head < spec.heads; ++head) {
          const VisibleKeys visible =
              ReadKeys(spec, run, run.first_position + i, spec.kv_of_head[head]);
          AttendOne(qkv.data + row * width + head * spec.head_dim, visible,
                    {spec.scale, spec.soft_cap}, out.data + row * out_width + head * spec.head_dim);
        }
      }
    }
  }

  void SoftCap(Floats x, int64_t size, float cap) override {
    for (int64_t i = 0; i < size; ++i) x.data[i] = SoftCapped(x.data[i], cap);
  }

  void FindCandidates(Floats logits, const VocabularySlices& slices, const CandidateQuery& query,
                      CandidateReply* reply) override {
    FACET_CHECK(slices.starts.back() <= logits.size);
    FindCandidatesBySorting(logits.data, slices, query, reply);
  }

  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override {
    const int rows = static_cast<int>(search.queries.size());
    Product(std::span(&search.head, 1), search.x, rows, search.scratch);
    const int64_t size = search.head->rows();
    if (search.agree && !search.queries.empty()) {
      std::vector<float> floors(search.queries.size(), -std::numeric_limits<float>::infinity());
      search.agree(floors);
    }
    if (search.soft_cap > 0) SoftCap(search.scratch, rows * size, search.soft_cap);
    for (int row = 0; row < rows; ++row) {
      FindCandidatesBySorting(search.scratch.data + row * size, *search.slices, search.queries[row],
                              &replies[row]);
    }
    reads_.rows += rows * size;
    reads_.bytes += static_cast<double>(search.head->packed_bytes());
  }

  HeadReads head_reads() const override { return reads_; }

 private:
  void RopeAndStoreRow(const AttentionSpec& spec, const SequenceRun& run, int64_t position,
                       float* row) {
    KvMemory& pool = kv(spec.pool);
    for (int head = 0; head < spec.heads + spec.kv_heads; ++head) {
      const Floats norm = head < spec.heads ? spec.q_norm : spec.k_norm;
      float* x = row + head * spec.head_dim;
      NormInPlace(x, spec.head_dim, norm.data, spec.norm_epsilon);
      if (spec.rope >= 0) RotateInPlace(x, rope(spec.rope).inverse_frequency, position);
    }
    for (int head = 0; head < spec.kv_heads; ++head) {
      const float* key = row + (spec.heads + head) * spec.head_dim;
      const float* value = key + spec.kv_heads * spec.head_dim;
      const std::span<const int32_t> blocks = run.blocks[spec.pool];
      StoreVector(key, spec.head_dim, pool.spec().type,
                  pool.Key(spec.pool_layer, head, blocks, position));
      StoreVector(value, spec.head_dim, pool.spec().type,
                  pool.Value(spec.pool_layer, head, blocks, position));
    }
  }

  VisibleKeys ReadKeys(const AttentionSpec& spec, const SequenceRun& run, int64_t position,
                       int kv_head) {
    KvMemory& pool = kv(spec.pool);
    VisibleKeys visible;
    if (spec.window > 0) {
      visible.first_position = std::max<int64_t>(0, position - spec.window + 1);
    }
    visible.count = static_cast<int>(position + 1 - visible.first_position);
    visible.head_dim = spec.head_dim;
    visible.keys.resize(int64_t{visible.count} * spec.head_dim);
    visible.values.resize(visible.keys.size());
    const std::span<const int32_t> blocks = run.blocks[spec.pool];
    for (int i = 0; i < visible.count; ++i) {
      const int64_t key = visible.first_position + i;
      LoadVector(pool.Key(spec.pool_layer, kv_head, blocks, key), spec.head_dim, pool.spec().type,
                 &visible.keys[i * spec.head_dim]);
      LoadVector(pool.Value(spec.pool_layer, kv_head, blocks, key), spec.head_dim, pool.spec().type,
                 &visible.values[i * spec.head_dim]);
    }
    return visible;
  }

  HeadReads reads_;
};

}  // namespace

std::unique_ptr<Device> MakeReferenceDevice() { return std::make_unique<ReferenceDevice>(); }

}  // namespace facet
