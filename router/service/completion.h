#ifndef FACET_ROUTER_SERVICE_COMPLETION_H_
#define FACET_ROUTER_SERVICE_COMPLETION_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "facet/v1/inference.grpc.pb.h"
#include "router/service/response_sink.h"
#include "router/service/unary_call.h"

namespace facet {

// The answer of one call to Complete: gathers the parts of every choice into one message.
class Completion : public UnaryCall<v1::GenerateRequest, v1::CompleteResponse>,
                   public ResponseSink {
 public:
  using Call = UnaryCall<v1::GenerateRequest, v1::CompleteResponse>;

  // A larger answer than `bytes_max` ends the call.
  Completion(int64_t bytes_max, Method method, Handler handler, LiveCalls& live)
      : Call(std::move(method), std::move(handler), live), bytes_max_(bytes_max) {}

  // False: the router takes no requests any more.
  using Call::open;
  // `prompts` x `n` choices will come.
  void Expect(int prompts, int n);

  Room Write(v1::GenerateResponse part) override;
  void Flush() override {}
  void Finish(const absl::Status& status) override;

 private:
  void OnCancelled() override { NoteCancel(); }

  const int64_t bytes_max_;
  int64_t bytes_ = 0;
  int n_ = 1;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_COMPLETION_H_
