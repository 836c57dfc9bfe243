"""Writes tests/golden/tiny: the tiny models as GGUF and transformers' float32 logits for them."""

import argparse
import ctypes
import pathlib

import llama_cpp
import numpy as np
import torch
import transformers

import tiny_models

TINY = pathlib.Path(__file__).parent / "tiny"


def transformers_model(model, weights):
    common = dict(
        vocab_size=model.vocabulary, hidden_size=model.width, intermediate_size=model.ffn,
        num_hidden_layers=model.layers, num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads, head_dim=model.head_dim, rms_norm_eps=model.epsilon,
        max_position_embeddings=model.context, rope_theta=model.theta,
        tie_word_embeddings=model.tied, attn_implementation="eager")
    gelu = dict(hidden_activation="gelu_pytorch_tanh")
    if model.arch == "llama":
        config = transformers.LlamaConfig(rope_scaling=model.llama3_rope, **common)
        net = transformers.LlamaForCausalLM(config)
    elif model.arch == "gemma":
        net = transformers.GemmaForCausalLM(transformers.GemmaConfig(**gelu, **common))
    elif model.arch == "gemma2":
        net = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
            sliding_window=model.window, query_pre_attn_scalar=model.head_dim,
            attn_logit_softcapping=model.attention_cap, final_logit_softcapping=model.final_cap,
            **gelu, **common))
    else:
        scaling = {"rope_type": "linear", "factor": model.linear_rope_factor}
        net = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
            sliding_window=model.window, query_pre_attn_scalar=model.head_dim,
            rope_local_base_freq=model.local_theta,
            rope_scaling=scaling if model.linear_rope_factor else None, **gelu, **common))
    state = {name: torch.from_numpy(np.array(weight)) for name, weight in weights.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    net.tie_weights()
    return net.to(torch.float32).eval()


@torch.no_grad()
def transformers_logits(model, weights):
    net = transformers_model(model, weights)
    rows = []
    for ids, positions in tiny_models.prompts(model):
        logits = net(torch.tensor([ids]), use_cache=False).logits[0]
        rows.append(logits[positions].numpy())
    return np.concatenate(rows).astype("<f4")


def ggml_quantize(values, kind):
    """ggml's own quantiser, without an importance matrix: [rows, bytes per row]."""
    library = ctypes.CDLL(
        str(next((pathlib.Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, columns = values.shape
    source = np.ascontiguousarray(values, dtype="f4")
    row_bytes = library.ggml_row_size(ctypes.c_int(kind), ctypes.c_int64(columns))
    blocks = np.zeros((rows, row_bytes), dtype=np.uint8)
    written = library.ggml_quantize_chunk(
        ctypes.c_int(kind), source.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0), ctypes.c_int64(rows),
        ctypes.c_int64(columns), None)
    assert written == blocks.size, (written, blocks.shape)
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="only these")
    wanted = parser.parse_args().models
    torch.set_num_threads(1)
    TINY.mkdir(exist_ok=True)
    for model in tiny_models.MODELS:
        if wanted and model.name not in wanted:
            continue
        path = TINY / f"{model.name}.gguf"
        weights = tiny_models.random_weights(model)
        tiny_models.write_gguf(model, weights, path, ggml_quantize)
        if model.quantized:
            weights = tiny_models.read_weights(model, path)
        tiny_models.write_cases(model, TINY / f"{model.name}.cases")
        logits = transformers_logits(model, weights)
        (TINY / f"{model.name}.transformers.f32").write_bytes(logits.tobytes())
        print(f"{model.name}: {path.stat().st_size} bytes, logits {logits.shape}, "
              f"largest {np.abs(logits).max():.3f}, deviation {logits.std():.3f}")


if __name__ == "__main__":
    main()
