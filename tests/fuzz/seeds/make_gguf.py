#!/usr/bin/env python3
"""Writes gguf_fuzz's seeds: small files of the `gguf` package, so that the fuzzer starts behind the
magic. The smaller a seed, the more often a change hits what matters.

    pip install gguf==0.19.0 numpy && tests/fuzz/seeds/make_gguf.py
"""

import os

import gguf
import numpy as np

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gguf_fuzz")
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K",
         "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]  # fmt: skip


def write(name, fill):
    writer = gguf.GGUFWriter(os.path.join(FOLDER, name), "t")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def scalars(writer):
    kinds = gguf.GGUFValueType
    for kind in kinds:
        if kind not in (kinds.STRING, kinds.ARRAY):
            writer.add_key_value(kind.name, 1, kind)


def arrays(writer):
    writer.add_array("s", ["a", "", "bc"])
    writer.add_array("i", [1, -2])
    writer.add_array("f", [0.5])
    writer.add_array("b", [True, False])


def one_tensor(name):
    def fill(writer):
        kind = gguf.GGMLQuantizationType[name]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor("a", np.full((2, size), 7, np.uint8), raw_dtype=kind)

    return fill


def tensors(writer):
    writer.add_custom_alignment(8)
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 1)
    for i, name in enumerate(["x", "y", "z"]):
        writer.add_tensor(name, np.zeros((2,) * (i + 1), np.float32))


if __name__ == "__main__":
    os.makedirs(FOLDER, exist_ok=True)
    write("scalars.gguf", scalars)
    write("arrays.gguf", arrays)
    write("tensors.gguf", tensors)
    for name in TYPES:
        write(name.lower() + ".gguf", one_tensor(name))
