#include "router/core/live_request.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/prefix_hash.h"
#include "base/prng.h"
#include "base/status.h"

namespace facet {
namespace {

absl::Status CheckResumePoint(const RouterRequest& request, const ResumePoint& point) {
  if (point.prompt_index < 0 || point.prompt_index >= std::ssize(request.prompts)) {
    return InvalidArgument("resume: prompt_index {} is not among the {} prompts",
                           point.prompt_index, request.prompts.size());
  }
  if (point.choice_index < 0 || point.choice_index >= request.n) {
    return InvalidArgument("resume: choice_index {} is not among the {} choices",
                           point.choice_index, request.n);
  }
  const int max_tokens = request.prompts[point.prompt_index].max_tokens;
  if (std::ssize(point.tokens) > max_tokens) {
    return InvalidArgument("resume: choice {} of prompt {} has {} tokens, max_tokens is {}",
                           point.choice_index, point.prompt_index, point.tokens.size(), max_tokens);
  }
  if (!point.tokens.empty() && point.fingerprint.empty()) {
    return InvalidArgument("resume: choice {} of prompt {} has tokens and no fingerprint",
                           point.choice_index, point.prompt_index);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckResume(const RouterRequest& request) {
  std::vector<bool> seen(request.prompts.size() * request.n);
  for (const ResumePoint& point : request.resume) {
    FACET_RETURN_IF_ERROR(CheckResumePoint(request, point));
    const size_t index = static_cast<size_t>(point.prompt_index) * request.n + point.choice_index;
    if (seen[index]) {
      return InvalidArgument("resume: choice {} of prompt {} is there twice", point.choice_index,
                             point.prompt_index);
    }
    seen[index] = true;
  }
  return absl::OkStatus();
}

void MakeSequences(LiveRequest& request) {
  RouterRequest& asked = request.request;
  for (int prompt = 0; prompt < std::ssize(asked.prompts); ++prompt) {
    FACET_CHECK(!asked.prompts[prompt].tokens.empty());
    for (int choice = 0; choice < asked.n; ++choice) {
      request.sequences.push_back({.prompt_index = prompt, .choice_index = choice});
    }
  }
  for (ResumePoint& point : asked.resume) {
    RoutedSequence& sequence =
        request.sequences[request.index_of(point.prompt_index, point.choice_index)];
    sequence.emitted = std::move(point.tokens);
    sequence.resumed = static_cast<int>(sequence.emitted.size());
    sequence.fingerprint = std::move(point.fingerprint);
    if (point.finished) {
      sequence.phase = Phase::kEnded;
    } else if (sequence.resumed > 0) {
      sequence.phase = Phase::kPaused;  // until the core lets it wait for a group
    }
  }
  asked.resume.clear();
  for (size_t i = request.sequences.size(); i-- > 0;) {
    const Phase phase = request.sequences[i].phase;
    if (phase == Phase::kQueued) request.waiting.push_back(i);
    request.alive += phase != Phase::kEnded;
  }
}

bool GoesOn(const LiveRequest& request) {
  return std::any_of(request.sequences.begin(), request.sequences.end(),
                     [](const RoutedSequence& sequence) { return sequence.resumed > 0; });
}

int64_t BytesOf(const LiveRequest& request) {
  int64_t tokens = 0;
  for (const RouterPrompt& prompt : request.request.prompts) tokens += std::ssize(prompt.tokens);
  return static_cast<int64_t>(sizeof(LiveRequest)) +
         static_cast<int64_t>(sizeof(RoutedSequence)) * std::ssize(request.sequences) +
         static_cast<int64_t>(sizeof(TokenId)) * tokens + request.request.extra_bytes;
}

std::span<const uint64_t> LinksOf(LiveRequest& request, const RoutedSequence& sequence,
                                  int block_tokens) {
  request.links.resize(request.request.prompts.size());
  PromptLinks& known = request.links[sequence.prompt_index];
  if (known.block_tokens != block_tokens) {
    known.block_tokens = block_tokens;
    known.links = PrefixLinks(request.cache_salt, request.prompt(sequence).tokens, block_tokens);
  }
  return known.links;
}

Acceptance Accept(const LiveRequest& request, RoutedSequence& sequence, LeaderDelta& delta,
                  ChoiceDelta& out, TimeUs now) {
  const int known = static_cast<int>(sequence.emitted.size());
  const int prompt_known = sequence.prompt_scored;
  if (delta.offset > known || (!delta.prompt.empty() && delta.prompt_offset > prompt_known)) {
    return {.whole = false};
  }
  const RouterPrompt& prompt = request.prompt(sequence);
  out.prompt_offset = prompt_known;
  for (size_t i = prompt_known - delta.prompt_offset; i < delta.prompt.size(); ++i) {
    if (sequence.prompt_scored >= std::ssize(prompt.tokens)) break;
    out.prompt.push_back(std::move(delta.prompt[i]));
    ++sequence.prompt_scored;
  }
  out.offset = known;
  const size_t repeated = std::min(static_cast<size_t>(known - delta.offset), delta.tokens.size());
  const size_t wanted = std::min(delta.tokens.size() - repeated,
                                 static_cast<size_t>(std::max(0, prompt.max_tokens - known)));
  delta.tokens.resize(repeated + wanted);
  delta.tokens.erase(delta.tokens.begin(),
                     delta.tokens.begin() + static_cast<std::ptrdiff_t>(repeated));
  out.tokens = std::move(delta.tokens);
  for (const OutputToken& token : out.tokens) sequence.emitted.push_back(token.id);
  if (!out.tokens.empty()) {
    sequence.fruitless_deaths = sequence.fruitless_declines = 0;
    if (!std::exchange(sequence.fingerprint_told, true)) out.fingerprint = sequence.fingerprint;
    if (std::exchange(sequence.migrating, false)) out.migration_gap = now - sequence.last_token_at;
    if (known == sequence.resumed) sequence.first_token_at = now;
    sequence.last_token_at = now;
  }
  return {.duplicates = static_cast<int64_t>(repeated)};
}

ChoiceDelta DeltaOf(const SequencePlace& place) {
  const RoutedSequence& sequence = place.sequence();
  return {.request = place.request->id,
          .prompt_index = sequence.prompt_index,
          .choice_index = sequence.choice_index,
          .offset = static_cast<int>(sequence.emitted.size()),
          .prompt_offset = sequence.prompt_scored};
}

ChoiceEnd MeasuredEnd(const LiveRequest& request, const RoutedSequence& sequence, EndReason reason,
                      absl::Status status, TimeUs now) {
  ChoiceEnd end{.reason = reason, .status = std::move(status)};
  const bool placed = sequence.submissions > 0;
  const bool answered = std::ssize(sequence.emitted) > sequence.resumed;
  end.queue_us = (placed ? sequence.placed_at : now) - request.arrived_at;
  if (placed) end.prefill_us = (answered ? sequence.first_token_at : now) - sequence.placed_at;
  if (answered) end.decode_us = sequence.last_token_at - sequence.first_token_at;
  return end;
}

SubmitAction SubmitOf(const LiveRequest& request, const RoutedSequence& sequence) {
  const RouterRequest& asked = request.request;
  const RouterPrompt& prompt = request.prompt(sequence);
  SubmitAction submit{
      .group = sequence.group,
      .sequence = sequence.number,
      .prompt_length = static_cast<int>(prompt.tokens.size()),
      .seed = SequenceSeed(asked.seed, sequence.prompt_index, sequence.choice_index),
      .max_tokens = std::max(1, prompt.max_tokens),
      .cache_salt = request.cache_salt,
      .deadline = asked.deadline,
      .params = asked.params};
  submit.tokens.reserve(prompt.tokens.size() + sequence.emitted.size());
  submit.tokens = prompt.tokens;
  submit.tokens.insert(submit.tokens.end(), sequence.emitted.begin(), sequence.emitted.end());
  submit.prompt_logprobs = asked.prompt_logprobs && sequence.choice_index == 0 && !prompt.scored &&
                           sequence.prompt_scored < submit.prompt_length;
  return submit;
}

}  // namespace facet
