#ifndef FACET_TESTS_CUDA_EMULATOR_FIBER_H_
#define FACET_TESTS_CUDA_EMULATOR_FIBER_H_

// A function with a stack of its own that can stop half-way and go on later. Its owner's thread
// runs it; no other thread may. The sanitizers are told of every switch.

#include <boost/context/fiber.hpp>
#include <cstddef>
#include <functional>

namespace facet::cuda_emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs `body` until it suspends or returns. No exception may leave it.
  // REQUIRES: an earlier body has returned; `body` outlives this one's return.
  void Start(const std::function<void()>& body);
  // Goes on where Suspend() left.
  void Resume();
  bool done() const { return body_ == nullptr; }

  // For the body: back to whoever called Start() or Resume().
  void Suspend();

 private:
  boost::context::fiber Loop(boost::context::fiber&& caller);

  std::byte* stack_;
  const std::function<void()>* body_ = nullptr;
  boost::context::fiber self_;
  boost::context::fiber caller_;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
};

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_FIBER_H_
