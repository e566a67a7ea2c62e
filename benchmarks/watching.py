"""What Leap's watching adds to inner learning: ``python -m benchmarks.watching [--only NAME ...] [--quick] [-o FILE]``.

The same update, from the same parameters on the same batch, with a watcher and without, in turn. Only updates are
timed: collecting is the same on both sides. It never fails over a number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from stable_baselines3.common.logger import Logger

from benchmarks.measure import SEED, Row, circumstances, interleave, judged, paired_ratio
from benchmarks.problems import RELU_100, TANH_64, random_episodes, stacked
from benchmarks.speed import table
from metarl.agents.a2c import A2C
from metarl.agents.learner import Learner
from metarl.agents.parallel import Parallel
from metarl.agents.policy import FunctionalPolicy, Params
from metarl.agents.ppo import PPO
from metarl.agents.sb3 import SB3Learner
from metarl.agents.sb3_reuse import Path as SB3Path
from metarl.agents.sb3_reuse import find_optimizers, load_initialisation, named_parameters, read_initialisation
from metarl.agents.vpg import VPG
from metarl.checkpoint import write_text_atomic
from metarl.envs.family import Family, State, Step, Tasks, make_family
from metarl.envs.vec_env import FamilyVecEnv
from metarl.meta.watchers import LeapMetric, LeapWatcher
from metarl.streams import seed_sequence, stream

TARGET = 1.05
"""The most that an update may take while it is watched, as a multiple of the time without."""
N_UPDATES = 3
"""Updates in a path of the batched learners, so that segments wait for the loss at their end, as they do in Leap."""

Learning = Callable[[LeapWatcher | None], Params]
"""Learns, with a watcher or without, and returns the parameters reached."""


class Images(Family):
    """A bright square in one quarter of a noisy image; pointing at it, turned by ``shift`` quarters, pays 1.

    :param size: height and width, pixels.
    """

    id = "Images-v0"

    def __init__(self, size: int) -> None:
        self.task_space = spaces.Dict({"shift": spaces.Discrete(4)})
        self.observation_space = spaces.Box(0, 255, (size, size, 4), np.uint8)
        self.action_space: spaces.Space[Any] = spaces.Discrete(4)
        self.horizon = 16
        self.size = size

    def reset(self, tasks: Tasks, rngs: Sequence[np.random.Generator], n_envs: int) -> tuple[State, np.ndarray]:
        state = {"quarter": np.stack([rng.integers(4, size=n_envs) for rng in rngs])}
        return state, self._observe(state, rngs)

    def step(
        self,
        tasks: Tasks,
        state: State,
        actions: np.ndarray,
        rngs: Sequence[np.random.Generator],
        active: np.ndarray | None = None,
    ) -> Step:
        reward = (actions == (state["quarter"] + tasks["shift"][:, None]) % 4).astype(np.float64)
        state, obs = self.reset(tasks, rngs, actions.shape[1])
        return Step(state, obs, reward, np.zeros(reward.shape, dtype=bool), {"reward": reward})

    def _observe(self, state: State, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        quarter, half = state["quarter"], self.size // 2
        shape = (quarter.shape[1], *self.observation_space.shape)
        obs = np.stack([rng.integers(0, 128, shape, dtype=np.uint8) for rng in rngs])
        for index in np.ndindex(quarter.shape):
            top, left = (half * part for part in divmod(int(quarter[index]), 2))
            obs[index][top : top + half, left : left + half] += 127
        return obs


# --------------------------------------------------------------------------------------------------------------- sides
def batched(name: str, quick: bool, parallel: Parallel) -> tuple[str, int, Learning]:
    """Return what is learnt, its steps, and the learning: a learner that is batched over tasks, on one batch."""
    size = (4, 2, 16, 3, 2) if quick else (16, 8, 200, 20, 6) if name == "PPO" else (40, 20, 100, 2, 2)
    n_tasks, n_episodes, horizon, obs_size, action_size = size
    box, action = spaces.Box(-np.inf, np.inf, (obs_size,), np.float32), spaces.Box(-1.0, 1.0, (action_size,))
    policy = FunctionalPolicy("MlpPolicy", box, action, RELU_100 if name == "VPG" else TANH_64, critic=name != "VPG")
    learner: Learner
    n_steps = N_UPDATES
    if name == "PPO":
        learner = PPO(policy, n_epochs=2, parallel=parallel)
        n_steps *= learner.n_epochs * -(-n_episodes * horizon // learner.batch_size)
    else:
        learner = (VPG if name == "VPG" else A2C)(policy, parallel=parallel)
    start = stacked(policy, n_tasks)
    samples = learner.process(random_episodes(stream(SEED, "batch"), *size), start)
    rate = 0.1 if name == "VPG" else 3e-4

    def learn(watcher: LeapWatcher | None) -> Params:
        state = learner.start(start)
        for k in range(N_UPDATES):
            seeds = [seed_sequence(SEED, "order", k, task) for task in range(n_tasks)]
            state = learner.update(state, samples, rate, seeds, watcher)
        return state.params

    return f"{name}, {n_tasks} x {n_episodes} x {horizon}", n_steps, learn


def stock(policy: str, quick: bool) -> tuple[str, int, Learning]:
    """Return what is learnt, its steps, and the learning: the ``train()`` of SB3's PPO on one rollout."""
    family: Family
    if policy == "CnnPolicy":
        family, options = Images(36 if quick else 84), {"n_steps": 16 if quick else 256, "n_epochs": 10}
        case = f"SB3 PPO, NatureCNN, {family.size} x {family.size} x 4"
    else:
        family, options = make_family("HalfCheetahVel-v0", horizon=16 if quick else 200), {"n_epochs": 10}
        options["n_steps"] = 64 if quick else 2048
        case = f"SB3 PPO, 64-64, {family.id}"
    learner = SB3Learner(family, "ppo", policy, batch_size=16 if quick else 64, **options)
    task = family.sample_tasks(stream(SEED, "tasks"), 1)
    model = learner.build(FamilyVecEnv(family, task, seed=SEED), SEED)
    model.set_logger(Logger(folder=None, output_formats=[]))
    start = read_initialisation(model)
    model.learn(options["n_steps"])
    (optimizer,) = optimizers = find_optimizers(model)

    def learn(watcher: LeapWatcher | None) -> Params:
        load_initialisation(model, start)
        optimizer.state.clear()
        np.random.seed(SEED)  # noqa: NPY002  (SB3 draws minibatches from it)
        if watcher is None:
            model.train()
        else:
            with SB3Path(named_parameters(model), optimizers, watcher) as path:
                model.train()
                path.moved()
        return read_initialisation(model)

    return case, options["n_epochs"] * options["n_steps"] // (16 if quick else 64), learn


def compare(case: str, n_steps: int, learn: Learning, rounds: int) -> Row:
    """Return the row of one kind of learning."""
    reached: dict[str, Params] = {}

    def plain() -> None:
        reached["plain"] = learn(None)

    def watched() -> None:
        watcher = LeapWatcher(LeapMetric())
        reached["watched"] = learn(watcher)
        watcher.close()

    timings = interleave({"watched": watched, "plain": plain}, rounds)
    ratio, least, greatest = paired_ratio(timings["watched"], timings["plain"])
    seconds = {name: timing.cpu_seconds for name, timing in timings.items()}
    return {
        "case": case,
        "steps": n_steps,
        "ms_a_step": 1e3 * timings["plain"].seconds / n_steps,
        "watched_ms_a_step": 1e3 * timings["watched"].seconds / n_steps,
        **judged(ratio, TARGET, at_least=False),
        "ratio_range": [least, greatest],
        "ratio_of_cpu_time": seconds["watched"] / seconds["plain"],
        "cpu_us_a_watched_step": 1e6 * (seconds["watched"] - seconds["plain"]) / n_steps,
        "same_bit_for_bit": all(torch.equal(t, reached["plain"][n]) for n, t in reached["watched"].items()),
    }


CASES: dict[str, tuple[int, Callable[[bool, Parallel], tuple[str, int, Learning]]]] = {
    "vpg": (20, lambda quick, parallel: batched("VPG", quick, parallel)),
    "a2c": (20, lambda quick, parallel: batched("A2C", quick, parallel)),
    "ppo": (20, lambda quick, parallel: batched("PPO", quick, parallel)),
    "sb3_ppo": (20, lambda quick, parallel: stock("MlpPolicy", quick)),
    "sb3_ppo_cnn": (20, lambda quick, parallel: stock("CnnPolicy", quick)),
}
"""How many rounds, and what is learnt."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("-o", "--output", type=Path, help="write the record here, as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parallel = Parallel()
    rows: list[Row] = []
    for name in options.only or CASES:
        rounds, make = CASES[name]
        rows.append(compare(*make(options.quick, parallel), rounds=1 if options.quick else rounds))
    parallel.close()
    words = ["python -m benchmarks.watching", *(["--only", *options.only] if options.only else [])]
    record: dict[str, Any] = {"command": " ".join(words + ["--quick"] * options.quick), **circumstances(), "rows": rows}
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table("watching", "inner learning that Leap watches, against the same without", rows))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(options.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
