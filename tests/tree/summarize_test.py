"""tests/summarize.py counts right, above all what went wrong. Run in the root of the source tree."""

import os
import subprocess
import sys
import tempfile
import unittest

PASSED = '<testcase name="a" classname="S" status="run" result="completed"/>'
FAILED = '<testcase name="b" classname="S" status="run" result="completed"><failure/></testcase>'
SKIPPED = (
    '<testcase name="c" classname="S" status="run" result="skipped">'
    '<skipped message="no model"/></testcase>'
)
DISABLED = '<testcase name="d" classname="S" status="notrun" result="suppressed"/>'


def summarize(binaries):
    """`binaries`: name -> (ctest's status, gtest's cases or None). Returns status and output."""
    with tempfile.TemporaryDirectory() as folder:
        rows = ""
        for name, (status, cases) in binaries.items():
            rows += f'<testcase name="{name}" time="1.5" status="{status}"/>'
            if cases is not None:
                with open(os.path.join(folder, name + ".xml"), "w", encoding="utf-8") as file:
                    file.write(cases)
        with open(os.path.join(folder, "ctest.xml"), "w", encoding="utf-8") as file:
            file.write(f"<testsuite>{rows}</testsuite>")
        result = subprocess.run(
            [sys.executable, "tests/summarize.py", folder],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    return result.returncode, result.stdout


def report(*cases):
    return "<testsuites><testsuite>" + "".join(cases) + "</testsuite></testsuites>"


class Summarize(unittest.TestCase):
    def check(self, binaries, status, last_line):
        got_status, output = summarize(binaries)
        self.assertEqual((got_status, output.splitlines()[-1]), (status, last_line), output)
        return output

    def test_adds_the_cases_of_all_binaries(self):
        binaries = {"x": ("run", report(PASSED, PASSED)), "y": ("run", report(PASSED, DISABLED))}
        self.check(binaries, 0, "3 passed, 0 failed")

    def test_failed_cases_fail(self):
        self.check({"x": ("fail", report(PASSED, FAILED))}, 1, "1 passed, 1 failed")

    def test_skipped_cases_are_told_and_do_not_count(self):
        output = self.check({"x": ("run", report(PASSED, SKIPPED))}, 0, "1 passed, 0 failed")
        self.assertIn("SKIPPED S.c: no model\n", output)

    def test_a_binary_that_crashed_or_hung_is_a_failure(self):
        self.check({"x": ("fail", None), "y": ("run", report(PASSED))}, 1, "1 passed, 1 failed")
        self.check({"x": ("fail", "<testsuites><testsui")}, 1, "0 passed, 1 failed")

    def test_a_failure_after_the_last_case_is_a_failure(self):
        # A leak that a sanitizer finds at exit, say.
        self.check({"x": ("fail", report(PASSED))}, 1, "1 passed, 1 failed")

    def test_a_test_without_cases_counts_once(self):
        self.check({"script": ("run", None)}, 0, "1 passed, 0 failed")

    def test_no_tests_at_all_is_a_failure(self):
        self.check({}, 1, "0 passed, 1 failed")
        self.check({"x": ("run", report())}, 1, "0 passed, 1 failed")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
