"""Few-task few-shot evaluation: meta-finetuning to a held-out family on few tasks, then adaptation to goal tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from metarl.agents.derivatives.levels import spread
from metarl.agents.parallel import library_torch
from metarl.checks import COUNT, COUNT_OR_ZERO, NONE, ROUNDS, SEED, plain_tree
from metarl.envs.family import evaluation_score
from metarl.envs.tasks import Tasks, concatenate_tasks, take_tasks
from metarl.envs.two_levels import TwoLevels, draw_tasks_of
from metarl.envs.views.around import two_levels
from metarl.errors import ConfigError
from metarl.meta.adaptation.base import Amount, Request, Streams, finish
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.adaptation.tuning import Tuning
from metarl.meta.blocks.cut import BLOCK_TASKS
from metarl.meta.documents import versions
from metarl.meta.evaluating import RATE
from metarl.meta.evaluation.report import Report
from metarl.meta.iterating import Iterates
from metarl.meta.progress import Progress, Timer, counted
from metarl.meta.two_levels.finetuning import MetaFinetuning, contiguous
from metarl.params import STATISTICS, Params, Rate, expand, inner_name
from metarl.streams import stream


class EvaluatesFewTasks(Iterates):
    """A meta-algorithm whose initialisation can be meta-finetuned to a family of tasks, however it was learnt.

    The arguments are those of :class:`~metarl.meta.model.Model`.
    """

    n_meta_steps: int = 1
    """Steps of meta-finetuning where their number is not given."""
    meta_lr: float = 0.01
    """Their rate."""

    def meta_finetuning(
        self, n_tasks: int, n_steps: int | None = None, rate: float | None = None, update: str | None = None
    ) -> MetaFinetuning:
        """Return how the initialisation is meta-finetuned to families.

        :param n_tasks: L, tasks of each family.
        :param n_steps: m, steps of meta-finetuning; as in training if None, 1 where there are none.
        :param rate: β; as in training if None, the paper's 0.01 where there is none.
        :param update: ``"exact"``, ``"first_order"`` or ``"difference"``; None: exact where the learner takes plain
            gradient steps, else ``"first_order"``.
        :raises ConfigError: a learner that is not batched over tasks, or tensors of each task's own.
        """
        self._require_shared()
        adaptation = self.adaptation
        assert isinstance(adaptation, BatchedAdaptation)
        update = update or ("exact" if adaptation.learner.plain_steps else "first_order")
        rates = self._rule(self.test_rates(self.n_inner_steps)).steps(self.params)
        moves = [inner_name(name) for name in self.meta_params if inner_name(name) in self.theta]
        n_steps, rate = self.n_meta_steps if n_steps is None else n_steps, self.meta_lr if rate is None else rate
        return MetaFinetuning(adaptation.learner, rates, moves, n_tasks, n_steps, rate, update)

    def _require_shared(self) -> None:
        """Raise :class:`ConfigError` unless the tasks of a family start from parameters that they share."""
        if not isinstance(self.adaptation, BatchedAdaptation):
            raise ConfigError(f"{self.name}: families of tasks take a learner that is batched over tasks")
        if self.adaptations.has_local:
            raise ConfigError(f"{self.name} has tensors of each task's own, which the tasks of a family do not share")

    def _two_levels(self) -> TwoLevels:
        """Return the family of two levels that this one is or shows.

        :raises ConfigError: its tasks have one level.
        """
        family = two_levels(self.family)
        if family is None:
            raise ConfigError(
                f"few tasks of a family: {self.family.id} has tasks of one level, no families of them, as "
                "SinusoidFamilies-v0 and PointMassFamilies-v0 have"
            )
        return family

    def _goal_rates(self, n_inner_steps: int) -> list[float]:
        """Return the rates of inner steps on goal tasks where nothing is said."""
        return self.test_rates(n_inner_steps)

    def evaluate_few_tasks(
        self,
        split: str = "test",
        n_inner_steps: int | None = None,
        *,
        n_tasks: int = 5,
        n_meta_steps: int | None = None,
        meta_lr: float | None = None,
        update: str | None = None,
        n_families: int = 40,
        n_goal_tasks: int = 10,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr: float | Sequence[float] | None = None,
        tuning: Tuning | Mapping[str, Any] | None = None,
        seed: int = 0,
        label: str | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Meta-finetune to held-out families on few tasks of each, and report how goal tasks are adapted to from there.

        For each family: ``n_meta_steps`` of meta-finetuning on ``n_tasks`` tasks, each with a support for every inner
        step and a query, then inner steps on goal tasks of the same family. An entry of the report is a family, its
        return after 0 … K inner steps the mean over its goal tasks, so that intervals are over families. With
        ``n_tasks=0`` there is no meta-finetuning; goal tasks and streams are the same, so that reports can be compared
        in pairs. ``meta["moved"]`` says how far layers move, ‖Δ‖ / ‖·‖ in the mean over families or goal tasks.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :param n_inner_steps: K; as for :meth:`evaluate` if None.
        :param n_tasks: L.
        :param n_meta_steps: m, see :meth:`meta_finetuning`, and for what follows.
        :param meta_lr: β.
        :param update: exactly or to first order.
        :param n_families: held-out families.
        :param n_goal_tasks: goal tasks of each.
        :param n_episodes: episodes for each gradient step; as in training if None.
        :param n_transitions: instead of episodes, env steps.
        :param inner_lr: γ, the rate of inner steps on goal tasks; that of training if None.
        :param tuning: fine-tune to goal tasks in another way than by these rates alone, see :meth:`evaluate`.
        :param seed: of the tasks within families and of all streams.
        :param label: the report's name in tables; if None, the algorithm's with the number of tasks.
        :param progress: called with (families done, families in all).
        :raises ConfigError: a family of one level, a new head, or see :meth:`meta_finetuning`.
        """
        family, seed = self._two_levels(), SEED("seed", seed)
        n_families, n_goal_tasks = ROUNDS("n_families", n_families), COUNT("n_goal_tasks", n_goal_tasks)
        n_tasks = COUNT_OR_ZERO("n_tasks", n_tasks)
        finetuning = self.meta_finetuning(max(1, n_tasks), n_meta_steps, (RATE | NONE)("meta_lr", meta_lr), update)
        n_inner_steps = self.default_test_steps if n_inner_steps is None else n_inner_steps
        known = self._goal_rates(n_inner_steps) if inner_lr is None else None
        rates = self.test_rates(n_inner_steps, inner_lr=inner_lr) if known is None else known
        how = None if tuning is None else Tuning.of(tuning)
        if how is not None and how.new_head:
            raise ConfigError("new_head=True: goal tasks start from what few tasks came to, head included")
        asked = _Asked(split, seed, n_tasks, n_goal_tasks, rates, self._amount(n_episodes, n_transitions), how)
        held_out = family.families(split, n_families)
        size = max(1, BLOCK_TASKS // max(n_tasks, n_goal_tasks))
        parts = [slice(j, min(j + size, n_families)) for j in range(0, n_families, size)]
        told, found = counted(progress, n_families), []
        with library_torch():
            for part in parts:
                found.append(self._evaluate_families(family, take_tasks(held_out, part), part, finetuning, asked))
                if told is not None:
                    told(part.stop - part.start)
        returns, steps = (np.concatenate([getattr(each, name) for each in found]) for name in ("returns", "env_steps"))
        moved = {
            phase: {layer: float(np.mean(values)) for layer, values in _joined([each.moved[phase] for each in found])}
            for phase in found[0].moved
        }
        few = {**asked.few_tasks(finetuning), "env_steps": float(np.mean([each.few_steps for each in found]))}
        return Report(
            algo=self.name,
            env=self.family.id,
            split=split,
            returns=returns[None],
            env_steps=np.array([0.0, *np.cumsum(steps[:, :-1].mean(0))]),
            tasks={name: value.tolist() for name, value in held_out.items()},
            seeds=[self.seed],
            label=label or ", ".join([self.name, f"{n_tasks or 'no'} tasks", *([] if how is None else [str(how)])]),
            score=evaluation_score(self.family),
            meta={
                "num_timesteps": self.num_timesteps,
                "n_iterations": self.n_iterations,
                "inner_lr": rates,
                **asked.amount,
                **({} if how is None else {"tuning": how.to_dict()}),
                "evaluation_seed": seed,
                "env_kwargs": plain_tree(self.env_kwargs),
                "few_tasks": few,
                "moved": moved,
                "versions": versions(),
            },
        )

    def _evaluate_families(
        self, family: TwoLevels, families: Tasks, part: slice, finetuning: MetaFinetuning, asked: _Asked
    ) -> _Found:
        """Meta-finetune to some held-out families, and adapt to their goal tasks."""
        adaptation, n = self.adaptation, part.stop - part.start
        assert isinstance(adaptation, BatchedAdaptation)
        start = stack = expand(self.theta, n)
        few_steps = 0.0
        for k in range(finetuning.n_steps if asked.n_tasks else 0):
            again = k > 0 and adaptation.learner.reuses_support
            purpose = "few" if k == 0 or again else f"few/{k}"
            request = asked.request(family, families, part, "few", purpose, finetuning.rates, stack)
            outcome = finish(adaptation.walk(self.theta, request, query=True, keep=True), Timer())
            stack = {name: tensor.detach() for name, tensor in finetuning.step(stack, outcome).items()}
            few_steps += 0.0 if again else outcome.n_steps / n
        rates = self._steps(asked.rates, asked.tuning)
        request = asked.request(family, families, part, "goals", "goals", rates, stack)
        outcome = adaptation.evaluate(self.theta, request)
        moved = {"meta_finetuning": relative_changes(start, stack)} if asked.n_tasks else {}
        moved["finetuning"] = relative_changes(request.local, outcome.params)
        returns, env_steps = (
            each.reshape(n, asked.n_goal_tasks, -1).mean(1) for each in (outcome.returns, outcome.env_steps)
        )
        return _Found(returns, env_steps, few_steps, moved)


class _Asked(NamedTuple):
    """What is asked of an evaluation on few tasks."""

    split: str
    seed: int
    n_tasks: int
    n_goal_tasks: int
    rates: list[float]
    amount: Amount
    tuning: Tuning | None

    def request(
        self,
        family: TwoLevels,
        families: Tasks,
        part: slice,
        what: str,
        purpose: str,
        rates: Sequence[Rate],
        stack: Params,
    ) -> Request:
        """Return the request for tasks of some families, which start from their families' parameters.

        :param part: the families' places.
        :param what: ``"few"`` or ``"goals"``; tasks do not depend on how many families or few tasks there are.
        :param purpose: of the streams.
        """
        size = self.n_tasks if what == "few" else self.n_goal_tasks
        root = f"evaluate/{self.split}/"
        drawn = []
        for i, j in enumerate(range(part.start, part.stop)):
            rng, own = stream(self.seed, f"{root}{what}/tasks", j), take_tasks(families, slice(i, i + 1))
            drawn.append(draw_tasks_of(family, rng, size, own))
        streams = Streams(self.seed, root + purpose).of(range(part.start * size, part.stop * size))
        return Request(concatenate_tasks(drawn), rates, streams, self.amount, contiguous(spread(stack, size)))

    def few_tasks(self, finetuning: MetaFinetuning) -> dict[str, Any]:
        """Return what a report says of meta-finetuning."""
        how = {"n_steps": finetuning.n_steps, "rate": finetuning.rate, "update": finetuning.update}
        own = {"n_tasks": self.n_tasks, "n_goal_tasks": self.n_goal_tasks}
        return {**own, **(how if self.n_tasks else {})}


class _Found(NamedTuple):
    """What was found of some families.

    :param returns: ``[family, step]``, means over goal tasks.
    :param env_steps: likewise.
    :param few_steps: env steps of a family's few tasks.
    :param moved: by phase and layer, ``[…]``, the relative changes.
    """

    returns: np.ndarray
    env_steps: np.ndarray
    few_steps: float
    moved: dict[str, dict[str, np.ndarray]]


def relative_changes(before: Params, after: Params) -> dict[str, np.ndarray]:
    """Return how far each layer moved, ‖after − before‖ / ‖before‖, by its name, ``[stack]``.

    A layer is a weight with its bias; what is 0 before, and statistics, are left out.
    """
    sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, tensor in before.items():
        if name.startswith(STATISTICS):
            continue
        layer = name.rpartition(".")[0] or name
        moved, size = ((each.double().flatten(1) ** 2).sum(1) for each in (after[name] - tensor, tensor))
        known = sums.get(layer, (torch.zeros_like(moved), torch.zeros_like(size)))
        sums[layer] = (known[0] + moved, known[1] + size)
    return {layer: (moved / size).sqrt().numpy() for layer, (moved, size) in sums.items() if bool((size > 0.0).all())}


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    for layer in parts[0]:
        yield layer, np.concatenate([part[layer] for part in parts if layer in part])
