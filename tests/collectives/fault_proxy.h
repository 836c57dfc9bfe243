#ifndef FACET_TESTS_COLLECTIVES_FAULT_PROXY_H_
#define FACET_TESTS_COLLECTIVES_FAULT_PROXY_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/collectives/socket.h"
#include "kernels/collectives/unique_fd.h"

namespace facet {

// A poor network between two ranks: hands TCP connections on to `target`, as badly as it is told,
// for where a kernel cannot be asked for a poor link. A thread of its own; the setters are
// thread-safe and count from the next bytes on.
class FaultProxy {
 public:
  explicit FaultProxy(std::string target);
  ~FaultProxy();

  const std::string& address() const { return address_; }
  // Holds what comes for so long before it goes on.
  void Delay(std::chrono::microseconds delay) { delay_us_ = delay.count(); }
  // Hands on so many bytes at a time, with a pause of 100 us after each.
  void Throttle(size_t bytes) { chunk_ = bytes; }
  // Hands nothing on any more, and leaves the connections standing.
  void Stall() { stalled_ = true; }
  // Ends all connections at once.
  void Cut() { cut_ = true; }
  size_t bytes() const { return bytes_; }  // handed on so far

 private:
  struct Pipe {
    UniqueFd ends[2];
    std::vector<std::byte> held[2];  // from ends[i], on its way to the other
  };

  void Run();
  void Accept();
  // False once either end has closed and nothing is left to be handed on.
  bool Move(Pipe* pipe);

  const std::string target_;
  std::string address_;
  std::unique_ptr<TcpListener> listener_;
  std::vector<Pipe> pipes_;  // of the thread
  std::atomic<int64_t> delay_us_ = 0;
  std::atomic<size_t> chunk_ = size_t{64} << 10;
  std::atomic<bool> stalled_ = false;
  std::atomic<bool> cut_ = false;
  std::atomic<bool> stop_ = false;
  std::atomic<size_t> bytes_ = 0;
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_FAULT_PROXY_H_
