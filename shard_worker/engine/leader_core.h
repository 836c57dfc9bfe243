#ifndef FACET_SHARD_WORKER_ENGINE_LEADER_CORE_H_
#define FACET_SHARD_WORKER_ENGINE_LEADER_CORE_H_

// What the leader of a group decides between its routers' sessions and its engine, for one epoch:
// who is taken in, who hears what and when, how much more each router may send, when the group
// must prove itself, and when it has drained. Sans-IO: events and the time go in, step plans and
// news come out. Not thread-safe; the engine thread owns it, and the simulator drives it.
//
// The owner's loop: hand in events; while outstanding() < steps_max, ask Plan() and run what it
// gives; Complete() in that order; TakeNews() after each of these; look again at NextWake().

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "shard_worker/engine/cache_feed.h"
#include "shard_worker/engine/canary.h"
#include "shard_worker/engine/engine.h"

namespace facet {

// One router's session, as the owner numbers it: never used twice.
using SessionId = StrongId<struct SessionTag, uint64_t>;

struct LeaderCoreOptions {
  EngineOptions engine;
  CanaryOptions canary;
  uint64_t epoch = 0;  // told to routers
  bool allow_logits_digest = false;
  TimeUs drain = 30'000'000;      // for what runs when Drain() comes
  TimeUs keep_alive = 500'000;    // an idle group runs an empty plan this often
  TimeUs state_period = 400'000;  // a session that hears nothing else hears the state
  // A sequence's first token, its end and a refusal are told at once; the tokens between wait until
  // so long after the session's last message, so that those of short steps share one. 0: nothing
  // waits.
  TimeUs news_period = 0;
  // A message costs more with each sequence in it, here and at whoever reads it: from the fifth
  // sequence of a session on, each adds a quarter of the period, up to this.
  TimeUs news_period_max = 0;
  TimeUs recent = 1'000'000;   // a session that submitted within it competes for credit
  TimeUs frozen = 1'500'000;   // a step that does not move for so long: not ready
  int cache_links_max = 4096;  // of one message
};

// Why a sequence was not taken in.
enum class LeaderRefusal { kInvalid, kUnsupported, kQueueFull, kDraining };
inline constexpr int kLeaderRefusals = 4;
inline constexpr int kEngineFinishes = 5;

struct LeaderState {
  int running = 0;
  int waiting = 0;
  int64_t kv_tokens_used = 0;
  int64_t kv_tokens_total = 0;
  int64_t credit_tokens = 0;       // prompt tokens this session may still submit, ...
  int64_t submits_received = 0;    // ... those of its submits counted
  int64_t prompt_tokens_done = 0;  // of this epoch, canaries not counted
  int64_t output_tokens_done = 0;
  int64_t pending_prompt_tokens = 0;
  double prefill_tokens_per_s = 0;  // 0: unknown
  int block_tokens = 0;
  int slots = 0;  // sequences that run at once, at most
  uint64_t epoch = 0;
  bool draining = false;
};

// Something about one sequence, by the router's number.
struct SequenceNews {
  uint64_t number = 0;
  EngineDelta delta;     // unset with a refusal
  absl::Status refusal;  // not OK: it was never taken in
};

// One message to one session.
struct SessionNews {
  SessionId session;
  bool first = false;  // of the session: say also who the leader is
  std::vector<SequenceNews> sequences;
  LeaderState state;
  std::optional<CachePart> cache;
};

// For metrics.
struct LeaderStats {
  EngineStats engine;                                      // its counters include canaries
  int64_t prompt_tokens_done = 0, output_tokens_done = 0;  // canaries not counted
  std::array<int64_t, kLeaderRefusals> refusals = {};
  std::array<int64_t, kEngineFinishes> finishes = {};
  CanaryStats canary;
  int sessions = 0;
};

class LeaderCore {
 public:
  // `canary`: the answer of the process's first canary, from canary_answer() of an earlier epoch.
  LeaderCore(const LeaderCoreOptions& options, std::optional<CanaryAnswer> canary, TimeUs now);

  // --- Events. Unknown sessions are ignored: they may have been closed on this side.

  // The owner bounds how many there are. REQUIRES: the id is new.
  void Open(SessionId session);
  // Ends the session's sequences, whose last news has no reader. Repeating is harmless.
  void Close(SessionId session, TimeUs now);
  // `number`: the router's, unique among its running sequences; `request.id` is set here. A refusal
  // is news. InvalidArgument: the router breaks the protocol; the owner closes the session.
  absl::Status Submit(SessionId session, uint64_t number, EngineRequest request, TimeUs now);
  void Cancel(SessionId session, uint64_t number, TimeUs now);
  // No new sequences from now on.
  void Drain(TimeUs now);

  // --- Steps.

  // The next step, or nothing; an empty one where the group is kept alive.
  // REQUIRES: outstanding() < EngineOptions::steps_max.
  std::optional<StepPlan> Plan(TimeUs now);
  int outstanding() const { return static_cast<int>(steps_.size()); }
  // Answers the oldest outstanding step, an empty one too.
  void Complete(const StepResult& result, TimeUs now);
  // The oldest outstanding step is under way and has got further. Only for ready_until().
  void Moved(TimeUs now);

  // --- What comes of it.

  // At most one message per session, in the order of their ids.
  std::vector<SessionNews> TakeNews(TimeUs now);
  // Whether Plan() and Complete() have brought something, since the last TakeNews(), that it may
  // hand out now, or that NextWake() did not wait for. If not, the owner need not call it before
  // the NextWake() of that time.
  bool HasNews(TimeUs now) const;
  // Look again then at the latest: call Plan(), if it may be called, and TakeNews().
  TimeUs NextWake() const;
  // Drain() has come, and either nothing runs any more or the time is up.
  bool Drained(TimeUs now) const;
  // The group may be called ready until this time, if nothing is said meanwhile. Ready means that
  // it computes: a canary of this epoch was right, and since then either steps go forward or
  // canaries come back.
  TimeUs ready_until() const;
  // An error if the group computes wrong tokens: end the process.
  const absl::Status& verdict() const { return canary_.verdict(); }
  const std::optional<CanaryAnswer>& canary_answer() const { return canary_.expected(); }

  int context_tokens() const { return engine_.context_tokens(); }
  // Sequences of routers that have not ended.
  int sequences() const { return static_cast<int>(owners_.size()); }
  LeaderStats stats() const;
  // A sentence about the first broken invariant of the engine or of this class.
  absl::Status Check() const;

 private:
  struct Session {
    Session(int links_max, const std::vector<uint64_t>& cached) : cache(links_max, cached) {}
    std::map<uint64_t, SequenceId> sequences;  // by the router's number
    int64_t submits_received = 0;
    std::optional<TimeUs> last_submit;
    std::vector<SequenceNews> news;
    bool urgent = false;       // some of the news do not wait
    bool awaits_news = false;  // NextWake() is no later than when tokens that come would be due
    CacheFeed cache;
    // What was told last:
    std::optional<TimeUs> told;
    int64_t told_credit = 0;
    bool told_draining = false;
  };
  struct Owner {
    SessionId session;
    uint64_t number;
    bool begun = false;  // its first token is news
  };
  struct Step {
    TimeUs planned;
    bool empty;
    bool real;  // has tokens of others than the canary
  };

  absl::Status Accept(SessionId id, Session* session, uint64_t number, EngineRequest request,
                      TimeUs now);

  std::optional<TimeUs> CanaryDue() const;
  void StartCanary(TimeUs now);
  void CountPrefill(int64_t tokens, TimeUs duration);
  void Collect(TimeUs now);
  bool Competes(const Session& session, TimeUs now) const;
  int64_t Room(const EngineStats& stats) const;
  int64_t Share(bool competes, int competitors, int64_t room) const;
  LeaderState CommonState(const EngineStats& stats) const;
  bool Due(const Session& session, int64_t credit, TimeUs now) const;
  // Hands out what there is, without what all sessions hear.
  SessionNews Tell(Session* session, int64_t credit, TimeUs now) const;
  bool NewsDue(const Session& session, TimeUs now) const;
  TimeUs NewsPeriod(const Session& session) const;
  // When tokens that come now are due.
  TimeUs NewsDueAt(const Session& session) const;
  TimeUs StateDue(const Session& session) const;

  const LeaderCoreOptions options_;
  Engine engine_;
  Canary canary_;
  std::map<SessionId, Session> sessions_;         // ordered: news come out in order
  std::unordered_map<SequenceId, Owner> owners_;  // never iterated
  uint64_t next_sequence_ = 1;
  std::deque<Step> steps_;     // outstanding
  TimeUs last_asked_;          // Plan() was called
  TimeUs last_taken_ = 0;      // TakeNews() was called
  bool load_changed_ = false;  // since then: sequences were begun or ended, and so credits differ
  TimeUs last_moved_;          // a step was begun, got further or was completed
  TimeUs last_completed_ = 0;
  TimeUs last_step_us_ = 0;  // what the last step that was not empty took
  std::optional<TimeUs> drain_until_;
  // Prompt tokens and the time of the steps that computed them; old steps fade.
  double prefill_tokens_ = 0, prefill_us_ = 0;
  int64_t prompt_tokens_done_ = 0, output_tokens_done_ = 0;  // canaries not counted
  std::array<int64_t, kLeaderRefusals> refusals_ = {};
  std::array<int64_t, kEngineFinishes> finishes_ = {};
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_LEADER_CORE_H_
