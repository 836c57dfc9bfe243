#include "kernels/cpu/isa_kernels.h"

namespace facet {
namespace FACET_ISA {
namespace {

KernelTable MakeTable() {
  KernelTable table;
  AddProductKernels(&table);
  AddBfloatKernels(&table);
  AddRowKernels(&table);
  AddAttentionKernels(&table);
  AddVocabularyKernels(&table);
  AddHeadKernels(&table);
  return table;
}

}  // namespace

const KernelTable& Kernels() {
  static const KernelTable table = MakeTable();
  return table;
}

}  // namespace FACET_ISA
}  // namespace facet
