"""How methods_study.py ends when something goes wrong, with a program that only pretends to train.

python3 -m unittest discover -s Benchmarks/compare
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Notes that it has begun; then it does as the test says for its method, and writes what a run leaves.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
config = json.loads(Path(sys.argv[3]).read_text())
folder = Path(__file__).parent
with open(folder / "begun", "a") as file:
    file.write(f"{os.getpid()}\\n")
exec(json.loads((folder / "behaviour").read_text()).get(config["method"], ""))
output = Path(config["output_dir"])
output.mkdir()
lines = [{"loss": 1, "tokens": 10, "tokens_per_second": 5}, {"eval_accuracy": 0.5}]
(output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
header = json.dumps({"a.lora_A.weight": {"shape": [2, 3]}}).encode()
(output / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
"""


class StudyTests(unittest.TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        (self.folder / "banking77").mkdir()
        (self.folder / "banking77" / "train.csv").write_text("text,category\nhello,greeting\n")
        self.results = self.folder / "results.jsonl"

    def begin(self, behaviour: dict, results: Path) -> subprocess.Popen:
        (self.folder / "behaviour").write_text(json.dumps(behaviour))
        binary = self.folder / "peft"
        binary.write_text(f"#!{sys.executable}\n{PROGRAM}")
        binary.chmod(0o755)
        command = [sys.executable, HERE / "methods_study.py", "--peft-binary", binary]
        command += ["--data", self.folder, "--results", results]
        study = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        # Whatever a failing test leaves.
        self.addCleanup(self.end_group, study)
        return study

    def end_group(self, study: subprocess.Popen) -> None:
        try:
            os.killpg(study.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        study.wait()
        study.stdout.close()
        study.stderr.close()

    def begun(self) -> list[int]:
        path = self.folder / "begun"
        return [int(line) for line in path.read_text().split()] if path.is_file() else []

    def test_all_runs(self) -> None:
        study = self.begin({}, self.results)
        study.communicate(timeout=120)
        self.assertEqual(study.returncode, 0)
        # Five variants, two ranks: three rates and two more seeds each.
        self.assertEqual(len(self.results.read_text().splitlines()), 50)
        self.assertEqual(len(self.begun()), 50)

    def test_full_disk_ends_all(self) -> None:
        study = self.begin({}, Path("/dev/full"))
        _, errors = study.communicate(timeout=60)
        self.assertEqual(study.returncode, 1)
        self.assertIn("/dev/full: No space left on device", errors)
        self.assertLessEqual(len(self.begun()), 2)

    def test_failed_run_ends_all_and_the_other_is_kept(self) -> None:
        # The first two runs are of these methods.
        study = self.begin(
            {"dora": "sys.exit('out of luck')", "lora": "time.sleep(1.5)"}, self.results
        )
        _, errors = study.communicate(timeout=60)
        self.assertEqual(study.returncode, 1)
        self.assertEqual(errors.count("out of luck"), 1)
        self.assertEqual(len(self.begun()), 2)
        names = [json.loads(line)["name"] for line in self.results.read_text().splitlines()]
        self.assertEqual(names, ["LoRA"])

    def test_signal_ends_the_programs(self) -> None:
        for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)):
            (self.folder / "begun").unlink(missing_ok=True)
            study = self.begin({"dora": "time.sleep(60)", "lora": "time.sleep(60)"}, self.results)
            for _ in range(300):
                if len(self.begun()) == 2:
                    break
                time.sleep(0.1)
            study.send_signal(number)
            study.communicate(timeout=20)
            self.assertEqual(study.returncode, status)
            for program in self.begun():
                self.assertFalse(Path(f"/proc/{program}").exists(), f"{number}: still running")
            self.assertFalse(self.results.exists())


if __name__ == "__main__":
    unittest.main()
