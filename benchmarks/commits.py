"""What users wait for, of another commit and of this tree in turn: ``python -m benchmarks.commits COMMIT [-n ROUNDS]``.

Everything is measured from outside, through the command line: any two commits that have it can be compared. Each side
is a process of its own in a tree of its own, A B A B; the first round does not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks.measure import Row, circumstances
from benchmarks.speed import table
from metarl.files.writing import write_text_atomic

ROOT = Path(__file__).parents[1]
PHASES = ("time/sampling", "time/inner", "time/outer")
"""Columns of ``progress.csv`` that are the time of a meta-iteration together."""


class Case(NamedTuple):
    """A command.

    :param words: what follows ``python -m metarl.zoo``.
    :param start: the shipped initialisation that training starts at.
    :param trains: whether it trains: then meta-iterations are timed, otherwise the whole command.
    """

    words: Sequence[str]
    start: str | None = None
    trains: bool = True


def _train(algo: str, env: str, n_timesteps: int, start: str | None = None) -> Case:
    words = ["train", "--algo", algo, "--env", env, "-n", str(n_timesteps), "--seed", "0"]
    return Case([*words, "--eval-freq", "-1", "--n-eval-tasks", "1"], start)


CASES = {
    "list": Case(["list"], trains=False),
    "list envs": Case(["list", "envs"], trains=False),
    "fomaml PointMass-v0": _train("fomaml", "PointMass-v0", 900_000),
    "fomaml PointMass-v0, trained": _train("fomaml", "PointMass-v0", 900_000, "fomaml/PointMass-v0.safetensors"),
    "maml PointMass-v0": _train("maml", "PointMass-v0", 900_000),
    "fomaml AntVel-v0": _train("fomaml", "AntVel-v0", 600_000),
}
QUICK = ["--num-threads", "1", "-params", "meta_batch_size:2", "n_episodes:2"]


def measure(tree: Path, case: Case, quick: bool) -> dict[str, float]:
    """Run a command in a process that imports the metarl of a tree; return seconds and megabytes."""
    with tempfile.TemporaryDirectory() as logs:
        words = list(case.words)
        if case.trains:
            words += ["-f", logs, *(["-n", "1", *QUICK] if quick else [])]
        if case.start is not None:
            words += ["-i", str(tree / "metarl" / "zoo" / "trained" / case.start)]
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "metarl.zoo", *words]
        started = time.perf_counter()
        with subprocess.Popen(command, cwd=logs, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            first_line = time.perf_counter() - started
            process.stdout.read()
            # Not Popen's own: this one says what the process has used.
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        whole = time.perf_counter() - started
        if process.returncode or not first:
            raise RuntimeError(f"{' '.join(command)} in {tree}: exit code {process.returncode}")
        result = {"first_line_s": first_line, "peak_mb": used.ru_maxrss / 1000.0}
        if not case.trains:
            return {**result, "command_s": whole}
        (progress,) = Path(logs).glob("*/*/progress.csv")
        with progress.open(encoding="utf-8", newline="") as file:
            times = [sum(float(row[phase]) for phase in PHASES) for row in csv.DictReader(file)]
        return {**result, "iteration_s": statistics.mean(times[1:] or times)}


def compare(old: Path, new: Path, rounds: int, quick: bool, names: Sequence[str]) -> list[Row]:
    """Return a line for each case and quantity: medians of both trees, and of the ratios of each round."""
    rows: list[Row] = []
    for name in names:
        sides: dict[Path, list[dict[str, float]]] = {old: [], new: []}
        for turn in range(rounds + 1):
            for tree, found in sides.items():
                values = measure(tree, CASES[name], quick)
                if turn or quick:
                    found.append(values)
        for key in sides[old][0]:
            before, after = ([values[key] for values in sides[tree]] for tree in (old, new))
            ratios = [b / a for a, b in zip(before, after, strict=True)]
            rows.append(
                {
                    "case": f"{name}: {key.replace('_', ' ')}",
                    "before": statistics.median(before),
                    "after": statistics.median(after),
                    "ratio": statistics.median(ratios),
                    "ratio_range": (min(ratios), max(ratios)),
                }
            )
    return rows


def _resolve(commit: str) -> str:
    done = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commit", help="the other side")
    parser.add_argument("-n", "--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("-o", "--output", type=Path, help="write the record here, as JSON")
    options = parser.parse_args(arguments)
    commit = _resolve(options.commit)
    folder = Path(tempfile.mkdtemp())
    try:
        other = folder / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), commit], check=True)
        try:
            rows = compare(other, ROOT, 1 if options.quick else options.rounds, options.quick, options.only)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(
        table("commits", f"{commit[:9]} before, this tree after; each round's ratio is after to before", rows)
    )
    record: Mapping[str, object] = {"before": commit, **circumstances(), "rounds": options.rounds, "rows": rows}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
