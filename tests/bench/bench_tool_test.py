#!/usr/bin/env python3
"""The parts of the benchmark that decide and compute: medians, ratios, limits, the refusal rule,
tables, parsers, the load that peers get, and the conversation with a peer's process."""

import json
import pathlib
import sys
import tempfile
import types
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from facet_bench import facet, figures, load, machine, measure, peer, report  # noqa: E402
from facet_bench.figures import FACET, ONE_PROCESS, PEER, WHOLE_HEAD, Row  # noqa: E402


def row(**samples):
    return Row("270m q8_0", "decode 1", samples={
        {"peer": PEER, "facet": FACET, "whole": WHOLE_HEAD, "engine": ONE_PROCESS}[name]: values
        for name, values in samples.items()})


class Figures(unittest.TestCase):
    def test_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians(self):
        r = row(peer=[100, 50, 80], facet=[150, 200, 80])
        self.assertEqual(r.median(PEER), 80)
        self.assertEqual(r.ratio(FACET, PEER), 1.5)
        self.assertIsNone(r.ratio(WHOLE_HEAD, PEER))
        self.assertIsNone(r.median(WHOLE_HEAD))

    def test_less_is_better_in_milliseconds(self):
        r = Row("m", "serve 8, TTFT p50", "ms", limit=50,
                samples={PEER: [300.0], FACET: [100.0]})
        self.assertEqual(r.ratio(FACET, PEER), 3)
        self.assertEqual(r.limit_share(FACET), 0.5)

    def test_limits_are_those_of_the_issue(self):
        limits = {"read_gb_s": 44, "int8_gop_s": 2055}
        size, parameters, layers = 285.7e6, 268.1e6, 100.25e6
        for streams, expected in ((1, 154), (2, 308), (8, 1232), (32, 3833)):
            got = figures.decode_limit(streams, size, parameters, limits)
            self.assertAlmostEqual(got / expected, 1, delta=0.002)
        self.assertAlmostEqual(figures.prefill_limit(layers, limits), 10249, delta=10)

    def test_a_peer_may_fall_short_by_fifteen_percent_and_no_more(self):
        known = {"270m q8_0": {"decode 1": 100}}
        self.assertEqual(figures.shortfalls([row(peer=[85.1, 85.1])], known), [])
        self.assertEqual(figures.shortfalls([row(peer=[84.9])], known),
                         ["270m q8_0, decode 1: llama.cpp reaches 84.9 tokens/s, 85 % of the 100 "
                          "known of this machine"])
        self.assertEqual(figures.shortfalls([row(facet=[1])], known), [], "no peer in the row")
        self.assertEqual(figures.shortfalls([row(peer=[1])], {}), [], "nothing is known")
        slow = Row("270m q8_0", "serve 1, TTFT p50", "ms", samples={PEER: [130]})
        known["270m q8_0"]["serve 1, TTFT p50"] = 100
        self.assertEqual(len(figures.shortfalls([slow], known)), 1)

    def test_numbers_have_three_digits(self):
        for value, text in ((None, "–"), (0, "0"), (0.2449, "0.245"), (1.4567, "1.46"),
                            (98.76, "98.8"), (154.4, "154"), (10249.3, "10,249")):
            self.assertEqual(figures.number(value), text)

    def test_tables_have_a_cell_per_column(self):
        r = row(peer=[100], facet=[150], whole=[120], engine=[160])
        r.limit = 200
        table = figures.peer_table([r, row(facet=[1])]).splitlines()
        self.assertEqual(len(table), 3, "a row without the peer has no place here")
        self.assertEqual({line.count("|") for line in table}, {11})
        self.assertIn("| 100 | 150 | 1.50 | 120 | 1.20 | 200 | 75 % |", table[2])
        costs = figures.cost_table([r]).splitlines()
        self.assertIn("| 150 | 160 | 0.938 | – | – |", costs[2])
        self.assertEqual(figures.cost_table([row(peer=[1])]), "")

    def test_csv_has_every_sample(self):
        lines = figures.csv_text([row(peer=[1, 2], facet=[3])]).splitlines()
        self.assertEqual(lines[0], "model,work,unit,limit,series,round,value")
        self.assertEqual(lines[1:], ["270m q8_0,decode 1,tokens/s,,llama.cpp,0,1",
                                     "270m q8_0,decode 1,tokens/s,,llama.cpp,1,2",
                                     "270m q8_0,decode 1,tokens/s,,Facet,0,3"])


class Load(unittest.TestCase):
    """client/bench.cc and tests/services/client_bench_test.cc say the same in C++."""

    def test_mix_is_split_mix(self):
        self.assertEqual(load.mix64(0), 0xE220A8397B1DCDAF)

    def test_arrivals_are_the_clients(self):
        times = load.arrivals(2.5)
        for expected in (0.183666318536677, 1.165134003741717, 1.700439420960861,
                         1.999664966674848):
            self.assertAlmostEqual(next(times), expected, delta=1e-12)

    def test_prompts_avoid_the_first_ids(self):
        ids = load.prompt(1000, 200, 3)
        self.assertEqual(ids[:6], [918, 752, 582, 982, 734, 956])
        self.assertTrue(all(500 <= token < 1000 for token in ids))
        self.assertNotEqual(ids, load.prompt(1000, 200, 4))

    def test_percentiles_are_the_nearest_rank(self):
        samples = list(range(100, 0, -1))
        self.assertEqual([load.percentile(samples, p) for p in (50, 90, 99)], [50, 90, 99])
        self.assertEqual(load.percentile([4, 9], 50), 4)
        self.assertEqual(load.percentile([], 50), 0)


class Parsers(unittest.TestCase):
    def test_collectives(self):
        text = ("all-reduce of       1 floats over 2 ranks:     0.31 us (waiting 52 %), copy 0 us\n"
                "all-reduce of     640 floats over 2 ranks:     0.52 us (waiting 52 %), copy 0 us\n")
        text += "tcp: " + text.splitlines()[1].replace("0.52", "6.30") + "\n"
        self.assertEqual(facet.parse_collectives(text),
                         {("shm", 1): 0.31, ("shm", 640): 0.52, ("tcp", 640): 6.3})
        self.assertEqual(facet.parse_collectives("nothing"), {})

    def test_machine_type(self):
        text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n" \
               "model name\t: AMD EPYC\n"
        facts = machine.cpu_facts(text + text.replace("26", "99"))
        self.assertEqual(machine.machine_type(facts, 2), "AuthenticAMD 26/2, 2 processors")
        self.assertEqual(facts["name"], "AMD EPYC")
        self.assertEqual(machine.machine_type(machine.cpu_facts(""), 1), "? ?/?, 1 processors")

    def test_what_is_known_of_peers_is_about_rows_that_exist(self):
        plan = measure.Plan(sizes=("270m", "1b"))
        works = {f"decode {n}" for n in plan.streams} | {f"serve {n}" for n in plan.serve_streams}
        works.add("prefill 512")
        names = {f"{size} {kind}" for size in plan.sizes for kind in plan.kinds}
        for known in json.loads((HERE / "expected_peers.json").read_text()).values():
            self.assertLessEqual(set(known), names)
            for figures_of_model in known.values():
                self.assertLessEqual(set(figures_of_model), works)
                self.assertTrue(all(value > 0 for value in figures_of_model.values()))

    def test_the_table_goes_between_its_marks(self):
        text = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
        self.assertEqual(report.replace_between(text, "new\n"),
                         f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n")
        with self.assertRaises(ValueError):
            report.replace_between("nothing", "new")


ECHO_PEER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        sys.exit(1)
    if request["do"] == "fail":
        request = {"error": "no such thing"}
    elif "flash" in request:
        request["value"] = 10 if request["flash"] else 20
    print(json.dumps(request), flush=True)
"""


class PeerProcess(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        program = pathlib.Path(folder.name) / "peer.py"
        program.write_text(ECHO_PEER)
        self.peer = peer.Peer(sys.executable, program)

    def test_answers_come_in_turn(self):
        with self.peer as process:
            self.assertEqual(process.ask("open", model="x"), {"do": "open", "model": "x"})
            with self.assertRaisesRegex(peer.PeerError, "fail: no such thing"):
                process.ask("fail")
            self.assertEqual(process.ask("again"), {"do": "again"})

    def test_a_death_is_told(self):
        with self.peer as process, self.assertRaisesRegex(peer.PeerError, "died at die"):
            process.ask("die")

    def test_the_better_flash_attention_is_found_once(self):
        asked = []
        with self.peer as process:
            spy = types.SimpleNamespace(
                ask=lambda what, **words: asked.append(words) or process.ask(what, **words))
            flash = peer.Flash(spy)
            for _ in range(3):
                result = flash.best("key", lambda r: r["value"], "decode", streams=1)
                self.assertEqual((result["value"], result["flash"]), (20, False))
        self.assertEqual([words["flash"] for words in asked], [True, False, False, False])


class Rounds(unittest.TestCase):
    """The order of a run, with everything that runs replaced."""

    def run_rounds(self, rounds, refuse=lambda: None):
        order = []
        run = measure.Run(measure.Plan(rounds=rounds), types.SimpleNamespace(
            ask=lambda what, **_: order.append(what) or {}), None, None, "python", 2, 1,
            log=lambda text: None)
        run.after_first_peer_round = refuse
        run._compare_answers = lambda model: order.append("answers")
        run._peer_round = lambda model, streams, serve: order.append("peer")
        run._facet_round = lambda model, streams, main, serve: order.append("facet")
        run._set_limits = lambda: None
        model = measure.Model("1b", "q4_0", "x.gguf")
        try:
            run._measure(model, main=False, real=False)
        except measure.Refused:
            order.append("refused")
        return order

    def test_the_peer_and_facet_take_turns(self):
        self.assertEqual(self.run_rounds(2),
                         ["open", "answers", "peer", "facet", "peer", "facet", "close"])

    def test_a_weak_peer_ends_the_run_before_it_has_cost_much(self):
        def refuse():
            raise measure.Refused("weak")
        self.assertEqual(self.run_rounds(5, refuse), ["open", "answers", "peer", "refused"])

    def test_answers_that_differ_refuse_the_run(self):
        run = measure.Run(measure.Plan(), types.SimpleNamespace(
            ask=lambda what, **_: {"ids": list(range(48)), "logprobs": [-1.0] * 48}),
            None, None, "python", 2, 1, log=lambda text: None)
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


class FakeCluster:
    def __init__(self, logprobs):
        self.logprobs = logprobs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def greedy(self, ids, tokens):
        return list(range(tokens))

    def score(self, ids):
        return self.logprobs


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
