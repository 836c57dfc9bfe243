#ifndef FACET_KERNELS_HOST_LOGIT_EDIT_H_
#define FACET_KERNELS_HOST_LOGIT_EDIT_H_

#include "kernels/device.h"

namespace facet {

// A logit after its edit and before the temperature.
inline float EditedLogit(const LogitEdit& edit, float logit) {
  const float biased = logit + edit.bias;
  const float repeated = biased > 0 ? biased / edit.repetition : biased * edit.repetition;
  return repeated - edit.subtract;
}
// The same; `logits` is the whole row.
inline float EditedLogit(const LogitEdit& edit, const float* logits) {
  return EditedLogit(edit, logits[edit.row]);
}

// The order of candidates: descending, ties by ascending id.
inline bool ComesBefore(const Candidate& a, const Candidate& b) {
  return a.order != b.order ? a.order > b.order : a.id < b.id;
}

}  // namespace facet

#endif  // FACET_KERNELS_HOST_LOGIT_EDIT_H_
