"""What tests of deploy/kubernetes share: reading, rendering, validating, and looking things up."""

import functools
import os
import re
import subprocess
import tempfile
import sys
import unittest

try:
    import yaml
except ModuleNotFoundError:  # another Python comes first in PATH; Debian's has it
    if sys.executable == "/usr/bin/python3":
        raise
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])

ROOT = "deploy/kubernetes"
BASE = f"{ROOT}/base"
BIN = os.environ.get("FACET_BIN_DIR", "build/bin")
SKIPPED = 77


def read_base():
    """The base's objects, as they are written."""
    with open(f"{BASE}/kustomization.yaml", encoding="utf-8") as file:
        resources = yaml.safe_load(file)["resources"]
    objects = []
    for name in resources:
        with open(f"{BASE}/{name}", encoding="utf-8") as file:
            objects += yaml.safe_load_all(file)
    return objects


@functools.cache
def rendered_text(folder):
    command = ["kubectl", "kustomize", f"{ROOT}/{folder}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def render(folder):
    """The objects that kubectl makes of a kustomization."""
    return list(yaml.safe_load_all(rendered_text(folder)))


def validate(test, objects):
    """Holds `objects` against Kubernetes' schemas; skips `test` without the tool."""
    python = os.environ.get("FACET_MANIFEST_PYTHON")
    if not python:
        test.skipTest("FACET_MANIFEST_PYTHON is not set: no schema was checked")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump_all(objects, file)
        file.flush()
        validator = os.path.join(os.path.dirname(python), "kubernetes-validate")
        result = subprocess.run(
            [python, validator, "--strict", file.name], capture_output=True, text=True,
            timeout=120, check=False,
        )
    said = result.stdout + result.stderr
    test.assertEqual(result.returncode, 0, said)
    test.assertGreaterEqual(said.count("passed for resource"), len(objects), said)


def find_all(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def find(objects, kind, name=None):
    found = [o for o in find_all(objects, kind) if name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def flags_of(container):
    """{name: value} of --name=value arguments."""
    pairs = (argument.removeprefix("--").partition("=") for argument in container["args"])
    return {name: value for name, _, value in pairs}


def port_of(container, port):
    """The number of a port given by number or name."""
    named = {p.get("name"): p["containerPort"] for p in container["ports"]}
    return named.get(port, port)


@functools.cache
def help_flags(binary):
    """The flags in `binary --help`."""
    path = os.path.join(BIN, binary)
    text = subprocess.run(
        [path, "--help"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return set(re.findall(r"^  --(\w+)", text, re.MULTILINE))


def main():
    """Runs the calling script's tests; the exit status tells ctest of skipped ones."""
    result = unittest.main(argv=[*sys.argv, "-v"], exit=False).result
    if not result.wasSuccessful():
        return 1
    return SKIPPED if result.skipped else 0
