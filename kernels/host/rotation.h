#ifndef FACET_KERNELS_HOST_ROTATION_H_
#define FACET_KERNELS_HOST_ROTATION_H_

#include <cstdint>

namespace facet {

struct Rotation {
  float cosine = 1;
  float sine = 0;
};

// The rotation by float(position) x inverse_frequency. One function for all devices, because a
// compiler may turn a cosine and a sine of the same angle into one call or leave them two.
Rotation RotationAt(int64_t position, float inverse_frequency);

}  // namespace facet

#endif  // FACET_KERNELS_HOST_ROTATION_H_
