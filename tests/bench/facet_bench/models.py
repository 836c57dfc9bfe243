"""The model files of a run, made once and kept in the cache."""

import json
import os
import pathlib
import subprocess
import sys

from facet_bench.machine import ROOT
from facet_bench.peer import cache_folder

MAKER = pathlib.Path(__file__).resolve().parent / "make_model.py"
TYPES = ("q8_0", "q4_0", "q4_k_m")


def _make(python, path, *arguments):
    """Has make_model.py write `path` unless it is there: no half file ever has the name."""
    if path.exists():
        return path
    part = path.with_suffix(".part")
    print(f"making {path.name}", file=sys.stderr, flush=True)
    subprocess.run([python, MAKER, *[str(part) if word is path else str(word)
                                     for word in arguments]], check=True, stdout=sys.stderr)
    part.rename(path)
    return path


def real_270m():
    out = subprocess.run([ROOT / "deploy" / "local" / "fetch_models.sh", "gemma3"], check=True,
                         stdout=subprocess.PIPE, text=True)
    return pathlib.Path(out.stdout.split()[-1])


def get(python, size, kind):
    """The file of "270m" or "1b" in one of TYPES."""
    if size == "270m":
        source = real_270m()
        if kind == "q4_k_m":
            return source
        path = cache_folder() / f"gemma-3-270m-{kind}.gguf"
        return _make(python, path, "quantize", source, path, kind)
    path = cache_folder() / f"random-gemma-3-1b-{kind}.gguf"
    if not path.exists():
        whole = cache_folder() / "random-gemma-3-1b-f16.gguf"
        _make(python, whole, "random-1b", real_270m(), whole)
        _make(python, path, "quantize", whole, path, kind)
        if all((cache_folder() / f"random-gemma-3-1b-{each}.gguf").exists() for each in TYPES):
            os.unlink(whole)  # 2 GB that nobody needs again
    return path


def describe(python, path):
    """{"weight_bytes", "parameters", "layer_parameters"} of a file. Reading its 262,144 token texts
    takes seconds in Python, so the answer is kept."""
    kept = cache_folder() / f"{path.name}-{path.stat().st_size}.json"
    if not kept.exists():
        out = subprocess.run([python, MAKER, "describe", path], check=True, stdout=subprocess.PIPE)
        kept.write_bytes(out.stdout)
    return json.loads(kept.read_text())
