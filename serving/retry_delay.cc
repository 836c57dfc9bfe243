#include "serving/retry_delay.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <string_view>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace facet {
namespace {

using std::chrono::milliseconds;

constexpr const char* kPushback = "grpc-retry-pushback-ms";
constexpr milliseconds kDelayMax = std::chrono::hours(1);

std::optional<milliseconds> RetryInfoOf(const std::string& details) {
  google::rpc::Status status;
  if (details.empty() || !status.ParseFromString(details)) return std::nullopt;
  for (const google::protobuf::Any& detail : status.details()) {
    google::rpc::RetryInfo info;
    if (!detail.Is<google::rpc::RetryInfo>() || !detail.UnpackTo(&info)) continue;
    const auto& delay = info.retry_delay();
    return std::chrono::seconds(std::min<int64_t>(delay.seconds(), kDelayMax.count() / 1000)) +
           milliseconds(delay.nanos() / 1'000'000);
  }
  return std::nullopt;
}

std::optional<milliseconds> PushbackOf(const grpc::ClientContext& context) {
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find(kPushback);
  if (found == metadata.end()) return std::nullopt;
  const std::string_view text(found->second.data(), found->second.size());
  int64_t delay = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), delay);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return milliseconds(delay);
}

}  // namespace

grpc::Status WithRetryDelay(const grpc::Status& status, milliseconds delay,
                            grpc::ServerContextBase& context) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(delay.count() / 1000);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay.count() % 1000) * 1'000'000);
  google::rpc::Status details;
  details.set_code(status.error_code());
  details.set_message(status.error_message());
  details.add_details()->PackFrom(info);
  context.AddTrailingMetadata(kPushback, std::to_string(delay.count()));
  return grpc::Status(status.error_code(), status.error_message(), details.SerializeAsString());
}

std::optional<milliseconds> RetryDelayOf(const grpc::Status& status,
                                         const grpc::ClientContext& context) {
  if (status.ok()) return std::nullopt;
  std::optional<milliseconds> delay = RetryInfoOf(status.error_details());
  if (!delay) delay = PushbackOf(context);
  if (delay && *delay < milliseconds(0)) return std::nullopt;  // "do not come back"
  if (delay) delay = std::min(*delay, kDelayMax);
  return delay;
}

}  // namespace facet
