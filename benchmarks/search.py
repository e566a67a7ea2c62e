"""Search records: what was tried for the shipped hyperparameters, and what validation tasks returned.

Trials are ordinary runs with other values, such as ``train --algo reptile --env HalfCheetahVel-v0 -n 8_000_000
--eval-freq 8_000_000 -f tune -params inner_lr:0.1``. A record keeps the rows that it has: trials may be of another day.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarl.files.writing import read_npz, write_text_atomic
from metarl.zoo.config import HYPERPARAMS
from metarl.zoo.runs.folder import Run, list_runs

SETTINGS = ("learner", "inner_lr", "n_inner_steps", "meta_batch_size", "n_episodes", "outer", "outer_kwargs")
"""Hyperparameters that every row has."""
OTHER = "other"
"""Holds all the others, whatever the YAML beside the record says today."""
N_STEPS = 3
RETURNS = tuple(f"return_{k}" for k in range(N_STEPS + 1))
COLUMNS = ("env", *SETTINGS, OTHER, "n_timesteps", "seed", "env_steps", "validation_tasks", *RETURNS)
NOT_SEARCHED = ("n_timesteps", "env_kwargs")
"""Hyperparameters that say how long and on what."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="log folders of the trials")
    parser.add_argument("-o", "--output", type=Path, default=HYPERPARAMS, metavar="FOLDER", help="where records go")
    args = parser.parse_args(arguments)
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder in args.folders:
        for run in list_runs(folder):
            rows.setdefault(run.algo, []).extend(trial_rows(run))
    for algo, found in rows.items():
        if not found:
            continue
        path = args.output / f"{algo}_search.csv"
        former = read(path) if path.is_file() else []
        text = table([*former, *found])
        write_text_atomic(path, text)
        print(f"{path}: {len(text.splitlines()) - 1} rows, {len(former)} before")


def trial_rows(run: Run) -> list[dict[str, Any]]:
    """Return a row for each evaluation of a run: the mean returns of validation tasks after 0 to 3 inner steps."""
    path = run.folder / "meta_evaluations.npz"
    config = run.config()
    if not path.is_file() or config.get("env_kwargs"):
        return []
    other = {name: value for name, value in sorted(config.items()) if name not in (*SETTINGS, *NOT_SEARCHED)}
    settings = {name: as_text(config.get(name)) for name in SETTINGS} | {OTHER: as_text(other)}
    evaluations = read_npz(path)
    rows = []
    for steps, before, after in zip(evaluations["timesteps"], evaluations["pre"], evaluations["post"], strict=True):
        returns = [before.mean(), *after.mean(-1)]
        row = {"env": run.env_id, **settings, "n_timesteps": config["n_timesteps"], "seed": run.args()["seed"]}
        row |= {"env_steps": int(steps), "validation_tasks": len(before)}
        rows.append(row | {name: f"{value:.1f}" for name, value in zip(RETURNS, returns, strict=False)})
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a record."""
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise SystemExit(f"{path} is no search record: its columns are not {', '.join(COLUMNS)}")
    return list(reader)


def as_text(value: Any) -> str:
    """Return a hyperparameter as it stands in a record."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV, those of one environment and setting one after another, and every one once.

    Of a trial that was made again on another machine, where last bits differ, both are there.
    """
    distinct = {tuple(str(row.get(name, "")) for name in COLUMNS) for row in rows}
    numbers = [COLUMNS.index(name) for name in ("n_timesteps", "seed", "env_steps")]
    ordered = sorted(distinct, key=lambda row: (*row[: numbers[0]], *(int(row[i]) for i in numbers), row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([COLUMNS, *ordered])
    return out.getvalue()


if __name__ == "__main__":
    main()
