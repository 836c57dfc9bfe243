#ifndef FACET_TESTS_CLUSTER_PROCESS_H_
#define FACET_TESTS_CLUSTER_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace facet::testing {

// A child process with its output in a file. Killed and reaped when the object goes.
class Process {
 public:
  static absl::StatusOr<Process> Spawn(const std::vector<std::string>& command,
                                       const std::string& log_path);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // The exit code (128 + signal if killed), or nothing after `timeout`.
  std::optional<int> Wait(std::chrono::milliseconds timeout);
  bool running() { return !Wait(std::chrono::milliseconds(0)).has_value(); }
  std::string Log() const;
  // Resident memory now (VmRSS: file and shared pages counted).
  int64_t ResidentBytes() const;
  // CPU time used so far, seconds.
  double CpuSeconds() const;

 private:
  Process(pid_t pid, std::string log_path) : pid_(pid), log_path_(std::move(log_path)) {}

  pid_t pid_ = -1;
  std::string log_path_;
  std::optional<int> exit_code_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_PROCESS_H_
