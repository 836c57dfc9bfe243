#ifndef FACET_KERNELS_MATRIX_IMAGES_H_
#define FACET_KERNELS_MATRIX_IMAGES_H_

// Images: whole matrices in the form in which a device computes with them, as bytes that may be
// kept on disk and mapped by any number of processes. A rank computes on some sections of an image
// where they lie, so one image serves every tensor-parallel degree.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace facet {

// The parts of a matrix that different ranks may own.
struct ImageCut {
  enum Axis { kRows, kColumns };
  Axis axis = kRows;
  std::vector<int64_t> starts;  // where each section begins, and the matrix's extent at the end
  int sections() const { return static_cast<int>(starts.size()) - 1; }
};

// Consecutive bytes of an image.
struct ImagePiece {
  int64_t offset = 0;
  int64_t size = 0;
};

// How an image is packed: in bands of rows, each by itself. A band has bytes in every plane, and
// there they follow those of the band before. Together the planes are the image.
struct ImageBands {
  struct Plane {
    int64_t offset = 0;  // of the first band
    int64_t band_bytes = 0;
  };
  int64_t count = 0;
  int64_t rows = 0;           // of the matrix, in a band; the last may have fewer
  std::vector<Plane> planes;  // at most kImagePlanesMax
};
inline constexpr size_t kImagePlanesMax = 2;

// Stateless; any thread. Sources are whole matrices, which CheckSource() (host/matrix_source.h) has
// passed or Bands() refuses.
class MatrixImages {
 public:
  virtual ~MatrixImages() = default;

  // Names what images look like and changes whenever they do: images of another form are no use.
  virtual std::string form() const = 0;
  // Bytes of the image, a multiple of 64; 0 if sections of this cut cannot be used by themselves.
  virtual int64_t Size(const MatrixSource& source, const ImageCut& cut) const = 0;
  // Where a section's bytes are, in pieces of some thousand bytes; what is between sections is no
  // section's.
  virtual std::vector<ImagePiece> Pieces(const MatrixSource& source, const ImageCut& cut,
                                         int section) const = 0;
  // No piece of any cut has bytes of two bands. InvalidArgument as Device::LoadMatrix().
  virtual absl::StatusOr<ImageBands> Bands(const MatrixSource& source) const = 0;
  // Packs one band: `out` says where its bytes of each plane go, all of which are written. The
  // source may be the rows of some bands instead of a whole matrix; `band` counts from its first.
  // InvalidArgument as Device::LoadMatrix(). REQUIRES: Bands() has passed the matrix.
  virtual absl::Status PackBand(const MatrixSource& source, int64_t band,
                                std::span<std::byte* const> out) const = 0;
  // The sections [begin, end) as a matrix for this device, equal to what LoadMatrix() makes of that
  // slice. `image` is aligned to 64 bytes and outlives the matrix; only those sections are read.
  // REQUIRES: Size() is not 0; a row cut has no leaves.
  virtual absl::StatusOr<std::unique_ptr<Matrix>> Load(const MatrixSource& source,
                                                       const ImageCut& cut, int begin, int end,
                                                       const LeafCut* leaves,
                                                       const std::byte* image) const = 0;
};

}  // namespace facet

#endif  // FACET_KERNELS_MATRIX_IMAGES_H_
