#ifndef FACET_ROUTER_SERVICE_INFERENCE_SERVICE_H_
#define FACET_ROUTER_SERVICE_INFERENCE_SERVICE_H_

#include <memory>
#include <vector>

#include "facet/v1/inference.grpc.pb.h"
#include "router/service/call_acceptor.h"
#include "router/service/completion.h"
#include "router/service/dispatcher.h"
#include "router/service/live_calls.h"
#include "router/service/message_stream.h"
#include "router/service/metrics.h"
#include "router/service/request_parser.h"
#include "router/service/served_model.h"

namespace facet {

struct InferenceOptions {
  RequestLimits limits;
  MessageStreamOptions stream;
  int64_t complete_bytes_max = int64_t{15} << 20;  // of an answer in one message
  TimeUs request_max_us = 600'000'000;             // for requests without a deadline, and at most
  // How much before a client's own deadline ours passes (at most half of it), so that the last
  // message, with the usage, still arrives: a client hears nothing after its deadline.
  TimeUs deadline_margin_us = 25'000;
};

// The face to clients. Calls are taken on a CallAcceptor's threads: they are checked and tokenized
// there and handed over to the dispatcher. All references must outlive the server.
class InferenceService : public v1::Inference::AsyncService {
 public:
  InferenceService(const InferenceOptions& options, const ServedModel& model,
                   RouterMetrics& metrics, Dispatcher& dispatcher)
      : options_(options), model_(model), metrics_(metrics), dispatcher_(dispatcher) {}

  // What the acceptor takes for it: calls of `live`. Closing those refuses new requests with
  // Unavailable.
  std::vector<AcceptedMethod> Methods(LiveCalls& live);

 private:
  void Generate(const std::shared_ptr<MessageStream>& stream);
  void Complete(const std::shared_ptr<Completion>& completion);
  // `open`: the router takes requests.
  absl::StatusOr<ParsedRequest> Parse(const grpc::ServerContextBase& context,
                                      const v1::GenerateRequest& request, bool open) const;
  void Begin(absl::StatusOr<ParsedRequest> parsed, TimeUs arrived_at,
             std::shared_ptr<ResponseSink> sink);
  absl::Status TokenizeInto(const v1::TokenizeRequest& request,
                            v1::TokenizeResponse& response) const;
  absl::Status DetokenizeInto(const v1::DetokenizeRequest& request,
                              v1::DetokenizeResponse& response) const;

  const InferenceOptions options_;
  const ServedModel& model_;
  RouterMetrics& metrics_;
  Dispatcher& dispatcher_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_INFERENCE_SERVICE_H_
