"""Meta-transfer (S0): from what is seen of a task, through the gradient of a meta-learner, to how to act in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.networks.distributions import Distribution
from metarl.agents.sampling.samples import Samples
from metarl.checks import NONE, NOT_NEGATIVE, SWITCH, integer, number
from metarl.envs.family import Family
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Outcome, Streams
from metarl.meta.algorithms.transfer import TransferAlgorithm
from metarl.meta.blocks.cut import BLOCK_TASKS
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.meta.transfer.encoder import ENCODERS, gradient_encoders
from metarl.params import Params, expand, total

BLOCK_NUMBERS = 1 << 21
"""Numbers of what is each task's own, decoded policies or Reptile's copies, up to which a block has more tasks than
blocks of others do."""


class Part(NamedTuple):
    """What some tasks say of the meta-parameters.

    :param loss: their part of the mean loss of all tasks.
    :param gradient: that of the loss, or their part of ξ − mean ξ_i of Reptile.
    :param actions: the most likely ones at the observations of the query, ``[task, n, *action]``.
    """

    loss: float
    gradient: Params
    actions: torch.Tensor


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

    :param first_order: see above.
    :param support_coef: weight of the learner's own loss on the support; None: 1 to first order, else 0.
    :param n_reptile_steps: see above; 0: the gradient of the query loss is taken as it is.
    :param reptile_lr: see above.

    The other parameters are those of :class:`~metarl.meta.algorithms.transfer.TransferAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    name: ClassVar[str] = "meta_transfer"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "CosineSine-v0",
        *,
        first_order: bool = False,
        support_coef: float | None = None,
        n_reptile_steps: int = 0,
        reptile_lr: float = 0.01,
        **kwargs: Any,
    ) -> None:
        self.first_order = SWITCH("first_order", first_order)
        self.support_coef = (NOT_NEGATIVE | NONE)("support_coef", support_coef)
        self.n_reptile_steps = integer(0, 10**4)("n_reptile_steps", n_reptile_steps)
        self.reptile_lr = number("(0, ∞)")("reptile_lr", reptile_lr)
        super().__init__(policy, env, **kwargs)
        if not ENCODERS.find(self.encoder).is_gradient and (self.first_order or self.support_coef):
            what = "first_order=True" if self.first_order else f"support_coef={self.support_coef}"
            gradients = ", ".join(map(repr, gradient_encoders()))
            raise ConfigError(f"{what} with encoder={self.encoder!r}: it takes no gradient, as {gradients} do")

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer, streams = Timer(), Streams(self.seed, "train", self.n_iterations)
        amount, steps = self._amount(None, None), self._steps(self.rates)
        # Each block goes through the decoder by itself, so that several take longer than one.
        own = self.params if self.n_reptile_steps else self.adaptation.model.fresh
        size = max(BLOCK_TASKS, BLOCK_NUMBERS // sum(tensor.numel() for tensor in own.values()))
        blocks = self.adaptations.cut(self._sample_tasks(), steps, streams, amount, size)
        with self._whole():
            outcomes = [self._learn_block(block, timer, query=True) for block in blocks]
            with timer("outer"):
                n = sum(outcome.n_tasks for outcome in outcomes)
                parts = [self._gradient(outcome, n) for outcome in outcomes]
                gradients = [part.gradient for part in parts]
                whole = gradients[0] if len(parts) == 1 else total(gradients)
                found = MetaGradient(sum(part.loss for part in parts), whole)
                remaining = self._current_progress_remaining
                result = self.outer_optimizer.step(KnownGradient(found), self.meta_params, remaining)
                self._move(result.params, outcomes)
        pairs = zip(outcomes, parts, strict=True)
        outcomes = [self.adaptation.scored(outcome, part.actions) for outcome, part in pairs]
        self.num_timesteps += sum(outcome.n_steps for outcome in outcomes)
        return {**self._statistics(outcomes, timer), **result.stats}

    def _gradient(self, outcome: Outcome, n: int) -> Part:
        """Return what the tasks of an outcome, some of ``n``, say of all meta-parameters."""
        support, query = outcome.support, outcome.query
        assert query is not None
        if not self.n_reptile_steps:
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in self.meta_params.items()}
            losses, says = self._forward(leaves, support, query)
            return Part(float(losses.detach().sum()) / n, _gradient(losses / n, leaves), says.mode().detach())
        own, first = expand(self.meta_params, outcome.n_tasks), None
        for _ in range(self.n_reptile_steps):
            own = {name: tensor.detach().requires_grad_() for name, tensor in own.items()}
            losses, says = self._forward(own, support, query)
            first = first or (float(losses.detach().sum()) / n, says.mode().detach())
            gradient = _gradient(losses, own)
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


def _gradient(losses: torch.Tensor, leaves: Params) -> Params:
    found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))
