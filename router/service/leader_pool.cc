#include "router/service/leader_pool.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace facet {

LeaderPool::LeaderPool(LeaderSessionOptions session, SerialThread& thread,
                       LeaderSession::Listener& listener, std::function<GroupId()> add_group)
    : session_(std::move(session)),
      thread_(thread),
      listener_(listener),
      add_group_(std::move(add_group)) {}

void LeaderPool::SetAddresses(const std::vector<std::string>& addresses) {
  if (closing_) return;
  for (Slot& slot : slots_) {
    if (slot.session == nullptr || slot.session->closing()) continue;
    const bool there =
        std::find(addresses.begin(), addresses.end(), slot.address) != addresses.end();
    if (!there && !slot.leaving) spdlog::info("group {} is no leader any more", slot.address);
    slot.leaving = !there;
    slot.session->SetLeaving(slot.leaving);
  }
  for (const std::string& address : addresses) {
    const bool known = std::any_of(slots_.begin(), slots_.end(), [&address](const Slot& slot) {
      return slot.session != nullptr && !slot.session->closing() && slot.address == address;
    });
    if (!known) Join(address);
  }
}

void LeaderPool::Join(const std::string& address) {
  auto slot = std::find_if(slots_.begin(), slots_.end(),
                           [](const Slot& each) { return each.session == nullptr; });
  if (slot == slots_.end()) slot = slots_.insert(slot, Slot{.group = add_group_()});
  LeaderSessionOptions options = session_;
  options.address = address;
  slot->address = address;
  slot->leaving = slot->closed = false;
  slot->session =
      std::make_unique<LeaderSession>(slot->group, std::move(options), thread_, listener_);
}

TimeUs LeaderPool::Tick(TimeUs now) {
  Sweep();
  TimeUs wake = kNever;
  for (Slot& slot : slots_) {
    if (slot.session != nullptr && !slot.closed) wake = std::min(wake, slot.session->Tick(now));
  }
  return wake;
}

// A session says that it is closed from inside itself, so it goes later.
void LeaderPool::Sweep() {
  for (Slot& slot : slots_) {
    if (slot.closed) slot.session.reset();
    slot.closed = false;
  }
}

void LeaderPool::Send(GroupId group, v1::RouterMessage message) {
  FACET_CHECK(group.value < slots_.size());
  LeaderSession* session = slots_[group.value].session.get();
  if (session != nullptr) session->Send(std::move(message));
}

void LeaderPool::SendToAll(const v1::RouterMessage& message) {
  for (Slot& slot : slots_) {
    if (slot.session != nullptr) slot.session->Send(message);
  }
}

void LeaderPool::Close() {
  closing_ = true;
  for (Slot& slot : slots_) {
    if (slot.session != nullptr && !slot.closed) slot.session->Close();
  }
}

void LeaderPool::NoteClosed(GroupId group) { slots_[group.value].closed = true; }

bool LeaderPool::closed() const {
  return closing_ && std::all_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
           return slot.session == nullptr || slot.closed;
         });
}

std::vector<const v1::GroupStatus*> LeaderPool::statuses() const {
  std::vector<const v1::GroupStatus*> statuses;
  for (const Slot& slot : slots_) {
    if (slot.session != nullptr && !slot.closed) statuses.push_back(&slot.session->status());
  }
  return statuses;
}

}  // namespace facet
