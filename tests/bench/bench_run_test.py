#!/usr/bin/env python3
"""A run of the benchmark without measuring: its order, what it refuses, what it keeps when a part
fails, with stand-ins for the peer and the clusters."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import types
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import run as command  # noqa: E402
from facet_bench import facet, machine, measure, peer, plan, texts  # noqa: E402
from facet_bench.figures import FACET, ONE_PROCESS, PEER, SPECULATION, WHOLE_HEAD  # noqa: E402

SMALL = plan.Work(decode_tokens={1: 2}, peer_tokens={1: 2}, prefill_repeats=1,
                  peer_prefill_repeats=1)


def run_of(rounds=1, works=None, kinds=("q4_0",), process=None):
    looks = types.SimpleNamespace(measure=lambda: None, medians=lambda: {})
    chosen = plan.Plan(works=works or {"1b": SMALL}, rounds=rounds, kinds=kinds)
    return measure.Run(chosen, process, peer.Flash(process), looks, "python", 2, 1,
                       log=lambda text: None)


class Rounds(unittest.TestCase):
    """The order of a run, with everything that runs replaced."""

    def run_rounds(self, rounds, refuse=lambda: None):
        order = []
        run = run_of(rounds, process=types.SimpleNamespace(
            ask=lambda what, **_: order.append(what) or {}))
        run.after_first_peer_round = refuse
        run.after_part = lambda: order.append("kept")
        run._compare_answers = lambda model: order.append("answers")
        run._peer_round = lambda *_: order.append("peer")
        run._facet_round = lambda *_: order.append("facet")
        run._set_limits = lambda: None
        try:
            run._measure(measure.Model("1b", "q4_0", "x.gguf"), SMALL, main=False)
        except measure.Refused:
            order.append("refused")
        return order

    def test_the_peer_and_facet_take_turns(self):
        self.assertEqual(self.run_rounds(2), ["open", "answers", "peer", "facet", "kept", "peer",
                                              "facet", "kept", "close"])

    def test_a_weak_peer_ends_the_run_before_it_has_cost_much(self):
        def refuse():
            raise measure.Refused("weak")
        self.assertEqual(self.run_rounds(5, refuse), ["open", "answers", "peer", "refused"])

    def fail_at(self, run, failing):
        """Lets the rounds in `failing`, (model, number), fail halfway, and runs."""
        run._model = lambda size, kind: measure.Model(size, kind, "x.gguf")
        run._compare_answers = lambda model: None
        run._set_limits = lambda: None
        run._all_reduce = lambda: None
        run._profile = run._sweep = lambda *_: None

        def one_round(model, work, main, number):
            run.row(model.name, "decode 1").add(PEER, 10 + number)
            if (model.name, number) in failing:
                raise facet.CommandError("it broke")
            run.row(model.name, "decode 1").add(FACET, number)
        run._round = one_round
        with contextlib.redirect_stderr(io.StringIO()):
            run.everything()

    def test_a_round_that_fails_leaves_the_others(self):
        asked = []
        run = run_of(3, process=types.SimpleNamespace(
            ask=lambda what, **_: asked.append(what) or {}))
        kept = []
        run.after_part = lambda: kept.append([len(r.samples[FACET]) for r in run.rows])
        self.fail_at(run, {("1b q4_0", 1)})
        self.assertEqual([r.samples for r in run.rows], [{PEER: [10, 12], FACET: [0, 2]}])
        self.assertEqual(run.failures, ["1b q4_0: round 2 of 3: it broke"])
        self.assertTrue(run.whole)
        self.assertEqual(asked, ["open", "open", "close"])
        self.assertEqual(kept[0], [1], "kept after every round")

    def test_a_model_that_fails_leaves_the_others(self):
        run = run_of(2, kinds=("q8_0", "q4_0"),
                     process=types.SimpleNamespace(ask=lambda what, **_: {}))
        self.fail_at(run, {("1b q8_0", 0), ("1b q8_0", 1)})
        self.assertEqual([(r.model, r.samples[FACET]) for r in run.rows], [("1b q4_0", [0, 1])])
        self.assertEqual(run.failures[-1], "1b q8_0: no round came to its end")
        self.assertFalse(run.whole)

    def test_what_the_table_can_do_without_fails_once(self):
        run = run_of()
        tried = []

        def fail():
            tried.append(1)
            raise KeyError("it broke")
        run._set_limits = lambda: None
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertIsNone(run._try("speculation", fail))
            self.assertIsNone(run._try("speculation", fail))
        self.assertEqual((len(tried), len(run.failures), run.whole), (1, 1, True))
        self.assertEqual(run._try("long", lambda n: n + 1, 1), 2)
        self.assertEqual(run._try("long", lambda n: n + 1, 2), 3)

    def test_speculation_that_changes_a_token_refuses_the_run(self):
        work = plan.Work(decode_tokens={1: 2}, peer_tokens={1: 2}, prefill_repeats=1,
                         peer_prefill_repeats=1, speculation_tokens=2)
        run, model = run_of(), measure.Model("270m", "q8_0", "x.gguf")
        plain = types.SimpleNamespace(write=lambda prompt, tokens, temperature: ([1, 2], 50.0))
        run._compare_writing(model, work, plain, {texts.STORY: ([1, 2], 60.0)})
        self.assertEqual(run.rows[0].ratio(SPECULATION, FACET), 1.2)
        with self.assertRaises(measure.Refused):
            run._compare_writing(model, work, plain, {texts.STORY: ([1, 3], 60.0)})

    def test_costs_are_measured_forth_and_back(self):
        work = plan.Work(decode_tokens={1: 2, 32: 3}, peer_tokens={1: 2, 32: 3}, prefill_repeats=1,
                         peer_prefill_repeats=1, cost_streams=(32,), cost_repeats=2)
        self.addCleanup(setattr, facet, "running", facet.running)
        self.addCleanup(setattr, facet, "engine_decode", facet.engine_decode)
        order = []

        def decode(ranks, count, tokens):
            order.append((ranks, count, tokens))
            return 10.0
        facet.running = lambda model, ranks, threads: contextlib.nullcontext(types.SimpleNamespace(
            decode=lambda count, tokens: decode(ranks, count, tokens)))
        facet.engine_decode = lambda model, ranks, threads, count, tokens: decode(0, count, tokens)
        run = run_of()
        run._costs(measure.Model("270m", "q8_0", "x.gguf"), work)
        self.assertEqual([ranks for ranks, _, _ in order], [2, 0, 1, 1, 0, 2])
        self.assertEqual({(count, tokens) for _, count, tokens in order}, {(32, 3)})
        self.assertEqual(run.rows[0].ratio(FACET, ONE_PROCESS), 1)
        self.assertEqual(len(run.rows[0].samples[FACET]), 2)

    def test_the_sweep_offers_both_the_same_up_to_what_each_can_do(self):
        work = plan.Work(decode_tokens={1: 2}, peer_tokens={1: 2}, prefill_repeats=1,
                         peer_prefill_repeats=1, serve_streams=(8,), serve_tokens=(16, 10),
                         load_shares=(0.1, 0.2, 0.9), load_seconds=4)
        asked = []
        run = run_of(process=types.SimpleNamespace(
            ask=lambda what, **words: asked.append((what, words)) or {}))
        run.flash.better[("270m", "serve", 8)] = True
        run.row("270m q8_0", "serve 8").samples = {FACET: [100], PEER: [20]}
        offered = []
        run._cluster = lambda model: contextlib.nullcontext(types.SimpleNamespace(
            open_loop=lambda **words: offered.append(words) or {}))
        run._sweep(measure.Model("270m", "q8_0", "x.gguf"), work)
        self.assertEqual([words["rate"] for words in offered], [1, 2, 9])
        self.assertEqual([words["requests"] for words in offered], [4, 8, 36])
        self.assertEqual(len({words["seed"] for words in offered}), 3, "nothing is in the cache")
        self.assertEqual(asked, [("open_loop", {**words, "streams": 8, "flash": True})
                                 for words in offered[:2]])

    def test_answers_that_differ_refuse_the_run(self):
        run = run_of(process=types.SimpleNamespace(
            ask=lambda what, **_: {"ids": list(range(48)), "logprobs": [-1.0] * 48}))
        self.addCleanup(setattr, facet, "running", facet.running)
        for shift, refused in ((0.04, False), (0.06, True), (float("nan"), True)):
            facet.running = lambda *_, shift=shift, **__: FakeCluster([-1.0 - shift] * 80)
            model = measure.Model("270m", "q8_0", "x.gguf")
            if refused:
                with self.assertRaises(measure.Refused):
                    run._compare_answers(model)
            else:
                run._compare_answers(model)
                self.assertEqual(run.answers[-1]["same_tokens"], 48)


class WholeRun(unittest.TestCase):
    """The plan of a real run, with a peer and clusters that answer at once."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for module, name, fake in (
                (facet, "running", lambda *_, **__: FakeCluster([-1.0] * 80)),
                (facet, "engine_decode", lambda *_: 100.0),
                (facet, "all_reduce_us", lambda: {("shm", 640): 0.5, ("shm", 1): 0.3}),
                (measure.models, "get", lambda python, size, kind: f"{size}-{kind}.gguf"),
                (measure.models, "describe", lambda python, path: {
                    "weight_bytes": 3e8, "parameters": 3e8, "layer_parameters": 1e8})):
            self.addCleanup(setattr, module, name, getattr(module, name))
            setattr(module, name, fake)

    def start(self, process):
        limits = {"read_gb_s": 40, "int8_gop_s": 2000, "f32_gop_s": 600}
        looks = types.SimpleNamespace(measure=lambda: None, medians=lambda: limits, looks=[limits])
        run = measure.Run(plan.WHOLE, process, peer.Flash(process), looks, "python", 2, 1,
                          log=lambda text: None)
        facts = {"machine": machine.describe(2), "peer": "llama.cpp", "others_share": 0.5}
        keeper = command.Keeper(run, self.folder, facts, {"270m q8_0": {"decode 1": 100}},
                                json.loads((HERE / "aims.json").read_text()))
        run.after_part = keeper.keep
        return run, keeper

    def results(self):
        return json.loads((self.folder / "results.json").read_text())

    def test_every_row_has_its_rounds(self):
        run, keeper = self.start(FakePeer())
        run.everything()
        table = keeper.keep(finished=True)
        self.assertEqual((run.failures, run.whole), ([], True))
        for row in run.rows:
            repeats = 2 if row.work.endswith("beside itself") else 1
            for series, values in row.samples.items():
                self.assertEqual(len(values), 5 * repeats, f"{row.model} {row.work} {series}")
        works = {(row.model, row.work) for row in run.rows}
        self.assertLessEqual({("270m q8_0", "decode 1 at 8k"), ("270m q8_0", "serve 32, ITL p99"),
                              ("1b q4_k_m", "prefill 512"), ("1b q8_0", "decode 32"),
                              ("270m q8_0", texts.STORY.work)}, works)
        for row in run.rows:
            if row.work in ("decode 1", "decode 32", "decode 1 at 8k"):
                self.assertLessEqual({PEER, FACET, WHOLE_HEAD}, set(row.samples))
        self.assertEqual(len(run.load), 4)
        self.assertEqual(len(run.profiles), 10)
        self.assertNotIn("Unfinished", table)
        self.assertIn("| 270m q8_0 | prefill 512 | 10.0 | head |", table)
        self.assertIn("Not a fair run: 270m q8_0, decode 1", table)
        self.assertEqual(self.results()["finished"], True)

    def test_it_is_kept_up_to_where_it_ended(self):
        run, _ = self.start(FakePeer(asked_max=35))
        with self.assertRaises(KeyboardInterrupt):
            run.everything()
        results = self.results()
        self.assertFalse(results["finished"])
        self.assertEqual([len(row["samples"][FACET]) for row in results["rows"]
                          if row["work"] == "decode 1"], [2])
        self.assertIn("Unfinished", (self.folder / "table.md").read_text())

    def test_without_plots_there_is_still_a_table(self):
        def fail():
            raise OSError("no network")
        self.addCleanup(setattr, peer, "find_plots_python", peer.find_plots_python)
        peer.find_plots_python = fail
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            command.draw(self.folder)
        self.assertEqual(said.getvalue(), "no plots: no network\n")


class FakePeer:
    """Answers as a peer does; somebody interrupts it after `asked_max` questions."""

    def __init__(self, asked_max=10**6):
        self.left = asked_max

    def ask(self, what, **_):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        if what == "answer":
            return {"ids": list(range(48)), "logprobs": [-1.0] * 48}
        if what == "serve":
            return {"output_tokens_per_s": 150.0, "ttft_p50_ms": 300.0, "itl_p99_ms": 20.0}
        if what == "open_loop":
            return {"ttft_p50_s": 0.3, "ttft_p99_s": 0.5, "tpot_p50_s": 0.02}
        return {"value": 50.0}


class FakeCluster:
    def __init__(self, logprobs):
        self.logprobs = logprobs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def decode(self, streams, tokens):
        return 100.0 * streams

    def decode_after(self, ids, tokens):
        return 80.0

    def prefill(self, repeats):
        return 3000.0

    def write(self, text, tokens, temperature):
        return list(range(tokens)), 120.0

    def serve(self, streams, requests, prompt, output):
        return {"output_tokens_per_s": 600.0, "ttft_p50_ms": 90.0, "itl_p99_ms": 10.0}

    def open_loop(self, **_):
        return {"ttft_p50_s": 0.1, "ttft_p99_s": 0.2, "tpot_p50_s": 0.01, "late": 0}

    def profile(self, streams, requests, tokens, prompt, limits):
        head = {"name": "head", "seconds": 0.01, "bytes": 3e8, "operations": 1e9, "bound_s": 0.005,
                "bound": "memory"}
        return {"steps": 1, "seconds": 0.01, "ranks": 2, "operations": [head]}

    def greedy(self, ids, tokens):
        return list(range(tokens))

    def score(self, ids):
        return self.logprobs


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
