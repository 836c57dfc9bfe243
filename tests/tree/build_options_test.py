"""Configures the tree as machines without nvcc or nccl.h do, in a folder of its own; compiles
nothing: the sanitizers' builds have no CUDA module either, and nccl_absent_test compiles what stands
for NCCL. Run in the root of the source tree.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest


class BuildOptions(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = pathlib.Path(folder.name)

    def configure(self, *options):
        """Returns what CMake said."""
        result = subprocess.run(
            ["cmake", "-S", ".", "-B", str(self.build), "-G", "Ninja", *options],
            capture_output=True, text=True, check=False,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("CMake Warning", result.stderr)
        return result.stdout

    def targets(self):
        names = subprocess.run(
            ["ninja", "-C", str(self.build), "-t", "targets", "all"],
            capture_output=True, text=True, check=True,
        )
        return {line.partition(":")[0] for line in names.stdout.splitlines()}

    def test_without_cuda_there_are_the_programs_and_no_module(self):
        said = self.configure("-DFACET_CUDA=OFF")
        self.assertIn("CUDA: FACET_CUDA is off", said)
        targets = self.targets()
        self.assertLessEqual({"facet", "facet-worker", "facet-router", "device_test"}, targets)
        self.assertNotIn("facet_cuda", targets)
        self.assertEqual([name for name in targets if name.endswith("_gpu_test")], [])

    def test_without_nccl_the_module_says_so(self):
        if not shutil.which("nvcc") and not os.path.exists("/usr/local/cuda/bin/nvcc"):
            self.skipTest("there is no nvcc: the module is not configured")
        said = self.configure("-DFACET_NCCL_INCLUDE_DIR=", "-DFACET_SERVICES=OFF")
        self.assertIn("CUDA: no nccl.h found", said)
        commands = json.loads((self.build / "compile_commands.json").read_text(encoding="utf-8"))
        of_module = [pathlib.Path(entry["file"]).name for entry in commands
                     if "facet_cuda.dir" in entry["command"]]
        self.assertIn("nccl_absent.cc", of_module)
        self.assertNotIn("nccl_dlopen.cc", of_module)


if __name__ == "__main__":
    unittest.main()
