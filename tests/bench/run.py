#!/usr/bin/env python3
"""Facet beside llama.cpp, on the same files and processors: one table, JSON, CSV and plots.

    tests/bench/run.sh                 the real 270M: about 20 minutes
    tests/bench/run.sh --quick         fewer rows, one round: about 4 minutes; shows that it works
    tests/bench/run.sh --size 1b       Gemma 3 1B's shapes with random weights: about 25 minutes

run.sh builds Facet first. llama.cpp is built from source once, unless --peer-python names a Python
that has it. README.md in this folder says what is measured and how.

Exit codes: 0; 1 failed; 3 the run was refused: the peer fell too far below what is known of it on
this machine type (expected_peers.json), or the answers did not agree.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from facet_bench import figures, machine, measure, peer, report  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
REFUSED = 3
OTHERS_MAX = 0.1  # of the processors, before a run is called disturbed


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", choices=["270m", "1b"], action="append",
                        help="models to measure (default 270m; may be given twice)")
    parser.add_argument("--rounds", type=int, help="alternating rounds (default 5, quick 1)")
    parser.add_argument("--ranks", type=int, default=2, help="tensor-parallel degree of Facet")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--peer-python", help="a Python that has llama-cpp-python, numpy and gguf")
    parser.add_argument("--peer-program", type=pathlib.Path, metavar="FILE",
                        help="another peer: a Python program that answers as llama_cpp_peer.py does")
    parser.add_argument("--expected", type=pathlib.Path, default=HERE / "expected_peers.json")
    parser.add_argument("--accept-slow-peer", action="store_true",
                        help="finish a run that would be refused; the table says so")
    parser.add_argument("--out", type=pathlib.Path, default=machine.ROOT / "build" / "bench")
    parser.add_argument("--update-readme", action="store_true",
                        help="put the table into the README")
    return parser.parse_args()


def plan_of(arguments):
    plan = measure.QUICK if arguments.quick else measure.Plan()
    changes = {}
    if arguments.size:
        changes["sizes"] = tuple(dict.fromkeys(arguments.size))
    if arguments.rounds:
        changes["rounds"] = arguments.rounds
    return dataclasses.replace(plan, **changes)


def check_peer(run, known, accept, most=figures.SHORTFALL_MAX):
    """Refuses, or says what it would have refused for."""
    found = figures.shortfalls(run.rows, known, most)
    if found and not accept:
        raise measure.Refused("\n".join(found))
    return [f"Not a fair run, and accepted by hand: {line}." for line in found]


def gather(run, about, python, plan, others, warnings):
    if others > OTHERS_MAX:
        warnings = warnings + [f"Other processes used {100 * others:.0f} % of the processors when "
                               "the run began: the figures are disturbed."]
    return {
        "machine": machine.describe(run.all_threads), "limits": run.limits.medians(),
        "limits_looks": run.limits.looks, "peer": peer.build_flags(python, about),
        "rounds": plan.rounds, "ranks": run.ranks, "threads_per_rank": run.threads,
        "others_share": others, "warnings": warnings, "answers": run.answers,
        "rows": figures.to_json(run.rows), "load": run.load, "profiles": run.profiles,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def draw(python, folder):
    subprocess.run([python, HERE / "facet_bench" / "plots.py", folder / "results.json", folder],
                   check=True, stdout=sys.stderr)


def main():
    arguments = parse_arguments()
    plan = plan_of(arguments)
    threads = arguments.ranks * arguments.threads
    machine.use_processors(threads)
    python = arguments.peer_python or peer.find_python()
    plots_python = peer.find_plots_python()
    facts = machine.describe(threads)
    known = json.loads(arguments.expected.read_text()).get(facts["type"], {})
    others = machine.others_share()
    arguments.out.mkdir(parents=True, exist_ok=True)
    program = arguments.peer_program or peer.LLAMA_CPP
    try:
        with peer.Peer(python, program) as process:
            about = process.ask("about")
            print(f"peer: {peer.build_flags(python, about)}", file=sys.stderr)
            if not known:
                print(f"nothing is known of peers on {facts['type']}: none is refused",
                      file=sys.stderr)
            limits = machine.Limits(threads, plan.limits_seconds)
            run = measure.Run(plan, process, peer.Flash(process), limits, python,
                              arguments.ranks, arguments.threads)
            run.after_first_peer_round = lambda: check_peer(
                run, known, arguments.accept_slow_peer, figures.FIRST_SHORTFALL_MAX)
            run.everything()
            warnings = check_peer(run, known, arguments.accept_slow_peer)
    except measure.Refused as refusal:
        print(f"refused:\n{refusal}\n--accept-slow-peer would go on", file=sys.stderr)
        return REFUSED
    results = gather(run, about, python, plan, others, warnings)
    table = report.write(arguments.out, results, run.rows)
    draw(plots_python, arguments.out)
    print(table)
    if arguments.update_readme:
        readme = machine.ROOT / "README.md"
        readme.write_text(report.replace_between(readme.read_text(), table))
    print(f"results.json, results.csv, table.md and plots are in {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
