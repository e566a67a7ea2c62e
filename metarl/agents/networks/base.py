"""What a policy's network is asked for, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from metarl.agents.derivatives.base import Derivatives, HeadLoss, Linearized, Outputs
from metarl.params import Params
from metarl.registry import Registry


class Network(ABC):
    """The tensors of an SB3 policy as pure functions of them, for one task (``[…]``) or a stack (``[task, …]``)::

        from metarl.agents.networks.cnn import NatureNetwork

        @register_network("LargeImagesPolicy")
        class LargeImages(NatureNetwork):  # ConvNetwork is for layers of one's own, differentiated by autograd
            smallest = 84

        policy = FunctionalPolicy("LargeImagesPolicy", Box(0, 255, (4, 84, 84), np.uint8), Discrete(6))

    :param module: gives names, shapes and layers; nothing of it is changed or kept for its numbers.
    :param critic: whether the critic's tensors belong to it too.
    """

    name: ClassVar[str]
    """Of the policy, as SB3 calls it; registering sets it."""
    module_class: ClassVar[type[ActorCriticPolicy]]
    """Makes the module."""
    stock: ClassVar[bool]
    """Whether that is one of SB3's own policies, so that an export needs no code of ours."""

    names: list[str]
    """The tensors, in SB3's order."""
    buffers: Params
    """What is not learnt by gradients, at its start; named among the parameters with ``statistics/`` before it."""
    inputs: list[str]
    """The layers that observations enter."""
    width: int
    """Numbers that the widest layer gives for one observation; it sets how many tasks fit a chunk."""
    depth: int
    """Activations on the way from an observation to an action."""
    n_outputs: int
    """Outputs of the actor's last layer."""
    kept: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Shapes of what :meth:`keeper` keeps of an observation, by name; none where it is not able to."""
    transductive: bool = False
    """Whether what it says of an observation depends on the other ones of the batch."""
    min_rows: int
    """Fewest observations of a task that the actor is asked for as copies end; with fewer it computes no less, or other
    bits."""
    rowwise: bool = False
    """Whether a row's bits depend on nothing else, however few there are."""

    @classmethod
    @abstractmethod
    def check(cls, observation_space: spaces.Space[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords that concern the network and its features, as the module's class takes them.

        :param kwargs: ``net_arch``, ``features_extractor_class`` and other keywords of the module, their kinds checked.
        :raises ConfigError: observations or values that the network does not take.
        """

    @abstractmethod
    def __init__(self, module: ActorCriticPolicy, critic: bool) -> None: ...

    @abstractmethod
    def outputs(self, params: Params, obs: torch.Tensor, critic: bool) -> Outputs:
        """Return the heads of the action distribution, and the critic's values if they are asked for."""

    def actor(self, params: Params) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the actor's last layer as a function of observations alone, for the steps of an episode.

        A network that can compute something of it once, does; the bits are those of :meth:`outputs`.
        """
        return lambda obs: self.outputs(params, obs, critic=False)[0][0]

    @abstractmethod
    def values(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        """Return the critic's values, ``[n]`` or ``[task, n]``."""

    @abstractmethod
    def differentiate(self, params: Params, obs: torch.Tensor, loss: HeadLoss, second_order: bool) -> Derivatives:
        """Return the derivatives of a loss; ``params`` are stacked."""

    def keeper(self, params: Params) -> Callable[[torch.Tensor, Params], Outputs]:
        """Return the heads and values of one task as a function ``(obs, kept) → outputs`` that fills ``kept``, ``[n,
        …]``, for the steps of a rollout; for networks that have something there.
        """
        raise NotImplementedError

    def differentiate_kept(
        self,
        params: Params,
        obs: torch.Tensor,
        loss: HeadLoss,
        kept: Mapping[str, torch.Tensor],
        into: Params | None = None,
    ) -> Derivatives:
        """Return the derivatives of a loss at the stacked parameters that ``kept``, ``[task, n, …]``, is of.

        :param into: takes the gradient; new tensors where it is None.
        """
        raise NotImplementedError

    @abstractmethod
    def linearize(self, params: Params, obs: torch.Tensor) -> Linearized:
        """Return the derivative of the heads."""

    def moved_statistics(self, params: Params, obs: torch.Tensor, counts: np.ndarray | None, momentum: float) -> Params:
        """Return :attr:`buffers`, moved from those in ``params`` towards those of ``obs``; there are none."""
        del params, obs, counts, momentum
        return {}


NETWORKS: Registry[type[Network]] = Registry("policy", capitals=True)
"""Every network by the name of its policy."""
Class = TypeVar("Class", bound=type[Network])


def register_network(name: str) -> Callable[[Class], Class]:
    """Return a decorator that registers a network: constructors and the command line know the policy from then on.

    :param name: of the policy, such as ``"MlpPolicy"``.
    :raises ConfigError: a name that cannot be typed, or one that another network has.
    """

    def register(cls: Class) -> Class:
        NETWORKS.add(name, cls)
        cls.name = name
        return cls

    return register


def with_own_heads(x: torch.Tensor, params: Params) -> tuple[torch.Tensor, ...]:
    """Return what a distribution is made of, given the last layer's output ``x``."""
    return (x, params["log_std"]) if "log_std" in params else (x,)
