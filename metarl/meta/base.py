"""MetaAlgorithm: what every meta-wrapper shares, in Stable-Baselines3's words."""

from __future__ import annotations

import functools
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import configure_logger

from metarl.agents.networks.policy import POLICIES, FunctionalPolicy
from metarl.agents.parallel import Parallel, library_torch
from metarl.checks import COUNT, COUNT_OR_ZERO, MAPPING, NONE, SEED, SWITCH, Check, integer, plain_tree
from metarl.envs.family import Family
from metarl.envs.promises import require_sound_declaration
from metarl.envs.registry import family_ids, make_family
from metarl.envs.views.oracle import Oracle as OracleView
from metarl.errors import (
    CheckpointError,
    ConfigError,
    MetaRLError,
    NonFiniteError,
    UnregisteredFamilyError,
    shorten,
)
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.adaptation.adapted import AdaptedPolicy
from metarl.meta.environments import AnyEnv, as_any_env, as_family
from metarl.meta.kept import KeepsArguments, family_traits, named_activation, policy_name, without_sb3s_own
from metarl.meta.outer.base import Outer
from metarl.meta.saving import convert_arguments, read_saved, require_finite_tensors
from metarl.meta.sb3_words import Locals, MaybeCallback, SB3Words, callback_of
from metarl.params import POLICY, RATES, STATISTICS, Params, group, inner_name, meta_name, not_finite
from metarl.registry import Registry
from metarl.streams import stream

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from metarl.meta.evaluation.report import Report

Self = TypeVar("Self", bound="MetaAlgorithm")
VERBOSE = Check("0, 1 or 2", lambda value: integer(0, 2).read(int(value) if isinstance(value, bool) else value))
PATH = Check("a path", Path)
LOG_FOLDER = Check("a folder or None", lambda value: None if value is None else os.fspath(value))

ALGORITHMS: Registry[type[MetaAlgorithm]] = Registry("algorithm")
"""Every meta-algorithm by its name on the command line."""


class MetaAlgorithm(SB3Words, KeepsArguments, ABC):
    """Base of the meta-wrappers: parameters, counters, learning, saving and loading.

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
        self._n_ended = 0
        """Episodes that ended in the last meta-iteration."""
        self._current_progress_remaining = 1.0
        with library_torch():
            theta = self._setup_model(int(stream(self.seed, "policy").integers(2**31)))
        self.params = {meta_name(name): tensor for name, tensor in theta.items()}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):  # a class of somebody's own that keeps the name of another is not that
            ALGORITHMS.add(cls.name, cls)

    def __getstate__(self) -> dict[str, Any]:
        # Writers to files and to the terminal belong to the original: learn() of a copy makes its own.
        return {**vars(self), "_logger": None, "_custom_logger": False}

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
        inner = family.family if isinstance(family, OracleView) else family
        if self.n_threads is not None and hasattr(inner, "n_threads"):
            inner.n_threads = self.n_threads
        require_sound_declaration(family)
        return family, env_kwargs, isinstance(env, str)

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

    # -------------------------------------------------------------------------------------------------------- learning
    @property
    @abstractmethod
    def steps_per_iteration(self) -> int:
        """Env steps of one meta-iteration, at most or about."""

    @abstractmethod
    def train(self) -> dict[str, float]:
        """Do one meta-iteration: sample, adapt, update ``params``. Return scalars for the log."""

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Run meta-iterations until ``total_timesteps`` env steps are collected, support and query together.

        :param total_timesteps: a lower bound, as in SB3; with ``reset_num_timesteps=False`` that many more. Step sizes
            that are annealed reach their final value there.
        :param callback: SB3 callbacks. ``on_step`` comes once a meta-iteration, after its log was written, so
            ``n_calls`` counts meta-iterations; returning False stops. ``on_rollout_start`` and ``on_rollout_end``
            enclose the meta-iteration; what the latter records is in its row of the log.
        :param log_interval: meta-iterations between two lines of the log; None leaves it to :meth:`dump_logs`.
        :param tb_log_name: name of the TensorBoard run; the class's name if None.
        :param reset_num_timesteps: count env steps from 0; random streams go on in either case.
        :param progress_bar: show a bar with rate and time left.
        :raises NonFiniteError: a NaN or infinity; names task and meta-iteration; ``params`` are those before it.
        :raises DivergedError: the norm of the parameters exploded; likewise.
        """
        total_timesteps = COUNT("total_timesteps", total_timesteps)
        log_interval = (COUNT | NONE)("log_interval", log_interval)
        reset_num_timesteps = SWITCH("reset_num_timesteps", reset_num_timesteps)
        progress_bar = SWITCH("progress_bar", progress_bar)
        self._require_plain_arguments()
        self._require_family_as_built()
        if reset_num_timesteps:
            self.num_timesteps = 0
        else:
            total_timesteps += self.num_timesteps
        if not self._custom_logger:
            self._logger = configure_logger(
                self.verbose, self.tensorboard_log, tb_log_name or type(self).__name__, reset_num_timesteps
            )
        callbacks = callback_of(callback, progress_bar, self)
        known = {"self": self, "total_timesteps": total_timesteps, "log_interval": log_interval}
        known |= {
            "tb_log_name": tb_log_name or type(self).__name__,
            "progress_bar": progress_bar,
            "callback": callbacks,
        }
        # SB3 hands over its module's globals, with which no callback can be copied or pickled any more.
        callbacks.on_training_start(Locals(known), {})
        self._started = time.perf_counter(), self.num_timesteps
        try:
            with library_torch():
                while self.num_timesteps < total_timesteps:
                    callbacks.on_rollout_start()
                    self._current_progress_remaining = 1.0 - self.num_timesteps / total_timesteps
                    stats = self._iteration()
                    # One for each episode that has ended: SB3's callbacks count them.
                    ended = np.ones(self._n_ended, dtype=bool)
                    callbacks.update_locals({"total_timesteps": total_timesteps, "stats": stats, "dones": ended})
                    callbacks.on_rollout_end()
                    self._unlogged = stats
                    if log_interval is not None and self.n_iterations % log_interval == 0:
                        self.dump_logs()
                    if not callbacks.on_step():
                        break
        finally:
            callbacks.on_training_end()
        return self

    def _iteration(self) -> dict[str, float]:
        try:
            stats = self.train()
        except NonFiniteError as error:
            # Counted as progress lines count it: the one that was going on.
            raise type(error)(f"meta-iteration {self.n_iterations + 1}: {error}") from None
        self.n_iterations += 1
        return stats

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the last meta-iteration, and what callbacks recorded, to the log, as SB3's callbacks ask for it.

        :param iteration: without effect.
        """
        del iteration
        if not (self._unlogged or self.logger.name_to_value):
            return
        for key, value in self._unlogged.items():
            self.logger.record(key, value)
        if self._unlogged:
            started, first_step = self._started
            elapsed = time.perf_counter() - started
            self.logger.record("time/fps", (self.num_timesteps - first_step) / max(elapsed, 1e-9))
            self.logger.record("time/time_elapsed", elapsed)
            self._unlogged = {}
        self.logger.record("time/iterations", self.n_iterations, exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    # ---------------------------------------------------------------------------------------------------- using it
    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return the actions of the policy before adaptation, as SB3's ``predict`` does."""
        return self._unadapted().predict(observation, state, episode_start, deterministic, self._predictions)

    @abstractmethod
    def _unadapted(self) -> AdaptedPolicy:
        """Return the policy before adaptation."""

    @abstractmethod
    def adapt(self, env: gym.Env[Any, Any], n_inner_steps: int | None = None, **kwargs: Any) -> AdaptedPolicy:
        """Adapt to any environment of equal spaces; its task need not be known."""

    @abstractmethod
    def evaluate(self, split: str = "test", n_inner_steps: int | None = None, **kwargs: Any) -> Report:
        """Adapt to the tasks of a held-out split and report the returns after each inner step."""

    def to_sb3(self, kind: str | None = None, env: gym.Env[Any, Any] | None = None, **kwargs: Any) -> BaseAlgorithm:
        """Return a stock SB3 model that starts at the meta-learnt initialisation; see :mod:`metarl.meta.export.sb3`."""
        from metarl.meta.export.sb3 import to_sb3

        return to_sb3(self, kind, env, **kwargs)

    def check_env(self, env: gym.Env[Any, Any]) -> None:
        """Raise :class:`ConfigError` unless ``env`` has the family's spaces, bounds included; float64 will do."""
        from metarl.meta.export.sb3 import SPACES, require_equal_spaces, space_to_json

        require_equal_spaces(
            as_any_env(env, self.family), {what: space_to_json(getattr(self.family, what)) for what in SPACES}
        )

    # ------------------------------------------------------------------------------------------------ saving, loading
    @property
    def _outer(self) -> Outer | None:
        """The outer optimiser whose state is saved."""
        return None

    def save(self, path: str | Path, exclude: Any = None, include: Any = None) -> Path:
        """Write parameters, outer optimiser and counters to one file, atomically and without pickle.

        :param path: ``.safetensors`` is appended where it is missing.
        :param exclude: as in SB3, and ``include`` too; nothing can be left out or added.
        :return: the file written.
        :raises ConfigError: arguments that a file cannot hold, or a family that was changed since the model was built.
        :raises NonFiniteError: a NaN or infinity; the file is left as it was.
        """
        if exclude or include:
            raise ConfigError("a file holds what a model goes on from: nothing is excluded from it or included")
        path = with_suffix(path)
        save_checkpoint(path, *self.state())
        return path

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what :meth:`save` writes: named tensors and a JSON document.

        :raises NonFiniteError: a NaN or infinity among the tensors, which nothing could go on from.
        :raises ConfigError: arguments that a file cannot hold, or a family that was changed since the model was built.
        """
        self._require_plain_arguments()
        self._require_family_as_built()
        outer = self._outer
        state = {} if outer is None else {f"outer/{name}": tensor for name, tensor in outer.state().items()}
        tensors = {**self.params, **state}
        if (name := not_finite(tensors)) is not None:
            raise NonFiniteError(f"{name!r} holds a NaN or infinity after {self.n_iterations} meta-iterations")
        document = {
            "algorithm": self.name,
            "policy": self.policy_name,
            "env": self.family.id,
            "env_by_name": self._env_by_name,
            "arguments": self.arguments(),
            "num_timesteps": self.num_timesteps,
            "n_iterations": self.n_iterations,
            "versions": versions(),
        }
        return tensors, document

    @classmethod
    @library_torch()
    def load(cls: type[Self], path: str | Path, env: Family | None = None, **overrides: Any) -> Self:
        """Rebuild what :meth:`save` wrote.

        Overrides behave as on the command line: a dotted name (``**{"outer_kwargs.max_kl": 0.02}``) reaches into a
        mapping, another learner leaves the rates and arguments of the old one behind, and another outer optimiser those
        of the old one. Of SB3's own arguments ``device`` is the constructor's, ``print_system_info`` prints, and
        ``force_reset`` has nothing to reset.

        :param path: the file.
        :param env: the family, where it is not a registered one.
        :param overrides: constructor arguments to change.
        :raises CheckpointError: a file that is missing, damaged, foreign, or of another algorithm;
            :func:`metarl.load` takes any.
        :raises UnknownNameError: an override that the constructor does not take.
        """
        overrides = without_sb3s_own(overrides)
        path = PATH("path", path)
        if not os.path.isfile(path):  # which a name that no system takes is not either
            path = with_suffix(path)
        tensors, document = load_checkpoint(path)
        saved = read_saved(document, path)
        name = saved.algorithm
        built = cls if cls.name == name else None if cls.name else ALGORITHMS.get(name)
        if built is None:
            known = "import the module that does (metarl --gym-packages MODULE)"
            why = f"not by {cls.name!r}: load it with metarl.load" if cls.name else f"which nobody registered: {known}"
            raise CheckpointError(f"{path} was saved by {shorten(name)}, {why}")
        target = saved.env if env is None else as_family(env)
        if env is None and (saved.env not in family_ids() or not saved.env_by_name):
            if saved.env in family_ids():
                raise CheckpointError(f"{path} was learnt on {saved.env!r}, which was given as an object: pass env=")
            how = "import the module that registers it (metarl --gym-packages MODULE), or pass env="
            words = f"{path} was learnt on {shorten(saved.env)}, which is not registered: {how}"
            raise UnregisteredFamilyError(words, saved.env)
        try:
            arguments = convert_arguments(built, name, saved.arguments, built.argument_names())
            if target != saved.env:
                arguments["env_kwargs"] = None
            arguments = built._merged(arguments, overrides)
            model = built(arguments.pop("policy", saved.policy), target, **arguments)
        except MetaRLError as error:
            raise type(error)(f"{path}: {error}") from None
        assert isinstance(model, cls)
        model._restore(path, tensors, (saved.num_timesteps, saved.n_iterations))
        return model

    def _restore(self, path: Path, tensors: Mapping[str, torch.Tensor], counters: tuple[int, int]) -> None:
        params = {name: tensor for name, tensor in tensors.items() if not name.startswith("outer/")}
        shapes = {name: (str(tensor.dtype), *tensor.shape) for name, tensor in params.items()}
        expected = {name: (str(tensor.dtype), *tensor.shape) for name, tensor in self.params.items()}
        if shapes != expected:
            wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))[0]
            size = "is missing" if wrong not in shapes else f"has shape {list(shapes[wrong][1:])}, {shapes[wrong][0]}"
            raise CheckpointError(f"{path} does not fit the policy: tensor {shorten(wrong)} {size}")
        require_finite_tensors(tensors, str(path))
        self.params = {name: params[name] for name in self.params}
        self.num_timesteps, self.n_iterations = counters
        if self._outer is not None:
            state = with_groups(group(dict(tensors), "outer/"))
            try:
                self._outer.load_state(state, self.meta_params)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from None


def with_groups(state: Params) -> Params:
    """Return an outer optimiser's state with the groups of meta-parameters in its names: older files have none."""
    named: Params = {}
    for name, tensor in state.items():
        kind, _, own = name.partition("/")
        named[f"{kind}/{meta_name(own)}" if own else name] = tensor
    return named


def load(path: str | Path, env: Family | None = None, **overrides: Any) -> MetaAlgorithm:
    """Rebuild a saved meta-algorithm of any kind; see :meth:`MetaAlgorithm.load`."""
    return MetaAlgorithm.load(path, env, **overrides)


def with_suffix(path: str | Path) -> Path:
    """Return ``path`` ending in ``.safetensors``, in place of the ``.zip`` that SB3's callbacks append."""
    path = PATH("path", path)
    if not path.name:
        raise CheckpointError(f"{str(path)!r} is no name of a file")
    name = path.name.removesuffix(".zip").removesuffix(".safetensors")
    return path.with_name(f"{name}.safetensors")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    """They are looked up once: each takes a millisecond, and reports are made by the dozen."""
    result = {"python": platform.python_version()}
    for package in ("metarl-sb3", "torch", "stable-baselines3", "gymnasium", "mujoco", "numpy"):
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            continue
    return result
