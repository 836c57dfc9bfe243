#!/usr/bin/env python3
"""Facet, through the whole cluster, beside llama.cpp on the same file and cores, in one run.

    python tests/bench/compare.py --model FILE.gguf --peer-python VENV/bin/python

Each figure is measured in turn, peer, Facet, peer, Facet ..., and reported with the median of the
ratios of neighbours: these machines are noisy, only ratios count. The peer runs in its own Python
(llama_cpp_bench.py says how to build it) with as many threads as Facet has ranks x threads, and
with flash attention both on and off, of which the better counts.

Facet's figures come from `facet bench`, so gRPC, router and leader are in them: decode is the
output rate of N streams of 16 + 128 tokens, prefill 512 tokens over the time to the first token.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def facet_bench(args, streams, prompt, output, requests):
    command = [
        sys.executable, ROOT / "deploy/local/cluster.py", "--model", args.model,
        "--tp", str(args.tp), "--threads", str(args.threads), "--",
        ROOT / "build/bin/facet", "bench", "--json", f"--streams={streams}",
        f"--requests={requests}", f"--prompt-tokens={prompt}", f"--max-tokens={output}",
    ]
    out = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
    return json.loads(out.stdout.splitlines()[-1])


def facet_figures(args):
    figures = {}
    for streams in args.streams:
        result = facet_bench(args, streams, 16, 128, 2 * streams)
        figures[f"decode {streams}"] = streams / result["tpot_s"]["p50"]
    result = facet_bench(args, 1, 512, 1, 8)
    figures["prefill 512"] = 512 / result["ttft_s"]["p50"]
    return figures


def peer_figures(args):
    best = {}
    for flash in ("on", "off"):
        out = subprocess.run(
            [args.peer_python, ROOT / "tests/bench/llama_cpp_bench.py", "--model", args.model,
             "--threads", str(args.tp * args.threads), "--repeats", "2", "--flash-attention", flash,
             "--streams", *map(str, args.streams)],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        result = json.loads(out.stdout.splitlines()[-1])
        figures = {f"decode {n}": result[f"decode_{n}"] for n in args.streams}
        figures["prefill 512"] = result["prefill_512"]
        best = {name: max(value, best.get(name, 0)) for name, value in figures.items()}
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=os.path.abspath)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        rounds.append((peer_figures(args), facet_figures(args)))
        print(*rounds[-1], sep="\n", file=sys.stderr, flush=True)
    print(f"{'tokens/s':12} {'llama.cpp':>10} {'Facet':>10} {'ratio':>7}   (medians; {args.rounds} rounds)")
    for name in rounds[0][0]:
        peer = statistics.median(p[name] for p, _ in rounds)
        facet = statistics.median(f[name] for _, f in rounds)
        ratio = statistics.median(f[name] / p[name] for p, f in rounds)
        print(f"{name:12} {peer:10.1f} {facet:10.1f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
