#ifndef FACET_SHARD_WORKER_MODEL_TENSOR_SOURCE_H_
#define FACET_SHARD_WORKER_MODEL_TENSOR_SOURCE_H_

// A model's tensors as devices are given them.

#include <cstdint>
#include <vector>

#include "checkpoint/gguf.h"
#include "kernels/device.h"
#include "shard_worker/model/model_spec.h"
#include "shard_worker/model/shard_plan.h"
#include "shard_worker/model/tensor_roles.h"

namespace facet {

// The whole tensor, rows in the file's order.
MatrixSource SourceOf(const GgufTensor& tensor);

// The order of the rows of query or key heads [heads.begin, heads.end) that the device rotates:
// files of some families keep rotation pairs adjacent (2j, 2j + 1), the device wants
// (j, j + rotary / 2). Empty where they lie right, and for other roles.
std::vector<int32_t> RowOrder(const ModelSpec& spec, TensorRole role, int layer, Span heads);

// Whether searches for tokens look at this tensor.
bool IsHead(const ModelSpec& spec, TensorRole role);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_TENSOR_SOURCE_H_
