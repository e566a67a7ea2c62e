"""Collecting by number of copies: ``python -m benchmarks.copies [FAMILY ...] [--quick] [-o FILE]``.

A family with its policy, rewards, masks and storage, beside EnvPool with the same policy and beside MuJoCo alone, in
env steps per second, in turn and in one process. EnvPool is optional (``pip install envpool``), and so is every other
side: a family that has no such peer stands alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console

from benchmarks.collecting import Replay
from benchmarks.measure import SEED, Row, Timing, circumstances, interleave, paired_ratio
from benchmarks.problems import RELU_100, collector, stacked
from benchmarks.speed import table
from metarl.agents.networks.distributions import draw_noise
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel, available_cores
from metarl.agents.sampling.episodes import Episodes, split_streams
from metarl.envs.mujoco.physics import MujocoFamily
from metarl.envs.registry import make_family
from metarl.files.writing import write_text_atomic
from metarl.streams import seed_sequence, stream

COPIES = (4, 16, 64, 256)
HORIZON = 200
TALL = {"min_z": -1e6, "max_z": 1e6}
"""Ants that do not fall: as many env steps on all sides."""
SAME_ROBOT: dict[str, dict[str, Any]] = {
    "HalfCheetahVel-v0": {"lineage": "gymnasium"},
    "HalfCheetahDir-v0": {"lineage": "gymnasium"},
    "AntVel-v0": {"lineage": "gymnasium", **TALL},
    "AntDir-v0": {"lineage": "gymnasium", **TALL},
}
"""The arguments that make a family Gymnasium's robot, which EnvPool has; other families have their own defaults."""
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "HalfCheetahVel-v0": ("HalfCheetah-v5", {}),
    "HalfCheetahDir-v0": ("HalfCheetah-v5", {}),
    "AntVel-v0": ("Ant-v5", {"terminate_when_unhealthy": False}),
    "AntDir-v0": ("Ant-v5", {"terminate_when_unhealthy": False}),
}
"""EnvPool's environment with the same robot, and its arguments."""
HIDDEN_POSITIONS = {"HalfCheetah": 1, "Ant": 2}
"""Positions that Gymnasium's robots do not show."""


class PooledRollouts:
    """EnvPool with the same policy, which keeps what it sees, does and earns.

    :param envpool: the module.
    :param peer: its environment and arguments.
    :param n_envs: copies.
    """

    def __init__(self, envpool: Any, peer: tuple[str, dict[str, Any]], n_envs: int) -> None:
        name, arguments = peer
        threads = min(available_cores(), n_envs)
        self._envs = envpool.make_gymnasium(name, num_envs=n_envs, num_threads=threads, seed=SEED, **arguments)
        obs, _ = self._envs.reset()
        seen, taken = obs.shape[1:], self._envs.action_space.shape
        self._space = spaces.Box(-1.0, 1.0, taken, np.float32)
        policy = FunctionalPolicy("MlpPolicy", spaces.Box(-np.inf, np.inf, seen, np.float32), self._space, RELU_100)
        self._act = policy.actor(stacked(policy, 1))
        self._rng = stream(SEED, "noise")
        self._obs = np.empty((HORIZON, n_envs, *seen), np.float32)
        self._actions = np.empty((HORIZON, n_envs, *taken), np.float32)
        self._rewards = np.empty((HORIZON, n_envs))
        self._mask = np.empty((HORIZON, n_envs), bool)

    def __call__(self, horizon: int) -> None:
        """Collect an episode of ``horizon`` env steps in each copy."""
        obs, _ = self._envs.reset()
        noise = draw_noise(self._space, self._rng, (horizon, 1, len(obs)))
        with torch.inference_mode():
            for t in range(horizon):
                self._obs[t] = obs
                seen = torch.from_numpy(self._obs[t][None])
                self._actions[t] = self._act(seen, torch.from_numpy(noise[t])).numpy()[0]
                controls = np.clip(self._actions[t], -1.0, 1.0).astype(np.float64)
                obs, reward, ended, cut, _ = self._envs.step(controls)
                self._rewards[t], self._mask[t] = reward, ended | cut


def compare(id: str, n_tasks: int, n_envs: int, horizon: int, rounds: int, envpool: Any) -> Row:
    """Return the row of one family and one number of copies.

    :param envpool: the module, None without it.
    """
    arguments = SAME_ROBOT.get(id, {})
    family = make_family(id, **arguments, **({"horizon": horizon} if arguments else {}))
    parallel = Parallel()
    run = collector(family, n_tasks, n_envs, parallel)
    episodes = run()
    steps = {"family": episodes.n_steps}
    sides: dict[str, Callable[[], Any]] = {"family": run}
    limit = None
    if id in PEERS and isinstance(family, MujocoFamily):
        limit = sides["limit"] = replay(family, n_tasks, n_envs, episodes)
        steps["limit"] = episodes.n_steps
        if envpool is not None:
            pooled = PooledRollouts(envpool, PEERS[id], n_tasks * n_envs)
            sides["envpool"] = lambda: pooled(horizon)
            steps["envpool"] = n_tasks * n_envs * horizon
    timings = interleave(sides, rounds)
    parallel.close()
    family.close()
    row: Row = {"case": f"{id}, {n_tasks} x {n_envs} copies", "copies": n_tasks * n_envs}
    for side, timing in timings.items():
        row[f"{side}_env_steps_per_s"] = steps[side] / timing.seconds
        row[f"{side}_best_env_steps_per_s"] = steps[side] / min(timing.wall)
    for side in list(timings)[1:]:
        row.update(_ratio(side, timings, steps))
    if limit is not None:
        row["replayed_bit_for_bit"] = limit.exact
        limit.close()
    return row


def replay(family: MujocoFamily, n_tasks: int, n_envs: int, episodes: Episodes) -> Replay:
    """Return MuJoCo alone on the initial states and controls of what :func:`collector` collected."""
    tasks = family.sample_tasks(stream(SEED, "tasks"), n_tasks)
    streams = [split_streams(seed_sequence(SEED, "benchmark", task))[0] for task in range(n_tasks)]
    state, _ = family.reset(tasks, streams, n_envs)
    hidden = next(n for robot, n in HIDDEN_POSITIONS.items() if family.id.startswith(robot))
    initial = state["physics"].reshape(n_tasks * n_envs, -1)
    return Replay(family, family.model.step, episodes, initial, hidden)


def _ratio(side: str, timings: dict[str, Timing], steps: dict[str, int]) -> Row:
    """Return how many times as many env steps per second the family takes."""
    ours, theirs = timings["family"], timings[side]
    work = steps["family"] / steps[side]
    middle, low, high = (work * value for value in paired_ratio(theirs, ours))
    return {
        f"family/{side}": middle,
        f"family/{side}_range": [low, high],
        f"family/{side}_best": work * min(theirs.wall) / min(ours.wall),
        f"family/{side}_of_cpu_time": work * theirs.cpu_seconds / ours.cpu_seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", default=["HalfCheetahVel-v0", "AntVel-v0"], metavar="FAMILY")
    parser.add_argument("--copies", type=int, nargs="+", default=COPIES, help="how many, all tasks together")
    parser.add_argument("--tasks", type=int, default=1, help="tasks that the copies are shared between")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("-o", "--output", type=Path, help="write the record here, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        envpool = import_module("envpool")
    except ImportError:
        envpool = None
    rows = []
    for id in options.families:
        for copies in (4,) if options.quick else options.copies:
            # Few copies are quick, and what interrupts them weighs more: they take more turns.
            rounds = 2 if options.quick else math.ceil(40 / copies) + 5
            n_tasks = min(options.tasks, copies)
            horizon = 10 if options.quick else HORIZON
            rows.append(compare(id, n_tasks, copies // n_tasks, horizon, rounds, envpool))
    given = sys.argv[1:] if arguments is None else arguments
    record = {
        "command": " ".join(["python -m benchmarks.copies", *given]).split(" -o ")[0],
        **circumstances(),
        "envpool": getattr(envpool, "__version__", None),
        "rows": rows,
    }
    Console(width=None if Console().is_terminal else 140).print(table("copies", "env steps by number of copies", rows))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
