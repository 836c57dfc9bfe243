#ifndef FACET_KERNELS_CPU_PROCESSOR_H_
#define FACET_KERNELS_CPU_PROCESSOR_H_

namespace facet {

// Whether this processor has the instructions that the kernels of this name are compiled with.
bool HasAvx2();
bool HasAvx512();
bool HasAvx512Bf16();

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PROCESSOR_H_
