#ifndef FACET_KERNELS_REFERENCE_REFERENCE_ATTENTION_H_
#define FACET_KERNELS_REFERENCE_REFERENCE_ATTENTION_H_

#include <cstdint>
#include <vector>

namespace facet {

// The keys and values one query sees, in ascending position, as floats.
struct VisibleKeys {
  int64_t first_position = 0;
  int count = 0;
  int head_dim = 0;
  std::vector<float> keys;    // [count, head_dim]
  std::vector<float> values;  // [count, head_dim]
};

struct ScoreRule {
  float scale = 1;
  float soft_cap = 0;  // 0: none
};

// out[head_dim] = the attention of one query over its keys: partial results at fixed absolute
// positions, merged in position order (kernels/README.md). REQUIRES: count >= 1.
void AttendOne(const float* query, const VisibleKeys& visible, const ScoreRule& rule, float* out);

// x = RMS(x; weight) * weight; `weight` null leaves x as it is.
void NormInPlace(float* x, int width, const float* weight, float epsilon);

// Rotates the pairs (i, i + n) of `x` by position x inverse_frequency[i], n frequencies.
void RotateInPlace(float* x, const std::vector<float>& inverse_frequency, int64_t position);

}  // namespace facet

#endif  // FACET_KERNELS_REFERENCE_REFERENCE_ATTENTION_H_
