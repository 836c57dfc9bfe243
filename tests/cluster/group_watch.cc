#include "tests/cluster/group_watch.h"

#include <fmt/format.h>

#include <algorithm>

namespace facet::testing {
namespace {

constexpr std::chrono::milliseconds kPeriod{20};
constexpr std::chrono::milliseconds kPatience{300};

}  // namespace

GroupWatch::GroupWatch(const Connection& connection, int groups)
    : connection_(connection), groups_(groups), thread_([this] { Watch(); }) {}

GroupWatch::~GroupWatch() {
  over_ = true;
  thread_.join();
}

bool GroupWatch::ready(int group) const {
  const std::lock_guard lock(mutex_);
  return groups_[group].ready;
}

int GroupWatch::running(int group) const {
  const std::lock_guard lock(mutex_);
  return groups_[group].running;
}

std::optional<GroupWatch::Time> GroupWatch::ReadyAgain(int group, Time since) const {
  const std::lock_guard lock(mutex_);
  bool was_down = false;
  for (const Change& change : groups_[group].changes) {
    if (change.at < since) continue;
    if (change.ready && was_down) return change.at;
    was_down |= !change.ready;
  }
  return std::nullopt;
}

void GroupWatch::Watch() {
  while (!over_) {
    Look();
    std::this_thread::sleep_for(kPeriod);
  }
}

void GroupWatch::Look() {
  struct Sight {
    bool ready = false;
    int running = 0;
  };
  std::vector<Sight> sights(groups_.size());
  bool answered = false;
  for (const RouterStubs& router : connection_.routers) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    v1::GetStatusResponse response;
    if (!router.status->GetStatus(&context, {}, &response).ok()) continue;
    answered = true;
    for (size_t i = 0; i < sights.size(); ++i) {
      const std::string suffix = fmt::format("/group{}.sock", i);
      for (const v1::GroupStatus& group : response.groups()) {
        if (!group.address().ends_with(suffix) || !group.ready()) continue;
        sights[i] = {.ready = true, .running = static_cast<int>(group.running())};
      }
    }
  }
  if (!answered) return;  // then nothing is known
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sights.size(); ++i) {
    Group& group = groups_[i];
    if (group.ready != sights[i].ready) {
      group.changes.push_back({std::chrono::steady_clock::now(), sights[i].ready});
    }
    group.ready = sights[i].ready;
    group.running = sights[i].running;
  }
}

}  // namespace facet::testing
