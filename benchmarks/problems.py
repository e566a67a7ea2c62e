"""What the benchmarks work on: policies, collecting as training does it, and batches of a given size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gymnasium import spaces

from benchmarks.measure import SEED
from metarl.agents.learners.vpg import VPG
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.collect import collect
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.samples import Samples
from metarl.envs.family import Family
from metarl.meta.adaptation.gradient import GradientPath, InnerRule
from metarl.meta.blocks.derivatives import BlockDerivatives, Bound, chunks
from metarl.meta.outer.objective import BlockObjective
from metarl.params import Params, expand, join
from metarl.streams import seed_sequence, stream

RELU_100 = {"net_arch": [100, 100], "activation_fn": "relu"}
"""The network of the MAML papers."""
TANH_64 = {"net_arch": [64, 64], "activation_fn": "tanh"}
"""The peers' network."""


def make_policy(family: Family, kwargs: dict[str, object] | None = None) -> FunctionalPolicy:
    """Return a policy for a family; 2x100 ReLU where nothing else is said."""
    return FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space, kwargs or RELU_100)


def stacked(policy: FunctionalPolicy, n_tasks: int) -> Params:
    """Return fresh parameters, one copy for each task."""
    return {name: tensor.contiguous() for name, tensor in expand(policy.init(SEED), n_tasks).items()}


def collector(family: Family, n_tasks: int, n_episodes: int, parallel: Parallel) -> Callable[[], Episodes]:
    """Return a function that collects the same episodes each time, the way training does."""
    policy = make_policy(family)
    params = stacked(policy, n_tasks)
    tasks = family.sample_tasks(stream(SEED, "tasks"), n_tasks)
    seeds = [seed_sequence(SEED, "benchmark", task) for task in range(n_tasks)]
    return lambda: collect(family, policy, params, tasks, seeds, n_episodes=n_episodes, parallel=parallel)


def random_episodes(
    rng: np.random.Generator, n_tasks: int, n_episodes: int, horizon: int, obs_size: int, action_size: int
) -> Episodes:
    """Return full-length episodes whose rewards depend on the actions, so that there is a gradient to follow."""
    shape = (n_tasks, n_episodes, horizon)
    obs = rng.standard_normal((*shape, obs_size), dtype=np.float32)
    actions = rng.standard_normal((*shape, action_size), dtype=np.float32)
    goals = rng.standard_normal((n_tasks, 1, 1, action_size), dtype=np.float32)
    return Episodes(
        obs=obs,
        actions=actions,
        rewards=-np.square(actions - goals).mean(-1),
        mask=np.ones(shape, dtype=bool),
        terminated=np.zeros(shape[:2], dtype=bool),
        final_obs=obs[:, :, -1],
    )


class Update:
    """The data of one outer step of a given size, and the objectives on it.

    :param n_tasks: tasks.
    :param n_episodes: episodes a task.
    :param horizon: env steps in each.
    :param obs_size: length of the observation.
    :param action_size: length of the action.
    :param kwargs: the policy's.
    """

    def __init__(
        self,
        n_tasks: int,
        n_episodes: int,
        horizon: int,
        obs_size: int,
        action_size: int,
        parallel: Parallel,
        kwargs: dict[str, object] | None = None,
    ) -> None:
        box = spaces.Box(-np.inf, np.inf, (obs_size,), np.float32)
        self.policy = FunctionalPolicy("MlpPolicy", box, spaces.Box(-1.0, 1.0, (action_size,)), kwargs or RELU_100)
        self.vpg = VPG(self.policy, parallel=parallel)
        self.theta = self.policy.init(SEED)
        self._parallel = parallel
        size = n_tasks, n_episodes, horizon, obs_size, action_size
        start = stacked(self.policy, n_tasks)
        self.support = self.vpg.process(random_episodes(stream(SEED, "support"), *size), start)

        def step(chunk: slice) -> Params:
            own = {name: tensor[chunk] for name, tensor in start.items()}
            return GradientPath(self.vpg, own, [self.support.tasks(chunk)], [0.1]).end

        phi = join(parallel.map(step, chunks(n_tasks, [self.support], self.policy.width, None)))
        self.query = self.vpg.process(random_episodes(stream(SEED, "query"), *size), phi)

    def objective(self, *, first_order: bool, fisher_fraction: float = 1.0) -> BlockObjective:
        """Return a fresh objective: MAML's, or FOMAML's on the same batches."""
        batches: list[Samples] = [self.support]
        block = BlockDerivatives(
            self.vpg,
            self.theta,
            batches,
            self.query,
            InnerRule([0.1]),
            first_order=first_order,
            bound=Bound(fisher_fraction),
            parallel=self._parallel,
        )
        return BlockObjective([block])
