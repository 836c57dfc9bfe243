#ifndef FACET_CLIENT_RESUMING_STREAM_H_
#define FACET_CLIENT_RESUMING_STREAM_H_

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/async_stream.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "client/answer.h"
#include "client/connection.h"
#include "client/event_loop.h"
#include "facet/v1/inference.grpc.pb.h"

namespace facet {

// How far `answer` has come, for GenerateRequest.resume.
v1::Resume ResumeOf(const Answer& answer);

// One Generate call that outlives its router: a stream that breaks off, or is refused for now, goes
// on at the next router from exactly where it stopped. Routers are taken in turn; one that failed
// is left alone for a while, one that named a retry delay for that long.
// Belongs to the thread that runs its loop; Cancel() may come from any other. The connection and
// the answer must outlive it.
class ResumingStream : private LoopEvent {
 public:
  struct Events {
    std::function<void()> on_message;  // after the answer has taken it
    // OK once every choice has its end, however it ended (Answer::Outcome). Else why no router went
    // on, or what Answer::Add said of a message. The last event: the stream may be destroyed here.
    std::function<void(const absl::Status& status)> on_end;
  };

  // Asks `first_router` first.
  ResumingStream(const Connection& connection, v1::GenerateRequest request, Answer& answer,
                 size_t first_router = 0);

  // Begins the call, whose events come while `loop` is run (on_end in here, if it was cancelled
  // already). Once. The loop must outlive the call.
  void Start(EventLoop& loop, Events events);
  // The same with a loop of its own: returns what on_end is told. Blocks.
  absl::Status Run(const std::function<void()>& on_message);

  // Ends the call: on_end hears Cancelled soon.
  void Cancel();

 private:
  // What the operation under way is.
  enum class Phase { kStarting, kReading, kFinishing, kPausing };
  // How a call to one router ended.
  struct Turn {
    absl::Status status;
    bool retryable = false;
    bool progress = false;                                 // something came
    std::optional<std::chrono::milliseconds> retry_delay;  // the router named one
  };

  void OnEvent(bool ok) override;
  // One call to the current router, until it ends.
  void StartAttempt();
  void Read();
  void Take();
  void Finish();
  Turn TakeTurn();
  // Goes on elsewhere, or ends.
  void Follow(const Turn& turn);
  v1::GenerateRequest NextRequest();
  // Notes the current router's failure, and chooses who is asked next and when.
  ClientClock::time_point ChooseNext(const Turn& turn);
  // StartAttempt() comes then.
  void PauseUntil(ClientClock::time_point when);
  void End(const absl::Status& status);

  struct RouterState {
    ClientClock::time_point not_before;
    std::chrono::milliseconds backoff;
  };

  const Connection& connection_;
  v1::GenerateRequest request_;
  Answer& answer_;
  const std::optional<std::chrono::system_clock::time_point> deadline_;
  size_t current_;
  bool first_ = true;
  std::vector<RouterState> routers_;
  std::minstd_rand jitter_{std::random_device()()};

  EventLoop* loop_ = nullptr;
  Events events_;
  ClientClock::time_point give_up_at_;
  // Of the call to the current router:
  Phase phase_ = Phase::kStarting;
  std::unique_ptr<grpc::ClientAsyncReaderInterface<v1::GenerateResponse>> reader_;
  v1::GenerateResponse response_;
  bool progress_ = false;
  absl::Status sound_;  // what the answer says of the messages
  grpc::Status status_;

  std::mutex mutex_;
  std::unique_ptr<grpc::ClientContext> context_;  // guarded by mutex_; of the call, if there is one
  grpc::Alarm pause_;                             // guarded by mutex_
  bool cancelled_ = false;                        // guarded by mutex_
};

}  // namespace facet

#endif  // FACET_CLIENT_RESUMING_STREAM_H_
