"""The metrics of a running cluster: promtool accepts every page, and the counters count.

    metrics_test.py BIN_FOLDER
"""

import os
import re
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "deploy", "local"))
from cluster import Cluster  # noqa: E402

MODEL = os.path.join(ROOT, "tests", "golden", "tiny", "gemma3_8h_quantized.gguf")
TOKENS = 7


def read(process):
    with urllib.request.urlopen(process.metrics_url(), timeout=10) as response:
        return response.read().decode()


def value(page, line):
    """Of the sample named `line`, labels included."""
    return float(re.search(rf"^{re.escape(line)} (\S+)$", page, re.MULTILINE).group(1))


def read_when(process, line, wanted):
    """The page once it says so: a follower brings its counters up to date once a second."""
    deadline = time.monotonic() + 10
    while value(page := read(process), line) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return page


def expect(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")


def main():
    with Cluster(MODEL, tp=2, bin_folder=sys.argv[1]) as cluster:
        subprocess.run(
            [os.path.join(sys.argv[1], "facet"), "generate", "--raw", "--prompt", "Hello",
             f"--max-tokens={TOKENS}", f"--endpoint={cluster.endpoints[0]}"],
            check=True, stdout=subprocess.DEVNULL)
        pages = {"router-0": read(cluster.process("router-0"))}
        for name in cluster.worker_names:
            pages[name] = read_when(cluster.process(name), "facet_worker_steps_total", TOKENS)
    for name, page in pages.items():
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, text=True,
                                 capture_output=True, check=False)
        expect(checked.returncode == 0, f"promtool on {name}: {checked.stderr}{checked.stdout}")
    router = pages["router-0"]
    expect(value(router, 'facet_router_requests_total{outcome="ok"}') == 1, "requests by outcome")
    expect(value(router, "facet_router_output_tokens_total") == TOKENS, "output tokens")
    for histogram in ("time_to_first_token", "time_per_output_token", "request", "queue"):
        expect(value(router, f"facet_router_{histogram}_seconds_count") == 1, histogram)
    for rank in range(2):
        page = pages[f"worker-0-{rank}"]
        expect(value(page, "facet_worker_steps_total") == TOKENS, f"steps of rank {rank}")
        expect(value(page, 'facet_worker_step_part_seconds_total{part="compute"}') > 0,
               f"compute time of rank {rank}")
        expect(value(page, "facet_worker_weight_bytes")
               <= 1.1 * value(page, "facet_worker_slice_bytes"), f"weights of rank {rank}")


main()
