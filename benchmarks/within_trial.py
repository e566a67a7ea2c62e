"""Whether a memory adapts: ``python -m benchmarks.within_trial MODEL -o FILE``, with a checkpoint of RL² as MODEL.

Trials are played on test tasks as they are, with a memory that is emptied at the beginning of each episode, and with a
memory that is told the rewards of another task, while its own are counted. What the last one loses is what the memory
makes of the rewards: a policy that does not adapt loses nothing. Tasks have to differ in their rewards alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import metarl
from benchmarks.measure import circumstances
from metarl.agents.parallel import library_torch
from metarl.envs.tasks import n_tasks, take_tasks
from metarl.envs.views.trials import Trials, at_beginning, n_before
from metarl.errors import ConfigError
from metarl.meta.algorithms.rl2 import RL2
from metarl.meta.evaluation.statistics import bootstrap_interval
from metarl.meta.evaluation.tables import Table
from metarl.params import expand
from metarl.streams import TaskSeeds, generators

SEED = 1
EMPTIED, DECEIVED = "memory emptied between episodes", "told the rewards of another task"
WAYS = ("as it is", EMPTIED, DECEIVED)


@dataclass(frozen=True)
class Played:
    """Trials that were played.

    :param rewards: ``[task, episode, time]``, means over the copies of a task.
    """

    rewards: np.ndarray

    def cells(self) -> list[str]:
        """Return the cells of a row: the return of each episode, and the first one's by quarters."""
        returns = self.rewards.sum(-1)
        quarters = self.rewards[:, 0].reshape(len(self.rewards), 4, -1).sum(-1)
        return [str(bootstrap_interval(column[None])) for column in (*returns.T, *quarters.T)]


def play(model: RL2, way: str, n: int, n_copies: int) -> Played:
    """Play a trial of two episodes on each of ``n`` test tasks, in ``n_copies`` copies.

    :raises ConfigError: tasks differ in more than rewards.
    """
    assert isinstance(model.family, Trials)
    family, n_episodes = Trials(model.family.family, 2), 2
    tasks, theta = family.tasks("test", n), expand(model.theta, n)
    others = take_tasks(tasks, np.roll(np.arange(n_tasks(tasks)), n // 2))
    rngs, draws = generators(TaskSeeds(SEED, "within_trial", 0, range(n))), torch.Generator().manual_seed(SEED)
    state, obs = family.reset(tasks, rngs, n_copies)
    horizon, act = family.family.horizon, model.trial_ppo.policy.actor(theta)
    found = np.zeros((n, n_episodes * horizon))
    for t in range(n_episodes * horizon):
        if way == EMPTIED and t == horizon:
            # The next episode is a trial of its own: nothing is known of the last step either.
            act = model.trial_ppo.policy.actor(theta)
            obs = at_beginning(obs[..., : -n_before(family.action_space)], family.action_space)
        noise = torch.randn(n, n_copies, *(family.action_space.shape or ()), generator=draws)
        with torch.no_grad():
            actions = act(torch.from_numpy(obs), noise).numpy()
        step = family.step(tasks, state, actions, rngs)
        if way == DECEIVED:
            wrong = family.step(others, state, actions, rngs)
            if not np.array_equal(wrong.obs[..., :-2], step.obs[..., :-2]):
                raise ConfigError(f"tasks of {family.family.id} differ in more than their rewards")
            obs = wrong.obs
        else:
            obs = step.obs
        state, found[:, t] = step.state, step.reward.mean(-1)
    return Played(found.reshape(n, n_episodes, horizon))


def main(argv: Sequence[str] | None = None) -> None:
    """Play, print a row for each way, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint of rl2")
    parser.add_argument("-n", type=int, default=40, help="test tasks (default 40)")
    parser.add_argument("--copies", type=int, default=20, help="trials of each (default 20)")
    parser.add_argument("-o", "--output", type=Path, help="write the record here as JSON")
    args = parser.parse_args(argv)
    model = metarl.load(args.model)
    if not isinstance(model, RL2):
        parser.error(f"{args.model} is of {model.name}, not of rl2")
    with library_torch():
        found = {way: play(model, way, args.n, args.copies) for way in WAYS}
    quarter = model.family.horizon // model.n_episodes // 4
    parts = [f"its env steps {i * quarter + 1} to {(i + 1) * quarter}" for i in range(4)]
    columns = ["", "first episode", "second episode", *parts]
    rows = [[way, *played.cells()] for way, played in found.items()]
    for way in WAYS[1:]:
        lost = Played(found[WAYS[0]].rewards - found[way].rewards)
        rows.append([f"as it is minus {way}", *lost.cells()])
    title = f"{model.name} on {model.family.id}, {model.num_timesteps:,} env steps of training"
    print(Table(columns, rows, title, [f"returns with 95% intervals over {args.n} test tasks"]))
    if args.output:
        record = {
            "command": "python -m benchmarks.within_trial",
            **circumstances(),
            "num_timesteps": model.num_timesteps,
            "rewards": {way: played.rewards.sum(-1).round(3).tolist() for way, played in found.items()},
            "table": [columns, *rows],
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
