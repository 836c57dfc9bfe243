"""Shows that the tiny models' logits would betray the usual mistakes.

Runs transformers on a model that is wrong in one way and prints how far the logits move, as a part
of the largest: each must move by far more than the 1e-4 that tests allow.
"""

import dataclasses

import numpy as np
import torch

import make_tiny
import tiny_models

MODELS = {model.name: model for model in tiny_models.MODELS}


def changed(name, **fields):
    model = dataclasses.replace(MODELS[name], **fields)
    return MODELS[name], model, tiny_models.random_weights(MODELS[name])


def reordered(name, tensor, change):
    model = MODELS[name]
    weights = tiny_models.random_weights(model)
    for key in weights:
        if tensor in key:
            weights[key] = change(weights[key])
    return model, model, weights


MISTAKES = {
    "gemma2: window one too long": changed("gemma2", window=17),
    "gemma2: window one too short": changed("gemma2", window=15),
    "gemma2: no cap on attention": changed("gemma2", attention_cap=1e9),
    "gemma2: no cap on logits": changed("gemma2", final_cap=1e9),
    "gemma3: window one too long": changed("gemma3", window=17),
    "gemma3: window one too short": changed("gemma3", window=15),
    "gemma3: local theta everywhere": changed("gemma3", theta=1e4),
    "gemma3: global theta everywhere": changed("gemma3", local_theta=1e6),
    "gemma3_8h: no linear scaling": changed("gemma3_8h", linear_rope_factor=0.0),
    "gemma3: k_norm forgotten": reordered("gemma3", "k_norm", np.zeros_like),
    "gemma3: norms without the one": reordered("gemma3", "input_layernorm", lambda w: w - 1),
    "llama: q and k rows left interleaved": reordered(
        "llama", "k_proj", lambda w: tiny_models.interleave_rows(w, 3)),
    "llama3: no rope scaling": changed("llama3", llama3_rope=None),
    "llama: another epsilon": changed("llama", epsilon=1e-6),
}


def main():
    torch.set_num_threads(1)
    for mistake, (model, wrong, weights) in MISTAKES.items():
        recorded = np.fromfile(make_tiny.TINY / f"{model.name}.transformers.f32", "<f4")
        logits = make_tiny.transformers_logits(wrong, weights).ravel()
        moved = np.abs(logits - recorded).max() / np.abs(recorded).max()
        print(f"{moved:.1e}  {mistake}")
        assert moved > 2e-4, mistake


if __name__ == "__main__":
    main()
