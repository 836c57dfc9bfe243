#ifndef FACET_TESTS_TOKENIZER_LINEAR_TIME_H_
#define FACET_TESTS_TOKENIZER_LINEAR_TIME_H_

#include <ctime>
#include <string>

#include "absl/functional/function_ref.h"

namespace facet {

// Processor time, not wall time: the machine may be busy.
inline double SecondsFor(absl::FunctionRef<void(const std::string&)> work,
                         const std::string& text) {
  const std::clock_t start = std::clock();
  work(text);
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

// Whether work on `large`, four times as long as `small`, takes about four times as long. What else
// the machine does may slow one look down, not each of them.
inline bool TakesLinearTime(absl::FunctionRef<void(const std::string&)> work,
                            const std::string& small, const std::string& large) {
  for (int look = 0; look < 5; ++look) {
    if (SecondsFor(work, large) < 10 * SecondsFor(work, small) + 0.1) return true;
  }
  return false;
}

}  // namespace facet

#endif  // FACET_TESTS_TOKENIZER_LINEAR_TIME_H_
