#ifndef FACET_SHARD_WORKER_RUNTIME_STEP_PROFILE_H_
#define FACET_SHARD_WORKER_RUNTIME_STEP_PROFILE_H_

// Where the time of a rank's steps goes: plain sums by operation, so that two looks can be
// subtracted and those of several ranks added.

#include <array>
#include <cstdint>
#include <string_view>

namespace facet {

enum class StepOperation {
  kEmbedding,
  kNorms,  // residual and norm; also norm and rotation of q and k, and storing k and v
  kQkv,    // the product with q, k and v
  kAttention,
  kAttentionOutput,
  kGated,  // gate, up and their activation
  kDown,
  kHead,         // the output layer and the choice of candidates in it
  kCollectives,  // moving and adding partial results
  kWait,         // for other ranks
  kOther,        // what is left of the step: planning, sampling, a product without a name
};
inline constexpr int kStepOperations = 11;

// "qkv", "attention_output": as in metrics and in the protocol.
std::string_view NameOf(StepOperation operation);

struct OperationTotals {
  int64_t calls = 0;
  double seconds = 0;  // by the clock
  // What has to be read: packed weights once per call, keys and values once per sequence.
  double bytes = 0;
  double operations = 0;  // multiplications and additions
};

struct StepProfile {
  int64_t steps = 0;
  int64_t rows = 0;    // tokens computed in them
  double seconds = 0;  // that they took; the sum of the operations'
  std::array<OperationTotals, kStepOperations> operations;

  OperationTotals& operator[](StepOperation operation) {
    return operations[static_cast<size_t>(operation)];
  }
  const OperationTotals& operator[](StepOperation operation) const {
    return operations[static_cast<size_t>(operation)];
  }
  void Add(const StepProfile& other);
  void Subtract(const StepProfile& other);
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_STEP_PROFILE_H_
