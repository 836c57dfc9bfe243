#!/usr/bin/env python3
"""A roofline sheet of the CUDA kernels: what each of a step's launches has to move and to compute, and
the time that an H100 cannot be faster than. It is arithmetic on paper: nothing was measured.

    tests/bench/cuda_roofline.py            # prints the sheet
    tests/bench/cuda_roofline.py --update   # writes it to kernels/cuda/roofline.md

Bytes are those that have to cross the memory's bus once (weights, keys, values, and what one kernel
leaves for the next); operations are those of the tensor cores, padding included; instructions are the
canonical arithmetic that runs beside them, counted per lane by hand. The three are taken to overlap
perfectly, and launches to cost nothing.
"""

import argparse
import dataclasses
import glob
import re

SHEET = "kernels/cuda/roofline.md"
KERNEL = r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("

# NVIDIA H100 SXM, public data sheet, dense: HBM3, int8 and half-precision tensor cores. Instructions
# are those of float32: 67 TFLOP/s count a fused multiply-add as two.
BYTES_S = 3.35e12
INT8_S = 1979e12
HALF_S = 989e12
CACHE_BYTES_S = 5.5e12  # of the L2 cache, as measured by others
INSTRUCTIONS_S = 67e12 / 2
MULTIPROCESSORS = 132
FULL_BLOCKS = 256  # from which on AttendTilesKernel leaves splits to one block


@dataclasses.dataclass(frozen=True)
class Format:
    """Of quantised weights, per block of 32 columns."""

    bytes: float
    # Per element of the result: to float, times both scales, fused multiply-add; one more with a minimum.
    instructions: int = 3
    products: int = 1  # of the tensor cores
    # Of VectorProductKernel, per block and row of activations: four lanes with two dot products, and
    # to float, times both scales, fused multiply-add; with a minimum one more.
    vector_instructions: int = 20


FORMATS = {
    "Q4_0": Format(18),
    "Q8_0": Format(34),
    "Q4_K": Format(18, instructions=4, vector_instructions=24),
    "Q6_K": Format(26.25, instructions=6, products=2, vector_instructions=32),
}


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    window: int = 0  # of all layers but every sixth; 0: every layer sees all keys
    parameters: float = 0  # as published, in 10^9

    @property
    def full_layers(self):
        return self.layers // 6 if self.window else self.layers


MODELS = [
    Model("Gemma 3 1B", 26, 1152, 4, 1, 256, 6912, 262144, 512, 1.0),
    Model("Gemma 3 27B", 62, 5376, 32, 16, 128, 21504, 262144, 1024, 27.0),
    Model("Llama 3 70B", 80, 8192, 64, 8, 128, 28672, 128256, 0, 70.6),
]


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    sequences: int
    rows_each: int
    first_position: int

    @property
    def rows(self):
        return self.sequences * self.rows_each

    def keys_read(self, window):
        """Of one layer, that have to be read at least once."""
        end = self.first_position + self.rows_each
        first = max(0, self.first_position + 1 - window) if window else 0
        return self.sequences * (end - first)

    def pairs(self, window):
        """Of a row and a key that it sees, in one layer and head."""
        ends = range(self.first_position + 1, self.first_position + self.rows_each + 1)
        return self.sequences * sum(min(e, window) if window else e for e in ends)


WORKLOADS = [
    Workload("decode, 1 sequence at 2,048 tokens", 1, 1, 2047),
    Workload("decode, 32 sequences at 2,048 tokens", 32, 1, 2047),
    Workload("prefill, the first 512 tokens", 1, 512, 0),
]


@dataclasses.dataclass
class Work:
    """Of all launches of one kind in a step."""

    kernel: str
    what: str
    launches: int = 0
    bytes: float = 0
    cache: float = 0  # bytes that stay in the L2 cache
    int8: float = 0
    half: float = 0
    instructions: float = 0
    blocks: int = 0  # of one launch, the fewest

    def times(self):
        return {
            "memory": self.bytes / BYTES_S,
            "L2 cache": self.cache / CACHE_BYTES_S,
            "tensor cores": self.int8 / INT8_S + self.half / HALF_S,
            "instructions": self.instructions / INSTRUCTIONS_S,
        }

    def seconds(self):
        return max(self.times().values())

    def bound(self):
        return max(self.times(), key=self.times().get)


def ceil_to(value, unit):
    return -(-value // unit) * unit


def kernels_of_the_tree():
    names = set()
    for path in glob.glob("kernels/cuda/*.cu"):
        with open(path, encoding="utf-8") as file:
            names |= set(re.findall(KERNEL, file.read()))
    return names


# Kernels that no launch of these steps needs, and what launches them.
NOT_IN_A_STEP = {
    "FloatProductKernel": "weights that are not quantised",
    "GateKernel": "gate and up of two types",
    "SoftCapKernel": "soft caps of Gemma 2",
    "EditKernel": "penalties and biases",
    "AttendSplitKernel": "float32 keys, and heads of sizes that AttendTilesKernel has not",
    "TreeRootsKernel": "sums of a group of several GPUs",
    "BroughtKernel": "embeddings of a group of several GPUs",
    "CandidatesKernel": "tokens that the host chooses",
    "VectorProductKernel": "--arithmetic=fast",
    "DequantizeKernel": "--arithmetic=fast",
    "RoundKernel": "--arithmetic=fast",
    "StoreKernel": "--arithmetic=fast",
}


class Step:
    """The launches of one step, in the order of their first."""

    def __init__(self, model, workload, weights, head, attention):
        self.model, self.workload, self.attention = model, workload, attention
        self.weights, self.head = FORMATS[weights], FORMATS[head]
        self.work = {}
        self.walk()

    def add(self, kernel, what, blocks, launches=1, **amounts):
        work = self.work.setdefault((kernel, what), Work(kernel, what, blocks=blocks))
        work.launches += launches
        work.blocks = min(work.blocks, blocks)
        for name, amount in amounts.items():
            setattr(work, name, getattr(work, name) + launches * amount)

    def walk(self):
        m, rows = self.model, self.workload.rows
        self.embed()
        self.norm("RmsNormKernel", 1, rows, 8, 6)
        self.layers(m.full_layers, 0)
        if m.window:
            self.layers(m.layers - m.full_layers, m.window)
        self.logits()

    def embed(self):
        m, rows = self.model, self.workload.rows
        row_bytes = m.width / 32 * self.head.bytes + 4 * m.width
        self.add("EmbedKernel", "rows of the embedding", rows, bytes=rows * row_bytes,
                 instructions=5 * rows * m.width)

    def norm(self, kernel, launches, rows, bytes_each, instructions_each):
        elements = rows * self.model.width
        self.add(kernel, "norms", rows, launches, bytes=bytes_each * elements,
                 instructions=instructions_each * elements)

    def layers(self, count, window):
        m, rows = self.model, self.workload.rows
        attended = m.heads * m.head_dim
        self.quantize(count, rows, m.width)
        for width, parts in ((attended, 1), (m.kv_heads * m.head_dim, 2)):
            self.product(count * parts, "q, k and v", width, m.width, rows)
        self.rope(count)
        self.attend(count, window)
        self.quantize(count, rows, attended)
        self.rooted(count, "attention's output", m.width, attended, min(16, m.heads))
        self.norm("ResidualNormKernel", 2 * count, rows, 16, 12)
        self.quantize(count, rows, m.width)
        self.product(count, "gate and up", m.ffn, m.width, rows, parts=2)
        self.quantize(count, rows, m.ffn)
        self.rooted(count, "down", m.width, m.ffn, 16)

    def quantize(self, count, rows, width):
        self.add("QuantizeKernel", "activations", -(-rows * width // 128), count,
                 bytes=rows * width * (4 + 1 + 8 / 32), instructions=25 * rows * width)

    def product(self, count, what, width, columns, rows, parts=1, leaves=1, head=False):
        """`parts` > 1: of one launch, multiplied element by element behind an activation."""
        form = self.head if head else self.weights
        tile = 8 if rows <= 8 else 32
        padded = ceil_to(rows, tile) * ceil_to(width, 16)
        blocks = columns / 32
        self.add(
            "IntegerProductKernel", what, -(-width // 64) * leaves * -(-rows // tile), count,
            bytes=parts * width * blocks * form.bytes + rows * columns * (1 + 8 / 32)
            + 4 * leaves * rows * width,
            int8=2 * padded * columns * form.products * parts,
            instructions=padded * (blocks * form.instructions * parts + (40 if parts > 1 else 0)),
        )

    def rooted(self, count, what, width, columns, leaves):
        rows = self.workload.rows
        self.product(count, what, width, columns, rows, leaves=leaves)
        elements = rows * width
        self.add("SumLeavesKernel", "leaves of " + what, -(-elements // 128), count,
                 bytes=4 * (leaves + 1) * elements, instructions=3 * leaves * elements)

    def rope(self, count):
        m, rows = self.model, self.workload.rows
        heads = m.heads + 2 * m.kv_heads
        elements = rows * heads * m.head_dim
        stored = rows * 2 * m.kv_heads * m.head_dim
        self.add("RopeAndStoreKernel", "rotation and store", rows * heads, count,
                 bytes=8 * elements + 2 * stored, instructions=12 * elements)

    def attend(self, count, window):
        m, load = self.model, self.workload
        keys = load.keys_read(window) * m.kv_heads * m.head_dim * 2 * 2
        queries = load.rows * m.heads * m.head_dim
        pairs = load.pairs(window) * m.heads
        reach = min(load.first_position + load.rows_each, window or 1 << 60)
        splits = -(-reach // 64) + (1 if window and reach == window else 0)
        partials = load.rows * m.heads * splits * (m.head_dim + 2)
        blocks = load.rows * m.heads * splits
        if self.attention == "AttendSplitKernel":
            # Keys and values to float, and a fused multiply-add each; about 40 of a weight.
            self.add("AttendSplitKernel", "attention", blocks, count,
                     bytes=keys + 4 * queries + 4 * partials,
                     instructions=pairs * (4 * m.head_dim + 40))
        else:
            # Queries and weights are two halves each, so that products are twice two; a block has up
            # to 64 pairs of a row and a head that read the same keys, 16 to a tile. Where blocks fill
            # the GPU, each goes through all splits and merges them itself.
            group = m.heads // m.kv_heads
            padding = max(1.0, 16 / (group * load.rows_each))
            tiles = load.sequences * m.kv_heads * -(-group * load.rows_each // 64)
            direct = tiles >= FULL_BLOCKS
            self.add("AttendTilesKernel", "attention", tiles if direct else tiles * splits, count,
                     bytes=keys + 4 * queries + 4 * (queries if direct else partials),
                     half=8 * pairs * padding * m.head_dim,
                     instructions=pairs * padding * (40 + 4 * m.head_dim / 64))
            if direct:
                return
        self.add("MergeSplitsKernel", "attention's splits", load.rows * m.heads, count,
                 bytes=4 * partials + 4 * queries, instructions=partials * 30)

    def logits(self):
        m, rows = self.model, self.workload.sequences
        self.add("GatherKernel", "rows whose token is wanted", rows, bytes=8 * rows * m.width,
                 instructions=2 * rows * m.width)
        self.norm("RmsNormKernel", 1, rows, 8, 6)
        self.quantize(1, rows, m.width)
        self.product(1, "output layer", m.vocabulary, m.width, rows, head=True)
        logits = rows * m.vocabulary
        self.add("ScaleKernel", "logits", -(-m.vocabulary // 256) * rows, bytes=8 * logits,
                 instructions=2 * logits)
        self.add("SumSlicesKernel", "logits", 64 * rows, bytes=8 * logits, instructions=8 * logits)
        chunks = -(-m.vocabulary // 1024)
        self.add("FirstKeysKernel", "best token", chunks * rows, bytes=4 * logits,
                 instructions=250 * logits)
        self.add("MoreKeysKernel", "best token", rows, bytes=8 * rows * chunks,
                 instructions=250 * 1024 * rows)
        self.add("BestKernel", "best token", -(-rows // 256), bytes=(64 * 20 + 16) * rows,
                 instructions=200 * rows)
        self.add("KeepKernel", "best token", -(-rows // 256), bytes=24 * rows,
                 instructions=20 * rows)

    def seconds(self):
        return sum(work.seconds() for work in self.work.values())

    def launches(self):
        return sum(work.launches for work in self.work.values())

    def weight_bytes(self):
        """Of the products, without what goes in and out."""
        m = self.model
        attended = (m.heads + 2 * m.kv_heads) * m.head_dim + m.heads * m.head_dim
        layer = m.width * (attended + 3 * m.ffn) / 32 * self.weights.bytes
        return m.layers * layer + m.vocabulary * m.width / 32 * self.head.bytes


LIBRARY = "cuBLASLt"  # not a kernel of the tree


class FastStep(Step):
    """The same under --arithmetic=fast: products without leaves, by the number of rows."""

    VECTOR_ROWS_MAX = 8
    CANONICAL_ROWS_MAX = 64

    def quantize(self, count, rows, width):
        if rows <= self.CANONICAL_ROWS_MAX:
            return super().quantize(count, rows, width)
        self.add("RoundKernel", "activations", -(-rows * width // 1024), count,
                 bytes=rows * width * (4 + 2), instructions=4 * rows * width)

    def rooted(self, count, what, width, columns, leaves):
        self.product(count, what, width, columns, self.workload.rows)

    def product(self, count, what, width, columns, rows, parts=1, leaves=1, head=False):
        form = self.head if head else self.weights
        if rows <= self.VECTOR_ROWS_MAX:
            weights = parts * width * columns / 32
            self.add("VectorProductKernel", what, -(-width // 8), count,
                     bytes=weights * form.bytes + rows * columns * (1 + 8 / 32) + 4 * rows * width,
                     instructions=weights * rows * form.vector_instructions)
        elif rows <= self.CANONICAL_ROWS_MAX:
            super().product(count, what, width, columns, rows, parts, 1, head)
        else:
            self.multiply(count * parts, what, width, columns, rows, form)
            self.add("StoreKernel", what, -(-rows * width // 128), count, bytes=4 * rows * width,
                     cache=4 * parts * rows * width, instructions=4 * rows * width)

    def multiply(self, count, what, width, columns, rows, form):
        elements = width * columns
        self.add("DequantizeKernel", what, -(-elements // 1024), count,
                 bytes=elements / 32 * form.bytes, cache=2 * elements, instructions=4 * elements)
        self.add(LIBRARY, what, -(-width // 128) * -(-rows // 128), count,
                 bytes=2 * rows * columns, cache=2 * elements + 4 * rows * width,
                 half=2 * ceil_to(rows, 64) * elements)


def attention_of_the_tree():
    tiles = "AttendTilesKernel"
    return tiles if tiles in kernels_of_the_tree() else "AttendSplitKernel"


def steps(weights, head):
    attention = attention_of_the_tree()
    return [Step(m, w, weights, head, attention) for m in MODELS for w in WORKLOADS]


def fast_steps(weights, head):
    attention = attention_of_the_tree()
    return [FastStep(m, w, weights, head, attention) for m in MODELS for w in WORKLOADS]


def fast_summary(canonical, fast):
    """Products only: the rest of a step is the same."""
    products = {"IntegerProductKernel", "SumLeavesKernel", "QuantizeKernel", "VectorProductKernel",
                "RoundKernel", "DequantizeKernel", "StoreKernel", LIBRARY}
    rows = []
    for one, other in zip(canonical, fast):
        times = {kernel: sum(w.seconds() for w in other.work.values() if w.kernel == kernel) * 1e3
                 for kernel in sorted(products)}
        before = sum(w.seconds() for w in one.work.values() if w.kernel in products) * 1e3
        parts = ", ".join(f"{kernel} {ms:.2f}" for kernel, ms in times.items() if ms)
        rows.append((one.model.name, one.workload.name, f"{before:.2f}",
                     f"{sum(times.values()):.2f}", parts))
    return table(("model", "step", "canonical products, ms", "fast, ms", "of these"), rows)


def amount(value, unit):
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".strip()
    return f"{value:.3g} {unit}".strip() if value else "-"


def table(headings, rows):
    return "\n".join(["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
                     + ["| " + " | ".join(row) + " |" for row in rows])


def summary(all_steps):
    rows = []
    for step in all_steps:
        load, seconds = step.workload, step.seconds()
        tokens = load.rows / seconds
        best = sum(w.bytes for w in step.work.values()) / BYTES_S
        rows.append((step.model.name, load.name, f"{seconds * 1e3:.2f}", f"{best * 1e3:.2f}",
                     f"{tokens:,.0f}", str(step.launches())))
    return table(("model", "step", "ms, at least", "of these, ms that its bytes take",
                  "tokens/s, at most", "launches"), rows)


def sheet(step):
    rows = []
    for work in step.work.values():
        rows.append((work.kernel, work.what, str(work.launches), f"{work.blocks:,}",
                     amount(work.bytes, "B"), amount(work.int8 + work.half, "op"),
                     amount(work.instructions, ""), work.bound(), f"{work.seconds() * 1e6:.3g}"))
    title = f"### {step.model.name}: {step.workload.name}\n\n"
    return title + table(("kernel", "of", "launches", "blocks of the smallest", "bytes",
                          "tensor operations", "instructions", "bound by", "us"), rows)


def price(weights):
    """What the canonical arithmetic of a product costs beside its tensor operations."""
    rows = []
    for name, form in FORMATS.items():
        tensor = 2 * 32 * form.products / INT8_S
        instructions = form.instructions / INSTRUCTIONS_S
        reached = 2 * 32 / max(tensor, instructions)
        rows.append((name, f"{form.bytes / 32 * 8:.2f}", str(form.instructions),
                     str(form.products), f"{reached / 1e12:,.0f}",
                     f"{reached / INT8_S:.0%}".replace("%", " %"), f"{reached / HALF_S:.2f}"))
    return table(("weights", "bits each", "instructions per block and element",
                  "tensor products per block", "TOP/s, at most", "of the int8 peak",
                  "of the bf16 peak"), rows)


def left_out():
    return table(("kernel", "launched for"), sorted(NOT_IN_A_STEP.items()))


def document(weights, head):
    all_steps = steps(weights, head)
    fast = fast_steps(weights, head)
    return f"""<!-- Made by tests/bench/cuda_roofline.py --update; a test holds it to that. -->
# Roofline sheet: H100 (SXM), on paper

**A prediction, and a bound rather than an estimate: no GPU has run these kernels.** Weights {weights},
output layer {head}, keys and values f16, one GPU, greedy. Per kind of launch: the bytes that have to
cross the memory's bus, the tensor cores' operations with what pads their tiles, and the instructions
of the canonical arithmetic around them; the time is the largest of the three at NVIDIA's published
peaks (3.35 TB/s, 1,979 TOP/s int8, 989 TFLOP/s half precision, 67 TFLOP/s float32, all dense).

Left out, all of which makes it slower: launches and the gaps between them (their number is given),
integer instructions that find and unpack weights, caches that miss, launches with fewer blocks than
the GPU's {MULTIPROCESSORS} multiprocessors (the smallest launch is given), copies between GPUs, and
clocks below those of the data sheet. What a GPU says is `tests/run.sh --gpu`'s and `facet bench`'s.

## Steps

{summary(all_steps)}

## What the canonical arithmetic costs

A block of 32 columns is one exact integer product; its sum then becomes a float and is added with both
scales in ascending K, in the lane that owns the element. These instructions (one each; conversions run
at half the rate of the others, which is taken to be hidden behind them) are as many for any number
of rows, so a step of few rows is bound by the weights' bytes, which the canonical form does not add
to; a step of many rows is bound by them:

{price(weights)}

Row-parallel products also write one result per leaf (up to 16) and read them again: that is
`SumLeavesKernel`'s bytes below and as many of the product's.

## What --arithmetic=fast takes

Products and what stands before and behind them; the rest of a step is the same. Up to
{FastStep.VECTOR_ROWS_MAX} rows matrix-vector kernels, up to {FastStep.CANONICAL_ROWS_MAX} the canonical ones without
leaves, above the library, whose panels of rounded weights and results are taken to stay in the L2 cache
({CACHE_BYTES_S / 1e12:.1f} TB/s) and whose product to reach the bf16 peak, which none does:

{fast_summary(all_steps, fast)}

## Kernels in none of these steps

With those in the sheets below they are all that the module has.

{left_out()}

## Kernels

{chr(10).join(sheet(step) + chr(10) for step in all_steps)}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", choices=sorted(FORMATS), default="Q4_0")
    parser.add_argument("--head", choices=sorted(FORMATS), default="Q8_0")
    parser.add_argument("--update", action="store_true", help=f"write {SHEET}")
    args = parser.parse_args()
    text = document(args.weights, args.head)
    if args.update:
        with open(SHEET, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
