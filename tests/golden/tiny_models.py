"""Tiny random models, one per family: their shapes, their weights and the GGUF files that hold them.

A model is described once, as a TinyModel, in the vocabulary of transformers. From that follow the
transformers configuration (transformers_config), the weights under transformers' names
(random_weights) and the GGUF file with the names, the row order and the norm convention of
llama.cpp's converter (write_gguf).
"""

import dataclasses
import math

import gguf
import numpy as np

TYPES = gguf.GGMLQuantizationType


@dataclasses.dataclass(frozen=True)
class TinyModel:
    name: str
    arch: str  # GGUF's general.architecture
    seed: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int = 512
    theta: float = 10000.0
    local_theta: float = 10000.0  # gemma3's sliding-window layers
    linear_rope_factor: float = 0.0  # gemma3's global layers; 0: none
    llama3_rope: dict | None = None
    window: int = 0
    attention_cap: float = 0.0
    final_cap: float = 0.0
    tied: bool = True
    epsilon: float = 1e-6
    # GGUF tensor name without ".weight" and "blk.N." -> types taken in turn by layer.
    quantized: dict[str, tuple[TYPES, ...]] = dataclasses.field(default_factory=dict)

    @property
    def is_gemma(self):
        return self.arch.startswith("gemma")

    @property
    def has_post_norms(self):
        return self.arch in ("gemma2", "gemma3")


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Every type on tensors that eight ranks can still share: 256-element blocks only along the model
# width, 32-element blocks along heads and feed-forward, which ranks cut.
GEMMA3_8H_TYPES = {
    "token_embd": (TYPES.Q6_K,),
    "attn_q": (TYPES.Q4_K, TYPES.Q5_K, TYPES.Q6_K),
    "attn_k": (TYPES.Q5_K, TYPES.Q4_K, TYPES.Q8_0, TYPES.BF16),
    "attn_v": (TYPES.Q6_K, TYPES.Q8_0, TYPES.F16),
    "attn_output": (TYPES.Q4_0, TYPES.Q5_0, TYPES.Q8_0, TYPES.Q4_1, TYPES.F16, TYPES.Q5_1),
    "ffn_gate": (TYPES.Q4_0, TYPES.Q4_1, TYPES.Q5_0, TYPES.Q5_1, TYPES.Q8_0),
    "ffn_up": (TYPES.Q4_1, TYPES.Q4_0, TYPES.Q5_0, TYPES.Q4_0),
    "ffn_down": (TYPES.Q8_0, TYPES.Q5_0, TYPES.Q4_1, TYPES.Q4_0, TYPES.Q5_1),
}

# 256-element blocks along the feed-forward width too, as Q4_K_M files have them: three ranks.
LLAMA_TYPES = {
    "token_embd": (TYPES.Q8_0,),
    "attn_q": (TYPES.Q4_1, TYPES.Q4_K),
    "attn_k": (TYPES.Q4_1, TYPES.F32),
    "attn_v": (TYPES.Q4_0, TYPES.Q6_K),
    "attn_output": (TYPES.Q4_1, TYPES.Q5_1),
    "ffn_gate": (TYPES.Q4_K, TYPES.Q5_K),
    "ffn_up": (TYPES.Q4_K, TYPES.Q4_K),
    "ffn_down": (TYPES.Q6_K, TYPES.Q5_K),
}

MODELS = [
    TinyModel("gemma", "gemma", seed=1, layers=2, width=64, heads=4, kv_heads=1, head_dim=32,
              ffn=96, vocabulary=320),
    TinyModel("gemma2", "gemma2", seed=2, layers=4, width=32, heads=4, kv_heads=2, head_dim=16,
              ffn=96, vocabulary=320, window=16, attention_cap=5.0, final_cap=6.0),
    TinyModel("gemma3", "gemma3", seed=3, layers=7, width=32, heads=4, kv_heads=1, head_dim=16,
              ffn=64, vocabulary=320, theta=1e6, window=16),
    TinyModel("gemma3_8h", "gemma3", seed=4, layers=6, width=32, heads=8, kv_heads=2, head_dim=16,
              ffn=64, vocabulary=320, theta=1e6, linear_rope_factor=8.0, window=16),
    TinyModel("llama", "llama", seed=5, layers=3, width=32, heads=9, kv_heads=3, head_dim=16,
              ffn=96, vocabulary=320, theta=100000.0, epsilon=1e-5),
    TinyModel("llama3", "llama", seed=6, layers=2, width=64, heads=4, kv_heads=2, head_dim=16,
              ffn=96, vocabulary=307, theta=10000.0, llama3_rope=LLAMA3_ROPE, tied=False,
              epsilon=1e-5),
    TinyModel("gemma3_8h_quantized", "gemma3", seed=7, layers=6, width=256, heads=8, kv_heads=1,
              head_dim=32, ffn=256, vocabulary=320, theta=1e6, window=16,
              quantized=GEMMA3_8H_TYPES),
    TinyModel("llama_quantized", "llama", seed=8, layers=2, width=256, heads=9, kv_heads=3,
              head_dim=32, ffn=768, vocabulary=320, theta=100000.0, epsilon=1e-5,
              quantized=LLAMA_TYPES),
]


def parameters(model):
    """Yields transformers' parameter names with their shape and gain.

    The gains make every part matter: attention that is neither flat nor one-hot, branches about as
    large as the residual they join, logits spread over a few units.
    """
    width = (model.width,)
    q_rows, kv_rows = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "model.embed_tokens.weight", (model.vocabulary, model.width), 1.5
    for i in range(model.layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", width, 1.0
        yield p + "self_attn.q_proj.weight", (q_rows, model.width), 1.4
        yield p + "self_attn.k_proj.weight", (kv_rows, model.width), 1.4
        yield p + "self_attn.v_proj.weight", (kv_rows, model.width), 1.0
        yield p + "self_attn.o_proj.weight", (model.width, q_rows), 1.5
        if model.arch == "gemma3":
            yield p + "self_attn.q_norm.weight", (model.head_dim,), 1.4
            yield p + "self_attn.k_norm.weight", (model.head_dim,), 1.4
        yield p + "post_attention_layernorm.weight", width, 1.0
        if model.has_post_norms:
            yield p + "pre_feedforward_layernorm.weight", width, 1.0
            yield p + "post_feedforward_layernorm.weight", width, 1.0
        yield p + "mlp.gate_proj.weight", (model.ffn, model.width), 1.0
        yield p + "mlp.up_proj.weight", (model.ffn, model.width), 1.0
        yield p + "mlp.down_proj.weight", (model.width, model.ffn), 1.5
    yield "model.norm.weight", width, 1.0
    if not model.tied:
        yield "lm_head.weight", (model.vocabulary, model.width), 2.0


def random_weights(model):
    """transformers' parameter names -> float32 arrays, the same on every machine."""
    rng = np.random.default_rng(model.seed)
    weights = {}
    for name, shape, gain in parameters(model):
        if len(shape) == 2:
            values = rng.standard_normal(shape) * (gain / math.sqrt(shape[1]))
        else:  # a norm: transformers' Gemma holds what is added to one
            values = gain * rng.uniform(0.5, 1.5, shape) - model.is_gemma
        weights[name] = values.astype("f4")
    return weights


def gguf_name(model, name):
    """transformers' parameter name -> GGUF's tensor name."""
    post_attention = "post_attention_norm" if model.has_post_norms else "ffn_norm"
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": post_attention,
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{parts[rest.removesuffix('.weight')]}.weight"


def interleave_rows(weight, heads):
    """Row order of q and k in `llama` files: the halves of every head interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def deinterleave_rows(weight, heads):
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def rotated_heads(model, name):
    """Heads of a tensor whose rows a `llama` file interleaves, or 0."""
    if model.arch != "llama":
        return 0
    return {"q_proj": model.heads, "k_proj": model.kv_heads}.get(name.split(".")[-2], 0)


def to_gguf_values(model, name, weight):
    if model.is_gemma and name.endswith("norm.weight"):
        return weight + np.float32(1)  # GGUF stores the effective weight
    heads = rotated_heads(model, name)
    return interleave_rows(weight, heads) if heads else weight


def from_gguf_values(model, name, values):
    if model.is_gemma and name.endswith("norm.weight"):
        return values - np.float32(1)
    heads = rotated_heads(model, name)
    return deinterleave_rows(values, heads) if heads else values


def tensor_type(model, name):
    stem = name.removesuffix(".weight")
    layer = 0
    if stem.startswith("blk."):
        _, number, stem = stem.split(".")
        layer = int(number)
    types = model.quantized.get(stem, (TYPES.F32,))
    return types[layer % len(types)]


def rope_divisors(model):
    """rope_freqs.weight: what llama 3's scaling divides the inverse frequencies by."""
    s = model.llama3_rope
    inverse = model.theta ** -(np.arange(0, model.head_dim, 2) / model.head_dim)
    wavelength = 2 * np.pi / inverse
    length = s["original_max_position_embeddings"]
    low, high, factor = s["low_freq_factor"], s["high_freq_factor"], s["factor"]
    smooth = (length / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < length / high, 1.0,
                    np.where(wavelength > length / low, factor, between)).astype("f4")


def add_metadata(writer, model):
    writer.add_name(f"tiny random {model.name}")
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(model.epsilon)
    if model.arch in ("gemma3", "llama"):
        writer.add_rope_freq_base(model.theta)
    if model.arch == "llama":
        writer.add_rope_dimension_count(model.head_dim)
        writer.add_vocab_size(model.vocabulary)
    if model.linear_rope_factor:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.linear_rope_factor)
    if model.window:
        writer.add_sliding_window(model.window)
    if model.attention_cap:
        writer.add_attn_logit_softcapping(model.attention_cap)
    if model.final_cap:
        writer.add_final_logit_softcapping(model.final_cap)


def add_vocabulary(writer, model):
    """A SentencePiece-like vocabulary: controls, the 256 bytes, and pieces up to the size."""
    kinds = gguf.TokenType
    controls = ["<pad>", "<eos>", "<bos>", "<unk>"] if model.is_gemma else ["<unk>", "<s>", "</s>"]
    tokens = [(text, kinds.UNKNOWN if text == "<unk>" else kinds.CONTROL) for text in controls]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    letters = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,"
    pieces = list(letters) + ["\u2581" + a for a in letters[1:]]
    tokens += [(piece, kinds.NORMAL) for piece in pieces[: model.vocabulary - len(tokens)]]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(2 if model.is_gemma else 1)
    writer.add_eos_token_id(1 if model.is_gemma else 2)
    writer.add_unk_token_id(3 if model.is_gemma else 0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def write_gguf(model, weights, path, quantize):
    """Writes the model. `quantize(values, type)` returns the blocks of a matrix as bytes per row."""
    writer = gguf.GGUFWriter(path, model.arch)
    add_metadata(writer, model)
    add_vocabulary(writer, model)
    if model.llama3_rope:
        writer.add_tensor("rope_freqs.weight", rope_divisors(model))
    for name, weight in weights.items():
        stored = to_gguf_values(model, name, weight)
        tensor = gguf_name(model, name)
        kind = tensor_type(model, tensor)
        if kind == TYPES.F32:
            writer.add_tensor(tensor, np.ascontiguousarray(stored))
        else:
            writer.add_tensor(tensor, quantize(stored, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_weights(model, path):
    """The weights of a file written by write_gguf, dequantised, under transformers' names."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    weights = {}
    for name, _, _ in parameters(model):
        values = np.asarray(tensors[gguf_name(model, name)], dtype="f4")
        weights[name] = from_gguf_values(model, name, values)
    return weights


def prompts(model):
    """Token ids and, for each prompt, the positions whose logits are recorded."""
    rng = np.random.default_rng(100 + model.seed)
    bos = 2 if model.is_gemma else 1
    cases = []
    for length, positions in [
        (1, [0]),
        (7, range(7)),
        # the start, the edge of a window of 16, the middle and the end
        (60, [0, 1, 2, 14, 15, 16, 17, 31, 32, 47, *range(52, 60)]),
        # past a block of 64 tokens, twice
        (150, [62, 63, 64, 65, 127, 128, 148, 149]),
    ]:
        ids = [bos, *rng.integers(3, model.vocabulary, length - 1).tolist()]
        cases.append((ids, list(positions)))
    return cases


def write_cases(model, path):
    """The text file a test reads: see README.md, "Tiny models"."""
    lines = [f"vocabulary {model.vocabulary}"]
    for ids, positions in prompts(model):
        lines.append("prompt " + " ".join(map(str, ids)))
        lines.append("positions " + " ".join(map(str, positions)))
    path.write_text("\n".join(lines) + "\n")
