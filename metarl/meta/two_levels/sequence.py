"""Continual evaluation: tasks of a held-out family are learnt one after another, and all of them are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metarl.agents.derivatives.levels import spread
from metarl.agents.parallel import library_torch
from metarl.checks import COUNT, ROUNDS, SEED, plain_tree
from metarl.envs.family import evaluation_score
from metarl.envs.tasks import concatenate_tasks, take_tasks
from metarl.envs.two_levels import draw_tasks_of
from metarl.meta.adaptation.base import Request, Streams, finish
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.documents import versions
from metarl.meta.evaluation.report import Report
from metarl.meta.progress import Progress, Timer, counted
from metarl.meta.two_levels.evaluating import EvaluatesFewTasks
from metarl.meta.two_levels.finetuning import contiguous
from metarl.params import expand
from metarl.streams import stream


class EvaluatesSequences(EvaluatesFewTasks):
    """A meta-algorithm whose initialisation can learn tasks of a family one after another, however it was learnt.

    The arguments are those of :class:`~metarl.meta.model.Model`.
    """

    def evaluate_in_sequence(
        self,
        split: str = "test",
        *,
        n_tasks: int = 10,
        n_steps: int | None = None,
        n_families: int = 40,
        n_episodes: int | None = None,
        n_transitions: int | None = None,
        inner_lr: float | Sequence[float] | None = None,
        seed: int = 0,
        label: str | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Learn tasks of each held-out family one after another, and report the mean over all after 0, 1, … of them.

        An entry of the report is a family; a point of it is the mean return of all ``n_tasks`` tasks after so many of
        them were met, each by ``n_steps`` inner steps, every one on a batch of its own. What is lost of tasks that were
        met says ``meta["last_met"]``, the mean return of the task that was met last, by point: where it is far above
        the report's last point, earlier tasks were forgotten. Every inner step begins from where the last one ended
        and nothing else, as OML's does: iMAML's proximal term, which pulls to where a task's steps began, is 0 there.

        :param split: ``"train"``, ``"validation"`` or ``"test"``.
        :param n_tasks: tasks of a sequence.
        :param n_steps: inner steps on each; as in training if None.
        :param n_families: held-out families.
        :param n_episodes: episodes of a batch; as in training if None.
        :param n_transitions: instead of episodes, env steps.
        :param inner_lr: the rate of inner steps, or one for each; that of training if None.
        :param seed: of the tasks within families and of all streams.
        :param label: the report's name in tables; the algorithm's name if None.
        :param progress: called with (tasks met, tasks of a sequence).
        :raises ConfigError: a family of one level, or a learner that is not batched over tasks.
        """
        family, seed, adaptation = self._two_levels(), SEED("seed", seed), self.adaptation
        self._require_shared()
        assert isinstance(adaptation, BatchedAdaptation)
        n, size = ROUNDS("n_families", n_families), COUNT("n_tasks", n_tasks)
        n_steps = self.n_inner_steps if n_steps is None else COUNT("n_steps", n_steps)
        numbers = self.test_rates(n_steps, inner_lr=inner_lr)
        rates, amount = self._rule(numbers).steps(self.params), self._amount(n_episodes, n_transitions)
        held_out, root = family.families(split, n), f"evaluate/{split}/sequence"
        tasks = concatenate_tasks(
            [
                draw_tasks_of(family, stream(seed, f"{root}/tasks", j), size, take_tasks(held_out, slice(j, j + 1)))
                for j in range(n)
            ]
        )
        told, stack, points, spent = counted(progress, size), expand(self.theta, n), [], [0.0]
        with library_torch():
            for t in range(size + 1):
                asked = Request(tasks, [], Streams(seed, root), amount)
                returns, _ = adaptation.measure(contiguous(spread(stack, size)), asked)
                points.append(returns.reshape(n, size))
                if t == size:
                    break
                met = take_tasks(tasks, slice(t, None, size))
                for k in range(n_steps):
                    request = Request(met, [rates[k]], Streams(seed, f"{root}/{t}/{k}"), amount, contiguous(stack))
                    outcome = finish(adaptation.walk(self.theta, request), Timer())
                    stack = outcome.params
                    spent.append(outcome.n_steps / n)
                if told is not None:
                    told(1)
        all_returns = np.stack(points, axis=-1)
        return Report(
            algo=self.name,
            env=self.family.id,
            split=split,
            returns=all_returns.mean(1)[None],
            env_steps=np.cumsum(spent)[::n_steps],
            tasks={name: value.tolist() for name, value in held_out.items()},
            seeds=[self.seed],
            label=label or self.name,
            score=evaluation_score(self.family),
            meta={
                "num_timesteps": self.num_timesteps,
                "n_iterations": self.n_iterations,
                "inner_lr": numbers,
                **amount,
                "evaluation_seed": seed,
                "env_kwargs": plain_tree(self.env_kwargs),
                "few_tasks": {"n_tasks": size, "in_sequence": True, "n_steps": n_steps},
                "point": "task",
                "last_met": [float(all_returns[:, t, t + 1].mean()) for t in range(size)],
                "versions": versions(),
            },
        )
