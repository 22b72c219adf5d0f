"""What the round trip's own arithmetic and table do when something is wrong.

PYTHON -m unittest discover -s scripts, with a Python that has torch and peft
"""

import math
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from roundtrip_support import Report, ToolFailure, guarded, relative, worst  # noqa: E402


class ErrorTests(unittest.TestCase):
    def test_worst(self) -> None:
        self.assertEqual(worst([1e-7, 3e-7, 2e-7]), 3e-7)
        self.assertEqual(worst([1e-7, math.nan]), math.inf)
        self.assertEqual(worst([math.nan, 1e-7]), math.inf)
        self.assertEqual(worst([]), math.inf)
        self.assertEqual(worst(error for error in [2.0, 1.0]), 2.0)

    def test_relative(self) -> None:
        one, two = torch.tensor([1.0, -2.0]), torch.tensor([1.0, -1.0])
        self.assertEqual(relative(two, one), 0.5)
        self.assertEqual(relative(one, one.reshape(1, 2)), math.inf)
        for wrong in (math.nan, math.inf):
            other = torch.tensor([1.0, wrong])
            self.assertEqual(relative(one, other), math.inf)
            self.assertEqual(relative(other, one), math.inf)
            self.assertEqual(relative(other, other), math.inf)
        zero = torch.zeros(2)
        self.assertEqual(relative(zero, zero), 0)
        self.assertEqual(relative(one, zero), math.inf)
        self.assertEqual(relative(torch.zeros(0), torch.zeros(0)), 0)

    def test_guarded(self) -> None:
        report = Report()

        def fail(error: Exception) -> None:
            raise error

        guarded(report, "model", "fine", lambda: None)
        guarded(report, "model", "tool", lambda: fail(ToolFailure("a test's failure")))
        guarded(report, "model", "Python", lambda: fail(ValueError("a test's error")))
        self.assertEqual([row[1] for row in report.rows], ["tool", "Python"])
        self.assertEqual(report.failures, 2)


class TableTests(unittest.TestCase):
    def test_failing_tool_leaves_a_table_each_time(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, HERE / "roundtrip.py", "--peft-binary", "/bin/false"]
            command += ["--data", folder, "--keep", folder, "--models", "minilm,fields"]
            command += ["--fields", "no setting has this name"]
            for count in (1, 2):
                done = subprocess.run(command, capture_output=True, text=True)
                self.assertEqual(done.returncode, 1, done.stderr)
                # The folder holds no model, and the tool fails: the parts after that are tried.
                for check in ("making adapters", "kasa_config", "a mixed batch: --rows"):
                    self.assertIn(check, done.stdout)
                self.assertEqual(len(list(Path(folder).glob("run-*"))), count)


if __name__ == "__main__":
    unittest.main()
