"""Peak memory of one update: ``python -m benchmarks.memory ALGO N_TASKS``, in a process of its own (Linux)."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

from benchmarks.problems import Update
from metarl.agents.parallel import Parallel, single_threaded_torch
from metarl.meta.outer.trust_region import TrustRegion


def status(field: str) -> int:
    """Return a line of this process's status, bytes: ``VmRSS``, what it holds, or ``VmHWM``, the most it has held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def forget_peak() -> None:
    """Give free memory back to the system and let ``VmHWM`` start again, so that it speaks of what follows."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(first_order: bool, n_tasks: int, quick: bool) -> dict[str, int]:
    """Return ``peak``: what an update holds besides its data, and ``data``, both in bytes."""
    n_episodes, horizon = (2, 10) if quick else (20, 100)
    parallel = Parallel()
    with single_threaded_torch():
        # A small update first: libraries and threads that start on first use belong to neither side.
        small = Update(2, 2, 10, 2, 2, parallel)
        TrustRegion().step(small.objective(first_order=first_order), small.theta)
        forget_peak()
        empty = status("VmRSS")
        problem = Update(n_tasks, n_episodes, horizon, 2, 2, parallel)
        forget_peak()
        before = status("VmRSS")
        TrustRegion().step(problem.objective(first_order=first_order), problem.theta)
    return {"peak": status("VmHWM") - before, "data": max(before - empty, 0)}


def main() -> None:
    name, n_tasks, *rest = sys.argv[1:]
    print(json.dumps(measure(name == "fomaml", int(n_tasks), "--quick" in rest)))


if __name__ == "__main__":
    main()
