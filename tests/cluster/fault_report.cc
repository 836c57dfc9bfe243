#include "tests/cluster/fault_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <unordered_set>

#include "client/percentiles.h"

namespace facet::testing {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kInFlight{300};  // tokens of before a fault still come for so long
constexpr std::chrono::seconds kQuiet{8};

std::string Row(const std::string& name, const std::vector<double>& seconds,
                const std::string& target) {
  const Percentiles p = PercentilesOf(seconds);
  const double max = seconds.empty() ? 0 : *std::ranges::max_element(seconds);
  return fmt::format("{:<44} {:5} {:8.3f} {:8.3f} {:8.3f}  {}\n", name, seconds.size(), p.p50,
                     p.p99, max, target);
}

bool IsOpenAt(const TokenGap& gap, GroupWatch::Time at) {
  return gap.to > at && gap.from < at + kInFlight;
}

class Report {
 public:
  Report(const std::vector<Fault>& faults, const LoadResults& load, const GroupWatch& groups)
      : faults_(faults), load_(load), groups_(groups), quiet_p99_(PercentilesOf(Quiet()).p99) {}

  std::string Text() {
    for (const Fault& fault : faults_) Attribute(fault);
    std::string text = fmt::format("{:<44} {:>5} {:>8} {:>8} {:>8}  target\n", "seconds", "n",
                                   "p50", "p99", "max");
    text += Row("gap after a death, another group up", death_, "p50 <= 1, p99 <= 3");
    text += Row("gap after a hang, another group up", hang_, "p99 <= 4");
    text += Row("gap after either, no other group up", alone_, "");
    text += Row("gap after a router's death", router_, "");
    text += Row("replica ready again after a death", ready_after_death_, "max <= 5");
    text += Row("replica ready again after a hang", ready_after_hang_, "max <= 5");
    text += Row("gaps in quiet times", Quiet(), "");
    text += Row("longest other gaps", Others(), "");
    return text;
  }

 private:
  // Those that no fault was near.
  std::vector<double> Quiet() const {
    std::vector<double> seconds;
    for (const TokenGap& gap : load_.gaps) {
      const bool near = std::ranges::any_of(faults_, [&](const Fault& fault) {
        return gap.to > fault.at && gap.from < fault.at + kQuiet;
      });
      if (!near) seconds.push_back(gap.seconds());
    }
    return seconds;
  }

  // The ten longest of those that are charged to nothing.
  std::vector<double> Others() const {
    std::vector<double> seconds;
    for (const TokenGap& gap : load_.gaps) {
      if (!charged_.contains(&gap)) seconds.push_back(gap.seconds());
    }
    std::ranges::sort(seconds, std::greater<>());
    seconds.resize(std::min<size_t>(seconds.size(), 10));
    return seconds;
  }

  void Attribute(const Fault& fault) {
    if (fault.kind == FaultKind::kRouterKilled) {
      for (const TokenGap& gap : load_.gaps) {
        if (gap.resumed && IsOpenAt(gap, fault.at)) Charge(gap, router_);
      }
      return;
    }
    const bool death = fault.kind == FaultKind::kRankKilled;
    std::vector<double>& to = !fault.others_ready ? alone_ : death ? death_ : hang_;
    for (const TokenGap* gap : Longest(fault)) Charge(*gap, to);
    if (const auto again = groups_.ReadyAgain(fault.group, fault.at)) {
      const double seconds = std::chrono::duration<double>(*again - fault.at).count();
      (death ? ready_after_death_ : ready_after_hang_).push_back(seconds);
    }
  }

  std::vector<const TokenGap*> Longest(const Fault& fault) const {
    std::map<uint64_t, const TokenGap*> by_choice;  // the longest of each
    for (const TokenGap& gap : load_.gaps) {
      if (gap.resumed || !IsOpenAt(gap, fault.at) || gap.seconds() <= quiet_p99_) continue;
      const TokenGap*& longest = by_choice[gap.choice];
      if (longest == nullptr || gap.seconds() > longest->seconds()) longest = &gap;
    }
    std::vector<const TokenGap*> gaps;
    for (const auto& [choice, gap] : by_choice) gaps.push_back(gap);
    std::ranges::sort(
        gaps, [](const TokenGap* a, const TokenGap* b) { return a->seconds() > b->seconds(); });
    gaps.resize(std::min<size_t>(gaps.size(), fault.running));
    return gaps;
  }

  void Charge(const TokenGap& gap, std::vector<double>& to) {
    if (charged_.insert(&gap).second) to.push_back(gap.seconds());
  }

  const std::vector<Fault>& faults_;
  const LoadResults& load_;
  const GroupWatch& groups_;
  const double quiet_p99_;
  std::unordered_set<const TokenGap*> charged_;
  std::vector<double> death_, hang_, alone_, router_, ready_after_death_, ready_after_hang_;
};

}  // namespace

std::string DescribeFaults(const std::vector<Fault>& faults, const LoadResults& load,
                           const GroupWatch& groups) {
  return Report(faults, load, groups).Text();
}

}  // namespace facet::testing
