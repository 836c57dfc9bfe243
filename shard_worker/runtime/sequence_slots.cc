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

SequenceState::SequenceState(SequenceStart start, int64_t tokens_max) : start_(std::move(start)) {
  if (penalises()) counts_.reserve(static_cast<size_t>(tokens_max));
  for (size_t i = 0; i < start_.history.size(); ++i) {
    counts_.push_back({start_.history[i], static_cast<int>(i) >= start_.prompt_length ? 1 : 0});
  }
  start_.history.clear();
  std::sort(counts_.begin(), counts_.end(),
            [](const Count& a, const Count& b) { return a.id < b.id; });
  size_t ids = 0;
  for (const Count& count : counts_) {
    if (ids > 0 && counts_[ids - 1].id == count.id) {
      counts_[ids - 1].output += count.output;
    } else {
      counts_[ids++] = count;
    }
  }
  counts_.resize(ids);
}

std::vector<SequenceState::Count>::const_iterator SequenceState::CountOf(TokenId id) const {
  return std::lower_bound(counts_.begin(), counts_.end(), id,
                          [](const Count& count, TokenId other) { return count.id < other; });
}

void SequenceState::Append(TokenId token) {
  last_sampled_ = token;
  kept_ = false;
  if (!penalises()) return;
  auto count = counts_.begin() + (CountOf(token) - counts_.begin());
  if (count == counts_.end() || count->id != token) count = counts_.insert(count, {token, 0});
  ++count->output;
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

void SequenceState::FindEdits(int32_t first_id, int64_t rows, std::span<const TokenId> assumed,
                              std::vector<LogitEdit>* edits) const {
  const int64_t end_id = first_id + rows;
  if (!penalises()) assumed = {};
  const auto times = [assumed](TokenId id) {
    return std::count(assumed.begin(), assumed.end(), id);
  };
  edits->clear();
  edits->reserve(counts_.capacity() + start_.sampling.logit_bias.size());
  for (auto it = CountOf(first_id); it != counts_.end() && it->id < end_id; ++it) {
    edits->push_back(Penalty(it->id - first_id, it->output + times(it->id)));
  }
  // Makes the edit of a row if there is none yet.
  const auto find = [edits](int32_t row) {
    const auto edit = std::lower_bound(edits->begin(), edits->end(), row,
                                       [](const LogitEdit& e, int32_t r) { return e.row < r; });
    const bool there = edit != edits->end() && edit->row == row;
    return there ? edit : edits->insert(edit, LogitEdit{.row = row});
  };
  for (const TokenId id : assumed) {
    if (id < first_id || id >= end_id) continue;
    const auto count = CountOf(id);
    if (count != counts_.end() && count->id == id) continue;
    *find(id - first_id) = Penalty(id - first_id, times(id));
  }
  for (const auto& [id, bias] : start_.sampling.logit_bias) {
    if (id >= first_id && id < end_id) find(id - first_id)->bias = bias;
  }
}

void SequenceSlots::Apply(const StepPlan& plan) {
  for (const SlotId slot : plan.ends) states_.at(slot.value).reset();
  for (const SequenceStart& start : plan.starts) {
    std::unique_ptr<SequenceState>& state = states_.at(start.slot.value);
    FACET_CHECK(state == nullptr, "slot {} is taken", start.slot.value);
    state = std::make_unique<SequenceState>(start, tokens_max_);
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
