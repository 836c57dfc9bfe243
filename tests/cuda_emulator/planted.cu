#include "tests/cuda_emulator/planted.h"

#include "kernels/cuda/language.cuh"

namespace facet::cuda::samples {
namespace {

using cuda_emulator::Fault;

__device__ Shared<uint32_t> Words() {
  SharedMemory memory;
  return memory.Array<uint32_t>(kPlantedWords);
}

// --- Uninitialised reads.

__global__ void UnwrittenTail(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  const int written = right ? kPlantedThreads : kPlantedThreads - 1;
  if (thread < written) tile[thread] = in[thread];
  Barrier();
  out[thread] = tile[(thread + 1) % kPlantedThreads];
}

__global__ void HalfWrittenVector(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile[2 * thread] = in[thread];
  if (right) tile[2 * thread + 1] = in[thread];
  out[thread] = tile.LoadVector<U32x2>(2 * thread).x;
}

__global__ void FixedArrayUnwrittenTail(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, tile, kPlantedThreads);
  const int thread = ThreadIndex().x;
  const int written = right ? kPlantedThreads : kPlantedThreads - 1;
  if (thread < written) tile[thread] = in[thread];
  Barrier();
  out[thread] = tile[(thread + 1) % kPlantedThreads];
}

// One block's array is not the other's.
__global__ void FixedArrayOfAnotherBlock(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, tile, kPlantedThreads);
  const int thread = ThreadIndex().x;
  if (right || BlockIndex().x == 0) tile[thread] = in[thread];
  out[thread] = tile[thread];
}

// --- Races.

__global__ void DroppedBarrier(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile[thread] = in[thread];
  if (right) Barrier();
  out[thread] = tile[thread ^ kWarpSize];
}

// The first round's readers must be done before the second round writes.
__global__ void DroppedBarrierAfterReads(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  uint32_t sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[thread] = in[thread + round];
    Barrier();
    sum += tile[thread ^ kWarpSize];
    if (right) Barrier();
  }
  out[thread] = sum;
}

__global__ void DroppedWarpBarrier(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile[thread] = in[thread];
  if (right) WarpBarrier();
  out[thread] = tile[thread ^ 1];
}

// A shuffle makes the lanes meet, but orders no memory.
__global__ void ShuffleForBarrier(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile[thread] = in[thread];
  const uint32_t sum = ShuffleXor(in[thread], 1);
  if (right) WarpBarrier();
  out[thread] = sum + tile[thread ^ 1];
}

__global__ void WarpBarrierForBlockBarrier(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile[thread] = in[thread];
  if (right) {
    Barrier();
  } else {
    WarpBarrier();
  }
  out[thread] = tile[thread ^ kWarpSize];
}

// All threads write the same word, and even the same value.
__global__ void AllWriteOneWord(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  if (!right || thread == 0) tile[0] = in[0];
  Barrier();
  out[thread] = tile[0];
}

// Bytes of one word belong to different threads: no race, unless they overlap.
__global__ void OverlappingBytes(bool right, const uint32_t* in, uint32_t* out) {
  SharedMemory memory;
  const auto bytes = memory.Array<uint8_t>(2 * kPlantedThreads);
  const int thread = ThreadIndex().x;
  bytes[2 * thread] = static_cast<uint8_t>(in[thread]);
  bytes[(2 * thread + (right ? 1 : 2)) % (2 * kPlantedThreads)] = 1;
  Barrier();
  out[thread] = bytes[2 * thread];
}

__global__ void FixedArrayDroppedBarrier(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, tile, kPlantedThreads);
  const int thread = ThreadIndex().x;
  tile[thread] = in[thread];
  if (right) Barrier();
  out[thread] = tile[thread ^ kWarpSize];
}

// Both calls have the same array.
__device__ uint32_t OfTheOtherWarp(uint32_t value) {
  FACET_SHARED(uint32_t, values, kPlantedThreads);
  const int thread = ThreadIndex().x;
  values[thread] = value;
  Barrier();
  return values[thread ^ kWarpSize];
}
__global__ void FixedArrayOfTwoCalls(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  const uint32_t first = OfTheOtherWarp(in[thread]);
  if (right) Barrier();
  out[thread] = first + OfTheOtherWarp(in[thread + 1]);
}

// --- Divergent barriers.

__global__ void ReturnsBeforeBarrier(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  out[thread] = in[thread];
  if (!right && thread >= 40) return;
  Barrier();
}

__global__ void TwoBarriers(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  out[thread] = in[thread];
  if (right || thread < kWarpSize) {
    Barrier();
  } else {
    Barrier();
  }
}

__global__ void OneMoreRound(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  const int rounds = right || thread % 2 == 0 ? 2 : 3;
  for (int i = 0; i < rounds; ++i) Barrier();
  out[thread] = in[thread];
}

// --- Absent lanes.

__global__ void HalfWarpShuffles(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  uint32_t value = in[thread];
  if (right || thread % kWarpSize < 16) value += ShuffleXor(value, 8);
  out[thread] = value;
}

__global__ void VoteAfterReturn(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  out[thread] = in[thread];
  if (!right && thread == 5) return;
  out[thread] = Ballot(true);
}

__global__ void ShufflesInBothBranches(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  uint32_t value = in[thread];
  if (right || thread % 2 == 0) {
    value += Shuffle(value, 0);
  } else {
    value += Shuffle(value, 1);
  }
  out[thread] = value;
}

__global__ void LaneSkipsMma(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  int32_t d[4] = {};
  const uint32_t a[4] = {in[thread], 1, 2, 3};
  const uint32_t b[2] = {4, 5};
  if (right || thread != 33) MmaS8(d, a, b);
  out[thread] = static_cast<uint32_t>(d[0]);
}

// --- Out of range.

__global__ void OneBeyond(bool right, const uint32_t* in, uint32_t* out) {
  SharedMemory memory;
  const auto first = memory.Array<uint32_t>(kPlantedThreads);
  const auto second = memory.Array<uint32_t>(kPlantedThreads);
  const int thread = ThreadIndex().x;
  second[thread] = in[thread];
  first[thread + (right ? 0 : 1)] = in[thread];  // the last one is in `second`
  Barrier();
  out[thread] = first[thread] + second[thread];
}

__global__ void BeforeTheFirst(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile[thread - (right ? 0 : 1)] = in[thread];
  out[thread] = in[thread];
}

__global__ void VectorOverTheEnd(bool right, const uint32_t* in, uint32_t* out) {
  SharedMemory memory;
  const auto tile = memory.Array<uint32_t>(right ? 4 : 3);
  const int thread = ThreadIndex().x;
  if (thread == 0) tile.StoreVector(0, LoadVector<U32x4>(in));
  out[thread] = in[thread];
}

__global__ void TooManyArrays(bool right, const uint32_t* in, uint32_t* out) {
  SharedMemory memory;
  const auto tile = memory.Array<uint32_t>(kPlantedWords - 4);
  const auto rest = memory.Array<uint32_t>(right ? 4 : 5);
  const int thread = ThreadIndex().x;
  tile[thread] = in[thread];
  if (thread == 0) rest[0] = 1;
  out[thread] = tile[thread];
}

__global__ void FixedArrayOneBeyond(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, first, kPlantedThreads);
  FACET_SHARED(uint32_t, second, kPlantedThreads);
  const int thread = ThreadIndex().x;
  second[thread] = in[thread];
  first[thread + (right ? 0 : 1)] = in[thread];
  Barrier();
  out[thread] = first[thread] + second[thread];
}

// --- Misaligned.

__global__ void UnalignedGlobalLoad(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  out[thread] = LoadVector<U32x4>(in + 4 * thread + (right ? 0 : 2)).x;
}

__global__ void UnalignedGlobalStore(bool right, const uint32_t* in, uint32_t* out) {
  const int thread = ThreadIndex().x;
  StoreVector(out + 2 * thread + (right ? 0 : 1), U32x2{in[0], in[1]});
}

__global__ void UnalignedSharedStore(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  tile.StoreVector(4 * thread + (right ? 0 : 1), U32x4{in[0], 1, 2, 3});
  out[thread] = in[thread];
}

__global__ void FixedArrayUnalignedStore(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, tile, 8 * kPlantedThreads);
  const int thread = ThreadIndex().x;
  tile.StoreVector(4 * thread + (right ? 0 : 1), U32x4{in[0], 1, 2, 3});
  out[thread] = in[thread];
}

__global__ void UnalignedCopy(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  CopyAsync16(tile, 4 * thread, in + 4 * thread + (right ? 0 : 1));
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  out[thread] = tile[4 * thread];
}

__global__ void UnalignedMatrixRow(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  const int lane = thread % kWarpSize;
  for (int i = thread; i < kPlantedWords; i += kPlantedThreads) tile[i] = in[i];
  Barrier();
  uint32_t rows[4];
  LoadMatrix4(rows, tile, lane * (right ? 8 : 6));
  out[thread] = rows[0];
}

// --- Unfinished copies.

__global__ void ReadsBeforeWait(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  CopyAsync16(tile, 4 * thread, in + 4 * thread);
  CopyAsyncCommit();
  if (right) CopyAsyncWait<0>();
  out[thread] = tile[4 * thread];
}

__global__ void WaitsForTheOlderGroup(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  for (int i = 0; i < 2; ++i) {
    CopyAsync16(tile, 8 * thread + 4 * i, in + 8 * thread + 4 * i);
    CopyAsyncCommit();
  }
  CopyAsyncWait<1>();
  out[thread] = tile[8 * thread + (right ? 0 : 4)];
}

__global__ void WaitsWithoutCommit(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  CopyAsync16(tile, 4 * thread, in + 4 * thread);
  if (right) CopyAsyncCommit();
  CopyAsyncWait<0>();
  out[thread] = tile[4 * thread];
}

__global__ void OverwritesACopy(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  CopyAsync16OrZero(tile, 4 * thread, in, false);
  CopyAsyncCommit();
  if (right) CopyAsyncWait<0>();
  tile[4 * thread] = in[thread];
  CopyAsyncWait<0>();
  out[thread] = tile[4 * thread];
}

// The wait is about the thread's own copies: for the others' it takes a barrier.
__global__ void CopiesOfOthers(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  CopyAsync16(tile, 4 * thread, in + 4 * thread);
  CopyAsyncCommit();
  Barrier();
  CopyAsyncWait<0>();
  if (right) Barrier();
  out[thread] = tile[4 * (thread ^ kWarpSize)];
}

constexpr PlantedKernel kPlanted[] = {
    {"UnwrittenTail", Fault::kUninitialized, Fault::kUninitialized, UnwrittenTail},
    {"HalfWrittenVector", Fault::kUninitialized, Fault::kUninitialized, HalfWrittenVector},
    {"FixedArrayUnwrittenTail", Fault::kUninitialized, Fault::kUninitialized,
     FixedArrayUnwrittenTail},
    {"FixedArrayOfAnotherBlock", Fault::kUninitialized, Fault::kUninitialized,
     FixedArrayOfAnotherBlock},
    {"DroppedBarrier", Fault::kRace, Fault::kUninitialized, DroppedBarrier},
    {"DroppedBarrierAfterReads", Fault::kRace, Fault::kRace, DroppedBarrierAfterReads},
    {"DroppedWarpBarrier", Fault::kRace, Fault::kUninitialized, DroppedWarpBarrier},
    {"ShuffleForBarrier", Fault::kRace, Fault::kUninitialized, ShuffleForBarrier},
    {"WarpBarrierForBlockBarrier", Fault::kRace, Fault::kUninitialized, WarpBarrierForBlockBarrier},
    {"AllWriteOneWord", Fault::kRace, Fault::kRace, AllWriteOneWord},
    {"OverlappingBytes", Fault::kRace, Fault::kRace, OverlappingBytes},
    {"FixedArrayDroppedBarrier", Fault::kRace, Fault::kUninitialized, FixedArrayDroppedBarrier},
    {"FixedArrayOfTwoCalls", Fault::kRace, Fault::kRace, FixedArrayOfTwoCalls},
    {"ReturnsBeforeBarrier", Fault::kDivergentBarrier, Fault::kDivergentBarrier,
     ReturnsBeforeBarrier},
    {"TwoBarriers", Fault::kDivergentBarrier, Fault::kDivergentBarrier, TwoBarriers},
    {"OneMoreRound", Fault::kDivergentBarrier, Fault::kDivergentBarrier, OneMoreRound},
    {"HalfWarpShuffles", Fault::kAbsentLane, Fault::kAbsentLane, HalfWarpShuffles},
    {"VoteAfterReturn", Fault::kAbsentLane, Fault::kAbsentLane, VoteAfterReturn},
    {"ShufflesInBothBranches", Fault::kAbsentLane, Fault::kAbsentLane, ShufflesInBothBranches},
    {"LaneSkipsMma", Fault::kAbsentLane, Fault::kAbsentLane, LaneSkipsMma},
    {"OneBeyond", Fault::kOutOfRange, Fault::kOutOfRange, OneBeyond},
    {"BeforeTheFirst", Fault::kOutOfRange, Fault::kOutOfRange, BeforeTheFirst},
    {"VectorOverTheEnd", Fault::kOutOfRange, Fault::kOutOfRange, VectorOverTheEnd},
    {"TooManyArrays", Fault::kOutOfRange, Fault::kOutOfRange, TooManyArrays},
    {"FixedArrayOneBeyond", Fault::kOutOfRange, Fault::kOutOfRange, FixedArrayOneBeyond},
    {"UnalignedGlobalLoad", Fault::kMisaligned, Fault::kMisaligned, UnalignedGlobalLoad},
    {"UnalignedGlobalStore", Fault::kMisaligned, Fault::kMisaligned, UnalignedGlobalStore},
    {"UnalignedSharedStore", Fault::kMisaligned, Fault::kMisaligned, UnalignedSharedStore},
    {"FixedArrayUnalignedStore", Fault::kMisaligned, Fault::kMisaligned, FixedArrayUnalignedStore},
    {"UnalignedCopy", Fault::kMisaligned, Fault::kMisaligned, UnalignedCopy},
    {"UnalignedMatrixRow", Fault::kMisaligned, Fault::kMisaligned, UnalignedMatrixRow},
    {"ReadsBeforeWait", Fault::kUnfinishedCopy, Fault::kUnfinishedCopy, ReadsBeforeWait},
    {"WaitsForTheOlderGroup", Fault::kUnfinishedCopy, Fault::kUnfinishedCopy,
     WaitsForTheOlderGroup},
    {"WaitsWithoutCommit", Fault::kUnfinishedCopy, Fault::kUnfinishedCopy, WaitsWithoutCommit},
    {"OverwritesACopy", Fault::kUnfinishedCopy, Fault::kUnfinishedCopy, OverwritesACopy},
    {"CopiesOfOthers", Fault::kRace, Fault::kUnfinishedCopy, CopiesOfOthers},
};

__global__ void Nothing() {}

__global__ void TakesFixedBytes() {
  FACET_SHARED(uint32_t, words, kFixedBytes / 8);
  FACET_SHARED(uint32_t, more, kFixedBytes / 8);
  words[ThreadIndex().x] = 0;
  more[ThreadIndex().x] = 0;
}

}  // namespace

std::span<const PlantedKernel> PlantedKernels() { return kPlanted; }

int RunPlanted(const PlantedKernel& kernel, bool right, const uint32_t* in, uint32_t* out) {
  const LaunchShape shape = {
      .grid = {2}, .block = {kPlantedThreads}, .shared_bytes = kPlantedWords * sizeof(uint32_t)};
  return Launch(nullptr, shape, kernel.kernel, right, in, out);
}

int RunShape(unsigned grid, unsigned block, uint32_t shared_bytes) {
  return Launch(nullptr, {.grid = {grid}, .block = {block}, .shared_bytes = shared_bytes}, Nothing);
}

int RunFixed(uint32_t shared_bytes) {
  return Launch(nullptr, {.grid = {2}, .block = {kWarpSize}, .shared_bytes = shared_bytes},
                TakesFixedBytes);
}

}  // namespace facet::cuda::samples
