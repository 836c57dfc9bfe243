#include "tests/cuda_emulator/fiber.h"

#include <sys/mman.h>

#include <boost/context/preallocated.hpp>
#include <utility>

#include "base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace facet::cuda_emulator {
namespace {

// Room for a kernel's locals, larger under a sanitizer, and a page below that faults.
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;

// The stack is the Fiber's.
struct KeepStack {
  boost::context::stack_context allocate() { return {}; }
  void deallocate(boost::context::stack_context&) noexcept {}
};

#if defined(__SANITIZE_ADDRESS__)
void BeforeSwitch(void** fake_stack, const void* to, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, to, bytes);
}
void AfterSwitch(void* fake_stack, const void** from, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
}
// What is mapped there next has no red zones of ours.
void ForgetRedZones(const void* stack, size_t bytes) {
  __asan_unpoison_memory_region(stack, bytes);
}
#else
void BeforeSwitch(void**, const void*, size_t) {}
void AfterSwitch(void*, const void**, size_t*) {}
void ForgetRedZones(const void*, size_t) {}
#endif

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  FACET_CHECK(memory != MAP_FAILED, "no memory for a fiber's stack");
  FACET_CHECK(mprotect(memory, kGuardBytes, PROT_NONE) == 0, "mprotect of a guard page");
  stack_ = static_cast<std::byte*>(memory) + kGuardBytes;
  boost::context::stack_context context;
  context.sp = stack_ + kStackBytes;
  context.size = kStackBytes;
  self_ = boost::context::fiber(
      std::allocator_arg, boost::context::preallocated(context.sp, context.size, context),
      KeepStack{}, [this](boost::context::fiber&& caller) { return Loop(std::move(caller)); });
}

Fiber::~Fiber() {
  FACET_CHECK(done(), "a fiber goes while its body is on the way");
  Resume();  // without a body, Loop() returns
  ForgetRedZones(stack_, kStackBytes);
  munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes);
}

void Fiber::Start(const std::function<void()>& body) {
  FACET_CHECK(done(), "a fiber has one body at a time");
  body_ = &body;
  Resume();
}

void Fiber::Resume() {
  void* fake_stack = nullptr;
  BeforeSwitch(&fake_stack, stack_, kStackBytes);
  self_ = std::move(self_).resume();
  AfterSwitch(fake_stack, nullptr, nullptr);
}

void Fiber::Suspend() {
  void* fake_stack = nullptr;
  BeforeSwitch(&fake_stack, caller_stack_, caller_stack_bytes_);
  caller_ = std::move(caller_).resume();
  AfterSwitch(fake_stack, &caller_stack_, &caller_stack_bytes_);
}

boost::context::fiber Fiber::Loop(boost::context::fiber&& caller) {
  AfterSwitch(nullptr, &caller_stack_, &caller_stack_bytes_);
  caller_ = std::move(caller);
  while (body_ != nullptr) {
    (*body_)();
    body_ = nullptr;
    Suspend();
  }
  BeforeSwitch(nullptr, caller_stack_, caller_stack_bytes_);  // this stack is not coming back
  return std::move(caller_);
}

}  // namespace facet::cuda_emulator
