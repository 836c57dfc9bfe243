#include "tests/simulation/oracle.h"

#include <algorithm>
#include <span>

#include "base/check.h"
#include "base/prng.h"
#include "shard_worker/runtime/fake_executor.h"

namespace facet::sim {
namespace {

const EngineOptions& OptionsOf(const Scenario& scenario, std::string_view fingerprint) {
  const auto group = std::find_if(scenario.groups.begin(), scenario.groups.end(),
                                  [&](const GroupPlan& g) { return g.fingerprint == fingerprint; });
  FACET_CHECK(group != scenario.groups.end(), "no group has fingerprint {}", fingerprint);
  return group->leader.engine;
}

// Why the choice ends after `tokens` (prompt, then `output` tokens), if it does.
std::optional<EndReason> EndAfter(const RequestPlan& request, std::span<const TokenId> tokens,
                                  int output, int context_tokens) {
  if (output > 0) {
    const TokenId last = tokens.back();
    const auto& stops = request.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), last) != stops.end()) return EndReason::kStop;
    if (output > 1 && request.stop_pair &&
        *request.stop_pair == std::pair(tokens[tokens.size() - 2], last)) {
      return EndReason::kStop;
    }
  }
  const bool full = static_cast<int>(tokens.size()) >= context_tokens;
  if (output >= request.max_tokens || full) return EndReason::kLength;
  return std::nullopt;
}

}  // namespace

Answer AnswerOf(const Scenario& scenario, const RequestPlan& request, int prompt_index,
                int choice_index, std::string_view fingerprint) {
  const EngineOptions& options = OptionsOf(scenario, fingerprint);
  const uint64_t seed = SequenceSeed(request.seed, prompt_index, choice_index);
  std::vector<TokenId> tokens = request.prompts[prompt_index];
  const auto poisoned = [&](TokenId token) { return token == scenario.poison; };
  Answer answer;
  if (std::any_of(tokens.begin(), tokens.end(), poisoned)) {
    answer.reason = EndReason::kError;
    return answer;
  }
  while (true) {
    const auto output = static_cast<int>(answer.tokens.size());
    if (const auto end = EndAfter(request, tokens, output, options.context_tokens)) {
      answer.reason = *end;
      return answer;
    }
    if (poisoned(tokens.back())) {
      answer.reason = EndReason::kError;
      return answer;
    }
    answer.tokens.push_back(FakeExecutor::Choose(FakeExecutor::LogitsAfter(tokens, options),
                                                 options, seed, std::ssize(tokens),
                                                 std::max(0, request.logprobs)));
    tokens.push_back(answer.tokens.back().id);
  }
}

std::vector<ScoredToken> PromptScores(const Scenario& scenario, const RequestPlan& request,
                                      int prompt_index, std::string_view fingerprint) {
  const EngineOptions& options = OptionsOf(scenario, fingerprint);
  const std::span<const TokenId> prompt = request.prompts[prompt_index];
  std::vector<ScoredToken> scores;
  for (size_t i = 1; i < prompt.size(); ++i) {
    scores.push_back(FakeExecutor::Score(FakeExecutor::LogitsAfter(prompt.first(i), options),
                                         options, prompt[i], std::max(0, request.logprobs)));
  }
  return scores;
}

}  // namespace facet::sim
