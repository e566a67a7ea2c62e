"""What it is worth to see one's legs: ``python -m benchmarks.ant_leg TOLD BLIND -o FILE``.

TOLD is a run of ``oracle`` on AntLeg-v0, BLIND the same run of ``pretrain``: folders, or their ``.safetensors``. Both
act by their modes on a grid of lengths over the whole square, on held-out tasks and on the corners of the square, from
the same starts. The record has the return by leg length, and the paired advantage with its interval by task, beside the
share of the blind policy's return that it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import metarl
from benchmarks.measure import circumstances
from metarl.envs.family import Family
from metarl.envs.mujoco.ant_leg import AntLeg
from metarl.envs.tasks import Tasks, n_tasks
from metarl.envs.views.oracle import Oracle
from metarl.errors import ConfigError
from metarl.meta.evaluation.statistics import bootstrap_interval, paired_interval
from metarl.streams import stream

ENOUGH = 0.1
"""The share of the blind policy's return from which on lengths are worth knowing."""


def grid(family: AntLeg, n: int) -> Tasks:
    """Return ``n`` times ``n`` tasks over the square, ankles first."""
    space: Any = family.task_space["ankle"]
    lengths = np.linspace(float(np.min(space.low)), float(np.max(space.high)), n)
    upper, ankle = (values.ravel() for values in np.meshgrid(lengths, lengths))
    shape = (n * n, *space.shape)
    return {
        name: np.broadcast_to(values.reshape(-1, *[1] * len(space.shape)), shape).copy()
        for name, values in (("upper_leg", upper), ("ankle", ankle))
    }


def returns(model: Any, family: Family, tasks: Tasks, n_episodes: int) -> np.ndarray:
    """Return the mean undiscounted returns of whole episodes by the policy's mode, ``[task]``."""
    n = n_tasks(tasks)
    rngs = [stream(0, "ant_leg", task) for task in range(n)]
    state, obs = family.reset(tasks, rngs, n_episodes)
    active, total = np.ones((n, n_episodes), dtype=bool), np.zeros((n, n_episodes))
    for _ in range(family.horizon):
        actions, _ = model.predict(obs.reshape(n * n_episodes, -1), deterministic=True)
        step = family.step(tasks, state, actions.reshape(n, n_episodes, -1), rngs, active)
        total += np.where(active, step.reward, 0.0)
        active &= ~step.terminated
        state, obs = step.state, step.obs
        if not active.any():
            break
    return np.asarray(total.mean(axis=1))


def compare(told: Any, blind: Any, n_grid: int, n_held_out: int, n_episodes: int) -> dict[str, Any]:
    """Return the record of two models."""
    if not isinstance(told.family, Oracle) or not isinstance(told.family.family, AntLeg):
        raise ConfigError("TOLD is a run of `oracle` on AntLeg-v0")
    if not isinstance(blind.family, AntLeg) or blind.family.constants != told.family.family.constants:
        raise ConfigError("BLIND is a run of `pretrain` on AntLeg-v0 with the arguments of TOLD")
    family = blind.family
    parts = {"grid": grid(family, n_grid), "test": family.tasks("test", n_held_out)}
    if family.shifted_space is not None:
        parts["shifted"] = family.tasks("shifted", n_held_out)
    record: dict[str, Any] = {"env": family.id, "constants": vars(family.constants), "n_episodes": n_episodes}
    for name, model in (("told", told), ("blind", blind)):
        record[name] = {
            "algo": model.name,
            "learner": model.learner,
            "seed": model.seed,
            "env_steps": model.num_timesteps,
        }
    for part, tasks in parts.items():
        a, b = (returns(model, model.family, tasks, n_episodes) for model in (told, blind))
        advantage = paired_interval(a[None], b[None])
        record[part] = {
            "tasks": {name: value.tolist() for name, value in tasks.items()},
            "told": {"return": bootstrap_interval(a[None])._asdict(), "by_task": a.tolist()},
            "blind": {"return": bootstrap_interval(b[None])._asdict(), "by_task": b.tolist()},
            "advantage": {**advantage._asdict(), "share": advantage.mean / abs(float(b.mean()))},
        }
    return record


def table(record: dict[str, Any], name: str) -> str:
    """Return the returns of one policy on the grid, a row for each length of the ankle."""
    tasks = record["grid"]["tasks"]
    lengths = sorted({float(np.min(value)) for value in tasks["ankle"]})
    rows = np.array(record["grid"][name]["by_task"]).reshape(len(lengths), len(lengths))
    head = f"{name}: ankle down, upper leg across".ljust(40)
    lines = [head + "".join(f"{length:8.2f}" for length in lengths)]
    lines += [
        f"{length:40.2f}" + "".join(f"{value:8.1f}" for value in row) for length, row in zip(lengths, rows, strict=True)
    ]
    return "\n".join(lines)


def summary(record: dict[str, Any]) -> str:
    """Return what the record says."""
    lines = [table(record, "told"), table(record, "blind")]
    for part in ("test", "shifted"):
        if part in record:
            told, blind, advantage = (record[part][name] for name in ("told", "blind", "advantage"))
            low, high = advantage["low"], advantage["high"]
            lines.append(
                f"{part}: told {told['return']['mean']:.1f}, blind {blind['return']['mean']:.1f}, paired advantage "
                f"{advantage['mean']:.1f} [{low:.1f}, {high:.1f}], {advantage['share']:.0%} of the blind return"
            )
    share = record["test"]["advantage"]["share"]
    verdict = "worth knowing" if share >= ENOUGH else f"worth less than {ENOUGH:.0%}: try wider lengths too"
    return "\n".join([*lines, f"leg lengths are {verdict}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ant_leg", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("told", help="a run of oracle")
    parser.add_argument("blind", help="the same run of pretrain")
    parser.add_argument("--grid", type=int, default=9, help="lengths on each side of the square")
    parser.add_argument("--n-held-out", type=int, default=40, help="tasks of each split")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    told, blind = (metarl.load(_file(path)) for path in (options.told, options.blind))
    record = compare(told, blind, options.grid, options.n_held_out, options.episodes)
    print(summary(record))
    whole = {"command": "python -m benchmarks.ant_leg", **circumstances(), **record}
    options.output.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _file(path: str) -> Path:
    """Return the model of a run folder, or the file itself."""
    folder = Path(path)
    return folder / "checkpoint.safetensors" if folder.is_dir() else folder


if __name__ == "__main__":
    main()
