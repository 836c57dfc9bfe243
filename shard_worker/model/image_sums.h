#ifndef FACET_SHARD_WORKER_MODEL_IMAGE_SUMS_H_
#define FACET_SHARD_WORKER_MODEL_IMAGE_SUMS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/matrix_images.h"

namespace facet {

// The checksums of an image's sections (checkpoint/packed_file.h), added up piece by piece while
// the image is written and its bytes are still in a cache.
class ImageSums {
 public:
  // `offset`: where the image begins in the file's data.
  ImageSums(const MatrixImages& images, const MatrixSource& source, const ImageCut& cut,
            int64_t offset);

  // Bytes of the image, from `offset` of it on. Any thread.
  // REQUIRES: no piece lies partly in `bytes`.
  void Add(int64_t offset, std::span<const std::byte> bytes);
  // Of every section. REQUIRES: every piece has been added once.
  std::vector<uint64_t> Take() const;

 private:
  struct Piece {
    int64_t offset = 0;
    int64_t size = 0;
    int section = 0;
  };

  const int64_t image_offset_;
  std::vector<Piece> pieces_;  // in order of their offsets
  std::vector<std::atomic<uint64_t>> sums_;
  std::atomic<size_t> added_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_IMAGE_SUMS_H_
