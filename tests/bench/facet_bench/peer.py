"""Finds or builds llama.cpp, and speaks with the process that runs it."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# The build from source matters: PyPI's wheels, where there are any, are for the smallest common
# processor.
CMAKE_ARGS = "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"
LLAMA_CPP = HERE / "llama_cpp_peer.py"
PEER_PACKAGES = ["llama-cpp-python==0.3.36", "numpy==2.4.6", "gguf==0.19.0"]
SHOWN = 200  # characters of what the peer was asked
PLOT_PACKAGES = ["matplotlib==3.11.2"]


def cache_folder():
    default = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")) + "/facet"
    folder = pathlib.Path(os.environ.get("FACET_CACHE_DIR", default)) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(name, flags, environment, packages):
    """A Python with the packages in the cache, made once. It remembers how in a file `ready`."""
    venv = cache_folder() / name
    ready = venv / "ready"
    if not ready.exists():
        print(f"installing {', '.join(packages)} into {venv}", file=sys.stderr, flush=True)
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, stdout=sys.stderr)
        subprocess.run([venv / "bin" / "pip", "install", "--disable-pip-version-check", "-q",
                        *flags, *packages],
                       check=True, stdout=sys.stderr, env={**os.environ, **environment})
        ready.write_text(" ".join(f"{k}={v}" for k, v in environment.items()) + "\n")
    return str(venv / "bin" / "python")


def find_python():
    """A Python with llama.cpp built for this processor, which takes minutes the first time. Not
    from pip's cache: a wheel in there may have been built with other flags."""
    return _environment("peer", ["--no-cache-dir", "--no-binary=llama-cpp-python"],
                        {"CMAKE_ARGS": CMAKE_ARGS}, PEER_PACKAGES)


def find_plots_python():
    return _environment("plots", [], {}, PLOT_PACKAGES)


class PeerError(Exception):
    pass


class Peer:
    """The peer's process, while a with block lasts. Its methods are those of `program`'s Peer, with
    keyword arguments. One that has died is started again when it is asked the next time, and has no
    model open."""

    def __init__(self, python, program=LLAMA_CPP):
        self.command = [python, str(program)]

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *_):
        self._end()

    def _start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def _end(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, what, **arguments):
        if self.process.poll() is not None:
            self._end()
            self._start()
        try:
            print(json.dumps({"do": what, **arguments}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            raise PeerError(f"the peer died at {what} {str(arguments)[:SHOWN]}")
        result = json.loads(line)
        if "error" in result:
            raise PeerError(f"{what}: {result['error']}")
        return result


class Flash:
    """Flash attention on or off, whichever the peer is better with: both are tried the first time
    that a kind of work is done."""

    def __init__(self, peer):
        self.peer = peer
        self.better = {}

    def best(self, key, merit, what, trial=None, **arguments):
        """The result of `what` with the flash attention of which merit(result) is the most. With a
        `trial`, these arguments instead of those of the same name are used to find out."""
        if key not in self.better:
            results = {flash: self.peer.ask(what, flash=flash, **{**arguments, **(trial or {})})
                       for flash in (True, False)}
            self.better[key] = max(results, key=lambda flash: merit(results[flash]))
            if not trial:
                return results[self.better[key]]
        return self.peer.ask(what, flash=self.better[key], **arguments)


def build_flags(python, about):
    """A line for the report: how the peer was built, as far as it is known."""
    ready = pathlib.Path(python).parent.parent / "ready"
    flags = ready.read_text().strip() if ready.exists() else "built by somebody else"
    return (f"llama.cpp of llama-cpp-python {about['llama_cpp_python']} ({flags}); "
            f"{about['features'].strip(' |')}")
