#include "kernels/reference/reference_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/canonical_math.h"
#include "kernels/device.h"
#include "kernels/host/rotation.h"

namespace facet {
namespace {

// One split's share: the largest score, the sum of exp(score - largest), and the values weighted
// by it.
struct Partial {
  float max = 0;
  float sum = 0;
  std::vector<float> out;
};

float Score(const float* query, const float* key, int head_dim, const ScoreRule& rule) {
  float a[16] = {};
  for (int d = 0; d < head_dim; ++d) a[d % 16] = std::fma(query[d], key[d], a[d % 16]);
  const float score = Tree16(a) * rule.scale;
  return rule.soft_cap == 0 ? score : SoftCapped(score, rule.soft_cap);
}

// The keys [begin, end) of `visible`, which lie in one split.
Partial AttendSplit(const float* query, const VisibleKeys& visible, const ScoreRule& rule,
                    int begin, int end) {
  const int head_dim = visible.head_dim;
  std::vector<float> scores;
  for (int i = begin; i < end; ++i) {
    scores.push_back(Score(query, &visible.keys[i * head_dim], head_dim, rule));
  }
  Partial partial;
  partial.max = *std::max_element(scores.begin(), scores.end());
  partial.out.assign(head_dim, 0.0f);
  float a[16] = {};
  for (int i = begin; i < end; ++i) {
    const float p = CanonicalExp(scores[i - begin] - partial.max);
    a[(visible.first_position + i) % 16] += p;
    const float* value = &visible.values[i * head_dim];
    for (int d = 0; d < head_dim; ++d) partial.out[d] = std::fma(p, value[d], partial.out[d]);
  }
  partial.sum = Tree16(a);
  return partial;
}

void Merge(const Partial& next, Partial* total) {
  const float max = std::max(total->max, next.max);
  const float a = CanonicalExp(total->max - max);
  const float b = CanonicalExp(next.max - max);
  total->max = max;
  total->sum = std::fma(total->sum, a, next.sum * b);
  for (size_t d = 0; d < next.out.size(); ++d) {
    total->out[d] = std::fma(total->out[d], a, next.out[d] * b);
  }
}

}  // namespace

void AttendOne(const float* query, const VisibleKeys& visible, const ScoreRule& rule, float* out) {
  Partial total;
  for (int begin = 0; begin < visible.count;) {
    const int64_t position = visible.first_position + begin;
    const int64_t split_end = (position / kSplitTokens + 1) * kSplitTokens;
    const int end =
        static_cast<int>(std::min<int64_t>(visible.count, split_end - visible.first_position));
    Partial next = AttendSplit(query, visible, rule, begin, end);
    if (begin == 0) {
      total = std::move(next);
    } else {
      Merge(next, &total);
    }
    begin = end;
  }
  const float inverse = 1.0f / total.sum;
  for (int d = 0; d < visible.head_dim; ++d) out[d] = total.out[d] * inverse;
}

void NormInPlace(float* x, int width, const float* weight, float epsilon) {
  if (weight == nullptr) return;
  float a[16] = {};
  for (int i = 0; i < width; ++i) a[i % 16] = std::fma(x[i], x[i], a[i % 16]);
  const float inverse = 1.0f / std::sqrt(Tree16(a) / static_cast<float>(width) + epsilon);
  for (int i = 0; i < width; ++i) x[i] = (x[i] * inverse) * weight[i];
}

void RotateInPlace(float* x, const std::vector<float>& inverse_frequency, int64_t position) {
  const size_t pairs = inverse_frequency.size();
  for (size_t i = 0; i < pairs; ++i) {
    const auto [c, s] = RotationAt(position, inverse_frequency[i]);
    const float a = x[i];
    const float b = x[i + pairs];
    x[i] = std::fma(a, c, -(b * s));
    x[i + pairs] = std::fma(b, c, a * s);
  }
}

}  // namespace facet
