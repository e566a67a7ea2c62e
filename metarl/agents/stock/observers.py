"""What looks on while a stock algorithm learns: at episodes and evaluations, and at gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback

from metarl.params import Params


class Observer(BaseCallback):
    """Collects the returns of episodes, and evaluates when learning has passed given numbers of env steps."""

    def __init__(self, evaluate: Callable[[], tuple[float, float]] | None = None, points: Sequence[float] = ()) -> None:
        super().__init__()
        self._evaluate = evaluate
        self._points = list(points)
        self.episode_returns: list[float] = []
        self.env_steps: list[int] = []
        self.returns: list[float] = []
        self.lengths: list[float] = []

    def look(self, num_timesteps: int) -> None:
        """Evaluate if a point was passed."""
        passed = sum(point <= num_timesteps for point in self._points) - len(self.returns)
        if passed > 0:
            assert self._evaluate is not None
            mean_return, mean_length = self._evaluate()
            self.returns += [mean_return] * passed
            self.lengths += [mean_length] * passed
            self.env_steps += [num_timesteps] * passed

    def _on_rollout_start(self) -> None:
        self.look(self.model.num_timesteps)

    def _on_training_end(self) -> None:
        self.look(self.model.num_timesteps)

    def _on_step(self) -> bool:
        if self.locals["dones"].any():
            self.episode_returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True


class GradientSum:
    """A watcher that adds up the gradients of all segments, one for each optimiser."""

    def __init__(self, parameters: Params) -> None:
        self.gradient = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self._names = {id(tensor): name for name, tensor in parameters.items()}

    def segment(
        self,
        start: Params,
        end: Params,
        gradient: Params | None,
        losses: torch.Tensor | None,
        active: torch.Tensor | None = None,
    ) -> None:
        for name, tensor in (gradient or {}).items():
            self.gradient[name] += tensor[0]

    def see_actor(self, algorithm: TRPO) -> None:
        """Take the actor's gradient where TRPO computes it: no optimiser ever gets it."""

        def compute(*losses: torch.Tensor) -> Any:
            result = TRPO._compute_actor_grad(algorithm, *losses)
            actor, surrogate = result[:2]
            for parameter, part in zip(actor, torch.split(surrogate, [p.numel() for p in actor]), strict=True):
                self.gradient[self._names[id(parameter)]] -= part.view_as(parameter)
            return result

        algorithm._compute_actor_grad = compute  # type: ignore[method-assign,assignment]
