"""What is meta-learnt: an encoder of what is seen, and a decoder to the policy that acts (S0, eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples, mean_weights
from metarl.checks import as_array, check_arguments
from metarl.envs.family import Family
from metarl.envs.supervised.one_step import OneStep
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, shorten
from metarl.meta.transfer import context, linear, nonlinear, pooling, recurrent, transformer  # noqa: F401  (register)
from metarl.meta.transfer.deep_kernel import DeepKernel, KernelPolicy
from metarl.meta.transfer.encoder import Seen, Sizes, make_encoder
from metarl.meta.transfer.hypernetwork import Hypernetwork
from metarl.meta.transfer.layers import of_each
from metarl.params import Params, group, grouped
from metarl.streams import generators

ENCODER, DECODER = "encoder/", "decoder/"
"""Begin the names of the meta-parameters."""


class TransferModel:
    """``ψ = M_D(M_E(support))``: the parameters of a policy from examples of what is seen, for a batch of tasks.

    :param support: the family whose examples are seen.
    :param policy: the policy that is decoded.
    :param encoder: its name.
    :param encoder_kwargs: its arguments.
    :param n_latent: k.
    :param decoder_kwargs: arguments of :class:`~metarl.meta.transfer.hypernetwork.Hypernetwork`.
    :param init: how the decoder begins, see :data:`~metarl.meta.transfer.hypernetwork.INITS`.
    """

    def __init__(
        self,
        support: Family,
        policy: FunctionalPolicy,
        encoder: str,
        encoder_kwargs: Mapping[str, Any],
        n_latent: int,
        decoder_kwargs: Mapping[str, Any],
        init: str,
    ) -> None:
        if policy.network.buffers or policy.network.transductive:
            raise ConfigError(f"{policy.name} normalises by batches, whose statistics no decoder says: take another")
        self.support, self.policy = support, policy
        self.sizes = self._sizes(n_latent)
        """Of what is seen, and of z."""
        self.encoder = make_encoder(encoder, self.sizes, encoder_kwargs)
        own = ("name", "shapes", "n_latent", "init")
        check_arguments(Hypernetwork.__init__, decoder_kwargs, "argument of the decoder", own=own)
        if isinstance(self.encoder, DeepKernel):
            if policy.has_critic:
                raise ConfigError(f"encoder={encoder!r} has no critic: take a learner that needs none")
            self.policy = KernelPolicy(policy.observation_space, policy.action_space, self.encoder)
            self.fresh = self.policy.shared(0)
            """Tensors of a policy; of a deep kernel those that tasks share."""
            return
        self.fresh = policy.init(0)
        shapes = {name: tensor.shape for name, tensor in self.fresh.items()}
        self.decoder = Hypernetwork("psi", shapes, n_latent, init=init, **decoder_kwargs)

    def _sizes(self, n_latent: int) -> Sizes:
        support, space = self.support, self.support.action_space
        n_classes = int(space.n) if isinstance(space, spaces.Discrete) else None
        n_inputs, n_outputs = prod(support.observation_space.shape), n_classes or prod(space.shape or ())
        return Sizes(n_inputs, n_outputs, n_latent, support.loss or "squared_error")

    def init(self, seed: int) -> Params:
        """Return fresh meta-parameters."""
        generator = torch.Generator().manual_seed(seed)
        encoder = self.encoder.init(generator)
        if isinstance(self.policy, KernelPolicy):
            return {**grouped(encoder, ENCODER), **grouped(self.policy.shared(seed), DECODER)}
        decoder = self.decoder.init(generator, self.policy.init(seed))
        return {**grouped(encoder, ENCODER), **grouped(decoder, DECODER)}

    def latent(self, meta: Params, seen: Seen, second_order: bool = True) -> torch.Tensor:
        """Return z of every task, ``[task, k]``; the meta-parameters are shared by tasks, or stacked."""
        return self.encoder(group(meta, ENCODER), seen, second_order)

    def decode(self, meta: Params, z: torch.Tensor) -> Params:
        """Return the policy's tensors ψ of every task, ``[task, …]``, from z."""
        return self.decoder(group(meta, DECODER), z)

    def tensors(self, meta: Params, seen: Seen, second_order: bool = True) -> Params:
        """Return the policy's tensors ψ of every task, ``[task, …]``, differentiable in the meta-parameters."""
        if not isinstance(self.encoder, DeepKernel):
            return self.decode(meta, self.latent(meta, seen, second_order))  # eq. 4, 5 or 6, and 7
        shared, ranks = group(meta, DECODER), {name: t.ndim for name, t in self.fresh.items()}
        own = {name: of_each(tensor, len(seen.x), ranks[name]) for name, tensor in shared.items()}
        return {**own, **self.encoder.read(group(meta, ENCODER), seen)}

    def support_loss(self, meta: Params, seen: Seen) -> torch.Tensor:
        """Return the loss on the support, ``[task]``, of an encoder by a gradient."""
        return self.encoder.support_loss(group(meta, ENCODER), seen)

    def policies(self, meta: Params, seen: Seen) -> Params:
        """Return the policy's tensors ψ of every task, to act with: nothing is differentiated."""
        detached = {name: tensor.detach() for name, tensor in meta.items()}
        psi = self.tensors(detached, seen, second_order=False)
        return {name: tensor.detach().contiguous() for name, tensor in psi.items()}

    # ---------------------------------------------------------------------------------------------- what is seen of it
    def draw(self, meta: Params, tasks: Tasks, seeds: Sequence[np.random.SeedSequence], n: int) -> Samples:
        """Draw ``n`` further examples of every task, task ``i`` from ``seeds[i]``."""
        del meta
        assert isinstance(self.support, OneStep)
        return self._as_samples(*self.support.examples(tasks, generators(seeds), n))

    def meet(self, env: gym.Env[Any, Any], meta: Params, seed: np.random.SeedSequence, n: int) -> Samples:
        """Play ``n`` episodes, of an example each, of an environment whose task need not be known.

        :raises ConfigError: it is not of the spaces of what is seen, or reports no target.
        """
        del meta
        support, rng, pairs = self.support, np.random.default_rng(seed), []
        if (env.observation_space, env.action_space) != (support.observation_space, support.action_space):
            raise ConfigError(
                f"env {env} has {env.observation_space} and {env.action_space}; what is seen has "
                f"{support.observation_space} and {support.action_space}: pass such an environment, one of "
                "the family itself, or support=(x, y)"
            )
        for _ in range(n):
            obs, _ = env.reset(seed=int(rng.integers(2**31)))
            *_, told = env.step(_nothing(env))
            if "target" not in told:
                raise ConfigError(f"{env} reports no target, from which to learn what is seen")
            pairs.append((np.array(obs), np.array(told["target"])))
        x, y = (np.stack(column) for column in zip(*pairs, strict=True))
        return self.given((x, y))

    def given(self, support: Any) -> Samples:
        """Return the examples of one task that somebody hands over.

        :param support: a pair of inputs ``[n, *input]`` and targets ``[n, *target]``, classes as the space counts them.
        :raises ConfigError: something else, such as a support of another width.
        """
        if not (isinstance(support, (tuple, list)) and len(support) == 2):
            raise ConfigError(f"support={shorten(support)} is no pair (x, y) of inputs and targets")
        arrays = []
        widths = self.support.observation_space.shape, self.support.action_space.shape or ()
        for what, given, width in zip(("inputs", "targets"), support, widths, strict=True):
            try:
                array = as_array(given, np.float64)
            except (TypeError, ValueError):
                raise ConfigError(f"support has {what} {shorten(given)}, which are no array of numbers") from None
            if array.shape[1:] != width or array.ndim == 0 or not np.isfinite(array).all():
                found = f"of shape {list(array.shape)}" if np.isfinite(array).all() else "that are not finite"
                expected = ", ".join(["n", *map(str, width)])
                raise ConfigError(f"support has {what} {found}: {self.support.id} has [{expected}], finite")
            arrays.append(array[None])
        x, y = arrays
        if len(x[0]) != len(y[0]):
            raise ConfigError(f"support has {len(x[0])} inputs and {len(y[0])} targets")
        space = self.support.action_space
        if isinstance(space, spaces.Discrete) and not np.isin(y, space.start + np.arange(space.n)).all():
            raise ConfigError(f"support has targets {shorten(y[0].tolist())}: {self.support.id} has classes {space}")
        return self._as_samples(x, y)

    def nothing(self, n: int) -> Seen:
        """Return that nothing was seen of ``n`` tasks."""
        return Seen.of(torch.zeros(n, 0, self.sizes.inputs), torch.zeros(n, 0, self.sizes.outputs))

    def seen(self, batches: Sequence[Samples]) -> Seen:
        """Return what was seen in several batches together."""
        x, y = (torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in ("obs", "target"))
        return Seen.of(x, y)

    def _as_samples(self, inputs: np.ndarray, targets: np.ndarray) -> Samples:
        n, count = inputs.shape[:2]
        x = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).reshape(n, count, -1)
        if self.support.observation_space.dtype == np.uint8:
            x = x / 255.0
        space = self.support.action_space
        if isinstance(space, spaces.Discrete):
            classes = torch.from_numpy(targets.astype(np.int64) - int(space.start))
            y = torch.nn.functional.one_hot(classes, int(space.n)).to(x.dtype)
        else:
            y = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32))
        counts = np.full(n, count)
        ends = np.broadcast_to(np.arange(1, count + 1), (n, count))
        return Samples(x, y, None, mean_weights(counts, count), counts, ends, target=y)


def task_dimension(space: spaces.Dict) -> int:
    """Return how many numbers tell a task: what k is where it is not given."""
    return sum(prod(part.shape or ()) for part in space.spaces.values())


def support_of(family: Family) -> OneStep:
    """Return the family in which tasks are seen.

    :raises ConfigError: nothing supervised is seen of them.
    """
    support = family if family.support_family is None else family.support_family
    if not isinstance(support, OneStep):
        raise ConfigError(
            f"nothing that is supervised is seen of the tasks of {family.id}: it is neither a family of examples nor "
            "has it a support_family"
        )
    return support


def _nothing(env: gym.Env[Any, Any]) -> Any:
    """Return an action that every environment of these spaces takes: what is predicted does not matter."""
    space = env.action_space
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    return int(getattr(space, "start", 0))
