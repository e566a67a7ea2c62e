"""What adaptation leads to: a policy that acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metarl.agents.networks.distributions import Distribution, draw_noise
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import single_threaded_torch
from metarl.agents.sampling.one_env import clip_actions
from metarl.checks import NONE, SEED, as_array
from metarl.errors import ConfigError, NoSuchNameError, shorten
from metarl.meta.sb3_words import INSTEAD, OF_STOCK
from metarl.params import Params
from metarl.streams import stream


class AdaptedPolicy:
    """A policy with the parameters that adaptation reached.

    :param policy: the functional policy.
    :param params: the parameters of one task.
    :param env_steps: env steps that adaptation took.
    :param returns: mean undiscounted return of the episodes collected before each inner step.
    :param seed: of the actions that :meth:`predict` draws; None takes fresh entropy.
    """

    def __init__(
        self,
        policy: FunctionalPolicy,
        params: Params,
        env_steps: int = 0,
        returns: Sequence[float] = (),
        seed: int | None = None,
    ) -> None:
        self.policy = policy
        self.params = params
        self.env_steps = env_steps
        self.returns = list(returns)
        self._predictions = predictions(seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Draw the actions of :meth:`predict` from this seed from here on; None takes fresh entropy."""
        self._predictions = predictions(seed)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what there is instead of an attribute of SB3's models; it is called for missing attributes only."""
            if name in OF_STOCK or name in INSTEAD:
                raise NoSuchNameError(
                    f"{type(self).__name__} has no {name}: it acts, with predict(); its tensors are params, and "
                    "to_sb3(env=…) of the meta-algorithm returns a stock model, which learns on and is saved"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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
        :param rng: draws the action otherwise; None goes on with the stream that the seed began.
        :raises ConfigError: an observation of another shape or kind.
        """
        del episode_start
        batch, single = self._batch(observation)
        with single_threaded_torch(), torch.inference_mode():
            distribution = self.policy.distribution(self.params, torch.from_numpy(batch))
            actions = self._choose(distribution, len(batch), deterministic, rng)
        return (actions[0] if single else actions), state

    def _batch(self, observation: Any, of: str = "") -> tuple[np.ndarray, bool]:
        """Return observations as ``[n, *observation]``, and whether there was a single one.

        :param of: what the policy observes, for the error message.
        """
        array = as_observation(observation)
        shape = self.policy.observation_space.shape
        single = array.shape == shape
        batch = array[None] if single else array
        if batch.shape[1:] != shape:
            raise ConfigError(f"observation has shape {array.shape}: the policy takes {shape} or [n, *{shape}]{of}")
        return batch, single

    def _choose(
        self, distribution: Distribution, n: int, deterministic: bool, rng: np.random.Generator | None
    ) -> np.ndarray:
        """Return ``n`` actions, clipped to the action space."""
        space = self.policy.action_space
        if deterministic:
            actions = distribution.mode()
        else:
            noise = draw_noise(space, rng or self._predictions, (n,))
            actions = distribution.sample(torch.from_numpy(noise))
        return clip_actions(space, self.policy.actions_to_env(actions.numpy()))


def predictions(seed: int | None) -> np.random.Generator:
    """Return the stream that actions are drawn from; None takes fresh entropy."""
    seed = (SEED | NONE)("seed", seed)
    return np.random.default_rng() if seed is None else stream(seed, "predict")


def as_observation(given: Any) -> np.ndarray:
    """Return what somebody hands to ``predict`` as an array.

    :raises ConfigError: it holds no numbers, or is all that ``reset`` of an environment returns.
    """
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict):
        raise ConfigError("observation is a pair with a dict: env.reset() returns obs, info, and predict takes obs")
    try:
        return as_array(given, np.float32)
    except (TypeError, ValueError):
        raise ConfigError(f"observation={shorten(given)} is no array of numbers") from None
