#ifndef FACET_KERNELS_REFERENCE_REFERENCE_VOCABULARY_H_
#define FACET_KERNELS_REFERENCE_REFERENCE_VOCABULARY_H_

#include "kernels/device.h"

namespace facet {

// Device::FindCandidates by the book: every token edited, scored and sorted.
void FindCandidatesBySorting(const float* logits, const VocabularySlices& slices,
                             const CandidateQuery& query, CandidateReply* reply);

}  // namespace facet

#endif  // FACET_KERNELS_REFERENCE_REFERENCE_VOCABULARY_H_
