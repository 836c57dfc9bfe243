"""One server process of a cluster on this machine: kept running, and killed when it hangs.

A server that ends is started again with the same command, as Kubernetes would: at once after a
long life, ever later after short ones. One that answered GET /healthz and then falls silent, or
says that it does not move, is killed and started again.
"""

import dataclasses
import http.client
import os
import select
import signal
import subprocess
import sys
import threading
import time

MISUSED = 2  # exit status of a server whose flags are wrong: it would be so every time


@dataclasses.dataclass(frozen=True)
class Policy:
    restart: bool = True
    backoff_min_s: float = 0.1  # before a restart; doubles with each
    backoff_max_s: float = 5.0
    long_life_s: float = 10.0  # a life that makes the next restart the first again
    quick_deaths_max: int = 5  # in a row before the server is well: then it is given up
    health_period_s: float = 0.5
    health_timeout_s: float = 1.5
    health_late_s: float = 0.25  # beyond that: it was the launcher that stood still


def with_parent(command, number=signal.SIGKILL):
    """`command`, but ended by the signal when the thread that starts it ends, however that is.
    SIGKILL reaches stopped processes too."""
    name = signal.Signals(number).name.removeprefix("SIG")
    return ["setpriv", "--pdeathsig", name, "--", *command]


def says_healthy(port, timeout_s):
    """True or false as GET /healthz says, and false if it says nothing in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Server:
    """A process with its log file, in a session of its own, so that Ctrl-C reaches only us.

    A thread of its own starts it, waits for its end, asks for its health and starts it again until
    stop(). `on_change` is called on that thread after every start and end. The other methods may be
    called on any thread.
    """

    def __init__(self, name, command, folder, metrics_port=None, policy=Policy(), on_change=None):
        self.name = name
        self.metrics_port = metrics_port
        self.log_path = os.path.join(folder, name + ".log")
        self._command = command
        self._policy = policy
        self._on_change = on_change or (lambda: None)
        self._lock = threading.Lock()  # guards what follows
        self._popen = None
        self._starts = 0
        self._stopping = False
        self._status = None  # of the last end
        self._failure = None
        self._serving = False  # the cluster was ready with it, so that it is known to work
        # The thread sleeps on this and on the process.
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._keep, name=name)

    def start(self):
        self._thread.start()

    def pid(self):
        """0 while it does not run."""
        with self._lock:
            return self._popen.pid if self._popen else 0

    def starts(self):
        with self._lock:
            return self._starts

    def failure(self):
        """Why it will not be started again, or None."""
        with self._lock:
            return self._failure

    def set_serving(self):
        """From now on a short life that was healthy counts as one: the command is known to work."""
        with self._lock:
            self._serving = True

    def log(self):
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def metrics_url(self):
        return f"http://127.0.0.1:{self.metrics_port}/metrics" if self.metrics_port else None

    def ask_to_stop(self):
        """SIGTERM, and no further start."""
        with self._lock:
            self._stopping = True
            if self._popen:
                self._popen.terminate()
                self._popen.send_signal(signal.SIGCONT)  # a stopped process ends, too
        os.write(self._wake_write, b"s")

    def stop(self, timeout_s):
        """Waits for the end of what runs, kills it after the time. True if all ended well.
        REQUIRES ask_to_stop()."""
        if not self._thread.is_alive():
            return True
        with self._lock:
            ran = self._popen is not None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._lock:
                if self._popen:
                    self._popen.kill()
            self._thread.join()
        return not ran or self._status == 0

    def close(self):
        """REQUIRES that it is stopped, or was never started."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _keep(self):
        backoff = self._policy.backoff_min_s
        quick_deaths = 0
        while self._launch():
            started = time.monotonic()
            healthy = self._watch()
            life = time.monotonic() - started
            with self._lock:
                self._status = self._popen.returncode
                self._popen = None
                settled = life >= self._policy.long_life_s or (healthy and self._serving)
                quick_deaths = 0 if settled else quick_deaths + 1
                if life >= self._policy.long_life_s:
                    backoff = self._policy.backoff_min_s
                self._give_up_if_hopeless(quick_deaths)
                over = self._stopping or self._failure is not None
            self._on_change()
            if over:
                return
            self._say(f"ended with status {self._status}, is started again in {backoff:.1f} s")
            self._sleep(backoff)
            backoff = min(2 * backoff, self._policy.backoff_max_s)

    def _give_up_if_hopeless(self, quick_deaths):
        """REQUIRES the lock."""
        if self._stopping:
            return
        if not self._policy.restart or self._status == MISUSED:
            self._failure = f"{self.name} ended with status {self._status}"
        elif quick_deaths >= self._policy.quick_deaths_max:
            self._failure = (
                f"{self.name} ended with status {self._status},"
                f" {quick_deaths} times in a row before it was ready"
            )

    def _launch(self):
        """Starts the process, unless it is to stop."""
        with self._lock:
            if self._stopping:
                return False
            with open(self.log_path, "ab") as log:
                self._popen = subprocess.Popen(
                    with_parent(self._command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._starts += 1
        self._on_change()
        return True

    def _watch(self):
        """Returns when the process has ended and is reaped: whether it was ever healthy."""
        healthy = False
        stood_still = False
        period = self._policy.health_period_s if self.metrics_port else None
        handle = os.pidfd_open(self._popen.pid)
        try:
            while not self._ends_within(handle, period):
                asked = time.monotonic()
                good = says_healthy(self.metrics_port, self._policy.health_timeout_s)
                late = time.monotonic() - asked - self._policy.health_timeout_s
                if not good and not stood_still and late > self._policy.health_late_s:
                    stood_still = True  # as the server did, for all we know: it is asked again
                    continue
                stood_still = False
                if healthy and not good and not self._ends_within(handle, 0):
                    self._say("does not answer or does not move, is killed")
                    self._popen.kill()
                    break
                healthy |= good
        finally:
            os.close(handle)
        self._popen.wait()
        return healthy

    def _ends_within(self, handle, timeout_s):
        """Whether the process ended. Asked to stop, it waits as long as that takes: nobody asks a
        server for its health while it drains."""
        ready = select.select([handle, self._wake_read], [], [], timeout_s)[0]
        if self._wake_read in ready:
            ready = select.select([handle], [], [])[0]
        return handle in ready

    def _sleep(self, seconds):
        """Less if it is to stop."""
        select.select([self._wake_read], [], [], seconds)

    def _say(self, what):
        print(f"cluster: {self.name} {what}", file=sys.stderr, flush=True)
