#!/usr/bin/env python3
"""Writes tcp_frame_fuzz's seeds: a hello, a welcome and frames of every kind, each behind the byte
that says with which call the fuzzer begins. The layouts are kernels/collectives/frame.h's.
"""

import os
import struct

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tcp_frame_fuzz")
BARRIER, REDUCE, GATHER = 0, 1, 2  # the first call


def frame(operation, size=0, layout=0, payload=b""):
    header = struct.pack("<4sIQQII", b"fctf", len(payload), 0, size, layout, operation)
    return header + payload


def write(name, first_call, content):
    with open(os.path.join(FOLDER, name), "wb") as file:
        file.write(bytes([first_call]) + content)


os.makedirs(FOLDER, exist_ok=True)
write("barriers.bin", BARRIER, frame(5) + frame(5))
write("reduce.bin", REDUCE, frame(1, size=5, payload=bytes(20)))
write("gather.bin", GATHER, frame(3, 5, payload=b"hello") + frame(4, 3, payload=b"abc") + frame(5))
write("failure.bin", BARRIER, frame(0xFFFF, layout=13, payload=b"rank 0 has doubts"))
write("hello.bin", BARRIER, b"fcthello" + struct.pack("<Iiii", 1, 1, 0, 2) + b"\x11" * 16)
write("welcome.bin", BARRIER, b"fcthicom" + b"\x22" * 16)
