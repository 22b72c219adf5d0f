"""What methods.py makes of its options and of what is measured; nothing is.

python3 -m unittest discover -s Benchmarks/compare
"""

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

import methods  # noqa: E402

TIMES = {"lora": [1.0, 2.0], "dora": [1.5, 2.5]}


class MethodsTests(unittest.TestCase):
    def run_with(self, *words: str) -> tuple[str, str]:
        """What `main` prints with the words; both sides answer at once."""
        out, errors = io.StringIO(), io.StringIO()
        answer = {"training_step_seconds": TIMES}
        with (
            mock.patch.object(sys, "argv", ["methods.py", *words]),
            mock.patch.object(methods, "run_swift", return_value=answer),
            mock.patch.object(methods, "run_peft", return_value=answer),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            try:
                methods.main()
            except SystemExit as end:
                return out.getvalue(), errors.getvalue() + str(end)
        return out.getvalue(), errors.getvalue()

    def test_wrong_options_are_refused_at_once(self) -> None:
        program = ["--binary", sys.executable]
        for words, expected in (
            (["--sides", "pefft"], "--sides pefft: expected peft, swift or both"),
            (["--shapes", "qwen2"], "--shapes qwen2: expected one of"),
            (["--shapes", "qwen3:float32"], "--shapes qwen3:float32: expected one of"),
            (["--shapes", "qwen2:f32"], "--shapes qwen2:f32: expected one of"),
            (["--methods", "dora,edora"], "--methods dora,edora: lora must be one"),
            (["--methods", "lora,dorra"], "--methods lora,dorra: expected some of"),
            (["--binary", "nowhere"], "no such binary: nowhere"),
            (["--sides", "peft", "--shapes", "minilm:float32"], "nothing was measured"),
        ):
            out, errors = self.run_with(*program, *words)
            self.assertIn(expected, errors)
            self.assertEqual(out, "")

    def test_peft_alone_needs_no_program_of_ours(self) -> None:
        words = ["--binary", "nowhere", "--sides", "peft", "--shapes", "qwen2:float32"]
        out, _ = self.run_with(*words)
        self.assertIn("| qwen2 float32, training step | peft |   dora", out)

    def test_file_is_there_when_the_table_fails(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "times.json"
            words = ["--binary", sys.executable, "--shapes", "qwen2:float32", "--json", str(path)]
            with mock.patch.object(methods, "table", side_effect=KeyError("lora")):
                with self.assertRaises(KeyError):
                    self.run_with(*words)
            found = json.loads(path.read_text())
        self.assertEqual([one["side"] for one in found], ["peft", "swift"])
        self.assertEqual(found[0]["training_step_seconds"], TIMES)


if __name__ == "__main__":
    unittest.main()
