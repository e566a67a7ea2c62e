"""How often the 95% intervals hold the truth, by simulation: returns of a few training runs on 40 tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.measure import SEED, circumstances
from metarl.meta.statistics import bootstrap_interval, paired_interval
from metarl.meta.tables import Table
from metarl.streams import stream
from metarl.zoo.outputs import write_record

N_TASKS = 40
RUNS = (1, 2, 3, 5, 10)
SPREADS = ((0.0, 1.0), (2.0, 1.0), (5.0, 2.0), (10.0, 2.0))
"""Standard deviations between runs, and of what only one run has on one task; that between tasks is 10."""
TASK_SPREAD = 10.0


def coverage(n_runs: int, run_spread: float, rest: float, trials: int, n_resamples: int) -> tuple[float, float]:
    """Return the share of intervals that hold the truth, of means and of paired differences of equal methods."""
    rng = stream(SEED, "coverage")
    hits = np.zeros(2)
    for _ in range(trials):
        task = TASK_SPREAD * rng.standard_normal(N_TASKS)
        a, b = (
            task + run_spread * rng.standard_normal((n_runs, 1)) + rest * rng.standard_normal((n_runs, N_TASKS))
            for _ in range(2)
        )
        intervals = (bootstrap_interval(a, n_resamples=n_resamples), paired_interval(a, b, n_resamples=n_resamples))
        hits += [interval.low <= 0.0 <= interval.high for interval in intervals]
    return float(hits[0] / trials), float(hits[1] / trials)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=2000, help="simulated experiments for each row")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples of an interval")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the JSON record")
    args = parser.parse_args(arguments)
    rows = []
    for run_spread, rest in SPREADS:
        for n_runs in RUNS:
            mean, difference = coverage(n_runs, run_spread, rest, args.trials, args.resamples)
            rows.append(
                {"runs": n_runs, "run_spread": run_spread, "rest": rest, "mean": mean, "difference": difference}
            )
    columns = ["runs", "sd of runs", "sd of run x task", "mean", "paired difference"]
    cells = [[f"{value:g}" for value in row.values()] for row in rows]
    Console().print(Table(columns, cells, f"Coverage of 95% intervals, {N_TASKS} tasks of sd {TASK_SPREAD:g}", []))
    if args.output is not None:
        command = f"python -m benchmarks.coverage --trials {args.trials} --resamples {args.resamples}"
        write_record(args.output, {"command": command, **circumstances(), "rows": rows})


if __name__ == "__main__":
    main()
