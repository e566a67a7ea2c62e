"""OML: online-aware meta-learning (Javed and White, 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.derivatives.levels import summed
from metarl.agents.networks.layers import head_of
from metarl.agents.sampling.samples import Samples
from metarl.checks import COUNT, SWITCH, choice
from metarl.envs.family import Family
from metarl.envs.tasks import Tasks, take_tasks
from metarl.errors import ConfigError, shorten
from metarl.meta.adaptation.base import Outcome, Streams
from metarl.meta.adaptive import names_of
from metarl.meta.algorithms.on_families import FamilyAlgorithm
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.meta.two_levels.finetuning import loss_on, stepped
from metarl.params import Params, Rate, expand, inner_name, meta_name, select, total

ASKED = ("all", "last")
"""What is asked for once all tasks were met."""


class OML(FamilyAlgorithm):
    """A representation in which tasks that are met one after another are learnt without disturbing each other.

    A meta-iteration draws families, and of each a sequence of tasks. From the initialisation, inner steps go down the
    loss of the first task's batches, then of the second's, and so on; they move the head only. Then all tasks of the
    sequence are asked for, and the mean loss of their queries goes through all steps to the body and the head::

        model = OML("MlpPolicy", "ContinualSinusoid-v0", learner="supervised", n_tasks=3, n_episodes=5)
        model.learn(total_timesteps=1)
        report = model.evaluate_in_sequence(n_tasks=4, n_families=2)  # after 0 to 4 tasks: the mean over all four

    With T tasks of r steps each, θ_{t+1} = θ_t − α ∇_head L_{i(t)}(θ_t) for t = 0 … T·r − 1, and a step is
    θ ← θ − η ∇_θ mean_i L_i(θ_{T·r}). Of supervised tasks each inner step has a batch of its own, as a stream of
    examples has. Policies collect at the parameters reached: then ``asked="last"`` is the objective of a family that
    drifts, in which the task of the moment is what counts, because one policy that is told no task cannot do all.

    The paper leaves the head as it was initialised in the outer step, the code that goes with it learns it too; that
    also cuts single gradients off at ±10, which is not done here.

    :param env: a registered family's name or a family, of two levels or of one.
    :param learner: ``"supervised"``, or another that is batched over tasks.
    :param inner_modules: what inner steps move; None: the head, see :class:`~metarl.meta.algorithms.anil.ANIL`.
    :param learns_head: whether the outer step moves what inner steps move.
    :param n_tasks: tasks of a sequence.
    :param n_inner_steps: on each of them.
    :param asked: ``"all"`` tasks of the sequence, or the ``"last"``.
    :param meta_batch_size: sequences in a meta-iteration, each of another family.
    :param n_episodes: for each inner step, and for the query of a task.

    The other parameters are those of :class:`~metarl.meta.adaptive.AdaptiveAlgorithm` and
    :class:`~metarl.meta.base.MetaAlgorithm`.
    """

    name: ClassVar[str] = "oml"
    default_outer: ClassVar[tuple[str, Mapping[str, Any]]] = ("adam", {"learning_rate": 0.0001})
    _differentiates = True

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "ContinualSinusoid-v0",
        *,
        inner_modules: Sequence[str] | None = None,
        learns_head: bool = True,
        n_tasks: int = 10,
        n_inner_steps: int = 5,
        asked: str = "all",
        meta_batch_size: int = 1,
        n_episodes: int = 10,
        **kwargs: Any,
    ) -> None:
        self.inner_modules = None if inner_modules is None else names_of("inner_modules", inner_modules)
        self.learns_head = SWITCH("learns_head", learns_head)
        self.n_tasks = COUNT("n_tasks", n_tasks)
        self.asked: str = choice(*ASKED)("asked", asked)
        sizes: dict[str, Any] = {"meta_batch_size": meta_batch_size, "n_episodes": n_episodes}
        super().__init__(policy, env, n_inner_steps=n_inner_steps, **sizes, **kwargs)

    def _stays(self, theta: Params) -> frozenset[str]:
        names = self.adaptations.names
        moved = select(names, head_of(names) if self.inner_modules is None else self.inner_modules)
        if not moved:
            raise ConfigError(f"inner_modules={shorten(self.inner_modules)} leaves nothing that adapts")
        return frozenset(names) - set(moved)

    @property
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration where no episode ends early."""
        n_query = self.adaptation.option("n_query")
        query = self.batch_steps if n_query is None else n_query * self.family.horizon
        n_asked = self.n_tasks if self.asked == "all" else 1
        return self.meta_batch_size * (self.n_tasks * self.n_inner_steps * self.batch_steps + n_asked * query)

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer, (tasks,) = Timer(), self._draw(sequence=self.n_tasks)
        known: list[tuple[float, Params, list[Outcome]]] = []
        with self._whole():
            for part in self._parts(self.n_tasks):
                known.append(self._learn(part, tasks, timer))
            with timer("outer"):
                gradient = {name: each / self.meta_batch_size for name, each in total([p[1] for p in known]).items()}
                found = MetaGradient(sum(part[0] for part in known) / self.meta_batch_size, gradient)
                remaining = self._current_progress_remaining
                result = self.outer_optimizer.step(KnownGradient(found), self.meta_params, remaining)
                self._move(result.params, [part[2][-1] for part in known])
        outcomes = [outcome for part in known for outcome in part[2]]
        self.num_timesteps += sum(outcome.n_steps for outcome in outcomes)
        stats = {**self._statistics([part[2][-1] for part in known], timer), **result.stats}
        # Before any step: of supervised tasks all, else the first of each sequence.
        before = float(np.mean(np.concatenate([part[2][0].returns[:, 0] for part in known])))
        after = stats["meta/post_adapt_rew"]
        return {**stats, "meta/pre_adapt_rew": before, "meta/adapt_gain": after - before}

    def _learn(self, part: slice, tasks: Tasks, timer: Timer) -> tuple[float, Params, list[Outcome]]:
        """Learn the sequences of some families; return the loss, its gradient, and what came of all batches."""
        names = [inner_name(name) for name in self.meta_params]
        learner = self.adaptation.learner  # type: ignore[attr-defined]
        theta = {name: tensor.detach().requires_grad_(name in names) for name, tensor in self.theta.items()}
        stack, n = expand(theta, part.stop - part.start), self.n_tasks
        rates = self._rule(self.rates).steps(self.params)
        moved = [name for name in names if name not in self.stays]
        outcomes: list[Outcome] = []
        batches: list[list[Samples]] = []
        if self.abilities.reuses_support:
            batches = self._batches(part, tasks, stack, timer, outcomes)
        for t in range(n):
            for k in range(self.n_inner_steps):
                if self.abilities.reuses_support:
                    samples = batches[t][k]
                else:
                    one = take_tasks(tasks, slice(t, None, n))
                    streams = Streams(self.seed, f"train/{t}/{k}", self.n_iterations)
                    block = self._block(part, one, 1, [rates[k]], streams, stack)
                    outcomes.append(self._learn_block(block, timer, keep=True))
                    (samples,) = outcomes[-1].support
                with timer("outer"):
                    stack = stepped(learner, samples, _of(rates[k], moved), stack)
        size = n if self.asked == "all" else 1
        asked = tasks if self.asked == "all" else take_tasks(tasks, slice(n - 1, None, n))
        streams = Streams(self.seed, "train/query", self.n_iterations)
        outcomes.append(self._learn_block(self._block(part, asked, size, [], streams, stack), timer, query=True))
        query = outcomes[-1].query
        assert query is not None
        with timer("outer"):
            loss = learner.policy.loss_function(query.obs, partial(loss_on, learner.query_loss, query))
            mean = summed(loss, size)(stack).sum() / size
            slopes = torch.autograd.grad(mean, [theta[name] for name in names], materialize_grads=True)
        gradient = dict(zip(names, slopes, strict=True))
        if not self.learns_head:
            gradient |= {name: torch.zeros_like(each) for name, each in gradient.items() if name not in self.stays}
        return float(mean.detach()), {meta_name(name): each for name, each in gradient.items()}, outcomes

    def _batches(
        self, part: slice, tasks: Tasks, stack: Params, timer: Timer, outcomes: list[Outcome]
    ) -> list[list[Samples]]:
        """Return the batch of each inner step of each task of a sequence, which nothing that is learnt changes.

        :param outcomes: what came of drawing them is added here.
        """
        r, n = self.n_inner_steps, self.n_tasks
        amount = {name: None if value is None else value * r for name, value in self._amount(None, None).items()}
        rates, streams = self._rule(self.rates[:1]).steps(self.params), Streams(self.seed, "train", self.n_iterations)
        block = self._block(part, tasks, n, rates, streams, stack, amount)
        outcomes.append(self._learn_block(block, timer, keep=True))
        (whole,) = outcomes[-1].support
        size = whole.obs.shape[1] // r
        found = []
        for t in range(n):
            own = whole.tasks(slice(t, None, n))
            cut = [own.part(slice(k * size, (k + 1) * size)) for k in range(r)]
            found.append([replace(batch, weights=batch.weights * r) for batch in cut])
        return found


def _of(rate: Rate, names: Sequence[str]) -> dict[str, float | torch.Tensor]:
    """Return the rates of those that move."""
    return {name: rate[name] if isinstance(rate, Mapping) else rate for name in names}
