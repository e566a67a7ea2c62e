"""MALTML: model-agnostic learning to meta-learn (Devos and Dandi, 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.derivatives.levels import summed
from metarl.checks import COUNT, NONE
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks
from metarl.meta.adaptation.base import Outcome, Streams
from metarl.meta.algorithms.on_families import FamilyAlgorithm
from metarl.meta.environments import AnyEnv
from metarl.meta.evaluating import RATE
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.meta.two_levels.finetuning import UPDATE, task_losses
from metarl.params import Params, expand, inner_name, meta_name, norm, total

FIRST_ORDER_OUTER = "sgd", {"learning_rate": 0.1, "final_learning_rate": 0.0}


class _Learnt(NamedTuple):
    """What came of some families.

    :param loss: of the goal tasks' queries, summed up; to first order Σ_j ‖θ − θ_j‖² / 2.
    :param gradient: of the meta-parameters, summed up.
    :param outcomes: of the few tasks in each step of meta-finetuning, then of the goal tasks, where there are any.
    :param n_steps: env steps that were taken.
    :param distance: Σ_j ‖θ − θ_j‖².
    """

    loss: float
    gradient: Params
    outcomes: list[Outcome]
    n_steps: int
    distance: float


class MALTML(FamilyAlgorithm):
    """Learning to meta-learn: an initialisation from which few tasks of a family lead to one that adapts in it.

    A meta-iteration draws families, and of each L tasks and further goal tasks. The initialisation θ is meta-finetuned
    to a family j by an inner step on each of the L tasks and a step of rate β on their queries together, and adapted
    from there to each goal task by inner steps of rate γ. The loss of their queries goes through it all (eq. 1 to 3)::

        model = MALTML("MlpPolicy", "SinusoidFamilies-v0", learner="supervised", meta_batch_size=2, n_episodes=5)
        model.learn(total_timesteps=1)
        report = model.evaluate_few_tasks(n_tasks=5, n_families=3)  # of each goal task: before and after inner steps

    With θ_j = V_j(θ) and θ'_c = U_c(θ_j) a step is θ ← θ − η ∇_θ Σ_j Σ_c L_c(θ'_c): sums, no means, as in
    the paper. The gradient is exact, to third order: an :class:`~metarl.agents.derivatives.unrolled.UnrolledPath`
    whose loss is the end of another. What is collected is collected at the parameters reached, so that it takes
    policies too: then supports have the learner's loss and queries its query loss, and what collecting depends on is
    not differentiated, as in MAML.

    **First order.** With ``update="first_order"`` or ``"difference"`` nothing is differentiated twice: families are
    meta-finetuned by ``n_meta_steps`` such steps, which should be several, and θ ← θ + η Σ_j (θ_j − θ); there are no
    goal tasks.

    A family without two levels is the only family there is: its tasks are drawn over all.

    :param env: a registered family's name or a family, of two levels or of one.
    :param learner: ``"supervised"``, or another that is batched over tasks.
    :param inner_lr: α.
    :param goal_lr: γ, of the inner steps on goal tasks; None takes α.
    :param n_tasks: L, tasks of a family that it is met by.
    :param n_meta_steps: m, steps of meta-finetuning on them.
    :param meta_lr: β.
    :param n_goal_tasks: further tasks of a family, which the loss is that of.
    :param update: ``"exact"``, ``"first_order"`` or ``"difference"``.
    :param meta_batch_size: families in a meta-iteration.
    :param n_episodes: K, for each inner step. Q is that of the learner: ``n_query`` of ``"supervised"``, else K too.

    The other parameters are those of :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`; ``outer`` is Adam at 0.001 or, to first order, SGD, whose rate falls
    from 0.1, with which θ goes to the mean of ten families' θ_j, to 0.
    """

    name: ClassVar[str] = "maltml"
    default_outer: ClassVar[tuple[str, Mapping[str, Any]]] = ("adam", {"learning_rate": 0.001})

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "SinusoidFamilies-v0",
        *,
        inner_lr: float | Sequence[float] | None = None,
        goal_lr: float | None = None,
        n_tasks: int = 5,
        n_meta_steps: int = 1,
        meta_lr: float = 0.01,
        n_goal_tasks: int = 2,
        update: str = "exact",
        meta_batch_size: int = 10,
        n_episodes: int = 10,
        **kwargs: Any,
    ) -> None:
        self.goal_lr = (RATE | NONE)("goal_lr", goal_lr)
        self.n_tasks = COUNT("n_tasks", n_tasks)
        self.n_meta_steps = COUNT("n_meta_steps", n_meta_steps)
        self.meta_lr = RATE("meta_lr", meta_lr)
        self.n_goal_tasks = COUNT("n_goal_tasks", n_goal_tasks)
        self.update: str = UPDATE("update", update)
        super().__init__(
            policy, env, inner_lr=inner_lr, meta_batch_size=meta_batch_size, n_episodes=n_episodes, **kwargs
        )

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return FIRST_ORDER_OUTER if self.update != "exact" else super()._default_outer()

    @property
    def _differentiates(self) -> bool:
        return self.update == "exact"

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        n_query = self.adaptation.option("n_query")
        a_task = self.support_steps(self.n_inner_steps)
        a_task += self.batch_steps if n_query is None else n_query * self.family.horizon
        n_times = 1 if self.adaptation.option("reuses_support") else self.n_meta_steps
        n_goal_tasks = self.n_goal_tasks if self.update == "exact" else 0
        return self.meta_batch_size * a_task * (self.n_tasks * n_times + n_goal_tasks)

    def _goal_rates(self, n_inner_steps: int) -> list[float]:
        return super()._goal_rates(n_inner_steps) if self.goal_lr is None else [self.goal_lr] * n_inner_steps

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer, (few, goals) = Timer(), self._draw(few=self.n_tasks, goals=self.n_goal_tasks)
        known: list[_Learnt] = []
        with self._whole():
            for part in self._parts(max(self.n_tasks, self.n_goal_tasks)):
                known.append(self._learn(part, few, goals, timer))
            with timer("outer"):
                found = MetaGradient(sum(each.loss for each in known), total([each.gradient for each in known]))
                remaining = self._current_progress_remaining
                result = self.outer_optimizer.step(KnownGradient(found), self.meta_params, remaining)
                self._move(result.params, [outcome for each in known for outcome in each.outcomes])
        self.num_timesteps += sum(each.n_steps for each in known)
        last = [each.outcomes[-1] for each in known]
        stats = {**self._statistics(last, timer), **result.stats}
        stats["meta/few_task_distance"] = math.sqrt(sum(each.distance for each in known) / self.meta_batch_size)
        if self.update == "exact":
            before, after = (np.concatenate([each.outcomes[k].returns[:, 0] for each in known]) for k in (0, -1))
            stats["meta/few_task_gain"] = float(np.mean(after) - np.mean(before))
        return stats

    def _learn(self, part: slice, few: Tasks, goals: Tasks, timer: Timer) -> _Learnt:
        """Learn some families, and return what the outer step needs of them."""
        exact, names = self.update == "exact", [inner_name(name) for name in self.meta_params]
        learner = self.adaptation.learner  # type: ignore[attr-defined]
        reuses = learner.reuses_support
        finetuning = self.meta_finetuning(self.n_tasks, self.n_meta_steps, self.meta_lr, self.update)
        theta = {name: tensor.detach().requires_grad_(exact and name in names) for name, tensor in self.theta.items()}
        stack, outcomes = expand(theta, part.stop - part.start), []
        for k in range(self.n_meta_steps):
            # The few tasks' examples are the same in each step; episodes are those of the parameters reached.
            streams = Streams(self.seed, "train" if reuses or k == 0 else f"train/{k}", self.n_iterations)
            block = self._block(part, few, self.n_tasks, finetuning.rates, streams, stack)
            outcomes.append(self._learn_block(block, timer, query=True, keep=True))
            with timer("outer"):
                stack = finetuning.step(stack, outcomes[-1])
        n_steps = sum(outcome.n_steps for outcome in (outcomes[:1] if reuses else outcomes))
        away = {name: (theta[name] - stack[name]).detach() for name in names}
        distance = norm(away) ** 2
        if not exact:
            gradient = {meta_name(name): tensor.sum(0) for name, tensor in away.items()}
            return _Learnt(0.5 * distance, gradient, outcomes, n_steps, distance)
        rates = self._rule(self._goal_rates(self.n_inner_steps)).steps(self.params)
        streams = Streams(self.seed, "train/goals", self.n_iterations)
        goal = self._learn_block(
            self._block(part, goals, self.n_goal_tasks, rates, streams, stack), timer, query=True, keep=True
        )
        with timer("outer"):
            loss = summed(task_losses(learner, goal, rates), self.n_goal_tasks)(stack).sum()
            found = torch.autograd.grad(loss, [theta[name] for name in names], materialize_grads=True)
        gradient = dict(zip(map(meta_name, names), found, strict=True))
        return _Learnt(float(loss.detach()), gradient, [*outcomes, goal], n_steps + goal.n_steps, distance)
