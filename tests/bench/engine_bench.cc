// The engine alone, in one process: ranks as threads, no router, no gRPC, no second process. What
// the cluster around it costs is the difference to `facet bench` with the same load.
//
//   engine_bench MODEL.gguf [--world=2] [--threads=1] [--streams=8] [--prompt_tokens=16]
//                [--max_tokens=128] [--rounds=2] [--screened_head=false]
//
// In each round `streams` sequences begin together and sample as those of `facet bench
// --temperature=0` do. One line of JSON: medians over all sequences, but those of a round to warm
// up, of the seconds to the first token and per further token.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "kernels/collectives/local.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/rank.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kFirstId = 512;  // as in client/bench.cc: beyond control and byte tokens
constexpr std::chrono::minutes kStepTimeout{5};

struct Options {
  std::string model;
  int world = 2;
  int threads = 1;
  int streams = 1;
  int prompt_tokens = 16;
  int max_tokens = 128;
  int rounds = 2;
  bool screened_head = true;
};

Options ParseArguments(int argc, char** argv) {
  Options options;
  const std::pair<std::string_view, int*> numbers[] = {
      {"--world=", &options.world},           {"--threads=", &options.threads},
      {"--streams=", &options.streams},       {"--prompt_tokens=", &options.prompt_tokens},
      {"--max_tokens=", &options.max_tokens}, {"--rounds=", &options.rounds}};
  for (int i = 1; i < argc; ++i) {
    const std::string_view text = argv[i];
    const auto number = std::find_if(std::begin(numbers), std::end(numbers), [&](const auto& each) {
      return text.starts_with(each.first);
    });
    if (number != std::end(numbers)) {
      const auto [end, error] = std::from_chars(text.data() + number->first.size(),
                                                text.data() + text.size(), *number->second);
      FACET_CHECK(error == std::errc() && end == text.data() + text.size() && *number->second > 0,
                  "{}", text);
    } else if (text == "--screened_head=false") {
      options.screened_head = false;
    } else {
      FACET_CHECK(options.model.empty() && !text.starts_with("--"), "what is {}?", text);
      options.model = text;
    }
  }
  FACET_CHECK(!options.model.empty(), "which model?");
  return options;
}

// A group whose ranks are threads of this process.
class Group {
 public:
  explicit Group(const Options& options) {
    std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalGroup(options.world);
    for (int rank = 0; rank < options.world; ++rank) {
      RankOptions rank_options;
      rank_options.model_path = options.model;
      rank_options.rank = rank;
      rank_options.world = options.world;
      rank_options.threads = options.threads;
      rank_options.screened_head = options.screened_head;
      rank_options.step_timeout = kStepTimeout;
      rank_options.mixed_prefill_max = 128;  // the worker's default
      absl::StatusOr<std::unique_ptr<Rank>> loaded = Rank::Load(rank_options);
      FACET_CHECK(loaded.ok(), "{}", MessageOf(loaded.status()));
      ranks_.push_back(*std::move(loaded));
      ranks_.back()->Attach(std::move(communicators[static_cast<size_t>(rank)]));
    }
    for (size_t rank = 1; rank < ranks_.size(); ++rank) {
      followers_.emplace_back([follower = ranks_[rank].get()] {
        const absl::Status status = follower->Follow();
        FACET_CHECK(status.ok(), "{}", MessageOf(status));
      });
    }
    executor_ = ranks_[0]->MakeExecutor();
  }

  ~Group() {
    FACET_CHECK(ranks_[0]->StopFollowers().ok());
    for (std::thread& follower : followers_) follower.join();
  }

  Rank& leader() { return *ranks_[0]; }
  Executor& executor() { return *executor_; }

 private:
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::thread> followers_;
  std::unique_ptr<Executor> executor_;
};

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
};

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// One sequence per stream, from the first step to the last token.
void RunRound(const Options& options, Group* group, Engine* engine, uint64_t* next, Times* times) {
  struct Sequence {
    std::optional<Clock::time_point> first;
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
    const std::optional<StepPlan> plan = engine->Plan(0);
    FACET_CHECK(plan.has_value(), "sequences are open and the engine has no plan");
    const absl::StatusOr<StepResult> result = group->executor().Run(*plan);
    FACET_CHECK(result.ok(), "{}", MessageOf(result.status()));
    engine->Complete(*result, 0);
    const Clock::time_point now = Clock::now();
    for (const EngineDelta& delta : engine->TakeDeltas()) {
      Sequence& sequence = sequences[delta.id.value - base];
      if (!delta.tokens.empty() && !sequence.first) {
        sequence.first = now;
        times->ttft.push_back(Seconds(now - start));
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

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) / 2];
}

int Main(int argc, char** argv) {
  const Options options = ParseArguments(argc, argv);
  Group group(options);
  EngineOptions engine_options = group.leader().engine_options();
  engine_options.steps_max = 1;  // the worker's default
  Engine engine(engine_options);
  uint64_t next = 0;
  Times times;
  RunRound(options, &group, &engine, &next, &times);
  times = Times();
  for (int round = 0; round < options.rounds; ++round) {
    RunRound(options, &group, &engine, &next, &times);
  }
  fmt::print("{{\"streams\": {}, \"ttft_s\": {:.6f}, \"tpot_s\": {:.6f}}}\n", options.streams,
             Median(times.ttft), Median(times.tpot));
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
