#ifndef FACET_TESTS_KERNELS_HEAD_SEARCH_H_
#define FACET_TESTS_KERNELS_HEAD_SEARCH_H_

// Searches of an output layer, and what the tests of them ask.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "tests/kernels/test_data.h"

namespace facet {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr int kBlockBytes = 34;  // of Q8_0: a half-precision scale, 32 weights

MatrixSource Searched(const TestMatrix& matrix);

struct Answer {
  std::vector<CandidateReply> replies;
  HeadReads reads;
};

// Of a head whose row 0 has the id 1000.
Answer Search(Device& device, const MatrixSource& source, const std::vector<float>& x,
              std::span<const CandidateQuery> queries, float soft_cap = 0,
              std::function<void(std::span<float>)> agree = nullptr);

class HeadTest : public testing::Test {
 protected:
  // Expects of all devices what the reference finds. What they read together; they are new: none
  // has learned that screening does not pay.
  HeadReads ExpectEqual(const TestMatrix& matrix, const std::vector<float>& x,
                        std::span<const CandidateQuery> queries, const std::string& what,
                        float soft_cap = 0);
};

inline CandidateQuery Greedy() { return {}; }
CandidateQuery Sampled(uint64_t key, float temperature);
CandidateQuery Top(int count, float temperature);
// Bans, biases and penalties for some rows of the head.
std::vector<LogitEdit> MakeEdits(int64_t rows, Random& random);

}  // namespace facet

#endif  // FACET_TESTS_KERNELS_HEAD_SEARCH_H_
