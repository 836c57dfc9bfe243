// What the machine can do at most, as a yardstick for everything else: the rate at which its
// threads together read memory, and the rates of dot products in int8 (VNNI), bf16 and float32 from
// registers. One line of JSON; a kind that the processor lacks is null.
//
//   limits_bench [threads = all] [seconds of each = 1]
//
// Each figure is the median over short slices, in which all threads start together; the best slice
// is told too. Two operations per multiply-add.

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "kernels/host/aligned_buffer.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kBytesPerThread = size_t{256} << 20;  // far beyond any cache
constexpr int64_t kProducts = 1 << 20;                 // of a slice, times the accumulators

// Enough independent sums to hide the latency of the instruction, few enough for the registers. The
// loops over them are unrolled, or they would lie in memory.
constexpr int kSums = 12;

// Keeps the compiler from dropping a loop of which only the time is wanted, and from computing
// equal sums once for all of them.
template <typename Vector>
void Keep(Vector& value) {
  asm volatile("" : "+v"(value));
}

// Reads `bytes`, in streams that lie apart as those of panels do; the sum keeps the loads.
__attribute__((target("avx2"))) int64_t Read(const AlignedBuffer& buffer) {
  constexpr size_t kStreams = 4;
  const size_t part = kBytesPerThread / kStreams;
  const std::byte* const data = buffer.data();
  __m256i sums[kStreams] = {};
  for (size_t at = 0; at < part; at += 64) {
#pragma GCC unroll 4
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const auto* from = reinterpret_cast<const __m256i*>(data + stream * part + at);
      sums[stream] = _mm256_add_epi64(sums[stream], _mm256_load_si256(from));
      sums[stream] = _mm256_add_epi64(sums[stream], _mm256_load_si256(from + 1));
    }
  }
  for (__m256i& sum : sums) Keep(sum);
  return static_cast<int64_t>(kBytesPerThread);
}

__attribute__((target("avx512f,avx512vnni"))) int64_t Int8Avx512() {
  __m512i sums[kSums] = {};
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (int64_t i = 0; i < kProducts; ++i) {
    Keep(a);
#pragma GCC unroll 12
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, a, b);
      Keep(sum);
    }
  }
  return kProducts * kSums * 128;
}

__attribute__((target("avx2"))) int64_t Int8Avx2() {
  __m256i sums[kSums] = {};
  __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(5);
  for (int64_t i = 0; i < kProducts; ++i) {
    Keep(a);
#pragma GCC unroll 12
    for (__m256i& sum : sums) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
      Keep(sum);
    }
  }
  return kProducts * kSums * 32;
}

__attribute__((target("avx512f,avx512bf16"))) int64_t Bf16() {
  __m512 sums[kSums] = {};
  __m512i bits = _mm512_set1_epi32(0x3f803f80);
  for (int64_t i = 0; i < kProducts; ++i) {
    Keep(bits);
    const auto ones = (__m512bh)bits;
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, ones, ones);
      Keep(sum);
    }
  }
  return kProducts * kSums * 64;
}

__attribute__((target("avx512f"))) int64_t FloatAvx512() {
  __m512 sums[kSums] = {};
  __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t i = 0; i < kProducts; ++i) {
    Keep(a);
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(a, b, sum);
      Keep(sum);
    }
  }
  return kProducts * kSums * 32;
}

__attribute__((target("avx2,fma"))) int64_t FloatAvx2() {
  __m256 sums[kSums] = {};
  __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (int64_t i = 0; i < kProducts; ++i) {
    Keep(a);
#pragma GCC unroll 12
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(a, b, sum);
      Keep(sum);
    }
  }
  return kProducts * kSums * 16;
}

struct Rate {
  double median = 0;
  double best = 0;
};

// `slice(thread)` does its share and says how much that was. 1e9 per second, all threads together.
Rate Measure(int threads, double seconds, const std::function<int64_t(int)>& slice) {
  std::vector<double> rates;
  std::vector<int64_t> amounts(static_cast<size_t>(threads));
  Clock::time_point start;
  const Clock::time_point end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                   std::chrono::duration<double>(seconds));
  bool over = false;
  std::barrier begin(threads, [&]() noexcept { start = Clock::now(); });
  std::barrier finish(threads, [&]() noexcept {
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    double amount = 0;
    for (const int64_t part : amounts) amount += static_cast<double>(part);
    rates.push_back(amount / took * 1e-9);
    over = Clock::now() >= end && rates.size() >= 5;
  });
  const auto run = [&](int thread) {
    while (!over) {
      begin.arrive_and_wait();
      amounts[static_cast<size_t>(thread)] = slice(thread);
      finish.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  std::sort(rates.begin(), rates.end());
  return {rates[rates.size() / 2], rates.back()};
}

std::string ToJson(std::string_view name, const Rate& rate) {
  return fmt::format("\"{}\": {:.1f}, \"{}_best\": {:.1f}", name, rate.median, name, rate.best);
}

int UsableProcessors() {
  cpu_set_t set;
  FACET_CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
  return CPU_COUNT(&set);
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : UsableProcessors();
  const double seconds = argc > 2 ? std::atof(argv[2]) : 1;
  FACET_CHECK(threads >= 1 && seconds > 0, "limits_bench [threads] [seconds]");
  std::vector<AlignedBuffer> buffers;
  for (int thread = 0; thread < threads; ++thread) {
    buffers.push_back(*AlignedBuffer::Make(kBytesPerThread));
  }
  // Each thread's pages are touched by it, so that they lie where it runs.
  Measure(threads, 0.01, [&](int thread) {
    AlignedBuffer& buffer = buffers[static_cast<size_t>(thread)];
    std::fill_n(buffer.data(), kBytesPerThread, std::byte{1});
    return int64_t{1};
  });
  const auto reading = Measure(
      threads, seconds, [&](int thread) { return Read(buffers[static_cast<size_t>(thread)]); });
  const bool vnni = __builtin_cpu_supports("avx512vnni") != 0;
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  const auto int8 =
      Measure(threads, seconds, [&](int) { return vnni ? Int8Avx512() : Int8Avx2(); });
  const auto f32 =
      Measure(threads, seconds, [&](int) { return avx512 ? FloatAvx512() : FloatAvx2(); });
  std::string bf16 = "\"bf16_gop_s\": null";
  if (__builtin_cpu_supports("avx512bf16") != 0) {
    bf16 = ToJson("bf16_gop_s", Measure(threads, seconds, [](int) { return Bf16(); }));
  }
  fmt::print("{{\"threads\": {}, {}, {}, {}, {}}}\n", threads, ToJson("read_gb_s", reading),
             ToJson("int8_gop_s", int8), ToJson("f32_gop_s", f32), bf16);
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
