#ifndef FACET_ROUTER_SERVICE_GENERATION_H_
#define FACET_ROUTER_SERVICE_GENERATION_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "facet/v1/inference.pb.h"
#include "router/core/request.h"
#include "router/service/choice_text.h"
#include "router/service/metrics.h"
#include "router/service/request_parser.h"
#include "router/service/response_sink.h"
#include "router/service/served_model.h"

namespace facet {

// One request on its way: turns what the core says of its choices into the client's messages, with
// text. Everything but the constructor runs on the core's thread. The model and the metrics must
// outlive it.
class Generation {
 public:
  Generation(ParsedRequest parsed, TimeUs arrived_at, const ServedModel& model,
             RouterMetrics& metrics, std::shared_ptr<ResponseSink> sink);

  // What the core gets. Once.
  RouterRequest TakeRequest() { return std::move(parsed_.core); }
  ResponseSink& sink() { return *sink_; }

  // The core has refused the request.
  void Refuse(const absl::Status& status, TimeUs now);
  // The router lets go of the request: its stream ends with `status`, for its client to resume
  // elsewhere.
  void Abandon(const absl::Status& status, TimeUs now) { Refuse(status, now); }

  // What the core should do after a delta.
  struct Advice {
    bool stop = false;   // a stop string has ended the choice
    bool pause = false;  // the client reads too slowly
    bool drop = false;   // the answer cannot be delivered: cancel the request
    bool flush = false;  // something was written: Flush() when nothing more follows at once
  };
  // The core has accepted the request: sends the first message, with all that a client needs to
  // resume the stream, and what a resumed choice still lacked. Once, before any OnDelta().
  Advice Begin();
  // After a delta with request_done the call has been finished.
  Advice OnDelta(ChoiceDelta delta, TimeUs now);
  // Sends what was written since the last time, in one message.
  void Flush();
  // Every choice had ended before this stream began: finishes the call.
  void OnDone(TimeUs now) { Finish(now); }

 private:
  struct Choice {
    ChoiceText text;
    int tokens = 0;  // of the answer so far
    bool stopped = false;
  };
  struct Prompt {
    std::vector<TokenId> tokens;      // kept for the echo
    std::vector<OutputToken> scored;  // log-probabilities from position 1 on
    bool echo_due = false;
    std::vector<v1::Delta> held;  // deltas that wait for the echo
    int tokens_count = 0;
  };

  void MakeChoices();
  // What Begin() sends.
  v1::GenerateResponse MakeStart(const std::vector<ResumedChoice>& resumed) const;
  v1::Delta MakeResumedDelta(const ResumedChoice& resumed) const;
  v1::Delta MakeDelta(const ChoiceDelta& delta, Choice& choice);
  v1::Finish MakeFinish(const ChoiceEnd& end, const ChoiceText& text, int tokens,
                        int prompt_tokens) const;
  v1::PromptEcho MakeEcho(int prompt_index, const Prompt& prompt) const;
  v1::TokenOutput MakeToken(const OutputToken& token) const;
  // The parts of the answer that may go now.
  v1::GenerateResponse Assemble(int prompt_index, v1::Delta delta, bool choice_ended);
  // Hands `part` to the sink; sets `pause` or `drop`.
  void Send(v1::GenerateResponse part, Advice& advice);
  void NoteEnd(const ChoiceEnd& end, int tokens);
  void Finish(TimeUs now);

  ParsedRequest parsed_;
  const std::string client_id_;
  const uint64_t seed_;
  const int n_;
  const bool prompt_logprobs_;
  const bool resumed_;  // it goes on with a stream that broke off
  const TimeUs arrived_at_;
  const ServedModel& model_;
  RouterMetrics& metrics_;
  const std::shared_ptr<ResponseSink> sink_;
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;  // by prompt, then choice
  v1::GenerateResponse start_;   // until Begin()
  bool first_token_;             // it has yet to come, and its time counts
  bool dropped_ = false;         // nothing more is written
  bool unflushed_ = false;       // something was written since the last Flush()
  int64_t held_bytes_ = 0;
  absl::Status status_;  // of the first choice that failed
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_GENERATION_H_
