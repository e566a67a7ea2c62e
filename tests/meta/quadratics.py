"""A learner on quadratics in the place of a real one: everything a wrapper makes of it has a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from metarl.envs.tasks import Tasks
from metarl.meta.adaptation.base import Outcome, PathWatcher, Request
from metarl.meta.progress import Timer
from metarl.params import Params
from tests.meta.small import small


class Quadratics:
    """Gradient steps on f(θ) = ½ a ‖θ − c‖² for each task of PointMass, with a and c from its goal.

    A batch has 10 env steps.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @staticmethod
    def constants(tasks: Tasks) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a and c of each task, ``[task]``."""
        goal = torch.from_numpy(np.asarray(tasks["goal"], dtype=np.float64))
        return 1.0 + goal[:, 0].abs(), goal[:, 1]

    def walk(self, theta: Params, request: Request, watcher: PathWatcher | None = None, **kwargs: Any) -> _Walk:
        """Return the walk down every task's quadratic, of a single unit."""
        return _Walk(theta, request, watcher)


class _Walk:
    n_units = 1
    n_done = 0

    def __init__(self, theta: Params, request: Request, watcher: PathWatcher | None) -> None:
        self._theta, self._request, self._watcher = theta, request, watcher

    def work(self, timer: Timer) -> bool:
        a, c = Quadratics.constants(self._request.tasks)
        theta, n = self._theta, len(a)
        points = {name: tensor.expand(n, *tensor.shape).clone() for name, tensor in theta.items()}
        for rate in self._request.rates:
            wide = {name: (n, *(1,) * tensor.ndim) for name, tensor in theta.items()}
            away = {name: tensor - c.view(wide[name]) for name, tensor in points.items()}
            gradient = {name: a.view(wide[name]) * tensor for name, tensor in away.items()}
            losses = 0.5 * a * sum(tensor.flatten(1).square().sum(1) for tensor in away.values())
            ends = {name: tensor - rate * gradient[name] for name, tensor in points.items()}
            if self._watcher is not None:
                self._watcher.segment(points, ends, gradient, losses)
            points = ends
        if self._watcher is not None:
            self._watcher.close()
        with timer("sampling"):
            batches = np.full((n, len(self._request.rates)), 10.0)
        self._outcome = Outcome(points, -batches, batches, np.ones(batches.shape))
        self.n_done = 1
        return False

    def outcome(self) -> Outcome:
        return self._outcome


def on_quadratics(algorithm: Any, **kwargs: Any) -> Any:
    """Return a small algorithm whose learner walks down quadratics, in float64."""
    model = small(algorithm, **kwargs)
    (pair, adaptation), *_ = model.adaptations._known
    model.adaptations._known = [(pair, Quadratics(adaptation))]
    model.params = {name: tensor.double() for name, tensor in model.params.items()}
    return model


def flat(params: Params) -> torch.Tensor:
    """Return tensors as one."""
    return torch.cat([tensor.flatten() for tensor in params.values()])
