#include "shard_worker/model/families.h"

#include <cmath>
#include <cstring>

#include "base/status.h"

namespace facet {
namespace {

constexpr double kBaseMax = 1e9;

float SquareRoot(int value) { return std::sqrt(static_cast<float>(value)); }

void SetGemmaCommon(ModelSpec* spec) {
  spec->embedding_scale = SquareRoot(spec->width);
  for (LayerSpec& layer : spec->layers) layer.activation = Activation::kGeluTanh;
}

absl::Status Gemma1(const GgufKeys&, const GgufModel&, ModelSpec* spec) {
  SetGemmaCommon(spec);
  return absl::OkStatus();
}

// Even layers slide. The file has no key for the query scale: the 27B, known by its 46 layers,
// divides by sqrt(d / heads) where the others use the head size.
absl::Status Gemma2(const GgufKeys& keys, const GgufModel&, ModelSpec* spec) {
  SetGemmaCommon(spec);
  FACET_ASSIGN_OR_RETURN(const int64_t window,
                         keys.IntOr("attention.sliding_window", 4096, 1, 1 << 24));
  FACET_ASSIGN_OR_RETURN(const float attention_cap,
                         keys.FloatOr("attn_logit_softcapping", 50, 0, 1e6));
  FACET_ASSIGN_OR_RETURN(spec->logit_soft_cap, keys.FloatOr("final_logit_softcapping", 30, 0, 1e6));
  for (size_t i = 0; i < spec->layers.size(); ++i) {
    LayerSpec& layer = spec->layers[i];
    layer.post_norms = true;
    layer.soft_cap = attention_cap;
    if (i % 2 == 0) layer.window = window;
    if (spec->layers.size() == 46) layer.attention_scale = 1 / SquareRoot(spec->width / layer.heads);
  }
  return absl::OkStatus();
}

// Every sixth layer is global, unless the file says otherwise by a period or a flag per layer.
absl::StatusOr<std::vector<bool>> Gemma3SlidingLayers(const GgufKeys& keys, const GgufModel& model,
                                                      int layers) {
  std::vector<bool> sliding(static_cast<size_t>(layers));
  const std::string key = "gemma3.attention.sliding_window_pattern";
  if (model.Has(key) && !model.GetInt(key).ok()) {
    FACET_ASSIGN_OR_RETURN(const auto flags, model.GetPerLayer(key, layers));
    for (int i = 0; i < layers; ++i) sliding[i] = flags[i] != 0;
    return sliding;
  }
  FACET_ASSIGN_OR_RETURN(const int64_t period,
                         keys.IntOr("attention.sliding_window_pattern", 6, 1, 512));
  for (int i = 0; i < layers; ++i) sliding[i] = (i + 1) % period != 0;
  return sliding;
}

// Local layers rotate with base 10,000 and no scaling, global ones with rope index 0. The 27B,
// known by its 62 layers, scales queries by d / heads.
absl::Status Gemma3(const GgufKeys& keys, const GgufModel& model, ModelSpec* spec) {
  SetGemmaCommon(spec);
  const int layers = static_cast<int>(spec->layers.size());
  FACET_ASSIGN_OR_RETURN(const int64_t window, keys.Int("attention.sliding_window", 1, 1 << 24));
  FACET_ASSIGN_OR_RETURN(const float local_base,
                         keys.FloatOr("rope.freq_base_swa", 10000, 1, kBaseMax));
  FACET_ASSIGN_OR_RETURN(spec->logit_soft_cap, keys.FloatOr("final_logit_softcapping", 0, 0, 1e6));
  FACET_ASSIGN_OR_RETURN(const std::vector<bool> sliding,
                         Gemma3SlidingLayers(keys, model, layers));
  const int rotary = static_cast<int>(spec->ropes[0].inverse_frequency.size()) * 2;
  spec->ropes.push_back(MakeRope(rotary, local_base, 1));
  for (int i = 0; i < layers; ++i) {
    LayerSpec& layer = spec->layers[i];
    layer.qk_norm = true;
    layer.post_norms = true;
    if (sliding[i]) {
      layer.window = window;
      layer.rope = 1;
    }
    if (layers == 62) layer.attention_scale = 1 / SquareRoot(spec->width / layer.heads);
  }
  return absl::OkStatus();
}

// Llama 2/3, Mistral, SmolLM2. The converter interleaves the two halves of every q and k head;
// Llama 3's frequency scaling comes as a tensor of divisors.
absl::Status Llama(const GgufKeys&, const GgufModel& model, ModelSpec* spec) {
  spec->rotation_pairs_adjacent = true;
  const GgufTensor* divisors = model.FindTensor("rope_freqs.weight");
  if (divisors == nullptr) return absl::OkStatus();
  std::vector<float>& frequencies = spec->ropes[0].inverse_frequency;
  if (divisors->type != TensorType::kF32 ||
      divisors->elements() != static_cast<int64_t>(frequencies.size())) {
    return InvalidArgument("rope_freqs.weight: expected {} F32 values, file has {} of {}",
                           frequencies.size(), divisors->elements(),
                           FormatOf(divisors->type).name);
  }
  for (size_t i = 0; i < frequencies.size(); ++i) {
    float divisor = 0;
    std::memcpy(&divisor, divisors->data.data() + i * sizeof(float), sizeof(float));
    if (!(divisor > 0) || !std::isfinite(divisor)) {
      return InvalidArgument("rope_freqs.weight[{}]: {} is not a positive number", i, divisor);
    }
    frequencies[i] /= divisor;
  }
  return absl::OkStatus();
}

constexpr Family kFamilies[] = {
    {"gemma", Gemma1},
    {"gemma2", Gemma2},
    {"gemma3", Gemma3},
    {"llama", Llama},
};

}  // namespace

std::span<const Family> Families() { return kFamilies; }

RopeSpec MakeRope(int rotary, double base, double factor) {
  RopeSpec rope;
  rope.inverse_frequency.reserve(static_cast<size_t>(rotary) / 2);
  for (int i = 0; i < rotary / 2; ++i) {
    rope.inverse_frequency.push_back(
        static_cast<float>(std::pow(base, -2.0 * i / rotary) / factor));
  }
  return rope;
}

}  // namespace facet
