"""Holds the kernels of CUDA to the canonical arithmetic's "no atomics" (kernels/README.md): a sum of
floats that is added as threads come has other bits in every run. The language has atomics of
integers; a kernel that uses one is listed here, with why no result depends on the order. Needs
nothing but Python. Run in the root of the source tree.
"""

import pathlib
import re
import unittest

KERNELS = pathlib.Path("kernels/cuda")
LANGUAGE = "language.cuh"  # wraps CUDA's own

# A kernel's source -> the words of the language that it uses, and why results do not depend on who
# comes first.
USERS = {}

# The language's words, CUDA's functions, PTX, libcu++ and the compiler's builtins.
ATOMIC = re.compile(r"\b(Atomic[A-Z]\w*|atomic[A-Z]\w*|atom\.\w+|red\.\w+|atomic_ref|__\w*atomic_\w+)")


def uses(text):
    """The atomics of a source, without its comments."""
    return set(ATOMIC.findall(re.sub(r"//[^\n]*", "", text)))


class KernelAtomics(unittest.TestCase):
    def test_only_listed_kernels_use_atomics_and_only_the_languages(self):
        found = {}
        for path in sorted(KERNELS.glob("*.cu*")):
            if path.name != LANGUAGE and uses(path.read_text(encoding="utf-8")):
                found[path.name] = uses(path.read_text(encoding="utf-8"))
        self.assertEqual(found, {name: set(words) for name, (words, _) in USERS.items()})

    def test_the_languages_atomics_are_of_integers(self):
        text = (KERNELS / LANGUAGE).read_text(encoding="utf-8")
        concept = re.search(r"concept AtomicWord =([^;]*);", text).group(1)
        self.assertEqual(set(re.findall(r"is_same_v<T, (\w+)>", concept)), {"int32_t", "uint32_t"})
        words = re.findall(r"(template <[^>]*>)\n__device__[^(]*\b(Atomic\w+)\(", text)
        self.assertEqual(len(words), len(re.findall(r"return atomic\w+\(", text)))
        for template, word in words:
            self.assertEqual(template, "template <AtomicWord T>", word)

    def test_every_kind_of_atomic_is_seen(self):
        for code in ["AtomicAdd(&sum, 1);", "atomicAdd(&sum, x);", "atomicCAS(p, a, b);",
                     'asm("red.global.add.f32 [%0], %1;");', 'asm("atom.shared.add.f32 %0;");',
                     "cuda::atomic_ref<float> sum(x);", "__nv_atomic_add(&x, &y);",
                     "__atomic_fetch_add(&x, 1, 0);"]:
            self.assertTrue(uses(code), code)
        self.assertFalse(uses("// There are no atomics, e.g. atomicAdd.\nsum = AddRn(a, b);"))


if __name__ == "__main__":
    unittest.main()
