"""Compares the recordings of a real model with transformers on the same, dequantised weights.

    python check_real.py gemma3_270m path/to/gemma-3-270m-q4_k_m.gguf

A second opinion on what llama.cpp said: transformers computes in float32 and does not quantise
activations, so the difference is llama.cpp's own error. Prints, per answer, the mean log-probability
by each of the two and the mean of their absolute differences; then both perplexities of the text.
"""

import argparse
import pathlib

import gguf
import numpy as np
import torch

import make_tiny
import tiny_models

HERE = pathlib.Path(__file__).parent
CHUNK = 64  # positions whose logits are in memory at once


def described(reader):
    """The file's shape as a TinyModel: the word is wrong, the fields are right."""
    def value(key, default=None):
        field = reader.get_field(f"{arch}.{key}")
        return field.contents() if field else default

    arch = reader.get_field("general.architecture").contents()
    heads, width = value("attention.head_count"), value("embedding_length")
    tensors = {t.name: t for t in reader.tensors}
    return tiny_models.TinyModel(
        "real", arch, seed=0, layers=value("block_count"), width=width, heads=heads,
        kv_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length", width // heads),
        ffn=value("feed_forward_length"), vocabulary=int(tensors["token_embd.weight"].shape[1]),
        context=value("context_length"), theta=value("rope.freq_base"),
        window=value("attention.sliding_window", 0), tied="output.weight" not in tensors,
        epsilon=value("attention.layer_norm_rms_epsilon"))


def load(path):
    model = described(gguf.GGUFReader(path))
    return make_tiny.transformers_model(model, tiny_models.read_weights(model, path))


@torch.no_grad()
def log_probabilities(net, ids):
    """Of ids[1:]."""
    hidden = net.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, :-1]
    values = []
    for rows, following in zip(hidden.split(CHUNK), torch.tensor(ids[1:]).split(CHUNK)):
        logits = net.lm_head(rows)
        values.append(logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(values).numpy()


def records(path):
    """Keyword and values of every line of numbers."""
    for text in path.read_text(encoding="utf-8").splitlines():
        keyword, *values = text.split()
        if keyword != "#":
            yield keyword, [float(v) if keyword == "logprobs" else v for v in values]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("model", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = load(args.model)

    differences = []
    for keyword, values in records(HERE / f"{args.name}.answers"):
        if keyword == "prompt":
            prompt = list(map(int, values))
        elif keyword == "answer":
            answer = list(map(int, values))
        else:
            mine = log_probabilities(net, prompt + answer)[-len(answer):]
            differences.append(np.abs(mine - values).mean())
            print(f"{np.mean(values):.4f} {mine.mean():.4f} {differences[-1]:.4f}", flush=True)
    print(f"mean difference of a token's log-probability: {np.mean(differences):.4f}")

    text = dict(records(HERE / f"{args.name}.text"))
    mine = log_probabilities(net, list(map(int, text["text"])))
    print(f"perplexity {np.exp(-np.mean(text['logprobs'])):.4f} {np.exp(-mine.mean()):.4f}, "
          f"mean difference {np.abs(mine - text['logprobs']).mean():.4f}")


if __name__ == "__main__":
    main()
