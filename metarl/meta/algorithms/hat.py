"""HAT, hard attention to the task: one task after the other, each with gates of its own (Serrà et al., 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.base import GradientSteps, Learner
from metarl.agents.learners.optimizers import Layout
from metarl.agents.learners.registry import Abilities, learners_with
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.networks.continual.hard_attention import (
    MAX_EMBEDDING,
    S_MAX,
    compensated,
    embeddings_of,
    free_shares,
    hardened,
    is_hard,
    least_s_max,
    scale_at,
    sparsity,
    taken_name,
    taken_of,
)
from metarl.agents.networks.layers import head_of
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.samples import Samples
from metarl.checks import NOT_NEGATIVE, POSITIVE, SWITCH, integer
from metarl.envs.family import Family
from metarl.envs.tasks import n_tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Adaptation, Outcome
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.learners import make_adaptation
from metarl.meta.algorithms.one_by_one import OneByOne
from metarl.meta.blocks.cut import Adaptations, Block, MakeAdaptation
from metarl.meta.environments import AnyEnv
from metarl.params import HEADS, POLICY, Params, Rate, inner_name, scale

GATED = {
    "MlpPolicy": "MlpHardAttentionPolicy",
    "CnnPolicy": "CnnHardAttentionPolicy",
    "FewShotCnnPolicy": "CnnHardAttentionPolicy",
}
"""The policy with gates that is like another policy."""


class HAT(OneByOne):
    """One trunk whose units each task switches on or off for itself, learnt one task after the other.

    With e_l the task's embedding, the units of layer l are multiplied by σ(s e_l), where s rises from 1/s_max to s_max
    in each epoch of ``n_iterations_per_epoch`` updates, and is s_max whenever the policy is used. What earlier tasks
    attend to is learnt no more: the gradient of each weight is multiplied by 1 minus the smaller one of the attentions
    at its ends. The loss has λ times the share of the units still free that a task attends to
    (:mod:`metarl.agents.networks.continual.hard_attention` has the equations)::

        options = {"learner": "supervised", "n_training_tasks": 2, "n_iterations_per_task": 4, "n_episodes": 5}
        gates = {"n_iterations_per_epoch": 2, "harden": True}
        model = HAT("MlpPolicy", "Sinusoid-v0", **options, **gates, policy_kwargs={"net_arch": [8]})
        model.learn(total_timesteps=40)
        assert model.is_hard(0)
        prediction, _ = model.policy_of(0).predict(np.zeros(1, dtype=np.float32), deterministic=True)
        report = model.evaluate(n_tasks=2, n_inner_steps=2)

    The policy of a task that was learnt stays as it is, bit for bit, where its gates are exactly 0 or 1
    (:meth:`is_hard`): then every weight that it uses has a gradient of 0, and the others are multiplied by 0. In
    float32 the gate of e is 1 from s_max e = 17 on and 0 below −104, so that a few gates lie in between where s_max is
    finite; weights at those move a little. With ``harden`` gates are rounded once a task is learnt, so that the promise
    holds always.

    A new task draws embeddings and a head, and learns by the same rules, also under :meth:`adapt` and
    :meth:`evaluate`: epochs are of as many inner steps, and the weights that training tasks attend to are held.

    :param policy: what gates are given to: ``"MlpPolicy"``, whose ``net_arch`` are its widths, or, of images,
        ``"FewShotCnnPolicy"``. With gates they are ``"MlpHardAttentionPolicy"`` and ``"CnnHardAttentionPolicy"``.
    :param env: a registered family's name or a family.
    :param n_iterations_per_epoch: updates in which s rises once; at most ``n_iterations_per_task``, of which it is a
        part, so that tasks end with s_max.
    :param s_max: the largest s, and 1 by the smallest.
    :param sparsity: λ.
    :param harden: round the gates of a task to 0 and 1 once it is learnt; the authors leave them.

    The other parameters are those of :class:`~metarl.meta.algorithms.one_by_one.OneByOne`; ``outer`` is ``"sgd"`` where
    none is named, with the authors' rate of 0.05.
    """

    name: ClassVar[str] = "hat"
    own_policies: ClassVar[Mapping[str, str]] = GATED
    lacks: ClassVar[str] = "gates"

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        n_iterations_per_task: int = 100,
        n_iterations_per_epoch: int = 20,
        s_max: float = S_MAX,
        sparsity: float = 0.75,
        harden: bool = False,
        **kwargs: Any,
    ) -> None:
        self.n_iterations_per_epoch = integer(1, 10**9)("n_iterations_per_epoch", n_iterations_per_epoch)
        self.s_max = POSITIVE("s_max", s_max)
        self.sparsity = NOT_NEGATIVE("sparsity", sparsity)
        self.harden = SWITCH("harden", harden)
        if self.harden and self.s_max < least_s_max():
            raise ConfigError(f"s_max={self.s_max:g} with harden=True: gates are exactly 0 from {least_s_max():g} on")
        super().__init__(policy, env, n_iterations_per_task=n_iterations_per_task, **kwargs)
        if self.n_iterations_per_task % self._n_per_epoch:
            raise ConfigError(
                f"n_iterations_per_task={self.n_iterations_per_task} is no multiple of n_iterations_per_epoch="
                f"{self.n_iterations_per_epoch}: a task would end with soft gates"
            )

    @property
    def _n_per_epoch(self) -> int:
        return min(self.n_iterations_per_epoch, self.n_iterations_per_task)

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return "sgd", {"learning_rate": 0.05}

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        reason = super().refusal(learner)
        if reason is None and not learner.plain_steps:
            return f"gates open and close from one plain gradient step to the next: use {learners_with('plain_steps')}"
        return reason

    # -------------------------------------------------------------------------------------------------------- the gates
    def _make_adaptation(
        self, observation_space: spaces.Box, action_space: spaces.Space[Any], options: Mapping[str, Any]
    ) -> Adaptation:
        extractor = {**(self.policy_kwargs.get("features_extractor_kwargs") or {}), "s_max": self.s_max}
        kwargs = {**self.policy_kwargs, "features_extractor_kwargs": extractor}
        pair, sizes = (observation_space, action_space), (self.n_inner_steps, self.batch_steps)
        how = (self.policy_name, kwargs, self.rates, options, self.parallel, *sizes)
        adaptation = make_adaptation(self.learner, self.family, pair, *how)
        assert isinstance(adaptation, BatchedAdaptation)
        gates = (self.s_max, self.sparsity, self._n_per_epoch)
        adaptation.learner = AttentionSteps(adaptation.learner, *gates, parallel=self.parallel)
        return adaptation

    def _make_adaptations(self, make: MakeAdaptation) -> Adaptations:
        if self.task_local:
            raise ConfigError(f"task_local={self.task_local}: embeddings and a head are each task's own in {self.name}")
        names = Adaptations(self.family, make).names
        return Adaptations(self.family, make, [*embeddings_of(names), *head_of(names)])

    def gates(self, index: int) -> list[torch.Tensor]:
        """Return the gates of a training task, layer by layer, as its policy has them.

        :param index: of :attr:`training_tasks`.
        """
        index = integer(0, n_tasks(self.training_tasks) - 1)("index", index)
        own = self.head(index)
        return [torch.sigmoid(self.s_max * own[name]) for name in embeddings_of(own)]

    def is_hard(self, index: int) -> bool:
        """Whether all gates of a training task are exactly 0 or 1: then learning others changes no bit of its policy.

        :param index: of :attr:`training_tasks`.
        """
        return is_hard(self.gates(index))

    def attention(self, n: int) -> list[torch.Tensor]:
        """Return what the first ``n`` training tasks attend to, layer by layer: the largest of their gates."""
        gates = [self.gates(index) for index in range(n)]
        if not gates:
            return [torch.zeros_like(each) for each in self.gates(0)]
        return [torch.stack(layer).amax(0) for layer in zip(*gates, strict=True)]

    def _taken(self, n: int) -> Params:
        """Return the same by its names among the policy's tensors."""
        names = embeddings_of(self.head(0))
        return {taken_name(name): own for name, own in zip(names, self.attention(n), strict=True)}

    # --------------------------------------------------------------------------------------------------------- training
    @property
    def _place(self) -> int:
        """Which update of the task's this is, counted from 0."""
        return self.n_iterations - self.stage * self.n_iterations_per_task

    @property
    def scale(self) -> float:
        """The gates' s in the next update."""
        return scale_at(self._place % self._n_per_epoch, self._n_per_epoch, self.s_max)

    def _own(self, index: int) -> Params:
        own = self.head(index)
        softer = {name: own[name] * (self.scale / self.s_max) for name in embeddings_of(own)}
        return {**own, **softer, **self._taken(self.stage)}

    def _derivatives_of(self, block: Block, outcome: Outcome, chosen: Sequence[int]) -> tuple[float, Params]:
        loss, gradient = super()._derivatives_of(block, outcome, chosen)
        # What is taken is handed over as a task's own, and is not learnt.
        return loss, {name: tensor for name, tensor in gradient.items() if name in self.params}

    def _direction(self, gradient: Params) -> Params:
        own, prefix, s = self.head(self.stage), f"{HEADS}{self.stage}/", self.scale
        names = embeddings_of(own)
        for name, share in zip(
            names, sparsity([own[name] for name in names], self.attention(self.stage), s), strict=True
        ):
            whole = gradient[prefix + name] + self.sparsity * self.s_max * share
            gradient = {**gradient, prefix + name: compensated(whole, own[name], s)}
        return gradient

    def _held(self, params: Params, chosen: Sequence[int]) -> Params:
        moved = super()._held(params, chosen)
        trunk = {inner_name(name): tensor for name, tensor in moved.items() if name.startswith(POLICY)}
        # A momentum of the task before would move what it attends to.
        for name, share in free_shares(trunk, self.attention(self.stage)).items():
            key = f"{POLICY}{name}"
            moved[key] = torch.where(share > 0.0, moved[key], self.params[key])
        is_learnt = (self._place + 1) % self.n_iterations_per_task == 0
        for name in embeddings_of(self.head(self.stage)):
            key = f"{HEADS}{self.stage}/{name}"
            rounded = self.harden and is_learnt
            moved[key] = hardened(moved[key]) if rounded else moved[key].clamp(-MAX_EMBEDDING, MAX_EMBEDDING)
        return moved

    def _move(self, moved: Params, outcomes: Sequence[Outcome]) -> None:
        super()._move(moved, outcomes)
        # A new task leaves what all tasks so far attend to.
        self.params = {**self.params, **self._taken(self.stage + 1)}


class AttentionSteps(GradientSteps):
    """A learner with another one's loss and batches that goes down it by HAT's rules: s rises, embeddings compensate.

    How many steps were taken is part of its state. What tasks before attend to is held by the network.

    :param learner: gives loss and batches.
    :param s_max: the largest s.
    :param weight: λ.
    :param n_per_epoch: steps in which s rises once.
    :param parallel: the threads that blocks of tasks run on.
    """

    def __init__(
        self, learner: Learner, s_max: float, weight: float, n_per_epoch: int, parallel: Parallel | None = None
    ) -> None:
        super().__init__(learner, parallel)
        self._s_max, self._weight, self._n_per_epoch = s_max, weight, n_per_epoch

    def start(self, params: Params) -> LearnerState:
        """Return the state before the first step."""
        return LearnerState(params, {_N_STEPS: torch.zeros(len(next(iter(params.values()))), dtype=torch.int64)})

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after a step."""
        n_steps = state.optimizer[_N_STEPS]
        s = scale_at(int(n_steps[0]) % self._n_per_epoch, self._n_per_epoch, self._s_max)
        embeddings = {name: state.params[name] for name in embeddings_of(state.params)}
        softer = {name: tensor * (s / self._s_max) for name, tensor in embeddings.items()}
        end = super().update(LearnerState({**state.params, **softer}, {}), samples, rate, seeds, watcher).params
        # A plain step is −rate · gradient, of which what HAT makes is linear.
        moves = {name: end[name] - tensor for name, tensor in softer.items()}
        # All tasks of a stack leave the same to the tasks before.
        taken = [own[0] for own in taken_of(state.params)]
        shares = dict(zip(embeddings, sparsity(list(embeddings.values()), taken, s), strict=True))
        shares = scale({name: rate[name] for name in shares} if isinstance(rate, Mapping) else rate, shares)
        for name, e in embeddings.items():
            move = moves[name] - self._weight * self._s_max * shares[name]
            end[name] = (e + compensated(move, e, s)).clamp(-MAX_EMBEDDING, MAX_EMBEDDING)
        layout = Layout(end)
        return LearnerState(layout.views(layout.flatten(end)), {_N_STEPS: n_steps + 1})


_N_STEPS = "n_steps"
"""The steps that were taken, in a learner's state."""
