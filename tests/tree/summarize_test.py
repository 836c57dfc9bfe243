"""tests/summarize.py counts right, above all what went wrong. Run in the root of the source tree."""

import os
import subprocess
import sys
import tempfile
import unittest

PASSED = '<testcase name="a" classname="S" status="run" result="completed"/>'
FAILED = (
    '<testcase name="b" classname="S" status="run" result="completed">'
    '<failure message="short">a_test.cc:7&#10;1 is not 2</failure>'
    "<failure>a_test.cc:8&#10;2 is not 3</failure></testcase>"
)
SKIPPED = (
    '<testcase name="c" classname="S" status="run" result="skipped">'
    '<skipped message="no model"/></testcase>'
)
DISABLED = '<testcase name="d" classname="S" status="notrun" result="suppressed"/>'


def summarize(binaries, said=""):
    """`binaries`: name -> (ctest's status, gtest's cases or None). Each printed `said`. Returns
    status and output."""
    with tempfile.TemporaryDirectory() as folder:
        rows = ""
        for name, (status, cases) in binaries.items():
            rows += (
                f'<testcase name="{name}" time="1.5" status="{status}">'
                f'<failure message="Timeout"/><system-out>{said}</system-out></testcase>'
            )
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
    def check(self, binaries, status, last_line, said=""):
        got_status, output = summarize(binaries, said)
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

    def check_told(self, output, told):
        """The lines between those of the binaries and the last."""
        lines = output.splitlines()
        self.assertEqual(lines[lines.index("--- what failed") + 1 : -1], told, output)

    def test_failed_cases_are_told_at_the_end_with_their_messages(self):
        output = self.check({"x": ("fail", report(FAILED, PASSED))}, 1, "1 passed, 1 failed")
        messages = ["a_test.cc:7", "1 is not 2", "a_test.cc:8", "2 is not 3"]
        self.check_told(output, ["FAILED x S.b"] + ["    " + line for line in messages])

    def test_who_crashed_or_hung_is_told_with_the_end_of_its_output(self):
        said = "\n".join(f"line {i}" for i in range(100))
        told = ["FAILED x", "    ctest: Timeout"] + [f"    line {i}" for i in range(70, 100)]
        for cases in [None, "<testsuites><testsui", report(PASSED)]:
            got = summarize({"x": ("fail", cases), "y": ("run", report(PASSED))}, said)[1]
            self.check_told(got, told)

    def test_a_sanitizers_report_is_told_from_its_beginning(self):
        found = "==7==ERROR: AddressSanitizer: stack-use-after-scope"
        said = "\n".join(["before"] * 50 + [found] + ["after"] * 50)
        output = summarize({"x": ("fail", None)}, said)[1]
        self.check_told(
            output, ["FAILED x", "    ctest: Timeout", "    " + found] + ["    after"] * 29
        )

    def test_nothing_is_told_where_nothing_failed(self):
        self.assertNotIn("what failed", summarize({"x": ("run", report(PASSED, SKIPPED))})[1])

    def test_long_messages_are_cut_and_so_are_many(self):
        long = FAILED.replace("1 is not 2", "&#10;".join(["long"] * 100))
        told = summarize({"x": ("fail", report(long))})[1].splitlines()
        self.assertEqual(told[-2], "    ... 64 lines more")
        many = summarize({"x": ("fail", report(*[long] * 7))})[1].splitlines()
        self.assertEqual(many[-2:], ["... and 3 more", "0 passed, 7 failed"])
        self.assertLess(len(many), 210)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
