#ifndef FACET_TESTS_SIMULATION_ROUTER_PROCESS_H_
#define FACET_TESTS_SIMULATION_ROUTER_PROCESS_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulation/dice.h"
#include "tests/simulation/fairness_auditor.h"
#include "tests/simulation/messages.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/stage.h"
#include "tests/simulation/wire.h"

namespace facet::sim {

// One life of a router process: the production core, and around it what the router's service does
// with sessions and streams. Judges what only the router's side can know: why a request may be
// refused or fail, and the core's own invariants after every event.
class RouterProcess {
 public:
  RouterProcess(Stage* stage, const Scenario& scenario, int number, int life,
                const std::vector<LeaderPort*>& leaders);

  void Take(std::shared_ptr<Wire> wire, Call call, RouterPort::Sink sink);
  void Acknowledge(const Wire* wire);
  // All connections end as a dead process's do. The object may go after that.
  void Die();
  // The connection to one leader is lost, or nothing passes for a while.
  void BreakSession(size_t group);
  void HoldSession(size_t group, TimeUs until);
  // Nothing is left of any request.
  void CheckIdle();
  // The leader of `group` has exactly these prefixes, and said so long ago.
  void CheckLinks(size_t group, const std::set<uint64_t>& links);

 private:
  struct Session {
    GroupId id;
    std::shared_ptr<Wire> wire;  // null: not connected
    bool up = false;             // the leader has introduced itself
    bool draining = false;
    std::string fingerprint;
    TimeUs backoff = 0;
    TimeUs opened_at = 0;
    TimeUs held_until = 0;     // of a partition
    std::set<uint64_t> links;  // of cached prefixes, as the session's news have them
    std::unique_ptr<Alarm> connect, silence;
  };
  // What a stream's service side knows of one choice.
  struct Choice {
    std::optional<TokenId> last_token;  // for stop pairs
    bool stopped = false;               // its text is complete
    int cut = 0;                        // tokens behind the stop that came with it
    std::string fingerprint;            // with its tokens
    std::optional<GroupId> group;       // that it was submitted to last
    int deaths = 0;                     // of its groups, without a token between
  };
  struct Stream {
    RequestId id;
    std::shared_ptr<Wire> wire;
    Call call;
    RouterPort::Sink sink;
    TimeUs deadline = kNever;
    std::vector<Choice> choices;  // by prompt, then choice
    Reply outbox;
    int64_t outbox_tokens = 0;
    bool writing = false;  // a slow reader has not read the last reply
    bool paused = false;
    bool ran = false;         // some of it
    bool was_paused = false;  // may come back to a full queue, like what has run
    std::unique_ptr<Alarm> patience;
  };

  // After every event: what the core wants is done, and its invariants are looked at.
  void Settle();
  // Does what the core wants. After a call of the core that may place sequences.
  void Act();
  void SendToLeaders(CoreActions& actions);
  void Deliver(ChoiceDelta delta);
  bool MeetsStop(const RequestPlan& plan, Choice& choice, ChoiceDelta* delta);
  void Write(Stream& stream);
  void DropReader(RequestId id);
  void Forget(RequestId id);
  void StopResumed(Stream& stream);
  void Refuse(Wire& wire, const RouterPort::Sink& sink, const absl::Status& status);

  void Connect(size_t group);
  void OnMessage(size_t group, const FromLeader& message);
  void TakeCacheNews(Session& session, const CachePart& part);
  void OnSilence(size_t group);
  void OnSessionEnd(size_t group);
  void LeaveSession(size_t group);

  void CheckEnd(const Stream& stream, const Choice& choice, const ChoiceDelta& delta);
  void CheckUnavailable(const Choice& choice, const absl::Status& status, const std::string& what);
  void CheckBounds();
  // Since when no group that takes requests has the fingerprint ("": any); kNever if one has.
  TimeUs AbsentSince(const std::string& fingerprint) const;
  void NotePresence();
  Stream* StreamOf(const Wire* wire);
  void NotePlacement(const SubmitAction& submit);
  void NoteDeath(GroupId group);

  Stage* const stage_;
  const Scenario& scenario_;
  const std::string name_;
  const std::vector<LeaderPort*>& leaders_;
  const int number_;
  Dice dice_;
  RouterCore core_;
  FairnessAuditor fairness_;
  Alarm wake_;
  std::vector<Session> sessions_;
  std::map<RequestId, Stream> streams_;
  std::map<std::string, TimeUs> absent_since_;  // by fingerprint; "": of all
  // Of every choice that is alive here, by the seed of its sequence.
  std::map<uint64_t, std::pair<RequestId, size_t>> places_;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_ROUTER_PROCESS_H_
