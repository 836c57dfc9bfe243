#!/usr/bin/env python3
"""Plants one fault after the other in a copy of the production cores, and demands that the
simulator finds each: by a broken invariant or a wrong token, within a number of seeds.

Each mutants/*.patch is a unified diff against the root of the tree. Its lines before the diff say
which bug it is: the first line in a sentence, then `Class: name`. A patch that no longer applies,
does not compile or is not found fails the gate. So does a CHECK: a world that a CHECK stops is
passed over, because the simulator has not found anything then.

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

ROOT = pathlib.Path(__file__).resolve().parents[2]
MUTANTS = pathlib.Path(__file__).resolve().parent / "mutants"

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


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


class Build:
    """Compiles the simulator from a tree, object by object."""

    def __init__(self, folder, compiler):
        self.folder = pathlib.Path(folder)
        launcher = ["ccache"] if shutil.which("ccache") else []
        self.command = launcher + [compiler, "-std=c++20", "-O1", "-ffp-contract=off", "-w"]
        flags = run(["pkg-config", "--cflags", "--libs", *LIBRARIES, "fmt"])
        if flags.returncode != 0:
            raise RuntimeError(flags.stderr)
        self.libraries = flags.stdout.split()

    def objects_of(self, tree):
        sources = sorted(
            path.relative_to(tree)
            for pattern in SOURCES
            for path in tree.glob(pattern)
            if not LEFT_OUT.search(path.name)
        )
        return {source: self.folder / "objects" / f"{source}.o" for source in sources}

    def compile(self, tree, source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Relative names, so that a cache knows an unchanged file again in another folder.
        command = self.command + ["-I.", "-c", str(source), "-o", str(target.resolve())]
        result = run(command, cwd=tree)
        if result.returncode != 0:
            raise RuntimeError(f"{source} does not compile:\n{result.stderr[:2000]}")

    def link(self, objects, program):
        command = [self.command[1] if "ccache" in self.command[0] else self.command[0]]
        command += [str(o) for o in objects] + ["-o", str(program)] + self.libraries
        result = run(command + ["-lpthread"])
        if result.returncode != 0:
            raise RuntimeError(f"the simulator does not link:\n{result.stderr[:2000]}")


def copy_tree(target):
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*"):
            if path.suffix not in (".h", ".cc"):
                continue
            copied = target / folder / path.name
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copied)


def includes_of(tree, source, known):
    """All files of ours that `source` includes, itself among them."""
    if source in known:
        return known[source]
    known[source] = found = {source}
    text = (tree / source).read_text(encoding="utf-8")
    for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
        if (tree / name).exists():
            found |= includes_of(tree, pathlib.Path(name), known)
    return found


class Mutant:
    def __init__(self, path):
        self.path = path
        self.name = path.stem
        text = path.read_text(encoding="utf-8")
        header = text.split("\n--- ", 1)[0].splitlines()
        kind = [line for line in header if line.startswith("Class: ")]
        self.bug = header[0]
        self.kind = kind[0][len("Class: "):].strip() if kind else ""
        self.files = {pathlib.Path(f) for f in re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE)}


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


def try_mutant(mutant, tree, build, clean, options):
    begin = time.monotonic()
    folder = options.build / "mutants" / mutant.name
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(tree, folder / "tree")
    applied = run(["patch", "-p1", "--fuzz=0", "-s", "-i", str(mutant.path)], cwd=folder / "tree")
    if applied.returncode != 0:
        return False, f"the patch no longer applies: {applied.stdout.strip()[:300]}"
    own = Build(folder, options.compiler)
    known = {}
    objects = []
    try:
        for source, target in own.objects_of(folder / "tree").items():
            # An object that no changed file is part of is the same as without the patch.
            if includes_of(folder / "tree", source, known) & mutant.files:
                own.compile(folder / "tree", source, target)
                objects.append(target)
            else:
                objects.append(clean[source])
        own.link(objects, folder / "simulate")
    except RuntimeError as error:
        return False, str(error)
    compiled = time.monotonic()
    found, said = search(folder / "simulate", options)
    shutil.rmtree(folder, ignore_errors=True)
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
    return tree, build, objects


def main():
    options = parse_arguments()
    mutants = [Mutant(path) for path in sorted(MUTANTS.glob("*.patch"))]
    failures = []
    if options.mutants:
        mutants = [mutant for mutant in mutants if mutant.name in options.mutants]
    else:
        for kind in sorted(CLASSES - {mutant.kind for mutant in mutants}):
            failures.append(f"class `{kind}` has no mutant")
    if not mutants:
        failures.append("there are no such mutants")
    for mutant in mutants:
        if mutant.kind not in CLASSES:
            failures.append(f"{mutant.name}: class `{mutant.kind}` is unknown")

    begin = time.monotonic()
    tree, build, objects = build_clean(options)
    # What the gate stands on: without a fault nothing is found.
    sound = run([str(options.build / "simulate"), "--seeds", "1..200"])
    if sound.returncode != 0:
        failures.append(f"the unchanged cores fail:\n{sound.stdout[-2000:]}")
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)

    passed = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        tries = {pool.submit(try_mutant, m, tree, build, objects, options): m for m in mutants}
        for done in concurrent.futures.as_completed(tries):
            mutant = tries[done]
            found, said = done.result()
            passed += found
            print(f"{'found ' if found else 'MISSED'} {mutant.name}: {mutant.bug}\n       {said}",
                  flush=True)
            if not found:
                failures.append(f"{mutant.name}: {said}")
    for failure in failures:
        print(f"FAILED: {failure}")
    print(f"{time.monotonic() - begin:.0f} s in all")
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
