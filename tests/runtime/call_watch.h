#ifndef FACET_TESTS_RUNTIME_CALL_WATCH_H_
#define FACET_TESTS_RUNTIME_CALL_WATCH_H_

// Counts what a stretch of work asks of the system: the calls of the kernel that threads of this
// process make, and the mutexes that they lock. Linking it replaces pthread_create() and
// pthread_mutex_lock() of the whole program.

#include <cstdint>
#include <map>
#include <string>

namespace facet::testing {

// Whether this kernel and processor can tell (Linux 5.11, x86-64).
bool CanWatchCalls();

// While it lives, calls are counted: of the thread that made it, and of all threads begun after
// the first look at CanWatchCalls(). One at a time. REQUIRES: CanWatchCalls(); no thread is begun
// or ended meanwhile.
class CallWatch {
 public:
  CallWatch();
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  // So far, by the call's number (<sys/syscall.h>). What the vDSO answers (the time) is none.
  std::map<int, int64_t> system_calls() const;
  int64_t locks() const;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_RUNTIME_CALL_WATCH_H_
