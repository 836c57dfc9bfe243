#ifndef FACET_CLIENT_ANSWER_H_
#define FACET_CLIENT_ANSWER_H_

#include <chrono>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "facet/v1/inference.grpc.pb.h"

namespace facet {

using ClientClock = std::chrono::steady_clock;

// One choice, as far as it has come.
struct ChoiceState {
  std::string text;
  std::vector<v1::TokenOutput> tokens;
  std::string fingerprint;  // of what computes it, once tokens have come
  std::optional<v1::Finish> finish;
};

// An answer, put together from its stream, and when its parts came. A stream that goes on where
// another one broke off continues the same answer.
class Answer {
 public:
  // For `prompts` x `n` choices.
  Answer(int prompts, int n);

  // Takes the next message. Internal if it contradicts what came before: tokens lost or repeated,
  // a choice nobody asked for, something after a choice's end, a stream that goes on with another
  // seed or other prompt tokens.
  absl::Status Add(const v1::GenerateResponse& response, ClientClock::time_point now);

  int choices() const { return static_cast<int>(choices_.size()); }
  int n() const { return n_; }
  // By prompt, then choice.
  const ChoiceState& choice(int index) const { return choices_[index]; }
  const std::string& request_id() const { return request_id_; }
  const std::vector<v1::PromptEcho>& echo() const { return echo_; }
  int tokens() const { return tokens_; }  // of all choices
  bool begun() const { return begun_; }   // something has come
  bool complete() const;                  // every choice has its end
  const std::optional<v1::StreamStart>& start() const { return start_; }
  int resumptions() const { return resumptions_; }  // streams after the first one
  std::optional<ClientClock::time_point> first_token_at() const { return first_token_at_; }
  ClientClock::time_point last_token_at() const { return last_token_at_; }

  // OK if every choice ended by itself; else how the first unlucky one ended.
  absl::Status Outcome() const;

 private:
  absl::Status AddStart(const v1::StreamStart& start);
  absl::Status AddDelta(const v1::Delta& delta, ClientClock::time_point now);

  const int n_;
  std::vector<ChoiceState> choices_;
  std::string request_id_;
  std::vector<v1::PromptEcho> echo_;
  int tokens_ = 0;
  bool begun_ = false;
  std::optional<v1::StreamStart> start_;
  int resumptions_ = 0;
  std::optional<ClientClock::time_point> first_token_at_;
  ClientClock::time_point last_token_at_;
};

// "stop", "length", "cancelled", "deadline", "error".
std::string_view FinishName(v1::FinishReason reason);

// "31 tokens, 95.2 tokens/s, first after 0.042 s (prompt 12 tokens, 0 cached); stop; seed 7".
std::string DescribeRates(const Answer& answer, ClientClock::time_point sent);

// The whole answer as one JSON object, one line.
std::string ToJson(const Answer& answer);

}  // namespace facet

#endif  // FACET_CLIENT_ANSWER_H_
