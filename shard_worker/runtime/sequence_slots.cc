#include "shard_worker/runtime/sequence_slots.h"

#include <openssl/evp.h>

#include <algorithm>

#include "base/check.h"

namespace facet {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  FACET_CHECK(EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(const void* data, size_t bytes) {
  FACET_CHECK(EVP_DigestUpdate(context_->evp, data, bytes) == 1);
}

std::string Sha256::Digest() const {
  Context copy;
  FACET_CHECK(EVP_MD_CTX_copy_ex(copy.evp, context_->evp) == 1);
  std::string digest(32, '\0');
  FACET_CHECK(
      EVP_DigestFinal_ex(copy.evp, reinterpret_cast<unsigned char*>(digest.data()), nullptr) == 1);
  return digest;
}

SequenceState::SequenceState(SequenceStart start) : start_(std::move(start)) {
  for (size_t i = 0; i < start_.history.size(); ++i) {
    Count(start_.history[i], static_cast<int>(i) >= start_.prompt_length);
  }
  start_.history.clear();
}

void SequenceState::Count(TokenId token, bool output) {
  Counts& counts = counts_[token];
  ++counts.all;
  if (output) ++counts.output;
}

void SequenceState::Append(TokenId token) {
  last_sampled_ = token;
  kept_ = false;
  if (penalises()) Count(token, true);
}

void SequenceState::Keep() {
  FACET_CHECK(!penalises(), "slot {} counts its tokens", start_.slot.value);
  kept_ = true;
}

TokenId SequenceState::last_sampled() const {
  FACET_CHECK(last_sampled_.has_value(), "slot {} has sampled nothing yet", start_.slot.value);
  return *last_sampled_;
}

// The penalties of a token that was `output` times among the output.
LogitEdit SequenceState::Penalty(int32_t row, int64_t output) const {
  const SamplingParams& p = start_.sampling;
  LogitEdit edit;
  edit.row = row;
  edit.repetition = p.repetition_penalty;
  if (output > 0) {
    edit.subtract = p.presence_penalty + p.frequency_penalty * static_cast<float>(output);
  }
  return edit;
}

std::vector<LogitEdit> SequenceState::Edits(int32_t first_id, int64_t rows,
                                            std::span<const TokenId> assumed) const {
  const int64_t end_id = first_id + rows;
  if (!penalises()) assumed = {};
  const auto times = [assumed](TokenId id) {
    return std::count(assumed.begin(), assumed.end(), id);
  };
  std::vector<LogitEdit> edits;
  for (auto it = counts_.lower_bound(first_id); it != counts_.end() && it->first < end_id; ++it) {
    edits.push_back(Penalty(it->first - first_id, it->second.output + times(it->first)));
  }
  // Makes the edit of a row if there is none yet.
  const auto find = [&edits](int32_t row) {
    const auto edit = std::lower_bound(edits.begin(), edits.end(), row,
                                       [](const LogitEdit& e, int32_t r) { return e.row < r; });
    const bool there = edit != edits.end() && edit->row == row;
    return there ? edit : edits.insert(edit, LogitEdit{.row = row});
  };
  for (const TokenId id : assumed) {
    if (id < first_id || id >= end_id || counts_.contains(id)) continue;
    *find(id - first_id) = Penalty(id - first_id, times(id));
  }
  for (const auto& [id, bias] : start_.sampling.logit_bias) {
    if (id >= first_id && id < end_id) find(id - first_id)->bias = bias;
  }
  return edits;
}

void SequenceSlots::Apply(const StepPlan& plan) {
  for (const SlotId slot : plan.ends) states_.at(slot.value).reset();
  for (const SequenceStart& start : plan.starts) {
    std::unique_ptr<SequenceState>& state = states_.at(start.slot.value);
    FACET_CHECK(state == nullptr, "slot {} is taken", start.slot.value);
    state = std::make_unique<SequenceState>(start);
  }
}

SequenceState& SequenceSlots::operator[](SlotId slot) {
  FACET_CHECK(states_.at(slot.value) != nullptr, "slot {} is empty", slot.value);
  return *states_[slot.value];
}

const SequenceState& SequenceSlots::operator[](SlotId slot) const {
  FACET_CHECK(states_.at(slot.value) != nullptr, "slot {} is empty", slot.value);
  return *states_[slot.value];
}

}  // namespace facet
