#ifndef FACET_CLIENT_RESUMING_STREAM_H_
#define FACET_CLIENT_RESUMING_STREAM_H_

#include <grpcpp/client_context.h>

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "client/answer.h"
#include "client/connection.h"
#include "facet/v1/inference.grpc.pb.h"

namespace facet {

// How far `answer` has come, for GenerateRequest.resume.
v1::Resume ResumeOf(const Answer& answer);

// One Generate call that outlives its router: a stream that breaks off, or is refused for now, goes
// on at the next router from exactly where it stopped. Routers are taken in turn; one that failed
// is left alone for a while, one that named a retry delay for that long.
// One thread runs it; Cancel() may come from any other. The connection and the answer must outlive
// it.
class ResumingStream {
 public:
  // Asks `first_router` first.
  ResumingStream(const Connection& connection, v1::GenerateRequest request, Answer& answer,
                 size_t first_router = 0);

  // Runs the call to its end, showing each message to the answer and then to `on_message`. OK once
  // every choice has its end, however it ended (Answer::Outcome). Else why no router went on, or
  // what Answer::Add said of a message. Blocks. Once.
  absl::Status Run(const std::function<void()>& on_message);

  // Ends the call: Run() returns Cancelled soon.
  void Cancel();

 private:
  struct Turn {
    absl::Status status;
    bool retryable = false;
    bool progress = false;                                 // something came
    std::optional<std::chrono::milliseconds> retry_delay;  // the router named one
  };

  // One call to the current router, until it ends.
  Turn Attempt(const std::function<void()>& on_message);
  v1::GenerateRequest NextRequest();
  // Notes the current router's failure, and chooses who is asked next and when.
  ClientClock::time_point ChooseNext(const Turn& turn);
  // False if the stream was cancelled meanwhile.
  bool WaitUntil(ClientClock::time_point when);
  // False if the stream has been cancelled.
  bool Register(grpc::ClientContext& context);
  void Unregister();

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

  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ClientContext* running_ = nullptr;  // guarded by mutex_
  bool cancelled_ = false;                  // guarded by mutex_
};

}  // namespace facet

#endif  // FACET_CLIENT_RESUMING_STREAM_H_
