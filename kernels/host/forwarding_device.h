#ifndef FACET_KERNELS_HOST_FORWARDING_DEVICE_H_
#define FACET_KERNELS_HOST_FORWARDING_DEVICE_H_

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kernels/device.h"

namespace facet {

// A device that passes every call on to another, which it owns: the base of devices that measure or
// disturb some of them. What is added to Device is added here, once.
class ForwardingDevice : public Device {
 public:
  explicit ForwardingDevice(std::unique_ptr<Device> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  bool host_memory() const override { return inner_->host_memory(); }
  bool asynchronous() const override { return inner_->asynchronous(); }
  DeviceCollectives* collectives() override { return inner_->collectives(); }
  int ReplayedRows(int rows) const override { return inner_->ReplayedRows(rows); }
  std::string arithmetic() const override { return inner_->arithmetic(); }
  absl::StatusOr<std::unique_ptr<Matrix>> LoadMatrix(const MatrixSource& source,
                                                     const LeafCut* cut) override {
    return inner_->LoadMatrix(source, cut);
  }
  const MatrixImages* images() const override { return inner_->images(); }
  absl::StatusOr<Floats> AllocateFloats(int64_t size) override {
    return inner_->AllocateFloats(size);
  }
  absl::StatusOr<Floats> AllocateInputs(int64_t size,
                                        std::span<const Matrix* const> readers) override {
    return inner_->AllocateInputs(size, readers);
  }
  absl::Status AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) override {
    return inner_->AllocateKv(pools);
  }
  absl::Status AllocateTokens(int places) override { return inner_->AllocateTokens(places); }
  int AddRope(RopeSpec spec) override { return inner_->AddRope(std::move(spec)); }
  void CopyIn(std::span<const float> host, Floats device) override { inner_->CopyIn(host, device); }
  void CopyOut(Floats device, std::span<float> host) override { inner_->CopyOut(device, host); }
  void Synchronize() override { inner_->Synchronize(); }
  void BeginStep(const StepLayout& layout) override { inner_->BeginStep(layout); }
  void NarrowStep(const StepLayout& layout) override { inner_->NarrowStep(layout); }
  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override {
    inner_->EmbedRows(table, first_token, rows, scale, out);
  }
  void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) override {
    inner_->GatherRows(x, rows, width, out);
  }
  void GatherBrought(const BroughtRows& brought, int width, Floats out) override {
    inner_->GatherBrought(brought, width, out);
  }
  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override {
    inner_->RmsNorm(x, rows, width, weight, epsilon, out);
  }
  void ResidualNorm(const ResidualNormArgs& args) override { inner_->ResidualNorm(args); }
  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override {
    inner_->Product(parts, x, rows, out);
  }
  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override {
    inner_->ProductRoots(matrix, x, rows, roots);
  }
  void RopeAndStore(const AttentionSpec& spec, Floats qkv) override {
    inner_->RopeAndStore(spec, qkv);
  }
  void Attend(const AttentionSpec& spec, Floats qkv, Floats out) override {
    inner_->Attend(spec, qkv, out);
  }
  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override {
    inner_->GatedProduct(activation, gate, up, x, rows, out);
  }
  void SoftCap(Floats x, int64_t size, float cap) override { inner_->SoftCap(x, size, cap); }
  void FindCandidates(Floats logits, const VocabularySlices& slices, const CandidateQuery& query,
                      CandidateReply* reply) override {
    inner_->FindCandidates(logits, slices, query, reply);
  }
  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override {
    inner_->SearchHead(search, replies);
  }
  void AskHead(const HeadSearch& search, Floats best) override { inner_->AskHead(search, best); }
  void KeepBest(Floats all, int ranks, std::span<const int32_t> keep) override {
    inner_->KeepBest(all, ranks, keep);
  }
  absl::Status ReadBest(std::span<BestToken> tokens) override { return inner_->ReadBest(tokens); }
  void DropBest() override { inner_->DropBest(); }
  HeadReads head_reads() const override { return inner_->head_reads(); }
  void EndStep() override { inner_->EndStep(); }

 private:
  std::unique_ptr<Device> inner_;
};

}  // namespace facet

#endif  // FACET_KERNELS_HOST_FORWARDING_DEVICE_H_
