#include "router/core/request_queue.h"

#include "base/check.h"
#include "base/status.h"

namespace facet {

std::optional<Refusal> RequestQueue::Admit(int64_t tokens) const {
  if (entries_.empty()) return std::nullopt;
  if (requests() >= options_.requests_max) {
    return Refusal{RefusalReason::kQueueRequests,
                   ResourceExhausted("the queue is full: {} requests wait, at most {} may",
                                     requests(), options_.requests_max)};
  }
  if (tokens_ + tokens > options_.tokens_max) {
    return Refusal{
        RefusalReason::kQueueTokens,
        ResourceExhausted(
            "the queue is full: {} prompt tokens wait, {} more would pass the bound of {}", tokens_,
            tokens, options_.tokens_max)};
  }
  return std::nullopt;
}

void RequestQueue::Push(const QueuedRequest& request) {
  const bool fresh = entries_.emplace(request.id, request).second;
  FACET_CHECK(fresh, "request {} is queued already", request.id.value);
  order_.insert(PlaceOf(request));
  tokens_ += request.tokens;
}

std::optional<RequestId> RequestQueue::Front() const {
  if (order_.empty()) return std::nullopt;
  return order_.begin()->id;
}

void RequestQueue::Shrink(RequestId id, int64_t tokens) {
  const auto entry = entries_.find(id);
  FACET_CHECK(entry != entries_.end() && entry->second.tokens >= tokens);
  entry->second.tokens -= tokens;
  tokens_ -= tokens;
}

void RequestQueue::Remove(RequestId id) {
  const auto entry = entries_.find(id);
  FACET_CHECK(entry != entries_.end(), "request {} is not queued", id.value);
  tokens_ -= entry->second.tokens;
  order_.erase(PlaceOf(entry->second));
  entries_.erase(entry);
}

}  // namespace facet
