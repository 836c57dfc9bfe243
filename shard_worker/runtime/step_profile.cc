#include "shard_worker/runtime/step_profile.h"

namespace facet {
namespace {

// In the order of the enum.
constexpr std::array<std::string_view, kStepOperations> kNames = {
    "embedding", "norms",       "qkv",  "attention", "attention_output", "gated", "down",
    "head",      "collectives", "wait", "other"};

}  // namespace

std::string_view NameOf(StepOperation operation) { return kNames[static_cast<size_t>(operation)]; }

void StepProfile::Add(const StepProfile& other) {
  steps += other.steps;
  rows += other.rows;
  seconds += other.seconds;
  for (size_t i = 0; i < operations.size(); ++i) {
    operations[i].calls += other.operations[i].calls;
    operations[i].seconds += other.operations[i].seconds;
    operations[i].bytes += other.operations[i].bytes;
    operations[i].operations += other.operations[i].operations;
  }
}

void StepProfile::Subtract(const StepProfile& other) {
  steps -= other.steps;
  rows -= other.rows;
  seconds -= other.seconds;
  for (size_t i = 0; i < operations.size(); ++i) {
    operations[i].calls -= other.operations[i].calls;
    operations[i].seconds -= other.operations[i].seconds;
    operations[i].bytes -= other.operations[i].bytes;
    operations[i].operations -= other.operations[i].operations;
  }
}

}  // namespace facet
