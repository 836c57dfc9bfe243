#!/usr/bin/env python3
"""Facet beside llama.cpp, on the same files and processors: one table, JSON, CSV and plots.

    tests/bench/run.sh                 the real 270M and 1B shapes: about half an hour
    tests/bench/run.sh --size 270m     one of them; 1b has random weights
    tests/bench/run.sh --quick         fewer rows, one round: about 4 minutes; shows that it works

run.sh builds Facet first. llama.cpp is built from source once, unless --peer-python names a Python
that has it. README.md in this folder says what is measured and how.

Results are written after every round. What the table can do without (plots, the load sweep, steps
by operation, speculation, the long context) may fail; the table says so.

Exit codes: 0; 1 a model is missing; 3 the run was refused: the peer fell too far below what is
known of it on this machine type (expected_peers.json), or the answers did not agree.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from facet_bench import figures, machine, measure, peer, plan, report  # noqa: E402
from facet_bench.aims import Aims  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
REFUSED = 3
OTHERS_MAX = 0.1  # of the processors, before a run is called disturbed


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", choices=list(plan.WHOLE.works), action="append",
                        help="only the models of this size")
    parser.add_argument("--rounds", type=int, help="alternating rounds (default 5, quick 1)")
    parser.add_argument("--ranks", type=int, default=2, help="tensor-parallel degree of Facet")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--peer-python", help="a Python that has llama-cpp-python, numpy and gguf")
    parser.add_argument("--peer-program", type=pathlib.Path, metavar="FILE",
                        help="another peer: a Python program that answers as llama_cpp_peer.py does")
    parser.add_argument("--expected", type=pathlib.Path, default=HERE / "expected_peers.json")
    parser.add_argument("--aims", type=pathlib.Path, default=HERE / "aims.json")
    parser.add_argument("--accept-slow-peer", action="store_true",
                        help="finish a run that would be refused; the table says so")
    parser.add_argument("--out", type=pathlib.Path, default=machine.ROOT / "build" / "bench")
    parser.add_argument("--update-readme", action="store_true",
                        help="put the table into the README, unless a model is missing")
    return parser.parse_args()


def plan_of(arguments):
    chosen = plan.QUICK if arguments.quick else plan.WHOLE
    changes = {}
    if arguments.size:
        changes["works"] = {size: chosen.works[size] for size in dict.fromkeys(arguments.size)}
    if arguments.rounds:
        changes["rounds"] = arguments.rounds
    return dataclasses.replace(chosen, **changes)


def of_this_type(path, machine_type):
    return json.loads(path.read_text()).get(machine_type, {})


def refuse_slow_peer(run, known, accept, most):
    found = figures.shortfalls(run.rows, known, most)
    if found and not accept:
        raise measure.Refused("\n".join(found))


class Keeper:
    """Writes what there is of a run, again and again."""

    def __init__(self, run, folder, facts, known, aims):
        self.run, self.folder, self.facts = run, folder, facts
        self.known, self.aims = known, Aims(aims, known)
        self.started = time.monotonic()

    def warnings(self):
        lines = [f"Not a fair run: {line}."
                 for line in figures.shortfalls(self.run.rows, self.known)]
        if self.facts["others_share"] > OTHERS_MAX:
            lines.append(f"Other processes used {100 * self.facts['others_share']:.0f} % of the "
                         "processors when the run began: the figures are disturbed.")
        return lines

    def keep(self, finished=False):
        """Returns the table."""
        run = self.run
        results = {
            **self.facts, "finished": finished, "failures": run.failures,
            "limits": run.limits.medians(), "limits_looks": run.limits.looks,
            "rounds": run.plan.rounds, "ranks": run.ranks, "threads_per_rank": run.threads,
            "warnings": self.warnings(), "answers": run.answers,
            "rows": figures.to_json(run.rows), "load": run.load, "profiles": run.profiles,
            "minutes": round((time.monotonic() - self.started) / 60, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return report.write(self.folder, results, run.rows, self.aims)


def draw(folder):
    """Plots are worth having, and no table is lost without them."""
    try:
        subprocess.run([peer.find_plots_python(), HERE / "facet_bench" / "plots.py",
                        folder / "results.json", folder], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no plots: {error}", file=sys.stderr)


def measure_all(arguments, process, python, known):
    """The finished run and its table."""
    chosen = plan_of(arguments)
    threads = arguments.ranks * arguments.threads
    built = peer.build_flags(python, process.ask("about"))
    print(f"peer: {built}", file=sys.stderr)
    facts = {"machine": machine.describe(threads), "peer": built,
             "others_share": machine.others_share()}
    run = measure.Run(chosen, process, peer.Flash(process),
                      machine.Limits(threads, chosen.limits_seconds), python, arguments.ranks,
                      arguments.threads)
    aims = of_this_type(arguments.aims, facts["machine"]["type"])
    keeper = Keeper(run, arguments.out, facts, known, aims)
    run.after_part = keeper.keep
    run.after_first_peer_round = lambda: refuse_slow_peer(
        run, known, arguments.accept_slow_peer, figures.FIRST_SHORTFALL_MAX)
    run.everything()
    refuse_slow_peer(run, known, arguments.accept_slow_peer, figures.SHORTFALL_MAX)
    return run, keeper.keep(finished=True)


def main():
    arguments = parse_arguments()
    threads = arguments.ranks * arguments.threads
    machine.use_processors(threads)
    python = arguments.peer_python or peer.find_python()
    known = of_this_type(arguments.expected, machine.describe(threads)["type"])
    if not known:
        print("nothing is known of peers on this type of machine: none is refused", file=sys.stderr)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        with peer.Peer(python, arguments.peer_program or peer.LLAMA_CPP) as process:
            run, table = measure_all(arguments, process, python, known)
    except measure.Refused as refusal:
        print(f"refused:\n{refusal}\n--accept-slow-peer would go on with a slow peer",
              file=sys.stderr)
        return REFUSED
    print(table)
    draw(arguments.out)
    if arguments.update_readme and run.whole:
        readme = machine.ROOT / "README.md"
        readme.write_text(report.replace_between(readme.read_text(), table))
    print(f"results.json, results.csv, table.md and plots are in {arguments.out}", file=sys.stderr)
    return 0 if run.whole else 1


if __name__ == "__main__":
    sys.exit(main())
