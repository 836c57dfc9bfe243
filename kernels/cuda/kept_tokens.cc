#include "kernels/cuda/kept_tokens.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "kernels/best_key.h"
#include "kernels/cuda/launch_queue.h"

namespace facet::cuda {

KeptTokens::~KeptTokens() {
  for (Arrival& arrival : arrivals_) {
    if (arrival.event != nullptr) DestroyEvent(arrival.event);
  }
  if (host_ != nullptr) FreePinned(host_);
}

absl::Status KeptTokens::Init() {
  FACET_ASSIGN_OR_RETURN(
      host_, context_.memory->AllocatePinned("tokens", std::ssize(arrivals_) * kArrivalBytes));
  std::byte* next = host_;
  for (Arrival& arrival : arrivals_) {
    arrival.host = next;
    next += kArrivalBytes;
    FACET_ASSIGN_OR_RETURN(arrival.event, MakeEvent());
  }
  return absl::OkStatus();
}

absl::Status KeptTokens::Allocate(int places) {
  FACET_CHECK(context_.tokens == nullptr, "there are places for tokens already");
  const int64_t bytes = places * static_cast<int64_t>(sizeof(int32_t));
  FACET_ASSIGN_OR_RETURN(void* const memory, context_.memory->Allocate("work spaces", bytes));
  if (places > 0) FACET_RETURN_IF_ERROR(Fill(memory, 0, bytes, context_.stream));
  context_.tokens = static_cast<int32_t*>(memory);
  context_.places = places;
  return absl::OkStatus();
}

void KeptTokens::Keep(KeysOfRanks keys, int rows) {
  const int64_t bytes = rows * static_cast<int64_t>(sizeof(BestKey));
  FACET_CHECK(bytes <= kArrivalBytes, "{} rows keep a token", rows);
  Arrival* const arrival = TakeArrival();
  keys.kept = context_.tokens;
  keys.winners = reinterpret_cast<uint64_t*>(context_.workspace);
  context_.launches->Put<&KeepBest>("kept tokens", keys);
  context_.launches->Flush();
  CheckOk(CopyToHost(arrival->host, keys.winners, bytes, context_.stream), "tokens");
  CheckOk(Record(arrival->event, context_.stream), "tokens");
  unread_.push_back({std::vector<BestToken>(static_cast<size_t>(rows)), arrival});
}

KeptTokens::Arrival* KeptTokens::TakeArrival() {
  Arrival* const arrival = &arrivals_[next_arrival_];
  next_arrival_ = (next_arrival_ + 1) % kArrivals;
  for (Unread& unread : unread_) {
    if (unread.arrival == arrival) context_.CheckDone(Settle(&unread), "tokens");
  }
  return arrival;
}

absl::Status KeptTokens::Settle(Unread* unread) const {
  if (unread->arrival == nullptr) return absl::OkStatus();
  FACET_RETURN_IF_ERROR(context_.wait->Until(unread->arrival->event));
  const std::byte* from = unread->arrival->host;
  for (BestToken& token : unread->tokens) {
    BestKey key = kNoKey;
    std::memcpy(&key, from, sizeof(key));
    token = BestTokenOf(key);
    from += sizeof(key);
  }
  unread->arrival = nullptr;
  return absl::OkStatus();
}

absl::Status KeptTokens::Read(std::span<BestToken> tokens) {
  FACET_CHECK(!unread_.empty() && unread_.front().tokens.size() == tokens.size(), "{} tokens",
              tokens.size());
  FACET_RETURN_IF_ERROR(Settle(&unread_.front()));
  std::copy(unread_.front().tokens.begin(), unread_.front().tokens.end(), tokens.begin());
  unread_.pop_front();
  return absl::OkStatus();
}

}  // namespace facet::cuda
