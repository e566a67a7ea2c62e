"""Adam on any meta-objective."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.adam import adam

from metarl.checks import POSITIVE, number
from metarl.errors import CheckpointError
from metarl.files.schema import LARGEST
from metarl.meta.outer.base import OuterStep, register_outer
from metarl.meta.outer.objective import MetaObjective
from metarl.meta.outer.sgd import SGD
from metarl.params import Params

KINDS = ("first", "second")
"""The moments that are kept of a gradient."""


@register_outer("adam")
class Adam(SGD):
    """Adam (Kingma & Ba, 2015) on the meta-parameters.

    :param learning_rate: step size.
    :param beta1: decay of the first moment.
    :param beta2: decay of the second moment.
    :param eps: added to the denominator.
    :param final_learning_rate: as in :class:`SGD`.
    :param max_grad_norm: as in :class:`SGD`.
    :param schedule: as in :class:`SGD`.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        final_learning_rate: float | None = None,
        max_grad_norm: float | None = None,
        schedule: str = "linear",
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            final_learning_rate=final_learning_rate,
            max_grad_norm=max_grad_norm,
            schedule=schedule,
        )
        self.beta1 = number("[0, 1)")("beta1", beta1)
        self.beta2 = number("[0, 1)")("beta2", beta2)
        self.eps = POSITIVE("eps", eps)
        self._count = 0
        self._moments: dict[str, torch.Tensor] = {}

    def step(self, objective: MetaObjective, params: Params, remaining: float = 1.0) -> OuterStep:
        gradient, stats = self._gradient(objective)
        rate = stats["train/learning_rate"] = self._rate(remaining)
        # PyTorch's kernel writes where it reads: into copies, since whoever holds the tensors of before keeps them.
        new = {name: _copy(tensor) for name, tensor in params.items()}
        keys = [f"{kind}/{name}" for name in params for kind in KINDS]
        old = self._moments or dict(zip(keys, (torch.zeros_like(t) for t in new.values() for _ in KINDS), strict=True))
        moments = {key: _copy(old[key]) for key in keys}
        first, second = ([moments[f"{kind}/{name}"] for name in params] for kind in KINDS)
        with torch.no_grad():
            adam(
                list(new.values()),
                [gradient[name].contiguous() for name in params],
                first,
                second,
                [],
                list(torch.full((len(params),), float(self._count)).unbind()),
                fused=True,
                amsgrad=False,
                beta1=self.beta1,
                beta2=self.beta2,
                lr=rate,
                weight_decay=0.0,
                eps=self.eps,
                maximize=False,
            )
        self._count, self._moments = self._count + 1, moments
        return OuterStep(new, stats)

    def state(self) -> dict[str, torch.Tensor]:
        return {"count": torch.tensor(self._count), **self._moments}

    def load_state(self, state: Mapping[str, torch.Tensor], params: Params) -> None:
        if not state:
            # The checkpoint is another optimiser's: this one starts afresh.
            self._count, self._moments = 0, {}
            return
        moments = {name: tensor for name, tensor in state.items() if name != "count"}
        number = state.get("count", torch.tensor(-1))
        whole = number.numel() == 1 and number.dtype == torch.int64
        count = int(number) if whole and 0 <= int(number) <= LARGEST else -1
        expected = {f"{kind}/{name}": tensor for name, tensor in params.items() for kind in KINDS}
        names = set(expected) if count > 0 else set()
        fits = set(moments) == names and all(
            (t.dtype, t.shape) == (expected[n].dtype, expected[n].shape) for n, t in moments.items()
        )
        if count < 0 or not fits:
            raise CheckpointError("the state of Adam does not fit the parameters")
        if any(bool((t < 0.0).any()) for n, t in moments.items() if n.startswith("second/")):
            raise CheckpointError("the state of Adam has negative squares")
        self._count, self._moments = count, moments


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
