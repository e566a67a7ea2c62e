"""Batched PPO on many tasks against as many stock SB3 PPOs: ``python -m benchmarks.ppo [--quick] [-o FILE]``.

Both sides learn the same tasks from the same parameters, with the same hyperparameters and as many env steps, and take
turns after every rollout and its update. At the end both are tested on the same episodes' streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from benchmarks.measure import SEED, Row, interleave, judged, paired_ratio
from benchmarks.single import run_single
from metarl.agents.learners.ppo import PPO
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.envs.family import Family
from metarl.envs.registry import make_family
from metarl.envs.tasks import Tasks, n_tasks, one_task
from metarl.envs.views.single import SingleEnv
from metarl.meta.evaluation.statistics import bootstrap_interval, paired_interval
from metarl.params import Params
from metarl.streams import seed_sequence, stream

FAMILY = "HalfCheetahVel-v0"
N_EPISODES = 8
"""A rollout of one task: 8 episodes of 200 env steps are 25 minibatches of 64, as SB3 advises."""
LEARNING_RATE = 3e-4
TARGET = 6.0


class Batched:
    """PPO on all tasks at once."""

    def __init__(self, family: Family, tasks: Tasks, start: Params, parallel: Parallel, n_epochs: int) -> None:
        self._family, self._tasks, self._parallel = family, tasks, parallel
        policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, critic=True)
        self.learner = PPO(policy, n_epochs=n_epochs, parallel=parallel)
        self._state = self.learner.start(start)
        self._turn = 0
        self.env_steps = 0
        self.update_seconds: list[float] = []

    @property
    def params(self) -> Params:
        """Of all tasks, stacked."""
        return self._state.params

    def __call__(self) -> None:
        """Collect one rollout and update on it."""
        n = n_tasks(self._tasks)
        streams = {
            what: [seed_sequence(SEED, what, self._turn, task) for task in range(n)] for what in ("collect", "order")
        }
        params = self._state.params
        episodes = collect(
            self._family,
            self.learner.policy,
            params,
            self._tasks,
            streams["collect"],
            n_episodes=N_EPISODES,
            parallel=self._parallel,
        )
        began = time.perf_counter()
        samples = self.learner.process(episodes, params)
        self._state = self.learner.update(self._state, samples, LEARNING_RATE, streams["order"])
        self.update_seconds.append(time.perf_counter() - began)
        self._turn += 1
        self.env_steps += episodes.n_steps


class Stock:
    """Stock SB3 PPOs, one after another, each on the single view of its task."""

    def __init__(self, family: Family, tasks: Tasks, n_epochs: int) -> None:
        self._n_steps = N_EPISODES * family.horizon
        self.models = [
            sb3.PPO(
                "MlpPolicy",
                Monitor(SingleEnv(family, **one_task(tasks, task))),
                learning_rate=LEARNING_RATE,
                n_steps=self._n_steps,
                n_epochs=n_epochs,
                seed=task,
                device="cpu",
            )
            for task in range(n_tasks(tasks))
        ]
        self.env_steps = 0
        self.update_seconds: list[float] = []

    @property
    def params(self) -> Params:
        """Of all tasks, stacked."""
        named = [dict(model.policy.named_parameters()) for model in self.models]
        return {name: torch.stack([own[name].detach() for own in named]) for name in named[0]}

    def __call__(self) -> None:
        """Let every model collect one rollout and train on it."""
        updates = 0.0
        for model in self.models:
            update = UpdateTime()
            model.learn(self._n_steps, callback=update, reset_num_timesteps=False)
            updates += time.perf_counter() - update.began
            self.env_steps += self._n_steps
        self.update_seconds.append(updates)


class UpdateTime(BaseCallback):
    """Remembers when the update began."""

    began = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.began = time.perf_counter()


def run(quick: bool) -> list[Row]:
    """Return a row for each side."""
    count, rounds, n_epochs, horizon = (2, 1, 1, 16) if quick else (16, 30, 10, 200)
    parallel = Parallel()
    family = make_family(FAMILY, horizon=horizon)
    tasks = family.sample_tasks(stream(SEED, "tasks"), count)
    # A single copy gains nothing from threads, and loses to their switching.
    stock = Stock(make_family(FAMILY, horizon=horizon, n_threads=1), tasks, n_epochs)
    batched = Batched(family, tasks, stock.params, parallel, n_epochs)
    sides: dict[str, Batched | Stock] = {"batched": batched, "stock": stock}

    def returns(params: Params) -> np.ndarray:
        seeds = [seed_sequence(SEED, "test", task) for task in range(count)]
        return collect(family, batched.learner.policy, params, tasks, seeds, n_episodes=20).mean_returns

    first = returns(stock.params)
    calls: dict[str, Callable[[], None]] = dict(sides)
    timings = interleave(calls, rounds)
    last = {name: returns(side.params) for name, side in sides.items()}
    ratio, least, greatest = paired_ratio(timings["stock"], timings["batched"])
    what = {"batched": f"batched PPO, {count} tasks", "stock": f"{count} stock PPOs, one after another"}
    rows: list[Row] = [
        {
            "case": what[name],
            "env_steps_each": side.env_steps // count,
            "seconds_a_rollout_and_update": timings[name].seconds,
            "cpu_seconds_a_rollout_and_update": timings[name].cpu_seconds,
            "update_share": sum(side.update_seconds[-rounds:]) / sum(timings[name].wall),
            "return_before": str(bootstrap_interval(first)),
            "return_after": str(bootstrap_interval(last[name])),
            "returns": last[name].tolist(),
        }
        for name, side in sides.items()
    ]
    difference = paired_interval(last["batched"], last["stock"])
    rows[0] |= {
        **judged(ratio, TARGET, at_least=True),
        "ratio_range": [least, greatest],
        "return_minus_stock": str(difference),
        "returns_differ": difference.excludes_zero,
    }
    parallel.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    about = (__doc__ or "").split("\n")[0]
    run_single(
        "ppo",
        about,
        "PPO on many tasks, against stock PPO on one after another",
        run,
        arguments,
        hidden=["returns"],
        family=FAMILY,
    )


if __name__ == "__main__":
    main()
