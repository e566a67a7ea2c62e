"""Encoders: what was seen of a task as a latent z, a pure function of named tensors, batched over tasks.

Each encoder is a file beside this one, and registers itself::

    @register_encoder("sum")
    class Sum(Encoder):
        def __init__(self, sizes, *, gain=1.0):
            super().__init__(sizes)
            self.gain = gain

        def init(self, generator):
            return {"matrix": torch.randn(self.sizes.latent, self.sizes.inputs, generator=generator)}

        def encode(self, params, seen, second_order=True):
            return self.gain * row(params["matrix"], (seen.weights[..., None] * seen.x).sum(1))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from metarl.agents.networks.distributions import Gaussian
from metarl.agents.networks.products import outer
from metarl.errors import unknown_name
from metarl.files.schema import constructor_hints
from metarl.meta.transfer.exploring.surrogates import surrogate_scores
from metarl.meta.transfer.layers import Mlp
from metarl.params import Params
from metarl.registry import Registry


class Sizes(NamedTuple):
    """What an encoder is built for.

    :param inputs: numbers of one input x of the support.
    :param outputs: numbers of one target y of the support; of classes, how many there are.
    :param latent: numbers of z.
    :param loss: ``"squared_error"`` or ``"cross_entropy"``, the loss of the support; of episodes a surrogate.
    :param std: where the support is episodes, the deviation of a continuous action y; None where y is a choice.
    """

    inputs: int
    outputs: int
    latent: int
    loss: str = "squared_error"
    std: float | None = None


@dataclass(frozen=True)
class Seen:
    """What was seen of a batch of tasks: their support.

    :param x: inputs ``[task, n, inputs]``.
    :param y: targets ``[task, n, outputs]``; classes are one-hot.
    :param weights: ``[task, n]``, 1/n, so that a weighted sum is the mean.
    :param advantages: ``[task, n]``, where the support is steps of episodes, x observations and y actions; as the next.
    :param log_prob: ``[task, n]``, of the actions at the parameters that took them.
    :param first: ``[task, n]``, the index of the first step of each step's episode.
    """

    x: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor
    advantages: torch.Tensor | None = None
    log_prob: torch.Tensor | None = None
    first: torch.Tensor | None = None

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor) -> Seen:
        """Return the support that counts each example alike."""
        n = max(1, x.shape[1])
        return cls(x, y, torch.full(x.shape[:2], 1.0 / n, dtype=x.dtype))

    @property
    def pairs(self) -> torch.Tensor:
        """Inputs beside targets, ``[task, n, inputs + outputs]``."""
        return torch.cat([self.x, self.y], dim=-1)


class Encoder(ABC):
    """From a support to z.

    :param sizes: what it is built for.
    """

    name: ClassVar[str]
    """On the command line; registering sets it."""
    is_gradient: ClassVar[bool] = False
    """Whether z is a gradient of a loss on the support, so that training differentiates twice."""

    learner: Mlp
    """f, of encoders by a gradient."""
    decodes: ClassVar[bool] = True
    """Whether a decoder makes the policy of z; False where what was seen is part of the policy itself."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    @abstractmethod
    def init(self, generator: torch.Generator) -> Params:
        """Return fresh tensors."""

    @abstractmethod
    def encode(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        """Return z of every task, ``[task, k]``, differentiable in the tensors.

        :param params: shared by tasks, or stacked ``[task, …]``.
        :param seen: of one example at least.
        :param second_order: of encoders by a gradient: differentiate that too; otherwise it is a constant.
        """

    def support_loss(self, params: Params, seen: Seen) -> torch.Tensor:
        """Return the loss on the support, ``[task]``, of an encoder by a gradient, at what it has learnt."""
        return support_losses(self.learner(self.learnt(params), seen.x), seen, self.sizes)

    def learnt(self, params: Params) -> Params:
        """Return the tensors of f as it is learnt, of an encoder by a gradient: a function of x alone, which all tasks
        share, or ``[task, …]`` where they have tensors of their own.
        """
        raise NotImplementedError

    def __call__(self, params: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        """Return z of every task, ``[task, k]``: 0 where nothing was seen, as a gradient of no loss is."""
        if seen.x.shape[1] == 0:
            return seen.x.new_zeros(len(seen.x), self.sizes.latent)
        return self.encode(params, seen, second_order)

    @classmethod
    def options(cls) -> list[str]:
        """Return the names of its arguments."""
        return [name for name in constructor_hints(cls) if name != "sizes"]


ENCODERS: Registry[type[Encoder]] = Registry("encoder")
"""The encoders by name."""
Class = TypeVar("Class", bound=type[Encoder])


def register_encoder(name: str) -> Callable[[Class], Class]:
    """Return a decorator that registers an encoder under a name."""

    def register(cls: Class) -> Class:
        ENCODERS.add(name, cls)
        cls.name = name
        return cls

    return register


def gradient_encoders() -> list[str]:
    """Return the names of encoders by a gradient."""
    return [name for name, each in ENCODERS.items() if each.is_gradient]


def make_encoder(name: str, sizes: Sizes, kwargs: Mapping[str, Any]) -> Encoder:
    """Build an encoder by name.

    :raises UnknownNameError: no such encoder, or an argument that it does not take.
    """
    cls = ENCODERS.find(name)
    for argument in kwargs:
        if argument not in cls.options():
            raise unknown_name(f"argument of encoder {name!r}:", argument, cls.options())
    encoder: Encoder = cls(sizes, **kwargs)
    return encoder


def support_losses(outputs: torch.Tensor, seen: Seen, sizes: Sizes) -> torch.Tensor:
    """Return the mean loss of each task's support, ``[task]``: ‖f(x) − y‖², or −log softmax(f(x)) at the class.

    Of episodes it is minus the mean of advantages times what the surrogate says, see
    :mod:`metarl.meta.transfer.exploring.surrogates`.
    """
    if seen.advantages is not None:
        assert seen.log_prob is not None
        log_prob = action_log_prob(outputs, seen.y, sizes.std)
        scores = surrogate_scores(sizes.loss, log_prob, seen.log_prob, seen.first)
        return -(seen.weights * seen.advantages * scores).sum(-1)
    each = (outputs - seen.y).square() if sizes.loss == "squared_error" else -seen.y * outputs.log_softmax(-1)
    return (seen.weights * each.sum(-1)).sum(-1)


def action_log_prob(outputs: torch.Tensor, actions: torch.Tensor, std: float | None) -> torch.Tensor:
    """Return the log-probability of actions ``[task, n, action]``, one-hot where they are choices."""
    if std is None:
        return (actions * outputs.log_softmax(-1)).sum(-1)
    return Gaussian(outputs, outputs.new_full(outputs.shape[-1:], log(std))).log_prob(actions)


def sensitivities(
    learner: Mlp, theta: Params, seen: Seen, sizes: Sizes, second_order: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return, of each layer, what goes in and the gradient of a task's loss at what comes out, ``[task, n, units]``.

    Gradients at layers are each task's own although θ is shared: it need not be copied for every task to have them.

    :param learner: f.
    :param theta: its tensors.
    :param second_order: differentiable in them; otherwise constants.
    """
    if not second_order:
        theta = {name: tensor.detach() for name, tensor in theta.items()}
    with torch.enable_grad():
        # Where θ is constant, layers need something else to be functions of.
        passes = learner.passes(theta, seen.x.detach().requires_grad_())
        losses = support_losses(passes[-1][1], seen, sizes)
        at = [after for _, after in passes]
        found = torch.autograd.grad(losses.sum(), at, create_graph=second_order)
    return [
        (before if second_order else before.detach(), each) for (before, _), each in zip(passes, found, strict=True)
    ]


def parameter_gradient(sensitivities: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the gradient of each task's loss in all tensors of f, in their order, ``[task, d]``."""
    parts = [part for x, error in sensitivities for part in (outer(error, x).flatten(1), error.sum(1))]
    return torch.cat(parts, dim=-1)
