"""What the READMEs and the Prometheus rules name is there: flags of our programs and scripts, metrics,
files of the tree, tests. Needs nothing but Python. Run in the root of the source tree.
"""

import os
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Of programs that are not ours: nvcc, docker, pip, kubectl, Google Benchmark.
FLAGS_OF_OTHERS = {"fmad", "prec_div", "prec_sqrt", "target", "no_binary", "image", "overrides",
                   "benchmark_filter", "help"}
# What a README may put in a path's place, and what only a build or a run makes.
NO_PATHS = re.compile(r"[*<>{}$=]|NAME|FILE|^build/|^/|^~|^\.cache/|^https?:|^-")


def files(*patterns):
    """The files of the tree that match, but for what builds leave in it."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if not f.startswith((".", "build")) or f == ".ci"]
        for name in names:
            path = pathlib.Path(folder, name).relative_to(ROOT)
            if any(path.match(pattern) for pattern in patterns):
                found.append(path)
    return found


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def without_what_is_missing(text):
    """A README without its chapter of what is not there."""
    return re.sub(r"^## Not there yet\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)


def documents():
    return {path: without_what_is_missing(read(path)) for path in files("*.md")}


def flags_in(text):
    return {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]*)", text)}


def flags_of_the_tree():
    known = set()
    for path in files("*.cc"):
        known |= set(re.findall(r'name == "--(\w+)"', read(path)))  # where argv is read by hand
        known |= set(re.findall(r"ABSL_FLAG\(\s*[\w:<>]+(?:\s*,\s*|\s+)(\w+),", read(path)))
    for path in files("*.py", "*.sh", ".ci/run"):
        text = read(path)
        for arguments in re.findall(r"add_argument\(([^)]*)\)", text):
            known |= flags_in(arguments)
        if path.suffix != ".py":  # the arms of a case
            for arm in re.findall(r"^\s*(--[^()]*)\)", text, re.MULTILINE):
                known |= flags_in(arm)
    return known


def metrics_in(text):
    return set(re.findall(r"\bfacet_(?:router|worker)_[a-z_]*\*?", text))


def metrics_of_the_tree():
    """The names that the servers register; of a histogram also those of its parts."""
    names = set()
    for path in files("*.cc"):
        if path.parts[0] == "tests":
            continue
        names |= set(re.findall(r'"(facet_(?:router|worker)_[a-z_]+)"', read(path)))
    return names | {name + part for name in names if name.endswith("_seconds")
                    for part in ("_count", "_sum", "_bucket")}


def unknown_metrics(text, known):
    unknown = set()
    for name in metrics_in(text):
        stem = name.rstrip("*")
        if stem in known:
            continue
        if not (stem.endswith("_") and any(metric.startswith(stem) for metric in known)):
            unknown.add(name)
    return unknown


def paths_in(text):
    """What stands in backquotes and names a file of the tree, with its folder."""
    words = (word for quoted in re.findall(r"`([^`\n]+)`", text) for word in quoted.split())
    for word in words:
        word = word.rstrip(".,:;")
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.\w+", word) and not NO_PATHS.search(word):
            yield word


def tests_of_the_tree():
    names = set()
    for path in files("CMakeLists.txt"):
        text = read(path)
        names |= set(re.findall(r"(?:facet_test\(|add_test\(NAME )\s*([\w${}]+)", text))
        for group in re.findall(r"foreach\(name ([\w\s]+)\)", text):
            names |= set(group.split())
    return names | {path.stem for path in files("*_test.cc", "*_test.py")}


class Documents(unittest.TestCase):
    def test_every_flag_that_is_named_exists(self):
        known = flags_of_the_tree() | FLAGS_OF_OTHERS
        self.assertIn("packed_cache", known)
        self.assertIn("update_readme", known)
        self.assertIn("sanitize", known)
        found = {str(path): sorted(flags_in(text) - known) for path, text in documents().items()}
        self.assertEqual({path: flags for path, flags in found.items() if flags}, {})

    def test_every_metric_that_is_named_exists(self):
        known = metrics_of_the_tree()
        self.assertIn("facet_worker_steps_total", known)
        rules = {path: read(path) for path in files("prometheus/*.yaml", "tests/deploy/*.yaml", "tests/deploy/*.py")}
        self.assertTrue(metrics_in("".join(rules.values())))
        found = {str(path): sorted(unknown_metrics(text, known))
                 for path, text in {**documents(), **rules}.items()}
        self.assertEqual({path: names for path, names in found.items() if names}, {})

    def test_every_file_that_is_named_exists(self):
        found = []
        for path, text in documents().items():
            for name in paths_in(text):
                here = (ROOT / path.parent / name, ROOT / name)
                if not any(place.exists() or place.with_suffix(".h").exists() for place in here):
                    found.append(f"{path}: {name}")
        self.assertEqual(found, [])

    def test_every_test_that_is_named_exists(self):
        known = tests_of_the_tree()
        self.assertIn("real_model_test", known)
        found = []
        for path, text in documents().items():
            for name in re.findall(r"`([a-z]\w*_test)`", text):
                if name not in known:
                    found.append(f"{path}: {name}")
        self.assertEqual(found, [])

    def test_what_does_not_exist_is_found(self):
        self.assertEqual(flags_in("`--packed_cache=off`, --max-tokens; a--b"),
                         {"packed_cache", "max_tokens"})
        known = {"facet_worker_gpu_watts"}
        text = "`facet_worker_gpu_*`, facet_worker_gpu_watts; facet_worker_gpu, facet_router_*"
        self.assertEqual(unknown_metrics(text, known), {"facet_worker_gpu", "facet_router_*"})
        self.assertEqual(list(paths_in("`tests/x_test.cc` `a/*.cu` `build/bin/x.so` `b/c.h`.")),
                         ["tests/x_test.cc", "b/c.h"])
        self.assertEqual(without_what_is_missing("a\n## Not there yet\n--b\n## C\n"), "a\n## C\n")


if __name__ == "__main__":
    unittest.main()
