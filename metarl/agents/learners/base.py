"""The base of learners that are batched over tasks: pure functions of named tensors, and what they declare."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from metarl.agents.learners.descent import descend, sample_parts, task_blocks
from metarl.agents.learners.optimizers import SGD, Layout, Optimizer
from metarl.agents.learners.registry import Abilities
from metarl.agents.learners.watching import LearnerState, Watcher
from metarl.agents.networks.distributions import Distribution
from metarl.agents.networks.policy import FunctionalPolicy
from metarl.agents.parallel import Parallel
from metarl.agents.sampling.episodes import Episodes
from metarl.agents.sampling.rollouts import Rollout
from metarl.agents.sampling.samples import Samples
from metarl.errors import ConfigError
from metarl.files.schema import constructor_hints
from metarl.frozen import SetOnce
from metarl.params import Params, Rate


@dataclass(frozen=True)
class SB3Settings:
    """How a stock SB3 algorithm repeats an update.

    :param kind: SB3's name of the algorithm, such as ``"ppo"``.
    :param optimizer: ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
    :param loss: hyperparameters of any on-policy algorithm that make its loss the learner's: discount, coefficients.
    :param update: those that make this algorithm's update the learner's; none where that is one plain gradient step.
    :param optimizer_kwargs: arguments of the optimiser's class beside its learning rate.
    """

    kind: str
    optimizer: str
    loss: dict[str, Any]
    update: dict[str, Any] = field(default_factory=dict)
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuing:
    """How a learner learns from episodes that go on from one update to the next.

    :param n_steps: env steps of each copy that an update learns from.
    :param n_envs: copies of a task.
    :param process: turns a rollout into samples.
    :param keeps: an update takes one step, at the parameters that collected its rollout, so that what the network
        computed there need not be computed again.
    """

    n_steps: int
    n_envs: int
    process: Callable[[Rollout], Samples]
    keeps: bool = False

    @property
    def size(self) -> int:
        """Env steps of an update."""
        return self.n_steps * self.n_envs

    def n_updates(self, n_transitions: int) -> int:
        """Return how many updates take at least ``n_transitions`` env steps."""
        return -(-n_transitions // self.size)


class Learner(Abilities, SetOnce):
    """A learner that is batched over tasks. What a task learns does not depend on the others of the stack.

    A learner says how episodes become samples, and what its loss is; an update is one step of SGD on that, unless it
    says otherwise. What else it can do it declares: see :class:`~metarl.agents.learners.registry.Abilities`. The
    constructor's keywords are what ``learner_kwargs`` of a meta-wrapper may have::

        from metarl.agents import Learner, register_learner
        from metarl.agents.sampling.samples import pack

        @register_learner("my_reinforce")
        class Reinforce(Learner):
            default_rate = 0.01
            plain_steps = True
            steps_per_update = 1

            def process(self, episodes, params):
                return pack(episodes, episodes.rewards[..., ::-1].cumsum(-1)[..., ::-1])

            def head_loss(self, distribution, samples, values=None):
                return -(samples.weights * distribution.log_prob(samples.actions) * samples.advantages).sum(-1)

    :param policy: the policy whose tensors are learnt.
    :param parallel: the threads that blocks of tasks run on; not those of a caller that runs inside it.
    :raises ConfigError: the policy has no critic, and the learner needs one.
    """

    differentiable = True
    samples_type: type[Samples] = Samples
    """What :meth:`process` returns."""
    n_query: int | None = None
    """Episodes of a query batch; None: as many as of any other batch."""
    n_eval: int | None = None
    """Episodes that a score is the mean over in evaluations where batches are reused; None: as many as of a batch."""
    continuing: Continuing | None = None
    """Updates within an inner step, on episodes that go on; None: an inner step is an update on whole episodes."""
    max_grad_norm: float | None = None
    """Each task's gradient is scaled down to this norm; None leaves it as it is."""

    def __init__(self, policy: FunctionalPolicy, *, parallel: Parallel | None = None) -> None:
        if self.needs_critic and not policy.has_critic:
            raise ConfigError(f"{type(self).__name__} needs a policy with a critic: FunctionalPolicy(…, critic=True)")
        self.policy = policy
        self._parallel = parallel or Parallel(1)
        self._optimizer: Optimizer = SGD()

    @classmethod
    def options(cls) -> frozenset[str]:
        return frozenset(constructor_hints(cls)) - {"policy", "parallel"}

    # -------------------------------------------------------------------------------------------------------- the loss
    @abstractmethod
    def process(self, episodes: Episodes, params: Params) -> Samples:
        """Turn episodes that the stacked ``params`` collected into samples."""

    @abstractmethod
    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of each task, ``[task]``, twice differentiable in the distribution's heads and the values.

        :param distribution: at the samples' observations.
        :param values: the critic's there, ``[task, n]``; None where the policy has none.
        """

    def query_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of each task on its query batch, ``[task]``: the mean over tasks is what a meta-wrapper that
        differentiates goes down. It is :meth:`head_loss`, unless a learner knows better.
        """
        return self.head_loss(distribution, samples, values)

    def loss(self, params: Params, samples: Samples) -> torch.Tensor:
        """Return the loss of each task on all its samples, ``[task]``; twice differentiable in ``params`` (stacked)."""
        values = self.policy.values(params, samples.obs) if self.needs_critic else None
        return self.head_loss(self.policy.distribution(params, samples.obs), samples, values)

    # ------------------------------------------------------------------------------------------------------ the update
    def start(self, params: Params) -> LearnerState:
        """Return the state with which learning starts at the stacked ``params``: a fresh optimiser."""
        return LearnerState(params, self._optimizer.start(Layout(params).room(params)))

    def update(
        self,
        state: LearnerState,
        samples: Samples,
        rate: Rate,
        seeds: Sequence[np.random.SeedSequence],
        watcher: Watcher | None = None,
    ) -> LearnerState:
        """Return the state after learning from one batch: one step of the optimiser on all of it.

        :param rate: the optimiser's learning rate.
        :param seeds: one stream for each task, for what an update draws; one step draws nothing.
        :param watcher: is told every step, by the calling thread, with the whole stack.
        """
        sizes = samples.obs.shape[1], self.policy.width
        return descend(
            self.policy,
            self.head_loss,
            self._optimizer,
            state,
            rate,
            task_blocks(len(samples), *sizes),
            lambda block: iter([(samples.tasks(block), None)]),
            max_grad_norm=self.max_grad_norm,
            parts=sample_parts(*sizes, samples.kept is not None) if self.continuing else (slice(None),),
            parallel=self._parallel,
            watcher=watcher,
        )

    def gradient_steps(self, parallel: Parallel | None = None) -> Learner:
        """Return the learner whose update is one plain gradient step on this one's loss: what MAML differentiates.

        :param parallel: the threads that blocks of tasks run on.
        """
        return self if self.plain_steps else GradientSteps(self, parallel)

    # --------------------------------------------------------------------------------------------------------- exports
    def sb3_settings(self, n_samples: int) -> SB3Settings | None:
        """Return how a stock SB3 algorithm repeats an update; None where none does.

        :param n_samples: env steps of the batch.
        """
        return None


_KEPT = (
    "name",
    "needs_critic",
    "trust_region",
    "samples_type",
    "info",
    "deterministic",
    "predicts",
    "reuses_support",
    "n_query",
    "n_eval",
)
"""What a learner declares about its batches and its loss, which holds for plain gradient steps on it too."""


class GradientSteps(Learner):
    """A learner with another one's loss and batches that takes one plain gradient step on each batch.

    :param learner: gives both.
    :param parallel: the threads that blocks of tasks run on.
    """

    plain_steps = True
    steps_per_update = 1

    def __init__(self, learner: Learner, parallel: Parallel | None = None) -> None:
        super().__init__(learner.policy, parallel=parallel)
        # What classes declare is found before __getattr__ is asked.
        for declared in _KEPT:
            setattr(self, declared, getattr(learner, declared))
        learner.take_into_use()
        self._learner = learner

    def __getattr__(self, name: str) -> Any:
        """Return what else the learner has, such as its coefficients."""
        if name.startswith("_"):
            # Copying and unpickling ask for some before there is a learner.
            raise AttributeError(name)
        return getattr(self._learner, name)

    def process(self, episodes: Episodes, params: Params) -> Samples:
        """As the learner does."""
        return self._learner.process(episodes, params)

    def head_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As the learner does."""
        return self._learner.head_loss(distribution, samples, values)

    def query_loss(
        self, distribution: Distribution, samples: Samples, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As the learner does."""
        return self._learner.query_loss(distribution, samples, values)

    def sb3_settings(self, n_samples: int) -> SB3Settings | None:
        """As the learner does, but for the update."""
        settings = self._learner.sb3_settings(n_samples)
        return None if settings is None else replace(settings, optimizer="sgd", update={}, optimizer_kwargs={})
