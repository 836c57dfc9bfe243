#ifndef FACET_ROUTER_CORE_REFUSAL_H_
#define FACET_ROUTER_CORE_REFUSAL_H_

// Why a request is turned away, and when its client may come again.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "router/core/request.h"

namespace facet {

enum class RefusalReason {
  kQueueRequests,  // the queue has its most requests
  kQueueTokens,    // prompt tokens
  kQueueBytes,     // or bytes
  kTenantShare,    // the queue is full, and another tenant has more right to the place
  kTenants,        // too many tenants have live requests
  kRequests,       // too many requests are alive
  kTtft,           // the first token would come too late
  kRetries,        // its group failed, and the retry budget is spent
  kNoGroup,        // no group of shard workers is ready
};
inline constexpr int kRefusalReasons = 9;

// "queue_requests" and so on, for metrics.
std::string_view RefusalName(RefusalReason reason);

struct Refusal {
  RefusalReason reason;
  absl::Status status;
};

// Counts by reason.
class RefusalCounts {
 public:
  int64_t& operator[](RefusalReason reason) { return counts_[static_cast<int>(reason)]; }
  int64_t operator[](RefusalReason reason) const { return counts_[static_cast<int>(reason)]; }

 private:
  std::array<int64_t, kRefusalReasons> counts_{};
};

// The same status with a note of when to come again: in `after` microseconds. OK stays OK.
absl::Status WithRetryAfter(absl::Status status, TimeUs after);
// What WithRetryAfter() noted.
std::optional<TimeUs> RetryAfter(const absl::Status& status);

}  // namespace facet

#endif  // FACET_ROUTER_CORE_REFUSAL_H_
