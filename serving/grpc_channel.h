#ifndef FACET_SERVING_GRPC_CHANNEL_H_
#define FACET_SERVING_GRPC_CHANNEL_H_

#include <grpcpp/channel.h>

#include <chrono>
#include <memory>
#include <string>

namespace facet {

struct ChannelOptions {
  // A silent peer is given up after interval + timeout. A server built by StartGrpcServer accepts
  // pings down to 250 ms apart.
  std::chrono::milliseconds keepalive_interval{10000};
  std::chrono::milliseconds keepalive_timeout{5000};
  // Pings also while no call runs: for links that must know at once, not for clients.
  bool keepalive_without_calls = false;
  std::chrono::milliseconds reconnect_backoff_max{1000};
  int message_bytes_max = 16 << 20;
  // What a peer may send of one stream before we read it; 0: gRPC measures the link and decides.
  int stream_window_bytes = 0;
};

// A plain-text channel of its own (never shared with another one of the same target) without
// gRPC's automatic retries: who retries what is decided by us. Connects lazily.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target,
                                           const ChannelOptions& options = {});

}  // namespace facet

#endif  // FACET_SERVING_GRPC_CHANNEL_H_
