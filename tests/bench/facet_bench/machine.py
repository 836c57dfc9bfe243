"""What this machine is, and what it can do at most."""

import json
import os
import pathlib
import re
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARIES = ROOT / "build" / "bin"


def cpu_facts(text):
    """Vendor, family and model of /proc/cpuinfo's first processor, and its name."""
    def field(name):
        found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
        return found.group(1).strip() if found else "?"
    return {"vendor": field("vendor_id"), "family": field("cpu family"), "model": field("model"),
            "name": field("model name")}


def machine_type(facts, processors):
    """The key of what is known of peers: figures of one type are not those of another."""
    return f"{facts['vendor']} {facts['family']}/{facts['model']}, {processors} processors"


def describe(threads):
    facts = cpu_facts(pathlib.Path("/proc/cpuinfo").read_text())
    memory_kb = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    return {"type": machine_type(facts, threads), "processor": facts["name"], "threads": threads,
            "memory_gb": round(memory_kb / 1e6, 1), "kernel": os.uname().release}


def use_processors(count):
    """Keeps this process and all that it starts on the first `count` of its processors."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < count:
        raise SystemExit(f"--threads {count}: only {len(processors)} processors may be used")
    os.sched_setaffinity(0, processors[:count])


def processor_seconds():
    """Seconds that all processors together have worked and rested, from /proc/stat."""
    line = pathlib.Path("/proc/stat").read_text().split("\n")[0]
    fields = [int(field) for field in line.split()[1:8]]
    idle = fields[3] + fields[4]
    tick = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - idle) / tick, idle / tick


def others_share(seconds=1.0):
    """How much of the processors others use while nothing of ours runs."""
    worked, idle = processor_seconds()
    time.sleep(seconds)
    worked_after, idle_after = processor_seconds()
    worked, idle = worked_after - worked, idle_after - idle
    return worked / max(1e-9, worked + idle)


class Limits:
    """The machine's limits, measured again now and then: medians over all looks."""

    def __init__(self, threads, seconds):
        self.threads = threads
        self.seconds = seconds
        self.looks = []

    def measure(self):
        out = subprocess.run([BINARIES / "limits_bench", str(self.threads), str(self.seconds)],
                             check=True, stdout=subprocess.PIPE)
        self.looks.append(json.loads(out.stdout))

    def medians(self):
        kinds = [kind for kind, value in self.looks[0].items() if value is not None]
        return {kind: statistics.median(look[kind] for look in self.looks) for kind in kinds}
