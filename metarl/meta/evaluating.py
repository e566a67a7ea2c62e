"""Evaluating and using what was meta-learnt: it asks for the contract of adaptation, and knows no learner."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from metarl.agents.parallel import library_torch
from metarl.checks import COUNT, NONE, ROUNDS, SEED, integer, number, plain_tree
from metarl.envs.family import Family, evaluation_score, score_of, scored_in, sound_tasks
from metarl.envs.score import RETURN
from metarl.envs.supervised.one_step import require_examples
from metarl.envs.tasks import Tasks
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.files.schema import MOST
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Adaptation, Amount, Streams
from metarl.meta.adaptation.gradient import InnerRule
from metarl.meta.adaptation.tuning import Tuning
from metarl.meta.base import MetaAlgorithm
from metarl.meta.blocks.cut import Adaptations, Block, gather
from metarl.meta.documents import versions
from metarl.meta.environments import AnyEnv, as_env
from metarl.meta.evaluation.points import Point
from metarl.meta.evaluation.report import Report
from metarl.meta.evaluation.tasks import evaluation_tasks
from metarl.meta.progress import Progress, Timer, counted
from metarl.params import Params, Rate, take

RATE_RULES: dict[str, float | None] = {"constant": None, "half_after_first": 0.5, "hundredth_after_first": 0.01}
"""Test rates after the first step, as parts of the first training rate; None: the training rates go on."""

RATE = number("(0, ∞)", "a list has a rate for each inner step, and training leaves them as they are")


class Evaluates(MetaAlgorithm):
    """A meta-algorithm whose adaptation is an :class:`~metarl.meta.adaptation.base.Adaptation`, and is measured.

    The arguments are those of :class:`~metarl.meta.model.Model`.
    """

    adaptation: Adaptation
    """How tasks of the family's own spaces are learnt."""
    adaptations: Adaptations
    """How tasks are learnt, for each pair of spaces."""
    rates: list[float]
    """The learning rate of each inner step in training."""
    n_inner_steps: int
    default_test_steps: ClassVar[int] = 3
    """Inner steps of an evaluation where their number is not given."""
    point: ClassVar[Point] = "step"
    """What returns are after so many of, see :data:`~metarl.meta.evaluation.points.POINTS`."""
    n_episodes: int
    n_transitions: int | None

    @abstractmethod
    def _rule(self, rates: Sequence[float]) -> InnerRule:
        """Return how inner steps with these rates go."""

    def _blocks(
        self, tasks: Tasks, rates: Sequence[float], streams: Streams, amount: Amount, tuning: Tuning | None = None
    ) -> list[Block]:
        """Cut tasks into the blocks that are learnt together."""
        fresh = [] if tuning is None else tuning.fresh(self.adaptations.shared)
        return self.adaptations.cut(tasks, self._steps(rates, tuning), streams, amount, fresh=fresh)

    def _steps(self, rates: Sequence[float], tuning: Tuning | None = None) -> list[Rate]:
        """Return the learning rate of each inner step.

        :raises ConfigError: what adapts here has no rate for each tensor.
        """
        rule = self._rule(rates)
        if tuning is None:
            return rule.steps(self.params)
        if not self.adaptation.has_rates:
            raise ConfigError(
                f"tuning={tuning}: what adapts {self.name} has no rate for each tensor: it is for gradient steps of "
                "learners that are batched over tasks, and for finetune, which has it for stock algorithms"
            )
        start = self.adaptation.init(0)
        return replace(rule, factors=[tuning.factors(start, step) for step in range(len(rates))]).steps(self.params)

    def _amount(self, n_episodes: int | None, n_transitions: int | None) -> Amount:
        """Return how much to collect for a batch, as in training where nothing is said; no more than it can hold."""
        if n_episodes is None and n_transitions is None:
            n_transitions = self.n_transitions
            n_episodes = self.n_episodes if n_transitions is None else None
        given = {"n_episodes": n_episodes, "n_transitions": n_transitions}
        amount = {name: (COUNT | NONE)(name, value) for name, value in given.items()}
        require_examples(self.family, self.family.id, amount)
        return amount

    # ------------------------------------------------------------------------------------------------------ using it
    def _unadapted(self) -> AdaptedPolicy:
        if self.adaptations.has_local:
            raise ConfigError(
                f"{type(self).__name__} has tensors of each task's own: adapt(env) returns a policy that acts"
            )
        return self.adaptation.policy_at(self.theta)

    def test_rates(
        self, n_inner_steps: int, rule: str = "constant", inner_lr: float | Sequence[float] | None = None
    ) -> list[float]:
        """Return the inner rates for adaptation at test time.

        :param rule: ``"constant"`` goes on with the last training rate; ``"half_after_first"`` takes the first
            training rate and then half of it, as the reference does, ``"hundredth_after_first"`` a hundredth, as it
            does for AntDir.
        :param inner_lr: rates that overrule the rule; the last one goes on where there are fewer than inner steps.
        :raises ConfigError: an unknown rule, a rate that is not positive, or more rates than inner steps.
        """
        n_inner_steps = integer(0, MOST)("n_inner_steps", n_inner_steps)
        if inner_lr is not None:
            rates = checked_rates(inner_lr)
            given = rates if isinstance(rates, list) else [rates]
            if not 1 <= len(given) <= max(1, n_inner_steps):
                raise ConfigError(f"inner_lr has {len(given)} rates for {n_inner_steps} inner steps")
            return [given[min(k, len(given) - 1)] for k in range(n_inner_steps)]
        if rule not in RATE_RULES:
            raise ConfigError(f"inner_lr_rule={shorten(rule)} is unknown: use {' or '.join(RATE_RULES)}")
        later = RATE_RULES[rule]
        if later is not None:
            return [self.rates[0] * (1.0 if k == 0 else later) for k in range(n_inner_steps)]
        return [self.rates[min(k, len(self.rates) - 1)] for k in range(n_inner_steps)]

    def evaluate(
        self,
        split: str = "test",
        n_inner_steps: int | None = None,
        *,
        n_tasks: int = 40,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr_rule: str = "constant",
        inner_lr: float | Sequence[float] | None = None,
        tuning: Tuning | Mapping[str, Any] | None = None,
        seed: int = 0,
        label: str | None = None,
        progress: Progress | None = None,
        **kwargs: Any,
    ) -> Report:
        """Adapt to held-out tasks and report the return after 0 … K inner steps.

        The return after k steps is the mean undiscounted return of the batch collected at θ_k, which then serves the
        next step, as in the reference; of a family with an evaluation family, such as those of imitation, it is that of
        ``evaluation_episodes`` episodes there, and the report has both returns. Runs evaluated with equal arguments
        share tasks and random streams, so they can be compared in pairs. The report's ``meta["ep_lengths"]`` is
        ``[task, step]``, the mean length of the episodes; of supervised tasks whose inner steps learn from a batch each
        ``meta["losses"]`` is ``[task, step]``, the loss of the batch before each step.

        :param split: ``"validation"``, ``"test"``, ``"shifted"`` or ``"train"``.
        :param n_inner_steps: K; :attr:`default_test_steps` if None.
        :param n_tasks: tasks; where the split has fewer, each is adapted to several times with its own streams, and the
            report says how many distinct ones there are.
        :param n_episodes: episodes for each gradient step; as in training if None.
        :param n_transitions: instead of episodes, env steps for each gradient step (4,000 in the reference).
        :param inner_lr_rule: see :meth:`test_rates`.
        :param inner_lr: rates that overrule it, see there.
        :param tuning: fine-tune in another way than by these rates alone: a
            :class:`~metarl.meta.adaptation.tuning.Tuning`, or a mapping with its fields.
        :param seed: seed of the evaluation's streams.
        :param label: the report's name in tables; if None the algorithm's name, and how it is tuned.
        :param progress: called with (batches done, batches in all); around a stock algorithm with tasks.
        """
        if kwargs:
            raise unknown_name("argument of evaluate:", next(iter(kwargs)), ["n_tasks", "n_episodes", "inner_lr_rule"])
        n_tasks, seed = ROUNDS("n_tasks", n_tasks), SEED("seed", seed)
        amount = self._amount(n_episodes, n_transitions)
        how = None if tuning is None else Tuning.of(tuning)
        n_inner_steps = self.default_test_steps if n_inner_steps is None else n_inner_steps
        rates = self.test_rates(n_inner_steps, inner_lr_rule, inner_lr)
        tasks, strata, n_family = evaluation_tasks(self.family, split, n_tasks)
        blocks = self._blocks(tasks, rates, Streams(seed, f"evaluate/{split}"), amount, how)
        told = counted(progress, sum(block.adaptation.n_told(block.request) for block in blocks))
        with library_torch():
            outcomes = [block.evaluate(self.theta, told) for block in blocks]
        returns, env_steps, ep_lengths = (
            gather(blocks, [getattr(outcome, name) for outcome in outcomes])
            for name in ("returns", "env_steps", "ep_lengths")
        )
        losses = [outcome.losses for outcome in outcomes if outcome.losses is not None]
        learning = [outcome.learning_returns for outcome in outcomes if outcome.learning_returns is not None]
        elsewhere = scored_in(self.family) is not self.family and len(learning) == len(blocks)
        if self.family.query_family is not None:
            # Where a batch is learnt from again, its return is had but once.
            elsewhere = elsewhere and not blocks[0].adaptation.option("reuses_support")
        return Report(
            algo=self.name,
            env=self.family.id,
            split=split,
            returns=returns[None],
            env_steps=np.array([0.0, *np.cumsum(env_steps[:, :-1].mean(0))]),
            tasks={name: value.tolist() for name, value in tasks.items()},
            strata=None if strata is None else np.array(strata),
            seeds=[self.seed],
            label=label or (self.name if how is None else f"{self.name}, {how}"),
            learning_returns=gather(blocks, learning)[None] if elsewhere else None,
            score=evaluation_score(self.family),
            learning_score=score_of(self.family) if elsewhere else RETURN,
            meta={
                "num_timesteps": self.num_timesteps,
                "n_iterations": self.n_iterations,
                "inner_lr": rates,
                "inner_lr_rule": inner_lr_rule if inner_lr is None else None,
                **amount,
                **({} if how is None else {"tuning": how.to_dict()}),
                **({"losses": gather(blocks, losses).tolist()} if len(losses) == len(blocks) else {}),
                "evaluation_seed": seed,
                "env_kwargs": plain_tree(self.env_kwargs),
                "family_tasks": n_family,
                "point": self.point,
                "ep_lengths": ep_lengths.tolist(),
                "versions": versions(),
            },
        )

    @library_torch()
    def adapt(
        self,
        env: str | Family | AnyEnv,
        n_inner_steps: int | None = None,
        *,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr_rule: str = "constant",
        inner_lr: float | Sequence[float] | None = None,
        tuning: Tuning | Mapping[str, Any] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> AdaptedPolicy:
        """Adapt to one environment of equal spaces, whose task need not be known.

        :param env: any Gymnasium environment, or a ``VecEnv`` of a single one. A registered name or a family stands for
            one environment with a training task that is drawn from ``seed``.
        :param n_inner_steps: inner steps; as in training if None.
        :param n_episodes: episodes for each of them; as in training if None.
        :param n_transitions: instead of episodes, env steps for each of them, in whole episodes.
        :param inner_lr_rule: see :meth:`test_rates`.
        :param inner_lr: rates that overrule it, see there.
        :param tuning: as in :meth:`evaluate`.
        :param seed: seed of the streams that episodes and actions are drawn from.
        :raises ConfigError: spaces that differ from the family's.
        """
        if kwargs:
            raise unknown_name("argument of adapt:", next(iter(kwargs)), ["n_inner_steps", "n_episodes", "seed"])
        seed = SEED("seed", seed)
        amount = self._amount(n_episodes, n_transitions)
        one = as_env(env, self.family)
        if self.adaptations.has_one:
            self.check_env(one)
        steps = self.n_inner_steps if n_inner_steps is None else n_inner_steps
        how = None if tuning is None else Tuning.of(tuning)
        rates = self._steps(self.test_rates(steps, inner_lr_rule, inner_lr), how)
        adaptation = self.adaptations.of(one.observation_space, one.action_space)  # type: ignore[arg-type]
        fresh = [] if how is None else how.fresh(self.adaptations.shared)
        local = self.adaptations.local(adaptation, Streams(seed, "adapt"), 1, fresh)
        theta = {**self.theta, **take(local, 0)}
        return adaptation.adapt(one, theta, rates, seed, amount)

    def reached(
        self,
        tasks: Mapping[str, Any],
        n_inner_steps: int,
        *,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        seed: int = 0,
    ) -> Params:
        """Return the policies' tensors that adaptation to tasks comes to, ``[task, …]``, at the rates of training.

        :param tasks: of the family, of equal spaces.
        :param n_inner_steps: at least 1.
        :param n_episodes: episodes for each of them, of a task; as in training if None.
        :param n_transitions: instead of episodes, env steps.
        :param seed: of the streams.
        :raises ConfigError: tasks have tensors of their own, or what adapts is none of the tensors.
        """
        amount, n_inner_steps = self._amount(n_episodes, n_transitions), COUNT("n_inner_steps", n_inner_steps)
        tasks = sound_tasks(self.family, "validate_tasks", self.family.validate_tasks(tasks))
        if self.adaptations.has_local:
            raise ConfigError(f"tasks of {self.family.id} have tensors of their own: there is no stack of them")
        blocks = self._blocks(tasks, self.test_rates(n_inner_steps), Streams(SEED("seed", seed), "reached"), amount)
        with library_torch():
            parts = [block.learn(self.theta, Timer()).params for block in blocks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def checked_rates(inner_lr: Any) -> float | list[float]:
    """Return one learning rate or a list of them as plain values."""
    rates = plain_tree(inner_lr)
    if isinstance(rates, (list, tuple)):
        return [RATE("inner_lr", rate) for rate in rates]
    return RATE("inner_lr", rates)
