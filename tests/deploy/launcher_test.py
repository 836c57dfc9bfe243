"""deploy/local/cluster.py with stand-ins for the binaries: what it starts, and that nothing of it
is left however it ends. Run in the root of the source tree.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

LAUNCHER = os.path.abspath("deploy/local/cluster.py")
TIMEOUT_S = 30

# A server that records how it was started and ends at SIGTERM. $FAKE_<KIND> changes its mind.
SERVER = """#!{python}
import json, os, signal, sys
name = os.path.basename(sys.argv[0])
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
mood = os.environ.get("FAKE_" + name.split("-")[1].upper(), "")
if mood == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("metrics on port 12345", flush=True)
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(dict(name=name, pid=os.getpid(), flags=flags)) + chr(10))
if mood == "dies" and flags.get("rank", "0") == "0":
    sys.exit("cannot read the model")
if "address_file" in flags:
    with open(flags["address_file"] + ".tmp", "w") as file:
        file.write("127.0.0.1:5" + chr(10))
    os.rename(flags["address_file"] + ".tmp", flags["address_file"])
while True:
    signal.pause()
"""

# The client: `facet status --until_ready` says that all is well.
CLIENT = """#!{python}
import os, sys
sys.exit(os.environ.get("FAKE_NOT_READY"))
"""


# A command that first lets so many servers come up; one that is stopped before it listens to
# SIGTERM does not shut down cleanly.
def after_start(servers, command):
    wait = f"until [ $(wc -l < $RECORD) -ge {servers} ]; do sleep 0.01; done; "
    return ["--", "sh", "-c", wait + command]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Launcher(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.record = os.path.join(self.folder.name, "record")
        self.scratch = os.path.join(self.folder.name, "scratch")
        os.mkdir(self.scratch)
        for name, text in [("facet-worker", SERVER), ("facet-router", SERVER), ("facet", CLIENT)]:
            path = os.path.join(self.folder.name, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text.format(python=sys.executable))
            os.chmod(path, stat.S_IRWXU)

    def launch(self, *arguments, moods=None):
        environment = dict(os.environ, RECORD=self.record, TMPDIR=self.scratch, **(moods or {}))
        return subprocess.Popen(
            [sys.executable, LAUNCHER, "--model=m.gguf", f"--bin={self.folder.name}", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process):
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err

    def started(self):
        if not os.path.exists(self.record):
            return []
        with open(self.record, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def wait_until(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited in vain")
            time.sleep(0.01)

    def assert_nothing_left(self):
        self.wait_until(lambda: not any(is_running(s["pid"]) for s in self.started()))
        self.assertEqual(os.listdir(self.scratch), [])

    def test_runs_a_command_against_what_it_starts(self):
        status, out, err = self.finish(
            self.launch(
                "--tp=3", "--replicas=2", "--routers=2", "--threads=4",
                "--worker-flag=--kv_tokens=99",
                *after_start(8, "echo $FACET_ENDPOINT $FACET_ENDPOINTS; exit 3"),
            )
        )
        self.assertEqual((status, err), (3, ""))
        self.assertEqual(out, "127.0.0.1:5 127.0.0.1:5,127.0.0.1:5\n")
        self.assert_nothing_left()
        workers = [s["flags"] for s in self.started() if s["name"] == "facet-worker"]
        routers = [s["flags"] for s in self.started() if s["name"] == "facet-router"]
        self.assertEqual(len(workers), 6)
        self.assertEqual(len(routers), 2)
        for flags in workers:
            self.assertEqual((flags["world"], flags["threads"]), ("3", "4"))
            self.assertEqual(flags["kv_tokens"], "99")
            self.assertEqual(flags["model"], os.path.abspath("m.gguf"))
        leaders = {flags["listen"] for flags in workers if flags["rank"] == "0"}
        self.assertEqual(len(leaders), 2)
        for leader in leaders:
            followers = [f["rank"] for f in workers if f.get("leader") == leader]
            self.assertEqual(sorted(followers), ["1", "2"])
        for flags in routers:
            self.assertEqual(set(flags["leaders"].split(",")), leaders)

    def test_shows_the_log_of_a_server_that_ends(self):
        status, out, err = self.finish(
            self.launch("--", "echo", "never", moods={"FAKE_WORKER": "dies"})
        )
        self.assertEqual((status, out), (1, ""))
        self.assertIn("cannot read the model", err)
        self.assertIn("cluster: worker-0-0 ended with status 1", err)
        self.assert_nothing_left()

    def test_says_why_it_is_not_ready(self):
        status, out, err = self.finish(
            self.launch("--", "echo", "never", moods={"FAKE_NOT_READY": "0 of 1 groups are ready"})
        )
        self.assertEqual((status, out), (1, ""))
        self.assertIn("cluster: not ready: 0 of 1 groups are ready", err)
        self.assert_nothing_left()

    def test_a_signal_ends_the_command_and_everything_else(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process = self.launch(*after_start(3, "echo running; exec sleep 600"))
            self.assertEqual(process.stdout.readline(), "running\n")
            process.send_signal(number)
            self.assertEqual(self.finish(process)[0], 128 + number)
            self.assert_nothing_left()

    def test_serves_until_it_is_stopped(self):
        process = self.launch("--tp=1")
        lines = [process.stderr.readline() for _ in range(4)]
        self.assertEqual(lines[0], "router  127.0.0.1:5\n")
        self.assertIn("metrics http://127.0.0.1:12345/metrics  (router-0)\n", lines)
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(process)[0], 0)
        self.assert_nothing_left()

    def test_a_death_ends_serving(self):
        process = self.launch()
        self.wait_until(lambda: len(self.started()) == 3)
        victim = next(s for s in self.started() if s["flags"].get("rank") == "1")
        os.kill(victim["pid"], signal.SIGKILL)
        status, _, err = self.finish(process)
        self.assertEqual(status, 1)
        self.assertIn("cluster: worker-0-1 ended with status -9", err)
        self.assert_nothing_left()

    def test_leaves_nothing_running_when_it_is_killed(self):
        process = self.launch("--", "sh", "-c", "echo running; exec sleep 600")
        self.assertEqual(process.stdout.readline(), "running\n")
        process.kill()
        self.finish(process)
        self.wait_until(lambda: not any(is_running(s["pid"]) for s in self.started()))

    def test_kills_what_does_not_stop(self):
        status, _, err = self.finish(
            self.launch("--stop-s=0.5", *after_start(3, "true"), moods={"FAKE_ROUTER": "ignores"})
        )
        self.assertEqual(status, 0)
        self.assertEqual(err, "cluster: router-0 did not shut down cleanly\n")
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
