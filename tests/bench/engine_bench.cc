// The engine alone, in one process: ranks as threads, no router, no gRPC, no second process. What
// the cluster around it costs is the difference to `facet bench` with the same load.
//
//   engine_bench MODEL.gguf [--world=2] [--threads=1] [--streams=8] [--prompt_tokens=16]
//                [--max_tokens=128] [--rounds=2] [--screened_head=false]
//
// In each round `streams` sequences begin together and sample as those of `facet bench
// --temperature=0` do. One line of JSON, of all sequences but those of a round to warm up: medians
// of the seconds to the first token and per further token, and the 99th percentile of the seconds
// between two deliveries.

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/rank.h"
#include "tests/bench/engine_run.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFirstId = 512;  // as in client/bench.cc: beyond control and byte tokens

struct Options {
  RanksOptions ranks;
  int streams = 1;
  int prompt_tokens = 16;
  int max_tokens = 128;
  int rounds = 2;
};

Options ParseArguments(int argc, char** argv) {
  Options options;
  RanksOptions& ranks = options.ranks;
  for (int i = 1; i < argc; ++i) {
    const std::string_view text = argv[i];
    const bool number = ParseNumber(text, "--world=", &ranks.world) ||
                        ParseNumber(text, "--threads=", &ranks.threads) ||
                        ParseNumber(text, "--streams=", &options.streams) ||
                        ParseNumber(text, "--prompt_tokens=", &options.prompt_tokens) ||
                        ParseNumber(text, "--max_tokens=", &options.max_tokens) ||
                        ParseNumber(text, "--rounds=", &options.rounds);
    if (number) continue;
    if (text == "--screened_head=false") {
      ranks.screened_head = false;
    } else {
      FACET_CHECK(ranks.model.empty() && !text.starts_with("--"), "what is {}?", text);
      ranks.model = text;
    }
  }
  FACET_CHECK(!ranks.model.empty(), "which model?");
  FACET_CHECK(ranks.world * ranks.threads * options.streams * options.rounds > 0);
  return options;
}

EngineRequest MakeRequest(const Options& options, int vocabulary, uint64_t number) {
  EngineRequest request;
  request.id = SequenceId{number};
  request.seed = Mix64(1, number);
  const int first = std::min(kFirstId, vocabulary / 2);
  for (int i = 0; i < options.prompt_tokens; ++i) {
    const uint64_t draw = Mix64(request.seed, static_cast<uint64_t>(i));
    request.tokens.push_back(
        first + static_cast<TokenId>(draw % static_cast<uint64_t>(vocabulary - first)));
  }
  request.prompt_length = options.prompt_tokens;
  request.max_tokens = options.max_tokens;
  request.sampling.temperature = 0;
  return request;
}

struct Times {
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> gaps;
};

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double Percentile99(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto nth = values.begin() + std::ssize(values) * 99 / 100;
  std::nth_element(values.begin(), nth, values.end());
  return *nth;
}

// One sequence per stream, from the first step to the last token.
void RunRound(const Options& options, testing::InProcessGroup* group, Engine* engine,
              uint64_t* next, Times* times) {
  struct Sequence {
    std::optional<Clock::time_point> first;
    Clock::time_point last;
    int tokens = 0;
  };
  std::vector<Sequence> sequences(static_cast<size_t>(options.streams));
  const uint64_t base = *next;
  const int vocabulary = group->leader().facts().vocabulary_size;
  for (int i = 0; i < options.streams; ++i) {
    const absl::Status status = engine->Submit(MakeRequest(options, vocabulary, (*next)++), 0);
    FACET_CHECK(status.ok(), "{}", MessageOf(status));
  }
  const Clock::time_point start = Clock::now();
  for (int open = options.streams; open > 0;) {
    RunStep(engine, &group->executor());
    const Clock::time_point now = Clock::now();
    for (const EngineDelta& delta : engine->TakeDeltas()) {
      Sequence& sequence = sequences[delta.id.value - base];
      if (!delta.tokens.empty()) {
        if (sequence.first) {
          times->gaps.push_back(Seconds(now - sequence.last));
        } else {
          sequence.first = now;
          times->ttft.push_back(Seconds(now - start));
        }
        sequence.last = now;
      }
      sequence.tokens += static_cast<int>(delta.tokens.size());
      if (!delta.finish) continue;
      FACET_CHECK(*delta.finish == EngineFinish::kLength, "{}", delta.error);
      if (sequence.tokens > 1) {
        times->tpot.push_back(Seconds(now - *sequence.first) / (sequence.tokens - 1));
      }
      --open;
    }
  }
}

int Main(int argc, char** argv) {
  const Options options = ParseArguments(argc, argv);
  const std::unique_ptr<testing::InProcessGroup> group = StartRanks(options.ranks);
  EngineOptions engine_options = group->leader().engine_options();
  engine_options.steps_max = 1;  // the worker's default
  Engine engine(engine_options);
  uint64_t next = 0;
  Times times;
  RunRound(options, group.get(), &engine, &next, &times);
  times = Times();
  for (int round = 0; round < options.rounds; ++round) {
    RunRound(options, group.get(), &engine, &next, &times);
  }
  fmt::print("{{\"streams\": {}, \"ttft_s\": {:.6f}, \"tpot_s\": {:.6f}, \"itl_p99_s\": {:.6f}}}\n",
             options.streams, Median(times.ttft), Median(times.tpot), Percentile99(times.gaps));
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
