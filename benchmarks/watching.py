"""What Leap's watching adds to the updates of inner learning: ``python -m benchmarks.watching [--quick] [-o FILE]``.

A path of updates, again and again from the same parameters on the same batch, watched and not watched in turn. Nothing
is collected meanwhile: that takes the same time either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor

from benchmarks.measure import SEED, Row, interleave, judged, median_interval, paired_ratio
from benchmarks.problems import RELU_100, random_episodes, stacked
from benchmarks.single import run_single
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.stock.path import FlatStorage
from metarl.agents.stock.path import Path as SB3Path
from metarl.agents.stock.reuse import find_optimizers, load_initialisation, named_parameters, read_initialisation
from metarl.envs.registry import make_family
from metarl.envs.tasks import one_task
from metarl.envs.views.single import SingleEnv
from metarl.meta.algorithms.leap_watcher import LeapMetric, LeapWatcher
from metarl.params import Params
from metarl.streams import seed_sequence, stream

TARGET = 1.05
N_UPDATES = 3
"""Updates in a path of VPG, so that segments wait for the loss at their end, as they do in Leap."""


@dataclass(frozen=True)
class Learning:
    """One kind of inner learning.

    :param case: what is learnt by what.
    :param n_steps: steps of the optimiser in a path.
    :param n_parameters: of one task.
    :param walk: takes the path, watched or not, and returns the parameters reached.
    """

    case: str
    n_steps: int
    n_parameters: int
    walk: Callable[[LeapWatcher | None], Params]


def vpg(quick: bool, parallel: Parallel) -> Learning:
    """Return VPG, batched over tasks, on the batch of a meta-iteration on PointMass."""
    n_tasks, n_episodes, horizon = (4, 2, 16) if quick else (40, 20, 100)
    box, action = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1.0, 1.0, (2,))
    policy = FunctionalPolicy("MlpPolicy", box, action, RELU_100)
    learner = VPG(policy, parallel=parallel)
    start = stacked(policy, n_tasks)
    samples = learner.process(random_episodes(stream(SEED, "batch"), n_tasks, n_episodes, horizon, 2, 2), start)
    seeds = [seed_sequence(SEED, "order", task) for task in range(n_tasks)]

    def walk(watcher: LeapWatcher | None) -> Params:
        state = learner.start(start)
        for _ in range(N_UPDATES):
            state = learner.update(state, samples, 0.1, seeds, watcher)
        return state.params

    size = sum(tensor[0].numel() for tensor in start.values())
    return Learning(f"VPG, 100-100, {n_tasks} tasks", N_UPDATES, size, walk)


def stock(case: str, policy: str, env: gym.Env[Any, Any], n_steps: int, n_epochs: int, batch_size: int) -> Learning:
    """Return the ``train()`` of stock PPO on one rollout; a short one, so that both sides meet the same minutes."""

    def build() -> sb3.PPO:
        model = sb3.PPO(policy, env, n_steps=n_steps, n_epochs=n_epochs, batch_size=batch_size, seed=SEED, device="cpu")
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    plain, watched = build(), build()
    start = read_initialisation(plain)
    plain.learn(n_steps)
    watched.rollout_buffer = plain.rollout_buffer
    # The tensors of the other one stay where SB3 put them.
    storage = FlatStorage(named_parameters(watched))

    def walk(watcher: LeapWatcher | None) -> Params:
        model = plain if watcher is None else watched
        (optimizer,) = find_optimizers(model)
        load_initialisation(model, start)
        optimizer.state.clear()
        np.random.seed(SEED)  # noqa: NPY002  (SB3 draws minibatches from it)
        if watcher is None:
            model.train()
        else:
            with SB3Path(storage, [optimizer], watcher) as path:
                model.train()
                path.moved()
        return read_initialisation(model)

    size = sum(tensor.numel() for tensor in storage.parameters.values())
    return Learning(case, n_epochs * -(-n_steps // batch_size), size, walk)


def compare(learning: Learning, rounds: int, target: float | None = TARGET) -> Row:
    """Return the row of one kind of learning.

    :param target: the greatest ratio; None where there is no target.
    """
    reached: dict[str, Params] = {}

    def plain() -> None:
        reached["plain"] = learning.walk(None)

    def watched() -> None:
        watcher = LeapWatcher(LeapMetric())
        reached["watched"] = learning.walk(watcher)
        watcher.close()

    timings = interleave({"watched": watched, "plain": plain}, rounds)
    ratio, least, greatest = paired_ratio(timings["watched"], timings["plain"])
    cpu = {name: timing.cpu_seconds for name, timing in timings.items()}
    return {
        "case": learning.case,
        "parameters_of_a_task": learning.n_parameters,
        "steps_of_a_path": learning.n_steps,
        "rounds": rounds,
        "plain_ms_a_step": 1e3 * timings["plain"].seconds / learning.n_steps,
        "watched_ms_a_step": 1e3 * timings["watched"].seconds / learning.n_steps,
        **({"ratio": ratio} if target is None else judged(ratio, target, at_least=False)),
        "ratio_interval": list(median_interval(timings["watched"], timings["plain"])),
        "ratio_range": [least, greatest],
        "ratio_of_cpu_time": cpu["watched"] / cpu["plain"],
        "same_bit_for_bit": all(torch.equal(t, reached["plain"][n]) for n, t in reached["watched"].items()),
    }


def run(quick: bool) -> list[Row]:
    """Return a row for each kind of learning."""
    horizon, pixels, large = (16, 36, 16) if quick else (200, 84, 256)
    parallel = Parallel()
    family = make_family("HalfCheetahVel-v0", horizon=horizon, n_threads=1)
    cheetah = Monitor(SingleEnv(family, **one_task(family.sample_tasks(stream(SEED, "tasks"), 1), 0)))
    images = FakeImageEnv(screen_height=pixels, screen_width=pixels, n_channels=4)
    # Networks as SB3 makes them. On images minibatches are RL-Zoo3's 256 for Atari, and without a target SB3's 64.
    cases: list[tuple[Learning, int, float | None]] = [
        (vpg(quick, parallel), 60, TARGET),
        (stock("SB3 PPO, 64-64", "MlpPolicy", cheetah, 64 if quick else 2048, 1, 64), 200, TARGET),
        (stock("SB3 PPO, CNN, 256", "CnnPolicy", images, 2 * large, 1, large), 40, TARGET),
        (stock("SB3 PPO, CNN, 64", "CnnPolicy", images, large, 1, large // 4), 40, None),
    ]
    rows = [compare(learning, 1 if quick else rounds, target) for learning, rounds, target in cases]
    parallel.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single("watching", about, "updates that Leap watches, against the same unwatched", run, arguments)


if __name__ == "__main__":
    main()
