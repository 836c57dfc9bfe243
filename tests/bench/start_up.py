#!/usr/bin/env python3
"""How long a group of two ranks of one thread takes to start, with its packed weights in the page
cache: `python3 tests/bench/start_up.py MODEL.gguf...` in a tree that is built.

Prints, for each model, the medians of some starts: from the first process until both ranks have
their weights and are attached to each other, and until the first canary has come back, which is
when routers may send. Before them one start packs, if that is not done yet, and is told apart.
"""

import argparse
import datetime
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
ATTACHED = "the ranks are attached"
UP = "the group is up"
STARTS_WITHIN_S = 300


def said_at(log, words):
    """When the line with these words was logged, in seconds of the clock, or nothing."""
    found = re.search(rf"^(\S+)Z \S+ \S+ {words}", log, re.MULTILINE)
    if found is None:
        return None
    then = datetime.datetime.fromisoformat(found[1]).replace(tzinfo=datetime.timezone.utc)
    return then.timestamp()


def start(binary, model, folder, flags):
    """One start, in seconds: (until the ranks are attached, until the group is up)."""
    begin = time.time()
    ranks = []
    for rank, place in enumerate(["--listen", "--leader"]):
        log = folder / f"rank{rank}.log"
        command = [str(binary), f"--model={model}", "--world=2", "--threads=1", "--device=cpu",
                   f"--rank={rank}", f"{place}=unix:{folder}/leader.sock", *flags]
        with open(log, "wb") as out:
            ranks.append((subprocess.Popen(command, stdout=out, stderr=out), log))
    try:
        while True:
            log = ranks[0][1].read_text()
            up = said_at(log, UP)
            if up is not None:
                return said_at(log, ATTACHED) - begin, up - begin
            if time.time() > begin + STARTS_WITHIN_S or ranks[0][0].poll() is not None:
                raise RuntimeError(f"the group did not come up:\n{log}{ranks[1][1].read_text()}")
            time.sleep(0.005)
    finally:
        for process, _ in ranks:
            process.send_signal(signal.SIGTERM)
        for process, _ in ranks:
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--packed-cache", default="auto", help="as facet-worker's --packed_cache")
    options = parser.parse_args()
    binary = options.build / "bin" / "facet-worker"
    print("| model | first start, s | ranks attached, s | group up, s |\n|---|---:|---:|---:|")
    for model in options.models:
        times = []
        for _ in range(options.rounds + 1):
            with tempfile.TemporaryDirectory() as folder:
                times.append(start(binary, model, pathlib.Path(folder),
                                   [f"--packed_cache={options.packed_cache}"]))
        attached, up = (statistics.median(column) for column in zip(*times[1:]))
        print(f"| {model.stem} | {times[0][1]:.2f} | {attached:.3f} | {up:.3f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
