#ifndef FACET_SHARD_WORKER_MODEL_GGUF_KEYS_H_
#define FACET_SHARD_WORKER_MODEL_GGUF_KEYS_H_

// Typed, bounded access to the `{architecture}.*` keys of a GGUF file.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoint/gguf.h"

namespace facet {

class GgufKeys {
 public:
  GgufKeys(const GgufModel& model, std::string architecture)
      : model_(model), prefix_(std::move(architecture) + ".") {}

  bool Has(std::string_view key) const { return model_.Has(Full(key)); }
  // InvalidArgument if the value is absent or outside [low, high].
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t low, int64_t high) const;
  absl::StatusOr<int64_t> IntOr(std::string_view key, int64_t fallback, int64_t low,
                                int64_t high) const;
  absl::StatusOr<float> Float(std::string_view key, double low, double high) const;
  absl::StatusOr<float> FloatOr(std::string_view key, double fallback, double low,
                                double high) const;
  absl::StatusOr<std::string> StringOr(std::string_view key, std::string_view fallback) const;
  // A scalar for all layers, or one value per layer.
  absl::StatusOr<std::vector<int64_t>> PerLayer(std::string_view key, int layers, int64_t low,
                                                int64_t high) const;

 private:
  std::string Full(std::string_view key) const { return prefix_ + std::string(key); }

  const GgufModel& model_;
  std::string prefix_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_GGUF_KEYS_H_
