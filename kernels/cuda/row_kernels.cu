#include "kernels/cuda/block_reader.cuh"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/row_norm.cuh"

namespace facet::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void GatherKernel(const float* x, const int32_t* rows, int width, float* out) {
  const int64_t row = BlockIndex().x;
  const float* from = x + int64_t{rows[row]} * width;
  for (int i = ThreadIndex().x; i < width; i += kThreads) out[row * width + i] = from[i];
}

__global__ void EmbedKernel(TensorType type, const uint8_t* table, int64_t row_bytes,
                            const int32_t* rows, const int32_t* kept, int width, float scale,
                            float* out) {
  const int64_t row = BlockIndex().x;
  const int32_t named = rows[row];
  const uint8_t* from = table + (named < 0 ? kept[-1 - named] : named) * row_bytes;
  for (int i = ThreadIndex().x; i < width; i += kThreads) {
    out[row * width + i] = MulRn(ElementAt(type, from, i), scale);
  }
}

__global__ void RmsNormKernel(const float* x, int width, const float* weight, float epsilon,
                              float* out) {
  SharedMemory memory;
  const Shared<float> scratch = memory.Array<float>(1);
  const int64_t first = int64_t{BlockIndex().x} * width;
  const float inverse = InverseNorm(x + first, width, epsilon, scratch);
  for (int i = ThreadIndex().x; i < width; i += kThreads) {
    out[first + i] = MulRn(MulRn(x[first + i], inverse), weight[i]);
  }
}

__global__ void ResidualNormKernel(ResidualNormRows args) {
  SharedMemory memory;
  const Shared<float> scratch = memory.Array<float>(2);
  const int64_t first = int64_t{BlockIndex().x} * args.width;
  float* residual = args.residual + first;
  const float* update = args.update + first;
  const int thread = ThreadIndex().x;
  if (args.post_weight != nullptr) {
    const float inverse = InverseNorm(update, args.width, args.epsilon, scratch);
    for (int i = thread; i < args.width; i += kThreads) {
      const float normed = MulRn(MulRn(update[i], inverse), args.post_weight[i]);
      residual[i] = AddRn(residual[i], normed);
    }
  } else {
    for (int i = thread; i < args.width; i += kThreads) {
      residual[i] = AddRn(residual[i], update[i]);
    }
  }
  Barrier();  // one warp now reads the whole sum
  const float inverse = InverseNorm(residual, args.width, args.epsilon, scratch.From(1));
  for (int i = thread; i < args.width; i += kThreads) {
    args.out[first + i] = MulRn(MulRn(residual[i], inverse), args.next_weight[i]);
  }
}

__global__ void SoftCapKernel(float* x, int64_t size, float cap) {
  const int64_t i = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  if (i < size) x[i] = SoftCappedOf(x[i], cap);
}

__global__ void GateKernel(Gate gate, const float* up, int64_t size, float* x) {
  const int64_t i = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  if (i < size) x[i] = Gated(gate, x[i], up[i]);
}

LaunchShape ElementShape(int64_t size) {
  return {{static_cast<unsigned>((size + kThreads - 1) / kThreads)}, {kThreads}, 0};
}

LaunchShape RowShape(int rows, uint32_t shared_floats = 0) {
  return {{static_cast<unsigned>(rows)}, {kThreads}, shared_floats * uint32_t{sizeof(float)}};
}

}  // namespace

int GatherRows(Stream stream, const float* x, const int32_t* rows, int count, int width,
               float* out) {
  if (count == 0) return 0;
  return Launch(stream, RowShape(count), GatherKernel, x, rows, width, out);
}

int EmbedRows(Stream stream, TensorType type, const uint8_t* table, int64_t row_bytes,
              const int32_t* rows, const int32_t* kept, int count, int width, float scale,
              float* out) {
  if (count == 0) return 0;
  return Launch(stream, RowShape(count), EmbedKernel, type, table, row_bytes, rows, kept, width,
                scale, out);
}

int RmsNorm(Stream stream, const float* x, int rows, int width, const float* weight, float epsilon,
            float* out) {
  if (rows == 0) return 0;
  return Launch(stream, RowShape(rows, 4), RmsNormKernel, x, width, weight, epsilon, out);
}

int ResidualNorm(Stream stream, const ResidualNormRows& args) {
  if (args.rows == 0) return 0;
  return Launch(stream, RowShape(args.rows, 4), ResidualNormKernel, args);
}

int SoftCap(Stream stream, float* x, int64_t size, float cap) {
  if (size == 0) return 0;
  return Launch(stream, ElementShape(size), SoftCapKernel, x, size, cap);
}

int ApplyGate(Stream stream, Gate gate, const float* up, int64_t size, float* x) {
  if (size == 0) return 0;
  return Launch(stream, ElementShape(size), GateKernel, gate, up, size, x);
}

}  // namespace facet::cuda
