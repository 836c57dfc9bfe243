#ifndef FACET_KERNELS_COLLECTIVES_FUTEX_H_
#define FACET_KERNELS_COLLECTIVES_FUTEX_H_

// Sleeping on a word of shared memory. std::atomic::wait has neither a deadline nor a promise to
// work between processes.

#include <atomic>
#include <chrono>
#include <cstdint>

namespace facet {

// Sleeps while `word` holds `expected`, at most `timeout`; may return early for no reason.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected,
               std::chrono::nanoseconds timeout);
void FutexWakeAll(const std::atomic<uint32_t>& word);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_FUTEX_H_
