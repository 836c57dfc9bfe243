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
import urllib.request

LAUNCHER = os.path.abspath("deploy/local/cluster.py")
TIMEOUT_S = 120  # more than a machine stands still

# A server that records how it was started, answers /healthz and ends at SIGTERM. $FAKE_<KIND>
# changes its mind.
SERVER = """#!{python}
import http.server, json, os, signal, sys, threading
name = os.path.basename(sys.argv[0])
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
mood = os.environ.get("FAKE_" + name.split("-")[1].upper(), "")
record_path = os.environ["RECORD"]
if mood == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
with open(record_path, "a") as record:
    record.write(json.dumps(dict(name=name, pid=os.getpid(), flags=flags)) + chr(10))
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(record_path + ".asked-" + str(os.getpid()), "a") as asked:
            asked.write("x")
        sick = os.path.exists(record_path + ".sick-" + str(os.getpid()))
        self.send_response(503 if sick else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(flags["metrics_port"])), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()
if mood in ("dies", "misused") and flags.get("rank", "0") == "0":
    print("cannot read the model", flush=True)
    os._exit(2 if mood == "misused" else 1)
while True:
    signal.pause()
"""

# The client: `facet status --until_ready` says that all is well, or what it is told to.
CLIENT = """#!{python}
import os, signal, sys
while "FAKE_NEVER_READY" in os.environ:
    signal.pause()
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
    except (FileNotFoundError, ProcessLookupError):  # the latter if it goes while it is read
        return False


class Launcher(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.record = os.path.join(self.folder.name, "record")
        self.scratch = os.path.join(self.folder.name, "scratch")
        os.mkdir(self.scratch)
        with open(self.record, "w", encoding="utf-8"):
            pass
        for name, text in [("facet-worker", SERVER), ("facet-router", SERVER), ("facet", CLIENT)]:
            path = os.path.join(self.folder.name, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text.format(python=sys.executable))
            os.chmod(path, stat.S_IRWXU)

    def launch(self, *arguments, moods=None):
        environment = dict(os.environ, RECORD=self.record, TMPDIR=self.scratch, **(moods or {}))
        process = subprocess.Popen(
            [sys.executable, LAUNCHER, "--model=m.gguf", f"--bin={self.folder.name}", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        """A test that fails half-way leaves nothing running either."""
        process.kill()
        process.communicate()

    def finish(self, process):
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err

    def started(self):
        with open(self.record, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def wait_until(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            self.assertLess(time.monotonic(), deadline, "waited in vain")
            time.sleep(0.01)

    def ranks(self, rank):
        """Every start of this rank, of one group."""
        return [s for s in self.started() if s["flags"].get("rank") == str(rank)]

    def state(self):
        with open(self.state_file, encoding="utf-8") as file:
            return json.load(file)

    def state_of(self, name):
        return next(p for p in self.state()["processes"] if p["name"] == name)

    def launch_with_state(self, *arguments):
        """Returns when the cluster says that it is ready."""
        self.state_file = os.path.join(self.folder.name, "state")
        process = self.launch(f"--state={self.state_file}", *arguments)
        self.wait_until(lambda: os.path.exists(self.state_file) and self.state()["ready"])
        self.wait_until(lambda: all(p["pid"] for p in self.state()["processes"]))
        return process

    def wait_until_answers(self, name):
        """Until GET /healthz says yes."""
        def answers():
            try:
                url = self.state_of(name)["metrics"].replace("/metrics", "/healthz")
                with urllib.request.urlopen(url, timeout=1):
                    return True
            except OSError:
                return False
        self.wait_until(answers)

    def assert_comes_back(self, name, disturb, said):
        """After disturb(pid) there is another process with the same flags, which answers."""
        process = self.launch_with_state()
        self.wait_until_answers(name)
        before = self.state_of(name)
        disturb(before["pid"])
        self.wait_until(lambda: self.state_of(name)["pid"] not in (0, before["pid"]))
        self.wait_until_answers(name)
        after = self.state_of(name)
        self.assertEqual(after["starts"], before["starts"] + 1)
        self.assertEqual(after["metrics"], before["metrics"])
        flags = {s["pid"]: s["flags"] for s in self.started()}
        self.assertEqual(flags[after["pid"]], flags[before["pid"]])
        self.assertFalse(os.path.exists(f"/proc/{before['pid']}"), "a zombie is left")
        process.send_signal(signal.SIGINT)
        status, _, err = self.finish(process)
        self.assertEqual(status, 0, err)
        self.assertIn(f"cluster: {name} {said}", err)
        self.assert_nothing_left()

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
        self.assert_nothing_left()
        endpoints = [
            s["flags"]["listen"] for s in self.started() if s["name"] == "facet-router"
        ]
        first, *both = out.replace(",", " ").split()
        self.assertEqual(sorted(both), sorted(endpoints))
        self.assertEqual(first, both[0])
        workers = [s["flags"] for s in self.started() if s["name"] == "facet-worker"]
        routers = [s["flags"] for s in self.started() if s["name"] == "facet-router"]
        self.assertEqual(len(workers), 6)
        self.assertEqual(len(routers), 2)
        for flags in workers:
            self.assertEqual((flags["world"], flags["threads"]), ("3", "4"))
            self.assertEqual(flags["kv_tokens"], "99")
            self.assertEqual(flags["model"], os.path.abspath("m.gguf"))
        shares = sorted(flags["host_share"] for flags in workers)
        self.assertEqual(shares, [f"{index}/6" for index in range(6)])
        leaders = {flags["listen"] for flags in workers if flags["rank"] == "0"}
        self.assertEqual(len(leaders), 2)
        for leader in leaders:
            followers = [f["rank"] for f in workers if f.get("leader") == leader]
            self.assertEqual(sorted(followers), ["1", "2"])
        for flags in routers:
            self.assertEqual(set(flags["leaders"].split(",")), leaders)
        ports = [s["flags"]["metrics_port"] for s in self.started()]
        self.assertEqual(len(ports), len(set(ports)), "every server has a port of its own")

    def test_shows_the_log_of_a_server_that_ends(self):
        status, out, err = self.finish(
            self.launch(
                "--", "echo", "never", moods={"FAKE_WORKER": "dies", "FAKE_NEVER_READY": ""}
            )
        )
        self.assertEqual((status, out), (1, ""))
        self.assertIn("cannot read the model", err)
        self.assertIn(
            "cluster: worker-0-0 ended with status 1, 5 times in a row before it was ready", err
        )
        self.assertEqual(len(self.ranks(0)), 5)
        self.assert_nothing_left()

    def test_a_wrong_flag_is_not_tried_again(self):
        status, _, err = self.finish(
            self.launch(
                "--", "echo", "never", moods={"FAKE_WORKER": "misused", "FAKE_NEVER_READY": ""}
            )
        )
        self.assertEqual(status, 1)
        self.assertIn("cannot read the model", err)
        self.assertIn("cluster: worker-0-0 ended with status 2\n", err)
        self.assertEqual(len(self.ranks(0)), 1)
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
        self.assertRegex(lines[0], r"^router  127.0.0.1:\d+\n$")
        self.assertRegex(lines[2], r"^metrics http://127.0.0.1:\d+/metrics  \(router-0\)\n$")
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(process)[0], 0)
        self.assert_nothing_left()

    def test_without_restarts_a_death_ends_serving(self):
        process = self.launch("--no-restart")
        self.wait_until(lambda: len(self.started()) == 3)
        os.kill(self.ranks(1)[0]["pid"], signal.SIGKILL)
        status, _, err = self.finish(process)
        self.assertEqual(status, 1)
        self.assertIn("cluster: worker-0-1 ended with status -9", err)
        self.assert_nothing_left()

    def test_a_killed_worker_comes_back(self):
        self.assert_comes_back(
            "worker-0-1", lambda pid: os.kill(pid, signal.SIGKILL), "ended with status -9"
        )

    def test_a_killed_router_comes_back(self):
        self.assert_comes_back(
            "router-0", lambda pid: os.kill(pid, signal.SIGKILL), "ended with status -9"
        )

    def test_a_server_that_ends_itself_comes_back(self):
        self.assert_comes_back(
            "worker-0-0", lambda pid: os.kill(pid, signal.SIGTERM), "ended with status 0"
        )

    def test_a_stopped_worker_is_replaced(self):
        self.assert_comes_back("worker-0-0", self.stop_when_watched, "does not answer")

    def test_a_stopped_router_is_replaced(self):
        self.assert_comes_back("router-0", self.stop_when_watched, "does not answer")

    def test_a_server_that_says_it_does_not_move_is_replaced(self):
        def sicken(pid):
            self.let_the_launcher_see_it_well(pid)
            with open(f"{self.record}.sick-{pid}", "w", encoding="utf-8"):
                pass
        self.assert_comes_back("worker-0-1", sicken, "does not answer or does not move")

    def let_the_launcher_see_it_well(self, pid):
        """Until it has asked, been answered and asked again."""
        path = f"{self.record}.asked-{pid}"
        asked = os.path.getsize(path)
        self.wait_until(lambda: os.path.getsize(path) > asked + 1)

    def stop_when_watched(self, pid):
        self.let_the_launcher_see_it_well(pid)
        os.kill(pid, signal.SIGSTOP)

    def test_a_machine_that_stands_still_loses_nobody(self):
        process = self.launch_with_state()
        for name in [p["name"] for p in self.state()["processes"]]:
            self.wait_until_answers(name)
        pids = [p["pid"] for p in self.state()["processes"]]
        for pid in pids:
            self.let_the_launcher_see_it_well(pid)
        for pid in (*pids, process.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)  # longer than a server may take to answer
        for pid in (process.pid, *pids):
            os.kill(pid, signal.SIGCONT)
        for pid in pids:
            self.let_the_launcher_see_it_well(pid)
        self.assertEqual([p["starts"] for p in self.state()["processes"]], [1] * len(pids))
        process.send_signal(signal.SIGINT)
        status, _, err = self.finish(process)
        self.assertEqual(status, 0, err)
        self.assertNotIn("does not answer", err)
        self.assert_nothing_left()

    def test_endless_deaths_are_spaced_and_then_the_end(self):
        process = self.launch_with_state()
        pids = set()
        while process.poll() is None:
            pid = self.state_of("worker-0-1")["pid"]
            if pid and pid not in pids and is_running(pid):
                pids.add(pid)
                os.kill(pid, signal.SIGKILL)
        status, _, err = self.finish(process)
        self.assertEqual(status, 1)
        self.assertIn("5 times in a row", err)
        for wait in ("0.1", "0.2", "0.4", "0.8"):
            self.assertIn(f"is started again in {wait} s", err)
        self.assert_nothing_left()

    def test_a_stopped_server_does_not_outlive_the_launcher(self):
        process = self.launch_with_state()
        victim = self.state_of("worker-0-1")["pid"]
        os.kill(victim, signal.SIGSTOP)
        process.kill()
        self.finish(process)
        self.wait_until(lambda: not any(is_running(s["pid"]) for s in self.started()))

    def test_a_stopped_server_ends_with_the_others(self):
        process = self.launch_with_state("--stop-s=20")
        os.kill(self.state_of("worker-0-1")["pid"], signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(process)[0], 0)
        self.assert_nothing_left()

    def test_leaves_nothing_running_when_it_is_killed(self):
        process = self.launch("--", "sh", "-c", "echo running; exec sleep 600")
        self.assertEqual(process.stdout.readline(), "running\n")
        process.kill()
        self.finish(process)
        self.wait_until(lambda: not any(is_running(s["pid"]) for s in self.started()))

    def test_kills_what_does_not_stop(self):
        status, _, err = self.finish(
            self.launch("--stop-s=3", *after_start(3, "true"), moods={"FAKE_ROUTER": "ignores"})
        )
        self.assertEqual(status, 0)
        self.assertEqual(err, "cluster: router-0 did not shut down cleanly\n")
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
