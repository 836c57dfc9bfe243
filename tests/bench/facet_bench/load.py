"""The load of `facet bench`, number by number, for peers: the same prompts and the same arrivals.
client/bench.cc and client/arrivals.cc say the same in C++; bench_tool_test.py compares."""

import math
import zlib

MASK = (1 << 64) - 1
FIRST_ID_MAX = 512


def mix64(a, b=None):
    """base/prng.h"""
    if b is not None:
        return mix64(mix64(a) ^ b)
    x = (a + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def seed_of(work):
    """Each kind of work draws its own prompts, the same on both sides and in every round."""
    return zlib.crc32(work.encode())


def prompt(vocabulary, length, number, seed=1):
    """The token ids of request `number`."""
    request_seed = mix64(seed, number)
    first = min(FIRST_ID_MAX, vocabulary // 2)
    return [first + mix64(request_seed, i) % (vocabulary - first) for i in range(length)]


def arrivals(rate, seed=1):
    """Yields seconds from the start: a Poisson process."""
    unit_time = 0.0
    number = 0
    while True:
        uniform = (mix64(seed, number) >> 11) * 2.0**-53
        unit_time -= math.log1p(-uniform)
        number += 1
        yield unit_time / rate


def percentile(samples, percent):
    """The nearest rank, as client/percentiles.cc; 0 of nothing."""
    if not samples:
        return 0.0
    return sorted(samples)[(percent * len(samples) + 99) // 100 - 1]
