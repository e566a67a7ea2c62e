"""What every command prints for a tiny run: ``python -m tests.golden.outputs`` writes outputs.txt anew.

``PYTHONPATH=CHECKOUT python tests/golden/outputs.py FILE`` writes what the metarl of another checkout prints.
Times, speeds, paths, versions and commits are replaced by words; numbers stay, and are compared with room for rounding.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from metarl.zoo.__main__ import main

OUTPUTS = Path(__file__).resolve().parent / "outputs.txt"
SMALL = "--env PointMass-v0 --seed 0 --num-threads 1 -n 240 --env-kwargs horizon:10 --n-eval-tasks 3 --eval-freq 160"
NETWORK = "meta_batch_size:2 n_episodes:2 policy_kwargs.net_arch:[12]"
TRUST_REGION = "outer_kwargs.cg_damping:0.1 outer_kwargs.cg_steps:3"
COMMANDS = (
    "--help",
    *(f"{name} --help" for name in ("train", "evaluate", "export", "finetune", "record", "plot", "reproduce", "list")),
    "list",
    f"train --algo fomaml {SMALL} -params {NETWORK} {TRUST_REGION}",
    f"train --algo leap {SMALL} --verbose 2 -params {NETWORK} learner:ppo",
    f"train --algo reptile {SMALL} --verbose 0 -params {NETWORK}",
    "train -i logs/fomaml/PointMass-v0_1 -n 400 --num-threads 1",
    "train -i logs/fomaml/PointMass-v0_1 --num-threads 1",
    "train -i logs/fomaml/PointMass-v0_1/best_model.safetensors --seed 1 -n 80 --eval-freq -1 --num-threads 1"
    f" --env-kwargs horizon:10 --n-eval-tasks 2 -params {NETWORK} {TRUST_REGION}",
    "list runs",
    "evaluate --algo fomaml --env PointMass-v0 --n-eval-tasks 3 --num-threads 1",
    "evaluate -i logs/fomaml/PointMass-v0_1 logs/leap/PointMass-v0_1 --n-eval-tasks 3 --n-inner-steps 1"
    " --num-threads 1 -o compared.json",
    "export --algo fomaml --env PointMass-v0 --to ppo -o plain.zip --num-threads 1",
    "export --algo leap --env PointMass-v0 --num-threads 1",
    "finetune --algo fomaml --env PointMass-v0 --n-eval-tasks 2 -n 60 --optimizer sgd --num-threads 1",
    "plot --algo fomaml --env PointMass-v0",
    "plot -i logs/fomaml/PointMass-v0_1 --kind adaptation -o adaptation.svg",
    "reproduce first-order-rl --scale smoke --no-train -f elsewhere",
    "reproduce first-order-rl --scale smoke --no-train -f logs",
    "reproduce second-order-rl",
    "trian",
    "train --algo momaml",
    "train --algo maml --env PointMass-v0 -params learner:sb3_ppo",
    "train --algo fomaml --env PointMass-v0 -params inner_lr:-1",
    "evaluate --algo oracle --env AntDir-v0",
    "evaluate -i nowhere",
)
"""Each sees the files of those before it."""


def printed(command: str) -> str:
    """Run a command in the working folder; return its exit code, what it printed and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(command))
    return f"$ metarl {command}\n[{code}]\n{normal(out.getvalue())}{normal(err.getvalue())}"


def normal(text: str) -> str:
    """Return text without what differs from run to run and from machine to machine."""
    for pattern, word in (
        (r"\b[0-9a-f]{40}\b", "COMMIT"),
        (r"\b\d+(\.\d+)?[a-z0-9.]*\+cpu\b", "VERSION"),
        (r"(?<![\w.,])[\d,.]+/s\b", "SPEED"),
        (r"\b\d+:\d\d(:\d\d)?\b", "TIME"),
        (r"(?m)^(\|\s+(?:fps|inner|outer|sampling|sampling_fps|time_elapsed)\s+\|)[^|]*\|", r"\1 TIME |"),
    ):
        text = re.sub(pattern, word, text)
    return text


def outputs() -> Iterator[str]:
    """Yield what every command prints, in a folder of its own."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"COLUMNS": "120"}):
        os.chdir(folder)
        try:
            yield from map(printed, COMMANDS)
        finally:
            os.chdir(before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(sys.argv[1]).resolve() if sys.argv[1:] else OUTPUTS
    path.write_text("\n".join(outputs()), encoding="utf-8")
