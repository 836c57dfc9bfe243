#include "tests/runtime/rounded_device.h"

#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/host/forwarding_device.h"
#include "kernels/reference/reference_device.h"
#include "kernels/reference/reference_matrix.h"

namespace facet::testing {
namespace {

// Products of so many rows work on the factors as the reference has them.
constexpr int kExactRowsMax = 8;

// The matrix of the file, and one of floats that are a little off.
class RoundedMatrix final : public Matrix {
 public:
  RoundedMatrix(std::unique_ptr<Matrix> exact, std::unique_ptr<Matrix> rounded)
      : exact_(std::move(exact)), rounded_(std::move(rounded)) {}

  int64_t rows() const override { return exact_->rows(); }
  int64_t columns() const override { return exact_->columns(); }
  int64_t packed_bytes() const override { return exact_->packed_bytes(); }
  int root_count() const override { return exact_->root_count(); }
  const Matrix& exact() const { return *exact_; }
  const Matrix& For(int rows) const { return rows <= kExactRowsMax ? *exact_ : *rounded_; }

 private:
  std::unique_ptr<Matrix> exact_;
  std::unique_ptr<Matrix> rounded_;
};

const RoundedMatrix& Own(const Matrix& matrix) { return static_cast<const RoundedMatrix&>(matrix); }

class RoundedDevice final : public ForwardingDevice {
 public:
  explicit RoundedDevice(uint64_t seed) : ForwardingDevice(MakeReferenceDevice()), random_(seed) {}

  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const MatrixSource& source,
                                                     const LeafCut* cut) override {
    FACET_ASSIGN_OR_RETURN(std::unique_ptr<Matrix> exact,
                           ForwardingDevice::LoadMatrix(source, cut));
    FACET_ASSIGN_OR_RETURN(const auto file, ReferenceMatrix::Load(source, nullptr));
    std::vector<float> weights(static_cast<size_t>(source.rows * source.columns));
    for (int64_t row = 0; row < source.rows; ++row) {
      file->Dequantize(row, weights.data() + row * source.columns);
    }
    Round(weights);
    MatrixSource floats = source;
    floats.type = TensorType::kF32;
    floats.data = reinterpret_cast<const std::byte*>(weights.data());
    floats.row_stride = source.columns * static_cast<int64_t>(sizeof(float));
    floats.row_order = {};
    FACET_ASSIGN_OR_RETURN(std::unique_ptr<Matrix> rounded,
                           ForwardingDevice::LoadMatrix(floats, cut));
    return std::make_unique<RoundedMatrix>(std::move(exact), std::move(rounded));
  }
  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override {
    ForwardingDevice::EmbedRows(Own(table).exact(), first_token, rows, scale, out);
  }
  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override {
    std::vector<const Matrix*> factors;
    for (const Matrix* part : parts) factors.push_back(&Own(*part).For(rows));
    ForwardingDevice::Product(factors, Rounded(x, rows, *parts[0]), rows, out);
  }
  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override {
    ForwardingDevice::GatedProduct(activation, Own(gate).For(rows), Own(up).For(rows),
                                   Rounded(x, rows, gate), rows, out);
  }
  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override {
    ForwardingDevice::ProductRoots(Own(matrix).For(rows), Rounded(x, rows, matrix), rows, roots);
  }
  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override {
    ForwardingDevice::SearchHead(RoundedSearch(search), replies);
  }
  void AskHead(const HeadSearch& search, Floats best) override {
    ForwardingDevice::AskHead(RoundedSearch(search), best);
  }

 private:
  void Round(std::span<float> values) {
    std::uniform_real_distribution<double> error(-kFactorError, kFactorError);
    for (float& value : values) value = static_cast<float>(value * (1 + error(random_)));
  }
  // The rows of x, which stay until the next call.
  Floats Rounded(Floats x, int rows, const Matrix& matrix) {
    if (rows <= kExactRowsMax) return x;
    x_.assign(x.data, x.data + rows * matrix.columns());
    Round(x_);
    return {x_.data(), static_cast<int64_t>(x_.size())};
  }
  HeadSearch RoundedSearch(HeadSearch search) {
    const Matrix& head = *search.head;
    const int rows = static_cast<int>(search.queries.size());
    search.x = Rounded(search.x, rows, head);
    search.head = &Own(head).For(rows);
    return search;
  }

  std::mt19937_64 random_;
  std::vector<float> x_;
};

}  // namespace

GroupOptions OnRounded(GroupOptions options, uint64_t seed) {
  options.rank.make_device = [seed] { return std::make_unique<RoundedDevice>(seed); };
  return options;
}

}  // namespace facet::testing
