#include "serving/shutdown.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "base/check.h"

namespace facet {

namespace {

sigset_t SetOf(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  return set;
}

}  // namespace

void SignalWatcher::Block(std::initializer_list<int> signals) {
  const sigset_t set = SetOf(signals);
  FACET_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
}

SignalWatcher::SignalWatcher(std::initializer_list<int> signals,
                             std::function<void(int signal)> on_signal)
    : on_signal_(std::move(on_signal)) {
  Block(signals);
  const sigset_t set = SetOf(signals);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  FACET_CHECK(signal_fd_ >= 0 && stop_fd_ >= 0, "no file descriptors left at start");
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  FACET_CHECK(eventfd_write(stop_fd_, 1) == 0);
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

void SignalWatcher::Watch() {
  std::array<pollfd, 2> fds = {pollfd{signal_fd_, POLLIN, 0}, pollfd{stop_fd_, POLLIN, 0}};
  while (true) {
    if (poll(fds.data(), fds.size(), -1) < 0) continue;  // EINTR
    if (fds[1].revents != 0) return;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof info) == sizeof info) {
      on_signal_(static_cast<int>(info.ssi_signo));
    }
  }
}

ShutdownSignal::ShutdownSignal()
    : watcher_({SIGTERM, SIGINT}, [this](int signal) { OnSignal(signal); }) {}

void ShutdownSignal::OnSignal(int signal) {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(signalled_, true)) _exit(128 + signal);
  }
  Request();
}

void ShutdownSignal::Request() {
  {
    std::lock_guard lock(mutex_);
    requested_ = true;
  }
  changed_.notify_all();
}

bool ShutdownSignal::Requested() const {
  std::lock_guard lock(mutex_);
  return requested_;
}

void ShutdownSignal::Wait() const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return requested_; });
}

bool ShutdownSignal::WaitFor(std::chrono::milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return requested_; });
}

}  // namespace facet
