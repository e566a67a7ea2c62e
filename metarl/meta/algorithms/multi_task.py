"""Multi-task training with a shared trunk and heads of their own ("multi-head fine-tuning")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.learners.registry import Abilities
from metarl.agents.networks.layers import head_of
from metarl.agents.sampling.samples import Samples
from metarl.checks import integer
from metarl.envs.family import Family, draw_tasks
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.errors import ConfigError
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.adaptation.base import Outcome, Streams
from metarl.meta.adaptation.batched import BatchedAdaptation
from metarl.meta.algorithms.baselines import Pretrain
from metarl.meta.blocks.cut import Adaptations, Block, MakeAdaptation
from metarl.meta.blocks.derivatives import chunks
from metarl.meta.environments import AnyEnv
from metarl.meta.outer.objective import KnownGradient, MetaGradient
from metarl.meta.progress import Timer
from metarl.params import HEADS, Params, group, join, meta_name, stack, take
from metarl.streams import stream


class MultiTask(Pretrain):
    """Joint training of a trunk that tasks share; the first ``n_training_tasks``, listed or drawn, have heads.

    With θ the trunk and h_i the head of task i, one optimiser goes down mean_i L_i(θ, h_i) over the tasks of a
    meta-batch; heads of tasks that are not in it stay. A new task begins with a head that is drawn anew, and learns
    all, or with ``tuning={"freeze": "body"}`` the head only::

        options = {"learner": "supervised", "n_training_tasks": 4, "meta_batch_size": 2, "n_episodes": 5}
        model = MultiTask("MlpPolicy", "Sinusoid-v0", **options, policy_kwargs={"net_arch": [8]})
        model.learn(total_timesteps=10)
        prediction, _ = model.policy_of(0).predict(np.zeros(1, dtype=np.float32), deterministic=True)
        report = model.evaluate(n_tasks=2, n_inner_steps=2)

    It is the multi-head fine-tuning of Flennerhag et al. (2019), section 4.1. Tasks may have unequal spaces: then the
    tensors whose shapes differ are each task's own as well. Optimisers see a gradient of 0 for heads that are not in a
    meta-batch, so that Adam's averages of it fade.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"FewShotCnnPolicy"``.
    :param env: a registered family's name or a family.
    :param n_training_tasks: tasks that have a head, at most: the first of those that the family lists for training, or
        draws by ``seed`` where it has any number.
    :param task_local: what is each task's own; by default the head, which is ``action_net``, ``log_std`` and, with a
        critic, ``value_net``.

    The other parameters are those of :class:`~metarl.meta.algorithms.maml.MAML`; ``outer`` is ``"adam"`` or ``"sgd"``,
    and ``inner_lr`` and ``n_inner_steps`` are what evaluation adapts with.
    """

    name: ClassVar[str] = "multi_task"
    has_heads: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: str | Family | AnyEnv = "PointMass-v0",
        *,
        n_training_tasks: int = 20,
        **kwargs: Any,
    ) -> None:
        self.n_training_tasks = integer(1, 10**4)("n_training_tasks", n_training_tasks)
        super().__init__(policy, env, **kwargs)

    @classmethod
    def refusal(cls, learner: type[Abilities]) -> str | None:
        if learner.differentiable:
            return None
        return "a stock algorithm has one head for all tasks that it learns at once: use a learner of ours, or pretrain"

    def _default_outer(self) -> tuple[str, Mapping[str, Any]]:
        return "adam", {"learning_rate": 1e-3}

    def _check_learner(self) -> None:
        super()._check_learner()
        if self.outer == "trpo":
            raise ConfigError(f"{self.name} with outer='trpo': no policy is shared by tasks: use 'adam' or 'sgd'")

    def _make_adaptations(self, make: MakeAdaptation) -> Adaptations:
        given = super()._make_adaptations(make)
        return given if self.task_local else Adaptations(self.family, make, head_of(given.names))

    def _setup_model(self, seed: int) -> Params:
        self.training_tasks = self._list_tasks()
        """The tasks that have a head, ``[task, …]``."""
        trunk = super()._setup_model(seed)
        return {**trunk, **self._first_heads()}

    def _first_heads(self) -> Params:
        """Return what each training task has of its own at the start."""
        heads: Params = {}
        for block in self.adaptations.cut(self.training_tasks, [], Streams(self.seed, "heads"), {}):
            for place, index in enumerate(block.indices):
                own = take(block.request.local, place)
                heads |= {f"{HEADS}{index}/{name}": tensor.clone() for name, tensor in own.items()}
        return heads

    def _list_tasks(self) -> Tasks:
        finite = self.family.finite_tasks()
        if finite is None:
            return draw_tasks(self.family, stream(self.seed, "heads/tasks"), self.n_training_tasks)
        return take_tasks(finite, self.family.finite_split("train")[: self.n_training_tasks])

    @property
    def theta(self) -> Params:
        """The trunk, which adaptation starts from."""
        return {name: tensor for name, tensor in super().theta.items() if not name.startswith(HEADS)}

    def head(self, index: int) -> Params:
        """Return the tensors of a training task's own."""
        return group(self.params, f"{HEADS}{index}/")

    def policy_of(self, index: int) -> AdaptedPolicy:
        """Return the policy for one of the training tasks, with its own head.

        :param index: of :attr:`training_tasks`.
        """
        index = integer(0, n_tasks(self.training_tasks) - 1)("index", index)
        pair = self.family.spaces(one_task(self.training_tasks, index))
        return self.adaptations.of(*pair).policy_at({**self.theta, **self.head(index)})

    # -------------------------------------------------------------------------------------------------------- training
    def train(self) -> dict[str, float]:
        timer, chosen = Timer(), self._chosen()
        blocks = self._blocks_of(chosen, Streams(self.seed, "train", self.n_iterations))
        with self._whole():
            outcomes = [self._learn_block(block, timer, query=True) for block in blocks]
            with timer("outer"):
                pairs = zip(blocks, outcomes, strict=True)
                losses, gradients = zip(*(self._derivatives_of(*pair, chosen) for pair in pairs), strict=True)
                gradient = {name: torch.zeros_like(tensor) for name, tensor in self.meta_params.items()}
                for part in gradients:
                    for name, tensor in part.items():
                        gradient[name] += tensor / self.meta_batch_size
                loss = sum(losses) / self.meta_batch_size
                objective = KnownGradient(MetaGradient(loss, self._direction(gradient)))
                result = self.outer_optimizer.step(objective, self.meta_params, self._current_progress_remaining)
                self._move(self._held(result.params, chosen), outcomes)
        self.num_timesteps += sum(outcome.n_steps for outcome in outcomes)
        return {**self._statistics(outcomes, timer), **result.stats}

    def _chosen(self) -> list[int]:
        """Return which of the training tasks are in this meta-batch."""
        n, rng = n_tasks(self.training_tasks), stream(self.seed, "tasks", self.n_iterations)
        chosen: list[int] = rng.choice(n, self.meta_batch_size, replace=self.meta_batch_size > n).tolist()
        return chosen

    def _blocks_of(self, chosen: Sequence[int], streams: Streams) -> list[Block]:
        """Return the blocks of a meta-batch, whose tasks start with their own heads."""
        tasks = take_tasks(self.training_tasks, np.array(chosen))
        own = lambda indices: stack([self._own(chosen[i]) for i in indices])  # noqa: E731
        return self.adaptations.cut(tasks, [], streams, self._amount(None, None), own=own)

    def _own(self, index: int) -> Params:
        """Return what a training task has of its own while it is learnt."""
        return self.head(index)

    def _direction(self, gradient: Params) -> Params:
        """Return what the outer optimiser goes down, given the gradient of the mean loss; that, unless a wrapper knows
        better.
        """
        return gradient

    def _held(self, params: Params, chosen: Sequence[int]) -> Params:
        """Return what an outer step made of the meta-parameters, but those that the meta-batch may not move as they
        were: an optimiser with momentum moves what got no gradient.
        """
        moves = self._moving(chosen)
        return {name: tensor if moves(name) else self.params[name] for name, tensor in params.items()}

    def _moving(self, chosen: Sequence[int]) -> Callable[[str], bool]:
        """Return which meta-parameters a meta-batch may move, by name."""
        met = {f"{HEADS}{index}" for index in chosen}
        return lambda name: not name.startswith(HEADS) or name.rpartition("/")[0] in met

    def _derivatives_of(self, block: Block, outcome: Outcome, chosen: Sequence[int]) -> tuple[float, Params]:
        """Return the loss of a block and its gradient, by the names of the meta-parameters, each a sum over tasks."""
        assert isinstance(block.adaptation, BatchedAdaptation)
        assert outcome.query is not None
        learner, query = block.adaptation.learner, outcome.query

        def differentiate(part: slice) -> tuple[float, Params]:
            own: Samples = query.tasks(part)
            found = learner.policy.differentiate(
                take(outcome.params, part), own.obs, lambda heads, values: learner.query_loss(heads, own, values)
            )
            return float(found.losses.sum()), found.gradient

        parts = self.parallel.map(differentiate, chunks(len(query), [query], learner.policy.width, self.chunk_size))
        gradient = join([own for _, own in parts])
        found = {meta_name(name): gradient[name].sum(0) for name in self.theta if meta_name(name) in self.meta_params}
        for place, index in enumerate(block.indices):
            head = {f"{HEADS}{chosen[index]}/{name}": gradient[name][place] for name in block.request.local}
            found |= {name: found[name] + tensor if name in found else tensor for name, tensor in head.items()}
        return sum(loss for loss, _ in parts), found
