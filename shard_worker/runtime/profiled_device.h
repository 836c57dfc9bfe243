#ifndef FACET_SHARD_WORKER_RUNTIME_PROFILED_DEVICE_H_
#define FACET_SHARD_WORKER_RUNTIME_PROFILED_DEVICE_H_

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "kernels/host/forwarding_device.h"
#include "shard_worker/model/weights.h"
#include "shard_worker/runtime/step_profile.h"

namespace facet {

// Passes every call on and, while it is switched on, sums up what each kind took, read and
// computed. While it is on each operation is waited for, which devices that compute in the
// background lose time by; while it is off it looks at no clock and counts nothing.
//
// The thread of the device calls everything but Enable(), which any thread may call.
class ProfiledDevice final : public ForwardingDevice {
 public:
  using Seconds = double (*)();  // a clock that only differences are taken of

  explicit ProfiledDevice(std::unique_ptr<Device> device, Seconds seconds = SteadySeconds);

  // Tells the products of a model apart; those with other matrices are kOther.
  void Label(const Weights& weights);

  // From the next BeginStep() on.
  void Enable(bool on) { wanted_ = on; }
  // Whether this step is counted.
  bool on() const { return on_; }
  // What there was since the last look. The caller adds what no device knows: steps, their seconds,
  // collectives.
  StepProfile Take() { return std::exchange(profile_, {}); }

  absl::Status AllocateKv(const std::array<KvPoolSpec, kKvPools>& pools) override;
  void BeginStep(const StepLayout& layout) override;
  void NarrowStep(const StepLayout& layout) override;
  void EmbedRows(const Matrix& table, int32_t first_token, std::span<const int32_t> rows,
                 float scale, Floats out) override;
  void GatherRows(Floats x, std::span<const int32_t> rows, int width, Floats out) override;
  void GatherBrought(const BroughtRows& brought, int width, Floats out) override;
  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override;
  void ResidualNorm(const ResidualNormArgs& args) override;
  void Product(std::span<const Matrix* const> parts, Floats x, int rows, Floats out) override;
  void GatedProduct(Activation activation, const Matrix& gate, const Matrix& up, Floats x, int rows,
                    Floats out) override;
  void ProductRoots(const Matrix& matrix, Floats x, int rows, Floats roots) override;
  void RopeAndStore(const AttentionSpec& spec, Floats qkv) override;
  void Attend(const AttentionSpec& spec, Floats qkv, Floats out) override;
  void SoftCap(Floats x, int64_t size, float cap) override;
  void FindCandidates(Floats logits, const VocabularySlices& slices, const CandidateQuery& query,
                      CandidateReply* reply) override;
  void SearchHead(const HeadSearch& search, std::span<CandidateReply> replies) override;
  void AskHead(const HeadSearch& search, Floats best) override;
  void KeepBest(Floats all, int ranks, std::span<const int32_t> keep) override;

  static double SteadySeconds();

 private:
  struct Work {
    double bytes = 0;
    double operations = 0;
  };
  // Runs `call`; while on, times it and asks `work` what it did.
  template <typename Call, typename WorkOf>
  void Count(StepOperation operation, const Call& call, const WorkOf& work);
  template <typename Call>
  void Count(StepOperation operation, const Call& call) {
    Count(operation, call, [] { return Work(); });
  }
  StepOperation LabelOf(const Matrix& matrix) const;
  // Of a search, before which the device had read `bytes_before` of heads.
  Work HeadWork(const HeadSearch& search, double bytes_before) const;
  Work AttentionWork(const AttentionSpec& spec) const;

  const Seconds seconds_;
  std::atomic<bool> wanted_ = false;
  bool on_ = false;
  const StepLayout* layout_ = nullptr;
  std::array<KvType, kKvPools> kv_types_ = {};
  absl::flat_hash_map<const Matrix*, StepOperation> labels_;
  StepProfile profile_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_PROFILED_DEVICE_H_
