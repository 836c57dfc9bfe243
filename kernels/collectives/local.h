#ifndef FACET_KERNELS_COLLECTIVES_LOCAL_H_
#define FACET_KERNELS_COLLECTIVES_LOCAL_H_

// Ranks that are threads of one process: for tests, and for one process that holds a whole group.

#include <memory>
#include <vector>

#include "kernels/collectives/arena.h"
#include "kernels/collectives/communicator.h"

namespace facet {

// The communicators of ranks 0 .. world - 1; each may outlive the others.
// REQUIRES: 1 <= world <= kMaxRanks.
std::vector<std::unique_ptr<Communicator>> MakeLocalGroup(int world,
                                                          const ArenaOptions& options = {});

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_LOCAL_H_
