"""The roofline sheet: it is the one that the script makes, knows every kernel of the tree, and counts
what is known otherwise. Needs nothing but Python. Run in the root of the source tree.
"""

import os
import re
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cuda_roofline as roofline  # noqa: E402


class Roofline(unittest.TestCase):
    def setUp(self):
        self.steps = roofline.steps("Q4_0", "Q8_0")

    def test_the_committed_sheet_is_the_one_the_script_makes(self):
        with open(roofline.SHEET, encoding="utf-8") as file:
            committed = file.read()
        self.assertEqual(committed, roofline.document("Q4_0", "Q8_0"),
                         "run tests/bench/cuda_roofline.py --update")

    def test_every_kernel_is_in_it_or_said_not_to_be(self):
        counted = {work.kernel for step in self.steps for work in step.work.values()}
        tree = roofline.kernels_of_the_tree()
        self.assertEqual(tree - counted - set(roofline.NOT_IN_A_STEP), set())
        self.assertEqual(counted - tree, set(), "not in the tree")
        self.assertEqual(counted & set(roofline.NOT_IN_A_STEP), set(), "said not to be, and is")

    def test_it_accounts_for_every_kernel_of_the_compilers_report(self):
        with open("kernels/cuda/compiler_report.md", encoding="utf-8") as file:
            compiled = set(re.findall(r"^\| sm_\d+ \| (\w+)", file.read(), re.MULTILINE))
        with open(roofline.SHEET, encoding="utf-8") as file:
            accounted = set(re.findall(r"^\| (\w+Kernel) \|", file.read(), re.MULTILINE))
        self.assertGreater(len(compiled), 20)
        self.assertEqual(compiled, accounted)

    def test_fast_kernels_are_those_of_the_tree(self):
        fast = roofline.fast_steps("Q4_0", "Q8_0")
        counted = {work.kernel for step in fast for work in step.work.values()}
        self.assertEqual(counted - roofline.kernels_of_the_tree(), {roofline.LIBRARY})
        said = {k for k, why in roofline.NOT_IN_A_STEP.items() if why == "--arithmetic=fast"}
        self.assertEqual(said - counted, set())
        for step in fast:
            self.assertGreater(step.seconds(), step.weight_bytes() / roofline.BYTES_S)

    def test_matrices_are_as_large_as_the_models_are_published_to_be(self):
        for model in roofline.MODELS:
            load = roofline.WORKLOADS[0]
            step = roofline.Step(model, load, "Q8_0", "Q8_0", "AttendSplitKernel")
            # Llama's embedding is a matrix of its own, of which a step reads a row.
            weights = step.weight_bytes() / roofline.FORMATS["Q8_0"].bytes * 32
            if model.window == 0:
                weights += model.vocabulary * model.width
            self.assertAlmostEqual(weights / 1e9, model.parameters, delta=0.02 * model.parameters)

    def test_decoding_reads_every_weight_once(self):
        for step in self.steps:
            if step.workload.rows > 1:
                continue
            products = sum(w.bytes for w in step.work.values()
                           if w.kernel == "IntegerProductKernel")
            self.assertGreater(products, step.weight_bytes())
            self.assertLess(products, 1.02 * step.weight_bytes())

    def test_attention_sees_the_keys_that_a_loop_counts(self):
        for load in roofline.WORKLOADS:
            for window in (0, 512):
                pairs = keys = 0
                seen = set()
                for row in range(load.rows_each):
                    position = load.first_position + row
                    visible = [k for k in range(position + 1)
                               if window == 0 or position - k < window]
                    pairs += len(visible)
                    seen.update(visible)
                keys = len(seen)
                self.assertEqual(load.pairs(window), load.sequences * pairs)
                self.assertEqual(load.keys_read(window), load.sequences * keys)

    def test_no_time_is_shorter_than_its_parts(self):
        for step in self.steps:
            for work in step.work.values():
                self.assertEqual(work.seconds(), max(
                    work.bytes / 3.35e12, work.int8 / 1979e12 + work.half / 989e12,
                    work.instructions / 33.5e12))
            self.assertGreater(step.seconds(), step.weight_bytes() / roofline.BYTES_S)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
