#ifndef FACET_ROUTER_CORE_RETRY_BUDGET_H_
#define FACET_ROUTER_CORE_RETRY_BUDGET_H_

#include <algorithm>
#include <cstdint>

namespace facet {

struct RetryBudgetOptions {
  int per_thousand_requests = 200;
  int burst = 256;
};

// How many sequences may be retried: a part of the requests that come, and a burst. When groups
// fail all the time, retries would only multiply the load.
class RetryBudget {
 public:
  explicit RetryBudget(const RetryBudgetOptions& options)
      : options_(options), thousandths_(int64_t{1000} * options.burst) {}

  // A request has come.
  void Earn() {
    thousandths_ =
        std::min(thousandths_ + options_.per_thousand_requests, int64_t{1000} * options_.burst);
  }
  // Whether one more sequence may be retried.
  bool Spend() {
    if (thousandths_ < 1000) return false;
    thousandths_ -= 1000;
    return true;
  }

 private:
  RetryBudgetOptions options_;
  int64_t thousandths_;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_RETRY_BUDGET_H_
