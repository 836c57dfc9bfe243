#include "tests/cuda_emulator/samples.h"

#include "kernels/cuda/language.cuh"

namespace facet::cuda::samples {
namespace {

__device__ int32_t WarpSum(int32_t value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}

__global__ void BlockSumsKernel(const int32_t* values, int count, int32_t* out) {
  FACET_SHARED(int32_t, of_warp, kWarpSize);
  const int thread = ThreadIndex().x;
  const int block = BlockIndex().x;
  const int warps = BlockSize().x / kWarpSize;
  int32_t sum = 0;
  for (int i = thread; i < count; i += BlockSize().x) sum += values[block * count + i];
  sum = WarpSum(sum);
  if (thread % kWarpSize == 0) of_warp[thread / kWarpSize] = sum;
  Barrier();
  if (thread >= kWarpSize) return;
  int32_t part = 0;
  if (thread < warps) part = of_warp[thread];
  part = WarpSum(part);
  if (thread == 0) out[block] = part;
}

__device__ unsigned Volume(const Dim3& size) { return size.x * size.y * size.z; }

__device__ unsigned Flat(const Dim3& index, const Dim3& size) {
  return index.x + size.x * (index.y + size.y * index.z);
}

__global__ void IndicesKernel(uint32_t* out) {
  const unsigned thread =
      Flat(BlockIndex(), GridSize()) * Volume(BlockSize()) + Flat(ThreadIndex(), BlockSize());
  out[thread] = thread + 1;
}

__global__ void LanesKernel(const float* values, int source, double* out) {
  const int lane = ThreadIndex().x;
  const float value = values[lane];
  out[lane] = Shuffle(value, source);
  out[kWarpSize + lane] = ShuffleXor(value, source);
  out[2 * kWarpSize + lane] = ShuffleDown(value, static_cast<unsigned>(source));
  out[3 * kWarpSize + lane] = Shuffle(static_cast<double>(value), source);
  out[4 * kWarpSize + lane] = Ballot(value > 0);
}

constexpr int kTile = 4 * kWarpSize;  // floats, by one warp's 16-byte copies

__device__ void StartTile(Shared<float> tiles, const float* row, int count, int tile) {
  const int i = tile * kTile + 4 * static_cast<int>(ThreadIndex().x);
  const int to = tile % 2 * kTile + 4 * static_cast<int>(ThreadIndex().x);
  CopyAsync16OrZero(tiles, to, row + i, i < count);
  CopyAsyncCommit();
}

__global__ void PipelinedSumsKernel(const float* values, int count, float* out) {
  SharedMemory memory;
  const auto tiles = memory.Array<float>(2 * kTile);
  const int lane = ThreadIndex().x;
  const int block = BlockIndex().x;
  const float* row = values + block * count;
  const int tile_count = (count + kTile - 1) / kTile;
  float sum = 0;
  StartTile(tiles, row, count, 0);
  for (int tile = 0; tile < tile_count; ++tile) {
    StartTile(tiles, row, count, tile + 1);
    CopyAsyncWait<1>();
    WarpBarrier();  // the other lanes' copies, too
    for (int i = lane; i < kTile; i += kWarpSize) sum += tiles[tile % 2 * kTile + i];
    WarpBarrier();  // before the next copies overwrite it
  }
  CopyAsyncWait<0>();
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  if (lane == 0) out[block] = sum;
}

// Where element i of a lane's fragment lies. `per_unit` elements share 32 bits.
struct At {
  int row, column;
};
__device__ At OfA(int lane, int i, int per_unit) {
  const int unit = i / per_unit;
  return {lane / 4 + (unit % 2 == 0 ? 0 : 8),
          lane % 4 * per_unit + i % per_unit + (unit < 2 ? 0 : 4 * per_unit)};
}
__device__ At OfB(int lane, int i, int per_unit) {
  return {lane % 4 * per_unit + i % per_unit + (i < per_unit ? 0 : 4 * per_unit), lane / 4};
}
__device__ At OfD(int lane, int i) { return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)}; }

template <typename T>
__device__ void GatherFragments(const T* a, const T* b, uint32_t (&a_out)[4],
                                uint32_t (&b_out)[2]) {
  constexpr int kPerUnit = 4 / sizeof(T);
  constexpr int kDepth = 8 * kPerUnit;
  const int lane = ThreadIndex().x;
  for (int i = 0; i < 4 * kPerUnit; ++i) {
    const At at = OfA(lane, i, kPerUnit);
    a_out[i / kPerUnit] |= static_cast<uint32_t>(a[at.row * kDepth + at.column])
                           << (i % kPerUnit * 8 * static_cast<int>(sizeof(T)));
  }
  for (int i = 0; i < 2 * kPerUnit; ++i) {
    const At at = OfB(lane, i, kPerUnit);
    b_out[i / kPerUnit] |= static_cast<uint32_t>(b[at.row * 8 + at.column])
                           << (i % kPerUnit * 8 * static_cast<int>(sizeof(T)));
  }
}

template <typename D>
__device__ void GatherResult(const D* d, D (&out)[4]) {
  for (int i = 0; i < 4; ++i) {
    const At at = OfD(ThreadIndex().x, i);
    out[i] = d[at.row * 8 + at.column];
  }
}
template <typename D>
__device__ void ScatterResult(const D (&in)[4], D* d) {
  for (int i = 0; i < 4; ++i) {
    const At at = OfD(ThreadIndex().x, i);
    d[at.row * 8 + at.column] = in[i];
  }
}

__global__ void MmaHalfKernel(bool bf16, const uint16_t* a, const uint16_t* b, float* d) {
  uint32_t a_part[4] = {};
  uint32_t b_part[2] = {};
  float d_part[4];
  GatherFragments(a, b, a_part, b_part);
  GatherResult(d, d_part);
  if (bf16) {
    MmaBf16(d_part, a_part, b_part);
  } else {
    MmaF16(d_part, a_part, b_part);
  }
  ScatterResult(d_part, d);
}

__global__ void MmaS8Kernel(const uint8_t* a, const uint8_t* b, int32_t* d) {
  uint32_t a_part[4] = {};
  uint32_t b_part[2] = {};
  int32_t d_part[4];
  GatherFragments(a, b, a_part, b_part);
  GatherResult(d, d_part);
  MmaS8(d_part, a_part, b_part);
  ScatterResult(d_part, d);
}

// Rows are 8 elements longer than what is used of them, as in kernels that avoid bank conflicts.
__global__ void MmaByLoadMatrixKernel(const uint16_t* a, const uint16_t* b, float* d) {
  constexpr int kDepth = 16;
  constexpr int kStrideA = kDepth + 8;
  constexpr int kStrideB = 8 + 8;
  FACET_SHARED(uint16_t, a_tile, 16 * kStrideA);
  FACET_SHARED(uint16_t, b_tile, kDepth * kStrideB);
  const int lane = ThreadIndex().x;
  for (int i = lane; i < 16 * kDepth; i += kWarpSize) {
    a_tile[i / kDepth * kStrideA + i % kDepth] = a[i];
  }
  for (int i = lane; i < kDepth * 8; i += kWarpSize) b_tile[i / 8 * kStrideB + i % 8] = b[i];
  WarpBarrier();
  uint32_t a_part[4];
  uint32_t b_part[4];
  float d_part[4];
  LoadMatrix4(a_part, a_tile, lane % 16 * kStrideA + lane / 16 * 8);
  LoadMatrix4Transposed(b_part, b_tile, lane % 16 * kStrideB);  // the last two are not needed
  GatherResult(d, d_part);
  MmaBf16(d_part, a_part, {b_part[0], b_part[1]});
  ScatterResult(d_part, d);
}

__global__ void ArithmeticKernel(float x, float y, float z, float* out) {
  if (ThreadIndex().x != 0) return;
  out[0] = FmaRn(x, y, z);
  out[1] = MulRn(x, y);
  out[2] = AddRn(x, y);
  out[3] = DivRn(x, y);
  out[4] = SqrtRn(x);
  out[5] = static_cast<float>(ToIntRn(x));
  out[6] = HalfToFloat(FloatToHalf(x));
  out[7] = Bf16ToFloat(FloatToBf16(x));
  out[8] = static_cast<float>(DotS8(FloatBits(x), FloatBits(y), 0));
}

// Each block counts by itself first.
__global__ void HistogramKernel(const uint32_t* values, int count, uint32_t* out) {
  FACET_SHARED(uint32_t, counts, kBins);
  const int thread = BlockIndex().x * BlockSize().x + ThreadIndex().x;
  for (int i = ThreadIndex().x; i < kBins; i += BlockSize().x) counts[i] = 0;
  Barrier();
  for (int i = thread; i < count; i += GridSize().x * BlockSize().x) {
    AtomicAdd(&counts[values[i] % kBins], 1);
  }
  Barrier();
  for (int i = ThreadIndex().x; i < kBins; i += BlockSize().x) AtomicAdd(&out[i], counts[i]);
}

template <typename W, typename T>
__device__ void UpdateAll(W word, T value) {
  AtomicAdd(word(0), value);
  AtomicMax(word(1), value);
  AtomicMin(word(2), value);
  AtomicOr(word(3), value);
  const T before = AtomicExchange(word(4), value);
  AtomicAdd(word(5), before);
  AtomicCompareExchange(word(6), 0, value);
}

template <typename T>
__global__ void AtomicsKernel(const T* values, T* out) {
  FACET_SHARED(T, words, kAtomicResults);
  const int thread = ThreadIndex().x;
  if (thread < kAtomicResults) words[thread] = 0;
  Barrier();
  UpdateAll([&](int i) { return &words[i]; }, values[thread]);
  UpdateAll([&](int i) { return &out[kAtomicResults + i]; }, values[thread]);
  Barrier();
  if (thread < kAtomicResults) out[thread] = words[thread];
}

constexpr Dim3 kOneWarp = {kWarpSize};

}  // namespace

int BlockSums(Stream stream, const int32_t* values, int count, int blocks, int threads,
              int32_t* out) {
  const LaunchShape shape = {.grid = {static_cast<unsigned>(blocks)},
                             .block = {static_cast<unsigned>(threads)}};
  return Launch(stream, shape, BlockSumsKernel, values, count, out);
}

int Indices(Stream stream, Dim3 grid, Dim3 block, uint32_t* out) {
  return Launch(stream, {.grid = grid, .block = block}, IndicesKernel, out);
}

int Lanes(Stream stream, const float* values, int source, double* out) {
  return Launch(stream, {.grid = {}, .block = kOneWarp}, LanesKernel, values, source, out);
}

int PipelinedSums(Stream stream, const float* values, int count, int blocks, float* out) {
  const LaunchShape shape = {.grid = {static_cast<unsigned>(blocks)},
                             .block = kOneWarp,
                             .shared_bytes = 2 * kTile * sizeof(float)};
  return Launch(stream, shape, PipelinedSumsKernel, values, count, out);
}

int MmaByElements(Stream stream, ElementType type, const void* a, const void* b, void* d) {
  const LaunchShape shape = {.grid = {}, .block = kOneWarp};
  if (type == ElementType::kS8) {
    return Launch(stream, shape, MmaS8Kernel, static_cast<const uint8_t*>(a),
                  static_cast<const uint8_t*>(b), static_cast<int32_t*>(d));
  }
  return Launch(stream, shape, MmaHalfKernel, type == ElementType::kBf16,
                static_cast<const uint16_t*>(a), static_cast<const uint16_t*>(b),
                static_cast<float*>(d));
}

int MmaByLoadMatrix(Stream stream, const uint16_t* a, const uint16_t* b, float* d) {
  return Launch(stream, {.grid = {}, .block = kOneWarp}, MmaByLoadMatrixKernel, a, b, d);
}

int Histogram(Stream stream, const uint32_t* values, int count, int blocks, int threads,
              uint32_t* out) {
  const LaunchShape shape = {.grid = {static_cast<unsigned>(blocks)},
                             .block = {static_cast<unsigned>(threads)}};
  return Launch(stream, shape, HistogramKernel, values, count, out);
}

template <typename T>
int Atomics(Stream stream, const T* values, int threads, T* out) {
  return Launch(stream, {.grid = {}, .block = {static_cast<unsigned>(threads)}}, AtomicsKernel<T>,
                values, out);
}
template int Atomics<int32_t>(Stream, const int32_t*, int, int32_t*);
template int Atomics<uint32_t>(Stream, const uint32_t*, int, uint32_t*);

int Arithmetic(Stream stream, float x, float y, float z, float* out) {
  return Launch(stream, {.grid = {}, .block = kOneWarp}, ArithmeticKernel, x, y, z, out);
}

}  // namespace facet::cuda::samples
