#include "kernels/cuda/nvtx_device.h"

#include <nvtx3/nvToolsExt.h>

#include <utility>

#include "kernels/host/forwarding_device.h"

namespace facet::cuda {
namespace {

nvtxEventAttributes_t Named(const char* name, int64_t rows) {
  nvtxEventAttributes_t attributes = {};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
  attributes.payload.llValue = rows;
  return attributes;
}

class NvtxDevice final : public ForwardingDevice {
 public:
  NvtxDevice(std::unique_ptr<Device> device, nvtxDomainHandle_t domain)
      : ForwardingDevice(std::move(device)), domain_(domain) {}
  ~NvtxDevice() override {
    EndRange();
    nvtxDomainDestroy(domain_);
  }

  void CopyIn(std::span<const float> host, Floats device) override {
    const Range range(domain_, "copy in", static_cast<int64_t>(host.size()));
    ForwardingDevice::CopyIn(host, device);
  }
  void CopyOut(Floats device, std::span<float> host) override {
    const Range range(domain_, "copy out", static_cast<int64_t>(host.size()));
    ForwardingDevice::CopyOut(device, host);
  }
  void Synchronize() override {
    const Range range(domain_, "synchronize", 0);
    ForwardingDevice::Synchronize();
  }
  void BeginStep(const StepLayout& layout) override {
    EndRange();  // of a step that broke off
    const nvtxEventAttributes_t step = Named("step", layout.rows);
    step_ = nvtxDomainRangeStartEx(domain_, &step);
    in_step_ = true;
    const Range range(domain_, "begin step", layout.rows);
    ForwardingDevice::BeginStep(layout);
  }
  void EndStep() override {
    ForwardingDevice::EndStep();
    EndRange();
  }
  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override {
    const Range range(domain_, "embedding", static_cast<int64_t>(rows.size()));
    ForwardingDevice::EmbedRows(table, first_token, rows, scale, out);
  }
  void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) override {
    const Range range(domain_, "gather", static_cast<int64_t>(rows.size()));
    ForwardingDevice::GatherRows(x, rows, width, out);
  }
  void GatherBrought(const BroughtRows& brought, int width, Floats out) override {
    const Range range(domain_, "gather", static_cast<int64_t>(brought.rows.size()));
    ForwardingDevice::GatherBrought(brought, width, out);
  }
  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override {
    const Range range(domain_, "norm", rows);
    ForwardingDevice::RmsNorm(x, rows, width, weight, epsilon, out);
  }
  void ResidualNorm(const ResidualNormArgs& args) override {
    const Range range(domain_, "residual and norm", args.rows);
    ForwardingDevice::ResidualNorm(args);
  }
  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override {
    const Range range(domain_, "product", rows);
    ForwardingDevice::Product(parts, x, rows, out);
  }
  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override {
    const Range range(domain_, "gated product", rows);
    ForwardingDevice::GatedProduct(activation, gate, up, x, rows, out);
  }
  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override {
    const Range range(domain_, "product roots", rows);
    ForwardingDevice::ProductRoots(matrix, x, rows, roots);
  }
  void RopeAndStore(const AttentionSpec& spec, Floats qkv) override {
    const Range range(domain_, "rope and store", spec.pool_layer);
    ForwardingDevice::RopeAndStore(spec, qkv);
  }
  void Attend(const AttentionSpec& spec, Floats qkv, Floats out) override {
    const Range range(domain_, "attention", spec.pool_layer);
    ForwardingDevice::Attend(spec, qkv, out);
  }
  void SoftCap(Floats x, int64_t size, float cap) override {
    const Range range(domain_, "soft cap", size);
    ForwardingDevice::SoftCap(x, size, cap);
  }
  void FindCandidates(Floats logits, const VocabularySlices& slices, const CandidateQuery& query,
                      CandidateReply* reply) override {
    const Range range(domain_, "candidates", 1);
    ForwardingDevice::FindCandidates(logits, slices, query, reply);
  }
  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override {
    const Range range(domain_, "head", static_cast<int64_t>(search.queries.size()));
    ForwardingDevice::SearchHead(search, replies);
  }
  void AskHead(const HeadSearch& search, Floats best) override {
    const Range range(domain_, "head", static_cast<int64_t>(search.queries.size()));
    ForwardingDevice::AskHead(search, best);
  }
  void KeepBest(Floats all, int ranks, std::span<const int32_t> keep) override {
    const Range range(domain_, "best of all ranks", static_cast<int64_t>(keep.size()));
    ForwardingDevice::KeepBest(all, ranks, keep);
  }
  absl::Status ReadBest(std::span<BestToken> tokens) override {
    const Range range(domain_, "tokens", static_cast<int64_t>(tokens.size()));
    return ForwardingDevice::ReadBest(tokens);
  }

 private:
  // Of one operation, on the calling thread.
  class Range {
   public:
    Range(nvtxDomainHandle_t domain, const char* name, int64_t rows) : domain_(domain) {
      const nvtxEventAttributes_t attributes = Named(name, rows);
      nvtxDomainRangePushEx(domain, &attributes);
    }
    ~Range() { nvtxDomainRangePop(domain_); }
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

   private:
    const nvtxDomainHandle_t domain_;
  };

  // Of the step, whichever thread began it: another epoch may have another.
  void EndRange() {
    if (std::exchange(in_step_, false)) nvtxDomainRangeEnd(domain_, step_);
  }

  const nvtxDomainHandle_t domain_;
  nvtxRangeId_t step_ = 0;
  bool in_step_ = false;
};

}  // namespace

std::unique_ptr<Device> WithNvtxRanges(std::unique_ptr<Device> device) {
  const nvtxDomainHandle_t domain = nvtxDomainCreateA("facet");
  if (domain == nullptr) return device;  // nobody listens
  return std::make_unique<NvtxDevice>(std::move(device), domain);
}

}  // namespace facet::cuda
