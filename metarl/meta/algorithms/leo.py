"""LEO: meta-learning with latent embedding optimisation (Rusu et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.base import Learner
from metarl.agents.learners.registry import LEARNERS, Abilities
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples
from metarl.checks import COUNT_OR_ZERO, NONE, NOT_NEGATIVE, POSITIVE, integer
from metarl.envs.family import Family
from metarl.envs.supervised.one_step import OneStep
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Outcome
from metarl.meta.algorithms.transfer import Part, TransferAlgorithm, gradient_of
from metarl.meta.blocks.cut import Block
from metarl.meta.environments import AnyEnv
from metarl.meta.transfer.embedding.model import EmbeddingModel, Noise
from metarl.meta.transfer.layers import sizes_of
from metarl.meta.transfer.model import TransferModel
from metarl.params import Params
from metarl.streams import generators


class LEO(TransferAlgorithm):
    """Latent embedding optimisation: a few numbers that are decoded to parameters are what is adapted.

    An encoder and a relation network say latents z of a support, gradient steps of its loss go down in z, a decoder
    says parameters w of z, and further steps go down in w; both rates are meta-learnt. Of classes each has a latent,
    decoded to its row of the last layer, and the layers before are shared by tasks; where predictions are numbers, one
    latent is decoded to the whole network (:class:`~metarl.meta.transfer.embedding.model.EmbeddingModel`)::

        model = LEO("MlpPolicy", "Sinusoid-v0", n_latent=16, meta_batch_size=4, n_support=5)
        model.learn(total_timesteps=1)
        report = model.evaluate(n_tasks=3)  # after 0 and after 5 examples
        x = np.linspace(-5, 5, 8)[:, None]
        adapted = model.adapt(support=(x, 2.0 * np.sin(x + 0.5)))

    What is descended in training is L'(w) + β KL(q(z|support) ‖ N(0, I)) + γ ‖stopgrad(z') − z‖² + λ₁ ‖weights‖²/2 +
    λ₂ ‖C − I‖² (eq. 7), where z is what was encoded, z' what the steps in it led to, and C the correlations of what the
    decoder makes of each number of z. Divergence, distance and correlations are means over their numbers, as in the
    reference's code, so that its weights can be taken. z and w are drawn in training; evaluations take means.

    As of other wrappers that transfer, a step of an evaluation sees ``n_support`` further examples, and all that were
    seen are adapted to; the steps within are ``n_latent_steps`` and ``n_finetune_steps``. The reference's inputs are
    embeddings that were trained before, with dropout; here the layers below learn with the rest, without it.

    :param policy: ``"MlpPolicy"``, or one of images.
    :param env: a registered family's name or a family of supervised tasks or of imitation.
    :param n_latent: numbers of a latent.
    :param net_arch: hidden units of the relation network.
    :param n_latent_steps: gradient steps in z.
    :param n_finetune_steps: gradient steps in w.
    :param latent_lr: where the rate in z begins.
    :param finetune_lr: where the rate in w begins.
    :param decoder_std: where the deviation of w begins.
    :param max_latent_step: how long a step of a task in z is at most; None, as in the reference: as long as it comes
        out, with which steps down a squared error may diverge.
    :param kl_coef: β.
    :param encoder_coef: γ.
    :param l2_coef: λ₁.
    :param orthogonality_coef: λ₂.

    The other parameters are those of :class:`~metarl.meta.algorithms.transfer.TransferAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    name: ClassVar[str] = "leo"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "Sinusoid-v0",
        *,
        n_latent: int = 64,
        net_arch: Sequence[int] = (128, 128),
        n_latent_steps: int = 5,
        n_finetune_steps: int = 5,
        latent_lr: float = 1.0,
        finetune_lr: float = 0.001,
        decoder_std: float = 0.01,
        max_latent_step: float | None = None,
        kl_coef: float = 1e-3,
        encoder_coef: float = 1e-9,
        l2_coef: float = 1e-8,
        orthogonality_coef: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        n_latent = integer(1, 10**4)("n_latent", n_latent)
        self.net_arch = sizes_of("net_arch", net_arch)
        self.n_latent_steps = COUNT_OR_ZERO("n_latent_steps", n_latent_steps)
        self.n_finetune_steps = COUNT_OR_ZERO("n_finetune_steps", n_finetune_steps)
        self.latent_lr, self.finetune_lr = POSITIVE("latent_lr", latent_lr), POSITIVE("finetune_lr", finetune_lr)
        self.decoder_std = POSITIVE("decoder_std", decoder_std)
        self.max_latent_step = (POSITIVE | NONE)("max_latent_step", max_latent_step)
        self.kl_coef = NOT_NEGATIVE("kl_coef", kl_coef)
        self.encoder_coef = NOT_NEGATIVE("encoder_coef", encoder_coef)
        self.l2_coef = NOT_NEGATIVE("l2_coef", l2_coef)
        self.orthogonality_coef = NOT_NEGATIVE("orthogonality_coef", orthogonality_coef)
        super().__init__(policy, env, n_latent=n_latent, **kwargs)

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        reason = super().refusal(learner)
        if reason is None and "target" not in learner.info:
            fitting = " and ".join(repr(name) for name, other in LEARNERS.items() if "target" in other.info)
            return f"it learns from examples with targets, as {fitting} do, and reinforcement learning has none"
        return reason

    def _make_model(
        self, policy: FunctionalPolicy, make_learner: Callable[[FunctionalPolicy], Learner]
    ) -> tuple[TransferModel, Learner]:
        if not isinstance(self.family, OneStep) or self.n_latent is None:
            raise ConfigError(f"{self.name} learns from examples with targets: {self.family.id} has none")
        self._embedding = EmbeddingModel(
            self.family,
            policy,
            self.n_latent,
            net_arch=self.net_arch,
            n_latent_steps=self.n_latent_steps,
            n_finetune_steps=self.n_finetune_steps,
            latent_lr=self.latent_lr,
            finetune_lr=self.finetune_lr,
            decoder_std=self.decoder_std,
            max_latent_step=self.max_latent_step,
        )
        return self._embedding, make_learner(policy)

    # -------------------------------------------------------------------------------------------------------- training
    def _gradient(self, block: Block, outcome: Outcome, n: int) -> Part:
        assert outcome.query is not None
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.meta_params.items()}
        losses, says = self._forward(leaves, outcome.support, outcome.query, self._noise(block))
        return Part(float(losses.detach().sum()) / n, gradient_of(losses / n, leaves), says.mode().detach())

    def _noise(self, block: Block) -> Noise:
        """Return what is drawn for the tasks of a block, each from its own stream."""
        model, request = self._embedding, block.request
        sizes = model.sizes.latent, model.n_decoded
        rngs = generators(request.streams.tasks(request.n_tasks, part="/latent"))
        drawn = [[rng.standard_normal((model.n_classes, size), dtype="float32") for size in sizes] for rng in rngs]
        return Noise(*(torch.stack([torch.from_numpy(each[i]) for each in drawn]) for i in range(2)))

    def losses(self, meta: Params, support: Sequence[Samples], query: Samples, noise: Noise | None) -> torch.Tensor:
        """Return the loss of each task with all that is added to it, ``[task]``, a function of all meta-parameters.

        :param meta: the meta-parameters.
        :param support: what was seen of each task.
        :param query: what its policy is to do.
        :param noise: what is drawn; None: means are taken.
        """
        return self._forward(meta, support, query, noise)[0]

    def _forward(
        self, meta: Params, support: Sequence[Samples], query: Samples, noise: Noise | None
    ) -> tuple[torch.Tensor, Distribution]:
        model = self._embedding
        found = model.embedded(meta, model.seen(support), noise)
        says = model.policy.distribution(found.psi, query.obs)
        losses = self.adaptation.learner.query_loss(says, query, None)
        away = (found.last.detach() - found.first).square().mean((1, 2))
        losses = losses + self.kl_coef * found.kl + self.encoder_coef * away
        return losses + self.l2_coef * model.squares(meta) + self.orthogonality_coef * model.orthogonality(meta), says
