"""Model: the arguments, parameters and counters of a meta-algorithm."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy

from metarl.agents.networks.policy import POLICIES, FunctionalPolicy
from metarl.agents.parallel import Parallel, library_torch
from metarl.checks import COUNT, COUNT_OR_ZERO, MAPPING, NONE, SEED, Check, integer, plain_tree
from metarl.envs.family import Family
from metarl.envs.promises import require_sound_declaration
from metarl.envs.registry import make_family
from metarl.envs.views.around import Around
from metarl.errors import ConfigError, shorten
from metarl.meta.environments import AnyEnv, as_family
from metarl.meta.kept import KeepsArguments, family_traits, named_activation, policy_name
from metarl.meta.sb3_words import SB3Words
from metarl.meta.unfinished import Unfinished
from metarl.meta.workers.pool import Workers
from metarl.params import POLICY, RATES, STATISTICS, Params, group, inner_name, meta_name
from metarl.processes import ProcessLocal
from metarl.streams import stream

VERBOSE = Check("0, 1 or 2", lambda value: integer(0, 2).read(int(value) if isinstance(value, bool) else value))
MOST_WORKERS = 1024
"""More processes than any machine of ours has cores."""
LOG_FOLDER = Check("a folder or None", lambda value: None if value is None else os.fspath(value))


class Model(SB3Words, KeepsArguments, ABC):
    """What a meta-algorithm is, apart from what it does: its arguments, its parameters and its counters.

    Arguments are set once: another value goes to a new model, or to :meth:`load`. What may be set on a model are
    ``params``, the two counters, ``verbose`` and ``tensorboard_log``; :meth:`set_random_seed` sets the seed.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` for images, or the class that SB3 calls so.
    :param env: a registered family's name, such as ``"AntVel-v0"``, or a :class:`~metarl.envs.family.Family`; an
        environment of a family, such as ``gymnasium.make`` returns, stands for that family, whatever its task is.
    :param env_kwargs: arguments of the family, where it is given by name.
    :param policy_kwargs: as in SB3 (``net_arch``, ``activation_fn`` as a name, ``log_std_init``, …).
    :param meta_batch_size: tasks in a meta-iteration.
    :param seed: seed of every random stream; None draws one.
    :param n_threads: threads for physics and for differentiation; None takes every core. Results do not depend on it.
    :param n_workers: processes that learn the tasks of a meta-batch side by side, where every task is learnt by itself:
        around stock SB3 algorithms, and on rollouts of live families, such as games. 1 learns in this process. Results
        do not depend on it; the threads are shared among them.
    :param tensorboard_log: folder for TensorBoard; None for none.
    :param device: ``"cpu"`` or ``"auto"``.
    :param verbose: 0 nothing, 1 a table a log interval.
    """

    name: ClassVar[str] = ""
    """The name on the command line: a class that sets it is registered, and no two may have the same."""
    is_told_the_task: ClassVar[bool] = False
    """Whether it observes the task: then what counts is its return before adaptation."""
    learns: ClassVar[bool] = True
    """Whether training changes it: what does not learn has one model, its initialisation."""
    may_change: ClassVar[Mapping[str, Check[Any]]] = {
        "params": MAPPING,
        "num_timesteps": COUNT_OR_ZERO,
        "n_iterations": COUNT_OR_ZERO,
        "verbose": VERBOSE,
        "tensorboard_log": LOG_FOLDER,
    }
    policy: FunctionalPolicy
    """The policy as functions of its tensors; stock SB3 algorithms have policies of their own."""

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: str | Family | AnyEnv,
        *,
        env_kwargs: Mapping[str, Any] | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        meta_batch_size: int = 40,
        seed: int | None = 0,
        n_threads: int | None = None,
        n_workers: int = 1,
        tensorboard_log: str | None = None,
        device: str = "auto",
        verbose: int = 0,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise self._unknown_argument(name)
        if str(device) not in ("cpu", "auto"):
            raise ConfigError(f"device={shorten(device)} is not supported: use 'cpu' or 'auto'")
        seed = (SEED | NONE)("seed", seed)
        self.n_threads = (COUNT | NONE)("n_threads", n_threads)
        self.n_workers = integer(0, MOST_WORKERS)("n_workers", n_workers)
        env_kwargs = plain_tree((MAPPING | NONE)("env_kwargs", env_kwargs) or {})
        self.family, self.env_kwargs, self._env_by_name = self._make_family(as_family(env), env_kwargs)
        self._family_as_built = family_traits(self.family)
        self.policy_name = self._policy_name(policy)
        self.policy_kwargs = named_activation(plain_tree((MAPPING | NONE)("policy_kwargs", policy_kwargs) or {}))
        self.meta_batch_size = integer(1, 10**6)("meta_batch_size", meta_batch_size)
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._predictions = stream(self.seed, "predict")
        self.parallel = Parallel(self.n_threads)
        self.tensorboard_log = tensorboard_log
        self.device = torch.device("cpu")
        self.verbose = verbose
        self.num_timesteps = 0
        """Env steps collected so far, support and query together."""
        self.n_iterations = 0
        """Meta-iterations done so far; with the seed it addresses every random stream."""
        self.params: Params = {}
        """The meta-parameters; names carry their group: ``policy/…``, and ``statistics/…`` of stock algorithms."""
        self._started = time.perf_counter(), 0
        self._unlogged: dict[str, float] = {}
        """What the last meta-iteration saw, as long as it is not logged."""
        self._logger: Logger | None = None
        self._custom_logger = False
        self._workers = ProcessLocal(Workers)
        self._unfinished: Unfinished | None = None
        """The meta-iteration that is going on."""
        self._n_ended = 0
        """Episodes that ended in the last meta-iteration."""
        self._current_progress_remaining = 1.0
        with library_torch():
            theta = self._setup_model(int(stream(self.seed, "policy").integers(2**31)))
        self.params = {meta_name(name): tensor for name, tensor in theta.items()}

    def __getstate__(self) -> dict[str, Any]:
        # Writers to files and to the terminal belong to the original: learn() of a copy makes its own.
        # A copy that is made inside a meta-iteration does it as a whole.
        return {**vars(self), "_logger": None, "_custom_logger": False, "_unfinished": None, "_listeners": ()}

    @abstractmethod
    def _setup_model(self, seed: int) -> Params:
        """Build what learns, and return a fresh initialisation, named as in SB3."""

    def _make_family(self, env: str | Family, env_kwargs: Mapping[str, Any]) -> tuple[Family, Mapping[str, Any], bool]:
        """Return the family, its arguments where it was given by name, and whether it was."""
        if isinstance(env, Family):
            if env_kwargs:
                raise ConfigError("env_kwargs go with an environment's name: this one is built already")
            family = env
        else:
            family = make_family(env, **env_kwargs)
        by_name = isinstance(env, str)
        if (named := family.named()) is not None:
            by_name, env_kwargs = True, named[1]
        inner = family
        while isinstance(inner, Around):
            inner = inner.family
        if self.n_threads is not None and hasattr(inner, "n_threads"):
            inner.n_threads = self.n_threads
        require_sound_declaration(family)
        return family, env_kwargs, by_name

    def _policy_name(self, policy: str | type[BasePolicy]) -> str:
        """Return the name of a policy; SB3's classes have the name under which SB3 knows them."""
        return policy_name(POLICIES, policy)

    # ------------------------------------------------------------------------------------------------------ parameters
    @property
    def policy_params(self) -> Params:
        """The policy's tensors θ, named as in SB3."""
        return group(self.params, POLICY)

    @property
    def theta(self) -> Params:
        """The initialisation θ of the inner loop: all groups but rates; the policy's tensors named as in SB3."""
        return {inner_name(name): tensor for name, tensor in self.params.items() if not name.startswith(RATES)}

    @property
    def initial_policy(self) -> Params:
        """The tensors of the policy that acts before adaptation, which an export starts at."""
        return self.theta

    @property
    def meta_params(self) -> Params:
        """What is meta-learnt: all groups, but for the statistics that stock algorithms carry."""
        return {name: tensor for name, tensor in self.params.items() if not name.startswith(STATISTICS)}

    @property
    def observation_space(self) -> spaces.Box:
        """The family's observation space."""
        return self.family.observation_space

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The family's action space."""
        return self.family.action_space

    def set_random_seed(self, seed: int | None = None) -> None:
        """Draw everything from another seed from here on: training tasks, episodes, and the actions of :meth:`predict`.

        :param seed: None draws one.
        """
        seed = (SEED | NONE)("seed", seed)
        vars(self)["seed"] = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._predictions = stream(self.seed, "predict")
