#!/usr/bin/env python3
"""Remakes every golden in this folder with transformers, peft and torch (see requirements.txt).

Usage: python make_goldens.py [NAME ...]   where NAME is a case (bert, llama, ...) or one of the
parts below it (optimisers, layers, ...); without names, everything is made.

Everything is seeded, one thread, float32, on the CPU: a second run on the same machine gives the
same files. README.md describes what is in them.
"""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent

# peft keeps target modules in a set, so their order in adapter_config.json follows string hashes.
if os.environ.get("PYTHONHASHSEED") != "0":
    environment = dict(os.environ, PYTHONHASHSEED="0", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)

sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
import transformers  # noqa: E402

from generator import (  # noqa: E402
    combine,
    conformance,
    dora,
    edora,
    fields,
    files,
    fused,
    inits,
    inspection,
    layers,
    models,
    optimisers,
    rotary,
    targets,
    tasks,
)


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Relative paths: base_model_name_or_path in the adapters then names no folder of this machine.
    os.chdir(HERE)

    jobs = {case.name: case.make for case in models.cases()}
    jobs |= {
        "optimisers": optimisers.make,
        "targets": targets.make,
        "inspect": inspection.make,
        "rotary": rotary.make,
        "layers": layers.make,
        "fused": fused.make,
        "dora": dora.make,
        "edora": edora.make,
        "combine": combine.make,
        "fields": fields.make,
        "conformance": conformance.make,
        "inits": inits.make,
        "files": files.make,
        "tasks": tasks.make,
    }
    names = sys.argv[1:] or list(jobs)
    unknown = [name for name in names if name not in jobs]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(jobs)}")
    for name in names:
        jobs[name]()
        print("made", name)


if __name__ == "__main__":
    main()
