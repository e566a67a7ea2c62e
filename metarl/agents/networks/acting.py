"""What collectors ask of a policy, whether it has a memory or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces

from metarl.params import Params


class Acting(Protocol):
    """A policy that acts for the steps of an episode."""

    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    min_rows: int
    """Fewest observations of a task that it is asked for as copies end."""
    rowwise: bool
    """Whether an observation's bits depend on nothing else, neither on how many there are nor on where they lie."""

    def actor(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        """Return the policy at stacked ``params`` as a function ``(obs, noise) → actions`` for one episode's steps, in
        their order. Without noise actions are the most likely ones.
        """
        ...

    def actions_to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as the environment takes them."""
        ...
