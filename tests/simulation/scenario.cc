#include "tests/simulation/scenario.h"

#include <algorithm>
#include <array>

#include "shard_worker/runtime/fake_executor.h"
#include "tests/simulation/dice.h"

namespace facet::sim {
namespace {

// Prompts are made of the ids below; they are in every vocabulary.
constexpr TokenId kPromptTokens = 38;

// Which of its pools a model has.
void DrawPools(Dice& dice, EngineOptions* options) {
  const bool full = dice.Percent(85);
  const bool window = !full || dice.Percent(70);
  const int block = options->block_tokens;
  const auto whole = static_cast<int>((options->context_tokens + block - 1) / block);
  if (window) options->window = dice.In(1, 3 * block);
  const auto seen = static_cast<int>((options->window + block - 2) / block + 1);
  // Some worlds have hardly room for one sequence, others for all.
  const bool tight = dice.Percent(40);
  if (full) options->blocks[0] = whole + static_cast<int>(dice.Low(0, (tight ? 1 : 5) * whole));
  if (window) options->blocks[1] = seen + static_cast<int>(dice.Low(0, (tight ? 2 : 8) * seen));
}

EngineOptions DrawEngine(Dice& dice) {
  EngineOptions options;
  options.block_tokens = 1 << dice.In(1, 4);
  options.context_tokens = static_cast<int>(dice.In(20, 140));
  options.vocabulary_size = static_cast<int>(dice.In(40, 300));
  options.step_tokens_max = static_cast<int>(dice.In(4, 64));
  options.prefill_chunk_max = static_cast<int>(dice.In(2, 40));
  options.mixed_prefill_max = static_cast<int>(dice.In(1, 40));
  options.sequences_max = static_cast<int>(dice.In(2, 10));
  // As in production, more than one step budget of the shortest prompts.
  options.waiting_max = 2 * (options.step_tokens_max + options.sequences_max);
  options.steps_max = dice.Percent(70) ? 2 : 1;
  options.preemptions_max = static_cast<int>(dice.In(1, 4));
  options.prefix_cache = dice.Percent(85);
  DrawPools(dice, &options);
  return options;
}

// Most worlds that speculate propose whatever there is, however unlikely it is.
SpeculationOptions DrawSpeculation(Dice& dice) {
  SpeculationOptions options;
  if (dice.Percent(40)) return options;
  options.proposals_max = static_cast<int>(dice.In(1, 8));
  options.step_rows_max = static_cast<int>(dice.In(4, 40));
  options.free_rows = dice.Percent(70) ? 1e6 : 10;
  options.lookup_entries_max = 1 << dice.In(3, 10);
  return options;
}

void DrawGroups(Dice& dice, Scenario* scenario) {
  const EngineOptions base = DrawEngine(dice);
  const auto groups = dice.In(1, 3);
  const bool mixed = groups > 1 && dice.Percent(25);  // two models that answer differently
  for (int64_t i = 0; i < groups; ++i) {
    GroupPlan group;
    group.leader.engine = base;
    EngineOptions& engine = group.leader.engine;
    if (dice.Percent(30)) engine.sequences_max = static_cast<int>(dice.In(1, 8));
    for (int& blocks : engine.blocks) {
      if (blocks > 0) blocks += static_cast<int>(dice.Low(0, blocks));
    }
    const bool odd = mixed && i % 2 == 1;
    if (odd) --engine.vocabulary_size;
    group.fingerprint = odd ? "odd" : "even";
    engine.speculation = DrawSpeculation(dice);
    group.ranks = static_cast<int>(dice.In(1, 4));
    group.step_base = dice.Low(1, 25) * kMs;
    group.step_per_token = dice.Low(0, 1000);
    group.leader.drain = dice.In(0, 5) * kSecond;
    Dice own(scenario->seed, fmt::format("news of group {}", i));
    if (own.Percent(40)) group.leader.news_period = own.Low(1, 60) * kMs;
    scenario->groups.push_back(std::move(group));
  }
  // What the pools hold may be less than the context that was drawn, and differ between groups.
  int context = base.context_tokens;
  for (const GroupPlan& group : scenario->groups) {
    context = std::min(context, Engine(group.leader.engine).context_tokens());
  }
  for (GroupPlan& group : scenario->groups) group.leader.engine.context_tokens = context;
}

// A token that canaries never meet, which would condemn the process.
std::optional<TokenId> DrawPoison(Dice& dice, const Scenario& scenario) {
  if (!dice.Percent(15)) return std::nullopt;
  const int vocabulary = scenario.groups.front().leader.engine.vocabulary_size;
  const auto poison = static_cast<TokenId>(dice.In(kPromptTokens, vocabulary - 2));
  for (const GroupPlan& group : scenario.groups) {
    const EngineOptions& engine = group.leader.engine;
    Canary canary(group.leader.canary, engine.vocabulary_size, {}, 0);
    const EngineRequest request = canary.Start(SequenceId{1}, 0);
    std::vector<TokenId> tokens = request.tokens;
    for (int i = 0; i < request.max_tokens; ++i) {
      const uint64_t logits = FakeExecutor::LogitsAfter(tokens, engine);
      tokens.push_back(
          FakeExecutor::Choose(logits, engine, request.seed, std::ssize(tokens), 0).id);
    }
    if (std::find(tokens.begin(), tokens.end(), poison) != tokens.end()) return std::nullopt;
  }
  return poison;
}

void DrawCore(Dice& dice, RouterCoreOptions* core) {
  core->queue.requests_max = dice.Percent(50) ? 200 : dice.In(2, 12);
  core->queue.tokens_max = dice.Percent(60) ? 1 << 20 : dice.In(60, 1500);
  core->group_wait_us = dice.In(4, 20) * kSecond;
  core->stop_grace_us = dice.In(20, 500) * kMs;
  core->retries = {static_cast<int>(dice.In(0, 500)), static_cast<int>(dice.In(1, 60))};
  core->fairness.unfair_wait_us = dice.Percent(30) ? 0 : dice.In(20, 600) * kMs;
  core->fairness.skew_max = static_cast<double>(dice.In(0, 30)) / 10;
  core->tenants.weights["t0"] = static_cast<double>(dice.In(2, 30)) / 10;
  core->mirror_links_max = dice.Percent(20) ? dice.In(1, 20) : 1 << 18;
  core->seed = dice.Next();
}

// The prompts that clients share beginnings of: whole blocks, or one token more or less.
std::vector<std::vector<TokenId>> DrawPrefixes(Dice& dice, const EngineOptions& engine) {
  std::vector<std::vector<TokenId>> prefixes(static_cast<size_t>(dice.In(1, 4)));
  const int blocks = std::max(1, engine.context_tokens / engine.block_tokens - 1);
  for (std::vector<TokenId>& prefix : prefixes) {
    const int64_t length = dice.In(1, blocks) * engine.block_tokens + dice.In(-1, 1);
    for (int64_t i = 0; i < length; ++i) {
      prefix.push_back(static_cast<TokenId>(dice.In(0, kPromptTokens - 1)));
    }
  }
  return prefixes;
}

// The prompt goes on as the model would say it, like a conversation's: what comes then repeats it.
void GoOn(Dice& dice, const EngineOptions& engine, std::vector<TokenId>* prompt) {
  const uint64_t seed = dice.Next();
  for (int64_t i = dice.In(4, 24); i > 0 && std::ssize(*prompt) + 2 < engine.context_tokens; --i) {
    const uint64_t logits = FakeExecutor::LogitsAfter(*prompt, engine);
    const TokenId next =
        FakeExecutor::Choose(logits, engine, seed, std::ssize(*prompt), /*logprobs=*/0).id;
    if (next >= engine.vocabulary_size - 1) return;  // other groups may not have the last one
    prompt->push_back(next);
  }
}

std::vector<TokenId> DrawPrompt(Dice& dice, const EngineOptions& engine,
                                const std::vector<std::vector<TokenId>>& prefixes) {
  std::vector<TokenId> prompt;
  if (dice.Percent(65)) prompt = dice.Of(prefixes);
  // Some stop within the shared part, at a block's border or beside it.
  if (!prompt.empty() && dice.Percent(25)) {
    const int64_t border = dice.In(1, 4) * engine.block_tokens + dice.In(-1, 1);
    prompt.resize(std::clamp<size_t>(static_cast<size_t>(border), 1, prompt.size()));
  }
  int64_t own = dice.Percent(30) ? 0 : dice.Low(0, engine.context_tokens / 2);
  if (prompt.empty()) own = std::max<int64_t>(1, own);
  for (int64_t i = 0; i < own; ++i)
    prompt.push_back(static_cast<TokenId>(dice.In(0, kPromptTokens - 1)));
  const bool too_long = std::ssize(prompt) >= engine.context_tokens;
  if (too_long && !dice.Percent(3)) {
    prompt.resize(static_cast<size_t>(dice.In(1, engine.context_tokens - 1)));
  }
  if (dice.Percent(40)) GoOn(dice, engine, &prompt);
  return prompt;
}

// Traits of a world that all its requests share.
struct Manners {
  int tenants, cancel, deadline, slow, stop, scores, penalties, killers;  // percent, but tenants
  int output_max;
  bool heavy;  // the first tenant asks most
};

Manners DrawManners(Dice& dice, const EngineOptions& engine) {
  const auto maybe = [&dice](int64_t likely, int64_t most) {
    return dice.Percent(likely) ? static_cast<int>(dice.In(1, most)) : 0;
  };
  return {.tenants = static_cast<int>(dice.In(1, 4)),
          .cancel = maybe(60, 30),
          .deadline = maybe(60, 40),
          .slow = maybe(40, 30),
          .stop = maybe(70, 60),
          .scores = maybe(40, 30),
          .penalties = maybe(40, 40),
          .killers = maybe(15, 10),
          .output_max = static_cast<int>(dice.In(2, std::max(3, engine.context_tokens / 2))),
          .heavy = dice.Percent(40)};
}

void DrawBehaviour(Dice& dice, const Manners& manners, RequestPlan* request) {
  if (dice.Percent(manners.cancel)) {
    request->cancel_after = dice.Low(0, 3000) * kMs;
    request->asks_again = dice.Percent(60);
  }
  if (dice.Percent(manners.deadline)) request->timeout = dice.Low(5, 8000) * kMs;
  if (dice.Percent(manners.slow)) {
    request->read_delay = dice.Percent(10) ? kNever : dice.Low(10, 2000) * kMs;
  }
  request->kills_groups = dice.Percent(manners.killers);
}

RequestPlan DrawRequest(Dice& dice, const Scenario& scenario, const Manners& manners,
                        const std::vector<std::vector<TokenId>>& prefixes) {
  const EngineOptions& engine = scenario.groups.front().leader.engine;
  RequestPlan request;
  const bool heavy = manners.heavy && dice.Percent(60);
  request.tenant = fmt::format("t{}", heavy ? 0 : dice.In(0, manners.tenants - 1));
  request.priority = static_cast<int>(dice.Percent(30) ? dice.In(-1, 2) : 0);
  request.n = static_cast<int>(dice.Percent(25) ? dice.In(2, 3) : 1);
  const int64_t prompts = dice.Percent(15) ? 2 : 1;
  for (int64_t i = 0; i < prompts; ++i) {
    request.prompts.push_back(DrawPrompt(dice, engine, prefixes));
  }
  if (scenario.poison && dice.Percent(4)) {
    request.prompts.back().back() = *scenario.poison;
  }
  request.max_tokens = static_cast<int>(dice.Low(1, manners.output_max));
  request.seed = dice.Next();
  if (dice.Percent(manners.stop)) {
    const int64_t stops = dice.In(1, std::max(1, engine.vocabulary_size / 15));
    for (int64_t i = 0; i < stops; ++i) {
      request.stop_token_ids.push_back(static_cast<TokenId>(dice.In(0, kPromptTokens - 1)));
    }
    // One that the sequence has had before is one that may be guessed.
    if (dice.Percent(50)) request.stop_token_ids.push_back(request.prompts.front().back());
  }
  if (dice.Percent(manners.scores)) {
    request.logprobs = static_cast<int>(dice.In(0, 2));
    request.prompt_logprobs = dice.Percent(50);
    if (request.prompt_logprobs && dice.Percent(15)) request.max_tokens = 0;
  }
  request.penalties = dice.Percent(manners.penalties);
  DrawBehaviour(dice, manners, &request);
  return request;
}

// A pair of tokens that the answer really has, so that it is met.
void DrawStopPair(Dice& dice, const Scenario& scenario, RequestPlan* request) {
  if (!dice.Percent(12) || request->max_tokens < 2) return;
  const EngineOptions& engine = scenario.groups.front().leader.engine;
  std::vector<TokenId> tokens = request->prompts.front();
  if (std::ssize(tokens) + request->max_tokens > engine.context_tokens) return;
  const uint64_t seed = SequenceSeed(request->seed, 0, 0);
  const int64_t end = dice.In(2, request->max_tokens);
  for (int64_t i = 0; i < end; ++i) {
    const uint64_t logits = FakeExecutor::LogitsAfter(tokens, engine);
    tokens.push_back(FakeExecutor::Choose(logits, engine, seed, std::ssize(tokens), 0).id);
  }
  request->stop_pair.emplace(tokens[tokens.size() - 2], tokens.back());
}

void DrawRequests(Dice& dice, Scenario* scenario) {
  const EngineOptions& engine = scenario->groups.front().leader.engine;
  const Manners manners = DrawManners(dice, engine);
  const std::vector<std::vector<TokenId>> prefixes = DrawPrefixes(dice, engine);
  const int64_t requests = dice.Low(8, 150);
  const TimeUs pace = dice.Low(1, 600) * kMs;
  const int64_t burst = dice.In(0, 90);
  TimeUs arrival = dice.In(0, 200) * kMs;
  for (int64_t i = 0; i < requests; ++i) {
    RequestPlan request = DrawRequest(dice, *scenario, manners, prefixes);
    DrawStopPair(dice, *scenario, &request);
    request.number = static_cast<int>(i);
    request.arrival = arrival;
    if (!dice.Percent(burst)) arrival += dice.In(0, 2 * pace);
    scenario->requests.push_back(std::move(request));
  }
}

void DrawFaults(Dice& dice, Scenario* scenario) {
  const TimeUs last = scenario->requests.back().arrival;
  scenario->faults_end = last + dice.In(1, 15) * kSecond;
  const bool calm = dice.Percent(25);
  for (TimeUs& interval : scenario->fault_interval) {
    const bool on = dice.Percent(35) && !calm;
    interval = on ? dice.Low(300, 8000) * kMs : kNever;
  }
  scenario->restart_least = dice.In(5, 200) * kMs;
  scenario->restart_most = scenario->restart_least + dice.Low(0, 5000) * kMs;
  scenario->hang_notice = 2 * kSecond;
  scenario->silence_max = 2 * kSecond;
  scenario->ring_tokens = static_cast<int>(dice.In(2, 20));
  scenario->reader_patience = 30 * kSecond;
}

WireDelays DrawWire(Dice& dice) {
  WireDelays delays;
  delays.least = dice.In(20, 500);
  delays.most = delays.least + dice.Low(0, 60'000);
  delays.notice_most = dice.Low(0, 500) * kMs;
  return delays;
}

}  // namespace

Scenario DrawScenario(uint64_t seed) {
  Dice dice(seed, "scenario");
  Scenario scenario;
  scenario.seed = seed;
  scenario.routers = static_cast<int>(dice.In(1, 2));
  DrawCore(dice, &scenario.core);
  DrawGroups(dice, &scenario);
  scenario.poison = DrawPoison(dice, scenario);
  scenario.client_wire = DrawWire(dice);
  scenario.session_wire = DrawWire(dice);
  DrawRequests(dice, &scenario);
  DrawFaults(dice, &scenario);
  return scenario;
}

}  // namespace facet::sim
