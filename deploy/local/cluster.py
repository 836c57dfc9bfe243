"""Starts a cluster on this machine: routers in front of groups of shard workers.

    cluster.py --model FILE [--tp 2] [--replicas 1] [--routers 1] [-- COMMAND...]

With a COMMAND: runs it once every group is ready, with FACET_ENDPOINT set to the first router and
FACET_ENDPOINTS to all of them, and exits as it does. Without: prints the endpoints and serves until
SIGINT or SIGTERM. Servers that die or hang meanwhile are started again (supervisor.py), at the same
addresses, unless --no-restart makes a death the end. Either way everything it started is gone when
it exits, and even if it is killed. The class Cluster is the same for tests in Python.
"""

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from supervisor import Policy, Server, with_parent

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
POLL_S = 0.02
DRAIN_S = 2  # what servers give to running requests when they are stopped
STOP_S = 10  # for a clean shutdown, before SIGKILL
LOG_LINES_SHOWN = 30
BAR_WIDTH = 30
FIXED_PORTS = (20000, 32000)  # below those that the kernel gives to outgoing connections


class ClusterError(Exception):
    pass


def free_port(host, taken):
    """A port that nobody has and that the kernel gives to no outgoing connection: a server that
    comes back finds it free."""
    while True:
        port = random.randrange(*FIXED_PORTS)
        if port not in taken and can_bind(host.strip("[]"), port):
            taken.add(port)
            return port


def can_bind(host, port):
    """Whether the port is free; raises if there is no such host here."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        return True
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise ClusterError(f"cannot listen on {host}: {error.strerror}") from error


def loaded_percent(log):
    """What a worker's log says."""
    found = re.findall(r"(\d+) % +\d+ of \d+ MB", log)
    return int(found[-1]) if found else 0


class Cluster:
    """REQUIRES start() before use and stop() at the end; a context manager does both."""

    def __init__(
        self,
        model,
        tp=2,
        replicas=1,
        routers=1,
        threads=0,
        bin_folder=None,
        listen="127.0.0.1:0",
        metrics=True,
        collective="auto",
        worker_flags=(),
        router_flags=(),
        ready_s=120,
        stop_s=STOP_S,
        restart=True,
        state_path=None,
        show_progress=False,
    ):
        self.model = os.path.abspath(model)
        self.tp = tp
        self.replicas = replicas
        self.routers = routers
        self.threads = threads or max(1, len(os.sched_getaffinity(0)) // (tp * replicas))
        self.bin_folder = bin_folder or os.path.join(ROOT, "build", "bin")
        self.listen = listen
        self.metrics = metrics
        self.collective = collective
        self.worker_flags = list(worker_flags)
        self.router_flags = list(router_flags)
        self.ready_s = ready_s
        self.stop_s = stop_s
        self.policy = Policy(restart=restart)
        self.state_path = state_path
        self.show_progress = show_progress
        self.folder = None
        self.processes = []
        self.endpoints = []
        self.worker_names = [f"worker-{g}-{r}" for g in range(replicas) for r in range(tp)]
        self._ready = False
        self._state_lock = threading.Lock()

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Returns when every router sees every group ready."""
        self.folder = tempfile.mkdtemp(prefix="facet-")
        for name, command, metrics_port in self.commands(self.folder):
            self.processes.append(
                Server(
                    name, command, self.folder, metrics_port, self.policy, self._write_state
                )
            )
        for process in self.processes:
            process.start()
        deadline = time.monotonic() + self.ready_s
        for endpoint in self.endpoints:
            self._wait_ready(endpoint, deadline)
        self._show_loading(done=True)
        for process in self.processes:
            process.set_serving()
        self._ready = True
        self._write_state()

    def stop(self):
        """Ends everything, routers first. Returns the names of servers that did not end well."""
        deadline = time.monotonic() + self.stop_s
        last_to_first = list(reversed(self.processes))
        for process in last_to_first:
            process.ask_to_stop()
        unwell = [p.name for p in last_to_first if not p.stop(max(0, deadline - time.monotonic()))]
        for process in last_to_first:
            process.close()
        self.processes = []
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        return unwell

    def check(self):
        """Raises if a server has ended for good."""
        for process in self.processes:
            if process.failure():
                raise ClusterError(process.failure())

    def process(self, name):
        return next(process for process in self.processes if process.name == name)

    def show_logs(self, out):
        """For a failure: the end of the logs, of the servers that failed or else of all."""
        failed = [process for process in self.processes if process.failure()]
        for process in failed or self.processes:
            lines = process.log().splitlines()[-LOG_LINES_SHOWN:]
            print(f"--- {process.name}", *lines, sep="\n", file=out)

    def state(self):
        """Who is who now, for tests that disturb it: pid is 0 while a server is down."""
        processes = [
            {
                "name": process.name,
                "pid": process.pid(),
                "starts": process.starts(),
                "metrics": process.metrics_url() or "",
            }
            for process in list(self.processes)
        ]
        return {"ready": self._ready, "endpoints": self.endpoints, "processes": processes}

    def _write_state(self):
        """Replaces the state file in one step."""
        if not self.state_path:
            return
        with self._state_lock:
            with open(self.state_path + ".new", "w", encoding="utf-8") as file:
                json.dump(self.state(), file)
            os.rename(self.state_path + ".new", self.state_path)

    def _binary(self, name):
        return os.path.join(self.bin_folder, name)

    def commands(self, folder):
        """(name, command, metrics port) of every server; sockets are in `folder`. Addresses are
        drawn once, so that a server that is started again is found where it was."""
        ports = set()
        metrics = lambda: free_port("127.0.0.1", ports) if self.metrics else None
        leaders = [f"unix:{folder}/group{group}.sock" for group in range(self.replicas)]
        self.endpoints = [self._router_address(index, ports) for index in range(self.routers)]
        commands = []
        for group, leader in enumerate(leaders):
            for rank in range(self.tp):
                port = metrics()
                command = self._worker_command(group, rank, leader, port)
                commands.append((f"worker-{group}-{rank}", command, port))
        for index, endpoint in enumerate(self.endpoints):
            port = metrics()
            command = self._router_command(endpoint, leaders, port)
            commands.append((f"router-{index}", command, port))
        return commands

    def _router_address(self, index, ports):
        """The first router listens where it is told to, the others beside it."""
        if index == 0 and not self.listen.endswith(":0"):
            return self.listen
        host = "127.0.0.1" if self.listen.startswith("unix:") else self.listen.rpartition(":")[0]
        return f"{host}:{free_port(host, ports)}"

    def _worker_command(self, group, rank, leader, metrics_port):
        command = [
            self._binary("facet-worker"),
            f"--model={self.model}",
            f"--rank={rank}",
            f"--world={self.tp}",
            f"--threads={self.threads}",
            f"--host_share={group * self.tp + rank}/{self.replicas * self.tp}",
            f"--listen={leader}" if rank == 0 else f"--leader={leader}",
        ]
        if self.collective != "auto":
            command.append(f"--collective={self.collective}")
        return command + self._common_flags(metrics_port) + self.worker_flags

    def _router_command(self, endpoint, leaders, metrics_port):
        command = [
            self._binary("facet-router"),
            f"--model={self.model}",
            f"--leaders={','.join(leaders)}",
            f"--listen={endpoint}",
        ]
        return command + self._common_flags(metrics_port) + self.router_flags

    def _common_flags(self, metrics_port):
        flags = [f"--drain_s={DRAIN_S}"]
        if metrics_port:
            flags += ["--metrics_address=127.0.0.1", f"--metrics_port={metrics_port}"]
        return flags

    def _wait(self, done, deadline):
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"not ready after {self.ready_s} s")
            self._show_loading()
            time.sleep(POLL_S)

    def _wait_ready(self, endpoint, deadline):
        command = [
            self._binary("facet"),
            "status",
            f"--endpoint={endpoint}",
            f"--until_ready={self.replicas}",
            f"--timeout_s={self.ready_s}",
        ]
        with open(os.path.join(self.folder, "ready.log"), "wb") as log:
            waiter = subprocess.Popen(with_parent(command), stdout=log, stderr=log)
        try:
            self._wait(lambda: waiter.poll() is not None, deadline)
        finally:
            waiter.kill()
            waiter.wait()
        if waiter.returncode != 0:
            with open(log.name, encoding="utf-8", errors="replace") as file:
                raise ClusterError(f"not ready: {file.read().strip()}")

    def _show_loading(self, done=False):
        if not self.show_progress:
            return
        # One of them may pack for all.
        percents = [loaded_percent(self.process(name).log()) for name in self.worker_names]
        percent = 100 if done else max(percents)
        filled = percent * BAR_WIDTH // 100
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        name = os.path.basename(self.model)
        end = "\n" if done else ""
        print(f"\rloading {name} [{bar}] {percent:3} %", end=end, file=sys.stderr, flush=True)


class Stopped(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""

    def __init__(self, number):
        self.number = number


def raise_stopped(number, _):
    raise Stopped(number)


def describe(cluster):
    for endpoint in cluster.endpoints:
        print(f"router  {endpoint}", file=sys.stderr)
    for process in cluster.processes:
        if process.metrics_url():
            print(f"metrics {process.metrics_url()}  ({process.name})", file=sys.stderr)


def run_command(cluster, command):
    """The command's exit status; it shares our terminal and our Ctrl-C."""
    environment = dict(
        os.environ,
        FACET_ENDPOINT=cluster.endpoints[0],
        FACET_ENDPOINTS=",".join(cluster.endpoints),
    )
    child = subprocess.Popen(with_parent(command, signal.SIGTERM), env=environment)
    try:
        status = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    cluster.check()
    return status if status >= 0 else 128 - status


def serve(cluster):
    describe(cluster)
    print(
        f"ready; try: {cluster.bin_folder}/facet generate --endpoint {cluster.endpoints[0]} Hello\n"
        "Ctrl-C stops everything",
        file=sys.stderr,
    )
    while True:
        cluster.check()
        time.sleep(0.2)


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--tp", type=int, default=2, help="ranks per group")
    parser.add_argument("--replicas", type=int, default=1, help="groups")
    parser.add_argument("--routers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="per rank; 0: the cores' share")
    parser.add_argument("--bin", help="folder of the binaries (default build/bin)")
    parser.add_argument("--listen", default="127.0.0.1:0", help="of the first router")
    parser.add_argument(
        "--collective",
        choices=["auto", "shm", "tcp", "nccl"],
        default="auto",
        help="how ranks exchange data; auto is shared memory here, and nccl beside it on GPUs",
    )
    parser.add_argument("--worker-flag", action="append", default=[], metavar="FLAG")
    parser.add_argument("--router-flag", action="append", default=[], metavar="FLAG")
    parser.add_argument(
        "--no-restart", action="store_true", help="a server that ends ends everything"
    )
    parser.add_argument(
        "--state", metavar="FILE", help="keep names, process ids and addresses in a JSON file"
    )
    parser.add_argument("--ready-s", type=float, default=120, help="time to become ready")
    parser.add_argument("--stop-s", type=float, default=STOP_S, help="time to shut down")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and what to run")
    options = parser.parse_args()
    if min(options.tp, options.replicas, options.routers) < 1 or options.threads < 0:
        parser.error("--tp, --replicas and --routers are at least 1, --threads at least 0")
    if options.command[:1] == ["--"]:
        del options.command[0]
    return options


def main():
    options = parse_options()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, raise_stopped)
    cluster = Cluster(
        options.model,
        tp=options.tp,
        replicas=options.replicas,
        routers=options.routers,
        threads=options.threads,
        bin_folder=options.bin,
        listen=options.listen,
        collective=options.collective,
        worker_flags=options.worker_flag,
        router_flags=options.router_flag,
        ready_s=options.ready_s,
        stop_s=options.stop_s,
        restart=not options.no_restart,
        state_path=options.state,
        show_progress=sys.stderr.isatty(),
    )
    status = 1
    failed = False
    try:
        cluster.start()
        status = run_command(cluster, options.command) if options.command else serve(cluster)
    except ClusterError as error:
        failed = True
        cluster.show_logs(sys.stderr)
        print(f"cluster: {error}", file=sys.stderr)
    except Stopped as stopped:
        # Stopping is how serving ends; it cuts a command short.
        status = 128 + stopped.number if options.command else 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        unwell = cluster.stop()
        for name in unwell if not failed else []:
            print(f"cluster: {name} did not shut down cleanly", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
