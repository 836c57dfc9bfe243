"""The metrics of a running cluster: every process has them, promtool finds nothing to improve, and
they count what was asked. Run in the root of the source tree; FACET_BIN_DIR has the binaries.
"""

import os
import re
import subprocess
import sys
import time
import unittest
import urllib.request

sys.path.insert(0, os.path.abspath("deploy/local"))
import cluster  # noqa: E402  (from deploy/local)

MODEL = os.path.join(
    os.environ.get("FACET_MODEL_DIR", ".cache/models"), "SmolLM2-135M-Instruct.Q4_1.gguf"
)
BIN = os.environ.get("FACET_BIN_DIR", "build/bin")


def fetch(process):
    with urllib.request.urlopen(process.metrics_url(), timeout=60) as answer:
        return answer.read().decode()


def fetch_when(process, name, least):
    """The page once it says so: a follower brings its counters up to date now and then."""
    deadline = time.monotonic() + 60
    while total(page := fetch(process), name) < least and time.monotonic() < deadline:
        time.sleep(0.05)
    return page


def total(metrics, name):
    """The sum over all label sets of one metric."""
    rows = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.MULTILINE)
    return sum(float(row) for row in rows)


class Metrics(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cluster.Cluster(
            MODEL, tp=2, bin_folder=BIN, worker_flags=["--packed_cache=off"]
        )
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.start()
        command = [os.path.join(BIN, "facet"), "generate", "--max-tokens=8", "--ignore-eos", "Hi"]
        environment = dict(os.environ, FACET_ENDPOINT=cls.cluster.endpoints[0])
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        cls.texts = {"router-0": fetch(cls.cluster.process("router-0"))}
        for name in cls.cluster.worker_names:
            process = cls.cluster.process(name)
            cls.texts[name] = fetch_when(process, "facet_worker_steps_total", 8)

    def test_every_name_is_ours(self):
        for process, text in self.texts.items():
            names = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
            self.assertTrue(names, process)
            self.assertEqual([n for n in names if not n.startswith("facet_")], [], process)

    def test_promtool_has_nothing_to_say(self):
        for process, text in self.texts.items():
            result = subprocess.run(
                ["promtool", "check", "metrics"], input=text, capture_output=True, text=True,
                timeout=60, check=False,
            )
            said = result.stdout + result.stderr
            self.assertEqual((result.returncode, said), (0, ""), f"{process}: {said}")

    def test_the_answer_was_counted(self):
        tokens = {n: total(t, "facet_[a-z_]*output_tokens_total") for n, t in self.texts.items()}
        self.assertEqual(tokens["router-0"], 8, tokens)
        self.assertEqual(tokens["worker-0-0"], 8, tokens)

        for histogram in ("time_to_first_token", "time_per_output_token", "request", "queue"):
            count = total(self.texts["router-0"], f"facet_router_{histogram}_seconds_count")
            self.assertEqual(count, 1, histogram)

    def test_a_canary_came_before_the_answer(self):
        leader = self.texts["worker-0-0"]
        right = re.search(r'^facet_worker_canaries_total{result="right"} (\S+)$', leader, re.MULTILINE)
        self.assertGreaterEqual(float(right.group(1)), 1)
        self.assertEqual(total(leader, "facet_worker_epoch_breaks_total"), 0)

    def test_a_rank_tells_how_much_of_the_output_layer_it_read(self):
        for rank in range(2):
            text = self.texts[f"worker-0-{rank}"]
            rows = {reads: float(count) for reads, count in re.findall(
                r'^facet_worker_head_rows_total{reads="(\w+)"} (\S+)$', text, re.MULTILINE)}
            asked, screened, completed = rows["asked"], rows["screened"], rows["completed"]
            self.assertGreater(asked, 0)
            self.assertLessEqual(screened, asked)
            self.assertLessEqual(completed, screened)

    def test_every_rank_tells_its_steps_and_its_weights(self):
        for rank in range(2):
            text = self.texts[f"worker-0-{rank}"]
            # Those of the answer, and the canaries'.
            self.assertGreaterEqual(total(text, "facet_worker_steps_total"), 8)
            self.assertGreater(total(text, "facet_worker_step_part_seconds_total"), 0)
            slice_bytes = total(text, "facet_worker_slice_bytes")
            self.assertGreater(slice_bytes, 0)
            self.assertLessEqual(total(text, "facet_worker_weight_bytes"), 1.1 * slice_bytes)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
