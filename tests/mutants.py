"""What the gates share that plant one fault after the other in a copy of the code and demand that
its tests find each.

Each mutants/*.patch of a gate is a unified diff against the root of the tree. Its lines before the
diff say which bug it is: the first line in a sentence, then `Class: name`, and what else the gate
wants to know, a `Name: value` each.
"""

import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Trouble(Exception):
    """Why a mutant cannot be tried."""


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def must_run(command, otherwise, **options):
    result = run(command, **options)
    if result.returncode != 0:
        raise Trouble(f"{otherwise}:\n{result.stderr[:2000]}")
    return result.stdout


class Mutant:
    def __init__(self, path):
        self.path = path
        self.name = path.stem
        text = path.read_text(encoding="utf-8")
        header = text.split("\n--- ", 1)[0].splitlines()
        self.fields = dict(line.split(": ", 1) for line in header[1:] if ": " in line)
        self.bug = header[0]
        self.kind = self.fields.get("Class", "").strip()
        # What it changes, named from the root of the tree.
        self.files = set(re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE))

    def plant(self, tree):
        """Applies the patch to a copy of the tree."""
        applied = run(["patch", "-p1", "--fuzz=0", "-s", "-i", str(self.path)], cwd=tree)
        if applied.returncode != 0:
            raise Trouble(f"the patch no longer applies: {applied.stdout.strip()[:300]}")


def included(tree, source, known=None):
    """Names of all files of the tree that `source` includes, itself among them."""
    known = {} if known is None else known
    if source in known:
        return known[source]
    known[source] = found = {source}
    text = (tree / source).read_text(encoding="utf-8")
    for name in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
        if (tree / name).exists():
            found |= included(tree, name, known)
    return found


class Gate:
    """A folder of mutants, and the classes of faults of which each needs one at least."""

    def __init__(self, folder, classes, names=()):
        """`names`: the mutants to try; default: all, and then their classes count, too."""
        self.failures = []
        self.mutants = [Mutant(path) for path in sorted(folder.glob("*.patch"))]
        if names:
            self.mutants = [mutant for mutant in self.mutants if mutant.name in names]
        else:
            for kind in sorted(classes - {mutant.kind for mutant in self.mutants}):
                self.failures.append(f"class `{kind}` has no mutant")
        if not self.mutants:
            self.failures.append("there are no such mutants")
        for mutant in self.mutants:
            if mutant.kind not in classes:
                self.failures.append(f"{mutant.name}: class `{mutant.kind}` is unknown")

    def search(self, attempt, folder, jobs):
        """Tries all mutants, and prints what came of it; the last line is "N passed, N failed".

        attempt(mutant, folder), with an empty folder of its own, returns whether the fault was
        found and what was said, or raises Trouble. Returns the exit status.
        """
        begin = time.monotonic()
        passed = 0
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            tries = {pool.submit(self._try, attempt, mutant, folder): mutant
                     for mutant in self.mutants}
            for done in concurrent.futures.as_completed(tries):
                mutant = tries[done]
                found, said = done.result()
                passed += found
                print(f"{'found ' if found else 'MISSED'} {mutant.name}: {mutant.bug}\n"
                      f"       {said}", flush=True)
                if not found:
                    self.failures.append(f"{mutant.name}: {said}")
        for failure in self.failures:
            print(f"FAILED: {failure}")
        print(f"{time.monotonic() - begin:.0f} s of mutants")
        print(f"{passed} passed, {len(self.failures)} failed")
        return 1 if self.failures else 0

    @staticmethod
    def _try(attempt, mutant, folder):
        own = folder / mutant.name
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        try:
            result = attempt(mutant, own)
        except Trouble as trouble:
            return False, str(trouble)
        shutil.rmtree(own)
        return result
