"""What is measured, in which order: round after round, the peer and Facet in turn."""

import contextlib
import dataclasses
import re
import sys
import time
import traceback

from facet_bench import facet, figures, load, models, texts
from facet_bench.figures import (FACET, ONE_PROCESS, ONE_RANK, PEER, SPECULATION, WHOLE_HEAD,
                                 Row)

ALL_REDUCE_FLOATS = (640, 5120)
ANSWER_TOKENS = 48
# Mean difference of a token's log-probability: what tests/runtime/real_model_test.cc allows. Layers
# of random weights pass on what the two round differently (activations to 8 bits, llama.cpp's K
# products in blocks of 256) and damp nothing: 0.04 was seen with Q8_0 and Q4_0, 0.08 with Q4_K_M.
ANSWER_TOLERANCE = {"270m": 0.05, "1b": 0.15}
SERVE_PARTS = {"output_tokens_per_s": ("", "tokens/s"), "ttft_p50_ms": (", TTFT p50", "ms"),
               "itl_p99_ms": (", ITL p99", "ms")}
LONG_IDS = 32768  # a long prompt has ids below: every vocabulary that is measured has as many


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


def long_work(tokens):
    return f"decode 1 at {tokens // 1024}k"


class Run:
    """One run. Its parts fill `rows`, `load`, `profiles` and `answers`. What fails is told in
    `failures`, and the rest goes on."""

    def __init__(self, plan, peer, flash, limits, python, ranks, threads, log=Log()):
        self.plan, self.peer, self.flash, self.limits = plan, peer, flash, limits
        self.python, self.ranks, self.threads = python, ranks, threads
        self.log = log
        self.after_first_peer_round = lambda: None  # may refuse
        self.after_part = lambda: None              # something new is worth keeping
        self.rows = []
        self.load = []      # points of the open loop
        self.profiles = []  # steps by operation
        self.answers = []
        self.failures = []
        self.whole = True   # no row that has to be there is missing
        self.given_up = set()
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
        for size, work in self.plan.works.items():
            for kind in self.plan.kinds:
                with self._part(f"{size} {kind}", vital=True):
                    model = self._model(size, kind)
                    self._measure(model, work, main=kind == self.plan.kinds[0])
        with self._part("all-reduce", vital=True):
            self._all_reduce()
        self.limits.measure()
        self._set_limits()

    @contextlib.contextmanager
    def _part(self, name, vital=False):
        """What fails within ends there, and is told once."""
        try:
            yield
        except Refused:
            raise
        except Exception as error:  # whatever it is, what was measured is worth more
            traceback.print_exc()
            self.log(f"{name} failed")
            self.failures.append(f"{name}: {error}")
            self.whole = self.whole and not vital
        self._set_limits()
        self.after_part()

    def _try(self, name, function, *arguments):
        """The result of what the table can do without; None once that has failed, which is never
        tried again: samples stay those of the same rounds."""
        if name in self.given_up:
            return None
        self.given_up.add(name)
        result = None
        with self._part(name):
            result = function(*arguments)
            self.given_up.remove(name)
        return result

    def _model(self, size, kind):
        model = Model(size, kind, models.get(self.python, size, kind))
        self.facts[model.name] = models.describe(self.python, model.path)
        return model

    # --- One model.

    def _measure(self, model, work, main):
        self._open(model)
        self._compare_answers(model)
        done = sum(self._whole_round(model, work, main, number)
                   for number in range(self.plan.rounds))
        if not done:
            raise RuntimeError("no round came to its end")
        if main:
            self.log(f"{model.name}: steps by operation")
            with self._part(f"{model.name}: steps by operation"):
                self._profile(model, work)
            with self._part(f"{model.name}: load sweep"):
                self._sweep(model, work)
        self.peer.ask("close")

    def _open(self, model):
        self.peer.ask("open", model=str(model.path), threads=self.all_threads)

    def _whole_round(self, model, work, main, number):
        """False if it failed. Then it leaves no samples: those of one index are of one round."""
        name = f"{model.name}: round {number + 1} of {self.plan.rounds}"
        self.log(name)
        before = [(row, {series: len(values) for series, values in row.samples.items()})
                  for row in self.rows]
        done = False
        with self._part(name):
            self._round(model, work, main, number)
            done = True
        if not done:
            self.rows = [row for row, _ in before]
            for row, lengths in before:
                row.samples = {series: row.samples[series][:n] for series, n in lengths.items()}
            self._open(model)  # a peer that has died is another process now
        return done

    def _round(self, model, work, main, number):
        streams = work.streams if main else (1,)
        self._peer_round(model, work, streams, main)
        if number == 0:
            self.after_first_peer_round()
        self._facet_round(model, work, streams, main)

    def _peer_round(self, model, work, streams, main):
        for count in streams:
            value = self._peer(model, f"decode {count}", "decode", streams=count,
                               tokens=work.peer_tokens[count],
                               seed=load.seed_of(f"decode {count}"))
            self.row(model.name, f"decode {count}").add(PEER, value)
        if main:
            self._long(model, work, PEER, lambda ids: self._peer(
                model, "long", "decode_after", ids=ids, tokens=work.long_tokens))
        value = self._peer(model, "prefill", "prefill", repeats=work.peer_prefill_repeats,
                           seed=load.seed_of("prefill"))
        self.row(model.name, "prefill 512").add(PEER, value)
        prompt, output = work.serve_tokens
        for count in work.serve_streams if main else ():
            result = self.flash.best(
                (model.size, "serve", count), lambda r: r["output_tokens_per_s"], "serve",
                trial={"requests": count, "output": output // 4}, streams=count,
                requests=2 * count, prompt=prompt, output=output,
                seed=load.seed_of(f"serve {count}"))
            self._add_serve(model, count, PEER, result)

    def _peer(self, model, kind, what, **arguments):
        return self.flash.best((model.size, kind), lambda r: r["value"], what,
                               **arguments)["value"]

    def _add_serve(self, model, count, series, result):
        for key, (suffix, unit) in SERVE_PARTS.items():
            self.row(model.name, f"serve {count}{suffix}", unit).add(series, result[key])

    def _long(self, model, work, series, measure):
        """Decoding after a long prompt, which is the same for everybody."""
        if not work.long_prompt:
            return
        name = long_work(work.long_prompt)
        ids = load.prompt(LONG_IDS, work.long_prompt, 0, load.seed_of("long"))
        rate = self._try(f"{model.name}: {name}", measure, ids)
        if rate is not None:
            self.row(model.name, name).add(series, rate)

    def _facet_round(self, model, work, streams, main):
        """What is compared with each other follows each other."""
        guessing = f"{model.name}: speculation"
        guessed = main and self._try(guessing, self._write, model, work)
        with self._cluster(model) as cluster:
            if guessed:
                self._try(guessing, self._compare_writing, model, work, cluster, guessed)
            self.row(model.name, "prefill 512").add(FACET, cluster.prefill(work.prefill_repeats))
            prompt, output = work.serve_tokens
            for count in work.serve_streams if main else ():
                self._add_serve(model, count, FACET,
                                cluster.serve(count, 2 * count, prompt, output))
            self._decode(cluster, model, work, streams, main, FACET)
        if main:
            self._costs(model, work)
        with self._cluster(model, screened=False) as cluster:
            self._decode(cluster, model, work, streams, main, WHOLE_HEAD)

    def _cluster(self, model, **how):
        return facet.running(model.path, self.ranks, self.threads, **how)

    def _decode(self, cluster, model, work, streams, main, series):
        if main:
            self._long(model, work, series,
                       lambda ids: cluster.decode_after(ids, work.long_tokens))
        for count in streams:
            rate = cluster.decode(count, work.decode_tokens[count])
            self.row(model.name, f"decode {count}").add(series, rate)

    def _costs(self, model, work):
        """The same decoding through the cluster, in one process and on one rank, forth and back."""
        def through_cluster():
            with self._cluster(model) as cluster:
                self._cost(model, work, FACET, cluster.decode)

        def in_one_process():
            self._cost(model, work, ONE_PROCESS, lambda count, tokens: facet.engine_decode(
                model.path, self.ranks, self.threads, count, tokens))

        def on_one_rank():
            with facet.running(model.path, 1, self.all_threads) as cluster:
                self._cost(model, work, ONE_RANK, cluster.decode)

        order = [through_cluster, in_one_process, on_one_rank]
        for _ in range(work.cost_repeats if work.cost_streams else 0):
            for each in order:
                each()
            order.reverse()

    def _cost(self, model, work, series, decode):
        for count in work.cost_streams:
            rate = decode(count, work.decode_tokens[count])
            self.row(model.name, figures.cost_work(count)).add(series, rate)

    def _write(self, model, work):
        """{text: (ids, tokens/s)} with speculation."""
        if not work.speculation_tokens:
            return {}
        with self._cluster(model, speculation=True) as cluster:
            return {text: cluster.write(text.prompt, work.speculation_tokens, text.temperature)
                    for text in texts.TEXTS}

    def _compare_writing(self, model, work, cluster, guessed):
        for text, (ids, rate) in guessed.items():
            plain_ids, plain_rate = cluster.write(text.prompt, work.speculation_tokens,
                                                  text.temperature)
            if ids != plain_ids:
                raise Refused(f"{model.name}, {text.work}: speculation changes the tokens")
            row = self.row(model.name, text.work)
            row.add(FACET, plain_rate)
            row.add(SPECULATION, rate)

    def _compare_answers(self, model):
        """The peer's greedy answer must be as likely here. How far Facet's own goes the same way is
        told: one near tie parts two right answers."""
        ids = [2] + [600 + 37 * i for i in range(32)]
        theirs = self.peer.ask("answer", ids=ids, tokens=ANSWER_TOKENS, flash=False)
        with self._cluster(model) as cluster:
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

    def _profile(self, model, work):
        limits = self.limits.medians()
        with self._cluster(model) as cluster:
            for count, tokens in work.decode_tokens.items():
                profile = cluster.profile(count, count, tokens, 16, limits)
                self.profiles.append({"model": model.name, "work": f"decode {count}", **profile})
            profile = cluster.profile(1, work.prefill_repeats, 1, 512, limits)
            self.profiles.append({"model": model.name, "work": "prefill 512", **profile})

    def _sweep(self, model, work):
        """TTFT and TPOT against offered load, the same requests and arrivals for both. First all of
        Facet's points: a cluster that idles checks itself now and then."""
        if not work.load_shares:
            return
        most = max(work.serve_streams)
        output = work.serve_tokens[1]
        served = self.row(model.name, f"serve {most}")
        capacity = {series: served.median(series) / output for series in (FACET, PEER)}
        rates = [share * capacity[FACET] for share in work.load_shares]
        points = [{"model": model.name, "rate": rate, "requests": self._arriving(work, rate),
                   "seed": load.seed_of(f"load {index}")} for index, rate in enumerate(rates)]
        self.log(f"{model.name}: {', '.join(f'{rate:.2f}' for rate in rates)} requests/s offered")
        with self._cluster(model) as cluster:
            for point in points:
                point[FACET] = cluster.open_loop(**self._offered(work, point))
        self.load += points
        for point in points:
            if point["rate"] <= capacity[PEER]:  # beyond it the queue only grows
                point[PEER] = self.peer.ask(
                    "open_loop", streams=most, flash=self.flash.better[(model.size, "serve", most)],
                    **self._offered(work, point))

    @staticmethod
    def _arriving(work, rate):
        return max(4, round(rate * work.load_seconds))

    @staticmethod
    def _offered(work, point):
        prompt, output = work.serve_tokens
        return {"rate": point["rate"], "requests": point["requests"], "prompt": prompt,
                "output": output, "seed": point["seed"]}

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
            decode = re.fullmatch(r"decode (\d+)", row.work)
            if decode:
                row.limit = figures.decode_limit(int(decode[1]), facts["weight_bytes"],
                                                 facts["parameters"], limits)
            elif row.work == "prefill 512":
                row.limit = figures.prefill_limit(facts["layer_parameters"], limits)
