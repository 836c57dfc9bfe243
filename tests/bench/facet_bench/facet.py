"""Facet's side of every figure: through router and gRPC with `facet bench`, and the same engine in
one process."""

import contextlib
import functools
import json
import re
import subprocess
import sys

from facet_bench.machine import BINARIES, ROOT

sys.path.insert(0, str(ROOT / "deploy" / "local"))
import cluster as launcher  # noqa: E402


class Cluster:
    """A running cluster of one group."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def bench(self, **flags):
        """`facet bench` with the flags, greedy; its JSON."""
        words = [f"--{name}={value}" for name, value in flags.items()]
        out = subprocess.run(
            [BINARIES / "facet", "bench", "--json", f"--endpoint={self.endpoint}",
             "--temperature=0", *words], check=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)
        return json.loads(out.stdout)

    def decode(self, streams, tokens):
        result = self.bench(streams=streams, requests=streams, prompt_tokens=16,
                            max_tokens=tokens + 1)
        return streams / result["tpot_s"]["p50"]

    def prefill(self, repeats):
        result = self.bench(streams=1, requests=repeats, prompt_tokens=512, max_tokens=1)
        return 512 / result["ttft_s"]["p50"]

    def serve(self, streams, requests, prompt, output):
        result = self.bench(streams=streams, requests=requests, prompt_tokens=prompt,
                            max_tokens=output)
        return {"output_tokens_per_s": result["output_tokens_per_s"],
                "ttft_p50_ms": 1e3 * result["ttft_s"]["p50"],
                "itl_p99_ms": 1e3 * result["itl_s"]["p99"]}

    def open_loop(self, rate, requests, prompt, output):
        result = self.bench(rate=rate, requests=requests, prompt_tokens=prompt, max_tokens=output)
        return {"ttft_p50_s": result["ttft_s"]["p50"], "ttft_p99_s": result["ttft_s"]["p99"],
                "tpot_p50_s": result["tpot_s"]["p50"], "late": result["late"]}

    def profile(self, streams, tokens, prompt, limits):
        known = ",".join(str(limits[name]) for name in ("read_gb_s", "int8_gop_s", "f32_gop_s"))
        return self.bench(streams=streams, requests=streams, prompt_tokens=prompt,
                          max_tokens=tokens, profile="true", limits=known)["profile"]

    def _generate(self, ids, *flags):
        out = subprocess.run(
            [BINARIES / "facet", "generate", "--json", f"--endpoint={self.endpoint}",
             "--temperature=0", "--ignore_eos", "--token_ids=" + ",".join(map(str, ids)), *flags],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return json.loads(out.stdout)

    def greedy(self, ids, tokens):
        choice = self._generate(ids, f"--max_tokens={tokens}")["choices"][0]
        return [token["id"] for token in choice["tokens"]]

    def score(self, ids):
        """The log-probability of every id but the first, each after all before it."""
        answer = self._generate(ids, "--max_tokens=1", "--echo", "--logprobs=0")
        return [token["logprob"] for token in answer["echo"][0]["tokens"][1:]]


@functools.lru_cache
def worker_knows(flag):
    out = subprocess.run([BINARIES / "facet-worker", "--help"], stdout=subprocess.PIPE, text=True)
    return f"--{flag} " in out.stdout


@contextlib.contextmanager
def running(model, ranks, threads, screened=True):
    flags = [] if screened else ["--screened_head=off"]
    flags.append("--kv_tokens=32768")  # 32 streams of 256 + 128 tokens and more
    # Greedy answers to random prompts repeat themselves as no text does: guessing would shine.
    if worker_knows("speculation"):
        flags.append("--speculation=off")
    with launcher.Cluster(str(model), tp=ranks, threads=threads, worker_flags=flags,
                          metrics=False) as group:
        yield Cluster(group.endpoints[0])


def engine_decode(model, ranks, threads, streams, tokens):
    out = subprocess.run(
        [BINARIES / "engine_bench", model, f"--world={ranks}", f"--threads={threads}",
         f"--streams={streams}", "--prompt_tokens=16", f"--max_tokens={tokens + 1}", "--rounds=1"],
        check=True, stdout=subprocess.PIPE)
    return streams / json.loads(out.stdout)["tpot_s"]


def parse_collectives(text):
    """{(backend, floats): microseconds} of what collectives_bench prints. Without a name before the
    colon the backend is shared memory."""
    pattern = r"^(?:(\w+): )?all-reduce of\s+(\d+) floats over \d+ ranks:\s+([\d.]+) us"
    return {(backend or "shm", int(floats)): float(us)
            for backend, floats, us in re.findall(pattern, text, re.MULTILINE)}


def all_reduce_us():
    out = subprocess.run([BINARIES / "collectives_bench"], check=True, stdout=subprocess.PIPE,
                         text=True)
    return parse_collectives(out.stdout)
