#include "shard_worker/engine/canary.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/status.h"

namespace facet {

Canary::Canary(const CanaryOptions& options, int vocabulary_size,
               std::optional<CanaryAnswer> expected, TimeUs now)
    : options_(options),
      vocabulary_size_(vocabulary_size),
      expected_(std::move(expected)),
      due_(now) {}

std::optional<TimeUs> Canary::due() const {
  if (!options_.enabled || running() || !verdict_.ok()) return std::nullopt;
  return due_;
}

EngineRequest Canary::Start(SequenceId id, TimeUs now) {
  FACET_CHECK(!running());
  id_ = id;
  answer_ = CanaryAnswer();
  started_ = now;
  EngineRequest request;
  request.id = id;
  for (const TokenId token : options_.prompt) request.tokens.push_back(token % vocabulary_size_);
  request.prompt_length = static_cast<int>(request.tokens.size());
  request.sampling.temperature = 0;
  request.max_tokens = options_.output_tokens;
  request.logprobs = 0;
  prompt_tokens_ += request.prompt_length;
  return request;
}

void Canary::Abandon(TimeUs now) {
  FACET_CHECK(running());
  prompt_tokens_ -= static_cast<int64_t>(options_.prompt.size());
  id_.reset();
  due_ = now + options_.quiet;
}

// The first of an epoch is owed whatever else goes forward: it opens the epoch.
void Canary::RealProgress(TimeUs now) {
  if (proven()) due_ = std::max(due_, now + options_.quiet);
}

void Canary::Take(const EngineDelta& delta, TimeUs now) {
  FACET_CHECK(id_ == delta.id);
  output_tokens_ += static_cast<int64_t>(delta.tokens.size());
  for (const ScoredToken& token : delta.tokens) {
    answer_.tokens.push_back(token.id);
    answer_.logprob_bits.push_back(std::bit_cast<uint32_t>(token.logprob));
  }
  if (delta.finish) Judge(delta, now);
}

void Canary::Judge(const EngineDelta& last, TimeUs now) {
  id_.reset();
  ++stats_.runs;
  stats_.duration_us = now - started_;
  due_ = now + std::max(options_.quiet, stats_.duration_us * options_.rest_factor);
  if (last.finish != EngineFinish::kLength) {
    verdict_ = Internal("the canary did not come to its end: {}",
                        last.error.empty() ? "it was cut short" : last.error);
  } else if (!expected_) {
    expected_ = answer_;
  } else if (options_.exact && answer_ != *expected_) {
    verdict_ = Internal("the canary's answer has changed: this group computes wrong tokens");
  }
  if (!verdict_.ok()) ++stats_.failures;
}

}  // namespace facet
