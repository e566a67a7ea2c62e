"""How often the 95% intervals hold the truth, by simulation: returns of a few training runs on few or many tasks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measure import SEED, circumstances
from metarl.meta.evaluation.statistics import bootstrap_interval, paired_interval
from metarl.meta.evaluation.tables import Table
from metarl.streams import stream
from metarl.zoo.runs.outputs import write_record

N_TASKS = 40
RUNS = (1, 2, 3, 5, 10)
SPREADS = ((0.0, 1.0), (2.0, 1.0), (5.0, 2.0), (10.0, 2.0))
"""Standard deviations between runs, and of what only one run has on one task; that between tasks is 10."""
TASK_SPREAD = 10.0
FEW = (2, 3, 5, 10, 15, 20, 30, 40, 80)
"""Numbers of tasks of a single run."""
SHAPES = ("normal", "lognormal")
"""How returns differ between tasks: symmetrically, or skewed, as where most tasks are easy."""


def draw(rng: np.random.Generator, shape: str, size: Sequence[int]) -> np.ndarray:
    """Return numbers of mean 0 and standard deviation 1."""
    normal = rng.standard_normal(tuple(size))
    if shape == "normal":
        return normal
    skewed: np.ndarray = (np.exp(normal) - math.exp(0.5)) / math.sqrt(math.exp(2.0) - math.exp(1.0))
    return skewed


def coverage(
    n_runs: int,
    run_spread: float,
    rest: float,
    trials: int,
    n_resamples: int,
    n_tasks: int = N_TASKS,
    shape: str = "normal",
) -> tuple[float, float]:
    """Return the share of intervals that hold the truth, of means and of paired differences of equal methods.

    :param rest: of what only one run has on one task.
    :param shape: of tasks, and of what only one run has on one task.
    """
    rng = stream(SEED, "coverage")
    hits = np.zeros(2)
    for _ in range(trials):
        task = TASK_SPREAD * draw(rng, shape, (n_tasks,))
        a, b = (
            task + run_spread * rng.standard_normal((n_runs, 1)) + rest * draw(rng, shape, (n_runs, n_tasks))
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
    sizes: dict[str, Any] = {"trials": args.trials, "n_resamples": args.resamples}
    rows = []
    for run_spread, rest in SPREADS:
        for n_runs in RUNS:
            mean, difference = coverage(n_runs, run_spread, rest, **sizes)
            rows.append(
                {"runs": n_runs, "run_spread": run_spread, "rest": rest, "mean": mean, "difference": difference}
            )
    few = []
    for shape in SHAPES:
        for n_tasks in FEW:
            mean, difference = coverage(1, 0.0, 2.0, n_tasks=n_tasks, shape=shape, **sizes)
            few.append({"tasks": n_tasks, "returns": shape, "mean": mean, "difference": difference})
    spread = f"sd {TASK_SPREAD:g}"
    console = Console()
    columns = ["runs", "sd of runs", "sd of run x task", "mean", "paired difference"]
    console.print(Table(columns, _cells(rows), f"Coverage of 95% intervals, {N_TASKS} tasks of {spread}", []))
    columns = ["tasks", "returns", "mean", "paired difference"]
    console.print(Table(columns, _cells(few), f"Coverage of 95% intervals, one run, tasks of {spread}", []))
    if args.output is not None:
        command = f"python -m benchmarks.coverage --trials {args.trials} --resamples {args.resamples}"
        write_record(args.output, {"command": command, **circumstances(), "rows": rows, "few_tasks": few})


def _cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[value if isinstance(value, str) else f"{value:g}" for value in row.values()] for row in rows]


if __name__ == "__main__":
    main()
