#ifndef FACET_SERVING_SHUTDOWN_H_
#define FACET_SERVING_SHUTDOWN_H_

#include <chrono>
#include <condition_variable>
#include <functional>
#include <initializer_list>
#include <mutex>
#include <thread>

namespace facet {

// Hands signals to an ordinary thread, where a handler may lock, allocate and log.
// Construct it in main() before any other thread, or Block() the signals there first: threads
// inherit the mask, and one without it would take the signal's default action.
// `on_signal` runs on the watcher's own thread, one signal at a time.
class SignalWatcher {
 public:
  // For the calling thread and those it starts.
  static void Block(std::initializer_list<int> signals);

  SignalWatcher(std::initializer_list<int> signals, std::function<void(int signal)> on_signal);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Watch();

  std::function<void(int)> on_signal_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  std::thread thread_;
};

// Tells main() when to stop: at the first SIGTERM or SIGINT, or when the process itself asks to.
// A second signal ends the process at once with 128 + signal. Construct before any thread.
// All methods may be called on any thread.
class ShutdownSignal {
 public:
  ShutdownSignal();

  // As if a signal had come, for a process that cannot go on.
  void Request();
  bool Requested() const;
  // Returns when requested.
  void Wait() const;
  // Returns early when requested; true if it was.
  bool WaitFor(std::chrono::milliseconds timeout) const;

 private:
  void OnSignal(int signal);

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool requested_ = false;
  bool signalled_ = false;
  SignalWatcher watcher_;  // last: its thread uses the members above
};

}  // namespace facet

#endif  // FACET_SERVING_SHUTDOWN_H_
