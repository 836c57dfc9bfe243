#ifndef FACET_ROUTER_SERVICE_LEADER_SESSION_H_
#define FACET_ROUTER_SERVICE_LEADER_SESSION_H_

#include <grpcpp/channel.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "facet/v1/inference.pb.h"
#include "facet/v1/shard.grpc.pb.h"
#include "router/core/group_table.h"
#include "router/core/request.h"
#include "router/service/leader_stream.h"
#include "router/service/serial_thread.h"

namespace facet {

struct LeaderSessionOptions {
  std::string address;        // host:port or unix:/path
  uint64_t model_digest = 0;  // of the model this router serves; leaders of another are refused
  TimeUs backoff_min_us = 50'000;
  TimeUs backoff_max_us = 250'000;  // a group that is back is used within half a second
  // Leaders speak every 500 ms; one that says nothing for so long is given up.
  TimeUs silence_max_us = 2'000'000;
  // If Tick() comes so much later than due, this process stood still and leaders are not to blame.
  TimeUs standstill_us = 500'000;
  // A host that is gone is noticed after interval + timeout.
  std::chrono::milliseconds keepalive_interval{1000};
  std::chrono::milliseconds keepalive_timeout{1000};
};

// Keeps one session with one leader open: connects, connects again after a pause when it ends, and
// turns what the leader says into events. Everything runs on the thread given.
class LeaderSession {
 public:
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnLeaderUp(GroupId group, GroupFacts facts) = 0;
    virtual void OnLeaderState(GroupId group, const GroupState& state) = 0;
    virtual void OnLeaderCacheNews(GroupId group, const GroupCacheNews& news) = 0;
    virtual void OnLeaderDelta(GroupId group, LeaderDelta delta) = 0;
    virtual void OnLeaderDown(GroupId group) = 0;    // after OnLeaderUp; all its sequences are gone
    virtual void OnLeaderClosed(GroupId group) = 0;  // after Close(): nothing follows
  };

  LeaderSession(GroupId group, LeaderSessionOptions options, SerialThread& thread,
                Listener& listener);

  // Connects when it is time to and gives up a silent leader. Returns when to call it again, at the
  // latest.
  TimeUs Tick(TimeUs now);
  // Messages for a leader that is down are dropped: its sequences are gone with it.
  void Send(v1::RouterMessage message);
  // Ends the session for good; the listener hears OnLeaderClosed.
  void Close();
  bool closing() const { return closing_; }
  // While this is set, the session closes for good when it ends; at once if it is not up.
  void SetLeaving(bool leaving);

  const v1::GroupStatus& status() const { return status_; }

 private:
  struct Sample {
    TimeUs at;
    int64_t prompt_tokens;
    int64_t output_tokens;
  };

  TimeUs ConnectOrGiveUp(TimeUs now);
  void Connect();
  void OnMessage(v1::LeaderMessage& message);
  void OnEnd(const absl::Status& status);
  void Take(v1::LeaderMessage& message);
  // False, with the session on its way down, if the leader cannot be used.
  bool Welcome(const v1::LeaderMessage& message);
  void NoteState(const v1::LeaderState& state, TimeUs now);
  void NoteRates(const v1::LeaderState& state, TimeUs now);
  // Ends the call because of something this side saw.
  void GiveUp(std::string reason);

  const GroupId group_;
  const LeaderSessionOptions options_;
  SerialThread& thread_;
  Listener& listener_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Leader::Stub> stub_;
  std::shared_ptr<LeaderStream> stream_;  // null while waiting to connect
  bool up_ = false;
  bool closing_ = false;
  bool leaving_ = false;
  std::string give_up_reason_;
  TimeUs backoff_us_;
  TimeUs connect_at_ = 0;
  TimeUs last_heard_ = 0;
  TimeUs tick_due_ = kNever;
  std::deque<Sample> samples_;  // of the last seconds
  v1::GroupStatus status_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LEADER_SESSION_H_
