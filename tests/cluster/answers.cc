#include "tests/cluster/answers.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <thread>
#include <utility>

#include "base/status.h"
#include "client/resuming_stream.h"

namespace facet::testing {
namespace {

v1::GenerateRequest TextRequest(std::string_view prompt, int tokens) {
  v1::GenerateRequest request;
  request.add_prompts()->set_text(std::string(prompt));
  request.set_max_tokens(tokens);
  request.set_ignore_eos(true);
  request.set_seed(1);  // told in each Finish, which is compared
  request.mutable_sampling()->set_temperature(0);
  return request;
}

v1::GenerateRequest SeededRequest(std::string_view prompt, int tokens, uint64_t seed) {
  v1::GenerateRequest request = TextRequest(prompt, tokens);
  request.mutable_sampling()->set_temperature(1);
  request.set_seed(seed);
  return request;
}

v1::GenerateRequest Penalised(v1::GenerateRequest request) {
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_repetition_penalty(1.15f);
  sampling.set_presence_penalty(0.3f);
  sampling.set_frequency_penalty(0.2f);
  return request;
}

v1::GenerateRequest WithLogprobs(v1::GenerateRequest request, int alternatives) {
  request.set_logprobs(alternatives);
  return request;
}

using KindOfRequest = std::pair<std::string, v1::GenerateRequest>;

std::vector<KindOfRequest> MixedRequests(int tokens) {
  std::vector<KindOfRequest> mixed;
  mixed.emplace_back("greedy", TextRequest("The harbour lay still, and", tokens));
  mixed.emplace_back("seeded", SeededRequest("Once upon a time", tokens, 7));
  mixed.emplace_back("penalties", Penalised(SeededRequest("In the beginning", tokens, 8)));
  mixed.emplace_back("greedy with penalties", Penalised(TextRequest("A list of birds:", tokens)));
  mixed.emplace_back("log-probabilities",
                     WithLogprobs(TextRequest("The capital of France is", tokens), 3));
  mixed.emplace_back("seeded log-probabilities",
                     WithLogprobs(Penalised(SeededRequest("Dear Sir or Madam,", tokens, 9)), 2));
  v1::GenerateRequest pair = SeededRequest("The recipe begins with", tokens, 10);
  pair.set_n(2);
  pair.mutable_sampling()->set_top_p(0.9f);
  mixed.emplace_back("n = 2", pair);
  v1::GenerateRequest prompts = SeededRequest("When the rain came,", tokens, 11);
  prompts.add_prompts()->set_text("Water boils at");
  prompts.mutable_sampling()->set_top_k(40);
  prompts.mutable_sampling()->set_min_p(0.02f);
  mixed.emplace_back("two prompts", prompts);
  v1::GenerateRequest echo = WithLogprobs(SeededRequest("Four score and seven", tokens, 12), 0);
  echo.set_echo(true);
  (*echo.mutable_sampling()->mutable_logit_bias())[107] = -5.0f;
  mixed.emplace_back("echo", echo);
  return mixed;
}

// A few bytes of the text, far behind its start, that no token and no earlier place has.
std::string StopStringFrom(std::string_view text) {
  for (size_t at = text.size() * 3 / 4; at + 8 < text.size(); ++at) {
    const std::string_view candidate = text.substr(at, 7);
    const bool plain = std::ranges::all_of(candidate, [](char c) { return c >= ' ' && c <= '~'; });
    if (plain && text.find(candidate) == at) return std::string(candidate);
  }
  return "";
}

// Asks all of them at once.
absl::StatusOr<std::vector<RecordedRequest>> Record(const Connection& connection,
                                                    const std::vector<KindOfRequest>& requests) {
  std::vector<std::optional<absl::StatusOr<Answer>>> answers(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { answers[i].emplace(Ask(connection, requests[i].second)); });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<RecordedRequest> recorded;
  for (size_t i = 0; i < requests.size(); ++i) {
    FACET_RETURN_IF_ERROR(Annotate(answers[i]->status(), requests[i].first));
    recorded.push_back({requests[i].first, requests[i].second, **std::move(answers[i])});
  }
  return recorded;
}

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

std::string TokenDifference(const v1::TokenOutput& expected, const v1::TokenOutput& actual) {
  if (expected.id() != actual.id()) {
    return fmt::format("id {} instead of {}", actual.id(), expected.id());
  }
  if (Bits(expected.logprob()) != Bits(actual.logprob())) {
    return fmt::format("log-probability {} instead of {}", actual.logprob(), expected.logprob());
  }
  if (expected.top_size() != actual.top_size()) {
    return fmt::format("{} alternatives instead of {}", actual.top_size(), expected.top_size());
  }
  for (int i = 0; i < expected.top_size(); ++i) {
    if (expected.top(i).id() != actual.top(i).id() ||
        Bits(expected.top(i).logprob()) != Bits(actual.top(i).logprob())) {
      return fmt::format("another alternative {}", i);
    }
  }
  return "";
}

std::string TokensDifference(const auto& expected, const auto& actual) {
  for (int i = 0; i < std::ssize(expected) && i < std::ssize(actual); ++i) {
    const std::string difference = TokenDifference(expected[i], actual[i]);
    if (!difference.empty()) return fmt::format("token {}: {}", i, difference);
  }
  if (std::ssize(expected) == std::ssize(actual)) return "";
  return fmt::format("{} tokens instead of {}", actual.size(), expected.size());
}

std::string FinishDifference(const v1::Finish& expected, const v1::Finish& actual) {
  v1::Finish a = expected, b = actual;
  for (v1::Finish* finish : {&a, &b}) {
    finish->clear_timings();
    finish->mutable_usage()->clear_cached_tokens();
  }
  if (a.SerializeAsString() == b.SerializeAsString()) return "";
  return fmt::format("finish {{{}}} instead of {{{}}}", b.ShortDebugString(), a.ShortDebugString());
}

std::string ChoiceDifference(const ChoiceState& expected, const ChoiceState& actual) {
  const std::string tokens = TokensDifference(expected.tokens, actual.tokens);
  if (!tokens.empty()) return tokens;
  if (expected.text != actual.text) {
    return fmt::format("text '{}' instead of '{}'", actual.text, expected.text);
  }
  if (expected.fingerprint != actual.fingerprint) return "another fingerprint";
  return FinishDifference(*expected.finish, *actual.finish);
}

}  // namespace

absl::StatusOr<Answer> Ask(const Connection& connection, const v1::GenerateRequest& request) {
  Answer answer(request.prompts_size(), request.has_n() ? request.n() : 1);
  FACET_RETURN_IF_ERROR(ResumingStream(connection, request, answer).Run([] {}));
  FACET_RETURN_IF_ERROR(answer.Outcome());
  return answer;
}

absl::StatusOr<std::vector<RecordedRequest>> RecordMixedRequests(const Connection& connection,
                                                                 int tokens) {
  FACET_ASSIGN_OR_RETURN(std::vector<RecordedRequest> recorded,
                         Record(connection, MixedRequests(tokens)));
  std::vector<KindOfRequest> stopping;  // the same again, ended by a stop string
  for (const RecordedRequest& whole : recorded) {
    if (whole.kind != "seeded" && whole.kind != "penalties") continue;
    v1::GenerateRequest request = whole.request;
    request.add_stop("no such text");
    request.add_stop(StopStringFrom(whole.answer.choice(0).text));
    stopping.push_back({whole.kind + ", stop string", std::move(request)});
  }
  FACET_ASSIGN_OR_RETURN(std::vector<RecordedRequest> stopped, Record(connection, stopping));
  for (RecordedRequest& record : stopped) {
    if (record.answer.choice(0).finish->reason() != v1::FINISH_REASON_STOP) {
      return Internal("{}: '{}' did not end the answer", record.kind, record.request.stop(1));
    }
    recorded.push_back(std::move(record));
  }
  return recorded;
}

std::string Difference(const Answer& expected, const Answer& actual) {
  for (int i = 0; i < expected.choices(); ++i) {
    const std::string difference = ChoiceDifference(expected.choice(i), actual.choice(i));
    if (!difference.empty()) return fmt::format("choice {}: {}", i, difference);
  }
  if (expected.echo().size() != actual.echo().size()) {
    return fmt::format("{} echoes instead of {}", actual.echo().size(), expected.echo().size());
  }
  for (size_t i = 0; i < expected.echo().size(); ++i) {
    const std::string difference =
        TokensDifference(expected.echo()[i].tokens(), actual.echo()[i].tokens());
    if (!difference.empty()) return fmt::format("echo {}: {}", i, difference);
    if (expected.echo()[i].text() != actual.echo()[i].text()) return fmt::format("echo {}", i);
  }
  return "";
}

}  // namespace facet::testing
