"""Write the golden traces anew: ``python -m tests.golden.make``, after a change that is meant to alter numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from tests.golden.cases import digest, traces, versions

HERE = Path(__file__).resolve().parent
TRACES = HERE / "traces.json"


def commit() -> str:
    """Return the commit that the code is at, and whether it was changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def shortened(numbers: Any) -> Any:
    """Return numbers with nine digits, which tell single precision apart."""
    return [shortened(each) for each in numbers] if isinstance(numbers, list) else float(f"{numbers:.9g}")


def write(path: Path) -> None:
    """Compute every case and write what is stored of it: a line for each quantity."""
    cases = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f"{json.dumps(key)}: {json.dumps(shortened(value))}" for key, value in digest(trace).items())
        + "}"
        for name, trace in traces()
    ]
    head = json.dumps({"commit": commit(), **versions()})
    path.write_text(f'{{"made": {head},\n"cases": {{\n' + ",\n".join(cases) + "}}\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(TRACES)
