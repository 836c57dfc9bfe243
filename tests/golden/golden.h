#ifndef FACET_TESTS_GOLDEN_GOLDEN_H_
#define FACET_TESTS_GOLDEN_GOLDEN_H_

// Reads what llama.cpp answered for the real models (README.md beside this file). For tests,
// which run in the source directory; a file that is missing or malformed fails a CHECK.

#include <cstdint>
#include <string>
#include <vector>

namespace facet::golden {

// A greedy answer of llama.cpp and its own log-probability of each token of it.
struct Answer {
  std::string name;
  std::vector<int32_t> prompt;
  std::vector<int32_t> ids;
  std::vector<double> log_probabilities;
};

// `name`: "gemma3_270m" or "smollm2_135m".
std::vector<Answer> ReadAnswers(const std::string& name);

// A text as llama.cpp sees it.
struct TextLikelihood {
  std::vector<int32_t> ids;
  std::vector<double> log_probabilities;  // of ids[1:], each after all before it
  double perplexity = 0;                  // exp(-mean)
};

TextLikelihood ReadText(const std::string& name);

}  // namespace facet::golden

#endif  // FACET_TESTS_GOLDEN_GOLDEN_H_
