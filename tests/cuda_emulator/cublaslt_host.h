#ifndef FACET_TESTS_CUDA_EMULATOR_CUBLASLT_HOST_H_
#define FACET_TESTS_CUDA_EMULATOR_CUBLASLT_HOST_H_

// kernels/cuda/cublaslt_api.h on the CPU: products of bf16 with the shapes' strides, exact sums
// rounded once. A run takes its turn on the stream and can be captured. Addresses that are not
// aligned, or outside device memory, end the process; what lies between an output's rows and in the
// work space is overwritten.

#include <cstdint>

namespace facet::cuda_emulator {

// What befalls the library from now on.
struct CublasLtFaults {
  bool found = true;      // whether OpenCublasLt() finds one
  int handle_status = 0;  // what making a handle says, as cublasStatus_t
  bool plans = true;      // whether it knows algorithms
  int run_status = 0;     // what a run says
  // Captures alone: what a run says while its stream is captured.
  int capture_status = 0;
};
void SetCublasLtFaults(const CublasLtFaults& faults);
// Plans made, and runs put on streams (a capture once), ever.
int64_t CublasLtPlans();
int64_t CublasLtRuns();

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_CUBLASLT_HOST_H_
