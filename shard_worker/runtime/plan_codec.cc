#include "shard_worker/runtime/plan_codec.h"

#include <cstring>
#include <type_traits>

#include "base/status.h"

namespace facet {
namespace {

// One description of the layout serves both directions: Visit() calls `codec(field)` in order.
class Encoder {
 public:
  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      const auto* bytes = reinterpret_cast<const std::byte*>(&value);
      out.insert(out.end(), bytes, bytes + sizeof(T));
    } else {
      Visit(const_cast<T&>(value), *this);
    }
  }
  template <typename T>
  void operator()(const std::vector<T>& values) {
    (*this)(uint64_t{values.size()});
    for (const T& value : values) (*this)(value);
  }
  std::vector<std::byte> out;
};

class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : rest_(bytes) {}
  bool done() const { return ok_ && rest_.empty(); }

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      if (rest_.size() < sizeof(T)) {
        ok_ = false;
        return;
      }
      std::memcpy(&value, rest_.data(), sizeof(T));
      rest_ = rest_.subspan(sizeof(T));
    } else {
      Visit(value, *this);
    }
  }
  template <typename T>
  void operator()(std::vector<T>& values) {
    uint64_t count = 0;
    (*this)(count);
    if (!ok_ || count > rest_.size()) {  // every element takes at least one byte
      ok_ = false;
      return;
    }
    values.resize(count);
    for (T& value : values) (*this)(value);
  }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

template <typename First, typename Second, typename Codec>
void Visit(std::pair<First, Second>& pair, Codec& codec) {
  codec(pair.first);
  codec(pair.second);
}

template <typename Codec>
void Visit(SamplingParams& params, Codec& codec) {
  codec(params.temperature);
  codec(params.top_k);
  codec(params.top_p);
  codec(params.min_p);
  codec(params.repetition_penalty);
  codec(params.presence_penalty);
  codec(params.frequency_penalty);
  codec(params.logit_bias);
}

template <typename Codec>
void Visit(SequenceStart& start, Codec& codec) {
  codec(start.slot);
  codec(start.seed);
  codec(start.sampling);
  codec(start.logprobs);
  codec(start.logits_digest);
  codec(start.history);
  codec(start.prompt_length);
}

template <typename Codec>
void Visit(Segment& segment, Codec& codec) {
  codec(segment.slot);
  codec(segment.first_position);
  codec(segment.tokens);
  codec(segment.proposals);
  for (std::vector<int32_t>& blocks : segment.blocks) codec(blocks);
  codec(segment.sample);
  codec(segment.score_prompt);
  codec(segment.next_prompt_token);
}

template <typename Codec>
void Visit(StepPlan& plan, Codec& codec) {
  codec(plan.step);
  codec(plan.ends);
  codec(plan.starts);
  codec(plan.segments);
}

}  // namespace

std::vector<std::byte> EncodePlan(const StepPlan& plan) {
  Encoder encoder;
  encoder(plan);
  return std::move(encoder.out);
}

absl::StatusOr<StepPlan> DecodePlan(std::span<const std::byte> bytes) {
  Decoder decoder(bytes);
  StepPlan plan;
  decoder(plan);
  if (!decoder.done()) return Internal("a step plan of {} bytes is malformed", bytes.size());
  return plan;
}

}  // namespace facet
