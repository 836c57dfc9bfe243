#!/usr/bin/env python3
"""What the CUDA compiler says of every kernel: registers, spills, shared memory, and the occupancy
that these allow. Compiles kernels/cuda/*.cu again with the build's own flags and `-Xptxas -v`; needs
nvcc and a configured build, no GPU.

    tests/bench/cuda_report.py [--build build]
    tests/bench/cuda_report.py --update    # writes the table to kernels/cuda/compiler_report.md

Exit status 1 if a kernel spills that is not in ALLOWED_SPILLS, or if the compiler says nothing of one.

Occupancy is theoretical: warps of a multiprocessor that registers and static limits let run, of the
most it can have. Shared memory is the arrays of a fixed size that the compiler tells of, and the
dynamic bytes of the launches, listed in SHAPES for the largest shapes in use.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

TABLE = "kernels/cuda/compiler_report.md"
KERNEL = r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("

# Per multiprocessor (CUDA C++ programming guide, "Compute Capabilities").
LIMITS = {
    "sm_80": {"warps": 64, "blocks": 32, "registers": 65536, "shared": 164 * 1024},
    "sm_90": {"warps": 64, "blocks": 32, "registers": 65536, "shared": 228 * 1024},
}
REGISTERS_STEP = 256  # of a warp
SHARED_OF_SYSTEM = 1024  # of a block


def tile_bytes(head_dim, pairs):
    """MemoryBytes() of tensor_attention_kernels.cu."""
    return 2 * (2 * pairs + 128) * (head_dim + 8) + pairs * (8 * 72 + 24)


# Kernel -> threads of a block and dynamic shared bytes, as the launches in kernels/cuda/*.cu have
# them for heads of 256 and rows of any width.
SHAPES = {
    "GatherKernel": (128, 0),
    "EmbedKernel": (128, 0),
    "BroughtKernel": (128, 0),
    "RmsNormKernel": (128, 0),
    "ResidualNormKernel": (128, 0),
    "SoftCapKernel": (128, 0),
    "GateKernel": (128, 0),
    "QuantizeKernel": (128, 0),
    "IntegerProductKernel": (128, 0),
    "SumLeavesKernel": (128, 0),
    "FloatProductKernel": (128, 0),
    "VectorProductKernel": (128, 0),
    "DequantizeKernel": (128, 0),
    "RoundKernel": (128, 0),
    "StoreKernel": (128, 0),
    "RopeAndStoreKernel": (128, 4 * 256),
    "AttendSplitKernel": (128, 4 * 256),
    "AttendTilesKernel<1, 1>": (128, tile_bytes(64, 16)),
    "AttendTilesKernel<1, 4>": (512, tile_bytes(64, 64)),
    "AttendTilesKernel<2, 1>": (128, tile_bytes(128, 16)),
    "AttendTilesKernel<2, 4>": (512, tile_bytes(128, 64)),
    "AttendTilesKernel<4, 1>": (128, tile_bytes(256, 16)),
    "AttendTilesKernel<4, 2>": (256, tile_bytes(256, 32)),
    "MergeSplitsKernel": (128, 0),
    "ScaleKernel": (256, 0),
    "EditKernel": (256, 0),
    "SumSlicesKernel": (256, 0),
    "FirstKeysKernel": (256, 0),
    "MoreKeysKernel": (256, 0),
    "CandidatesKernel": (256, 0),
    "BestKernel": (256, 0),
    "KeepKernel": (256, 0),
    "TreeRootsKernel": (128, 0),
}
# Kernel -> bytes of spills and why they stay.
ALLOWED_SPILLS = {}


def cuda_commands(build):
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        entries = json.load(file)
    return [e for e in entries if e["file"].endswith(".cu") and "/kernels/cuda/" in e["file"]
            and "nvcc" in e["command"]]


def compile_with_report(entry, folder):
    """The compiler's standard error for one source."""
    words = shlex.split(entry["command"])
    if os.path.basename(words[0]) == "ccache":
        words = words[1:]  # it would not run ptxas again
    words[words.index("-o") + 1] = os.path.join(folder, "out.o")
    result = subprocess.run(words + ["-Xptxas", "-v"], cwd=entry["directory"],
                            capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{entry['file']}:\n{result.stderr}")
    return result.stderr + result.stdout


def demangle(names):
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                            check=True)
    return result.stdout.splitlines()


def short(name):
    """IntegerProductKernel<ReadQ4_0, 1>: without namespaces, result and arguments."""
    name = re.sub(r"facet::cuda::|\(anonymous namespace\)::|^void ", "", name)
    return re.sub(r"\(.*$", "", name)


ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<fixed>\d+) bytes smem)?", re.DOTALL)


def kernels_in(report):
    found = [match.groupdict() for match in ENTRY.finditer(report)]
    for kernel, name in zip(found, demangle([k["name"] for k in found])):
        kernel["name"] = short(name)
    return found


def kernels_in_source(path):
    with open(path, encoding="utf-8") as file:
        return set(re.findall(KERNEL, file.read()))


def missing(kernels, sources):
    """Kernels of the sources that the compiler said nothing of for some architecture."""
    for arch in sorted(LIMITS):
        reported = {re.sub("<.*", "", k["name"]) for k in kernels if k["arch"] == arch}
        for path in sources:
            for name in sorted(kernels_in_source(path) - reported):
                yield f"{name} of {path}, {arch}"


def shape_of(name):
    for pattern, shape in SHAPES.items():
        if re.match(pattern + r"(<|$)", name) or re.fullmatch(pattern, name):
            return shape
    sys.exit(f"{name} is not in SHAPES: say how it is launched")


def occupancy(arch, registers, threads, shared):
    """(active warps in percent, what limits them)."""
    limits = LIMITS[arch]
    warps = threads // 32
    per_warp = -(-registers * 32 // REGISTERS_STEP) * REGISTERS_STEP
    blocks = {
        "registers": limits["registers"] // per_warp // warps,
        "shared memory": limits["shared"] // (shared + SHARED_OF_SYSTEM),
        "warps": limits["warps"] // warps,
        "blocks": limits["blocks"],
    }
    limit = min(blocks, key=blocks.get)
    return 100 * blocks[limit] * warps // limits["warps"], limit


def rows_of(kernels):
    for kernel in sorted(kernels, key=lambda k: (k["arch"], k["name"])):
        threads, dynamic = shape_of(kernel["name"])
        shared = int(kernel["fixed"] or 0) + dynamic
        share, limit = occupancy(kernel["arch"], int(kernel["registers"]), threads, shared)
        spills = int(kernel["stores"]) + int(kernel["loads"])
        yield (kernel["arch"], kernel["name"], kernel["registers"], str(spills), kernel["stack"],
               str(threads), str(shared), f"{share} %", limit)


HEADINGS = ("arch", "kernel", "registers", "spilled", "stack", "threads", "shared", "occupancy",
            "limited by")


def compiler_of(command):
    """"nvcc 13.0.88", of a compile command."""
    words = shlex.split(command)
    compiler = words[1] if os.path.basename(words[0]) == "ccache" else words[0]
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return "nvcc " + re.search(r"V([\d.]+)", text).group(1)


def write_table(rows, compiler):
    with open(TABLE, "w", encoding="utf-8") as file:
        file.write(f"""<!-- Made by tests/bench/cuda_report.py --update. -->
# What the compiler says of every kernel

{compiler}. Shared memory in bytes, for the largest shapes in use; spilled bytes are stores and loads.
Occupancy is theoretical: the share of a multiprocessor's warps that these figures leave room for. No GPU
has run them.

| {" | ".join(HEADINGS)} |
|{"---|" * len(HEADINGS)}
""")
        for row in rows:
            file.write("| " + " | ".join(row) + " |\n")


def print_table(rows):
    widths = [max(len(row[i]) for row in [HEADINGS] + rows) for i in range(len(HEADINGS))]
    for row in [HEADINGS] + rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default="build", help="a configured build (default: build)")
    parser.add_argument("--update", action="store_true", help=f"write {TABLE}")
    args = parser.parse_args()
    commands = cuda_commands(args.build)
    if not commands:
        sys.exit(f"{args.build} compiles no CUDA: was nvcc found when it was configured?")
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        for entry in commands:
            kernels += kernels_in(compile_with_report(entry, folder))
    rows = list(rows_of(kernels))
    if args.update:
        write_table(rows, compiler_of(commands[0]["command"]))
    else:
        print_table(rows)
    unreported = list(missing(kernels, [entry["file"] for entry in commands]))
    for kernel in unreported:
        print(f"the compiler says nothing of {kernel}", file=sys.stderr)
    spilling = [row for row in rows if row[3] != "0" and row[1] not in ALLOWED_SPILLS]
    for row in spilling:
        print(f"{row[1]} spills {row[3]} bytes on {row[0]}", file=sys.stderr)
    return 1 if spilling or unreported else 0


if __name__ == "__main__":
    sys.exit(main())
