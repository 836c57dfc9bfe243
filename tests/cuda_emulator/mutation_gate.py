#!/usr/bin/env python3
"""Plants one fault after the other in a copy of the CUDA kernels, and demands that the parity tests
on the emulated device find each: by a wrong bit, or by a finding of the emulator.

tests/mutants.py says what a mutants/*.patch is. Here each says `Tests: filter`, too: of
kernels_cuda_emulated_test, which passes without the fault. A patch that no longer applies, does
not compile or is not found fails the gate.

Needs a build folder in which kernels_cuda_emulated_test is built. Standard output ends with
"N passed, N failed". Exit status: 0 if none failed.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from mutants import ROOT, Gate, included, must_run, run

TEST = "kernels_cuda_emulated_test"
KERNELS = "libfacet_kernels_cuda_emulated.a"

# The classes of faults that the gate is there for: each needs a mutant at least.
CLASSES = {"dropped barrier", "wrong stride", "off-by-one at the tail", "missing mask",
           "lost precision"}


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
        known = {}
        return [source for source in sorted(self.compiles)
                if (tree / source).exists() and included(tree, source, known) & files]

    def compile(self, tree, source, target):
        words = shlex.split(self.compiles[source])
        words = words[: words.index("-o")]
        # The mutated tree comes before the original on the include path, after the emulator's.
        place = next(i for i, w in enumerate(words) if w.endswith("cuda_emulator/include")) + 1
        words[place:place] = [f"-I{tree}"]
        must_run(words + ["-o", str(target), "-c", str(tree / source)],
                 f"{source} does not compile", cwd=self.folder)

    def link_program(self, objects, program):
        command = self.link.split("&& ", 1)[1].rsplit(" && ", 1)[0]
        words = shlex.split(command)
        words[words.index("-o") + 1] = str(program)
        place = next(i for i, w in enumerate(words) if w.endswith(KERNELS))
        words[place:place] = [str(o) for o in objects]
        must_run(words, "the test does not link", cwd=self.folder)


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


def attempt(mutant, folder, build, options):
    tree = folder / "tree"
    shutil.copytree(ROOT / "kernels" / "cuda", tree / "kernels" / "cuda",
                    ignore=shutil.ignore_patterns("language.cuh"))
    mutant.plant(tree)
    objects = []
    for source in build.users_of(tree, mutant.files):
        objects.append(folder / (pathlib.Path(source).name + ".o"))
        build.compile(tree, source, objects[-1])
    build.link_program(objects, folder / "test")
    passed, said = passes(folder / "test", mutant.fields.get("Tests", ""), options.timeout)
    return not passed, said


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--timeout", type=int, default=300, help="seconds of tests per mutant")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("mutants", nargs="*", help="names; default: all, and their classes too")
    options = parser.parse_args()
    options.build = options.build.resolve()
    return options


def main():
    options = parse_arguments()
    gate = Gate(HERE / "mutants", CLASSES, options.mutants)
    build = Build(options.build)
    # What the gate stands on: without a fault nothing is found.
    for tests in sorted({mutant.fields.get("Tests", "") for mutant in gate.mutants}):
        sound, said = passes(options.build / "bin" / TEST, tests, options.timeout)
        if not sound:
            gate.failures.append(f"the unchanged kernels fail {tests}: {said}")
    return gate.search(lambda mutant, folder: attempt(mutant, folder, build, options),
                       options.build / "cuda_mutants", options.jobs)


if __name__ == "__main__":
    sys.exit(main())
