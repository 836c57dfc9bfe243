#ifndef FACET_KERNELS_CPU_SCREENING_POLICY_H_
#define FACET_KERNELS_CPU_SCREENING_POLICY_H_

// Decides how much of the output layer a search reads at first. It sees only counts of bytes, so a
// process that is asked the same again decides the same; and nothing that it decides changes a
// reply, only how many bytes are read for it.

#include <array>
#include <cstdint>

namespace facet {

// Questions that leave similar shares of the rows to be completed.
enum class SearchKind : int { kGreedy, kSampled, kTop };
inline constexpr int kSearchKinds = 3;

struct ScreeningOptions {
  int first_share = 10;      // granules at first, per hundred
  int least_share = 5;       // and never fewer
  int most_share = 45;       // nor more
  double pays_below = 0.95;  // the smoothed cost, of that of reading the whole head
  int pause = 32;            // searches without screening before it is tried again, at first;
  int pause_max = 1024;      // twice as many after every time in vain, up to this
};

class ScreeningPolicy {
 public:
  explicit ScreeningPolicy(const ScreeningOptions& options = {}) : options_(options) {}

  // How many of `granules` the next search of this kind reads in the first pass, or -1: it had
  // better read everything at once.
  int Granules(SearchKind kind, int granules);

  // What a screened search of this kind cost, as shares of reading the whole head: the first pass,
  // of it the granules, and completing rows (1 or more: in vain).
  struct Cost {
    double first = 0;
    double granules = 0;
    double completed = 0;
  };
  void Record(SearchKind kind, const Cost& cost);

 private:
  struct State {
    double share = 0;  // of the granules; 0: not yet asked
    double cost = 0;   // smoothed
    int pause = 0;     // searches to go without screening
    int last_pause = 0;
  };

  const ScreeningOptions options_;
  std::array<State, kSearchKinds> states_;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_SCREENING_POLICY_H_
