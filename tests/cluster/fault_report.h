#ifndef FACET_TESTS_CLUSTER_FAULT_REPORT_H_
#define FACET_TESTS_CLUSTER_FAULT_REPORT_H_

#include <string>
#include <vector>

#include "tests/cluster/fault_injector.h"
#include "tests/cluster/group_watch.h"
#include "tests/cluster/mixed_load.h"

namespace facet::testing {

// What the faults cost, as a text: gaps after deaths and hangs while another group was up, other
// gaps apart, and the time until a replica was ready again.
//
// Nothing tells a client which group computes a choice. A rank's fault is charged with the longest
// gaps that were open at it, as many as its group had sequences, and of those with the ones that
// are longer than almost every gap of quiet times: what is left out is shorter than what is
// counted.
std::string DescribeFaults(const std::vector<Fault>& faults, const LoadResults& load,
                           const GroupWatch& groups);

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_FAULT_REPORT_H_
