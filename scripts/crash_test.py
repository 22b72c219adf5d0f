#!/usr/bin/env python3
"""Kills training runs with SIGKILL and resumes them; the result must equal an uninterrupted run's to the bit.

    scripts/crash_test.py --peft .build/release/peft [--rounds 3] [--model .cache/minilm-l6-v2]

Standard library only. Every kill comes at a random moment, checkpoint writes included, since a checkpoint is written
after every few steps; each checkpoint folder that a kill leaves behind must be readable.
"""
import argparse, json, pathlib, random, shutil, signal, struct, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser(description=__doc__)
ap.add_argument("--peft", required=True)
ap.add_argument("--model", default=".cache/minilm-l6-v2")
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--seed", type=int, default=None)
args = ap.parse_args()
seed = args.seed if args.seed is not None else random.randrange(1 << 30)
rng = random.Random(seed)
print(f"seed {seed}")
root = pathlib.Path(__file__).resolve().parent.parent
work = pathlib.Path(tempfile.mkdtemp(prefix="peft-crash-"))
data = work / "train.jsonl"
lines = (root / "Examples/support-intents/train.jsonl").read_text().splitlines()[:320]
data.write_text("\n".join(lines) + "\n")


def command(output, *extra):
    settings = {
        "model": args.model, "task_type": "SEQ_CLS", "train_file": data, "output_dir": output,
        "num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-3, "seed": 7,
        "lora.r": 4, "lora.lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 3,
        "gradient_accumulation_steps": 2,
    }
    result = [args.peft, "train"]
    for key, value in settings.items():
        result += ["--set", f"{key}={value}"]
    return result + list(extra)


def check_readable(folder):
    """Parses every file of a checkpoint as its reader would."""
    for path in folder.iterdir():
        raw = path.read_bytes()
        if path.suffix == ".json":
            json.loads(raw)
        if path.suffix == ".safetensors":
            (length,) = struct.unpack("<Q", raw[:8])
            header = json.loads(raw[8 : 8 + length])
            end = max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
            assert 8 + length + end == len(raw), f"{path} is incomplete"


def steps_done(output):
    metrics = output / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


try:
    whole = work / "whole"
    start = time.time()
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    duration = time.time() - start
    expected = (whole / "adapter_model.safetensors").read_bytes()
    print(f"uninterrupted: {duration:.1f} s, {steps_done(whole)} lines of metrics")
    failures = 0
    for round_number in range(1, args.rounds + 1):
        output = work / f"killed-{round_number}"
        kills = 0
        while True:
            extra = ["--set", "resume_from_checkpoint=true"] if kills else []
            process = subprocess.Popen(command(output, *extra), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if kills < 3:
                time.sleep(rng.uniform(0.15, 0.8) * duration)
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                for folder in sorted(output.glob("checkpoint-*")) if output.exists() else []:
                    if "." not in folder.name:
                        check_readable(folder)
                print(f"round {round_number}: killed after {steps_done(output)} lines of metrics")
                if process.returncode == 0:
                    break
                continue
            _, errors = process.communicate()
            if process.returncode != 0:
                print(errors.decode())
                sys.exit(f"round {round_number}: the resumed run failed")
            break
        equal = (output / "adapter_model.safetensors").read_bytes() == expected
        same_metrics = [json.loads(l).get("loss") for l in (output / "metrics.jsonl").read_text().splitlines()] == [
            json.loads(l).get("loss") for l in (whole / "metrics.jsonl").read_text().splitlines()
        ]
        print(f"round {round_number}: weights {'equal to the bit' if equal else 'DIFFER'}, losses {'equal' if same_metrics else 'DIFFER'}")
        failures += not (equal and same_metrics)
    sys.exit(1 if failures else 0)
finally:
    shutil.rmtree(work, ignore_errors=True)
