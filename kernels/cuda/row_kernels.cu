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

__global__ void EmbedKernel(EmbeddedRows args) {
  const int64_t row = BlockIndex().x;
  const int32_t named = args.rows[row];
  const int64_t at = named < 0 ? args.kept[-1 - named] - args.first_token : named;
  const bool found = at >= 0 && at < args.table_rows;
  const uint8_t* from = args.table + at * args.row_bytes;
  float* out = args.out + row * args.width;
  for (int i = ThreadIndex().x; i < args.width; i += kThreads) {
    out[i] = found ? MulRn(ElementAt(args.type, from, i), args.scale) : 0.0f;
  }
}

__global__ void BroughtKernel(RowsOfRanks args) {
  const int64_t row = BlockIndex().x;
  const BroughtRow named = args.rows[row];
  int64_t at = named.row;
  if (named.place >= 0) {
    const int32_t token = args.kept[named.place];
    int owner = 0;
    while (owner + 1 < args.ranks && token >= args.token_ends[owner]) ++owner;
    at += args.begins[owner];
  }
  const float* from = args.x + at * args.width;
  for (int i = ThreadIndex().x; i < args.width; i += kThreads) {
    args.out[row * args.width + i] = from[i];
  }
}

__global__ void RmsNormKernel(const float* x, int width, const float* weight, float epsilon,
                              float* out) {
  const int64_t first = int64_t{BlockIndex().x} * width;
  const float inverse = InverseNorm(x + first, width, epsilon);
  for (int i = ThreadIndex().x; i < width; i += kThreads) {
    out[first + i] = MulRn(MulRn(x[first + i], inverse), weight[i]);
  }
}

__global__ void ResidualNormKernel(ResidualNormRows args) {
  const int64_t first = int64_t{BlockIndex().x} * args.width;
  float* residual = args.residual + first;
  const float* update = args.update + first;
  const int thread = ThreadIndex().x;
  if (args.post_weight != nullptr) {
    const float inverse = InverseNorm(update, args.width, args.epsilon);
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
  const float inverse = InverseNorm(residual, args.width, args.epsilon);
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

LaunchShape RowShape(int rows) { return {{static_cast<unsigned>(rows)}, {kThreads}, 0}; }

}  // namespace

int GatherRows(Stream stream, const float* x, const int32_t* rows, int count, int width,
               float* out) {
  if (count == 0) return 0;
  return Launch(stream, RowShape(count), GatherKernel, x, rows, width, out);
}

int EmbedRows(Stream stream, const EmbeddedRows& args) {
  if (args.count == 0) return 0;
  return Launch(stream, RowShape(args.count), EmbedKernel, args);
}

int GatherBrought(Stream stream, const RowsOfRanks& args) {
  if (args.count == 0) return 0;
  return Launch(stream, RowShape(args.count), BroughtKernel, args);
}

int RmsNorm(Stream stream, const float* x, int rows, int width, const float* weight, float epsilon,
            float* out) {
  if (rows == 0) return 0;
  return Launch(stream, RowShape(rows), RmsNormKernel, x, width, weight, epsilon, out);
}

int ResidualNorm(Stream stream, const ResidualNormRows& args) {
  if (args.rows == 0) return 0;
  return Launch(stream, RowShape(args.rows), ResidualNormKernel, args);
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
