#!/usr/bin/env python3
"""Plants one fault after the other in a copy of the CUDA kernels, and demands that the parity tests
on the emulated device find each: by a wrong bit, or by a finding of the emulator.

Each mutants/*.patch is a unified diff against the root of the tree. Its lines before the diff say
which bug it is: the first line in a sentence, then `Class: name` and `Tests: filter` (of
kernels_cuda_emulated_test, which passes without the fault). A patch that no longer applies, does
not compile or is not found fails the gate.

Needs a build folder in which kernels_cuda_emulated_test is built. Standard output ends with
"N passed, N failed". Exit status: 0 if none failed.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MUTANTS = pathlib.Path(__file__).resolve().parent / "mutants"
TEST = "kernels_cuda_emulated_test"
KERNELS = "libfacet_kernels_cuda_emulated.a"

# The classes of faults that the gate is there for: each needs a mutant at least.
CLASSES = {"dropped barrier", "wrong stride", "off-by-one at the tail", "missing mask",
           "lost precision"}


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


class Mutant:
    def __init__(self, path):
        self.path = path
        self.name = path.stem
        header = path.read_text(encoding="utf-8").split("\n--- ", 1)[0].splitlines()
        fields = dict(line.split(": ", 1) for line in header[1:] if ": " in line)
        self.bug = header[0]
        self.kind = fields.get("Class", "")
        self.filter = fields.get("Tests", "")
        self.files = re.findall(r"^\+\+\+ b/(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)


class Build:
    """Compiles mutated kernels as the build folder would, and links them before its own."""

    def __init__(self, folder):
        self.folder = folder
        entries = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
        self.compiles = {}
        for entry in entries:
            name = os.path.relpath(os.path.join(entry["directory"], entry["file"]), ROOT)
            if "facet_kernels_cuda_emulated" in entry["command"]:
                self.compiles[name] = entry["command"]
        commands = run(["ninja", "-C", str(folder), "-t", "commands", TEST]).stdout.splitlines()
        self.link = next(c for c in commands if f"-o bin/{TEST} " in c)

    def users_of(self, tree, files):
        """Kernels' sources that the changed files are part of."""
        changed = set(files)
        headers = {f for f in files if f.endswith((".cuh", ".h"))}
        for source in self.compiles:
            if includes(tree, source) & headers:
                changed.add(source)
        return sorted(changed & set(self.compiles))

    def compile(self, tree, source, target):
        words = shlex.split(self.compiles[source])
        words = words[: words.index("-o")]
        # The mutated tree comes before the original on the include path, after the emulator's.
        place = next(i for i, w in enumerate(words) if w.endswith("cuda_emulator/include")) + 1
        words[place:place] = [f"-I{tree}"]
        result = run(words + ["-o", str(target), "-c", str(tree / source)], cwd=self.folder)
        if result.returncode != 0:
            raise RuntimeError(f"{source} does not compile:\n{result.stderr[:2000]}")

    def link_program(self, objects, program):
        command = self.link.split("&& ", 1)[1].rsplit(" && ", 1)[0]
        words = shlex.split(command)
        words[words.index("-o") + 1] = str(program)
        place = next(i for i, w in enumerate(words) if w.endswith(KERNELS))
        words[place:place] = [str(o) for o in objects]
        result = run(words, cwd=self.folder)
        if result.returncode != 0:
            raise RuntimeError(f"the test does not link:\n{result.stderr[:2000]}")


def includes(tree, source, seen=None):
    seen = set() if seen is None else seen
    if source in seen or not (tree / source).exists():
        return seen
    seen.add(source)
    text = (tree / source).read_text(encoding="utf-8")
    for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
        includes(tree, name, seen)
    return seen


def passes(program, tests, timeout):
    """Returns (whether the tests passed, what they said)."""
    command = [str(program), f"--gtest_filter={tests}", "--gtest_fail_fast"]
    try:
        result = run(command, cwd=ROOT, timeout=timeout)
    except subprocess.TimeoutExpired:
        return True, f"nothing found within {timeout} s"
    told = (result.stdout + result.stderr).splitlines()
    said = [line for line in told if "check failed" in line or "Failure" in line]
    if any(line.startswith("[==========] 0 tests from 0 test") for line in told):
        return True, "no test has this name"
    return result.returncode == 0, said[0].strip()[:200] if said else f"exit {result.returncode}"


def try_mutant(mutant, build, options):
    folder = options.build / "cuda_mutants" / mutant.name
    shutil.rmtree(folder, ignore_errors=True)
    tree = folder / "tree"
    shutil.copytree(ROOT / "kernels" / "cuda", tree / "kernels" / "cuda",
                    ignore=shutil.ignore_patterns("language.cuh"))
    applied = run(["patch", "-p1", "--fuzz=0", "-s", "-i", str(mutant.path)], cwd=tree)
    if applied.returncode != 0:
        return False, f"the patch no longer applies: {applied.stdout.strip()[:300]}"
    try:
        objects = []
        for source in build.users_of(tree, mutant.files):
            objects.append(folder / (pathlib.Path(source).name + ".o"))
            build.compile(tree, source, objects[-1])
        build.link_program(objects, folder / "test")
    except RuntimeError as error:
        return False, str(error)
    passed, said = passes(folder / "test", mutant.filter, options.timeout)
    shutil.rmtree(folder, ignore_errors=True)
    return not passed, said


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--timeout", type=int, default=300, help="seconds of tests per mutant")
    parser.add_argument("mutants", nargs="*", help="names; default: all, and their classes too")
    options = parser.parse_args()
    options.build = options.build.resolve()
    return options


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
    build = Build(options.build)
    begin = time.monotonic()
    # What the gate stands on: without a fault nothing is found.
    for tests in sorted({mutant.filter for mutant in mutants}):
        sound, said = passes(options.build / "bin" / TEST, tests, options.timeout)
        if not sound:
            failures.append(f"the unchanged kernels fail {tests}: {said}")
    passed = 0
    for mutant in mutants:
        found, said = try_mutant(mutant, build, options)
        if mutant.kind not in CLASSES:
            found, said = False, f"class `{mutant.kind}` is unknown"
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
