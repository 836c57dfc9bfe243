#!/usr/bin/env python3
"""Plants one fault after the other in a copy of the production cores, and demands that the
simulator finds each: by a broken invariant or a wrong token, within a number of seeds.

tests/mutants.py says what a mutants/*.patch is. One that no longer applies, does not compile or is
not found fails the gate. So does a CHECK: a world that a CHECK stops is passed over, because the
simulator has not found anything then.

Standard output ends with "N passed, N failed". Exit status: 0 if none failed.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from mutants import ROOT, Gate, included, must_run, run

# What a mutant's program is made of. Headers come with their folders.
FOLDERS = ["base", "router/core", "shard_worker/engine", "shard_worker/runtime", "tests/simulation"]
SOURCES = [
    "base/check.cc",
    "base/status.cc",
    "router/core/*.cc",
    "shard_worker/engine/*.cc",
    "shard_worker/runtime/fake_executor.cc",
    "tests/simulation/*.cc",
]
LEFT_OUT = re.compile(r"_test\.cc$")
LIBRARIES = ["absl_status", "absl_statusor", "absl_raw_hash_set", "absl_hash"]

# The classes of faults that the gate is there for: each needs a mutant at least.
CLASSES = {
    "block freed too early",
    "prefix match at exactly one block",
    "cancel then retry with the same id",
    "double commit after preemption",
    "stale epoch token accepted",
    "off-by-one at a chunk border",
    "window block reused",
    "leaked block on deadline",
    "counter not lifted for a returning tenant",
    "one request ends twice or never",
    "queue beyond its bounds",
    "livelock",
    "leader's bookkeeping",
    "resume and failover",
    "speculation",
}


class Build:
    """Compiles the simulator from a tree, object by object."""

    def __init__(self, folder, compiler):
        self.folder = pathlib.Path(folder)
        launcher = ["ccache"] if shutil.which("ccache") else []
        self.command = launcher + [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-w"]
        flags = must_run(["pkg-config", "--cflags", "--libs", *LIBRARIES, "fmt"], "no such library")
        self.libraries = flags.split()

    def objects_of(self, tree):
        sources = sorted(
            str(path.relative_to(tree))
            for pattern in SOURCES
            for path in tree.glob(pattern)
            if not LEFT_OUT.search(path.name)
        )
        return {source: self.folder / "objects" / f"{source}.o" for source in sources}

    def compile(self, tree, source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Relative names, so that a cache knows an unchanged file again in another folder.
        command = self.command + ["-I.", "-c", source, "-o", str(target.resolve())]
        must_run(command, f"{source} does not compile", cwd=tree)

    def link(self, objects, program):
        command = [self.command[1] if "ccache" in self.command[0] else self.command[0]]
        command += [str(o) for o in objects] + ["-o", str(program)] + self.libraries
        must_run(command + ["-lpthread"], "the simulator does not link")


def copy_tree(target):
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*"):
            if path.suffix not in (".h", ".cc"):
                continue
            copied = target / folder / path.name
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copied)


def search(program, options):
    """Runs seeds until the first find. Returns (found, what was said)."""
    command = [str(program), "--seeds", f"1..{options.seeds}", "--until-find"]
    try:
        result = run(command, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return False, f"not found within {options.timeout} s"
    lines = result.stdout.splitlines()
    tally = next((line for line in lines if " worlds, " in line), "no tally")
    if result.returncode == 1:
        finds = [l for l in lines if l.startswith("seed ") and ": STOPPED: " not in l]
        return True, finds[0][:220]
    return False, tally


def attempt(mutant, folder, tree, clean, options):
    """`clean`: the objects of the unchanged tree."""
    begin = time.monotonic()
    own_tree = folder / "tree"
    shutil.copytree(tree, own_tree)
    mutant.plant(own_tree)
    build = Build(folder, options.compiler)
    known = {}
    objects = []
    for source, target in build.objects_of(own_tree).items():
        # An object that no changed file is part of is the same as without the patch.
        if included(own_tree, source, known) & mutant.files:
            build.compile(own_tree, source, target)
            objects.append(target)
        else:
            objects.append(clean[source])
    build.link(objects, folder / "simulate")
    compiled = time.monotonic()
    found, said = search(folder / "simulate", options)
    times = f"compiled in {compiled - begin:.0f} s, ran {time.monotonic() - compiled:.1f} s"
    return found, f"{said} ({times})"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "mutation_gate")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    parser.add_argument("--seeds", type=int, default=10000)
    parser.add_argument("--timeout", type=int, default=180, help="seconds of seeds per mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("mutants", nargs="*", help="names; default: all, and their classes too")
    options = parser.parse_args()
    options.build = options.build.resolve()
    return options


def build_clean(options):
    tree = options.build / "tree"
    shutil.rmtree(options.build, ignore_errors=True)
    copy_tree(tree)
    build = Build(options.build / "clean", options.compiler)
    objects = build.objects_of(tree)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda item: build.compile(tree, *item), objects.items()))
    build.link(objects.values(), options.build / "simulate")
    return tree, objects


def main():
    options = parse_arguments()
    gate = Gate(HERE / "mutants", CLASSES, options.mutants)
    begin = time.monotonic()
    tree, objects = build_clean(options)
    # What the gate stands on: without a fault nothing is found.
    sound = run([str(options.build / "simulate"), "--seeds", "1..200"])
    if sound.returncode != 0:
        gate.failures.append(f"the unchanged cores fail:\n{sound.stdout[-2000:]}")
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
    return gate.search(lambda mutant, folder: attempt(mutant, folder, tree, objects, options),
                       options.build / "mutants", options.jobs)


if __name__ == "__main__":
    sys.exit(main())
