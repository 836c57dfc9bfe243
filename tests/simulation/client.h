#ifndef FACET_TESTS_SIMULATION_CLIENT_H_
#define FACET_TESTS_SIMULATION_CLIENT_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulation/dice.h"
#include "tests/simulation/messages.h"
#include "tests/simulation/oracle.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/stage.h"
#include "tests/simulation/wire.h"

namespace facet::sim {

// Asks one request and judges the answer: every token against the oracle, offsets without a gap or
// a repeat, each choice ended once and for a reason that its circumstances allow. When its stream
// breaks off it goes on at some router from what it has, as the command-line client does.
class Client {
 public:
  Client(Stage* stage, const Scenario& scenario, const RequestPlan& plan,
         const std::vector<RouterPort*>& routers);

  void Start();
  // The client's connection is lost, if it has one.
  void Break();
  bool ended() const { return ended_; }
  bool connected() const { return wire_ != nullptr; }
  const RequestPlan& plan() const { return plan_; }
  std::string Describe() const;

 private:
  struct Choice {
    std::string fingerprint;       // of what computed the tokens
    std::optional<Answer> answer;  // what it must be
    std::vector<TokenId> tokens;
    std::optional<EndReason> end;
  };

  void Connect();
  Call MakeCall() const;
  void OnReply(const Wire* wire, const Reply& reply);
  void OnLost(const Wire* wire);
  void OnRefusal(const absl::Status& status);
  void Retry(TimeUs delay);
  void Cancel();
  void Expire();
  void End(const char* how);

  void TakeDelta(const ChoiceDelta& delta);
  void TakeFingerprint(const ChoiceDelta& delta, Choice* choice);
  void TakeTokens(const ChoiceDelta& delta, Choice* choice);
  void TakePrompt(const ChoiceDelta& delta);
  void TakeEnd(const ChoiceDelta& delta, Choice* choice);
  void CheckWhole(const ChoiceDelta& delta, const Choice& choice);
  void CheckError(const ChoiceDelta& delta, const Choice& choice);
  void CheckScores(int prompt_index, const std::string& fingerprint);
  const Answer& AnswerFor(const ChoiceDelta& delta, Choice* choice);
  std::string Name(const ChoiceDelta& delta) const;
  size_t Index(const ChoiceDelta& delta) const;

  Stage* const stage_;
  const Scenario& scenario_;
  const RequestPlan& plan_;
  const std::vector<RouterPort*>& routers_;
  Dice dice_;
  Alarm retry_, cancel_, expiry_;

  std::vector<Choice> choices_;                   // by prompt, then choice
  std::vector<std::vector<OutputToken>> scores_;  // by prompt
  std::shared_ptr<Wire> wire_;                    // of the call under way
  TimeUs deadline_ = kNever;
  int calls_ = 0;
  int refusals_ = 0;
  bool cancelled_ = false;  // once; what was asked before it is forgotten
  bool overtaken_ = false;  // a call arrived after a later one, and may have taken its place
  bool may_take_over_ = false;
  bool ended_ = false;
  const char* how_ = "";
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_CLIENT_H_
