#ifndef FACET_SERVING_PROGRESS_H_
#define FACET_SERVING_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace facet {

// Shows how far a load has come: on a terminal a bar that is redrawn in place at most ten times a
// second, elsewhere one plain line per 10 %. Not thread-safe.
//   loading [##########..........]  50 %  118 of 236 MB  354 MB/s
class Progress {
 public:
  struct Options {
    std::FILE* out = stderr;
    bool terminal = false;  // draw a bar
  };
  // Options for stderr as it is: a bar if it is a terminal.
  static Options ForStderr();

  Progress(std::string label, int64_t total_bytes, Options options = ForStderr());
  // Ends the bar's line if Finish() has not.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done_bytes` never decreases; values above the total count as the total.
  void Update(int64_t done_bytes);
  // Shows the end, with the mean rate.
  void Finish();

 private:
  using Clock = std::chrono::steady_clock;
  void Draw(int64_t done_bytes);
  std::string Line(int64_t done_bytes) const;
  int Percent(int64_t done_bytes) const;

  const std::string label_;
  const int64_t total_bytes_;
  const Options options_;
  // The rate counts from the first Update() on: work may begin before the bar does.
  Clock::time_point start_;
  int64_t start_bytes_ = -1;
  Clock::time_point drawn_at_;
  int64_t done_bytes_ = 0;
  int shown_decile_ = 0;  // of plain lines
  bool open_line_ = false;
  bool finished_ = false;
};

}  // namespace facet

#endif  // FACET_SERVING_PROGRESS_H_
