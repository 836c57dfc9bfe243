#include "tests/simulation/stage.h"

#include <cstdio>
#include <cstring>

#include "base/prng.h"

namespace facet::sim {
namespace {

// Every counter with its name, so that adding and printing cannot forget one.
template <typename Visitor>
void ForEachSight(Visitor visit) {
  visit("requests", &Sights::requests);
  visit("choices", &Sights::choices);
  visit("tokens", &Sights::tokens);
  visit("whole", &Sights::whole);
  visit("cancelled", &Sights::cancelled);
  visit("expired", &Sights::expired);
  visit("refused", &Sights::refused);
  visit("poisoned", &Sights::poisoned);
  visit("unavailable", &Sights::unavailable);
  visit("invalid", &Sights::invalid);
  visit("resumes", &Sights::resumes);
  visit("migrations", &Sights::migrations);
  visit("preemptions", &Sights::preemptions);
  visit("cached_tokens", &Sights::cached_tokens);
  visit("pauses", &Sights::pauses);
  visit("dropped_readers", &Sights::dropped_readers);
  visit("router_crashes", &Sights::router_crashes);
  visit("leader_crashes", &Sights::leader_crashes);
  visit("rank_deaths", &Sights::rank_deaths);
  visit("hangs", &Sights::hangs);
  visit("slow_ranks", &Sights::slow_ranks);
  visit("breaks", &Sights::breaks);
  visit("partitions", &Sights::partitions);
  visit("drains", &Sights::drains);
  visit("poison_tokens", &Sights::poison_tokens);
  visit("epochs", &Sights::epochs);
  visit("overlapped_steps", &Sights::overlapped_steps);
  visit("steps", &Sights::steps);
  visit("takeovers", &Sights::takeovers);
  visit("fair_pairs", &Sights::fair_pairs);
  visit("stops", &Sights::stops);
  visit("shed", &Sights::shed);
  visit("unretried", &Sights::unretried);
  visit("mirrors", &Sights::mirrors);
  visit("accepted_tokens", &Sights::accepted_tokens);
  visit("rejected_tokens", &Sights::rejected_tokens);
}

}  // namespace

void Sights::Add(const Sights& other) {
  ForEachSight([&](const char*, int64_t Sights::*sight) { this->*sight += other.*sight; });
}

std::string Sights::Text() const {
  std::string text;
  ForEachSight([&](const char* name, int64_t Sights::*sight) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, this->*sight);
  });
  return text;
}

std::string Sights::Missing() const {
  std::string text;
  ForEachSight([&](const char* name, int64_t Sights::*sight) {
    if (this->*sight == 0) text += fmt::format("{}{}", text.empty() ? "" : ", ", name);
  });
  return text;
}

void Trace::Finish() {
  const char* data = line_.data();
  for (size_t i = 0; i < line_.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, std::min(sizeof(word), line_.size() - i));
    hash_ = Mix64(hash_ ^ word);
  }
  if (!print_) return;
  line_.push_back('\n');
  std::fwrite(line_.data(), 1, line_.size(), stdout);
}

}  // namespace facet::sim
