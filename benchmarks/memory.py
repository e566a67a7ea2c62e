"""Peak memory of one update: ``python -m benchmarks.memory ALGO N_TASKS``, in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from benchmarks.problems import Update
from metarl.agents.parallel import Parallel, single_threaded_torch
from metarl.meta.outer import TrustRegion


def resident() -> int:
    """Return the memory that this process holds now, bytes."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


def peak() -> int:
    """Return the most memory that this process has ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(first_order: bool, n_tasks: int, quick: bool) -> dict[str, int]:
    """Return ``peak``: what an update holds besides its data, and ``data``, both in bytes."""
    n_episodes, horizon = (2, 10) if quick else (20, 100)
    parallel = Parallel()
    with single_threaded_torch():
        # A small update first: libraries and threads that start on first use belong to neither side.
        small = Update(2, 2, 10, 2, 2, parallel)
        TrustRegion().step(small.objective(first_order=first_order), small.theta)
        empty = resident()
        problem = Update(n_tasks, n_episodes, horizon, 2, 2, parallel)
        before = resident()
        # Making the data may have held more than an update does: then the update is at most that.
        TrustRegion().step(problem.objective(first_order=first_order), problem.theta)
    return {"peak": max(peak() - before, 0), "data": max(before - empty, 0)}


def main() -> None:
    name, n_tasks, *rest = sys.argv[1:]
    print(json.dumps(measure(name == "fomaml", int(n_tasks), "--quick" in rest)))


if __name__ == "__main__":
    main()
