#ifndef FACET_SHARD_WORKER_MODEL_WEIGHT_IMAGES_H_
#define FACET_SHARD_WORKER_MODEL_WEIGHT_IMAGES_H_

// A model's matrices packed once, in a file that all ranks of all groups on a host map: the page
// cache is their shared copy. The file holds whole matrices, cut into the leaves and slices that
// depend on the model only, so it serves every tensor-parallel degree.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "checkpoint/gguf.h"
#include "checkpoint/packed_cache.h"
#include "kernels/matrix_images.h"
#include "shard_worker/model/model_spec.h"
#include "shard_worker/model/shard_plan.h"
#include "shard_worker/model/tensor_roles.h"

namespace facet {

// Where packed weights are kept, and who packs.
struct WeightCache {
  PackedCache* files = nullptr;
  int load_threads = 1;
  int pack_threads = 1;  // also of the ranks that wait for the file meanwhile
  // Is given all that a rank has mapped, once only that is mapped, to have it where the rank
  // computes; may be empty.
  std::function<void(std::span<const std::byte>)> settle;
  // Hears why weights are not kept; may be empty.
  std::function<void(std::string_view)> warn;
};

// One rank's view. The matrices it gives out look into it: it outlives them.
class WeightImages {
 public:
  // Bytes of images done of bytes in all, from 0 on, while they are packed: called by one of the
  // packing threads at a time. May be empty.
  using Progress = std::function<void(int64_t done, int64_t total)>;

  // Holds nothing: every matrix is packed by itself.
  WeightImages() = default;
  // The file of this model, packed first if need be; the rank's part of it is verified and in
  // memory. The error says why it cannot be had.
  static absl::StatusOr<WeightImages> Open(const GgufModel& model, const ModelSpec& spec,
                                           const ShardPlan& plan, int rank,
                                           const MatrixImages& images, bool screened_head,
                                           const WeightCache& cache, const Progress& progress);

  // Whether the file has this tensor: it leaves out those whose leaves are not whole panels.
  bool Holds(TensorRole role, int layer) const { return Find(role, layer) != nullptr; }
  // The rank's slice; `leaves` where its columns are cut. REQUIRES: Holds().
  absl::StatusOr<std::unique_ptr<Matrix>> Load(TensorRole role, int layer,
                                               const LeafCut* leaves) const;

 private:
  struct Entry {
    TensorRole role;
    int layer = 0;
    const GgufTensor* tensor = nullptr;
    MatrixSource source;         // without its row order
    std::vector<int32_t> order;  // of rows
    ImageCut cut;
    int begin = 0;  // the rank's sections
    int end = 0;
    int64_t offset = 0;  // of the image in the data
    int64_t size = 0;
    int64_t first_section = 0;  // in the file's table

    MatrixSource Source() const;
  };
  // One section to be summed up.
  struct Section {
    const Entry* entry;
    int index;
  };

  const Entry* Find(TensorRole role, int layer) const;
  absl::Status LayOut(const GgufModel& model, const ModelSpec& spec, const ShardPlan& plan,
                      int rank, bool screened_head);
  absl::Status AddEntry(const GgufModel& model, const ModelSpec& spec, const ShardPlan& plan,
                        const TensorRow& row, int layer, int rank, bool screened_head);
  std::vector<Section> OwnSections() const;
  // The pieces of the rank's sections in order, joined where they touch.
  std::vector<ImagePiece> OwnStretches(const Entry& entry) const;
  uint64_t Sum(const PackedFile& file, const Section& section) const;
  void Populate(const PackedFile& file, ThreadPool* pool) const;
  absl::Status Check(const PackedFile& file, ThreadPool* pool) const;
  void ReleaseOthers() const;
  absl::Status Build(const GgufModel& model, const PackedFileWriter& writer, ThreadPool* pool,
                     const Progress& progress) const;

  const MatrixImages* images_ = nullptr;
  std::vector<Entry> entries_;
  PackedFileSpec file_spec_;
  PackedFile file_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_WEIGHT_IMAGES_H_
