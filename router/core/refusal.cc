#include "router/core/refusal.h"

#include <charconv>
#include <string>

#include "absl/strings/cord.h"
#include "base/check.h"

namespace facet {
namespace {

constexpr char kRetryAfterUrl[] = "facet.router/retry_after_us";

}  // namespace

std::string_view RefusalName(RefusalReason reason) {
  switch (reason) {
    case RefusalReason::kQueueRequests:
      return "queue_requests";
    case RefusalReason::kQueueTokens:
      return "queue_tokens";
    case RefusalReason::kQueueBytes:
      return "queue_bytes";
    case RefusalReason::kTenantShare:
      return "tenant_share";
    case RefusalReason::kTenants:
      return "tenants";
    case RefusalReason::kRequests:
      return "requests";
    case RefusalReason::kTtft:
      return "ttft";
    case RefusalReason::kRetries:
      return "retries";
    case RefusalReason::kNoGroup:
      return "no_group";
  }
  FACET_CHECK(false, "no reason has the number {}", static_cast<int>(reason));
  return {};
}

absl::Status WithRetryAfter(absl::Status status, TimeUs after) {
  status.SetPayload(kRetryAfterUrl, absl::Cord(std::to_string(after)));
  return status;
}

std::optional<TimeUs> RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterUrl);
  if (!payload) return std::nullopt;
  const std::string text(*payload);
  TimeUs after = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), after);
  if (error != std::errc()) return std::nullopt;
  return after;
}

}  // namespace facet
