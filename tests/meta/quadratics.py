"""A learner on quadratics in the place of a real one: everything a wrapper makes of it has a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from metarl.envs.tasks import Tasks
from metarl.meta.adaptation.batched import Amount, Learnt, PathWatcher, Streams
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

    def learn(
        self,
        theta: Params,
        tasks: Tasks,
        rates: Sequence[float],
        streams: Streams,
        amount: Amount,
        timer: Timer,
        watcher: PathWatcher | None = None,
    ) -> Learnt:
        """Walk down every task's quadratic."""
        a, c = self.constants(tasks)
        n = len(a)
        points = {name: tensor.expand(n, *tensor.shape).clone() for name, tensor in theta.items()}
        for rate in rates:
            wide = {name: (n, *(1,) * tensor.ndim) for name, tensor in theta.items()}
            away = {name: tensor - c.view(wide[name]) for name, tensor in points.items()}
            gradient = {name: a.view(wide[name]) * tensor for name, tensor in away.items()}
            losses = 0.5 * a * sum(tensor.flatten(1).square().sum(1) for tensor in away.values())
            ends = {name: tensor - rate * gradient[name] for name, tensor in points.items()}
            if watcher is not None:
                watcher.segment(points, ends, gradient, losses)
            points = ends
        if watcher is not None:
            watcher.close()
        with timer("sampling"):
            batches = np.full((n, len(rates)), 10.0)
        return Learnt(points, -batches, batches, np.ones(batches.shape))


def on_quadratics(algorithm: Any, **kwargs: Any) -> Any:
    """Return a small algorithm whose learner walks down quadratics, in float64."""
    model = small(algorithm, **kwargs)
    vars(model)["loop"] = Quadratics(model.loop)
    model.params = {name: tensor.double() for name, tensor in model.params.items()}
    return model


def flat(params: Params) -> torch.Tensor:
    """Return tensors as one."""
    return torch.cat([tensor.flatten() for tensor in params.values()])
