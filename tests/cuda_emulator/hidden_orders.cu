#include "tests/cuda_emulator/hidden_orders.h"

#include "kernels/cuda/language.cuh"

namespace facet::cuda::samples {
namespace {

// Reads what another thread of the block has written to global memory.
__global__ void TakesThreadsInTurn(bool right, const uint32_t* in, uint32_t* between,
                                   uint32_t* out) {
  const int thread = BlockIndex().x * kOrderedThreads + ThreadIndex().x;
  const int last = (BlockIndex().x + 1) * kOrderedThreads - 1;
  between[thread] = in[thread + 1];
  if (right) Barrier();
  if (thread < last) out[thread + 1] = between[thread + 1];
  if (thread == last) out[last - kOrderedThreads + 1] = between[last - kOrderedThreads + 1];
}

// Reads what another block has written.
__global__ void TakesBlocksInTurn(bool right, const uint32_t* in, uint32_t* between,
                                  uint32_t* out) {
  const int thread = BlockIndex().x * kOrderedThreads + ThreadIndex().x;
  const int before = thread - kOrderedThreads;
  between[thread] = in[thread + 1];
  const bool taken = right || before < 0 || between[before] == in[before + 1];
  out[thread] = taken ? between[thread] : 0;
}

// Who comes first gets the first place.
__global__ void TakesPlacesByTicket(bool right, const uint32_t* in, uint32_t* between,
                                    uint32_t* out) {
  const int first = BlockIndex().x * kOrderedThreads;
  const int thread = ThreadIndex().x;
  const int ticket = static_cast<int>(AtomicAdd(&between[BlockIndex().x], 1));
  out[first + (right ? thread : ticket)] = in[first + thread + 1];
}

// What atomics on floats would be. Their sum is rounded as it grows, so it tells who came when.
__device__ void AddAtomically(uint32_t* bits, float value) {
  uint32_t seen = AtomicOr(bits, 0);
  for (;;) {
    const uint32_t before = AtomicCompareExchange(bits, seen, FloatBits(BitsFloat(seen) + value));
    if (before == seen) return;
    seen = before;
  }
}
__global__ void AddsFloatsAsTheyCome(bool right, const uint32_t* in, uint32_t* between,
                                     uint32_t* out) {
  const int thread = ThreadIndex().x;
  const int of_grid = BlockIndex().x * kOrderedThreads + thread;
  uint32_t* const sum = &between[BlockIndex().x];
  const int value = thread == 0 ? 1 << 24 : thread == 1 ? -(1 << 24) : 1;
  if (right) {
    AtomicAdd(sum, static_cast<uint32_t>(value));
  } else {
    AddAtomically(sum, static_cast<float>(value));
  }
  Barrier();
  const int total = right ? static_cast<int>(*sum) : static_cast<int>(BitsFloat(*sum));
  out[of_grid] = total == kOrderedThreads - 2 ? in[of_grid + 1] : 0;
}

// One thread of two writes, and the other finds nothing yet if it comes between.
__global__ void TakesWhatTheWinnerWrites(bool right, const uint32_t* in, uint32_t* between,
                                         uint32_t* out) {
  const int thread = BlockIndex().x * kOrderedThreads + ThreadIndex().x;
  uint32_t* const claim = &between[thread / 2 * 2];
  if (AtomicCompareExchange(claim, 0, 1) == 0) claim[1] = in[thread / 2 * 2 + 1];
  if (right) Barrier();
  out[thread] = claim[1] + static_cast<uint32_t>(thread % 2);
}

}  // namespace

int RunInHiddenOrder(HiddenOrder order, bool right, const uint32_t* in, uint32_t* between,
                     uint32_t* out) {
  const LaunchShape shape = {.grid = {kOrderedWords / kOrderedThreads}, .block = {kOrderedThreads}};
  const auto run = [&](auto kernel) {
    return Launch(nullptr, shape, kernel, right, in, between, out);
  };
  switch (order) {
    case HiddenOrder::kOfThreads:
      return run(TakesThreadsInTurn);
    case HiddenOrder::kOfBlocks:
      return run(TakesBlocksInTurn);
    case HiddenOrder::kOfTickets:
      return run(TakesPlacesByTicket);
    case HiddenOrder::kOfFloatSums:
      return run(AddsFloatsAsTheyCome);
    case HiddenOrder::kOfClaims:
      return run(TakesWhatTheWinnerWrites);
  }
  return -1;
}

}  // namespace facet::cuda::samples
