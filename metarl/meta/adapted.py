"""What adaptation leads to: a policy that acts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metarl.agents.distributions import draw_noise
from metarl.agents.policy import FunctionalPolicy, Params
from metarl.agents.sampling import clip_actions
from metarl.errors import ConfigError


class AdaptedPolicy:
    """A policy with the parameters that adaptation reached.

    :param policy: the functional policy.
    :param params: the parameters of one task.
    :param env_steps: env steps that adaptation took.
    :param returns: mean undiscounted return of the episodes collected before each inner step.
    """

    def __init__(
        self, policy: FunctionalPolicy, params: Params, env_steps: int = 0, returns: Sequence[float] = ()
    ) -> None:
        self.policy = policy
        self.params = params
        self.env_steps = env_steps
        self.returns = list(returns)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions for one observation or a batch, clipped to the action space, as SB3's ``predict`` does.

        :param observation: ``[*observation]`` or ``[n, *observation]``.
        :param deterministic: take the most likely action.
        :param rng: draws the action otherwise; None takes fresh entropy.
        """
        del episode_start
        array = np.asarray(observation, dtype=np.float32)
        shape = self.policy.observation_space.shape
        single = array.shape == shape
        batch = array[None] if single else array
        if batch.shape[1:] != shape:
            raise ConfigError(f"observation has shape {array.shape}: the policy takes {shape} or [n, *{shape}]")
        with torch.inference_mode():
            distribution = self.policy.distribution(self.params, torch.from_numpy(batch))
            if deterministic:
                actions = distribution.mode()
            else:
                noise = draw_noise(self.policy.action_space, rng or np.random.default_rng(), (len(batch),))
                actions = distribution.sample(torch.from_numpy(noise))
        result = clip_actions(self.policy.action_space, self.policy.actions_to_env(actions))
        return (result[0] if single else result), state
