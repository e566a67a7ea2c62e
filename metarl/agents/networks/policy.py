"""Stock SB3 policies as pure functions of named tensors.

The tensors keep the names they have in SB3's ``ActorCriticPolicy`` (``action_net.weight``, ``log_std``, …), so an
export is a copy. Functions take one task's tensors or a stack with a leading task axis alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from metarl.agents.derivatives.base import Derivatives, HeadLoss, Linearized, LossFunction
from metarl.agents.derivatives.context import ContextDerivatives, ContextLinearized
from metarl.agents.generators import drawing_from
from metarl.agents.networks import cnn, mlp  # noqa: F401  (they register themselves)
from metarl.agents.networks.arguments import sb3_policy_kwargs
from metarl.agents.networks.base import NETWORKS, with_own_heads
from metarl.agents.networks.context import Context
from metarl.agents.networks.continual import hard_attention, progressive  # noqa: F401
from metarl.agents.networks.distributions import Distribution, chooser, from_heads
from metarl.agents.parallel import library_torch
from metarl.checks import COUNT_OR_ZERO
from metarl.errors import ConfigError, NoSuchNameError
from metarl.params import STATISTICS, Params, grouped


class _Policies(Mapping[str, type[ActorCriticPolicy]]):
    """The classes that make the policies of the registered networks, by name."""

    def __getitem__(self, name: str) -> type[ActorCriticPolicy]:
        return NETWORKS[name].module_class

    def __iter__(self) -> Iterator[str]:
        return iter(NETWORKS)

    def __len__(self) -> int:
        return len(NETWORKS)


POLICIES = _Policies()
_OF_MODULES = {
    *("action_net", "value_net", "mlp_extractor", "features_extractor", "log_std", "optimizer", "device", "training"),
    *("pi_features_extractor", "vf_features_extractor", "features_dim", "action_dist", "dist_kwargs"),
    *inspect.signature(ActorCriticPolicy.__init__).parameters,
}
"""What SB3's policies have beside the attributes of their class."""


class FunctionalPolicy:
    """A stock ``ActorCriticPolicy`` as functions of its named tensors::

        policy = FunctionalPolicy("MlpPolicy", env.observation_space, env.action_space, {"net_arch": [64, 64]})
        params = expand(policy.init(seed=0), n_tasks)                     # [task, …]
        log_prob = policy.distribution(params, obs).log_prob(actions)     # [task, n]
        found = policy.differentiate(params, obs, lambda d, values: (d.mode() - target).square().mean((1, 2)))
        params = {name: tensor - 0.1 * found.gradient[name] for name, tensor in params.items()}

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` (SB3's, with NatureCNN) or ``"FewShotCnnPolicy"``.
    :param observation_space: a Box; MlpPolicy flattens observations, the others take images, channels first.
    :param action_space: a Box (Gaussian) or Discrete (categorical).
    :param policy_kwargs: as in SB3; ``activation_fn`` may be a name such as ``"relu"``. Those of
        FewShotCnnPolicy's ``features_extractor_kwargs`` are said at :class:`~metarl.agents.networks.cnn.FewShotCNN`.
    :param critic: whether the critic's tensors belong to it too; without them there is the actor alone.
    :param context: the size of a context that the first layers see beside the observation, see
        :mod:`metarl.agents.networks.context`; 0 for none.
    :raises ConfigError: spaces or keywords that cannot be evaluated functionally.
    """

    def __init__(
        self,
        policy: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        policy_kwargs: Mapping[str, Any] | None = None,
        critic: bool = False,
        context: int = 0,
    ) -> None:
        kind = NETWORKS.find(policy)
        vector = isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
        if not (vector or isinstance(action_space, spaces.Discrete)):
            raise ConfigError(
                f"action space {action_space} is not supported: use a Box of one axis or a Discrete space"
            )
        self.name = policy
        self.action_space = action_space
        self.policy_kwargs = kind.check(observation_space, sb3_policy_kwargs(policy_kwargs))
        assert isinstance(observation_space, spaces.Box)
        self.observation_space = observation_space
        self.has_critic = critic
        self.network = kind(self.build(seed=0), critic)
        """The tensors' names, sizes and derivatives."""
        size = COUNT_OR_ZERO("context", context)
        self.context = Context(size, self.network.inputs) if size else None
        self.width = self.network.width
        """Numbers that the widest layer gives for one observation; it sets how many tasks fit a chunk."""
        self.rowwise, self.min_rows = self.network.rowwise, self.network.min_rows
        """Fewest observations of a task for which it computes the same bits as among more."""
        self.names = [
            *self.network.names,
            *(self.context.names if self.context else ()),
            *grouped(self.network.buffers, STATISTICS),
        ]
        """The tensors, in SB3's order; then those that SB3 has no name for."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say what there is instead of an attribute of SB3's policies; only missing ones come here."""
            if hasattr(ActorCriticPolicy, name) or name in _OF_MODULES:
                raise self._no_module(f"has no {name}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Say what there is instead of calling SB3's policies."""
            del args, kwargs
            raise self._no_module("cannot be called")

    def _no_module(self, what: str) -> NoSuchNameError:
        return NoSuchNameError(
            f"{type(self).__name__} {what}: these are functions; a meta-algorithm's predict acts, "
            "policy_params are its tensors, and to_sb3() returns a stock model with SB3's policy"
        )

    def __str__(self) -> str:
        """Return the networks as PyTorch prints them: SB3's users print a policy to see its architecture."""
        return str(self.build(seed=0))

    def build(self, seed: int) -> ActorCriticPolicy:
        """Return a fresh stock policy, initialised as SB3 does it from ``seed``; global generators are left alone.

        It has no optimiser.
        """
        # The last bits of the orthogonal initialisation would depend on the number of threads.
        with library_torch(), drawing_from(seed):
            return self._module()

    def _module(self) -> ActorCriticPolicy:
        return NETWORKS[self.name].module_class(
            self.observation_space,
            self.action_space,
            lambda _: 0.0,
            optimizer_class=no_optimizer,  # type: ignore[arg-type]
            **self.policy_kwargs,
        )

    def init(self, seed: int) -> Params:
        """Return fresh tensors, float32."""
        with library_torch(), drawing_from(seed):
            module = self._module()
            tensors = dict(module.named_parameters())
            params = {name: tensors[name].detach().clone() for name in self.network.names}
            if self.context is not None:
                params.update(self.context.init(module))
        buffers = {name: tensor.clone() for name, tensor in self.network.buffers.items()}
        return {**params, **grouped(buffers, STATISTICS)}

    def fold(self, params: Params) -> Params:
        """Return the tensors of the policy without a context that acts the same: SB3's own, for an export."""
        return params if self.context is None else self.context.fold(params)

    def distribution(self, params: Params, obs: torch.Tensor) -> Distribution:
        """Return the action distribution at ``obs``.

        :param params: the tensors, each ``[…]`` or stacked ``[task, …]``.
        :param obs: ``[n, *observation]`` or ``[task, n, *observation]``, of the tensors' dtype.
        """
        return from_heads(self.network.outputs(self.fold(params), obs, critic=False)[0])

    def actor(self, params: Params) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        """Return the policy at ``params`` as a function ``(obs, noise) → actions``, for the steps of an episode.

        What does not depend on observations is computed once; the bits are those of :meth:`distribution`. Without noise
        actions are the most likely ones.
        """
        plain = self.fold(params)
        last_layer, choose = self.network.actor(plain), chooser(plain.get("log_std"))
        return lambda obs, noise: choose(last_layer(obs), noise)

    def values(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        """Return the critic's values at ``obs``, ``[n]`` or ``[task, n]``; the parameters are as above.

        :raises ConfigError: the policy was made without a critic.
        """
        if not self.has_critic:
            raise ConfigError("this policy has no critic: make it with critic=True")
        return self.network.values(self.fold(params), obs)

    def judge(self, params: Params, obs: torch.Tensor) -> tuple[Distribution, torch.Tensor]:
        """Return the action distribution and the critic's values at ``obs``, in one pass; the parameters are as above.

        :raises ConfigError: the policy was made without a critic.
        """
        if not self.has_critic:
            raise ConfigError("this policy has no critic: make it with critic=True")
        heads, (values,) = self.network.outputs(self.fold(params), obs, critic=True)
        return from_heads(heads), values

    def keeper(self, params: Params) -> Callable[[torch.Tensor, Params], tuple[Distribution, torch.Tensor]]:
        """Return the same at one task's ``params`` as a function ``(obs, kept)``, for the steps of a rollout.

        ``kept`` takes what the network keeps, ``[n, …]``, see :meth:`differentiate`.
        """
        look = self.network.keeper(self.fold(params))

        def judge(obs: torch.Tensor, kept: Params) -> tuple[Distribution, torch.Tensor]:
            heads, (values,) = look(obs, kept)
            return from_heads(heads), values

        return judge

    def heads(self, x: torch.Tensor, params: Params) -> tuple[torch.Tensor, ...]:
        """Return what the distribution is made of, given the last layer's output ``x``."""
        return with_own_heads(x, params)

    def moved_statistics(
        self, params: Params, obs: torch.Tensor, counts: np.ndarray | None = None, momentum: float = 0.1
    ) -> Params:
        """Return the parameters with running statistics moved towards those at ``obs``; others are left as they are.

        The rule is that of PyTorch's batch norm in training, ``(1 − momentum) · old + momentum · new``, where the new
        variance is the unbiased one, and layers before are normalised by the batch.

        :param counts: how many of each task's observations count, the first ones; None: all.
        :param momentum: the share of what is new.
        """
        if not self.network.buffers:
            return params
        moved = self.network.moved_statistics(self.fold(params), obs, counts, momentum)
        return {**params, **grouped(moved, STATISTICS)}

    # ----------------------------------------------------------------------------------------------------- derivatives
    def differentiate(
        self,
        params: Params,
        obs: torch.Tensor,
        loss: HeadLoss,
        second_order: bool = False,
        kept: Mapping[str, torch.Tensor] | None = None,
        into: Params | None = None,
    ) -> Derivatives:
        """Return each task's loss and its gradient in the tensors, at ``params``.

        :param params: stacked ``[task, …]``.
        :param obs: ``[task, n, *observation]``.
        :param loss: the losses ``[task]`` at ``obs``, twice differentiable in the distribution's heads and the values.
        :param second_order: keep what products with the Hessian need.
        :param kept: what :meth:`keeper` kept of these observations at these very parameters, ``[task, n, …]``: it is
            not computed again, and there is no second order.
        :param into: with ``kept``: tensors such as the parameters that the gradient may be written into.
        """
        if kept is None:
            plain = self.network.differentiate(self.fold(params), obs, loss, second_order)
        else:
            plain = self.network.differentiate_kept(
                self.fold(params), obs, loss, kept, into if self.context is None else None
            )
        return plain if self.context is None else ContextDerivatives(plain, self.context, params)

    def linearize(self, params: Params, obs: torch.Tensor) -> Linearized:
        """Return the derivative of the distribution's heads in the tensors, at ``params``.

        :param params: the tensors, each ``[…]`` or stacked ``[task, …]``.
        :param obs: ``[n, *observation]`` or ``[task, n, *observation]``.
        """
        plain = self.network.linearize(self.fold(params), obs)
        return plain if self.context is None else ContextLinearized(plain, self.context, params)

    def loss_function(self, obs: torch.Tensor, loss: HeadLoss) -> LossFunction:
        """Return the losses at ``obs`` as a function of stacked parameters, differentiable any number of times.

        Paths of several levels are built of such functions, see :mod:`metarl.agents.derivatives.unrolled`.
        """

        def losses(params: Params) -> torch.Tensor:
            heads, values = self.network.outputs(self.fold(params), obs, self.has_critic)
            return loss(from_heads(heads), values[0] if values else None)

        return losses

    def actions_to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return actions as the environment takes them (the family clips, as SB3's collectors do)."""
        return actions + int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else actions


def no_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Stand for the optimiser that a stock policy makes, and that functions have no use for.

    Making one imports PyTorch's compiler, and SymPy with it: more than a second before the first line of training.
    """
    del parameters, lr
