"""Facet's side of every figure: through router and gRPC with `facet bench` and `facet generate`,
and the same engine in one process."""

import contextlib
import json
import re
import subprocess
import sys

from facet_bench import load
from facet_bench.machine import BINARIES, ROOT

sys.path.insert(0, str(ROOT / "deploy" / "local"))
import cluster as launcher  # noqa: E402

COMMAND_S = 300  # no command of a run takes as long
LINES_SHOWN = 5  # of what a command that failed has said


class CommandError(Exception):
    """A program of Facet's failed; says which and what it said."""


def run(*command):
    """(stdout, stderr) of a program in build/bin."""
    words = [str(BINARIES / command[0]), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S)
    if done.returncode != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-LINES_SHOWN:])
        raise CommandError(f"{command[0]}: exit status {done.returncode}: {said}")
    return done.stdout, done.stderr


class Cluster:
    """A running cluster of one group. Every kind of work has a seed of its own: a prompt that was
    computed before would be found in the cache, and no peer has one."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def bench(self, **flags):
        """`facet bench` with the flags, greedy; its JSON."""
        words = [f"--{name}={value}" for name, value in flags.items()]
        out, _ = run("facet", "bench", "--json", f"--endpoint={self.endpoint}", "--temperature=0",
                     *words)
        return json.loads(out)

    def decode(self, streams, tokens):
        result = self.bench(streams=streams, requests=streams, prompt_tokens=16,
                            max_tokens=tokens + 1, seed=load.seed_of(f"decode {streams}"))
        return streams / result["tpot_s"]["p50"]

    def decode_after(self, ids, tokens):
        """Tokens per second of one stream after a long prompt."""
        return self._generate(f"--max_tokens={tokens + 1}", "--temperature=0", tokens_of(ids))[1]

    def prefill(self, repeats):
        result = self.bench(streams=1, requests=repeats, prompt_tokens=512, max_tokens=1,
                            seed=load.seed_of("prefill"))
        return 512 / result["ttft_s"]["p50"]

    def serve(self, streams, requests, prompt, output):
        result = self.bench(streams=streams, requests=requests, prompt_tokens=prompt,
                            max_tokens=output, seed=load.seed_of(f"serve {streams}"))
        return {"output_tokens_per_s": result["output_tokens_per_s"],
                "ttft_p50_ms": 1e3 * result["ttft_s"]["p50"],
                "itl_p99_ms": 1e3 * result["itl_s"]["p99"]}

    def open_loop(self, rate, requests, prompt, output, seed):
        result = self.bench(rate=rate, requests=requests, prompt_tokens=prompt, max_tokens=output,
                            seed=seed)
        return {"ttft_p50_s": result["ttft_s"]["p50"], "ttft_p99_s": result["ttft_s"]["p99"],
                "tpot_p50_s": result["tpot_s"]["p50"], "late": result["late"]}

    def profile(self, streams, requests, tokens, prompt, limits):
        known = ",".join(str(limits[name]) for name in ("read_gb_s", "int8_gop_s", "f32_gop_s"))
        return self.bench(streams=streams, requests=requests, prompt_tokens=prompt,
                          max_tokens=tokens, profile="true", limits=known,
                          seed=load.seed_of(f"profile {streams} {prompt}"))["profile"]

    def _generate(self, *flags):
        """The answer's JSON and its tokens per second after the first one."""
        out, err = run("facet", "generate", "--json", f"--endpoint={self.endpoint}",
                       "--ignore_eos", *flags)
        return json.loads(out), parse_rate(err)

    def write(self, text, tokens, temperature):
        """The ids that follow a text, drawn with one seed, and tokens per second."""
        answer, rate = self._generate("--raw", f"--prompt={text}", f"--max_tokens={tokens}",
                                      f"--temperature={temperature}", "--seed=1")
        return ids_of(answer), rate

    def greedy(self, ids, tokens):
        return ids_of(self._generate(f"--max_tokens={tokens}", "--temperature=0",
                                     tokens_of(ids))[0])

    def score(self, ids):
        """The log-probability of every id but the first, each after all before it."""
        answer, _ = self._generate("--max_tokens=1", "--temperature=0", "--echo", "--logprobs=0",
                                   tokens_of(ids))
        return [token["logprob"] for token in answer["echo"][0]["tokens"][1:]]


def tokens_of(ids):
    return "--token_ids=" + ",".join(map(str, ids))


def ids_of(answer):
    return [token["id"] for token in answer["choices"][0]["tokens"]]


def parse_rate(text):
    """Tokens per second of what `facet generate` says at its end; None of a single token."""
    found = re.search(r"([\d.]+) tokens/s", text)
    return float(found[1]) if found else None


@contextlib.contextmanager
def running(model, ranks, threads, screened=True, speculation=False):
    flags = [] if screened else ["--screened_head=off"]
    flags.append("--kv_tokens=32768")  # 32 streams of 256 + 128 tokens and more
    # Greedy answers to random prompts repeat themselves as no text does: guessing would shine.
    if not speculation:
        flags.append("--speculation=off")
    with launcher.Cluster(str(model), tp=ranks, threads=threads, worker_flags=flags,
                          metrics=False) as group:
        yield Cluster(group.endpoints[0])


def engine_decode(model, ranks, threads, streams, tokens):
    out, _ = run("engine_bench", model, f"--world={ranks}", f"--threads={threads}",
                 f"--streams={streams}", "--prompt_tokens=16", f"--max_tokens={tokens + 1}",
                 "--rounds=1")
    return streams / json.loads(out)["tpot_s"]


def parse_collectives(text):
    """{(backend, floats): microseconds} of what collectives_bench prints. Without a name before the
    colon the backend is shared memory."""
    pattern = r"^(?:(\w+): )?all-reduce of\s+(\d+) floats over \d+ ranks:\s+([\d.]+) us"
    return {(backend or "shm", int(floats)): float(us)
            for backend, floats, us in re.findall(pattern, text, re.MULTILINE)}


def all_reduce_us():
    return parse_collectives(run("collectives_bench")[0])
