#include "shard_worker/model/gguf_keys.h"

#include "base/status.h"

namespace facet {
namespace {

template <typename Value>
absl::Status CheckRange(const std::string& key, Value value, Value low, Value high) {
  if (value >= low && value <= high) return absl::OkStatus();  // also refuses NaN
  return InvalidArgument("{}: {} is outside [{}, {}]", key, value, low, high);
}

}  // namespace

absl::StatusOr<int64_t> GgufKeys::Int(std::string_view key, int64_t low, int64_t high) const {
  FACET_ASSIGN_OR_RETURN(const int64_t value, model_.GetInt(Full(key)));
  FACET_RETURN_IF_ERROR(CheckRange(Full(key), value, low, high));
  return value;
}

absl::StatusOr<int64_t> GgufKeys::IntOr(std::string_view key, int64_t fallback, int64_t low,
                                        int64_t high) const {
  return Has(key) ? Int(key, low, high) : fallback;
}

absl::StatusOr<float> GgufKeys::Float(std::string_view key, double low, double high) const {
  FACET_ASSIGN_OR_RETURN(const double value, model_.GetFloat(Full(key)));
  FACET_RETURN_IF_ERROR(CheckRange(Full(key), value, low, high));
  return static_cast<float>(value);
}

absl::StatusOr<float> GgufKeys::FloatOr(std::string_view key, double fallback, double low,
                                        double high) const {
  return Has(key) ? Float(key, low, high) : static_cast<float>(fallback);
}

absl::StatusOr<std::string> GgufKeys::StringOr(std::string_view key,
                                               std::string_view fallback) const {
  if (!Has(key)) return std::string(fallback);
  FACET_ASSIGN_OR_RETURN(const std::string_view value, model_.GetString(Full(key)));
  return std::string(value);
}

absl::StatusOr<std::vector<int64_t>> GgufKeys::PerLayer(std::string_view key, int layers,
                                                        int64_t low, int64_t high) const {
  FACET_ASSIGN_OR_RETURN(std::vector<int64_t> values, model_.GetPerLayer(Full(key), layers));
  for (const int64_t value : values) {
    FACET_RETURN_IF_ERROR(CheckRange(Full(key), value, low, high));
  }
  return values;
}

}  // namespace facet
