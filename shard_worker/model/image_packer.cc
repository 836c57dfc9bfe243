#include "shard_worker/model/image_packer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/first_failure.h"
#include "base/status.h"
#include "shard_worker/model/image_sums.h"

namespace facet {
namespace {

// What a thread packs in one go. Where its planes begin and end, large pages may be shared with
// whoever packs the neighbours, and cost a second write.
constexpr int64_t kRunBytes = 8 << 20;

// What is read at a time: stays in a second-level cache while it is packed.
constexpr int64_t kReadBytes = 256 << 10;

// What the threads share of an image while it is packed. Made by the first of them and dropped by
// the last: the places of all pieces of a large model's images are many.
struct Packing {
  ImageToPack image;
  ImageBands bands;
  std::once_flag begun;
  std::unique_ptr<LargePages> pages;
  std::unique_ptr<ImageSums> sums;
  std::atomic<int64_t> runs_left = 0;
  std::vector<uint64_t> checksums;
};

// Bands of an image that one thread packs.
struct Run {
  size_t image = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// Consecutive bytes on their way into the file.
class Gathered {
 public:
  // The first byte that is gathered next belongs at `offset` in the data. At most `band_bytes` are
  // added at a time.
  void Begin(int64_t offset, int64_t band_bytes) {
    const auto size = static_cast<size_t>(kPackedPage + band_bytes);
    if (size > size_) bytes_ = std::make_unique_for_overwrite<std::byte[]>(size);
    size_ = std::max(size, size_);
    offset_ = offset;
    count_ = 0;
  }

  std::byte* room() { return bytes_.get() + count_; }
  int64_t end() const { return offset_ + count_; }
  void Add(int64_t bytes) { count_ += bytes; }
  int64_t count() const { return count_; }
  // How many of them end with a large page.
  int64_t WholePages() const {
    return std::max<int64_t>(0, end() / kPackedPage * kPackedPage - offset_);
  }

  // Writes the first `count` bytes; the others stay.
  absl::Status Write(int64_t count, LargePages* pages) {
    FACET_RETURN_IF_ERROR(pages->Write(offset_, {bytes_.get(), static_cast<size_t>(count)}));
    offset_ += count;
    count_ -= count;
    std::memmove(bytes_.get(), bytes_.get() + count, static_cast<size_t>(count_));
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<std::byte[]> bytes_;
  size_t size_ = 0;
  int64_t offset_ = 0;
  int64_t count_ = 0;
};

// Some rows of a matrix, read from its file.
class RowsRead {
 public:
  // Output rows [begin, end) of image `image`. Those that a row order takes them from lie near each
  // other: all between are read.
  absl::Status Read(const MatrixSource& matrix, size_t image, int64_t begin, int64_t end,
                    const PackingCalls& calls) {
    source_ = matrix;
    source_.first_row = begin;
    source_.rows = end - begin;
    order_.clear();
    if (!matrix.row_order.empty()) {
      order_.assign(matrix.row_order.begin() + begin, matrix.row_order.begin() + end);
      begin = *std::ranges::min_element(order_);
      end = *std::ranges::max_element(order_) + 1;
      for (int32_t& row : order_) row -= static_cast<int32_t>(begin);
    }
    const auto bytes = static_cast<size_t>((end - begin) * matrix.row_stride);
    if (bytes > size_) bytes_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    size_ = std::max(size_, bytes);
    source_.data = bytes_.get();
    source_.row_order = order_;
    return calls.read(image, begin * matrix.row_stride, {bytes_.get(), bytes});
  }

  const MatrixSource& source() const { return source_; }

 private:
  MatrixSource source_;
  std::vector<int32_t> order_;
  std::unique_ptr<std::byte[]> bytes_;
  size_t size_ = 0;
};

// A thread's own.
struct Workspace {
  RowsRead rows;
  std::array<Gathered, kImagePlanesMax> planes;
};

class Packer {
 public:
  Packer(const MatrixImages& images, const PackedFileWriter& writer, const PackingCalls& calls,
         size_t count)
      : images_(images), writer_(writer), calls_(calls), packings_(count) {}

  absl::Status LayOut(std::span<const ImageToPack> todo) {
    for (size_t i = 0; i < todo.size(); ++i) {
      Packing& packing = packings_[i];
      packing.image = todo[i];
      FACET_ASSIGN_OR_RETURN(packing.bands, images_.Bands(todo[i].source));
      const int64_t bands = packing.bands.count;
      FACET_CHECK(bands > 0 && todo[i].size >= bands, "{} bands in {} bytes", bands, todo[i].size);
      FACET_CHECK(packing.bands.planes.size() <= kImagePlanesMax, "{} planes",
                  packing.bands.planes.size());
      const int64_t step = std::clamp<int64_t>(kRunBytes / (todo[i].size / bands), 1, bands);
      packing.runs_left = (bands + step - 1) / step;
      for (int64_t band = 0; band < bands; band += step) {
        runs_.push_back({i, band, std::min(band + step, bands)});
      }
    }
    return absl::OkStatus();
  }

  absl::Status Pack(ThreadPool* pool) {
    std::vector<Workspace> workspaces(static_cast<size_t>(pool->threads()));
    FirstFailure failure;
    pool->ParallelFor(static_cast<int64_t>(runs_.size()), [&](int64_t run, int thread) {
      if (failure.Before(run)) return;
      failure.Note(
          run, PackRun(runs_[static_cast<size_t>(run)], workspaces[static_cast<size_t>(thread)]));
    });
    return failure.Take();
  }

  // REQUIRES: Pack() has succeeded.
  std::vector<uint64_t> Checksums() const {
    std::vector<uint64_t> checksums;
    for (const Packing& packing : packings_) {
      std::ranges::copy(packing.checksums, std::back_inserter(checksums));
    }
    return checksums;
  }

 private:
  absl::Status PackRun(const Run& run, Workspace& workspace) {
    Packing& packing = packings_[run.image];
    std::call_once(packing.begun, [&] { Begin(packing); });
    const ImageBands& bands = packing.bands;
    for (size_t i = 0; i < bands.planes.size(); ++i) {
      const auto& [offset, band_bytes] = bands.planes[i];
      workspace.planes[i].Begin(packing.image.offset + offset + run.begin * band_bytes, band_bytes);
    }
    const MatrixSource& matrix = packing.image.source;
    const int64_t step = std::max<int64_t>(1, kReadBytes / (bands.rows * matrix.row_stride));
    for (int64_t band = run.begin; band < run.end; band += step) {
      const int64_t end = std::min(band + step, run.end);
      FACET_RETURN_IF_ERROR(workspace.rows.Read(matrix, run.image, band * bands.rows,
                                                std::min(end * bands.rows, matrix.rows), calls_));
      FACET_RETURN_IF_ERROR(PackBands(packing, end - band, workspace));
    }
    for (size_t i = 0; i < bands.planes.size(); ++i) {
      Gathered& plane = workspace.planes[i];
      FACET_RETURN_IF_ERROR(Write(plane.count(), packing, plane));
    }
    if (packing.runs_left.fetch_sub(1) == 1) Finish(packing);
    return absl::OkStatus();
  }

  void Begin(Packing& packing) {
    const ImageToPack& image = packing.image;
    packing.pages =
        std::make_unique<LargePages>(writer_, image.offset, image.large_pages ? image.size : 0);
    packing.sums = std::make_unique<ImageSums>(images_, image.source, *image.cut, image.offset);
  }

  // The first `count` bands of the rows that have been read.
  absl::Status PackBands(Packing& packing, int64_t count, Workspace& workspace) {
    const std::vector<ImageBands::Plane>& planes = packing.bands.planes;
    for (int64_t band = 0; band < count; ++band) {
      std::array<std::byte*, kImagePlanesMax> out = {};
      for (size_t i = 0; i < planes.size(); ++i) out[i] = workspace.planes[i].room();
      FACET_RETURN_IF_ERROR(
          images_.PackBand(workspace.rows.source(), band, std::span(out).first(planes.size())));
      for (size_t i = 0; i < planes.size(); ++i) {
        Gathered& plane = workspace.planes[i];
        packing.sums->Add(plane.end() - packing.image.offset,
                          {out[i], static_cast<size_t>(planes[i].band_bytes)});
        plane.Add(planes[i].band_bytes);
        FACET_RETURN_IF_ERROR(Write(plane.WholePages(), packing, plane));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Write(int64_t count, Packing& packing, Gathered& gathered) {
    if (count == 0) return absl::OkStatus();
    FACET_RETURN_IF_ERROR(gathered.Write(count, packing.pages.get()));
    if (calls_.wrote) calls_.wrote(count);
    return absl::OkStatus();
  }

  void Finish(Packing& packing) {
    packing.checksums = packing.sums->Take();
    packing.sums.reset();
    packing.pages.reset();
  }

  const MatrixImages& images_;
  const PackedFileWriter& writer_;
  const PackingCalls& calls_;
  std::vector<Packing> packings_;
  std::vector<Run> runs_;
};

}  // namespace

absl::StatusOr<std::vector<uint64_t>> PackImages(const MatrixImages& images,
                                                 std::span<const ImageToPack> todo,
                                                 const PackedFileWriter& writer, ThreadPool* pool,
                                                 const PackingCalls& calls) {
  Packer packer(images, writer, calls, todo.size());
  FACET_RETURN_IF_ERROR(packer.LayOut(todo));
  FACET_RETURN_IF_ERROR(packer.Pack(pool));
  return packer.Checksums();
}

}  // namespace facet
