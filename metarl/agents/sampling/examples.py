"""Examples of supervised families without acting: what is asked, and what is right, does not wait for a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metarl.agents.networks.acting import Acting
from metarl.agents.sampling.episodes import (
    ENV,
    Episodes,
    kept_info,
    kept_rewards,
    require_finite,
    require_fit,
    require_reported,
)
from metarl.envs.promises import require_sound_step, sound_start
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks, one_task
from metarl.streams import generators


class Examples:
    """Examples of every task, on which any number of predictions are judged.

    They are those that :func:`~metarl.agents.sampling.collect.collect` would show a policy that acts::

        from metarl.agents.sampling.examples import Examples
        from metarl.streams import TaskSeeds

        family = make_family("Sinusoid-v0")
        policy = FunctionalPolicy("MlpPolicy", family.observation_space, family.action_space)
        examples = Examples(family, policy, family.tasks("test", 2), TaskSeeds(0, "examples", 0, range(2)), 5)
        predictions = policy.distribution(policy.init(seed=0), torch.from_numpy(examples.obs)).mode()
        assert examples.episodes(predictions).mean_returns.shape == (2,)

    :param family: whose examples they are.
    :param policy: whose predictions will be judged.
    :param tasks: tasks of equal spaces.
    :param seeds: one stream for each task, as of a collector.
    :param n: examples of every task.
    :param info: which of the terms that steps report to keep.
    :raises ConfigError: the policy has other spaces than the tasks.
    """

    def __init__(
        self,
        family: OneStep,
        policy: Acting,
        tasks: Tasks,
        seeds: Sequence[np.random.SeedSequence],
        n: int,
        info: Sequence[str] = (),
    ) -> None:
        require_fit(policy, *family.spaces(one_task(tasks, 0)), family.id)
        self._family, self._policy, self._tasks, self._info = family, policy, tasks, tuple(info)
        self._rngs, self._batch = generators(seeds, ENV), (len(seeds), n)
        first = family.reset(tasks, self._rngs, n)
        self._state, self.obs = sound_start(family, first, self._batch, policy.observation_space)
        """The inputs, ``[task, n, *observation]``."""

    def episodes(self, actions: torch.Tensor) -> Episodes:
        """Return the episodes, of one env step each, in which a policy predicts ``actions``, ``[task, n, *action]``.

        :raises ConfigError: steps do not report what was asked for.
        :raises NonFiniteError: a NaN or infinite reward, observation or prediction; names the task.
        """
        family = self._family
        predicted = actions.numpy()
        step = family.step(self._tasks, self._state, self._policy.actions_to_env(predicted), self._rngs, None)
        require_sound_step(family, step, self._batch, self._policy.observation_space)
        require_reported(self._info, step.info, family.id)
        mask = np.ones((*self._batch, 1), dtype=bool)
        episodes = Episodes(
            obs=self.obs[:, :, None],
            actions=predicted[:, :, None],
            rewards=kept_rewards(step.reward[:, :, None], mask, family.id),
            mask=mask,
            terminated=step.terminated,
            final_obs=step.obs,
            info={name: kept_info(step.info[name][:, :, None]) for name in self._info},
        )
        require_finite(family, self._tasks, episodes)
        return episodes
