#ifndef FACET_TESTS_COLLECTIVES_SHARED_VALUE_H_
#define FACET_TESTS_COLLECTIVES_SHARED_VALUE_H_

#include <sys/mman.h>

#include <new>

#include "base/check.h"

namespace facet {

// A T{} that this process shares with those that it forks from now on. T is of lock-free atomics.
template <typename T>
class SharedValue {
 public:
  SharedValue() {
    void* memory =
        mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    FACET_CHECK(memory != MAP_FAILED);
    value_ = new (memory) T{};
  }
  ~SharedValue() { munmap(value_, sizeof(T)); }
  SharedValue(const SharedValue&) = delete;
  SharedValue& operator=(const SharedValue&) = delete;

  T& operator*() const { return *value_; }
  T* operator->() const { return value_; }

 private:
  T* value_;
};

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_SHARED_VALUE_H_
