"""Counts test cases: `summarize.py FOLDER` reads ctest.xml (ctest's JUnit report) and the reports
that gtest wrote beside it, prints a line per test binary, then what failed and what it said, and
ends with "N passed, N failed".

A binary that crashed, hung or failed without a failed case counts as one failure more. A test
without a gtest report counts as one case.
"""

import dataclasses
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

FAILURES = "--- what failed"  # .ci/run repeats what follows this line
CASE_LINES = 40  # of a failed case's messages
OUTPUT_LINES = 30  # of what a binary printed that crashed or hung
LINES = 200  # of all failures
# Where a sanitizer's report begins; it ends with a page that says nothing.
SANITIZER = re.compile(r"(ERROR|WARNING): \w+Sanitizer|: runtime error: ")


@dataclasses.dataclass
class Failure:
    name: str
    said: list  # lines


@dataclasses.dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list = dataclasses.field(default_factory=list)

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures

    def add_failure(self, name, said):
        self.failed += 1
        self.failures.append(Failure(name, said))


def messages(case):
    """What a failed case of gtest's said: the beginning, where its first message is."""
    lines = "\n".join(failure.text or "" for failure in case.iter("failure")).splitlines()
    if len(lines) <= CASE_LINES:
        return lines
    return lines[: CASE_LINES - 1] + [f"... {len(lines) - CASE_LINES + 1} lines more"]


def end_of_output(case):
    """How ctest says that a binary failed, and what it printed last; a sanitizer's report first."""
    failure = case.find("failure")
    reason = failure.get("message", "") if failure is not None else ""
    lines = (case.findtext("system-out") or "").rstrip().splitlines()
    reports = [i for i, line in enumerate(lines) if SANITIZER.search(line)]
    start = reports[0] if reports else max(0, len(lines) - OUTPUT_LINES)
    return [f"ctest: {reason or case.get('status')}"] + lines[start : start + OUTPUT_LINES]


def count_cases(binary, report):
    """Of one gtest report."""
    counts = Counts()
    for case in ElementTree.parse(report).iter("testcase"):
        if case.get("status") == "notrun":  # disabled, or left out by a filter
            continue
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None:
            counts.add_failure(f"{binary} {name}", messages(case))
        elif case.get("result") == "skipped":
            counts.skipped += 1
            reason = case.find("skipped").get("message", "")
            print(f"SKIPPED {name}: {reason.strip()}")
        else:
            counts.passed += 1
    return counts


def count_binary(case, folder):
    """Of one test of ctest's report: its cases, and what went wrong outside of them."""
    name = case.get("name")
    ok = case.get("status") == "run"
    counts = Counts()
    report = os.path.join(folder, name + ".xml")
    if os.path.exists(report):
        try:
            counts = count_cases(name, report)
        except ElementTree.ParseError:  # it died while it wrote
            ok = False
        if counts == Counts():  # a binary without a case tests nothing
            ok = False
    elif ok:
        counts.passed = 1
    elif case.find("skipped") is not None:
        counts.skipped = 1
        ok = True
    if not ok and counts.failed == 0:
        counts.add_failure(name, end_of_output(case))
    return counts


def print_failures(failures):
    """Each with its name and what it said; as many as LINES has room for."""
    print(FAILURES)
    left = LINES
    for index, failure in enumerate(failures):
        if left < 1 + len(failure.said):
            print(f"... and {len(failures) - index} more")
            return
        left -= 1 + len(failure.said)
        print(f"FAILED {failure.name}")
        for line in failure.said:
            print(f"    {line}")


def main():
    folder = sys.argv[1]
    total = Counts()
    path = os.path.join(folder, "ctest.xml")
    cases = list(ElementTree.parse(path).iter("testcase")) if os.path.exists(path) else []
    for case in cases:
        counts = count_binary(case, folder)
        total.add(counts)
        print(
            f"{case.get('name'):<32} {counts.passed:5} passed {counts.failed:3} failed"
            f" {counts.skipped:3} skipped {float(case.get('time', 0)):8.1f} s"
        )
    if not cases:
        total.add_failure("no test ran", [])
    if total.skipped:
        print(f"{total.skipped} skipped")
    if total.failures:
        print_failures(total.failures)
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
