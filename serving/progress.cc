#include "serving/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace facet {
namespace {

constexpr int kBarWidth = 30;
constexpr std::chrono::milliseconds kRedraw{100};
constexpr double kRateSecondsMin = 0.01;  // a shorter time tells no rate

double Megabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e6; }

}  // namespace

Progress::Options Progress::ForStderr() {
  return {.out = stderr, .terminal = isatty(fileno(stderr)) == 1};
}

Progress::Progress(std::string label, int64_t total_bytes, Options options)
    : label_(std::move(label)),
      total_bytes_(std::max<int64_t>(total_bytes, 0)),
      options_(options) {}

Progress::~Progress() {
  if (open_line_) std::fputc('\n', options_.out);
}

int Progress::Percent(int64_t done_bytes) const {
  if (total_bytes_ == 0) return 100;
  return static_cast<int>(static_cast<double>(done_bytes) / static_cast<double>(total_bytes_) *
                          100.0);
}

std::string Progress::Line(int64_t done_bytes) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const int percent = Percent(done_bytes);
  const int filled = percent * kBarWidth / 100;
  const std::string bar = options_.terminal
                              ? fmt::format(" [{:#<{}}{:.<{}}]", "", filled, "", kBarWidth - filled)
                              : std::string(":");
  std::string line = fmt::format("{}{} {:3} %  {:.0f} of {:.0f} MB", label_, bar, percent,
                                 Megabytes(done_bytes), Megabytes(total_bytes_));
  if (start_bytes_ >= 0 && seconds >= kRateSecondsMin) {
    line += fmt::format("  {:.0f} MB/s", Megabytes(done_bytes - start_bytes_) / seconds);
  }
  return line;
}

void Progress::Draw(int64_t done_bytes) {
  if (options_.terminal) {
    fmt::print(options_.out, "\r{}\x1b[K", Line(done_bytes));
    open_line_ = true;
  } else {
    fmt::print(options_.out, "{}\n", Line(done_bytes));
  }
  std::fflush(options_.out);
}

void Progress::Update(int64_t done_bytes) {
  done_bytes_ = std::clamp(done_bytes, done_bytes_, std::max(total_bytes_, done_bytes_));
  if (start_bytes_ < 0) {
    start_bytes_ = done_bytes_;
    start_ = Clock::now();
  }
  if (options_.terminal) {
    const Clock::time_point now = Clock::now();
    if (now - drawn_at_ < kRedraw) return;
    drawn_at_ = now;
    Draw(done_bytes_);
    return;
  }
  // The last line belongs to Finish().
  const int decile = std::min(Percent(done_bytes_) / 10, 9);
  if (decile == shown_decile_) return;
  shown_decile_ = decile;
  Draw(done_bytes_);
}

void Progress::Finish() {
  if (std::exchange(finished_, true)) return;
  Draw(total_bytes_);
  if (std::exchange(open_line_, false)) std::fputc('\n', options_.out);
}

}  // namespace facet
