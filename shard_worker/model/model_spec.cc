#include "shard_worker/model/model_spec.h"

#include <cmath>

#include "base/status.h"
#include "shard_worker/model/families.h"

namespace facet {
namespace {

// Bounds of a plausible model; files come from strangers. Largest seen: 126 layers, 128 heads,
// width 16,384, ffn 53,248, vocabulary 262,208.
constexpr int64_t kLayersMax = 512;
constexpr int64_t kHeadsMax = 1024;
constexpr int64_t kHeadDimMax = 1024;
constexpr int64_t kWidthMax = 65536;
constexpr int64_t kFfnMax = 1 << 20;
constexpr int64_t kVocabularyMax = 1 << 20;
constexpr int64_t kContextMax = 1 << 24;
constexpr double kEpsilonMax = 1e-2;

absl::StatusOr<const Family*> FindFamily(std::string_view architecture) {
  std::string served;
  for (const Family& family : Families()) {
    if (family.architecture == architecture) return &family;
    served += fmt::format("{}{}", served.empty() ? "" : ", ", family.architecture);
  }
  return Unimplemented("general.architecture: '{}' is not served; Facet serves {}", architecture,
                       served);
}

absl::Status ReadHeads(const GgufKeys& keys, ModelSpec* spec) {
  const int layers = static_cast<int>(spec->layers.size());
  FACET_ASSIGN_OR_RETURN(const auto heads,
                         keys.PerLayer("attention.head_count", layers, 1, kHeadsMax));
  std::vector<int64_t> kv_heads = heads;
  if (keys.Has("attention.head_count_kv")) {
    FACET_ASSIGN_OR_RETURN(kv_heads,
                           keys.PerLayer("attention.head_count_kv", layers, 1, kHeadsMax));
  }
  FACET_ASSIGN_OR_RETURN(
      const int64_t head_dim,
      keys.IntOr("attention.key_length", spec->width / heads[0], 2, kHeadDimMax));
  FACET_ASSIGN_OR_RETURN(
      const int64_t value_dim,
      keys.IntOr("attention.value_length", head_dim, 2, kHeadDimMax));
  if (value_dim != head_dim) {
    return Unimplemented("{}.attention.value_length: {} differs from key_length {}",
                         spec->architecture, value_dim, head_dim);
  }
  if (head_dim % 2 != 0) {
    return InvalidArgument("{}.attention.key_length: {} is odd", spec->architecture, head_dim);
  }
  for (int i = 0; i < layers; ++i) {
    if (heads[i] % kv_heads[i] != 0) {
      return InvalidArgument("{}.attention.head_count: {} is not a multiple of head_count_kv {}",
                             spec->architecture, heads[i], kv_heads[i]);
    }
    LayerSpec& layer = spec->layers[i];
    layer.heads = static_cast<int>(heads[i]);
    layer.kv_heads = static_cast<int>(kv_heads[i]);
    layer.head_dim = static_cast<int>(head_dim);
    layer.attention_scale = 1 / std::sqrt(static_cast<float>(head_dim));
  }
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufKeys& keys, ModelSpec* spec) {
  const int64_t head_dim = spec->layers[0].head_dim;
  FACET_ASSIGN_OR_RETURN(const int64_t rotary,
                         keys.IntOr("rope.dimension_count", head_dim, 2, head_dim));
  FACET_ASSIGN_OR_RETURN(const float base, keys.FloatOr("rope.freq_base", 10000, 1, 1e9));
  FACET_ASSIGN_OR_RETURN(const std::string scaling, keys.StringOr("rope.scaling.type", "none"));
  double factor = 1;
  if (scaling == "linear") {
    FACET_ASSIGN_OR_RETURN(factor, keys.Float("rope.scaling.factor", 1e-3, 1e6));
  } else if (scaling != "none") {
    return Unimplemented("{}.rope.scaling.type: '{}' is not supported", spec->architecture,
                         scaling);
  }
  if (rotary % 2 != 0) {
    return InvalidArgument("{}.rope.dimension_count: {} is odd", spec->architecture, rotary);
  }
  spec->ropes = {MakeRope(static_cast<int>(rotary), base, factor)};
  return absl::OkStatus();
}

// The vocabulary's size is the embedding table's: the tokenizer's list may be shorter.
absl::Status ReadVocabulary(const GgufModel& model, ModelSpec* spec) {
  const GgufTensor* table = model.FindTensor("token_embd.weight");
  if (table == nullptr) return InvalidArgument("token_embd.weight: missing from the file");
  spec->vocabulary = table->shape[1];
  if (spec->vocabulary < 1 || spec->vocabulary > kVocabularyMax) {
    return InvalidArgument("token_embd.weight: {} rows are outside [1, {}]", spec->vocabulary,
                           kVocabularyMax);
  }
  spec->tied_head = model.FindTensor("output.weight") == nullptr;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelSpec> ReadModelSpec(const GgufModel& model) {
  ModelSpec spec;
  FACET_ASSIGN_OR_RETURN(const std::string_view architecture,
                         model.GetString("general.architecture"));
  FACET_ASSIGN_OR_RETURN(const Family* family, FindFamily(architecture));
  spec.architecture = std::string(architecture);
  if (model.Has("general.name")) {
    FACET_ASSIGN_OR_RETURN(const std::string_view name, model.GetString("general.name"));
    spec.description = std::string(name);
  }
  const GgufKeys keys(model, spec.architecture);
  FACET_ASSIGN_OR_RETURN(const int64_t layers, keys.Int("block_count", 1, kLayersMax));
  FACET_ASSIGN_OR_RETURN(const int64_t width, keys.Int("embedding_length", 2, kWidthMax));
  FACET_ASSIGN_OR_RETURN(const int64_t context, keys.Int("context_length", 1, kContextMax));
  FACET_ASSIGN_OR_RETURN(spec.epsilon,
                         keys.Float("attention.layer_norm_rms_epsilon", 1e-12, kEpsilonMax));
  spec.width = static_cast<int>(width);
  spec.context_tokens = static_cast<int>(context);
  spec.layers.resize(static_cast<size_t>(layers));
  FACET_RETURN_IF_ERROR(ReadHeads(keys, &spec));
  FACET_ASSIGN_OR_RETURN(
      const auto ffn, keys.PerLayer("feed_forward_length", static_cast<int>(layers), 1, kFfnMax));
  for (size_t i = 0; i < spec.layers.size(); ++i) spec.layers[i].ffn = ffn[i];
  FACET_RETURN_IF_ERROR(ReadRope(keys, &spec));
  FACET_RETURN_IF_ERROR(ReadVocabulary(model, &spec));
  FACET_RETURN_IF_ERROR(family->specialise(keys, model, &spec));
  return spec;
}

}  // namespace facet
