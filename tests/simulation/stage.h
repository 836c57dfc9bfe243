#ifndef FACET_TESTS_SIMULATION_STAGE_H_
#define FACET_TESTS_SIMULATION_STAGE_H_

// What all actors of one run share: virtual time, the event queue, the trace and the verdict.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/core/request.h"

namespace facet::sim {

// TimeUs: virtual microseconds since the run began.
inline constexpr TimeUs kMs = 1000;
inline constexpr TimeUs kSecond = 1000 * kMs;

// Events in the order of (time, when they were posted).
class EventQueue {
 public:
  using Action = std::function<void()>;

  TimeUs now() const { return now_; }
  int64_t done() const { return done_; }

  void At(TimeUs time, Action action) {
    heap_.push_back({std::max(time, now_), posted_++, std::move(action)});
    std::push_heap(heap_.begin(), heap_.end(), Later);
  }
  void After(TimeUs delay, Action action) { At(now_ + delay, std::move(action)); }
  // False: there is none before `end`.
  bool RunNext(TimeUs end) {
    if (heap_.empty() || heap_.front().time >= end) return false;
    std::pop_heap(heap_.begin(), heap_.end(), Later);
    const Event event = std::move(heap_.back());
    heap_.pop_back();
    now_ = event.time;
    ++done_;
    event.action();
    return true;
  }

 private:
  struct Event {
    TimeUs time;
    uint64_t number;
    Action action;
  };
  static bool Later(const Event& a, const Event& b) {
    return a.time != b.time ? a.time > b.time : a.number > b.number;
  }

  std::vector<Event> heap_;
  TimeUs now_ = 0;
  uint64_t posted_ = 0;
  int64_t done_ = 0;
};

// Rings once at the time that was set last. Silent after its death.
class Alarm {
 public:
  Alarm(EventQueue* queue, std::function<void()> ring)
      : queue_(queue), state_(std::make_shared<State>(State{std::move(ring)})) {}

  void Set(TimeUs at) {
    state_->wanted = at;
    if (at < state_->posted) Post(queue_, state_);
  }

 private:
  struct State {
    std::function<void()> ring;
    TimeUs wanted = kNever;
    TimeUs posted = kNever;  // the earliest event under way
  };
  static void Post(EventQueue* queue, const std::shared_ptr<State>& state) {
    state->posted = state->wanted;
    queue->At(state->wanted, [queue, weak = std::weak_ptr<State>(state)] {
      const std::shared_ptr<State> state = weak.lock();
      if (state == nullptr || queue->now() < state->posted) return;
      state->posted = kNever;
      if (state->wanted > queue->now()) {
        if (state->wanted != kNever) Post(queue, state);
        return;
      }
      state->wanted = kNever;
      state->ring();
    });
  }

  EventQueue* queue_;
  std::shared_ptr<State> state_;
};

// Every line counts in the hash, whether it is printed or not: two runs of a seed that print the
// same have the same hash.
class Trace {
 public:
  explicit Trace(bool print) : print_(print) {}

  template <typename... Args>
  void Add(TimeUs now, fmt::format_string<Args...> format, Args&&... args) {
    line_.clear();
    fmt::format_to(std::back_inserter(line_), "{:>11.3f}  ", static_cast<double>(now) / kMs);
    fmt::format_to(std::back_inserter(line_), format, std::forward<Args>(args)...);
    Finish();
  }
  uint64_t hash() const { return hash_; }

 private:
  void Finish();

  const bool print_;
  uint64_t hash_ = 0;
  fmt::memory_buffer line_;
};

// How often a run met what it is there for; the test demands that a thousand runs meet all of it.
struct Sights {
  int64_t requests = 0, choices = 0, tokens = 0;
  int64_t whole = 0;  // choices that ended with all their tokens
  int64_t cancelled = 0, expired = 0, refused = 0, poisoned = 0, unavailable = 0, invalid = 0;
  int64_t resumes = 0;     // streams that clients continued elsewhere
  int64_t migrations = 0;  // sequences that routers continued elsewhere
  int64_t preemptions = 0, cached_tokens = 0, pauses = 0, dropped_readers = 0;
  int64_t router_crashes = 0, leader_crashes = 0, rank_deaths = 0, hangs = 0, slow_ranks = 0;
  int64_t breaks = 0, partitions = 0, drains = 0, poison_tokens = 0, epochs = 0;
  int64_t overlapped_steps = 0, steps = 0, takeovers = 0, fair_pairs = 0, stops = 0, shed = 0,
          unretried = 0, mirrors = 0;
  int64_t accepted_tokens = 0, rejected_tokens = 0;  // of those that speculation proposed
  void Add(const Sights& other);
  std::string Text() const;
  // The names of those that are 0.
  std::string Missing() const;
};

struct Stage {
  explicit Stage(bool print) : trace(print) {}

  // The first broken invariant of the run; the run ends with it.
  template <typename... Args>
  void Fail(fmt::format_string<Args...> format, Args&&... args) {
    if (failure.empty()) failure = fmt::format(format, std::forward<Args>(args)...);
  }
  template <typename... Args>
  bool Require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
    if (!condition) Fail(format, std::forward<Args>(args)...);
    return condition;
  }
  template <typename... Args>
  void Note(fmt::format_string<Args...> format, Args&&... args) {
    trace.Add(queue.now(), format, std::forward<Args>(args)...);
  }
  TimeUs now() const { return queue.now(); }

  EventQueue queue;
  Trace trace;
  Sights sights;
  std::string failure;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_STAGE_H_
