#!/usr/bin/env python3
"""Measures llama.cpp on a GGUF file, as the peer that Facet's own numbers are compared with.

    CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release" \\
        pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 numpy==2.4.6
    python llama_cpp_bench.py --model FILE.gguf --threads 2

The build from source matters: PyPI's wheels, where there are any, are for the smallest common
processor. Prints one line of JSON: tokens per second as the median over --repeats, output tokens
of all streams together for decode. Greedy sampling is part of the time, tokenization is not. KV
cache f16. Nothing else should run on the machine; try --flash-attention both ways and compare with
the better.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time

import llama_cpp
import numpy as np

PROMPT_TOKENS = 16
PREFILL_TOKENS = 512
FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
GGML_LOG_LEVEL_ERROR = 4  # ggml.h; the package has no name for it


class Bench:
    """A model and a context for `streams` sequences of up to `length` tokens each."""

    def __init__(self, model, streams, length, args):
        params = llama_cpp.llama_context_default_params()
        # A cell count that is a multiple of 256 for every sequence, as llama.cpp rounds anyway.
        params.n_ctx = streams * -(-length // 256) * 256
        params.n_batch = params.n_ubatch = PREFILL_TOKENS
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = FLASH_ATTENTION[args.flash_attention]
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError(f"no context for {streams} x {length} tokens")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.streams = streams
        self.batch = llama_cpp.llama_batch_init(PREFILL_TOKENS, 0, 1)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _run(self, rows):
        """rows: (token, position, sequence, wants logits)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")

    def _greedy(self, row):
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocabulary,))))

    def prefill(self, sequence, ids):
        """The first token after a prompt."""
        last = len(ids) - 1
        self._run([(token, i, sequence, i == last) for i, token in enumerate(ids)])
        return self._greedy(last)

    def decode_step(self, tokens, position):
        """One more token of every stream."""
        self._run([(token, position, stream, True) for stream, token in enumerate(tokens)])
        return [self._greedy(stream) for stream in range(self.streams)]


def prompt(vocabulary, length, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(vocabulary // 100, vocabulary // 2, length).tolist()


def prefill_rate(model, args):
    bench = Bench(model, 1, PREFILL_TOKENS, args)
    ids = prompt(bench.vocabulary, PREFILL_TOKENS, seed=0)
    seconds = []
    for _ in range(args.repeats + 1):
        bench.clear()
        begin = time.perf_counter()
        bench.prefill(0, ids)
        seconds.append(time.perf_counter() - begin)
    bench.close()
    return PREFILL_TOKENS / statistics.median(seconds[1:])  # the first one warms up


def decode_rate(model, args, streams):
    bench = Bench(model, streams, PROMPT_TOKENS + args.tokens, args)
    rates = []
    for _ in range(args.repeats + 1):
        bench.clear()
        last = [bench.prefill(stream, prompt(bench.vocabulary, PROMPT_TOKENS, seed=stream))
                for stream in range(streams)]
        begin = time.perf_counter()
        for step in range(args.tokens):
            last = bench.decode_step(last, PROMPT_TOKENS + step)
        rates.append(streams * args.tokens / (time.perf_counter() - begin))
    bench.close()
    return statistics.median(rates[1:])


@llama_cpp.llama_log_callback
def errors_only(level, text, user_data):
    if level == GGML_LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="of every stream")
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, default="auto")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 2, 8, 32])
    args = parser.parse_args()

    llama_cpp.llama_log_set(errors_only, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        sys.exit(f"{args.model}: llama.cpp cannot load it")
    result = {
        "peer": "llama.cpp",
        "llama_cpp_python": llama_cpp.__version__,
        "model": args.model,
        "threads": args.threads,
        "flash_attention": args.flash_attention,
        "prefill_512": prefill_rate(model, args),
    }
    for streams in args.streams:
        result[f"decode_{streams}"] = decode_rate(model, args, streams)
    result = {key: round(value, 2) if isinstance(value, float) else value
              for key, value in result.items()}
    result["features"] = llama_cpp.llama_print_system_info().decode()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
