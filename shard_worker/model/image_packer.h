#ifndef FACET_SHARD_WORKER_MODEL_IMAGE_PACKER_H_
#define FACET_SHARD_WORKER_MODEL_IMAGE_PACKER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "checkpoint/packed_file.h"
#include "kernels/matrix_images.h"

namespace facet {

// A matrix to be packed into a file.
struct ImageToPack {
  MatrixSource source;  // the whole matrix, rows one after another; its data are not looked at
  const ImageCut* cut = nullptr;
  int64_t offset = 0;  // of the image in the file's data
  int64_t size = 0;    // not 0
  bool large_pages = false;
};

// Called by all threads.
struct PackingCalls {
  // Copies bytes of an image's matrix, from `offset` of its data on.
  std::function<absl::Status(size_t image, int64_t offset, std::span<std::byte> to)> read;
  std::function<void(int64_t bytes)> wrote;  // hears of so many more; may be empty
};

// Packs images into a file's data with all threads of a pool, and returns the checksums of all
// their sections. No thread waits for another where an image ends, and what goes into the file
// goes there whole large pages at a time: only one thread at a time may write to a file, so writes
// must be few, and none be made twice. InvalidArgument, or the reader's or writer's error: that of
// the first bytes in the order of the images.
absl::StatusOr<std::vector<uint64_t>> PackImages(const MatrixImages& images,
                                                 std::span<const ImageToPack> todo,
                                                 const PackedFileWriter& writer, ThreadPool* pool,
                                                 const PackingCalls& calls);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_IMAGE_PACKER_H_
