"""Records what llama.cpp says about a real model: greedy answers and the likelihood of a text.

    python make_real.py gemma3_270m  path/to/gemma-3-270m-q4_k_m.gguf
    python make_real.py smollm2_135m path/to/smollm2-135m-instruct-q4_1.gguf

Writes tests/golden/NAME.answers and NAME.text; README.md has their format.
"""

import argparse
import hashlib
import math
import pathlib
import sys

import numpy as np

import real_prompts
from llama_cpp_peer import Peer, log_softmax

HERE = pathlib.Path(__file__).parent
CHUNK = 256  # tokens evaluated at once, so that their logits fit in memory

# name -> prompts, tokens of every answer, tokens of the text
RECORDINGS = {
    "gemma3_270m": (real_prompts.GEMMA3, 64, 4000),
    "smollm2_135m": (real_prompts.SMOLLM2, 32, 2000),
}


def evaluate_last(peer, ids):
    """The logits after the last of `ids`."""
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin:begin + CHUNK]
        logits = peer.evaluate(chunk, [len(chunk) - 1])
    return logits[0]


def greedy(peer, prompt, count):
    """`count` tokens after the prompt, ends of turns included, with their log-probabilities."""
    peer.reset()
    logits = evaluate_last(peer, prompt)
    answer, log_probabilities = [], []
    while True:
        token = int(np.argmax(logits))  # the lowest id among equals
        answer.append(token)
        log_probabilities.append(log_softmax(logits)[token])
        if len(answer) == count:
            return answer, log_probabilities
        logits = evaluate_last(peer, [token])


def text_log_probabilities(peer, ids):
    """Of ids[1:], each after all before it."""
    peer.reset()
    values = []
    for begin in range(0, len(ids) - 1, CHUNK):
        chunk = ids[begin:min(begin + CHUNK, len(ids) - 1)]
        logits = log_softmax(peer.evaluate(chunk, range(len(chunk))))
        following = ids[begin + 1:begin + 1 + len(chunk)]
        values.extend(logits[np.arange(len(chunk)), following])
    return values


def line(keyword, values, form="{}"):
    return " ".join([keyword, *map(form.format, values)])


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path, file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECORDINGS)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    prompts, answer_tokens, text_tokens = RECORDINGS[args.name]
    digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
    peer = Peer(args.model, context=4096, threads=args.threads)

    lines = [f"# llama.cpp's greedy answers, end of turn ignored; model sha256 {digest}"]
    for name, text, markers in prompts:
        ids = peer.tokenize(text, markers)
        answer, log_probabilities = greedy(peer, ids, answer_tokens)
        lines += [f"# {name}", line("prompt", ids), line("answer", answer),
                  line("logprobs", log_probabilities, "{:.5f}")]
        print(f"{name}: {len(ids)} tokens, {np.mean(log_probabilities):.3f}", file=sys.stderr)
    write(HERE / f"{args.name}.answers", lines)

    ids = peer.tokenize(real_prompts.TEXT, False)
    assert len(ids) >= text_tokens, len(ids)
    ids = ids[:text_tokens]
    values = text_log_probabilities(peer, ids)
    perplexity = math.exp(-np.mean(values))
    write(HERE / f"{args.name}.text", [
        f"# llama.cpp's log-probability of every token of text.txt but the first; sha256 {digest}",
        line("text", ids), line("logprobs", values, "{:.4f}"), f"perplexity {perplexity:.5f}"])
    print(f"perplexity {perplexity:.4f} of {len(values)} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
