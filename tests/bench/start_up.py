#!/usr/bin/env python3
"""How long a group of two ranks of one thread takes to start, with its packed weights in the page
cache, and how fast the first start packs: `python3 tests/bench/start_up.py MODEL.gguf...` in a tree
that is built.

Prints, for each model, medians of some rounds. A round begins with two threads that copy the model
into a new file where packed weights are kept: the limit for packing, which also writes as many
bytes into such a file. Then a group starts without packed weights, and one with them: from the first
process until both ranks have their weights and are attached to each other, and until the first
canary has come back, which is when routers may send. What the first start takes longer until the
ranks are attached is packing. Everything is read from the page cache and written into it; a copy
before the first round brings the memory.
"""

import argparse
import concurrent.futures
import datetime
import os
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
COPY_THREADS = 2
COPY_BLOCK = 512 << 10  # stays in a second-level cache


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


def copy(source, target):
    """Copies a file as fast as the page cache allows, in seconds, and removes the copy."""
    size = source.stat().st_size
    begin = time.monotonic()
    with open(source, "rb") as read, open(target, "wb") as write:
        os.posix_fallocate(write.fileno(), 0, size)

        def part(thread):
            block = bytearray(COPY_BLOCK)
            for at in range(thread * COPY_BLOCK, size, COPY_THREADS * COPY_BLOCK):
                count = os.preadv(read.fileno(), [block], at)
                os.pwrite(write.fileno(), memoryview(block)[:count], at)

        with concurrent.futures.ThreadPoolExecutor(COPY_THREADS) as threads:
            list(threads.map(part, range(COPY_THREADS)))
        seconds = time.monotonic() - begin
    target.unlink()
    return seconds


def one_round(binary, model, place):
    """(copying, first start attached, first start up, attached, up), in seconds."""
    with tempfile.TemporaryDirectory(dir=place) as packed:
        packed = pathlib.Path(packed)
        times = [copy(model, packed / "copy")]
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                times += start(binary, model, pathlib.Path(folder), [f"--packed_cache={packed}"])
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--place", type=pathlib.Path, default=pathlib.Path.home() / ".cache",
                        help="packed weights and the copy are kept in folders in here")
    options = parser.parse_args()
    options.place.mkdir(parents=True, exist_ok=True)
    binary = options.build / "bin" / "facet-worker"
    print("| model | first start: group up, s | packing, GB/s | copying, GB/s | share |"
          " ranks attached, s | group up, s |\n|---|---:|---:|---:|---:|---:|---:|")
    for model in options.models:
        copy(model, options.place / f"facet-start-up-{os.getpid()}")
        rounds = [one_round(binary, model, options.place) for _ in range(options.rounds)]
        gigabytes = model.stat().st_size / 1e9
        packing = statistics.median(gigabytes / (first - attached)
                                    for _, first, _, attached, _ in rounds)
        copying = statistics.median(gigabytes / times[0] for times in rounds)
        _, _, first_up, attached, up = (statistics.median(column) for column in zip(*rounds))
        print(f"| {model.stem} | {first_up:.2f} | {packing:.2f} | {copying:.2f} |"
              f" {packing / copying:.0%} | {attached:.3f} | {up:.3f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
