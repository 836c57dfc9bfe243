"""Counts test cases: `summarize.py FOLDER` reads ctest.xml (ctest's JUnit report) and the reports
that gtest wrote beside it, prints a line per test binary, and ends with "N passed, N failed".

A binary that crashed, hung or failed without a failed case counts as one failure more. A test
without a gtest report counts as one case.
"""

import dataclasses
import os
import sys
import xml.etree.ElementTree as ElementTree


@dataclasses.dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def count_cases(report):
    """Of one gtest report."""
    counts = Counts()
    for case in ElementTree.parse(report).iter("testcase"):
        if case.get("status") == "notrun":  # disabled, or left out by a filter
            continue
        if case.find("failure") is not None:
            counts.failed += 1
        elif case.get("result") == "skipped":
            counts.skipped += 1
            reason = case.find("skipped").get("message", "")
            print(f"SKIPPED {case.get('classname')}.{case.get('name')}: {reason.strip()}")
        else:
            counts.passed += 1
    return counts


def count_binary(case, folder):
    """Of one test of ctest's report: its cases, and what went wrong outside of them."""
    ok = case.get("status") == "run"
    report = os.path.join(folder, case.get("name") + ".xml")
    if not os.path.exists(report):
        skipped = case.find("skipped") is not None
        return Counts(passed=int(ok), failed=int(not ok and not skipped), skipped=int(skipped))
    try:
        counts = count_cases(report)
    except ElementTree.ParseError:  # it died while it wrote
        return Counts(failed=1)
    if not ok and counts.failed == 0:
        counts.failed = 1
    if counts == Counts():  # a binary without a case tests nothing
        counts.failed = 1
    return counts


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
        print("no test ran")
        total.failed += 1
    if total.skipped:
        print(f"{total.skipped} skipped")
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
