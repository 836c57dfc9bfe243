// Rates of the CPU device's products: GB/s of packed weights and GOP/s (two operations per weight
// and row), for the shapes of Gemma 3 270M and 1B. "Read" is a plain read loop over as many bytes
// on the same threads, in the same process: what the memory gives at that moment.
//
//   FACET_BENCH_THREADS=2 FACET_BENCH_ISA=avx2 kernels_bench --benchmark_filter='Product/Q8_0'
//
// With one thread the rates are per second of processor time, which other processes on the machine
// disturb less; with more, per second of wall time.

#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/thread_pool.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/test_data.h"

namespace facet {
namespace {

struct Shape {
  int64_t columns;
  int64_t rows;
};
constexpr Shape kShapes[] = {{640, 2048}, {2048, 640}, {640, 262144}, {1152, 6912}};
constexpr int kBatches[] = {1, 2, 8, 32, 128, 512};

int Threads() {
  const char* text = std::getenv("FACET_BENCH_THREADS");
  return text == nullptr ? 2 : std::atoi(text);
}

CpuDeviceOptions::Isa WantedIsa() {
  const char* text = std::getenv("FACET_BENCH_ISA");
  if (text == nullptr) return CpuDeviceOptions::kAuto;
  return std::string(text) == "avx2" ? CpuDeviceOptions::kAvx2 : CpuDeviceOptions::kAvx512;
}

// Copies of one matrix, enough of them that no cache holds them all: a model's layers.
struct Weights {
  std::vector<std::unique_ptr<Matrix>> copies;
  size_t next = 0;
};

class Bench {
 public:
  Bench() : device_(*MakeCpuDevice({Threads(), WantedIsa()})) {}

  Device& device() { return *device_; }

  Weights& WeightsFor(TensorType type, Shape shape) {
    if (type != type_ || shape.columns != shape_.columns || shape.rows != shape_.rows) {
      type_ = type;
      shape_ = shape;
      weights_ = Weights();
      // A small random matrix, repeated: what the weights are does not change the time.
      Random random(1);
      TestMatrix matrix = MakeMatrix(type, 64, shape.columns, 0.05f, random);
      for (int64_t row = 0; row < shape.rows; ++row) {
        matrix.row_order.push_back(static_cast<int32_t>(row % 64));
      }
      matrix.rows = shape.rows;
      constexpr int64_t kTotalBytes = 192 << 20;
      int64_t bytes = 0;
      while (bytes < kTotalBytes) {
        weights_.copies.push_back(*device_->LoadMatrix(matrix.source(), nullptr));
        bytes += weights_.copies.back()->packed_bytes();
      }
    }
    return weights_;
  }

 private:
  std::unique_ptr<Device> device_;
  TensorType type_ = TensorType::kF32;
  Shape shape_ = {0, 0};
  Weights weights_;
};

Bench& TheBench() {
  static Bench bench;
  return bench;
}

void RunProduct(benchmark::State& state, TensorType type, Shape shape, int rows) {
  Device& device = TheBench().device();
  Weights& weights = TheBench().WeightsFor(type, shape);
  Random random(2);
  const auto owner = MakeCpuDevice({1});
  const Floats x = Upload(**owner, MakeFloats(rows * shape.columns, 1, random));
  const Floats out = *(*owner)->AllocateFloats(rows * shape.rows);
  for (auto _ : state) {
    const Matrix* part = weights.copies[weights.next++ % weights.copies.size()].get();
    device.Product(std::span(&part, 1), x, rows, out);
  }
  const double runs = static_cast<double>(state.iterations());
  const double bytes = static_cast<double>(weights.copies.front()->packed_bytes());
  const double operations = 2.0 * static_cast<double>(shape.columns * shape.rows * rows);
  state.counters["GB/s"] = benchmark::Counter(bytes * runs * 1e-9, benchmark::Counter::kIsRate);
  state.counters["GOP/s"] =
      benchmark::Counter(operations * runs * 1e-9, benchmark::Counter::kIsRate);
}

__attribute__((target("avx2"))) int64_t ReadAll(const std::byte* bytes, int64_t size) {
  __m256i sums[4] = {};
  for (int64_t at = 0; at + 128 <= size; at += 128) {
    for (int i = 0; i < 4; ++i) {
      sums[i] = _mm256_add_epi64(
          sums[i], _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes + at + 32 * i)));
    }
  }
  const __m256i sum =
      _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  return _mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 1) +
         _mm256_extract_epi64(sum, 2) + _mm256_extract_epi64(sum, 3);
}

void RunRead(benchmark::State& state) {
  constexpr int64_t kBytes = 192 << 20;
  constexpr int64_t kTask = 1 << 20;
  ThreadPool pool(Threads());
  Device& device = TheBench().device();
  static const Floats memory = *device.AllocateFloats(kBytes / 4);
  static const bool written = [] {
    std::fill_n(memory.data, memory.size, 1.0f);
    return true;
  }();
  benchmark::DoNotOptimize(written);
  for (auto _ : state) {
    pool.ParallelFor(kBytes / kTask, [&](int64_t task, int) {
      const std::byte* from = reinterpret_cast<const std::byte*>(memory.data) + task * kTask;
      benchmark::DoNotOptimize(ReadAll(from, kTask));
    });
  }
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(kBytes) * static_cast<double>(state.iterations()) * 1e-9,
      benchmark::Counter::kIsRate);
}

// One attention layer of Gemma 3 270M: `rows` tokens after `context` others.
void RunAttend(benchmark::State& state, int rows, int context) {
  const auto device = *MakeCpuDevice({Threads(), WantedIsa()});
  AttentionSpec spec;
  spec.heads = 4;
  spec.kv_heads = 1;
  spec.head_dim = 256;
  spec.kv_of_head = {0, 0, 0, 0};
  spec.scale = 1.0f / 16;
  const int tokens = context + rows;
  const int blocks = (tokens + 15) / 16;
  FACET_CHECK(device->AllocateKv({{{1, blocks, 16, 1, 256, KvType::kF16}, {}}}).ok());
  std::vector<int32_t> table(blocks);
  for (int i = 0; i < blocks; ++i) table[i] = blocks - 1 - i;
  SequenceRun run{0, tokens, 0, {table, {}}};
  Random random(3);
  const Floats qkv = Upload(*device, MakeFloats(int64_t{tokens} * 6 * 256, 0.3f, random));
  const Floats out = *device->AllocateFloats(int64_t{rows} * 4 * 256);
  const StepLayout all{tokens, std::span(&run, 1)};
  device->BeginStep(all);
  device->RopeAndStore(spec, qkv);
  SequenceRun last{0, rows, context, {table, {}}};
  const StepLayout layout{rows, std::span(&last, 1)};
  device->BeginStep(layout);
  for (auto _ : state) device->Attend(spec, qkv, out);
  // Two products of 256 per query head and key.
  const double keys = rows * (context + (rows + 1) / 2.0);
  state.counters["GFLOP/s"] =
      benchmark::Counter(keys * 4 * 4 * 256 * 1e-9 * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate);
}

enum class Question { kGreedy, kSums, kGumbelPeaked, kGumbelFlat };

// One row of the logits of Gemma 3.
void RunCandidates(benchmark::State& state, Question question) {
  const auto device = *MakeCpuDevice({Threads(), WantedIsa()});
  Random random(4);
  std::vector<float> logits =
      MakeFloats(262144, question == Question::kGumbelFlat ? 0.1f : 3, random);
  logits[77777] = 25;
  VocabularySlices slices;
  for (int i = 0; i <= 32; ++i) slices.starts.push_back(i * 8192);
  if (question == Question::kGumbelFlat) logits[77777] = 0;
  const Floats row = Upload(*device, logits);
  CandidateQuery query;
  query.gumbel = question == Question::kGumbelFlat || question == Question::kGumbelPeaked;
  query.sums = question == Question::kSums;
  query.count = question == Question::kSums ? 64 : 1;
  CandidateReply reply;
  for (auto _ : state) {
    ++query.key;
    device->FindCandidates(row, slices, query, &reply);
  }
}

enum class Ask { kGreedy, kSampled, kTop64 };

// The output layer of Gemma 3 270M, of random weights, asked about `rows` random rows.
class HeadBench {
 public:
  HeadBench() : device_(*MakeCpuDevice({Threads(), WantedIsa()})) {
    Random random(6);
    const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 262144, 640, 0.05f, random);
    MatrixSource source = matrix.source();
    whole_ = *device_->LoadMatrix(source, nullptr);
    source.searched = true;
    split_ = *device_->LoadMatrix(source, nullptr);
    for (int i = 0; i <= 32; ++i) slices_.starts.push_back(i * 8192);
    x_ = Upload(*device_, MakeFloats(kRowsMax * kStates * 640, 0.1f, random));
    scratch_ = *device_->AllocateFloats(int64_t{kRowsMax} * 262144);
  }

  void Run(benchmark::State& state, Ask ask, bool screened, int rows) {
    std::vector<CandidateQuery> queries(static_cast<size_t>(rows));
    std::vector<CandidateReply> replies(queries.size());
    for (CandidateQuery& query : queries) {
      query.gumbel = ask == Ask::kSampled;
      query.count = ask == Ask::kTop64 ? 64 : 1;
    }
    HeadSearch search;
    search.head = screened ? split_.get() : whole_.get();
    search.slices = &slices_;
    search.queries = queries;
    search.scratch = scratch_;
    const HeadReads before = device_->head_reads();
    int64_t next = 0;
    for (auto _ : state) {
      search.x = {x_.data + next++ % kStates * kRowsMax * 640, int64_t{rows} * 640};
      for (CandidateQuery& query : queries) ++query.key;
      device_->SearchHead(search, replies);
    }
    const HeadReads after = device_->head_reads();
    const auto asked = static_cast<double>(after.rows - before.rows);
    state.counters["screened"] = static_cast<double>(after.screened - before.screened) / asked;
    state.counters["completed"] = static_cast<double>(after.completed - before.completed) / asked;
  }

 private:
  static constexpr int kRowsMax = 32;
  static constexpr int kStates = 16;

  std::unique_ptr<Device> device_;
  std::unique_ptr<Matrix> whole_, split_;
  VocabularySlices slices_;
  Floats x_, scratch_;
};

void RunHead(benchmark::State& state, Ask ask, bool screened, int rows) {
  static HeadBench bench;
  bench.Run(state, ask, screened, rows);
}

void RunLoad(benchmark::State& state, TensorType type) {
  const auto device = *MakeCpuDevice({Threads(), WantedIsa()});
  Random random(5);
  const TestMatrix matrix = MakeMatrix(type, 8192, 1024, 0.05f, random);
  for (auto _ : state) benchmark::DoNotOptimize(device->LoadMatrix(matrix.source(), nullptr));
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(matrix.bytes.size()) * 1e-9 * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
}

void UseTime(benchmark::internal::Benchmark* benchmark) {
  if (Threads() > 1) benchmark->UseRealTime();
}

void RegisterAll() {
  UseTime(benchmark::RegisterBenchmark("Read", RunRead));
  const auto add = [](const std::string& name, auto run) {
    UseTime(benchmark::RegisterBenchmark(name.c_str(), run));
  };
  for (const auto& [rows, context] : {std::pair(1, 512), {1, 8192}, {8, 512}, {512, 0}}) {
    add(fmt::format("Attend/{}_after_{}", rows, context),
        [=](benchmark::State& state) { RunAttend(state, rows, context); });
  }
  add("Candidates/greedy", [](auto& state) { RunCandidates(state, Question::kGreedy); });
  add("Candidates/top_64_and_sums", [](auto& state) { RunCandidates(state, Question::kSums); });
  add("Candidates/gumbel", [](auto& state) { RunCandidates(state, Question::kGumbelPeaked); });
  add("Candidates/gumbel_flat", [](auto& state) { RunCandidates(state, Question::kGumbelFlat); });
  constexpr std::pair<const char*, Ask> kAsks[] = {
      {"greedy", Ask::kGreedy}, {"sampled", Ask::kSampled}, {"top_64", Ask::kTop64}};
  for (const auto& [name, ask] : kAsks) {
    for (const int rows : {1, 2, 4, 8, 32}) {
      for (const bool screened : {false, true}) {
        add(fmt::format("Head/{}/{}/{}", name, rows, screened ? "screened" : "whole"),
            [=](benchmark::State& state) { RunHead(state, ask, screened, rows); });
      }
    }
  }
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ5_0, TensorType::kQ4_K,
                                TensorType::kQ6_K, TensorType::kBF16, TensorType::kF32}) {
    add(fmt::format("Load/{}", FormatOf(type).name),
        [=](benchmark::State& state) { RunLoad(state, type); });
  }
  for (const TensorType type :
       {TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ5_0, TensorType::kQ4_1,
        TensorType::kQ4_K, TensorType::kQ6_K, TensorType::kBF16}) {
    for (const Shape shape : kShapes) {
      if (shape.columns % FormatOf(type).elements != 0) continue;
      for (const int rows : kBatches) {
        const std::string name = fmt::format("Product/{}/{}x{}/{}", FormatOf(type).name,
                                             shape.columns, shape.rows, rows);
        UseTime(benchmark::RegisterBenchmark(
            name.c_str(), [=](benchmark::State& state) { RunProduct(state, type, shape, rows); }));
      }
    }
  }
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) {
  facet::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
