#ifndef FACET_SHARD_WORKER_MODEL_FAMILIES_H_
#define FACET_SHARD_WORKER_MODEL_FAMILIES_H_

// What distinguishes the model families: one function per family turns a spec with the common
// fields into that family's. To add a family, add its function and its row (README, "Adding a
// model family").

#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "shard_worker/model/gguf_keys.h"
#include "shard_worker/model/model_spec.h"

namespace facet {

struct Family {
  std::string_view architecture;  // general.architecture
  // `spec` arrives with the common keys read (sizes, epsilon, one plain rope at index 0).
  absl::Status (*specialise)(const GgufKeys& keys, const GgufModel& model, ModelSpec* spec);
};

std::span<const Family> Families();

// Inverse frequencies base^(-2i / rotary) / factor, i < rotary / 2.
RopeSpec MakeRope(int rotary, double base, double factor);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_FAMILIES_H_
