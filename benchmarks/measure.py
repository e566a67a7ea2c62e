"""Timing sides in turn, and what a record says about where it was made."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metarl.agents.parallel import available_cores
from metarl.meta.documents import versions
from metarl.streams import stream

Row = dict[str, Any]
"""One line of a table: ``case``, then numbers and texts by name."""

SEED = 0
"""Every stream of a benchmark starts here."""


@dataclass
class Timing:
    """Wall and processor time of the repetitions of one side, s."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median processor time, all threads together."""
        return statistics.median(self.cpu)


def interleave(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """Time every side ``rounds`` times in turn (A B A B …), after ``warm_up`` rounds that do not count.

    Whatever else the machine does then falls on all sides alike.
    """
    timings = {name: Timing() for name in sides}
    for turn in range(warm_up + rounds):
        for name, side in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= warm_up:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def paired_ratio(above: Timing, below: Timing) -> tuple[float, float, float]:
    """Return the median, least and greatest ratio of wall times over the rounds."""
    ratios = [a / b for a, b in zip(above.wall, below.wall, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def median_interval(above: Timing, below: Timing) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the median ratio over the rounds: how far scatter can have moved it."""
    ratios = np.array(above.wall) / np.array(below.wall)
    draws = stream(SEED, "bootstrap").choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def judged(ratio: float, target: float, *, at_least: bool) -> Row:
    """Return the columns that compare a ratio with its target."""
    met = ratio >= target if at_least else ratio <= target
    return {"ratio": ratio, "target": f"{'≥' if at_least else '≤'} {target:g}", "met": met}


def against_loop(
    case: str,
    target: float,
    rounds: int,
    iterations: int,
    model: Any,
    loop: Any,
    apart: Callable[[], Row],
) -> Row:
    """Return the row that compares training with a plain loop over tasks, which take turns.

    :param iterations: meta-iterations of each in a round.
    :param model: a meta-algorithm.
    :param loop: what its training is compared with; ``iterate()`` is a meta-iteration.
    :param apart: how far apart they are when all rounds are over, as columns of the row.
    """

    def ours() -> None:
        model.learn(iterations * model.steps_per_iteration, log_interval=None)

    def plain() -> None:
        for _ in range(iterations):
            loop.iterate()

    timings = interleave({"plain": plain, "ours": ours}, rounds)
    ratio, least, greatest = paired_ratio(timings["plain"], timings["ours"])
    return {
        "case": case,
        "rounds": rounds,
        "plain_iterations_a_second": iterations / timings["plain"].seconds,
        "iterations_a_second": iterations / timings["ours"].seconds,
        **judged(ratio, target, at_least=True),
        "ratio_interval": list(median_interval(timings["plain"], timings["ours"])),
        "ratio_range": [least, greatest],
        "ratio_of_cpu_time": timings["plain"].cpu_seconds / timings["ours"].cpu_seconds,
        **apart(),
    }


def circumstances() -> Row:
    """Return what a number depends on: commit, machine and versions; no host names, no paths."""
    return {
        "commit": _commit(),
        "machine": {"cores": available_cores(), "cpu": _cpu_model()},
        "versions": versions(),
        "threads": available_cores(),
        "torch_threads_in_an_operator": 1,
        "seed": SEED,
    }


def _commit() -> str:
    """Return the commit, with ``+`` where the working tree differs from it."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/metarl", ":/benchmarks")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
