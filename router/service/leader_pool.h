#ifndef FACET_ROUTER_SERVICE_LEADER_POOL_H_
#define FACET_ROUTER_SERVICE_LEADER_POOL_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "facet/v1/inference.pb.h"
#include "facet/v1/shard.pb.h"
#include "router/core/request.h"
#include "router/service/leader_session.h"
#include "router/service/serial_thread.h"

namespace facet {

// The sessions with all leaders, by group. Leaders come and go with the addresses that are set; the
// number of a group that has gone is given to the next one that comes.
// Everything runs on the thread given.
class LeaderPool {
 public:
  // `add_group` names a new group. The listener hears of every session; it must pass
  // OnLeaderClosed() on to NoteClosed().
  LeaderPool(LeaderSessionOptions session, SerialThread& thread, LeaderSession::Listener& listener,
             std::function<GroupId()> add_group);

  // The leaders that there are. A session with another one goes on until it ends: a name that a
  // leader has lost does not mean that the leader has gone.
  void SetAddresses(const std::vector<std::string>& addresses);
  // As LeaderSession::Tick.
  TimeUs Tick(TimeUs now);
  // Messages for leaders that are down are dropped.
  void Send(GroupId group, v1::RouterMessage message);
  void SendToAll(const v1::RouterMessage& message);
  // Ends all sessions for good.
  void Close();
  void NoteClosed(GroupId group);
  // Close() was called and every session has ended.
  bool closed() const;

  // Of the leaders that there are.
  std::vector<const v1::GroupStatus*> statuses() const;

 private:
  struct Slot {
    GroupId group;
    std::string address;
    std::unique_ptr<LeaderSession> session;  // null: free
    bool leaving = false;                    // its address is not among those set
    bool closed = false;                     // its session may be destroyed
  };

  void Join(const std::string& address);
  void Sweep();

  const LeaderSessionOptions session_;
  SerialThread& thread_;
  LeaderSession::Listener& listener_;
  const std::function<GroupId()> add_group_;
  std::vector<Slot> slots_;  // slot i is group i
  bool closing_ = false;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LEADER_POOL_H_
