"""Collecting by number of copies: ``python -m benchmarks.copies [FAMILY ...] [--quick] [-o FILE]``.

A family with its policy, rewards, masks and storage, beside MuJoCo alone (one ``mujoco.rollout`` of all steps on as
many threads) and beside EnvPool, alone and with the same policy, in env steps per second, in turn and in one process.
Of AntLeg every copy has legs, and a model, of its own. Maze stands beside a plain loop over one environment. With
``--expert`` the expert of ``AntLeg-v0`` acts on 100 different Ants, beside MuJoCo alone with these models and controls.

EnvPool is optional (``pip install envpool``), and so is every other side: a family without a peer stands alone.
Games are in ``benchmarks.atari``; environments of Gymnasium run one by one, in a Python loop of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces

from benchmarks.collecting import Replay
from benchmarks.measure import SEED, Row, Timing, circumstances, interleave, paired_ratio
from benchmarks.problems import RELU_100, collector, make_policy, stacked
from metarl.agents.networks.distributions import draw_noise
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel, available_cores
from metarl.agents.sampling.episodes import Episodes, split_streams
from metarl.agents.sampling.one_env import collect_env
from metarl.envs.family import Family
from metarl.envs.imitation.ant_leg import SHIPPED
from metarl.envs.imitation.demonstrations import Demonstrations, Pairs, Show, expert_streams
from metarl.envs.imitation.network import NetworkExpert
from metarl.envs.mujoco.physics import MujocoFamily
from metarl.envs.registry import make_family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.files.writing import write_text_atomic
from metarl.streams import seed_sequence, stream

COPIES = (4, 16, 64, 256)
HORIZON = 200
FAMILIES = ["HalfCheetahVel-v0", "AntVel-v0", "AntLeg-v0", "Maze-v0"]
N_ANTS = 100
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
OWN_LEGS = {"AntLeg-v0": TALL}
"""Families in which every copy is a task with a model of its own."""
LOOPS = ("Maze-v0",)
"""Families that stand beside a plain loop over one environment."""
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

    def alone(self, horizon: int) -> None:
        """Take ``horizon`` env steps in each copy without a policy: with the same actions, drawn before."""
        self._envs.reset()
        for t in range(horizon):
            self._envs.step(np.clip(self._actions[t], -1.0, 1.0).astype(np.float64))

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
    arguments = {**SAME_ROBOT.get(id, {}), **OWN_LEGS.get(id, {})}
    family = make_family(id, **arguments, **({"horizon": horizon} if arguments else {}))
    if id in OWN_LEGS:
        n_tasks, n_envs = n_tasks * n_envs, 1
    parallel = Parallel()
    run = collector(family, n_tasks, n_envs, parallel)
    episodes = run()
    steps = {"family": episodes.n_steps}
    sides: dict[str, Callable[[], Any]] = {"family": run}
    limit = None
    if id in LOOPS:
        loop, steps["loop"] = plain_loop(family)
        sides["loop"] = loop
    if (id in PEERS or id in OWN_LEGS) and isinstance(family, MujocoFamily):
        limit = sides["limit"] = replay(family, n_tasks, n_envs, episodes)
        steps["limit"] = episodes.n_steps
        if envpool is not None and id in PEERS:
            pooled = PooledRollouts(envpool, PEERS[id], n_tasks * n_envs)
            pooled(horizon)  # the actions that it takes alone
            sides["envpool"], sides["envpool_alone"] = partial(pooled, horizon), partial(pooled.alone, horizon)
            steps["envpool"] = steps["envpool_alone"] = n_tasks * n_envs * horizon
    timings = interleave(sides, rounds)
    parallel.close()
    family.close()
    case = f"{id}, {n_tasks} x {n_envs} copies"
    return _row({"case": case, "copies": n_tasks * n_envs}, timings, steps, limit)


def _row(row: Row, timings: dict[str, Timing], steps: dict[str, int], limit: Replay | None) -> Row:
    for side, timing in timings.items():
        row[f"{side}_env_steps_per_s"] = steps[side] / timing.seconds
        row[f"{side}_best_env_steps_per_s"] = steps[side] / min(timing.wall)
    for side in list(timings)[1:]:
        row.update(_ratio(side, timings, steps))
    if limit is not None:
        row["replayed_bit_for_bit"] = limit.exact
        limit.close()
    return row


def plain_loop(family: Family) -> tuple[Callable[[], Any], int]:
    """Return a function that collects one episode in one environment with the same policy, and its env steps."""
    env = SingleEnv(family, **one_task(family.sample_tasks(stream(SEED, "tasks"), 1), 0))
    policy = make_policy(family)
    params, seed = policy.init(SEED), seed_sequence(SEED, "benchmark")

    def run() -> Episodes:
        return collect_env(env, policy, params, seed, n_episodes=1)

    return run, run().n_steps


def compare_expert(n_ants: int, horizon: int, rounds: int) -> Row:
    """Return the row of the shipped expert on different Ants, as imitation lets it show what it does."""
    family = cast("MujocoFamily", make_family("AntLeg-v0", horizon=horizon))
    tasks, expert = family.sample_tasks(stream(SEED, "tasks"), n_ants), NetworkExpert(SHIPPED, family)

    def run() -> list[Pairs]:
        return Demonstrations(family, expert, Show(1, None, 0.0), None, None).of(tasks)

    shown = run()
    lengths = np.array([len(pairs.obs) for pairs in shown])

    def padded(name: str) -> np.ndarray:
        parts = [getattr(pairs, name) for pairs in shown]
        return np.stack([np.pad(part, ((0, lengths.max() - len(part)), (0, 0))) for part in parts])[:, None]

    mask = (np.arange(lengths.max()) < lengths[:, None])[:, None]
    obs, none = padded("obs"), np.zeros((n_ants, 1), dtype=bool)
    episodes = Episodes(obs, padded("actions"), np.zeros(mask.shape), mask, none, obs[:, :, -1])
    streams = expert_streams(tasks)
    state, _ = family.reset(tasks, streams, 1)
    models = [model.step for model in family.models(tasks)]
    limit = Replay(family, models, episodes, state["physics"][:, 0], HIDDEN_POSITIONS["Ant"])
    timings = interleave({"family": run, "limit": limit}, rounds)
    family.close()
    steps = dict.fromkeys(timings, int(lengths.sum()))
    return _row({"case": f"AntLeg-v0, expert, {n_ants} Ants", "copies": n_ants}, timings, steps, limit)


def replay(family: MujocoFamily, n_tasks: int, n_envs: int, episodes: Episodes) -> Replay:
    """Return MuJoCo alone on the initial states and controls of what :func:`collector` collected."""
    tasks = family.sample_tasks(stream(SEED, "tasks"), n_tasks)
    streams = [split_streams(seed_sequence(SEED, "benchmark", task))[0] for task in range(n_tasks)]
    state, _ = family.reset(tasks, streams, n_envs)
    hidden = next(n for robot, n in HIDDEN_POSITIONS.items() if family.id.startswith(robot))
    initial = state["physics"].reshape(n_tasks * n_envs, -1)
    models = [model.step for model in family.models(tasks)]
    return Replay(family, models[0] if len(models) == 1 else models, episodes, initial, hidden)


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


def summary(row: Row) -> str:
    """Return what a row says: env steps per second of each side, and how many times as many the family takes."""
    sides = [name.removesuffix("_env_steps_per_s") for name in row if name.endswith("_env_steps_per_s")]
    parts = []
    for side in sides:
        if not side.endswith("_best"):
            text = f"{side} {row[f'{side}_env_steps_per_s']:,.0f}"
            if f"family/{side}" in row:
                ratio, best, cpu = (row[f"family/{side}{what}"] for what in ("", "_best", "_of_cpu_time"))
                text += f" (family/{side} {ratio:.2f}, best turns {best:.2f}, processor time {cpu:.2f})"
            parts.append(text)
    return f"{row['case']}, env steps/s: {'; '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--copies", type=int, nargs="+", default=COPIES, help="how many, all tasks together")
    parser.add_argument("--tasks", type=int, default=1, help="tasks that the copies are shared between")
    parser.add_argument("--expert", action="store_true", help=f"an expert on {N_ANTS} different Ants, too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("-o", "--output", type=Path, help="write the record here, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        envpool = import_module("envpool")
    except ImportError:
        envpool = None
    rows, horizon = [], 10 if options.quick else HORIZON
    for id in options.families:
        for copies in (4,) if options.quick else options.copies:
            # Few copies are quick, and what interrupts them weighs more: they take more turns.
            rounds = 2 if options.quick else math.ceil(40 / copies) + 5
            n_tasks = min(options.tasks, copies)
            rows.append(compare(id, n_tasks, copies // n_tasks, horizon, rounds, envpool))
    if options.expert:
        rows.append(compare_expert(4 if options.quick else N_ANTS, horizon, 2 if options.quick else 5))
    given = sys.argv[1:] if arguments is None else arguments
    record = {
        "command": " ".join(["python -m benchmarks.copies", *given]).split(" -o ")[0],
        **circumstances(),
        "envpool": getattr(envpool, "__version__", None),
        "rows": rows,
    }
    print("\n".join(map(summary, rows)))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
