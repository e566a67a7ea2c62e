"""Action distributions as immutable values with pure arithmetic.

Every method takes arrays with or without a leading task axis: ``[n, …]`` for one task, ``[task, n, …]`` for a stack.
Nothing here is shared or mutated, unlike SB3's ``policy.action_dist``, so ``old.kl(new)`` is what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces

from metarl.errors import ConfigError

LOG_2PI = math.log(2.0 * math.pi)
MIN_LOG_STD = math.log(1e-6)
"""The reference implementation's floor for the standard deviation; SB3 has none."""
MAX_LOG_STD = 40.0
"""Past this float32 overflows in divergences, which hold variances."""


class Distribution(Protocol):
    """What learners and trust regions ask of an action distribution."""

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the joint log-probability of stored actions, ``[…, n]``: a sum over action dimensions, no mean."""
        ...

    def kl(self, other: Any) -> torch.Tensor:
        """Return KL(self ‖ other) for each state, ``[…, n]``, in nats."""
        ...

    def entropy(self) -> torch.Tensor:
        """Return the entropy for each state, ``[…, n]``, in nats."""
        ...

    def mode(self) -> torch.Tensor:
        """Return the most likely action for each state."""
        ...

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Turn noise drawn by :func:`draw_noise` into actions."""
        ...

    @property
    def heads(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the distribution is made of, as the policy's functions return them."""
        ...

    def fisher(self, tangents: tuple[torch.Tensor, ...], weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Multiply tangents of :attr:`heads` by the Fisher information, averaged over states.

        :param tangents: one for each head, of its shape.
        :param weights: ``[…, n]``, the weight of each state in the average; they sum to 1 over ``n``.
        """
        ...


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian with diagonal covariance that does not depend on the state.

    :param mean: ``[…, n, action]``.
    :param log_std: ``[…, action]``.
    """

    mean: torch.Tensor
    log_std: torch.Tensor

    @property
    def heads(self) -> tuple[torch.Tensor, ...]:
        return (self.mean, self.log_std)

    @property
    def _log_std(self) -> torch.Tensor:
        return _floored(self.log_std)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        log_std = self._log_std
        z = (actions - self.mean) * torch.exp(-log_std)
        return -0.5 * z.square().sum(-1) - (log_std + 0.5 * LOG_2PI).sum(-1)

    def kl(self, other: Gaussian) -> torch.Tensor:
        ours, theirs = self._log_std, other._log_std
        variance = torch.exp(2.0 * ours)
        quadratic = (variance + (self.mean - other.mean).square()) * (0.5 * torch.exp(-2.0 * theirs))
        return (theirs - ours + quadratic - 0.5).sum(-1)

    def entropy(self) -> torch.Tensor:
        each = (self._log_std + 0.5 * (1.0 + LOG_2PI)).sum(-1)
        return each.expand(self.mean.shape[:-1])

    def mode(self) -> torch.Tensor:
        return self.mean

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        return chooser(self.log_std)(self.mean, noise)

    def fisher(self, tangents: tuple[torch.Tensor, ...], weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        d_mean, d_log_std = tangents
        precision = torch.exp(-2.0 * self._log_std)
        moves = 2.0 * (self.log_std >= MIN_LOG_STD)
        return d_mean * precision * weights.unsqueeze(-1), moves * d_log_std * weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Categorical:
    """A categorical distribution.

    :param logits: ``[…, n, action]``, unnormalised.
    """

    logits: torch.Tensor

    @property
    def heads(self) -> tuple[torch.Tensor, ...]:
        return (self.logits,)

    @property
    def _log_probs(self) -> torch.Tensor:
        return torch.log_softmax(self.logits, dim=-1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        return self._log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def kl(self, other: Categorical) -> torch.Tensor:
        ours = self._log_probs
        return (ours.exp() * (ours - other._log_probs)).sum(-1)

    def entropy(self) -> torch.Tensor:
        log_probs = self._log_probs
        return -(log_probs.exp() * log_probs).sum(-1)

    def mode(self) -> torch.Tensor:
        return self.logits.argmax(-1)

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        cumulative = self._log_probs.exp().cumsum(-1)
        # Noise is in [0, 1): with ">" a zero would choose the first action even where its probability vanishes.
        chosen = (noise.unsqueeze(-1) >= cumulative).sum(-1)
        return chosen.clamp(max=self.logits.shape[-1] - 1)

    def fisher(self, tangents: tuple[torch.Tensor, ...], weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (d_logits,) = tangents
        probs = torch.softmax(self.logits, dim=-1)
        centred = d_logits - (probs * d_logits).sum(-1, keepdim=True)
        return (probs * centred * weights.unsqueeze(-1),)


def from_heads(heads: tuple[torch.Tensor, ...]) -> Distribution:
    """Return the distribution that is made of ``heads``: a Gaussian of two, a categorical one of one."""
    return Gaussian(*heads) if len(heads) > 1 else Categorical(*heads)


def chooser(log_std: torch.Tensor | None) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """Return what chooses actions, ``(x, noise) → actions``, given the last layer's output ``x``; for many choices.

    :param log_std: a Gaussian's; None for a categorical distribution. Without noise actions are the most likely ones.
    """
    if log_std is None:
        return lambda x, noise: Categorical(x).mode() if noise is None else Categorical(x).sample(noise)
    std = torch.exp(_floored(log_std))
    return lambda x, noise: x if noise is None else torch.addcmul(x, std, noise)


def _floored(log_std: torch.Tensor) -> torch.Tensor:
    """Return what a Gaussian takes for ``log_std``, with an axis for its states."""
    return log_std.clamp(min=MIN_LOG_STD).unsqueeze(-2)


def draw_noise(action_space: spaces.Space[Any], rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw what :meth:`Distribution.sample` needs: standard normal (Box) or uniform (Discrete) numbers, float32.

    :param shape: the leading axes, for instance ``(time, env)``.
    """
    if isinstance(action_space, spaces.Box):
        return rng.standard_normal((*shape, *action_space.shape), dtype=np.float32)
    if isinstance(action_space, spaces.Discrete):
        return rng.random(shape, dtype=np.float32)
    raise ConfigError(f"action space {action_space} is not supported: use a Box or a Discrete space")
