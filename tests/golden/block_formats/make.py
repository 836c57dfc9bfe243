#!/usr/bin/env python3
"""Records what the `gguf` package reads out of random blocks of every format Facet reads.

    pip install gguf==0.19.0 numpy && tests/golden/block_formats/make.py

Writes, beside itself:
  blocks.gguf                     for every format a tensor NAME.blocks of random bytes, and
                                  NAME.values, F32: gguf.quants.dequantize() of it; and metadata of
                                  every value type
  split-0000[123]-of-00003.gguf   five tensors over three files, as GGUFWriter splits them
"""

import os

import gguf
import numpy as np
from gguf.constants import GGUFValueType
from gguf.quants import dequantize

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS, ELEMENTS = 4, 512

# Offsets of the half-precision fields of a block.
HALVES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}  # fmt: skip
WIDE = ["F32", "BF16"]
# Zeros, the smallest and largest subnormals, the smallest and largest normals, and ordinary ones.
SPECIAL = np.array(
    [0.0, -0.0, 2**-24, -(2**-24), 1023 * 2**-24, -1023 * 2**-24, 2**-14, 65504, -65504, 1 / 3],
    np.float16,
)


def random_blocks(rng, name):
    """[ROWS, bytes of ELEMENTS elements]: random bytes, with finite scales of every kind."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (ROWS * ELEMENTS // elements, size), np.uint8)
    for field in HALVES.get(name, []):
        halves = rng.normal(0, 0.1, len(blocks)).astype(np.float16)
        special = rng.random(len(blocks)) < 0.5
        halves[special] = rng.choice(SPECIAL, special.sum())
        blocks[:, field : field + 2] = halves.view(np.uint8).reshape(-1, 2)
    if name in WIDE:
        exponents = blocks[:, -1]
        exponents[exponents % 128 == 127] = 0x3F  # neither infinity nor NaN
    return blocks.reshape(ROWS, -1)


def write_blocks(path):
    rng = np.random.default_rng(20240817)
    writer = gguf.GGUFWriter(path, "test")
    kinds = GGUFValueType
    for key, value, kind in [
        ("u8", 200, kinds.UINT8), ("i8", -100, kinds.INT8),
        ("u16", 60000, kinds.UINT16), ("i16", -30000, kinds.INT16),
        ("u32", 4000000000, kinds.UINT32), ("i32", -2000000000, kinds.INT32),
        ("u64", 2**63 + 5, kinds.UINT64), ("i64", -(2**62), kinds.INT64),
        ("f32", 0.1, kinds.FLOAT32), ("f64", 0.1, kinds.FLOAT64),
        ("true", True, kinds.BOOL), ("false", False, kinds.BOOL),
        ("string", "grüße", kinds.STRING),
    ]:  # fmt: skip
        writer.add_key_value("value." + key, value, kind)
    writer.add_array("array.strings", ["a", "", "łódź", b"\xff\x00\xfe"])
    writer.add_array("array.i32", [1, -2, 3])
    writer.add_array("array.f32", [0.5, -1.5])
    writer.add_array("array.bool", [True, False, True])
    for name in [*HALVES, *WIDE]:
        kind = gguf.GGMLQuantizationType[name]
        blocks = random_blocks(rng, name)
        values = np.ascontiguousarray(dequantize(blocks, kind), np.float32)
        assert values.shape == (ROWS, ELEMENTS) and np.isfinite(values).all(), name
        writer.add_tensor(name + ".blocks", blocks, raw_dtype=kind)
        writer.add_tensor(name + ".values", values)
    finish(writer)


def write_split(path):
    writer = gguf.GGUFWriter(path, "test", split_max_tensors=2)
    writer.add_string("general.name", "split")
    for i in range(5):
        writer.add_tensor(f"t{i}", np.arange(10 * i, 10 * i + 4 + i, dtype=np.float32))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_blocks(os.path.join(HERE, "blocks.gguf"))
    write_split(os.path.join(HERE, "split.gguf"))
