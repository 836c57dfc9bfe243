#ifndef FACET_KERNELS_CUDA_LANGUAGE_CUH_
#define FACET_KERNELS_CUDA_LANGUAGE_CUH_

// The words of CUDA that kernels use, and the only place with inline PTX (sm_80 and later). Under
// the emulator the same #include finds tests/cuda_emulator/include first, which has the same names
// and checks what they ask for; a kernel that uses nothing else runs in both.
//
// A kernel is a __global__ function or function template with trivially copyable arguments. It uses
// no printf, and shared memory only through FACET_SHARED and SharedMemory.
//
// Lanes: "of a warp" means that all 32 lanes call it at the same place; blocks are whole warps.
// Memory: only Barrier() and WarpBarrier() order accesses to shared memory. Shuffles do not.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch_shape.h"

namespace facet::cuda {

// --- Where a thread is.

__device__ __forceinline__ Dim3 ThreadIndex() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
__device__ __forceinline__ Dim3 BlockIndex() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
__device__ __forceinline__ Dim3 BlockSize() { return {blockDim.x, blockDim.y, blockDim.z}; }
__device__ __forceinline__ Dim3 GridSize() { return {gridDim.x, gridDim.y, gridDim.z}; }

// Every thread of the block, at the same place, none having returned.
__device__ __forceinline__ void Barrier() { __syncthreads(); }
// Every lane of the warp.
__device__ __forceinline__ void WarpBarrier() { __syncwarp(); }

// --- Shared memory: arrays of a fixed size, and the one dynamic buffer of the launch, cut into
// arrays.

// An array in shared memory; a pointer, passed by value. Contents are undefined at first.
// Use `T value = array[i]`, never `auto`: under the emulator array[i] is a reference that checks.
template <typename T>
class Shared {
 public:
  Shared() = default;
  __device__ explicit Shared(T* data) : data_(data) {}

  __device__ __forceinline__ T& operator[](int i) const { return data_[i]; }
  // The elements from `first` on.
  __device__ __forceinline__ Shared From(int first) const { return Shared(data_ + first); }
  // sizeof(V) bytes from element i on; their address is a multiple of sizeof(V).
  template <typename V>
  __device__ __forceinline__ V LoadVector(int i) const {
    return *reinterpret_cast<const V*>(data_ + i);
  }
  template <typename V>
  __device__ __forceinline__ void StoreVector(int i, V value) const {
    *reinterpret_cast<V*>(data_ + i) = value;
  }
  __device__ __forceinline__ uint32_t address(int i) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data_ + i));
  }

 private:
  T* data_ = nullptr;
};

// Declares Shared<T> `name`, an array of `count` (a constant) elements that every block has, aligned
// to 16 bytes. Its lifetime is the block's: a function that is called twice finds what it left there,
// and each instantiation of a template has arrays of its own. All of a kernel's take 48 KiB at most,
// with LaunchShape's bytes together, too, unless those alone are more: then 163 KiB.
#define FACET_SHARED(T, name, count)                                                     \
  static_assert(std::is_trivial_v<T> && alignof(T) <= 16);                               \
  __shared__ __align__(16) T name##_elements[count];                                     \
  const ::facet::cuda::Shared<T> name(name##_elements)

// Cuts the launch's dynamic bytes into arrays, each aligned to 16 bytes. Every thread cuts alike,
// once per kernel; the sum of the arrays, each rounded up to 16 bytes, fits LaunchShape's bytes.
class SharedMemory {
 public:
  template <typename T>
  __device__ __forceinline__ Shared<T> Array(int count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
    extern __shared__ __align__(128) unsigned char facet_cuda_shared_bytes[];
    T* data = reinterpret_cast<T*>(facet_cuda_shared_bytes + used_);
    used_ += (static_cast<uint32_t>(count) * static_cast<uint32_t>(sizeof(T)) + 15) & ~15u;
    return Shared<T>(data);
  }

 private:
  uint32_t used_ = 0;
};

// --- Global memory. The address is a multiple of sizeof(V): 4, 8 or 16.

template <typename V>
__device__ __forceinline__ V LoadVector(const void* address) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  return *static_cast<const V*>(address);
}
template <typename V>
__device__ __forceinline__ void StoreVector(void* address, V value) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  *static_cast<V*>(address) = value;
}

// --- Atomics on a word of global memory or of a shared array (&array[i]): relaxed, for the whole
// device, and no barrier. Each returns what was there before. Results may not depend on the order in
// which threads come, hence there are none of floats (kernels/README.md); which kernels use any, and
// why their results do not, is listed in tests/tree/kernel_atomics_test.py.

template <typename T>
concept AtomicWord = std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t>;

template <AtomicWord T>
__device__ __forceinline__ T AtomicAdd(T* word, std::type_identity_t<T> value) {
  return atomicAdd(word, value);
}
template <AtomicWord T>
__device__ __forceinline__ T AtomicMax(T* word, std::type_identity_t<T> value) {
  return atomicMax(word, value);
}
template <AtomicWord T>
__device__ __forceinline__ T AtomicMin(T* word, std::type_identity_t<T> value) {
  return atomicMin(word, value);
}
template <AtomicWord T>
__device__ __forceinline__ T AtomicOr(T* word, std::type_identity_t<T> bits) {
  return atomicOr(word, bits);
}
template <AtomicWord T>
__device__ __forceinline__ T AtomicExchange(T* word, std::type_identity_t<T> value) {
  return atomicExch(word, value);
}
// Stores `value` if `expected` was there.
template <AtomicWord T>
__device__ __forceinline__ T AtomicCompareExchange(T* word, std::type_identity_t<T> expected,
                                                   std::type_identity_t<T> value) {
  return atomicCAS(word, expected, value);
}

// --- Between the lanes of a warp. T: a 4- or 8-byte number.

// The value of lane (own ^ lane_mask).
template <typename T>
__device__ __forceinline__ T ShuffleXor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
// The value of lane (own + distance), or the own one beyond the last lane.
template <typename T>
__device__ __forceinline__ T ShuffleDown(T value, unsigned distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}
// The value of `lane`, in 0..31.
template <typename T>
__device__ __forceinline__ T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
// Bit i: whether lane i said true.
__device__ __forceinline__ uint32_t Ballot(bool predicate) {
  return __ballot_sync(0xffffffffu, predicate);
}

// --- Copies from global to shared memory in the background (cp.async). Both sides are multiples of
// 16 bytes. A copy belongs to the group that its thread commits next; its bytes may be touched
// after that thread's CopyAsyncWait, by others after a barrier on top.

template <typename T>
__device__ __forceinline__ void CopyAsync16(Shared<T> to, int index, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to.address(index)), "l"(from)
               : "memory");
}
// Zeros in place of the copy where `valid` is false; `from` is then not read.
template <typename T>
__device__ __forceinline__ void CopyAsync16OrZero(Shared<T> to, int index, const void* from,
                                                  bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to.address(index)),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Returns once all but the `newest` groups that this thread committed last are there.
template <int newest>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(newest) : "memory");
}

// --- Tensor cores, of a warp. Fragments as in the PTX ISA ("Matrix Fragments for mma.m16n8k16" and
// "mma.m16n8k32"): with group = lane / 4 and t = lane % 4, in units of 32 bits that hold 2 (or 4)
// neighbours along k, lowest first:
//   a[0]: row group, k-unit t; a[1]: row group + 8, unit t; a[2]: row group, unit t + 4; a[3]: row
//   group + 8, unit t + 4.   b[0]: k-unit t of column group; b[1]: unit t + 4.
//   d[0], d[1]: row group, columns 2t and 2t + 1; d[2], d[3]: row group + 8.
// d += a b.

__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void MmaF16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four 8x8 matrices of 16-bit elements. Lane l names the element where row l % 8 of matrix
// l / 8 begins, 16 bytes that are aligned to 16; out[m] is unit (lane % 4) of row (lane / 4) of
// matrix m.
template <typename T>
__device__ __forceinline__ void LoadMatrix4(uint32_t (&out)[4], Shared<T> from, int row_start) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from.address(row_start))
               : "memory");
}
// The same of the transposed matrices: out[m] holds rows 2 (lane % 4) and the next of column
// (lane / 4).
template <typename T>
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&out)[4], Shared<T> from,
                                                      int row_start) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from.address(row_start))
               : "memory");
}

// --- Arithmetic that rounds alike everywhere: to nearest, ties to even, subnormals kept.
// Compile with --fmad=false, --ftz=false, --prec-div=true, --prec-sqrt=true.

__device__ __forceinline__ float FmaRn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// With subnormal numbers taken for zeros, read and written.
__device__ __forceinline__ float FmaFlushed(float a, float b, float c) {
  float out;
  asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(out) : "f"(a), "f"(b), "f"(c));
  return out;
}
__device__ __forceinline__ float MulRn(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float AddRn(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float DivRn(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float SqrtRn(float a) { return __fsqrt_rn(a); }
// The nearest integer. REQUIRES: it fits.
__device__ __forceinline__ int32_t ToIntRn(float a) { return __float2int_rn(a); }
__device__ __forceinline__ uint32_t FloatBits(float a) { return __float_as_uint(a); }
__device__ __forceinline__ float BitsFloat(uint32_t a) { return __uint_as_float(a); }

// c + the four products of the signed bytes of a and b.
__device__ __forceinline__ int32_t DotS8(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), c);
}

// Half precision as its bits.
__device__ __forceinline__ float HalfToFloat(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
__device__ __forceinline__ uint16_t FloatToHalf(float a) {
  return __half_as_ushort(__float2half_rn(a));
}
__device__ __forceinline__ float Bf16ToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
// Not for NaN.
__device__ __forceinline__ uint16_t FloatToBf16(float a) {
  const uint32_t bits = __float_as_uint(a);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// --- For the host: puts kernel<<<shape>>>(arguments...) on the stream. Returns CUDA's error code;
// driver.h's LaunchStatus() makes a sentence of it. Call as Launch(stream, shape, Kernel<A>, x, y).
template <typename... Parameters, typename... Arguments>
int Launch(Stream stream, const LaunchShape& shape, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments));
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  constexpr uint32_t kWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  const auto run = [&](Parameters... values) {  // converts each argument to its parameter's type
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))..., nullptr};
    return cudaLaunchKernel(
        reinterpret_cast<const void*>(kernel), dim3(shape.grid.x, shape.grid.y, shape.grid.z),
        dim3(shape.block.x, shape.block.y, shape.block.z), pointers, shape.shared_bytes, stream);
  };
  return run(arguments...);
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_LANGUAGE_CUH_
