#include "tests/cluster/mixed_load.h"

#include <utility>

#include "base/status.h"
#include "client/resuming_stream.h"

namespace facet::testing {
namespace {

// Notes the times at which the choices of one answer grow.
class GapWatch {
 public:
  GapWatch(const Answer& answer, uint64_t first_choice)
      : answer_(answer), first_choice_(first_choice), seen_(answer.choices()) {}

  void OnMessage(TestClock::time_point now, std::vector<TokenGap>& gaps) {
    for (int i = 0; i < answer_.choices(); ++i) {
      Seen& seen = seen_[i];
      const size_t tokens = answer_.choice(i).tokens.size();
      if (tokens == seen.tokens) continue;
      if (seen.tokens > 0) {
        gaps.push_back({.from = seen.at,
                        .to = now,
                        .choice = first_choice_ + i,
                        .resumed = answer_.resumptions() > seen.resumptions});
      }
      seen = {.tokens = tokens, .at = now, .resumptions = answer_.resumptions()};
    }
  }

 private:
  struct Seen {
    size_t tokens = 0;
    TestClock::time_point at;
    int resumptions = 0;
  };

  const Answer& answer_;
  const uint64_t first_choice_;
  std::vector<Seen> seen_;  // by choice
};

void Append(auto& to, auto&& from) { to.insert(to.end(), from.begin(), from.end()); }

void Merge(LoadResults& to, const LoadResults& from) {
  to.requests += from.requests;
  to.choices += from.choices;
  to.tokens += from.tokens;
  to.resumptions += from.resumptions;
  for (const auto& [kind, count] : from.by_kind) to.by_kind[kind] += count;
  Append(to.lost, from.lost);
  Append(to.wrong, from.wrong);
  Append(to.gaps, from.gaps);
}

}  // namespace

MixedLoad::MixedLoad(const Connection& connection, const std::vector<RecordedRequest>& recorded,
                     int streams)
    : connection_(connection), recorded_(recorded) {
  for (int i = 0; i < streams; ++i) threads_.emplace_back([this, i] { RunStream(i); });
}

MixedLoad::~MixedLoad() { Finish(); }

LoadResults MixedLoad::Finish() {
  over_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  const std::lock_guard lock(mutex_);
  return std::exchange(total_, {});
}

void MixedLoad::RunStream(size_t index) {
  LoadResults results;
  while (!over_ || next_ < recorded_.size()) {
    RunOne(recorded_[next_++ % recorded_.size()], index, results);
  }
  const std::lock_guard lock(mutex_);
  Merge(total_, results);
}

void MixedLoad::RunOne(const RecordedRequest& recorded, size_t router, LoadResults& results) {
  Answer answer(recorded.request.prompts_size(), recorded.answer.n());
  GapWatch watch(answer, choices_.fetch_add(answer.choices()));
  ResumingStream stream(connection_, recorded.request, answer, router);
  const absl::Status status = stream.Run([&] { watch.OnMessage(TestClock::now(), results.gaps); });
  ++results.requests;
  results.choices += answer.choices();
  results.tokens += answer.tokens();
  results.resumptions += answer.resumptions();
  const absl::Status outcome = status.ok() ? answer.Outcome() : status;
  if (!outcome.ok()) {
    results.lost.push_back(
        fmt::format("{} after {} tokens: {}", recorded.kind, answer.tokens(), outcome.ToString()));
    return;
  }
  const std::string difference = Difference(recorded.answer, answer);
  if (!difference.empty()) {
    results.wrong.push_back(fmt::format("{}: {}", recorded.kind, difference));
    return;
  }
  ++results.by_kind[recorded.kind];
}

}  // namespace facet::testing
