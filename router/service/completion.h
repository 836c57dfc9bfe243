#ifndef FACET_ROUTER_SERVICE_COMPLETION_H_
#define FACET_ROUTER_SERVICE_COMPLETION_H_

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "facet/v1/inference.pb.h"
#include "router/service/response_sink.h"

namespace facet {

// The answer of one unary call: gathers the parts of every choice into one message.
// Lives until gRPC is done with it, whoever else lets go.
class Completion : public grpc::ServerUnaryReactor, public ResponseSink {
 public:
  // `response` is the call's. A larger answer than `bytes_max` ends the call. `on_done` runs once
  // gRPC is done with it.
  static std::shared_ptr<Completion> Start(grpc::CallbackServerContext* context,
                                           v1::CompleteResponse* response, int64_t bytes_max,
                                           std::function<void()> on_done);
  // `prompts` x `n` choices will come.
  void Expect(int prompts, int n);

  Room Write(v1::GenerateResponse part) override;
  void Flush() override {}
  void Finish(const absl::Status& status) override;
  State Sweep(TimeUs now) override;

 private:
  Completion(grpc::CallbackServerContext* context, v1::CompleteResponse* response,
             int64_t bytes_max, std::function<void()> on_done)
      : context_(context),
        response_(response),
        bytes_max_(bytes_max),
        on_done_(std::move(on_done)) {}

  void OnCancel() override { NoteCancel(); }
  void OnDone() override;

  grpc::CallbackServerContext* const context_;  // both valid until Finish()
  v1::CompleteResponse* const response_;
  const int64_t bytes_max_;
  std::function<void()> on_done_;
  int64_t bytes_ = 0;
  int n_ = 1;
  std::atomic<bool> done_ = false;
  std::shared_ptr<Completion> self_;  // until OnDone
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_COMPLETION_H_
