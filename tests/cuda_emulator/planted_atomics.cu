#include "kernels/cuda/language.cuh"
#include "tests/cuda_emulator/planted.h"

namespace facet::cuda::samples {
namespace {

using cuda_emulator::Fault;

__device__ Shared<uint32_t> Words() {
  SharedMemory memory;
  return memory.Array<uint32_t>(kPlantedWords);
}

__global__ void CountsFromNothing(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, count, 1);
  const int thread = ThreadIndex().x;
  if (right && thread == 0) count[0] = 0;
  Barrier();
  AtomicAdd(&count[0], in[thread]);
  Barrier();
  out[thread] = count[0];
}

__global__ void CountsBeforeTheZero(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, count, 1);
  const int thread = ThreadIndex().x;
  if (thread == 0) count[0] = 0;
  if (right) Barrier();
  AtomicAdd(&count[0], in[thread]);
  Barrier();
  out[thread] = count[0];
}

__device__ void SetToZero(Shared<uint32_t> word) {
  if (ThreadIndex().x == 0) word[0] = 0;
  Barrier();
}

__global__ void ReadsBesideAtomics(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, largest, 1);
  const int thread = ThreadIndex().x;
  SetToZero(largest);
  AtomicMax(&largest[0], in[thread]);
  if (right) Barrier();
  out[thread] = largest[0];
}

__global__ void WritesBesideAtomics(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, bits, 1);
  const int thread = ThreadIndex().x;
  SetToZero(bits);
  AtomicOr(&bits[0], in[thread]);
  if (right) Barrier();
  if (thread == 0) bits[0] = 1;
  Barrier();
  out[thread] = bits[0];
}

// A vector that takes a word along which others update.
__global__ void VectorBesideAtomics(bool right, const uint32_t* in, uint32_t* out) {
  const auto words = Words();
  const int thread = ThreadIndex().x;
  words.StoreVector(2 * thread, U32x2{in[thread], 0});
  Barrier();
  AtomicAdd(&words[2 * (thread ^ kWarpSize) + 1], 1);
  if (right) Barrier();
  out[thread] = words.LoadVector<U32x2>(2 * thread).x;
}

__global__ void WarpBarrierForAtomics(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, count, 1);
  const int thread = ThreadIndex().x;
  SetToZero(count);
  AtomicAdd(&count[0], in[thread]);
  if (right) {
    Barrier();
  } else {
    WarpBarrier();
  }
  out[thread] = count[0];
}

__global__ void CountsBeyond(bool right, const uint32_t* in, uint32_t* out) {
  FACET_SHARED(uint32_t, counts, 4);
  const int thread = ThreadIndex().x;
  if (thread < 4) counts[thread] = 0;
  Barrier();
  AtomicAdd(&counts[right ? thread % 4 : thread % 5], 1);
  Barrier();
  out[thread] = in[thread] + counts[thread % 4];
}

__global__ void UnalignedAtomic(bool right, const uint32_t* in, uint32_t* out) {
  auto* bytes = reinterpret_cast<unsigned char*>(out);
  AtomicAdd(reinterpret_cast<uint32_t*>(bytes + (right ? 4 : 2)), in[ThreadIndex().x]);
}

__global__ void CountsOnACopy(bool right, const uint32_t* in, uint32_t* out) {
  const auto tile = Words();
  const int thread = ThreadIndex().x;
  CopyAsync16(tile, 4 * thread, in + 4 * thread);
  CopyAsyncCommit();
  if (right) CopyAsyncWait<0>();
  out[thread] = AtomicAdd(&tile[4 * thread], 1);
  CopyAsyncWait<0>();
}

constexpr PlantedKernel kPlanted[] = {
    {"CountsFromNothing", Fault::kUninitialized, Fault::kUninitialized, CountsFromNothing},
    {"CountsBeforeTheZero", Fault::kRace, Fault::kUninitialized, CountsBeforeTheZero},
    {"ReadsBesideAtomics", Fault::kRace, Fault::kRace, ReadsBesideAtomics},
    {"WritesBesideAtomics", Fault::kRace, Fault::kRace, WritesBesideAtomics},
    {"VectorBesideAtomics", Fault::kRace, Fault::kRace, VectorBesideAtomics},
    {"WarpBarrierForAtomics", Fault::kRace, Fault::kRace, WarpBarrierForAtomics},
    {"CountsBeyond", Fault::kOutOfRange, Fault::kOutOfRange, CountsBeyond},
    {"UnalignedAtomic", Fault::kMisaligned, Fault::kMisaligned, UnalignedAtomic},
    {"CountsOnACopy", Fault::kUnfinishedCopy, Fault::kUnfinishedCopy, CountsOnACopy},
};

}  // namespace

std::span<const PlantedKernel> PlantedAtomics() { return kPlanted; }

}  // namespace facet::cuda::samples
