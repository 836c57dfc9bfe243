#include "tests/runtime/call_watch.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>

#include "base/check.h"

#if defined(__x86_64__)

// Calls from here are not dispatched (Linux, Documentation/admin-guide/syscall-user-dispatch.rst):
// the return from the signal handler, and what the handler does in the caller's stead.
asm(R"(
  .text
  .globl facet_calls_begin, facet_calls_end, facet_calls_return, facet_calls_do
facet_calls_begin:
facet_calls_return:
  mov $15, %eax
  syscall
facet_calls_do:
  mov %rdi, %rax
  mov %rsi, %r11
  mov 0(%r11), %rdi
  mov 8(%r11), %rsi
  mov 16(%r11), %rdx
  mov 24(%r11), %r10
  mov 32(%r11), %r8
  mov 40(%r11), %r9
  syscall
  ret
facet_calls_end:
)");
extern "C" {
extern const char facet_calls_begin[], facet_calls_end[];
void facet_calls_return();
int64_t facet_calls_do(int64_t number, const int64_t* arguments);
}

namespace facet::testing {
namespace {

constexpr int kSetDispatch = 59;  // PR_SET_SYSCALL_USER_DISPATCH
constexpr int kDispatchOn = 1;    // PR_SYS_DISPATCH_ON
constexpr int kCallsMax = 1024;

// What the kernel looks at before every call: 0 lets it through, 1 makes it a SIGSYS.
volatile char dispatched = 0;
std::atomic<bool> watchable = false;
std::atomic<bool> counting = false;
std::array<std::atomic<int64_t>, kCallsMax> calls;
std::atomic<int64_t> locked = 0;

void WatchThisThread() {
  FACET_CHECK(prctl(kSetDispatch, kDispatchOn, facet_calls_begin,
                    facet_calls_end - facet_calls_begin, &dispatched) == 0);
}

void OnCall(int, siginfo_t* info, void* context) {
  const int number = info->si_syscall;
  FACET_CHECK(number != SYS_clone && number != SYS_clone3 && number != SYS_exit,
              "a thread was begun or ended");
  if (number >= 0 && number < kCallsMax) ++calls[static_cast<size_t>(number)];
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const int64_t arguments[] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                               registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
  registers[REG_RAX] = facet_calls_do(number, arguments);
}

// As the kernel knows it: libc's own would put libc's return in the place of ours.
struct KernelAction {
  void (*handler)(int, siginfo_t*, void*);
  uint64_t flags;
  void (*restorer)();
  uint64_t mask;
};

bool Install() {
  constexpr uint64_t kRestorer = 0x04000000;  // SA_RESTORER
  const KernelAction action = {OnCall, SA_SIGINFO | SA_NODEFER | kRestorer, facet_calls_return, 0};
  if (syscall(SYS_rt_sigaction, SIGSYS, &action, nullptr, sizeof(action.mask)) != 0) return false;
  if (prctl(kSetDispatch, kDispatchOn, facet_calls_begin, facet_calls_end - facet_calls_begin,
            &dispatched) != 0) {
    return false;  // an older kernel
  }
  watchable = true;
  return true;
}

struct Start {
  void* (*body)(void*);
  void* argument;
};

void* Begin(void* start) {
  const std::unique_ptr<Start> mine(static_cast<Start*>(start));
  if (watchable) WatchThisThread();
  return mine->body(mine->argument);
}

template <typename Function>
Function* Original(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

bool CanWatchCalls() {
  static const bool can = Install();
  return can;
}

CallWatch::CallWatch() {
  FACET_CHECK(CanWatchCalls() && !counting);
  for (std::atomic<int64_t>& call : calls) call = 0;
  locked = 0;
  counting = true;
  dispatched = 1;
}

CallWatch::~CallWatch() {
  dispatched = 0;
  counting = false;
}

std::map<int, int64_t> CallWatch::system_calls() const {
  std::map<int, int64_t> made;
  for (int number = 0; number < kCallsMax; ++number) {
    if (const int64_t count = calls[static_cast<size_t>(number)]; count > 0) made[number] = count;
  }
  return made;
}

int64_t CallWatch::locks() const { return locked; }

}  // namespace facet::testing

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*body)(void*), void* argument) {
  using facet::testing::Start;
  static const auto create = facet::testing::Original<decltype(pthread_create)>("pthread_create");
  auto start = std::make_unique<Start>(Start{body, argument});
  const int error = create(thread, attributes, facet::testing::Begin, start.get());
  if (error == 0) start.release();
  return error;
}

extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static decltype(pthread_mutex_lock)* const lock =
      facet::testing::Original<decltype(pthread_mutex_lock)>("pthread_mutex_lock");
  if (facet::testing::counting) ++facet::testing::locked;
  return lock(mutex);
}

#else

namespace facet::testing {

bool CanWatchCalls() { return false; }
CallWatch::CallWatch() { FACET_CHECK(false); }
CallWatch::~CallWatch() = default;
std::map<int, int64_t> CallWatch::system_calls() const { return {}; }
int64_t CallWatch::locks() const { return 0; }

}  // namespace facet::testing

#endif
