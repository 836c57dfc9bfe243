#ifndef FACET_TESTS_SIMULATION_WORLD_H_
#define FACET_TESTS_SIMULATION_WORLD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/client.h"
#include "tests/simulation/processes.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/stage.h"

namespace facet::sim {

struct Outcome {
  uint64_t hash = 0;  // of the trace
  int64_t events = 0;
  std::string failure;  // the first broken invariant; empty: none
  Sights sights;
};

// One run: routers, groups and clients in one thread under virtual time, with the faults that the
// scenario asks for. Ends when every request has, or with the first broken invariant.
class World {
 public:
  World(uint64_t seed, bool print_trace);
  Outcome Run();

 private:
  void ScheduleFaults();
  void NextFault(Fault fault);
  void Inject(Fault fault);
  bool AllEnded() const;
  // Runs until `end` or a failure, or until all requests have ended if `only_requests`.
  void RunUntil(TimeUs end, bool only_requests);
  void CheckLeftovers();
  std::string Unfinished() const;

  const Scenario scenario_;
  Stage stage_;
  Dice dice_;
  std::vector<std::unique_ptr<SimGroup>> groups_;
  std::vector<LeaderPort*> leaders_;
  std::vector<std::unique_ptr<SimRouter>> routers_;
  std::vector<RouterPort*> ports_;
  std::vector<std::unique_ptr<Client>> clients_;
};

Outcome RunWorld(uint64_t seed, bool print_trace);

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_WORLD_H_
