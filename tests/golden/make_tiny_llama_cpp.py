"""Records llama.cpp's logits for the tiny models and says how far they are from transformers'.

Run after make_tiny.py. The cache of keys and values is float32, so that llama.cpp differs from
transformers only by its half-precision GELU table and, for quantised weights, by its quantised
activations.
"""

import llama_cpp
import numpy as np

import make_tiny
import tiny_models
from llama_cpp_peer import Peer

# Of the largest logit: float32 weights, then quantised ones.
TOLERANCES = (0.02, 0.1)


def llama_cpp_logits(model, path):
    peer = Peer(path, context=256, kv_type=llama_cpp.GGML_TYPE_F32)
    rows = []
    for ids, positions in tiny_models.prompts(model):
        peer.reset()
        rows.append(peer.evaluate(ids, positions))
    peer.close()
    return np.concatenate(rows).astype("<f4")


def main():
    for model in tiny_models.MODELS:
        stem = make_tiny.TINY / model.name
        logits = llama_cpp_logits(model, stem.with_suffix(".gguf"))
        stem.with_suffix(".llama_cpp.f32").write_bytes(logits.tobytes())
        reference = np.fromfile(stem.with_suffix(".transformers.f32"), "<f4")
        difference = np.abs(logits.ravel() - reference).max() / np.abs(reference).max()
        print(f"{model.name}: {difference:.2e} of the largest logit")
        assert difference < TOLERANCES[bool(model.quantized)], model.name


if __name__ == "__main__":
    main()
