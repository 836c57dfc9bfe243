#!/usr/bin/env python3
"""The parts of the benchmark that decide and compute: medians, ratios, limits, the refusal rule,
aims, tables, parsers, the load that peers get, and the conversation with a peer's process."""

import json
import pathlib
import sys
import tempfile
import types
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import run as command  # noqa: E402
from facet_bench import (aims, facet, figures, load, machine, measure, peer, plan,  # noqa: E402
                         report, tables, texts)
from facet_bench.figures import (FACET, ONE_PROCESS, PEER, SPECULATION, WHOLE_HEAD,  # noqa: E402
                                 Row)

NO_AIMS = aims.Aims({}, {})


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
                         ["270m q8_0, decode 1: llama.cpp reaches 84.9 tokens/s, 84.9 % of the 100 "
                          "known of this machine"])
        self.assertEqual(figures.shortfalls([row(facet=[1])], known), [], "no peer in the row")
        self.assertEqual(figures.shortfalls([row(peer=[1])], {}), [], "nothing is known")
        slow = Row("270m q8_0", "serve 1, TTFT p50", "ms", samples={PEER: [130]})
        known["270m q8_0"]["serve 1, TTFT p50"] = 100
        self.assertEqual(figures.shortfalls([slow], known), [], "rates only")

    def test_numbers_have_three_digits(self):
        for value, text in ((None, "–"), (0, "0"), (0.2449, "0.245"), (1.4567, "1.46"),
                            (98.76, "98.8"), (154.4, "154"), (10249.3, "10,249")):
            self.assertEqual(tables.number(value), text)

    def test_csv_has_every_sample(self):
        lines = figures.csv_text([row(peer=[1, 2], facet=[3])]).splitlines()
        self.assertEqual(lines[0], "model,work,unit,limit,series,round,value")
        self.assertEqual(lines[1:], ["270m q8_0,decode 1,tokens/s,,llama.cpp,0,1",
                                     "270m q8_0,decode 1,tokens/s,,llama.cpp,1,2",
                                     "270m q8_0,decode 1,tokens/s,,Facet,0,3"])


class Aims(unittest.TestCase):
    def setUp(self):
        self.aims = aims.Aims(
            {"270m q8_0": {"decode 1": {FACET: 200, WHOLE_HEAD: 138},
                           "serve 1, TTFT p50": {FACET: 90}},
             "collectives": {"all-reduce": {FACET: 1}}},
            {"270m q8_0": {"decode 1": 100, "serve 1, TTFT p50": 270}})

    def test_an_aim_is_the_ratio_that_it_makes_with_the_known_peer(self):
        r = row(peer=[50, 50], facet=[99, 101], whole=[68, 68])
        self.assertEqual(self.aims.ratio(r, FACET), 2)
        self.assertTrue(self.aims.reached(r, FACET), "on a machine half as fast")
        self.assertFalse(self.aims.reached(r, WHOLE_HEAD), "1.36 of 1.38")
        self.assertIsNone(self.aims.reached(r, PEER))
        self.assertIsNone(self.aims.reached(row(facet=[1000]), FACET), "no peer in the run")
        self.assertEqual(aims.counts([r], self.aims), (1, 2))

    def test_latencies_are_to_be_less(self):
        r = Row("270m q8_0", "serve 1, TTFT p50", "ms", samples={PEER: [600], FACET: [201]})
        self.assertEqual(self.aims.ratio(r, FACET), 3)
        self.assertFalse(self.aims.reached(r, FACET))
        r.samples[FACET] = [199]
        self.assertTrue(self.aims.reached(r, FACET))

    def test_where_nobody_knows_a_peer_the_value_counts(self):
        r = Row("collectives", "all-reduce", "µs", samples={FACET: [0.9, 1.1, 0.8]})
        self.assertTrue(self.aims.reached(r, FACET))
        r.samples[FACET] = [1.1]
        self.assertFalse(self.aims.reached(r, FACET))
        self.assertIsNone(NO_AIMS.reached(r, FACET))

    def test_of_two_series_of_facets(self):
        for streams, least in ((1, 0.95), (32, 0.97), (8, None)):
            r = Row("270m q8_0", figures.cost_work(streams),
                    samples={FACET: [96], ONE_PROCESS: [100]})
            self.assertEqual(aims.own_aim(r, FACET, ONE_PROCESS), least)
        self.assertIsNone(aims.own_reached(r, FACET, ONE_PROCESS))
        for text, rate, reached in ((texts.STORY, 97, False), (texts.STORY, 99, True),
                                    (texts.REPEATING, 99, False), (texts.REPEATING, 120, True)):
            r = Row("270m q8_0", text.work, samples={FACET: [100], SPECULATION: [rate]})
            self.assertEqual(aims.own_reached(r, SPECULATION, FACET), reached)
            self.assertEqual(aims.counts([r], NO_AIMS), (int(reached), 1))

    def test_those_of_the_issue(self):
        known = json.loads((HERE / "expected_peers.json").read_text())
        for machine_type, models in json.loads((HERE / "aims.json").read_text()).items():
            issue = aims.Aims(models, known[machine_type])
            for model, works in models.items():
                for work, series in works.items():
                    unit = "ms" if "TTFT" in work or "ITL" in work else "tokens/s"
                    for name in series:
                        ratio = issue.ratio(Row(model, work, unit), name)
                        if model != "collectives":
                            self.assertGreater(ratio, 1, f"{model} {work}")


class Tables(unittest.TestCase):
    def test_they_have_a_cell_per_column(self):
        r = row(peer=[100], facet=[150], whole=[120], engine=[160])
        r.limit = 200
        known = aims.Aims({"270m q8_0": {"decode 1": {FACET: 280, WHOLE_HEAD: 220}}},
                          {"270m q8_0": {"decode 1": 200}})
        table = tables.peer_table([r, row(facet=[1])], known).splitlines()
        self.assertEqual(len(table), 3, "a row without the peer has no place here")
        self.assertEqual({line.count("|") for line in table}, {13})
        cells = "| 100 | 150 | 1.50 | ≥ 1.40 (280) | 120 | 1.20 | ≥ 1.10 (220) | 200 | 75 % |"
        self.assertIn(cells, table[2])
        r.work = figures.cost_work(1)
        costs = tables.cost_table([r]).splitlines()
        self.assertEqual({line.count("|") for line in costs}, {10})
        self.assertIn("| decode 1 | 150 | 160 | 0.938 | **≥ 0.950 missed** | – | – | – |", costs[2])
        self.assertEqual(tables.cost_table([row(peer=[1])]), "")
        spoken = Row("270m q8_0", texts.STORY.work, samples={FACET: [100], SPECULATION: [99]})
        self.assertIn("| 100 | 99.0 | 0.990 | ≥ 0.980 |", tables.speculation_table([spoken, r]))
        self.assertEqual(tables.speculation_table([r]), "")

    def test_a_missed_aim_is_marked(self):
        known = aims.Aims({"collectives": {"all-reduce": {FACET: 1}}}, {})
        r = Row("collectives", "all-reduce", "µs", samples={FACET: [1.5]})
        self.assertIn("| all-reduce | 1.50 | **≤ 1.00 missed** |",
                      tables.collectives_table([r], known))
        self.assertIn("| all-reduce | 1.50 | – |", tables.collectives_table([r], NO_AIMS))

    def test_a_step_by_operation(self):
        def operation(name, seconds, bound_s=0.0, bound="memory"):
            return {"name": name, "seconds": seconds, "bytes": 4e7, "operations": 6e9,
                    "bound_s": bound_s, "bound": bound}
        small = [operation(f"small {i}", 0.0001) for i in range(9)]
        profile = {"model": "m", "work": "decode 1", "steps": 10, "seconds": 0.02, "ranks": 2,
                   "operations": [*small, operation("wait", 0.004), operation("head", 0.01, 0.005),
                                  operation("gated_up", 0.002, 0.001, "int8")]}
        lines = tables.profile_table([profile]).splitlines()[2:]
        self.assertEqual(len(lines), tables.OPERATIONS_SHOWN)
        self.assertEqual(lines[0],
                         "| m | decode 1 | 2.00 | head | 1.00 | 50 % | 8.00 GB/s | 50 % |")
        self.assertEqual(lines[1], "|  |  |  | wait | 0.400 | 20 % | – | – |")
        self.assertEqual(lines[2],
                         "|  |  |  | gated up | 0.200 | 10 % | 6,000 int8 GOP/s | 50 % |")

    def test_a_report_says_what_is_missing(self):
        results = {"machine": {"processor": "p", "type": "t", "threads": 2, "memory_gb": 1,
                               "kernel": "k"},
                   "limits": {"read_gb_s": 40, "int8_gop_s": 2000, "f32_gop_s": 600}, "rounds": 5,
                   "ranks": 2, "threads_per_rank": 1, "peer": "llama.cpp", "finished": False,
                   "failures": ["load sweep: no"], "warnings": [], "answers": [], "profiles": []}
        text = report.markdown(results, [row(peer=[1], facet=[2])], NO_AIMS)
        self.assertIn("**Unfinished: these are the rows measured so far.**", text)
        self.assertIn("**Not measured: load sweep: no**", text)
        self.assertNotIn("aims are reached", text)
        whole = report.markdown({**results, "finished": True, "failures": []},
                                [Row("m", figures.cost_work(1),
                                     samples={FACET: [96], ONE_PROCESS: [100]})], NO_AIMS)
        self.assertIn("1 of 1 aims are reached", whole)
        self.assertNotIn("**", whole)


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

    def test_rates(self):
        text = ("31 tokens, 95.2 tokens/s, first after 0.042 s (prompt 12 tokens, 0 cached); stop; "
                "seed 7\n")
        self.assertEqual(facet.parse_rate(text), 95.2)
        self.assertIsNone(facet.parse_rate("1 token, first after 0.042 s"))

    def test_machine_type(self):
        text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n" \
               "model name\t: AMD EPYC\n"
        facts = machine.cpu_facts(text + text.replace("26", "99"))
        self.assertEqual(machine.machine_type(facts, 2), "AuthenticAMD 26/2, 2 processors")
        self.assertEqual(facts["name"], "AMD EPYC")
        self.assertEqual(machine.machine_type(machine.cpu_facts(""), 1), "? ?/?, 1 processors")

    def test_what_is_known_of_peers_is_about_rows_that_exist(self):
        whole = plan.WHOLE
        rows = {"collectives": {"all-reduce 640 floats, shm"}}
        for size, work in whole.works.items():
            for kind in whole.kinds:
                rows[f"{size} {kind}"] = {f"decode {n}" for n in work.streams} | {"prefill 512"}
                rows[f"{size} {kind}"] |= {f"serve {n}{part}" for n in work.serve_streams
                                           for part, _ in measure.SERVE_PARTS.values()}
        for file in ("expected_peers.json", "aims.json"):
            for models in json.loads((HERE / file).read_text()).values():
                for model, works in models.items():
                    self.assertLessEqual(set(works), rows[model], f"{file}: {model}")

    def test_the_first_kind_is_measured_as_the_others_are(self):
        for chosen in (plan.WHOLE, plan.QUICK):
            for work in chosen.works.values():
                self.assertIn(1, work.streams)
                self.assertEqual(set(work.peer_tokens), set(work.streams))
                self.assertLessEqual(set(work.cost_streams), set(work.streams))
                self.assertTrue(work.serve_streams or not work.load_shares)

    def test_a_size_narrows_the_plan(self):
        arguments = types.SimpleNamespace(quick=False, size=["1b", "1b"], rounds=2)
        chosen = command.plan_of(arguments)
        self.assertEqual(list(chosen.works), ["1b"])
        self.assertEqual(chosen.rounds, 2)
        arguments = types.SimpleNamespace(quick=True, size=None, rounds=None)
        self.assertEqual(command.plan_of(arguments), plan.QUICK)

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

    def test_a_death_is_told_once(self):
        with self.peer as process:
            with self.assertRaisesRegex(peer.PeerError, "died at die"):
                process.ask("die")
            self.assertEqual(process.ask("again"), {"do": "again"})

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

    def test_a_trial_finds_it_out_for_less(self):
        asked = []
        with self.peer as process:
            spy = types.SimpleNamespace(
                ask=lambda what, **words: asked.append(words) or process.ask(what, **words))
            result = peer.Flash(spy).best("key", lambda r: r["value"], "serve", {"requests": 1},
                                          requests=9, streams=1)
        self.assertEqual((result["requests"], result["flash"]), (9, False))
        self.assertEqual([words["requests"] for words in asked], [1, 1, 9])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
