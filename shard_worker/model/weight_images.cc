#include "shard_worker/model/weight_images.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <span>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "shard_worker/model/image_packer.h"
#include "shard_worker/model/tensor_source.h"

namespace facet {
namespace {

// The version of the order in which images follow each other, and of the pieces that are summed up.
constexpr int kOrderVersion = 2;
// Images begin with a page, so that two of them share none.
constexpr int64_t kAlignment = 4096;
// From this size on an image lies in large pages. They count as resident as soon as a rank reads
// any of their bytes, so a rank's slice must be several of them.
constexpr int64_t kLargeImage = 32 << 20;
constexpr size_t kStemMax = 64;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// A tensor's sections, and which of them are a rank's.
struct TensorCut {
  ImageCut cut;
  int begin = 0;
  int end = 0;
};

TensorCut FromCut(const Cut& cut, ImageCut::Axis axis, int64_t scale, int rank, int world) {
  TensorCut sections;
  sections.cut.axis = axis;
  sections.cut.starts = cut.RelativeStarts(0, cut.pieces());
  for (int64_t& start : sections.cut.starts) start *= scale;
  sections.begin = cut.rank_begin(rank, world);
  sections.end = cut.rank_begin(rank + 1, world);
  return sections;
}

TensorCut CutOf(const ModelSpec& spec, const ShardPlan& plan, Split split, int layer, int rank) {
  const int world = plan.world();
  if (split == Split::kVocabulary) {
    return FromCut(plan.vocabulary(), ImageCut::kRows, 1, rank, world);
  }
  const LayerPlan& layer_plan = plan.layers()[layer];
  const int64_t head_dim = spec.layers[layer].head_dim;
  switch (split) {
    case Split::kQueryHeads:
      return FromCut(layer_plan.heads, ImageCut::kRows, head_dim, rank, world);
    case Split::kHeadColumns:
      return FromCut(layer_plan.heads, ImageCut::kColumns, head_dim, rank, world);
    case Split::kFfnRows:
      return FromCut(layer_plan.ffn, ImageCut::kRows, 1, rank, world);
    case Split::kFfnColumns:
      return FromCut(layer_plan.ffn, ImageCut::kColumns, 1, rank, world);
    default:
      break;
  }
  FACET_CHECK(split == Split::kKvHeads);
  const Span mine = plan.Layer(spec, layer, rank).kv_heads;
  TensorCut sections;
  for (int64_t head = 0; head <= spec.layers[layer].kv_heads; ++head) {
    sections.cut.starts.push_back(head * head_dim);
  }
  sections.begin = static_cast<int>(mine.begin);
  sections.end = static_cast<int>(mine.end);
  return sections;
}

// Everything that decides the file's bytes, in words.
std::string KeyOf(const GgufModel& model, const MatrixImages& images, bool screened_head) {
  std::string key = fmt::format("model {:016x}\n", model.digest());
  for (const MappedFile& file : model.files()) {
    key += fmt::format("{} bytes, modified at {} ns\n", file.bytes().size(), file.modified_ns());
  }
  return key + fmt::format("{}, order {}, {} head\n", images.form(), kOrderVersion,
                           screened_head ? "screened" : "whole");
}

// One name for one model file in one form, so that what is packed anew replaces what was.
std::string FileName(const GgufModel& model, const MatrixImages& images, bool screened_head) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(model.path(), error);
  const std::string what =
      fmt::format("{}\n{}\n{}", (error ? std::filesystem::path(model.path()) : path).string(),
                  images.form(), screened_head);
  std::string stem = path.stem().string().substr(0, kStemMax);
  for (char& c : stem) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.') c = '_';
  }
  return fmt::format("{}-{:016x}", stem, PieceChecksum(0, std::as_bytes(std::span(what))));
}

// What threads that pack side by side have done.
struct SharedProgress {
  explicit SharedProgress(const WeightImages::Progress& listener) : listener(listener) {}

  void Add(int64_t bytes) {
    done += bytes;
    const std::unique_lock lock(mutex, std::try_to_lock);  // nobody waits to say how far it is
    if (lock && listener && total > 0) listener(done, total);
  }

  const WeightImages::Progress& listener;
  int64_t total = 0;
  std::atomic<int64_t> done = 0;
  std::mutex mutex;
};

std::span<const std::byte> BytesAt(const PackedFile& file, int64_t offset, int64_t size) {
  return file.data().subspan(static_cast<size_t>(offset), static_cast<size_t>(size));
}

}  // namespace

absl::StatusOr<WeightImages> WeightImages::Open(const GgufModel& model, const ModelSpec& spec,
                                                const ShardPlan& plan, int rank,
                                                const MatrixImages& images, bool screened_head,
                                                const WeightCache& cache,
                                                const Progress& progress) {
  WeightImages weights;
  weights.images_ = &images;
  FACET_RETURN_IF_ERROR(weights.LayOut(model, spec, plan, rank, screened_head));
  weights.file_spec_.key = KeyOf(model, images, screened_head);
  ThreadPool pool(cache.load_threads);
  const auto check = [&](const PackedFile& file) { return weights.Check(file, &pool); };
  bool packed = false;
  const auto build = [&](const PackedFileWriter& writer) {
    packed = true;
    ThreadPool packers(cache.pack_threads);
    return weights.Build(model, writer, &packers, progress);
  };
  FACET_ASSIGN_OR_RETURN(weights.file_, cache.files->Get(FileName(model, images, screened_head),
                                                         weights.file_spec_, check, build));
  if (packed) weights.Populate(weights.file_, &pool);
  weights.ReleaseOthers();
  if (cache.settle) cache.settle(weights.file_.data());
  return weights;
}

absl::StatusOr<std::unique_ptr<Matrix>> WeightImages::Load(TensorRole role, int layer,
                                                           const LeafCut* leaves) const {
  const Entry* entry = Find(role, layer);
  FACET_CHECK(entry != nullptr);
  return images_->Load(entry->Source(), entry->cut, entry->begin, entry->end, leaves,
                       file_.data().data() + entry->offset);
}

MatrixSource WeightImages::Entry::Source() const {
  MatrixSource whole = source;
  whole.row_order = order;
  return whole;
}

const WeightImages::Entry* WeightImages::Find(TensorRole role, int layer) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.role == role && entry.layer == layer;
  });
  return found == entries_.end() ? nullptr : &*found;
}

absl::Status WeightImages::LayOut(const GgufModel& model, const ModelSpec& spec,
                                  const ShardPlan& plan, int rank, bool screened_head) {
  for (const auto& [row, layer] : SharedTensors(spec)) {
    FACET_RETURN_IF_ERROR(AddEntry(model, spec, plan, *row, layer, rank, screened_head));
  }
  return absl::OkStatus();
}

absl::Status WeightImages::AddEntry(const GgufModel& model, const ModelSpec& spec,
                                    const ShardPlan& plan, const TensorRow& row, int layer,
                                    int rank, bool screened_head) {
  Entry entry{.role = row.role, .layer = layer};
  FACET_ASSIGN_OR_RETURN(entry.tensor, FindRole(model, spec, row.role, layer));
  entry.source = SourceOf(*entry.tensor);
  entry.source.searched = screened_head && IsHead(spec, row.role);
  const TensorCut sections = CutOf(spec, plan, row.split, layer, rank);
  entry.cut = sections.cut;
  entry.begin = sections.begin;
  entry.end = sections.end;
  if (row.split == Split::kKvHeads || row.split == Split::kQueryHeads) {
    entry.order =
        RowOrder(spec, row.role, layer, {0, entry.source.rows / spec.layers[layer].head_dim});
  }
  entry.size = images_->Size(entry.source, entry.cut);
  if (entry.size == 0) return absl::OkStatus();
  entry.offset = RoundUp(file_spec_.data_bytes, kAlignment);
  entry.first_section = file_spec_.sections;
  file_spec_.data_bytes = entry.offset + entry.size;
  file_spec_.sections += entry.cut.sections();
  entries_.push_back(std::move(entry));
  return absl::OkStatus();
}

std::vector<WeightImages::Section> WeightImages::OwnSections() const {
  std::vector<Section> sections;
  for (const Entry& entry : entries_) {
    for (int i = entry.begin; i < entry.end; ++i) sections.push_back({&entry, i});
  }
  return sections;
}

std::vector<ImagePiece> WeightImages::OwnStretches(const Entry& entry) const {
  std::vector<ImagePiece> pieces;
  for (int i = entry.begin; i < entry.end; ++i) {
    std::ranges::move(images_->Pieces(entry.source, entry.cut, i), std::back_inserter(pieces));
  }
  std::ranges::sort(pieces, {}, &ImagePiece::offset);
  std::vector<ImagePiece> stretches;
  for (const ImagePiece& piece : pieces) {
    if (!stretches.empty() && stretches.back().offset + stretches.back().size == piece.offset) {
      stretches.back().size += piece.size;
    } else {
      stretches.push_back(piece);
    }
  }
  return stretches;
}

uint64_t WeightImages::Sum(const PackedFile& file, const Section& section) const {
  const Entry& entry = *section.entry;
  uint64_t sum = 0;
  for (const ImagePiece& piece : images_->Pieces(entry.source, entry.cut, section.index)) {
    const int64_t offset = entry.offset + piece.offset;
    sum += PieceChecksum(offset, BytesAt(file, offset, piece.size));
  }
  return sum;
}

// Makes what the rank reads part of its memory.
void WeightImages::Populate(const PackedFile& file, ThreadPool* pool) const {
  for (const Entry& entry : entries_) {
    if (entry.size >= kLargeImage) continue;
    PackedFile::KeepPagesSmall(BytesAt(file, entry.offset, entry.size));
  }
  pool->ParallelFor(static_cast<int64_t>(entries_.size()), [&](int64_t i, int) {
    const Entry& entry = entries_[static_cast<size_t>(i)];
    for (const ImagePiece& stretch : OwnStretches(entry)) {
      PackedFile::Populate(BytesAt(file, entry.offset + stretch.offset, stretch.size));
    }
  });
}

absl::Status WeightImages::Check(const PackedFile& file, ThreadPool* pool) const {
  Populate(file, pool);
  const std::vector<Section> sections = OwnSections();
  std::atomic<int64_t> damaged = INT64_MAX;
  pool->ParallelFor(static_cast<int64_t>(sections.size()), [&](int64_t i, int) {
    const Section& section = sections[static_cast<size_t>(i)];
    if (Sum(file, section) != file.checksum(section.entry->first_section + section.index)) {
      damaged = i;
    }
  });
  if (damaged == INT64_MAX) return absl::OkStatus();
  return FailedPrecondition("its {} is damaged",
                            sections[static_cast<size_t>(damaged)].entry->source.name);
}

// The kernel maps neighbours of a page that is asked for, and between the columns of a rank lie the
// other ranks'. Left alone where that would split large pages.
void WeightImages::ReleaseOthers() const {
  for (const Entry& entry : entries_) {
    if (entry.size >= kLargeImage) continue;
    std::vector<ImagePiece> mine = OwnStretches(entry);
    int64_t at = 0;
    mine.push_back({entry.size, 0});
    for (const ImagePiece& piece : mine) {
      PackedFile::Release(BytesAt(file_, entry.offset + at, piece.offset - at));
      at = piece.offset + piece.size;
    }
  }
}

absl::Status WeightImages::Build(const GgufModel& model, const PackedFileWriter& writer,
                                 ThreadPool* pool, const Progress& progress) const {
  SharedProgress shared(progress);
  std::vector<ImageToPack> todo;
  for (const Entry& entry : entries_) {
    shared.total += entry.size;
    todo.push_back({entry.Source(), &entry.cut, entry.offset, entry.size,
                    /*large_pages=*/entry.size >= kLargeImage});
  }
  shared.Add(0);
  const PackingCalls calls = {.read =
                                  [&](size_t image, int64_t offset, std::span<std::byte> to) {
                                    return model.Read(*entries_[image].tensor, offset, to);
                                  },
                              .wrote = [&](int64_t bytes) { shared.Add(bytes); }};
  FACET_ASSIGN_OR_RETURN(const std::vector<uint64_t> sums,
                         PackImages(*images_, todo, writer, pool, calls));
  shared.Add(0);  // the last writers may have found somebody else at it
  return writer.Finish(sums);
}

}  // namespace facet
