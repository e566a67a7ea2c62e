"""Any Stable-Baselines3 or sb3-contrib algorithm as a learner whose path can be watched.

The algorithm is stock, and learns with its own ``learn()``. It is built once and starts over at every task: a run on
the third task is the same, to the last bit, as one of an algorithm that was just built. In plain SB3 a run is::

    model = SAC("MlpPolicy", env, seed=0, ...)          # env: copies of the task
    ...                                                 # copy the initialisation into model.policy
    model.set_random_seed(learning_seed(seed))
    model.learn(n_timesteps)

**Parameters** are ``policy.named_parameters()`` without target networks, under SB3's names (``actor.mu.weight``,
``q_net.q_net.0.bias``, ``log_std``, …), and ``log_ent_coef`` where an algorithm learns it. They are what a path
consists of. **Statistics** are carried with them but no optimiser moves them: ``statistics/obs_mean``, ``obs_var``,
``obs_count`` and the same of ``return`` (``VecNormalize``, float64), and ``statistics/policy/…`` (buffers of
normalisation layers). A meta-wrapper moves the parameters by its own rule, and the statistics by
:func:`~metarl.agents.stock.reuse.merge_statistics`.

What each task starts with (C: carried with the initialisation, T: copied from the online networks, R: reset to what
the constructor or ``learn()`` sets, S: set from the task's stream):

======================================================  ======  ====  ====  ======  ===  ====  ======
state                                                   PPO,    TRPO  DQN,  SAC,    TD3  DDPG  CrossQ
                                                        A2C           QR-   TQC
                                                                      DQN
======================================================  ======  ====  ====  ======  ===  ====  ======
parameters of the policy and of its critics             C       C     C     C       C    C     C
target networks                                                       T     T       T    T
entropy coefficient that is learnt (``log_ent_coef``)                       C                  C
statistics of ``VecNormalize``                          C       C     C     C       C    C     C
buffers of normalisation layers                         C       C     C     C       C    C     C
state and learning rates of the optimisers              R       R     R     R       R    R     R
schedules (learning rate, clip range, exploration)      R       R     R     R       R    R     R
rollout or replay buffer                                R       R     R     R       R    R     R
``num_timesteps``, ``_n_updates``, ``_last_obs``        R       R     R     R       R    R     R
exploration rate, target update counter                               R
action noise                                                                R       R    R     R
episodes of the environments, discounted returns        R       R     R     R       R    R     R
``random``, ``numpy.random``, ``torch`` (all global)    S       S     S     S       S    S     S
actions drawn from the action space, environments       S       S     S     S       S    S     S
======================================================  ======  ====  ====  ======  ===  ====  ======

The entropy coefficient is carried because it belongs to the policy: at SAC's first value of 1 the first updates of a
task would pull an initialisation that has learnt what to do back to the widest policy. A fixed ``ent_coef`` is a
hyperparameter. The callers' own global generators come back as they were; while a run lasts they are SB3's, so
different learners run side by side in processes: threads wait for each other
(:func:`~metarl.agents.generators.sb3_generators`). Networks are made without the global generators.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from metarl.agents.generators import sb3_generators
from metarl.agents.learners.watching import Watcher
from metarl.agents.networks.arguments import ACTIVATIONS, require_network_size
from metarl.agents.parallel import library_torch
from metarl.agents.stock.arguments import check_policy, check_together, check_values, query_arguments
from metarl.agents.stock.observers import GradientSum, Observer
from metarl.agents.stock.reuse import (
    ReusableSB3,
    construct,
    load_initialisation,
    load_optimizers,
    read_initialisation,
    read_optimizers,
)
from metarl.checks import COUNT, check_arguments, plain_tree
from metarl.envs.family import Family
from metarl.envs.groups import example_task
from metarl.envs.registry import make_family
from metarl.envs.tasks import Task, Tasks, n_tasks, one_task, take_tasks
from metarl.errors import ConfigError, shorten, unknown_name
from metarl.params import Params
from metarl.synonyms import HYPERPARAMETERS

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "a2c": A2C,
    "crossq": CrossQ,
    "ddpg": DDPG,
    "dqn": DQN,
    "ppo": PPO,
    "qrdqn": QRDQN,
    "sac": SAC,
    "td3": TD3,
    "tqc": TQC,
    "trpo": TRPO,
}
DISCRETE = ("dqn", "qrdqn")
"""Algorithms of Discrete actions only."""
CONTINUOUS = ("crossq", "ddpg", "sac", "td3", "tqc")
"""Algorithms of Box actions only."""
REFUSED = {
    "ars": "it searches at random, without gradients or optimisers: there is no path to watch",
    "ppo_lstm": "recurrent policies carry a hidden state, which is not part of an initialisation",
    "ppo_mask": "families have no action masks: use 'ppo'",
}
OWN = ("policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model")
"""Arguments of SB3's constructors that the learner sets."""
SPACES = ("observation_space", "action_space", "lr_schedule")
"""Arguments of a policy that SB3 sets."""
OF_NORMALIZE = ("venv", "training", "norm_obs_keys")
"""Arguments of ``VecNormalize`` that the learner sets; observations of families have no keys."""


def check_names(algorithm: str, names: Iterable[Any]) -> None:
    """Raise unless the learner around ``algorithm`` takes an argument of each of these names.

    :raises UnknownNameError: it does not.
    :raises ConfigError: it sets the argument itself.
    """
    cls = ALGORITHMS[algorithm]
    known = {*inspect.signature(cls.__init__).parameters, "n_envs", "normalize"} - {"self", *OWN}
    for name in names:
        if name in OWN:
            raise ConfigError(f"{name} is set by the learner: it cannot be given")
        if name not in known:
            raise unknown_name(f"argument of {cls.__name__}:", name, known, HYPERPARAMETERS)


def check_stock(
    cls: type[BaseAlgorithm],
    policy: str,
    arguments: Mapping[str, Any],
    normalize: Mapping[str, Any] | None = None,
    n_envs: int = 1,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arguments of a stock algorithm, its policy among them, and of ``VecNormalize`` as plain values.

    :param arguments: of the algorithm, ``policy_kwargs`` among them; their names are known.
    :param normalize: arguments of ``VecNormalize``; None: nothing is normalised.
    :raises UnknownNameError: a policy, a keyword or a network of such a name is not there.
    :raises ConfigError: a value that an argument may not have.
    """
    checked = check_values(cls.__init__, arguments)
    if policy not in list(cls.policy_aliases):
        raise unknown_name(f"policy of {cls.__name__}", policy, cls.policy_aliases)
    init = cls.policy_aliases[policy].__init__
    policy_kwargs = checked["policy_kwargs"] or {}
    check_arguments(init, policy_kwargs, "policy keyword", own=SPACES)
    checked["policy_kwargs"] = check_values(init, policy_kwargs, "policy_kwargs.")
    arch = policy_kwargs.get("net_arch")
    parts = ("pi", "vf" if issubclass(cls, OnPolicyAlgorithm) else "qf")
    for part in arch if isinstance(arch, Mapping) else ():
        if part not in parts:  # SB3 would leave it out and say nothing
            raise unknown_name(f"network of {cls.__name__} in net_arch", part, parts)
    check_together(cls, checked, n_envs)
    if normalize is None:
        return checked, None
    check_arguments(VecNormalize.__init__, normalize, "argument of VecNormalize:", own=OF_NORMALIZE)
    return checked, check_values(VecNormalize.__init__, normalize, "normalize.")


def learning_seed(seed: np.random.SeedSequence) -> int:
    """Return what a run with this stream gives to SB3's ``set_random_seed``."""
    return int(seed.generate_state(1)[0])


@dataclass(frozen=True)
class LearningRun:
    """What came of learning one task.

    :param params: parameters and statistics that were reached.
    :param env_steps: env steps that learning took; on-policy algorithms round up to whole rollouts.
    :param episode_returns: undiscounted returns of the episodes that ended while learning, with whatever exploration
        the algorithm added, in the order they ended.
    :param eval_env_steps: env steps that learning had taken at each evaluation, from 0 on.
    :param eval_returns: mean undiscounted return of the fresh episodes of each.
    :param eval_lengths: their mean length.
    :param optimizers: what the optimisers remember, which a further run can go on from.
    """

    params: Params
    env_steps: int
    episode_returns: list[float]
    eval_env_steps: list[int]
    eval_returns: list[float]
    eval_lengths: list[float]
    optimizers: Params


@dataclass(frozen=True)
class QueryGradient:
    """The gradient of a learner's loss on a fresh rollout.

    :param gradient: of every parameter; statistics have none.
    :param env_steps: env steps of the rollout.
    :param episode_returns: undiscounted returns of the episodes that ended in it.
    """

    gradient: Params
    env_steps: int
    episode_returns: list[float]


class SB3Learner:
    """A stock SB3 algorithm that learns one task of a family after the other::

        learner = SB3Learner("PointMass-v0", "ppo", n_steps=32, batch_size=32, n_epochs=1)
        theta = learner.init(seed=0)
        task = one_task(learner.family.tasks("test", 1), 0)
        run = learner.run(theta, task, np.random.SeedSequence(0), n_timesteps=32)
        assert run.env_steps == 32

    :param family: a registered name or a family.
    :param algorithm: ``"ppo"``, ``"a2c"``, ``"trpo"``, ``"sac"``, ``"td3"``, ``"ddpg"``, ``"tqc"``, ``"crossq"``,
        ``"dqn"`` or ``"qrdqn"``.
    :param policy: one of the algorithm's policies, such as ``"MlpPolicy"``.
    :param policy_kwargs: as in SB3; ``activation_fn`` may be a name such as ``"relu"``.
    :param normalize: wrap the environments in SB3's ``VecNormalize``; a dict has its arguments. Its ``gamma`` is the
        algorithm's unless given.
    :param n_envs: copies of the task that step together.
    :param n_together: tasks that are learnt together, where they are.
    :param pair: the spaces of observations and actions of the tasks that are learnt, where a family's have unequal
        ones; None: the family's own.
    :param kwargs: hyperparameters of the algorithm; ``train_freq`` may be a list of two. Their values are those of
        :data:`metarl.agents.stock.arguments.ALLOWED`.
    :raises UnknownNameError: an unknown algorithm, policy or keyword.
    :raises ConfigError: actions that the algorithm does not take, an algorithm that is not supported, a value that an
        argument may not have, or whatever SB3 finds wrong.
    """

    def __init__(
        self,
        family: str | Family,
        algorithm: str,
        policy: str = "MlpPolicy",
        *,
        policy_kwargs: Mapping[str, Any] | None = None,
        normalize: bool | Mapping[str, Any] = False,
        n_envs: int = 1,
        n_together: int = 1,
        pair: tuple[spaces.Space[Any], spaces.Space[Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if algorithm in REFUSED:
            raise ConfigError(f"algorithm {shorten(algorithm)} is not supported: {REFUSED[algorithm]}")
        if algorithm not in ALGORITHMS:
            raise unknown_name("algorithm", algorithm, ALGORITHMS)
        self.family = make_family(family) if isinstance(family, str) else family
        self.algorithm = algorithm
        self.policy = policy
        self._class = ALGORITHMS[algorithm]
        observed, acted = pair or (self.family.observation_space, self.family.action_space)
        _require_actions(algorithm, self.family, acted)
        check_names(algorithm, kwargs)
        own = {"n_envs": n_envs, "normalize": normalize, "policy_kwargs": policy_kwargs}
        n_envs, normalize, policy_kwargs = check_values(SB3Learner.__init__, plain_tree(own)).values()
        check_policy(policy, observed, policy_kwargs or {})
        self.normalize = None if normalize is False else {} if normalize is True else dict(normalize)
        """Arguments of ``VecNormalize``; None where nothing is normalised."""
        kwargs, self.normalize = check_stock(
            self._class, policy, {**plain_tree(kwargs), "policy_kwargs": policy_kwargs}, self.normalize, n_envs
        )
        policy_kwargs = kwargs.pop("policy_kwargs")
        if self.normalize is not None and "gamma" in kwargs:
            self.normalize.setdefault("gamma", kwargs["gamma"])
        policy_kwargs = dict(policy_kwargs or {})
        require_network_size(policy_kwargs.get("net_arch"), observed)
        if isinstance(activation := policy_kwargs.get("activation_fn"), str):
            policy_kwargs["activation_fn"] = _activation(activation)
        if isinstance(kwargs.get("train_freq"), (list, tuple)):
            kwargs["train_freq"] = tuple(kwargs["train_freq"])
            if n_envs > 1 and "episode" in kwargs["train_freq"]:
                given = shorten(kwargs["train_freq"])
                raise ConfigError(f"train_freq={given} counts episodes: n_envs={n_envs} is not 1")
        self.n_envs = n_envs
        self.n_together = COUNT("n_together", n_together)
        self.kwargs = {**kwargs, "policy_kwargs": policy_kwargs}
        """Arguments of the algorithm, beside policy, environment and seed."""
        self.example = example_task(self.family, observed, acted)  # a batch of one task
        self._learning = self._reusable()
        self._queries: dict[int, ReusableSB3] = {}
        self._joint: dict[int, ReusableSB3] = {}
        self.parameters = tuple(self._learning.parameters)
        """Names of what optimisers move: what paths and gradients consist of."""

    def build(self, env: VecEnv, seed: int = 0, **overrides: Any) -> BaseAlgorithm:
        """Return a stock algorithm with the learner's hyperparameters, where SB3's constructor leaves it.

        To start it at an initialisation, hand it to :func:`metarl.agents.stock.reuse.load_initialisation`. The global
        generators come back as they were.

        :param env: environments of the family's spaces; they are wrapped in ``VecNormalize`` where the learner
            normalises.
        :param seed: as in SB3.
        :param overrides: hyperparameters to change.
        :raises ConfigError: what SB3 finds wrong.
        """
        # SB3 writes into the dicts it is given, and action noise has a state.
        kwargs = copy.deepcopy({**self.kwargs, **overrides})
        try:
            if self.normalize is not None:
                env = VecNormalize(env, **self.normalize)
            with _large_minibatches(env.num_envs < self.n_together * self.n_envs):
                return construct(self._class, self.policy, env, init_seed=seed, seed=seed, device="cpu", **kwargs)
        except Exception as error:
            # Of any kind: bad sizes of layers, for instance, are RuntimeErrors of PyTorch.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{self._class.__name__}: {reason}") from error

    def _reusable(self, seed: int = 0, n_tasks: int = 1, **overrides: Any) -> ReusableSB3:
        tasks = take_tasks(self.example, np.zeros(n_tasks, np.int64))
        return ReusableSB3(self.family, lambda env: self.build(env, seed, **overrides), self.n_envs, tasks)

    def __getstate__(self) -> dict[str, Any]:
        # An algorithm starts over at every task: a copy goes on as the original does with a new one.
        return {name: value for name, value in vars(self).items() if name not in ("_learning", "_queries", "_joint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._learning, self._queries, self._joint = self._reusable(), {}, {}

    # --------------------------------------------------------------------------------------------------- initialisation
    def init(self, seed: int) -> Params:
        """Return the parameters that SB3's constructor gives with ``seed``, and fresh statistics."""
        return read_initialisation(self._reusable(seed).algorithm)

    # --------------------------------------------------------------------------------------------------------- learning
    def require_budget(self, n_timesteps: int) -> None:
        """Raise :class:`ConfigError` for a number of env steps that is all warm-up."""
        learning_starts: int = getattr(self._learning.algorithm, "learning_starts", 0)
        if n_timesteps <= learning_starts:
            raise ConfigError(
                f"n_timesteps={n_timesteps}: {self._class.__name__} learns after learning_starts={learning_starts}"
            )

    def run(
        self,
        params: Params,
        task: Task,
        seed: np.random.SeedSequence,
        n_timesteps: int,
        *,
        watcher: Watcher | None = None,
        n_evaluations: int = 0,
        n_eval_episodes: int = 5,
        deterministic: bool = False,
        optimizers: Params | None = None,
    ) -> LearningRun:
        """Learn one task from ``params`` with the algorithm's own ``learn()``.

        Evaluations take fresh episodes with their own streams, the same at each, so they neither disturb learning nor
        cost it env steps. What the learner itself saw is in :attr:`LearningRun.episode_returns`.

        :param params: parameters and statistics, as :meth:`init` returns them.
        :param task: one task of the family.
        :param seed: the task's stream; see :func:`learning_seed`.
        :param n_timesteps: env steps, all copies together.
        :param watcher: is told every segment with a task axis of length 1: each step of each optimiser, with the
            gradient as the optimiser got it and zeros for what that optimiser does not move; and, without a gradient,
            each other move of the parameters (TRPO's line search). Losses are not visible.
        :param n_evaluations: 0: none. K: once before learning and after each K-th part of it, at the first rollout that
            begins then; parts that no rollout separates share an evaluation.
        :param n_eval_episodes: episodes of each.
        :param deterministic: evaluate the most likely actions instead of drawn ones.
        :param optimizers: what the optimisers remember of an earlier run that this one goes on from; None: nothing.
        :raises ConfigError: tensors that do not fit, or a budget that is all warm-up.
        :raises DivergedError: learning diverged.
        :raises NonFiniteError: the family gave an observation or a reward that is not finite.
        """
        n_timesteps, n_eval_episodes = COUNT("n_timesteps", n_timesteps), COUNT("n_eval_episodes", n_eval_episodes)
        self.require_budget(n_timesteps)
        learning, evaluation = map(int, seed.generate_state(2))
        with sb3_generators(), library_torch():
            self._learning.start(params, [task], learning)
            load_optimizers(self._learning.algorithm, optimizers or {})
            observer = Observer(
                lambda: self._learning.evaluate(task, evaluation, n_eval_episodes, deterministic),
                [n_timesteps * part / n_evaluations for part in range(n_evaluations + 1)] if n_evaluations else [],
            )
            observer.look(0)
            self._learning.learn(n_timesteps, observer, watcher)
            return LearningRun(
                read_initialisation(self._learning.algorithm),
                self._learning.algorithm.num_timesteps,
                observer.episode_returns,
                observer.env_steps,
                observer.returns,
                observer.lengths,
                read_optimizers(self._learning.algorithm),
            )

    def run_together(self, params: Params, tasks: Tasks, seed: np.random.SeedSequence, n_timesteps: int) -> LearningRun:
        """Learn a batch of tasks at once, with one call of the algorithm's own ``learn()`` on copies of all of them.

        :param params: parameters and statistics, as :meth:`init` returns them.
        :param tasks: a batch of tasks, of each of which there are ``n_envs`` copies.
        :param seed: see :func:`learning_seed`.
        :param n_timesteps: env steps, all copies of all tasks together.
        :raises ConfigError: tensors that do not fit, or a budget that is all warm-up.
        :raises DivergedError: learning diverged.
        :raises NonFiniteError: the family gave an observation or a reward that is not finite.
        """
        n, n_timesteps = n_tasks(tasks), COUNT("n_timesteps", n_timesteps)
        self.require_budget(n_timesteps)
        with sb3_generators(), library_torch():
            if n not in self._joint:
                self._joint = {n: self._reusable(n_tasks=n)}
            joint, observer = self._joint[n], Observer()
            joint.start(params, [one_task(tasks, index) for index in range(n)], learning_seed(seed))
            joint.learn(n_timesteps, observer)
            reached = read_initialisation(joint.algorithm)
            return LearningRun(reached, joint.algorithm.num_timesteps, observer.episode_returns, [], [], [], {})

    def evaluate(
        self, params: Params, task: Task, seed: np.random.SeedSequence, n_episodes: int, deterministic: bool = False
    ) -> tuple[float, float]:
        """Return the mean undiscounted return and length of fresh episodes at ``params``, without exploration.

        They are those that :meth:`run` evaluates before learning with the same stream.

        :param deterministic: take the most likely actions instead of drawn ones.
        """
        n_episodes = COUNT("n_episodes", n_episodes)
        with sb3_generators(), library_torch():
            load_initialisation(self._learning.algorithm, params)
            return self._learning.evaluate(task, int(seed.generate_state(2)[1]), n_episodes, deterministic)

    # ----------------------------------------------------------------------------------------------- the query gradient
    def query_gradient(
        self, params: Params, task: Task, seed: np.random.SeedSequence, n_timesteps: int
    ) -> QueryGradient:
        """Return the raw gradient, at ``params``, of the algorithm's own losses on one fresh rollout.

        The algorithm collects and computes it, with other hyperparameters: one rollout of ``n_timesteps``, all of it in
        one batch, one step of each optimiser at a learning rate of 0, and no clipping of the gradient's norm. So every
        loss is differentiated at ``params`` itself. Of TRPO it is minus the gradient of the surrogate, beside that of
        the value loss. Off-policy algorithms fill a replay buffer by the policy (no random warm-up, exploration at its
        final rate), and draw a batch as large as the buffer from it, with replacement; delayed updates are not delayed.

        :param n_timesteps: env steps, all copies together, rounded up to whole steps of all copies.
        """
        n_timesteps = COUNT("n_timesteps", n_timesteps)
        n_steps = -(-n_timesteps // self.n_envs)
        if n_steps not in self._queries:
            self._queries[n_steps] = self._reusable(**query_arguments(self._learning.algorithm, n_steps, self.n_envs))
        query, observer = self._queries[n_steps], Observer()
        total = GradientSum(query.parameters)
        if isinstance(query.algorithm, TRPO):
            total.see_actor(query.algorithm)
        with sb3_generators(), library_torch():
            query.start(params, [task], learning_seed(seed))
            query.learn(n_steps * self.n_envs, observer, total)
        return QueryGradient(total.gradient, n_steps * self.n_envs, observer.episode_returns)


def _activation(name: str) -> Any:
    """Return an activation function by its name."""
    if name not in ACTIVATIONS:
        raise unknown_name("activation function", name, ACTIVATIONS)
    return ACTIVATIONS[name]


@contextmanager
def _large_minibatches(are_fine: bool) -> Iterator[None]:
    """Keep SB3 from a warning where minibatches are such of several tasks, and there is a single one."""
    if not are_fine:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        yield


def _require_actions(algorithm: str, family: Family, space: spaces.Space[Any]) -> None:
    takes = "Discrete" if algorithm in DISCRETE else "Box"
    if algorithm in DISCRETE + CONTINUOUS and type(space).__name__ != takes:
        fitting = ", ".join(
            name for name in ALGORITHMS if name not in (DISCRETE if takes == "Discrete" else CONTINUOUS)
        )
        raise ConfigError(f"{shorten(algorithm)} takes {takes} actions, {family.id} has {space}: use {fitting}")
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise ConfigError(f"{space} starts at {space.start}: SB3 sends actions from 0")
