"""Meta-transfer (S0): from what is seen of a task, through the gradient of a meta-learner, to how to act in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.base import Learner
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.sampling.samples import Samples
from metarl.checks import MAPPING, NONE, NOT_NEGATIVE, POSITIVE, SWITCH, choice, integer, number, plain, plain_tree
from metarl.envs.family import Family
from metarl.errors import ConfigError, shorten
from metarl.meta.adaptation.base import Outcome
from metarl.meta.algorithms.transfer import Part, TransferAlgorithm, gradient_of
from metarl.meta.blocks.cut import BLOCK_TASKS, Block
from metarl.meta.environments import AnyEnv
from metarl.meta.evaluation.points import Point
from metarl.meta.transfer.encoder import ENCODERS, gradient_encoders
from metarl.meta.transfer.exploring.model import ExploringModel
from metarl.meta.transfer.exploring.policies import GIVEN, explorer_of
from metarl.meta.transfer.exploring.surrogates import SURROGATES
from metarl.meta.transfer.model import TransferModel, support_of, task_dimension
from metarl.params import Params, expand

BLOCK_NUMBERS = 1 << 21
"""Numbers of what is each task's own, decoded policies or Reptile's copies, up to which a block has more tasks than
blocks of others do."""


class MetaTransfer(TransferAlgorithm):
    """Meta-transfer: examples of what is seen of a task become the parameters of a policy for it.

    The support of a task is drawn in the family's ``support_family``; the query is the family itself. Where there is
    none, support and query are the same task, and this is black-box meta-learning. An encoder says z of the support, a
    decoder ψ = M_D(z), the tensors of the policy, and the loss of the query at ψ goes through both (eq. 8)::

        model = MetaTransfer("MlpPolicy", "CosineSine-v0", encoder="linear", meta_batch_size=4, n_support=5)
        model.learn(total_timesteps=1)
        report = model.evaluate(n_tasks=3)  # after 0 and after 5 examples of a cosine: the error on its sine
        x = np.linspace(-5, 5, 8)[:, None]
        adapted = model.adapt(support=(x, 2.0 * np.cos(x + 0.5)))
        y, _ = adapted.predict(np.array([1.0], dtype=np.float32), deterministic=True)

    Evaluations count steps of adaptation: each sees ``n_support`` further examples, and the policy is decoded from all.

    **Second order.** z of a gradient encoder is a gradient, so that training differentiates twice. ``first_order=True``
    takes ∇L of the support for a constant: the decoder, and what is linear in that gradient (V of ``"linear"``), learn
    from the query as before, and nothing of the query reaches the encoder's learner f. That goes down its own loss on
    the support instead, ``support_coef`` times; what is left out is exactly the second-order term.

    **Reptile.** With ``n_reptile_steps`` every task has its own copy of all meta-parameters, which takes so many plain
    steps of ``reptile_lr`` on the task's loss, and the outer optimiser sees ξ − mean ξ_i as a gradient.

    :param encoder: ``"context"``, ``"nonlinear"``, ``"linear"`` (gradients), ``"mean"``, ``"max"``, ``"transformer"``,
        ``"recurrent"``, or ``"deep_kernel"``, which has no z and no decoder, and no stock policy to be exported to.
    :param encoder_kwargs: its arguments, see :mod:`metarl.meta.transfer`.
    :param decoder_kwargs: arguments of the decoder, see :class:`~metarl.meta.transfer.hypernetwork.Hypernetwork`.
    :param init: ``"bias"`` (Bias-HyperInit) or ``"naive"``, see there.
    :param support_surrogate: None: the support is supervised. ``"log_likelihood"``, ``"likelihood_ratio"`` (LVC) or
        ``"dice"``: it is ``n_support`` episodes of the family itself, in which the encoder's learner f acts as a policy
        at what is learnt of it, and z is the gradient of that surrogate; see
        :mod:`metarl.meta.transfer.exploring.surrogates`.
    :param exploration_std: with it, the deviation of f's continuous actions.
    :param exploration_policy: with it, who collects these episodes: None: f. ``"random"``, a file that metarl saved, or
        the zip of a PPO, A2C or TRPO of SB3 with an ``MlpPolicy``: that policy, as it is, in training and testing.
        Likelihood ratios are then importance weights, and ``"log_likelihood"`` leaves them out.
    :param first_order: see above.
    :param support_coef: weight of the learner's own loss on the support; None: 1 to first order, else 0.
    :param n_reptile_steps: see above; 0: the gradient of the query loss is taken as it is.
    :param reptile_lr: see above.

    The other parameters are those of :class:`~metarl.meta.algorithms.transfer.TransferAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    name: ClassVar[str] = "meta_transfer"
    point: ClassVar[Point] = "support"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "CosineSine-v0",
        *,
        encoder: str = "linear",
        encoder_kwargs: Mapping[str, Any] | None = None,
        decoder_kwargs: Mapping[str, Any] | None = None,
        init: str = "bias",
        support_surrogate: str | None = None,
        exploration_std: float = 1.0,
        exploration_policy: str | None = None,
        first_order: bool = False,
        support_coef: float | None = None,
        n_reptile_steps: int = 0,
        reptile_lr: float = 0.01,
        **kwargs: Any,
    ) -> None:
        self.encoder: str = plain(encoder)
        ENCODERS.find(self.encoder)
        self.encoder_kwargs = plain_tree((MAPPING | NONE)("encoder_kwargs", encoder_kwargs) or {})
        self.decoder_kwargs = plain_tree((MAPPING | NONE)("decoder_kwargs", decoder_kwargs) or {})
        self.init = init
        self.support_surrogate = (choice(*SURROGATES) | NONE)("support_surrogate", support_surrogate)
        self.exploration_std = POSITIVE("exploration_std", exploration_std)
        self.exploration_policy = (GIVEN | NONE)("exploration_policy", exploration_policy)
        if self.exploration_policy is not None and self.support_surrogate is None:
            raise ConfigError(
                f"exploration_policy={shorten(self.exploration_policy)} collects episodes: give support_surrogate, "
                f"one of {', '.join(SURROGATES)}, as well"
            )
        if self.support_surrogate is not None and not ENCODERS.find(self.encoder).is_gradient:
            given_as, gradients = f"support_surrogate={support_surrogate!r}", ", ".join(map(repr, gradient_encoders()))
            raise ConfigError(f"{given_as} with encoder={self.encoder!r}: it takes no gradient, as {gradients} do")
        self.first_order = SWITCH("first_order", first_order)
        self.support_coef = (NOT_NEGATIVE | NONE)("support_coef", support_coef)
        self.n_reptile_steps = integer(0, 10**4)("n_reptile_steps", n_reptile_steps)
        self.reptile_lr = number("(0, ∞)")("reptile_lr", reptile_lr)
        super().__init__(policy, env, **kwargs)
        if not ENCODERS.find(self.encoder).is_gradient and (self.first_order or self.support_coef):
            what = "first_order=True" if self.first_order else f"support_coef={self.support_coef}"
            gradients = ", ".join(map(repr, gradient_encoders()))
            raise ConfigError(f"{what} with encoder={self.encoder!r}: it takes no gradient, as {gradients} do")

    @property
    def _support(self) -> Family:
        return support_of(self.family) if self.support_surrogate is None else self.family

    def _make_model(
        self, policy: FunctionalPolicy, make_learner: Callable[[FunctionalPolicy], Learner]
    ) -> tuple[TransferModel, Learner]:
        k = self.n_latent or task_dimension(self.family.task_space)
        sizes = (self._support, policy, self.encoder, self.encoder_kwargs, k, self.decoder_kwargs, self.init)
        model = TransferModel(*sizes)
        learner = make_learner(model.policy)
        if self.support_surrogate is not None:
            how = {"surrogate": self.support_surrogate, "std": self.exploration_std}
            given = self.exploration_policy
            explorer = None if given is None else explorer_of(given, self.family)
            how |= {"explorer": explorer}
            model = ExploringModel(*sizes, **how, gamma=getattr(learner, "gamma", 0.99), parallel=self.parallel)
        return model, learner

    # -------------------------------------------------------------------------------------------------------- training
    @property
    def _block_size(self) -> int:
        # Each block goes through the decoder by itself, so that several take longer than one.
        own = self.params if self.n_reptile_steps else self.adaptation.model.fresh
        return max(BLOCK_TASKS, BLOCK_NUMBERS // sum(tensor.numel() for tensor in own.values()))

    def _gradient(self, block: Block, outcome: Outcome, n: int) -> Part:
        support, query = outcome.support, outcome.query
        assert query is not None
        if not self.n_reptile_steps:
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.meta_params.items()}
            losses, says = self._forward(leaves, support, query)
            return Part(float(losses.detach().sum()) / n, gradient_of(losses / n, leaves), says.mode().detach())
        own, first = expand(self.meta_params, outcome.n_tasks), None
        for _ in range(self.n_reptile_steps):
            own = {name: tensor.detach().requires_grad_() for name, tensor in own.items()}
            losses, says = self._forward(own, support, query)
            first = first or (float(losses.detach().sum()) / n, says.mode().detach())
            gradient = gradient_of(losses, own)
            own = {name: tensor.detach() - self.reptile_lr * gradient[name] for name, tensor in own.items()}
        assert first is not None
        loss, actions = first
        moved = {name: (tensor - own[name]).sum(0) / n for name, tensor in self.meta_params.items()}
        return Part(loss, moved, actions)

    def losses(self, meta: Params, support: Sequence[Samples], query: Samples) -> torch.Tensor:
        """Return the loss of each task, ``[task]``, a function of all meta-parameters (eq. 4 to 8).

        :param meta: shared by the tasks, or stacked, one for each.
        :param support: what was seen of each.
        :param query: what its policy is to do.
        """
        return self._forward(meta, support, query)[0]

    def _forward(self, meta: Params, support: Sequence[Samples], query: Samples) -> tuple[torch.Tensor, Distribution]:
        """Return the losses and what the decoded policies say of the query; see :meth:`losses`."""
        model, learner = self.adaptation.model, self.adaptation.learner
        seen = model.seen(support)
        psi = model.tensors(meta, seen, second_order=not self.first_order)  # eq. 7 of eq. 4, 5 or 6
        values = model.policy.values(psi, query.obs) if learner.needs_critic else None
        says = model.policy.distribution(psi, query.obs)
        losses = learner.query_loss(says, query, values)  # eq. 8
        coef = float(self.first_order) if self.support_coef is None else self.support_coef
        if coef:
            losses = losses + coef * model.support_loss(meta, seen)
        return losses, says
