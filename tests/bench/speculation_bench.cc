// What speculation gains and costs: one group of ranks in this process (a thread or more per rank)
// runs the same requests with it off and on, alternately, on a real model file. For each kind of
// text it prints the tokens per second of the decoding steps, the median of the rounds' ratios by
// the clock and by the process's processor time (which others on the machine disturb less; with one
// rank and one thread nobody spins in it), and how many proposals were right. Both must print the
// same tokens.
//
//   speculation_bench MODEL.gguf [--text=tests/golden/text.txt] [--world=2] [--threads=1]
//                     [--batch=1] [--tokens=128] [--rounds=5] [--proposals=8] [--rows=16]
//                     [--free_rows=10]
//
// The texts: "story", sampled at temperature 1, which hardly repeats itself; "greedy", the
// likeliest continuation of the same prompts; and "copy", a paragraph that the prompt has already
// twice.

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "router/tokenizer/tokenizer.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/rank.h"
#include "tests/bench/engine_run.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;

double ProcessorSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Options {
  RanksOptions ranks;
  std::string text = "tests/golden/text.txt";
  int batch = 1;
  int tokens = 128;
  int rounds = 5;
  SpeculationOptions speculation{.proposals_max = 8};
};

Options ParseArguments(int argc, char** argv) {
  Options options;
  RanksOptions& ranks = options.ranks;
  SpeculationOptions& speculation = options.speculation;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const bool number = ParseNumber(argument, "--world=", &ranks.world) ||
                        ParseNumber(argument, "--threads=", &ranks.threads) ||
                        ParseNumber(argument, "--batch=", &options.batch) ||
                        ParseNumber(argument, "--tokens=", &options.tokens) ||
                        ParseNumber(argument, "--rounds=", &options.rounds) ||
                        ParseNumber(argument, "--proposals=", &speculation.proposals_max) ||
                        ParseNumber(argument, "--rows=", &speculation.step_rows_max) ||
                        ParseNumber(argument, "--free_rows=", &speculation.free_rows);
    if (number) continue;
    if (argument.starts_with("--text=")) {
      options.text = argument.substr(7);
    } else {
      FACET_CHECK(ranks.model.empty() && !argument.starts_with("--"), "what is {}?", argument);
      ranks.model = argument;
    }
  }
  FACET_CHECK(!ranks.model.empty() && options.batch > 0 && options.rounds > 0,
              "usage: speculation_bench MODEL.gguf [--batch=8] ...; see the source");
  return options;
}

// The file's paragraphs that are worth the name.
std::vector<std::string> ReadParagraphs(const std::string& path) {
  std::ifstream file(path);
  FACET_CHECK(file.good(), "{} cannot be read", path);
  std::vector<std::string> paragraphs;
  for (std::string line; std::getline(file, line);) {
    if (line.size() > 400) paragraphs.push_back(line);
  }
  FACET_CHECK(!paragraphs.empty(), "{} has no paragraphs", path);
  return paragraphs;
}

struct Run {
  std::vector<std::vector<TokenId>> outputs;  // of each request
  int64_t tokens = 0;                         // that decoding steps chose ...
  int64_t steps = 0;                          // ... in so many steps ...
  double seconds = 0;                         // ... and this time
  double cpu_seconds = 0;
  EngineStats stats;
  double rate() const { return static_cast<double>(tokens) / seconds; }
  double cpu_rate() const { return static_cast<double>(tokens) / cpu_seconds; }
};

bool OnlyDecodes(const StepPlan& plan) {
  return std::all_of(plan.segments.begin(), plan.segments.end(), [](const Segment& segment) {
    return std::ssize(segment.tokens) == 1 + segment.proposals;
  });
}

void Step(Engine* engine, Executor* executor, Run* run) {
  const Clock::time_point start = Clock::now();
  const double cpu_start = ProcessorSeconds();
  const bool decodes = OnlyDecodes(RunStep(engine, executor));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const double cpu_seconds = ProcessorSeconds() - cpu_start;
  for (const EngineDelta& delta : engine->TakeDeltas()) {
    std::vector<TokenId>& output = run->outputs[delta.id.value];
    for (const ScoredToken& token : delta.tokens) output.push_back(token.id);
    if (decodes) run->tokens += std::ssize(delta.tokens);
  }
  if (!decodes) return;
  ++run->steps;
  run->seconds += seconds;
  run->cpu_seconds += cpu_seconds;
}

// With an engine that knows of nothing before.
Run Answer(const std::vector<EngineRequest>& requests, const SpeculationOptions& speculation,
           testing::InProcessGroup* group) {
  EngineOptions options = group->leader().engine_options();
  options.steps_max = 1;
  options.speculation = speculation;
  Engine engine(options);
  Run run;
  run.outputs.resize(requests.size());
  for (const EngineRequest& request : requests) FACET_CHECK(engine.Submit(request, 0).ok());
  while (engine.stats().running + engine.stats().waiting > 0) {
    Step(&engine, &group->executor(), &run);
  }
  FACET_CHECK(group->executor().Run(engine.PlanIdle()).ok());  // the slots are free again
  run.stats = engine.stats();
  return run;
}

EngineRequest Request(size_t index, std::vector<TokenId> prompt, float temperature, int tokens) {
  EngineRequest request;
  request.id = SequenceId{index};
  request.seed = index;
  request.prompt_length = static_cast<int>(prompt.size());
  request.tokens = std::move(prompt);
  request.sampling.temperature = temperature;
  request.max_tokens = tokens;
  return request;
}

struct Text {
  const char* name;
  std::vector<EngineRequest> requests;
};

std::vector<Text> MakeTexts(const Options& options) {
  const GgufModel model = *GgufModel::Open(options.ranks.model);
  const std::unique_ptr<Tokenizer> tokenizer = *Tokenizer::Create(model);
  const std::vector<std::string> paragraphs = ReadParagraphs(options.text);
  std::vector<Text> texts = {{"story", {}}, {"greedy", {}}, {"copy", {}}};
  for (size_t i = 0; i < static_cast<size_t>(options.batch); ++i) {
    const std::string& paragraph = paragraphs[i % paragraphs.size()];
    const std::vector<TokenId> beginning = tokenizer->Encode(paragraph.substr(0, 200));
    texts[0].requests.push_back(Request(i, beginning, 1, options.tokens));
    texts[1].requests.push_back(Request(i, beginning, 0, options.tokens));
    std::vector<TokenId> copies = tokenizer->Encode(paragraph + "\n\n" + paragraph + "\n\n");
    const std::vector<TokenId> once = tokenizer->Encode(paragraph);
    copies.insert(copies.end(), once.begin() + tokenizer->add_bos(), once.begin() + 12);
    texts[2].requests.push_back(Request(i, std::move(copies), 0, options.tokens));
  }
  return texts;
}

void Compare(const Text& text, const Options& options, testing::InProcessGroup* group) {
  std::vector<double> ratios, cpu_ratios, off_rates, on_rates;
  Run off, on;
  for (int round = 0; round < options.rounds; ++round) {
    const auto run_off = [&] { off = Answer(text.requests, {}, group); };
    if (round % 2 == 0) run_off();
    on = Answer(text.requests, options.speculation, group);
    if (round % 2 == 1) run_off();
    FACET_CHECK(on.outputs == off.outputs, "{}: speculation changes the text", text.name);
    ratios.push_back(on.rate() / off.rate());
    cpu_ratios.push_back(on.cpu_rate() / off.cpu_rate());
    off_rates.push_back(off.rate());
    on_rates.push_back(on.rate());
  }
  const double proposed = static_cast<double>(on.stats.proposed_tokens);
  fmt::print("{:<8}{:>7}{:>10.1f}{:>10.1f}{:>8.3f}{:>8.3f}{:>8}{:>8}{:>10.0f}{:>10.2f}\n",
             text.name, options.batch, Median(off_rates), Median(on_rates), Median(ratios),
             Median(cpu_ratios), off.steps, on.steps, proposed,
             proposed > 0 ? static_cast<double>(on.stats.accepted_tokens) / proposed : 0);
}

int Main(int argc, char** argv) {
  const Options options = ParseArguments(argc, argv);
  const std::unique_ptr<testing::InProcessGroup> group = StartRanks(options.ranks);
  fmt::print("{:<8}{:>7}{:>10}{:>10}{:>8}{:>8}{:>8}{:>8}{:>10}{:>10}\n", "text", "batch", "off/s",
             "on/s", "ratio", "by cpu", "steps", "with", "proposed", "accepted");
  for (const Text& text : MakeTexts(options)) Compare(text, options, group.get());
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
