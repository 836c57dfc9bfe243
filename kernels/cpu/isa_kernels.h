#ifndef FACET_KERNELS_CPU_ISA_KERNELS_H_
#define FACET_KERNELS_CPU_ISA_KERNELS_H_

// Declares what each per-instruction-set file adds to its table.

#include "kernels/cpu/kernel_table.h"

namespace facet {
namespace FACET_ISA {

void AddProductKernels(KernelTable* table);
void AddBfloatKernels(KernelTable* table);
void AddRowKernels(KernelTable* table);
void AddAttentionKernels(KernelTable* table);
void AddVocabularyKernels(KernelTable* table);
void AddHeadKernels(KernelTable* table);

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_ISA_KERNELS_H_
