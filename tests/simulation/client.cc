#include "tests/simulation/client.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "router/core/refusal.h"

namespace facet::sim {
namespace {

constexpr TimeUs kClientGrace = kSecond;  // beyond its deadline a client waits so long for the end
constexpr int kRefusalsMax = 6;           // then a client gives up

bool Same(const OutputToken& got, const ScoredToken& want, bool scored) {
  return got.id == want.id && (!scored || (got.logprob == want.logprob && got.top == want.top));
}

}  // namespace

Client::Client(Stage* stage, const Scenario& scenario, const RequestPlan& plan,
               const std::vector<RouterPort*>& routers)
    : stage_(stage),
      scenario_(scenario),
      plan_(plan),
      routers_(routers),
      dice_(scenario.seed, "client", static_cast<uint64_t>(plan.number)),
      retry_(&stage->queue, [this] { Connect(); }),
      cancel_(&stage->queue, [this] { Cancel(); }),
      expiry_(&stage->queue, [this] { Expire(); }),
      choices_(plan.prompts.size() * static_cast<size_t>(plan.n)),
      scores_(plan.prompts.size()) {}

void Client::Start() {
  const TimeUs now = stage_->now();
  ++stage_->sights.requests;
  stage_->sights.choices += std::ssize(choices_);
  if (plan_.timeout != kNever) {
    deadline_ = now + plan_.timeout;
    expiry_.Set(deadline_ + kClientGrace);
  }
  if (plan_.cancel_after != kNever) cancel_.Set(now + plan_.cancel_after);
  Connect();
}

void Client::Connect() {
  if (ended_) return;
  if (deadline_ <= stage_->now()) return Expire();
  wire_ = std::make_shared<Wire>(stage_, dice_.Next(), scenario_.client_wire);
  const Wire* key = wire_.get();
  wire_->OnLost(WireEnd::kNear, [this, key] { OnLost(key); });
  RouterPort* router = dice_.Of(routers_);
  if (calls_++ > 0) ++stage_->sights.resumes;
  wire_->Send(WireEnd::kNear, [this, router, wire = wire_, call = MakeCall(), number = calls_] {
    overtaken_ = overtaken_ || (call.takes_over && number < calls_);
    router->Take(wire, call, [this, key = wire.get(), router, wire](const Reply& reply) {
      OnReply(key, reply);
      // A slow reader lets the next one come once it has read this one.
      if (plan_.read_delay == 0 || plan_.read_delay == kNever) return;
      stage_->queue.After(plan_.read_delay, [wire, router] {
        wire->Send(WireEnd::kNear, [wire, router] { router->Acknowledge(wire.get()); });
      });
    });
  });
}

Call Client::MakeCall() const {
  Call call;
  call.plan = &plan_;
  call.client_id = fmt::format("r{}", plan_.number);
  if (deadline_ != kNever) call.remaining = deadline_ - stage_->now();
  call.takes_over = may_take_over_;
  call.prompt_logprobs = plan_.prompt_logprobs;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    if (choice.tokens.empty() && !choice.end) continue;
    call.resume.push_back({.prompt_index = static_cast<int>(i) / plan_.n,
                           .choice_index = static_cast<int>(i) % plan_.n,
                           .tokens = choice.tokens,
                           .fingerprint = choice.fingerprint,
                           .finished = choice.end.has_value()});
  }
  return call;
}

void Client::Break() {
  if (wire_ != nullptr) wire_->Break();
}

void Client::OnLost(const Wire* wire) {
  if (ended_ || wire_.get() != wire) return;
  wire_.reset();
  stage_->Note("client {} lost its stream", plan_.number);
  may_take_over_ = true;
  Retry(dice_.In(10, 400) * kMs);
}

void Client::Retry(TimeUs delay) {
  // What a prompt's log-probabilities lack is asked for anew, from the first on.
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (scores_[i].size() + 1 < plan_.prompts[i].size()) scores_[i].clear();
  }
  retry_.Set(stage_->now() + delay);
}

void Client::Cancel() {
  if (ended_) return;
  cancelled_ = true;
  stage_->Note("client {} cancels", plan_.number);
  if (wire_ != nullptr) std::exchange(wire_, nullptr)->Close(WireEnd::kNear);
  if (!plan_.asks_again) {
    ++stage_->sights.cancelled;
    return End("cancelled");
  }
  choices_.assign(choices_.size(), Choice());
  scores_.assign(scores_.size(), {});
  may_take_over_ = dice_.Percent(50);
  // The router may hear of the cancel only after the new call.
  retry_.Set(stage_->now() + dice_.Low(0, 2 * scenario_.client_wire.most));
}

void Client::Expire() {
  if (ended_) return;
  if (wire_ != nullptr) std::exchange(wire_, nullptr)->Close(WireEnd::kNear);
  ++stage_->sights.expired;
  End("expired");
}

void Client::End(const char* how) {
  ended_ = true;
  how_ = how;
  stage_->Note("client {} has ended: {}", plan_.number, how);
}

void Client::OnReply(const Wire* wire, const Reply& reply) {
  if (ended_ || wire_.get() != wire) return;
  if (!reply.status.ok()) return OnRefusal(reply.status);
  for (const ChoiceDelta& delta : reply.deltas) {
    TakeDelta(delta);
    if (!stage_->failure.empty() || wire_.get() != wire) return;
  }
  const bool all = std::all_of(choices_.begin(), choices_.end(),
                               [](const Choice& choice) { return choice.end.has_value(); });
  stage_->Require(all == reply.done, "client {}: the router says {}, but {} of its choices ended",
                  plan_.number, reply.done ? "all is done" : "more follows",
                  std::count_if(choices_.begin(), choices_.end(),
                                [](const Choice& choice) { return choice.end.has_value(); }));
  if (!all) return;
  std::exchange(wire_, nullptr)->Close(WireEnd::kNear);
  for (size_t i = 0; i < scores_.size(); ++i) {
    CheckScores(static_cast<int>(i), choices_[i * static_cast<size_t>(plan_.n)].fingerprint);
  }
  End("answered");
}

void Client::OnRefusal(const absl::Status& status) {
  wire_.reset();
  stage_->Note("client {} is refused: {}", plan_.number, MessageOf(status));
  const std::optional<TimeUs> after = RetryAfter(status);
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      stage_->Require(deadline_ <= stage_->now(), "client {}: refused for a deadline {} us ahead",
                      plan_.number, deadline_ - stage_->now());
      return Expire();
    case absl::StatusCode::kAlreadyExists:
      // Only the cancelled call can hold the name, for as long as its end is on the way.
      stage_->Require(cancelled_ || calls_ > 1, "client {}: its name is taken", plan_.number);
      return Retry(dice_.In(10, 200) * kMs);
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      stage_->Require(after.has_value() && *after > 0, "client {}: no retry delay with: {}",
                      plan_.number, MessageOf(status));
      if (!after.has_value()) return;
      if (++refusals_ < kRefusalsMax) return Retry(*after);
      ++stage_->sights.refused;
      return End("refused");
    case absl::StatusCode::kAborted:  // by the router, of a client that does not read
      stage_->Require(plan_.read_delay > 0, "client {}: dropped, and reads", plan_.number);
      ++stage_->sights.dropped_readers;
      return End("dropped");
    default:
      stage_->Fail("client {}: refused with {}", plan_.number, status.ToString());
  }
}

size_t Client::Index(const ChoiceDelta& delta) const {
  return static_cast<size_t>(delta.prompt_index) * static_cast<size_t>(plan_.n) +
         static_cast<size_t>(delta.choice_index);
}

std::string Client::Name(const ChoiceDelta& delta) const {
  return fmt::format("client {} choice {}.{}", plan_.number, delta.prompt_index,
                     delta.choice_index);
}

void Client::TakeDelta(const ChoiceDelta& delta) {
  if (!stage_->Require(Index(delta) < choices_.size(), "{}: not asked for", Name(delta))) return;
  Choice& choice = choices_[Index(delta)];
  if (!stage_->Require(!choice.end, "{}: news after its end", Name(delta))) return;
  TakeFingerprint(delta, &choice);
  TakePrompt(delta);
  TakeTokens(delta, &choice);
  if (delta.end && stage_->failure.empty()) TakeEnd(delta, &choice);
}

void Client::TakeFingerprint(const ChoiceDelta& delta, Choice* choice) {
  if (delta.fingerprint.empty() || delta.fingerprint == choice->fingerprint) return;
  stage_->Require(choice->tokens.empty(), "{}: {} went on with what {} began", Name(delta),
                  delta.fingerprint, choice->fingerprint);
  choice->fingerprint = delta.fingerprint;
  choice->answer.reset();
}

const Answer& Client::AnswerFor(const ChoiceDelta& delta, Choice* choice) {
  if (!choice->answer) {
    choice->answer =
        AnswerOf(scenario_, plan_, delta.prompt_index, delta.choice_index, choice->fingerprint);
  }
  return *choice->answer;
}

void Client::TakeTokens(const ChoiceDelta& delta, Choice* choice) {
  if (!stage_->Require(delta.offset == std::ssize(choice->tokens),
                       "{}: tokens from offset {}, but {} were received", Name(delta), delta.offset,
                       choice->tokens.size())) {
    return;
  }
  if (delta.tokens.empty()) return;
  if (!stage_->Require(!choice->fingerprint.empty(), "{}: tokens of nobody", Name(delta))) return;
  const Answer& answer = AnswerFor(delta, choice);
  stage_->Note("{}: {} tokens from {} on, the first is {}", Name(delta), delta.tokens.size(),
               delta.offset, delta.tokens.front().id);
  for (const OutputToken& token : delta.tokens) {
    const size_t at = choice->tokens.size();
    if (!stage_->Require(at < answer.tokens.size(), "{}: token {} after its {} tokens", Name(delta),
                         token.id, at)) {
      return;
    }
    if (!stage_->Require(Same(token, answer.tokens[at], plan_.logprobs >= 0),
                         "{}: token {} at offset {}, the oracle says {}", Name(delta), token.id, at,
                         answer.tokens[at].id)) {
      return;
    }
    choice->tokens.push_back(token.id);
    ++stage_->sights.tokens;
  }
}

void Client::TakePrompt(const ChoiceDelta& delta) {
  if (delta.prompt.empty()) return;
  std::vector<OutputToken>& scores = scores_[static_cast<size_t>(delta.prompt_index)];
  stage_->Require(plan_.prompt_logprobs && delta.choice_index == 0,
                  "{}: log-probabilities of a prompt that nobody asked for", Name(delta));
  // A router whose client has them all still sends them after a resumption.
  const size_t whole = plan_.prompts[static_cast<size_t>(delta.prompt_index)].size() - 1;
  if (scores.size() == whole && delta.prompt_offset == 1) scores.clear();
  stage_->Require(delta.prompt_offset == std::ssize(scores) + 1,
                  "{}: log-probabilities from position {}, but {} were received", Name(delta),
                  delta.prompt_offset, scores.size());
  scores.insert(scores.end(), delta.prompt.begin(), delta.prompt.end());
}

void Client::TakeEnd(const ChoiceDelta& delta, Choice* choice) {
  const EndReason reason = delta.end->reason;
  choice->end = reason;
  const auto prompt = std::ssize(plan_.prompts[static_cast<size_t>(delta.prompt_index)]);
  stage_->Require(delta.end->cached_tokens >= 0 && delta.end->cached_tokens <= prompt,
                  "{}: {} of {} prompt tokens cached", Name(delta), delta.end->cached_tokens,
                  prompt);
  stage_->sights.cached_tokens += delta.end->cached_tokens;
  switch (reason) {
    case EndReason::kStop:
    case EndReason::kLength:
      return CheckWhole(delta, *choice);
    case EndReason::kDeadline:
      ++stage_->sights.expired;
      stage_->Require(deadline_ <= stage_->now(), "{}: its deadline is {} us ahead", Name(delta),
                      deadline_ - stage_->now());
      return;
    case EndReason::kCancelled:
      // Who cancels, or takes over, does not hear of it. But a call that was given up on its way
      // may come after the one that followed it, and take its place.
      if (std::exchange(overtaken_, false)) {
        choice->end.reset();
        std::exchange(wire_, nullptr)->Close(WireEnd::kNear);
        may_take_over_ = true;
        return Retry(dice_.In(10, 400) * kMs);
      }
      stage_->Fail("{}: cancelled, but not by its client", Name(delta));
      return;
    case EndReason::kError:
      return CheckError(delta, *choice);
  }
}

void Client::CheckWhole(const ChoiceDelta& delta, const Choice& choice) {
  ++stage_->sights.whole;
  stage_->Require(delta.end->status.ok(), "{}: ended well with {}", Name(delta),
                  delta.end->status.ToString());
  if (plan_.max_tokens == 0) {  // its one sampled token was not asked for
    stage_->Require(choice.tokens.empty() && delta.end->reason == EndReason::kLength,
                    "{}: {} tokens, none were asked for", Name(delta), choice.tokens.size());
    return;
  }
  if (!stage_->Require(choice.answer.has_value(), "{}: ended without a token", Name(delta))) return;
  const Answer& answer = *choice.answer;
  stage_->Require(
      choice.tokens.size() == answer.tokens.size() && delta.end->reason == answer.reason,
      "{}: ended with reason {} after {} tokens, the oracle says reason {} after {}", Name(delta),
      static_cast<int>(delta.end->reason), choice.tokens.size(), static_cast<int>(answer.reason),
      answer.tokens.size());
}

// Whether groups were lost or absent for it is for the router's side to judge.
void Client::CheckError(const ChoiceDelta& delta, const Choice& choice) {
  const absl::Status& status = delta.end->status;
  const std::string text = status.ToString();
  stage_->Note("{}: {}", Name(delta), text);
  if (absl::IsUnavailable(status)) {
    ++stage_->sights.unavailable;
    return;
  }
  if (absl::IsResourceExhausted(status)) {
    ++stage_->sights.shed;
    return;
  }
  if (absl::IsInvalidArgument(status)) {
    ++stage_->sights.invalid;
    const int context = scenario_.groups.front().leader.engine.context_tokens;
    const bool too_long =
        std::any_of(plan_.prompts.begin(), plan_.prompts.end(),
                    [&](const auto& prompt) { return std::ssize(prompt) >= context; });
    stage_->Require(too_long, "{}: every prompt fits {} tokens: {}", Name(delta), context, text);
    return;
  }
  if (!stage_->Require(absl::IsInternal(status), "{}: ended with {}", Name(delta), text)) return;
  ++stage_->sights.poisoned;
  if (status.message().find("finite") == std::string::npos) return;
  ++stage_->sights.poison_tokens;
  const auto wrong = [&](const GroupPlan& group) {
    const Answer answer =
        AnswerOf(scenario_, plan_, delta.prompt_index, delta.choice_index,
                 choice.fingerprint.empty() ? group.fingerprint : choice.fingerprint);
    return answer.reason == EndReason::kError && answer.tokens.size() == choice.tokens.size();
  };
  stage_->Require(std::any_of(scenario_.groups.begin(), scenario_.groups.end(), wrong),
                  "{}: the poison token was not met after {} tokens", Name(delta),
                  choice.tokens.size());
}

void Client::CheckScores(int prompt_index, const std::string& fingerprint) {
  const std::vector<OutputToken>& scores = scores_[static_cast<size_t>(prompt_index)];
  const Choice& first = choices_[static_cast<size_t>(prompt_index) * static_cast<size_t>(plan_.n)];
  const bool whole = first.end == EndReason::kStop || first.end == EndReason::kLength;
  if (!plan_.prompt_logprobs || !whole) return;
  const auto matches = [&](const GroupPlan& group) {
    if (!fingerprint.empty() && group.fingerprint != fingerprint) return false;
    const std::vector<ScoredToken> want =
        PromptScores(scenario_, plan_, prompt_index, group.fingerprint);
    return std::equal(scores.begin(), scores.end(), want.begin(), want.end(),
                      [](const OutputToken& a, const ScoredToken& b) { return Same(a, b, true); });
  };
  stage_->Require(std::any_of(scenario_.groups.begin(), scenario_.groups.end(), matches),
                  "client {} prompt {}: {} log-probabilities are not the oracle's", plan_.number,
                  prompt_index, scores.size());
}

std::string Client::Describe() const {
  std::string text = fmt::format("client {} ({}{})", plan_.number, ended_ ? how_ : "not ended",
                                 wire_ != nullptr ? ", waits for its router" : "");
  for (const Choice& choice : choices_) {
    text += fmt::format(" [{} tokens{}]", choice.tokens.size(), choice.end ? ", ended" : "");
  }
  return text;
}

}  // namespace facet::sim
