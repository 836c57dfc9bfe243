"""Holds the floors of the tree: reads every #include of our sources against the table that the
README explains. Needs nothing but Python. Run in the root of the source tree.
"""

import os
import re
import sys
import unittest

# Room -> rooms (or single headers) of ours that it may include. A room is a folder with all that
# is below it, unless a deeper folder is a room of its own; main.cc files are their service's room.
TABLE = {
    "base": [],
    "checkpoint": ["base"],
    "kernels": ["base", "checkpoint/block_formats.h"],
    "shard_worker/model": ["base", "checkpoint", "kernels"],
    "shard_worker/engine": ["base"],
    "shard_worker/energy": ["base"],
    "shard_worker/runtime": [
        "base", "checkpoint", "kernels", "shard_worker/model", "shard_worker/engine",
    ],
    "shard_worker/service": [
        "base", "checkpoint", "kernels", "serving", "protos",
        "shard_worker/model", "shard_worker/engine", "shard_worker/energy", "shard_worker/runtime",
    ],
    "router/core": ["base"],
    "router/tokenizer": ["base", "checkpoint"],
    "router/service": [
        "base", "checkpoint", "serving", "protos", "router/core", "router/tokenizer",
    ],
    "serving": ["base", "protos/google"],
    "client": ["base", "serving", "protos/inference", "protos/types"],
    "protos": [],
}
TABLE["tests"] = list(TABLE)
for side in ("shard_worker", "router"):
    TABLE[f"{side}/main.cc"] = TABLE[f"{side}/service"] + [f"{side}/service"]

SERVICE_ROOMS = [
    "shard_worker/service", "shard_worker/main.cc", "router/service", "router/main.cc", "serving",
    "client", "tests",
]
EVERYWHERE = list(TABLE)

# Third-party header (a regular expression) -> rooms that may include it. The first match decides;
# a header that nothing matches is refused: a new dependency is a decision, so it gets a line.
THIRD_PARTY = [
    (r"absl/(synchronization|time)/", SERVICE_ROOMS),
    (r"(absl|fmt)/", EVERYWHERE),
    (r"(grpc|grpcpp|google/protobuf|prometheus|boost|spdlog)/", SERVICE_ROOMS),
    (r"xxh(ash|_x86dispatch)\.h", ["checkpoint", "tests"]),
    (r"pcre2\.h", ["router/tokenizer", "tests"]),
    (r"openssl/", ["kernels", "shard_worker/runtime", "router/service", "shard_worker/service",
                   "tests"]),
    (r"nccl\.h", ["kernels/cuda", "kernels/collectives"]),
    (r"cublasLt\.h", ["kernels/cuda"]),
    (r"nvml\.h", ["tests"]),  # the program opens the library with declarations of its own
    (r"nvtx3/", ["kernels/cuda", "tests"]),
    (r"(cuda|cub|thrust|cooperative_groups|nv)[a-z0-9_]*(/|\.h)", ["kernels/cuda"]),
    (r"hwloc\.h", ["shard_worker/runtime"]),
    (r"numa\.h", ["shard_worker/runtime"]),
    (r"(gtest|gmock|benchmark|sanitizer)/", ["tests"]),
    (r"(imm|xmm|cpuid)[a-z]*\.h", ["kernels", "base", "tests"]),
]

# engine and core decide and never wait: no threads, clocks, files, sockets or logs, whether from
# the standard library or the system.
SANS_IO_ROOMS = ["shard_worker/engine", "router/core"]
SANS_IO_FORBIDDEN = re.compile(
    r"(thread|mutex|shared_mutex|condition_variable|atomic|future|semaphore|latch|barrier"
    r"|stop_token|chrono|ctime|random|fstream|iostream|cstdio|filesystem|csignal"
    r"|[a-z_]+/[a-z_/]+\.h|[a-z_]+\.h)"
)
CXX_HEADER = re.compile(r"[a-z0-9_]+")
SYSTEM_HEADER = re.compile(
    r"(sys|netinet|arpa|linux)/[a-z_]+\.h"
    r"|(dirent|dlfcn|fcntl|ifaddrs|malloc|netdb|poll|pthread|sched|signal|termios|time|unistd"
    r"|wait)\.h"
)

SOURCE = re.compile(r".*\.(h|cc|cu|cuh)$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
TOP_FOLDERS = sorted({room.split("/")[0] for room in TABLE})


def is_in(path, room):
    return path == room or path.startswith(room + "/")


def room_of(path):
    """The deepest room that holds the file; None if there is none."""
    return max((room for room in TABLE if is_in(path, room)), key=len, default=None)


def ours(header):
    """Where an included header lies in our tree; None if it is not ours."""
    generated = re.fullmatch(r"facet/v1/(\w+)(\.grpc)?\.pb\.h", header)
    if generated:
        return "protos/" + generated.group(1)
    if re.fullmatch(r"(google/rpc|grpc/health/v1)/\w+(\.grpc)?\.pb\.h", header):
        return "protos/" + header
    return header if header.split("/")[0] in TOP_FOLDERS else None


def third_party_rooms(header):
    for pattern, rooms in THIRD_PARTY:
        if re.match(pattern, header):
            return rooms
    return None


def complaint(path, header, quoted):
    """Why `path` may not include `header`; None if it may."""
    room = room_of(path)
    if room is None:
        return "lies in no room of the table"
    target = ours(header)
    if target is not None:
        if not quoted:
            return f"our own {header} is included with quotes"
        allowed = TABLE[room] + [room]
        return None if any(is_in(target, a) for a in allowed) else f"{room} may not use {header}"
    if quoted and not header.startswith("absl/"):
        return f"{header} is not a path from the root of the tree"
    rooms = third_party_rooms(header)
    if rooms is not None:
        allowed = any(is_in(path, a) for a in rooms)
        return None if allowed else f"{room} may not use {header}"
    if room in SANS_IO_ROOMS and SANS_IO_FORBIDDEN.fullmatch(header):
        return f"{room} has no threads, clocks or IO: {header}"
    if CXX_HEADER.fullmatch(header) or SYSTEM_HEADER.fullmatch(header):
        return None
    return f"{header} is a dependency that the table does not know"


def complaints(path, text):
    found = []
    for match in INCLUDE.finditer(text):
        why = complaint(path, match.group(2), match.group(1) == '"')
        if why:
            line = text.count("\n", 0, match.start(2)) + 1
            found.append(f"{path}:{line}: {why}")
    return found


def sources():
    for top in TOP_FOLDERS:
        for folder, _, names in os.walk(top):
            for name in sorted(names):
                if SOURCE.match(name):
                    yield os.path.join(folder, name)


class IncludeTable(unittest.TestCase):
    def test_every_include_of_the_tree_is_in_the_table(self):
        found = []
        scanned = 0
        for path in sources():
            scanned += 1
            with open(path, encoding="utf-8") as file:
                found += complaints(path, file.read())
        self.assertGreater(scanned, 10, "not in the root of the source tree?")
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_what_the_floors_forbid_is_found(self):
        for path, include in [
            ("base/x.h", '"checkpoint/gguf.h"'),
            ("checkpoint/x.cc", '"kernels/device.h"'),
            ("kernels/cpu/x.cc", '"checkpoint/gguf.h"'),
            ("kernels/cpu/x.cc", '"shard_worker/model/model_spec.h"'),
            ("shard_worker/model/x.cc", '"shard_worker/engine/engine.h"'),
            ("shard_worker/engine/x.cc", '"kernels/device.h"'),
            ("shard_worker/engine/x.h", "<thread>"),
            ("shard_worker/engine/x.h", "<chrono>"),
            ("shard_worker/engine/x.h", "<time.h>"),
            ("shard_worker/engine/x.h", "<sys/time.h>"),
            ("router/core/x.cc", "<mutex>"),
            ("router/core/x.cc", '"absl/time/clock.h"'),
            ("router/core/x.cc", "<grpcpp/grpcpp.h>"),
            ("shard_worker/runtime/x.cc", '"facet/v1/shard.pb.h"'),
            ("shard_worker/runtime/x.cc", '"absl/synchronization/mutex.h"'),
            ("shard_worker/service/x.cc", '"router/core/router_core.h"'),
            ("shard_worker/main.cc", '"router/core/router_core.h"'),
            ("router/service/x.cc", '"shard_worker/engine/engine.h"'),
            ("router/tokenizer/x.cc", '"router/core/router_core.h"'),
            ("router/service/x.cc", "<pcre2.h>"),
            ("client/x.cc", '"facet/v1/shard.grpc.pb.h"'),
            ("client/x.cc", '"router/service/metrics.h"'),
            ("shard_worker/energy/x.cc", '"kernels/device.h"'),
            ("shard_worker/energy/x.cc", "<nvml.h>"),
            ("serving/x.cc", '"facet/v1/inference.pb.h"'),
            ("serving/x.cc", "<hwloc.h>"),
            ("kernels/cpu/x.cc", "<cuda_runtime.h>"),
            ("kernels/cpu/x.cc", "<spdlog/spdlog.h>"),
            ("base/x.cc", "<gtest/gtest.h>"),
            ("base/x.cc", '"check.h"'),
            ("base/x.cc", "<base/check.h>"),
            ("base/x.cc", "<nlohmann/json.hpp>"),
            ("client/x.cc", "<curl/curl.h>"),
            ("shard_worker/new_room/x.cc", "<vector>"),
        ]:
            with self.subTest(path=path, include=include):
                text = f"#include <string>\n#  include {include}  // why\n"
                found = complaints(path, text)
                wanted = f"{path}:2: "
                self.assertTrue(found and found[-1].startswith(wanted), f"got {found}")

    def test_what_the_floors_allow_passes(self):
        for path, include in [
            ("base/x.h", "<atomic>"),
            ("checkpoint/x.cc", "<sys/mman.h>"),
            ("kernels/cpu/x.cc", '"checkpoint/block_formats.h"'),
            ("kernels/cpu/x.cc", "<immintrin.h>"),
            ("kernels/cuda/x.cu", "<cuda_runtime.h>"),
            ("shard_worker/runtime/x.cc", '"kernels/device.h"'),
            ("shard_worker/main.cc", '"shard_worker/service/group_service.h"'),
            ("shard_worker/engine/x.cc", '"absl/status/statusor.h"'),
            ("router/tokenizer/x.cc", "<pcre2.h>"),
            ("router/service/x.cc", '"facet/v1/shard.grpc.pb.h"'),
            ("client/x.cc", '"facet/v1/types.pb.h"'),
            ("serving/x.cc", "<boost/asio/post.hpp>"),
            ("tests/services/x.cc", '"router/service/metrics.h"'),
        ]:
            with self.subTest(path=path, include=include):
                self.assertEqual(complaints(path, f"#include {include}\n"), [])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
