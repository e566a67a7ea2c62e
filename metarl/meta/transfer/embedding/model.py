"""From a support to parameters by way of latents that are descended in: what LEO meta-learns (Rusu et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from gymnasium import spaces

from metarl.agents.derivatives.unrolled import UnrolledPath
from metarl.agents.networks.distributions import Distribution, Gaussian
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.envs.supervised.one_step import OneStep
from metarl.errors import ConfigError
from metarl.meta.transfer.encoder import Seen
from metarl.meta.transfer.layers import Mlp, flatten, unflatten, uniform
from metarl.meta.transfer.model import DECODER, ENCODER, TransferModel
from metarl.params import Params, expand, group, grouped, inner_name

HEAD = "action_net"
SMALL = 0.1
"""The decoder's first weights where it decodes a whole network, as a part of what linear layers have: the network
begins near its own initialisation."""


@dataclass(frozen=True)
class Noise:
    """What is drawn for each task of a stack, standard normal.

    :param latent: ``[task, class, k]``.
    :param tensors: ``[task, class, numbers decoded]``.
    """

    latent: torch.Tensor
    tensors: torch.Tensor


@dataclass(frozen=True)
class Embedded:
    """What came of a support.

    :param psi: the policy's tensors, ``[task, …]``, after all steps.
    :param first: the latents that were encoded, ``[task, class, k]``.
    :param last: those that the steps led to.
    :param kl: ``[task]``, the divergence of the encoded distribution from N(0, I), a mean over its numbers.
    """

    psi: Params
    first: torch.Tensor
    last: torch.Tensor
    kl: torch.Tensor


class EmbeddingModel(TransferModel):
    """``z ~ N(μ_e, σ_e²)`` of a support, steps down its loss in z, ``w ~ N(μ_d, σ_d²)`` of z, steps in w (eq. 4 to 6).

    Of classes each has a latent, decoded to its row of the last layer on features that tasks share: the relation
    network looks at every pair of an example of the class and any example, and a class that nothing was seen of has
    N(0, I). Where predictions are numbers there is one latent for all, of pairs (x, y), decoded to the whole network.

    :param support: the family whose examples are seen.
    :param policy: whose tensors are decoded.
    :param n_latent: k, numbers of a latent.
    :param net_arch: hidden units of the relation network.
    :param n_latent_steps: gradient steps in z.
    :param n_finetune_steps: gradient steps in w.
    :param latent_lr: the rate of the former begins there; it is meta-learnt.
    :param finetune_lr: that of the latter, likewise.
    :param decoder_std: σ_d begins there.
    :param max_latent_step: how long a step of a task in z is at most; None: as long as it comes out.
    """

    def __init__(
        self,
        support: OneStep,
        policy: FunctionalPolicy,
        n_latent: int,
        *,
        net_arch: Sequence[int] = (128, 128),
        n_latent_steps: int = 5,
        n_finetune_steps: int = 5,
        latent_lr: float = 1.0,
        finetune_lr: float = 0.001,
        decoder_std: float = 0.01,
        max_latent_step: float | None = None,
    ) -> None:
        if policy.network.buffers:
            raise ConfigError(f"{policy.name} has running statistics, which no latent says: take those of batches")
        self.support, self.policy = support, policy
        self.sizes = self._sizes(n_latent)
        self._rates = latent_lr, finetune_lr
        self.n_latent_steps, self.n_finetune_steps = n_latent_steps, n_finetune_steps
        self._std, self._longest = decoder_std, max_latent_step
        self.fresh = policy.init(0)
        self.of_classes = isinstance(policy.action_space, spaces.Discrete)
        self.n_classes = self.sizes.outputs if self.of_classes else 1
        """Latents of a task."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.fresh.items()}
        self._decoded = {n: s for n, s in shapes.items() if not self.of_classes or n.startswith(f"{HEAD}.")}
        self._n_features = shapes[f"{HEAD}.weight"][1]
        self.n_decoded = sum(map(prod, self._decoded.values())) // self.n_classes
        """Numbers that a latent is decoded to."""
        n_inputs = self._n_features if self.of_classes else self.sizes.inputs + self.sizes.outputs
        self._encoder_shapes = {"embedding.weight": (n_latent, n_inputs)}
        self._relation = Mlp("relation", 2 * n_latent, net_arch, 2 * n_latent)

    def init(self, seed: int) -> Params:
        """Return fresh meta-parameters: of the encoder, the decoder, both rates, and the layers that tasks share."""
        generator = torch.Generator().manual_seed(seed)
        module = self.policy.init(seed)
        latent_lr, finetune_lr = map(torch.tensor, self._rates)
        encoder = uniform(self._encoder_shapes, generator) | self._relation.init(generator)
        k = self.sizes.latent
        decoder = uniform({"mean.weight": (self.n_decoded, k), "std.weight": (self.n_decoded, k)}, generator)
        if not self.of_classes:
            decoder["mean.weight"] = SMALL * decoder["mean.weight"]
            decoder["mean.bias"] = flatten(module, 0)
        decoder["std.weight"] = torch.zeros_like(decoder["std.weight"])
        decoder["std.bias"] = torch.full((self.n_decoded,), log(self._std))
        return {
            **{name: tensor for name, tensor in module.items() if name not in self._decoded},
            **grouped(encoder | {"latent_lr": latent_lr}, ENCODER),
            **grouped(decoder | {"finetune_lr": finetune_lr}, DECODER),
        }

    # ------------------------------------------------------------------------------------------- encoding and decoding
    def encoded(self, meta: Params, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and logarithm of the deviation of every task's latents, ``[task, class, k]``.

        With h of each example and g the relation network, (μ, log σ) of class n is the mean of g(h_i, h_j) over the
        examples i of that class and all j.
        """
        params = group(meta, ENCODER)
        inputs = self.features(meta, seen) if self.of_classes else seen.pairs
        h = inputs @ params["embedding.weight"].T
        n_tasks, n, k = h.shape
        pairs = torch.cat([h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1)], dim=-1)
        related = self._relation(params, pairs.reshape(n_tasks, n * n, 2 * k)).view(n_tasks, n, n, 2 * k)
        of_class = seen.y if self.of_classes else torch.ones_like(seen.y[..., :1])
        share = of_class / of_class.sum(1, keepdim=True).clamp(min=1.0) / max(1, n)
        mean, log_std = torch.einsum("tic,tijk->tck", share, related).chunk(2, dim=-1)
        return mean, log_std

    def features(self, meta: Params, seen: Seen) -> torch.Tensor:
        """Return what the layers that tasks share make of inputs, ``[task, n, feature]``."""
        n_tasks, size = len(seen.x), self._n_features
        head = {f"{HEAD}.weight": torch.eye(size), f"{HEAD}.bias": torch.zeros(size)}
        own = {name: tensor.to(seen.x.dtype) for name, tensor in head.items()}
        params = {**self._shared(meta, n_tasks), **expand(own, n_tasks)}
        return self.policy.network.outputs(params, self._inputs(seen), critic=False)[0][0]

    def decoded(self, meta: Params, z: torch.Tensor, noise: torch.Tensor | None = None) -> Params:
        """Return the tensors that latents are decoded to, ``[task, …]``; their mean without noise.

        :param z: ``[task, class, k]``.
        :param noise: standard normal, ``[task, class, numbers decoded]``.
        """
        params = group(meta, DECODER)
        w = z @ params["mean.weight"].T
        if "mean.bias" in params:
            w = w + params["mean.bias"]
        if noise is not None:
            w = w + noise * torch.exp(z @ params["std.weight"].T + params["std.bias"])
        if not self.of_classes:
            return unflatten(w[:, 0], self._decoded)
        return {f"{HEAD}.weight": w[..., :-1], f"{HEAD}.bias": w[..., -1]}

    def _shared(self, meta: Params, n_tasks: int) -> Params:
        own = {inner_name(name): tensor for name, tensor in meta.items()}
        return expand({name: own[name] for name in self.fresh if name not in self._decoded}, n_tasks)

    def _inputs(self, seen: Seen) -> torch.Tensor:
        """Return the inputs as the policy takes them."""
        space = self.support.observation_space
        x = seen.x.reshape(*seen.x.shape[:2], *space.shape)
        return x * 255.0 if space.dtype == "uint8" else x

    # ------------------------------------------------------------------------------------------------------ adaptation
    def embedded(self, meta: Params, seen: Seen, noise: Noise | None = None) -> Embedded:
        """Return what comes of a support, differentiable in the meta-parameters, rates included.

        Steps are z ← z − α ∇_z L(ψ(z)), then w ← w − β ∇_w L(w). One draw serves all decodings of a task, so that all
        steps go down one loss.

        :param noise: None takes means.
        """
        n_tasks, n = seen.x.shape[:2]
        nothing = seen.x.new_zeros(n_tasks, self.n_classes, self.sizes.latent)
        mean, log_std = self.encoded(meta, seen) if n else (nothing, nothing)
        z = mean if noise is None else mean + torch.exp(log_std) * noise.latent
        kl = (0.5 * (torch.exp(2.0 * log_std) + mean.square() - 1.0) - log_std).mean((1, 2))
        shared, drawn = self._shared(meta, n_tasks), None if noise is None else noise.tensors
        steps = (self.n_latent_steps, self.n_finetune_steps) if n else (0, 0)

        def loss(w: Params) -> torch.Tensor:
            return self.loss({**shared, **w}, seen)

        def loss_in_z(at: Params) -> torch.Tensor:
            return loss(self.decoded(meta, at["z"], drawn))

        rates = meta[f"{ENCODER}latent_lr"], meta[f"{DECODER}finetune_lr"]
        descent = UnrolledPath([loss_in_z] * steps[0], [rates[0]] * steps[0], self._longest)
        last = descent.end({"z": z})["z"]
        tuned = UnrolledPath([loss] * steps[1], [rates[1]] * steps[1]).end(self.decoded(meta, last, drawn))
        psi = {**shared, **tuned}
        return Embedded({name: psi[name] for name in self.fresh}, z, last, kl)

    def loss(self, psi: Params, seen: Seen) -> torch.Tensor:
        """Return the loss on the support, ``[task]``: the mean squared error, or the mean cross-entropy."""
        says: Distribution = self.policy.distribution(psi, self._inputs(seen))
        if isinstance(says, Gaussian):
            each = (says.mean - seen.y).square().sum(-1)
        else:
            each = -says.log_prob(seen.y.argmax(-1))
        return (seen.weights * each).sum(-1)

    def tensors(self, meta: Params, seen: Seen, second_order: bool = True) -> Params:
        """Return the policy's tensors ψ of every task, ``[task, …]``, from the means of all distributions."""
        del second_order
        return self.embedded(meta, seen).psi

    def orthogonality(self, meta: Params) -> torch.Tensor:
        """Return the mean square of C − I, where C are the correlations of what each number of z is decoded to."""
        weight = torch.cat([meta[f"{DECODER}{part}.weight"] for part in ("mean", "std")])
        unit = weight / (torch.linalg.vector_norm(weight, dim=0, keepdim=True) + 1e-12)
        away: torch.Tensor = unit.T @ unit - torch.eye(weight.shape[1], dtype=weight.dtype)
        return away.square().mean()

    def squares(self, meta: Params) -> torch.Tensor:
        """Return half the squared norm of all weights of encoder, relation network and decoder."""
        own = {**group(meta, ENCODER), **group(meta, DECODER)}
        return torch.stack([t.square().sum() for name, t in own.items() if name.endswith(".weight")]).sum() / 2.0
