"""What is measured, in which order: round after round, the peer and Facet in turn."""

import dataclasses
import sys
import time

from facet_bench import facet, figures, models
from facet_bench.figures import FACET, ONE_PROCESS, ONE_RANK, PEER, WHOLE_HEAD, Row

ALL_REDUCE_FLOATS = (640, 5120)
ANSWER_TOKENS = 48
# Mean difference of a token's log-probability: what tests/runtime/real_model_test.cc allows. Layers
# of random weights pass on what the two round differently (activations to 8 bits, llama.cpp's K
# products in blocks of 256) and damp nothing: 0.04 was seen with Q8_0 and Q4_0, 0.08 with Q4_K_M.
ANSWER_TOLERANCE = {"270m": 0.05, "1b": 0.15}
SERVE_PARTS = {"output_tokens_per_s": ("", "tokens/s"), "ttft_p50_ms": (", TTFT p50", "ms"),
               "itl_p99_ms": (", ITL p99", "ms")}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of each is done."""

    sizes: tuple = ("270m",)
    rounds: int = 5
    kinds: tuple = ("q8_0", "q4_0", "q4_k_m")
    streams: tuple = (1, 2, 8, 32)  # of the first kind; of the others, one stream
    decode_tokens: dict = dataclasses.field(
        default_factory=lambda: {1: 128, 2: 128, 8: 64, 32: 32})
    prefill_repeats: int = 4
    serve_streams: tuple = (1, 8, 32)  # of the first kind of 270m
    serve_tokens: tuple = (256, 128)
    cost_streams: tuple = (1, 32)
    load_shares: tuple = (0.1, 0.25, 0.5, 0.75, 0.9)  # of what Facet can do
    load_seconds: float = 12
    limits_seconds: float = 1


QUICK = Plan(rounds=1, kinds=("q8_0", "q4_k_m"), streams=(1, 8),
             decode_tokens={1: 64, 8: 24, 32: 16}, prefill_repeats=2, serve_streams=(8,),
             serve_tokens=(128, 32), cost_streams=(1,), load_shares=(0.2, 0.6), load_seconds=5,
             limits_seconds=0.3)


class Refused(Exception):
    """The run proves nothing; says why."""


class Log:
    def __init__(self):
        self.start = time.monotonic()

    def __call__(self, text):
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Model:
    size: str
    kind: str
    path: object

    @property
    def name(self):
        return f"{self.size} {self.kind}"


class Run:
    """One run. Its parts fill `rows`, `load`, `profiles` and `answers`."""

    def __init__(self, plan, peer, flash, limits, python, ranks, threads, log=Log()):
        self.plan, self.peer, self.flash, self.limits = plan, peer, flash, limits
        self.python, self.ranks, self.threads = python, ranks, threads
        self.log = log
        self.after_first_peer_round = lambda: None  # may refuse
        self.rows = []
        self.load = []      # points of the open loop
        self.profiles = []  # steps by operation
        self.answers = []
        self.facts = {}     # of models.describe, by model

    @property
    def all_threads(self):
        return self.ranks * self.threads

    def row(self, model, work, unit="tokens/s"):
        found = next((r for r in self.rows if (r.model, r.work) == (model, work)), None)
        if found is None:
            found = Row(model, work, unit)
            self.rows.append(found)
        return found

    def everything(self):
        self.limits.measure()
        for size in self.plan.sizes:
            chosen = [self._model(size, kind) for kind in self.plan.kinds]
            for index, model in enumerate(chosen):
                self._measure(model, main=index == 0, real=size == "270m")
        self._all_reduce()
        self.limits.measure()
        self._set_limits()

    def _model(self, size, kind):
        model = Model(size, kind, models.get(self.python, size, kind))
        self.facts[model.name] = models.describe(self.python, model.path)
        return model

    # --- One model.

    def _measure(self, model, main, real):
        self.peer.ask("open", model=str(model.path), threads=self.all_threads)
        self._compare_answers(model)
        streams = self.plan.streams if main else (1,)
        for number in range(self.plan.rounds):
            self.log(f"{model.name}: round {number + 1} of {self.plan.rounds}")
            self._peer_round(model, streams, serve=main and real)
            if number == 0:
                self.after_first_peer_round()
            self._facet_round(model, streams, main, serve=main and real)
        self._set_limits()
        if main:
            self._profile(model)
        if main and real:
            self._sweep(model)
        self.peer.ask("close")

    def _peer_round(self, model, streams, serve):
        for count in streams:
            value = self._peer(model, f"decode {count}", "decode", streams=count,
                               tokens=self.plan.decode_tokens[count])
            self.row(model.name, f"decode {count}").add(PEER, value)
        value = self._peer(model, "prefill", "prefill", repeats=self.plan.prefill_repeats)
        self.row(model.name, "prefill 512").add(PEER, value)
        prompt, output = self.plan.serve_tokens
        for count in self.plan.serve_streams if serve else ():
            result = self.flash.best((model.name, "serve", count),
                                     lambda r: r["output_tokens_per_s"], "serve", streams=count,
                                     requests=2 * count, prompt=prompt, output=output)
            self._add_serve(model, count, PEER, result)

    def _peer(self, model, kind, what, **arguments):
        return self.flash.best((model.name, kind), lambda r: r["value"], what,
                               **arguments)["value"]

    def _add_serve(self, model, count, series, result):
        for key, (suffix, unit) in SERVE_PARTS.items():
            self.row(model.name, f"serve {count}{suffix}", unit).add(series, result[key])

    def _facet_round(self, model, streams, main, serve):
        with facet.running(model.path, self.ranks, self.threads) as cluster:
            self._decode(cluster, model, streams, FACET)
            self.row(model.name, "prefill 512").add(
                FACET, cluster.prefill(self.plan.prefill_repeats))
            prompt, output = self.plan.serve_tokens
            for count in self.plan.serve_streams if serve else ():
                self._add_serve(model, count, FACET,
                                cluster.serve(count, 2 * count, prompt, output))
        with facet.running(model.path, self.ranks, self.threads, screened=False) as cluster:
            self._decode(cluster, model, streams, WHOLE_HEAD)
        if main:
            self._costs(model, [count for count in self.plan.cost_streams if count in streams])

    def _decode(self, cluster, model, streams, series):
        for count in streams:
            rate = cluster.decode(count, self.plan.decode_tokens[count])
            self.row(model.name, f"decode {count}").add(series, rate)

    def _costs(self, model, streams):
        for count in streams:
            tokens = self.plan.decode_tokens[count]
            rate = facet.engine_decode(model.path, self.ranks, self.threads, count, tokens)
            self.row(model.name, f"decode {count}").add(ONE_PROCESS, rate)
        with facet.running(model.path, 1, self.all_threads) as cluster:
            self._decode(cluster, model, streams, ONE_RANK)

    def _compare_answers(self, model):
        """The peer's greedy answer must be as likely here. How far Facet's own goes the same way is
        told: one near tie parts two right answers."""
        ids = [2] + [600 + 37 * i for i in range(32)]
        theirs = self.peer.ask("answer", ids=ids, tokens=ANSWER_TOKENS, flash=False)
        with facet.running(model.path, self.ranks, self.threads) as cluster:
            ours = cluster.greedy(ids, ANSWER_TOKENS)
            logprobs = cluster.score(ids + theirs["ids"])[-ANSWER_TOKENS:]
        difference = sum(abs(a - b) for a, b in zip(logprobs, theirs["logprobs"])) / ANSWER_TOKENS
        same = next((i for i, (a, b) in enumerate(zip(ours, theirs["ids"])) if a != b),
                    ANSWER_TOKENS)
        self.answers.append({"model": model.name, "tokens": ANSWER_TOKENS, "same_tokens": same,
                             "mean_logprob_difference": difference})
        self.log(f"{model.name}: {same} of {ANSWER_TOKENS} greedy tokens are the peer's, mean "
                 f"difference of log-probabilities {difference:.4f}")
        tolerance = ANSWER_TOLERANCE[model.size]
        if not difference <= tolerance:
            raise Refused(f"{model.name}: log-probabilities of the peer's answer differ by "
                          f"{difference:.3f} on average; {tolerance} is allowed")

    # --- What is done once.

    def _profile(self, model):
        limits = self.limits.medians()
        with facet.running(model.path, self.ranks, self.threads) as cluster:
            for count in self.plan.streams:
                profile = cluster.profile(count, self.plan.decode_tokens[count], 16, limits)
                self.profiles.append({"model": model.name, "work": f"decode {count}", **profile})
            profile = cluster.profile(1, 1, 512, limits)
            self.profiles.append({"model": model.name, "work": "prefill 512", **profile})

    def _sweep(self, model):
        """TTFT and TPOT against offered load, the same arrivals for both."""
        prompt, output = self.plan.serve_tokens
        most = max(self.plan.serve_streams)
        work = self.row(model.name, f"serve {most}")
        capacity = {series: work.median(series) / output for series in (FACET, PEER)}
        for share in self.plan.load_shares:
            rate = share * capacity[FACET]
            requests = max(4, round(rate * self.plan.load_seconds))
            self.log(f"{model.name}: {rate:.2f} requests/s offered")
            point = {"model": model.name, "rate": rate, "requests": requests}
            with facet.running(model.path, self.ranks, self.threads) as cluster:
                point[FACET] = cluster.open_loop(rate, requests, prompt, output)
            if rate <= capacity[PEER]:  # beyond it the queue only grows
                flash = self.flash.better[(model.name, "serve", most)]
                point[PEER] = self.peer.ask("open_loop", rate=rate, requests=requests,
                                            prompt=prompt, output=output, streams=32, flash=flash)
            self.load.append(point)

    def _all_reduce(self):
        for _ in range(self.plan.rounds):
            found = facet.all_reduce_us()
            for (backend, floats), us in found.items():
                if floats in ALL_REDUCE_FLOATS:
                    work = f"all-reduce {floats:,} floats, {backend}"
                    self.row("collectives", work, "µs").add(FACET, us)

    def _set_limits(self):
        limits = self.limits.medians()
        for row in self.rows:
            facts = self.facts.get(row.model)
            if facts is None:
                continue
            if row.work.startswith("decode "):
                row.limit = figures.decode_limit(int(row.work.split()[1]), facts["weight_bytes"],
                                                 facts["parameters"], limits)
            elif row.work == "prefill 512":
                row.limit = figures.prefill_limit(facts["layer_parameters"], limits)
