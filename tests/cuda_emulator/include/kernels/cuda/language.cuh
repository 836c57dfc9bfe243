#ifndef FACET_KERNELS_CUDA_LANGUAGE_CUH_
#define FACET_KERNELS_CUDA_LANGUAGE_CUH_

// Stands in for kernels/cuda/language.cuh under the emulator: the same names, whose contracts are
// there; here they are checked. What takes a Place by default learns from where in the kernel it
// was called.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "base/float16.h"
#include "kernels/canonical_math.h"
#include "kernels/cuda/launch_shape.h"
#include "tests/cuda_emulator/machine.h"
#include "tests/cuda_emulator/stream.h"
#include "tests/cuda_emulator/tensor_core.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

namespace facet::cuda {

using cuda_emulator::Fault;
using cuda_emulator::Machine;
using cuda_emulator::Place;
using cuda_emulator::WarpStep;

inline Dim3 ThreadIndex() { return Machine::OfThisThread().thread_index(); }
inline Dim3 BlockIndex() { return Machine::OfThisThread().block_index(); }
inline Dim3 BlockSize() { return Machine::OfThisThread().shape().block; }
inline Dim3 GridSize() { return Machine::OfThisThread().shape().grid; }

inline void Barrier(const Place& place = Place::current()) {
  Machine::OfThisThread().BlockBarrier(place);
}
inline void WarpBarrier(const Place& place = Place::current()) {
  Machine::OfThisThread().WarpBarrier(place);
}

// An index, and where it was written.
struct PlacedIndex {
  template <std::integral I>
  PlacedIndex(I index, const Place& from = Place::current())  // NOLINT: converts on purpose
      : value(static_cast<int64_t>(index)), place(from) {}
  int64_t value;
  Place place;
};

// What & of an element gives, for atomics.
template <typename T>
struct SharedAddress {
  cuda_emulator::Range range;
};

// Element of a shared array: reads and writes go through the machine.
template <typename T>
class SharedElement {
 public:
  SharedElement(cuda_emulator::Range range, const Place& place) : range_(range), place_(place) {}
  SharedElement(const SharedElement&) = default;

  operator T() const {  // NOLINT: reads like a reference
    T value;
    Machine::OfThisThread().ReadShared(range_, &value, place_);
    return value;
  }
  const SharedElement& operator=(T value) const {
    Machine::OfThisThread().WriteShared(range_, &value, place_);
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const {
    return *this = static_cast<T>(other);
  }
  const SharedElement& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }
  const SharedElement& operator-=(T value) const { return *this = static_cast<T>(*this) - value; }
  const SharedElement& operator*=(T value) const { return *this = static_cast<T>(*this) * value; }
  const SharedElement& operator|=(T value) const { return *this = static_cast<T>(*this) | value; }

  SharedAddress<T> operator&() const { return {range_}; }  // NOLINT: as of a reference

 private:
  cuda_emulator::Range range_;
  Place place_;
};

template <typename T>
class Shared {
 public:
  Shared() = default;

  SharedElement<T> operator[](PlacedIndex i) const {
    return {RangeOf(i.value, sizeof(T), alignof(T), i.place), i.place};
  }
  Shared From(int64_t first) const {
    Shared view = *this;
    view.first_ += first * static_cast<int64_t>(sizeof(T));
    return view;
  }
  template <typename V>
  V LoadVector(int64_t i, const Place& place = Place::current()) const {
    V value;
    Machine::OfThisThread().ReadShared(RangeOf(i, sizeof(V), sizeof(V), place), &value, place);
    return value;
  }
  template <typename V>
  void StoreVector(int64_t i, V value, const Place& place = Place::current()) const {
    Machine::OfThisThread().WriteShared(RangeOf(i, sizeof(V), sizeof(V), place), &value, place);
  }

  // For this header: `bytes` from element i on, checked.
  cuda_emulator::Range RangeOf(int64_t i, uint32_t bytes, uint32_t alignment,
                               const Place& place) const {
    const int64_t begin = first_ + i * static_cast<int64_t>(sizeof(T));
    if (begin < lower_ || begin + bytes > upper_) {
      Machine::OfThisThread().Fail(Fault::kOutOfRange,
                                   cuda_emulator::OutOfArray((begin - lower_) / int64_t{sizeof(T)},
                                                             (upper_ - lower_) / sizeof(T)),
                                   place);
    }
    if (begin % alignment != 0) {
      Machine::OfThisThread().Fail(Fault::kMisaligned, cuda_emulator::NotAligned(begin, alignment),
                                   place);
    }
    return {static_cast<uint32_t>(begin), bytes};
  }

 private:
  friend class SharedMemory;
  int64_t first_ = 0;  // where element 0 is, in the block's shared memory
  int64_t lower_ = 0;  // the array's bytes
  int64_t upper_ = 0;
};

// What FACET_SHARED declares. `name##_declared` is one object for all threads that come by, and
// another for each instantiation of a template, as the array is under nvcc.
#define FACET_SHARED(T, name, count)                                            \
  static_assert(std::is_trivial_v<T> && alignof(T) <= 16 && (count) > 0);       \
  static_assert((count) * sizeof(T) <= 48 * 1024);                              \
  static char name##_declared;                                                  \
  const auto name = ::facet::cuda::SharedMemory::Static<T>(&name##_declared, count)

class SharedMemory {
 public:
  template <typename T>
  static Shared<T> Static(const void* declared, int64_t count,
                          const Place& place = Place::current()) {
    const cuda_emulator::Range range = Machine::OfThisThread().StaticShared(
        declared, static_cast<uint32_t>(count * static_cast<int64_t>(sizeof(T))), place);
    Shared<T> array;
    array.first_ = array.lower_ = range.begin;
    array.upper_ = array.lower_ + range.bytes;
    return array;
  }

  template <typename T>
  Shared<T> Array(int count, const Place& place = Place::current()) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
    Shared<T> array;
    array.first_ = array.lower_ = used_;
    array.upper_ = used_ + int64_t{count} * static_cast<int64_t>(sizeof(T));
    const int64_t all = Machine::OfThisThread().shape().shared_bytes;
    if (count < 0 || array.upper_ > all) {
      Machine::OfThisThread().Fail(Fault::kOutOfRange, cuda_emulator::NoRoom(array.upper_, all),
                                   place);
    }
    used_ = (array.upper_ + 15) / 16 * 16;
    return array;
  }

 private:
  int64_t used_ = 0;
};

inline void CheckAligned(const void* address, uint32_t alignment, const Place& place) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  if (value % alignment == 0) return;
  Machine::OfThisThread().Fail(Fault::kMisaligned, cuda_emulator::NotAligned(value, alignment),
                               place);
}

template <typename V>
V LoadVector(const void* address, const Place& place = Place::current()) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  CheckAligned(address, sizeof(V), place);
  V value;
  std::memcpy(&value, address, sizeof(V));
  return value;
}
template <typename V>
void StoreVector(void* address, V value, const Place& place = Place::current()) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  CheckAligned(address, sizeof(V), place);
  std::memcpy(address, &value, sizeof(V));
}

template <typename T>
concept AtomicWord = std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t>;

// Puts `update` of what is there in its place, and returns what was.
template <AtomicWord T, typename Update>
T Atomically(SharedAddress<T> word, const Update& update, const Place& place) {
  return std::bit_cast<T>(Machine::OfThisThread().UpdateShared(
      word.range,
      [&](uint32_t bits) { return std::bit_cast<uint32_t>(update(std::bit_cast<T>(bits))); },
      place));
}
template <AtomicWord T, typename Update>
T Atomically(T* word, const Update& update, const Place& place) {
  CheckAligned(word, sizeof(T), place);
  const T before = std::exchange(*word, update(*word));
  Machine::OfThisThread().BeOvertaken(place);
  return before;
}

// What W, a T* or a SharedAddress<T>, points to.
template <typename W>
struct Pointed;
template <typename T>
struct Pointed<T*> {
  using Type = T;
};
template <typename T>
struct Pointed<SharedAddress<T>> {
  using Type = T;
};
template <typename W>
using WordAt = typename Pointed<W>::Type;

template <typename W, typename T = WordAt<W>>
T AtomicAdd(W word, std::type_identity_t<T> value, const Place& place = Place::current()) {
  const auto sum = [value](T before) {  // wraps
    return static_cast<T>(static_cast<uint32_t>(before) + static_cast<uint32_t>(value));
  };
  return Atomically(word, sum, place);
}
template <typename W, typename T = WordAt<W>>
T AtomicMax(W word, std::type_identity_t<T> value, const Place& place = Place::current()) {
  return Atomically(word, [value](T before) { return std::max(before, value); }, place);
}
template <typename W, typename T = WordAt<W>>
T AtomicMin(W word, std::type_identity_t<T> value, const Place& place = Place::current()) {
  return Atomically(word, [value](T before) { return std::min(before, value); }, place);
}
template <typename W, typename T = WordAt<W>>
T AtomicOr(W word, std::type_identity_t<T> bits, const Place& place = Place::current()) {
  return Atomically(word, [bits](T before) { return before | bits; }, place);
}
template <typename W, typename T = WordAt<W>>
T AtomicExchange(W word, std::type_identity_t<T> value, const Place& place = Place::current()) {
  return Atomically(word, [value](T) { return value; }, place);
}
template <typename W, typename T = WordAt<W>>
T AtomicCompareExchange(W word, std::type_identity_t<T> expected, std::type_identity_t<T> value,
                        const Place& place = Place::current()) {
  const auto chosen = [=](T before) { return before == expected ? value : before; };
  return Atomically(word, chosen, place);
}

// The value of lane `source`, every lane having brought its own.
template <typename T>
T ShuffleFrom(T value, int source, const Place& place) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  Machine::Operand operand{};
  std::memcpy(operand.data(), &value, sizeof(T));
  const auto& all = Machine::OfThisThread().Meet(WarpStep::kShuffle, operand, place);
  std::memcpy(&value, all[source].data(), sizeof(T));
  return value;
}
template <typename T>
T ShuffleXor(T value, int lane_mask, const Place& place = Place::current()) {
  return ShuffleFrom(value, (Machine::OfThisThread().lane() ^ lane_mask) & (kWarpSize - 1), place);
}
template <typename T>
T ShuffleDown(T value, unsigned distance, const Place& place = Place::current()) {
  const int lane = Machine::OfThisThread().lane();
  const int64_t source = int64_t{lane} + distance;
  return ShuffleFrom(value, source < kWarpSize ? static_cast<int>(source) : lane, place);
}
template <typename T>
T Shuffle(T value, int lane, const Place& place = Place::current()) {
  return ShuffleFrom(value, lane & (kWarpSize - 1), place);
}
inline uint32_t Ballot(bool predicate, const Place& place = Place::current()) {
  const auto& all = Machine::OfThisThread().Meet(WarpStep::kBallot, {predicate ? 1u : 0u}, place);
  uint32_t votes = 0;
  for (int i = 0; i < kWarpSize; ++i) votes |= all[i][0] << i;
  return votes;
}

template <typename T>
void CopyAsync16OrZero(Shared<T> to, int index, const void* from, bool valid,
                       const Place& place = Place::current()) {
  if (valid) CheckAligned(from, 16, place);
  Machine::OfThisThread().CopyAsync(to.RangeOf(index, 16, 16, place), valid ? from : nullptr,
                                    place);
}
template <typename T>
void CopyAsync16(Shared<T> to, int index, const void* from, const Place& place = Place::current()) {
  CopyAsync16OrZero(to, index, from, true, place);
}
inline void CopyAsyncCommit() { Machine::OfThisThread().CopyAsyncCommit(); }
template <int newest>
void CopyAsyncWait() {
  Machine::OfThisThread().CopyAsyncWait(newest);
}

inline const Machine::Operands& MeetForMma(const uint32_t (&a)[4], const uint32_t (&b)[2],
                                           const Place& place) {
  return Machine::OfThisThread().Meet(WarpStep::kMma, {a[0], a[1], a[2], a[3], b[0], b[1]}, place);
}
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    const Place& place = Place::current()) {
  cuda_emulator::MmaHalf(cuda_emulator::HalfKind::kBf16, MeetForMma(a, b, place),
                         Machine::OfThisThread().lane(), d);
}
inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                   const Place& place = Place::current()) {
  cuda_emulator::MmaHalf(cuda_emulator::HalfKind::kF16, MeetForMma(a, b, place),
                         Machine::OfThisThread().lane(), d);
}
inline void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const Place& place = Place::current()) {
  cuda_emulator::MmaS8(MeetForMma(a, b, place), Machine::OfThisThread().lane(), d);
}

// Where each lane's row begins.
template <typename T>
const Machine::Operands& MeetForLoad(Shared<T> from, int row_start, const Place& place) {
  const uint32_t begin = from.RangeOf(row_start, 16, 16, place).begin;
  return Machine::OfThisThread().Meet(WarpStep::kLoadMatrix, {begin}, place);
}
template <typename T>
void LoadMatrix4(uint32_t (&out)[4], Shared<T> from, int row_start,
                 const Place& place = Place::current()) {
  const auto& rows = MeetForLoad(from, row_start, place);
  const auto lane = static_cast<uint32_t>(Machine::OfThisThread().lane());
  for (uint32_t m = 0; m < 4; ++m) {
    const uint32_t begin = rows[8 * m + lane / 4][0] + lane % 4 * 4;
    Machine::OfThisThread().ReadShared({begin, 4}, &out[m], place);
  }
}
template <typename T>
void LoadMatrix4Transposed(uint32_t (&out)[4], Shared<T> from, int row_start,
                           const Place& place = Place::current()) {
  const auto& rows = MeetForLoad(from, row_start, place);
  const auto lane = static_cast<uint32_t>(Machine::OfThisThread().lane());
  for (uint32_t m = 0; m < 4; ++m) {
    std::array<uint16_t, 2> pair;
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t begin = rows[8 * m + lane % 4 * 2 + i][0] + lane / 4 * 2;
      Machine::OfThisThread().ReadShared({begin, 2}, &pair[i], place);
    }
    out[m] = std::bit_cast<uint32_t>(pair);
  }
}

inline float FmaRn(float a, float b, float c) { return std::fma(a, b, c); }
inline float FmaFlushed(float a, float b, float c) { return canonical::FlushedFma(a, b, c); }
inline float MulRn(float a, float b) { return a * b; }
inline float AddRn(float a, float b) { return a + b; }
inline float DivRn(float a, float b) { return a / b; }
inline float SqrtRn(float a) { return std::sqrt(a); }
inline int32_t ToIntRn(float a) { return static_cast<int32_t>(std::nearbyint(a)); }
inline uint32_t FloatBits(float a) { return std::bit_cast<uint32_t>(a); }
inline float BitsFloat(uint32_t a) { return std::bit_cast<float>(a); }

inline int32_t DotS8(uint32_t a, uint32_t b, int32_t c) {
  auto sum = static_cast<uint32_t>(c);  // wraps
  for (int shift = 0; shift < 32; shift += 8) {
    const int product = static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
    sum += static_cast<uint32_t>(product);
  }
  return static_cast<int32_t>(sum);
}

inline float HalfToFloat(uint16_t bits) { return facet::HalfToFloat(bits); }
inline uint16_t FloatToHalf(float a) { return facet::FloatToHalf(a); }
inline float Bf16ToFloat(uint16_t bits) { return BitsFloat(uint32_t{bits} << 16); }
inline uint16_t FloatToBf16(float a) {
  const uint32_t bits = FloatBits(a);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <typename... Parameters, typename... Arguments>
int Launch(Stream stream, const LaunchShape& shape, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  auto work = [shape, kernel, values = std::tuple<Parameters...>(arguments...)] {
    return Machine::OfThisThread().Run(shape, [&] { std::apply(kernel, values); });
  };
  if (stream == nullptr) return work();
  stream->Put(work);
  return 0;
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_LANGUAGE_CUH_
