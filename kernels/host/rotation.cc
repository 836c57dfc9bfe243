#include "kernels/host/rotation.h"

#include <cmath>

namespace facet {

Rotation RotationAt(int64_t position, float inverse_frequency) {
  const float angle = static_cast<float>(position) * inverse_frequency;
  return {static_cast<float>(std::cos(static_cast<double>(angle))),
          static_cast<float>(std::sin(static_cast<double>(angle)))};
}

}  // namespace facet
