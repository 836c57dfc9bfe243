#include "shard_worker/runtime/plan_codec.h"

#include <cstring>
#include <type_traits>

#include "base/status.h"

namespace facet {
namespace {

// One description of the layout serves both directions: Visit() calls `codec(field)` in order.
class Encoder {
 public:
  explicit Encoder(std::vector<std::byte>* out) : out_(out) {}

  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      Append(&value, sizeof(T));
    } else {
      Visit(const_cast<T&>(value), *this);
    }
  }
  template <typename T>
  void operator()(const std::vector<T>& values) {
    (*this)(uint64_t{values.size()});
    if constexpr (std::is_trivially_copyable_v<T>) {
      Append(values.data(), values.size() * sizeof(T));
    } else {
      for (const T& value : values) (*this)(value);
    }
  }

 private:
  void Append(const void* data, size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    out_->insert(out_->end(), bytes, bytes + size);
  }

  std::vector<std::byte>* const out_;
};

class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : rest_(bytes) {}
  bool done() const { return ok_ && rest_.empty(); }

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      Take(&value, sizeof(T));
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
    if constexpr (std::is_trivially_copyable_v<T>) {
      Take(values.data(), count * sizeof(T));
    } else {
      for (T& value : values) (*this)(value);
    }
  }

 private:
  void Take(void* data, size_t size) {
    ok_ = ok_ && size <= rest_.size();
    if (!ok_ || size == 0) return;
    std::memcpy(data, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }

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

void EncodePlan(const StepPlan& plan, StepForm form, std::vector<std::byte>* bytes) {
  bytes->clear();
  Encoder encoder(bytes);
  encoder(form);
  encoder(plan);
}

absl::Status DecodePlan(std::span<const std::byte> bytes, StepPlan* plan, StepForm* form) {
  Decoder decoder(bytes);
  decoder(*form);
  decoder(*plan);
  if (decoder.done() && *form <= StepForm::kOverlapping) return absl::OkStatus();
  return Internal("a step plan of {} bytes is malformed", bytes.size());
}

}  // namespace facet
