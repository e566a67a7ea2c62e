"""What Stable-Baselines3's users look for on a model: what there is under SB3's name, and what there is instead."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from metarl.agents.stock.learner import ALGORITHMS
from metarl.checks import SWITCH
from metarl.envs.family import Family, draw_tasks
from metarl.errors import ConfigError, NoSuchNameError, shorten
from metarl.meta.progress import ProgressBar
from metarl.params import STATISTICS, Params, meta_name
from metarl.streams import stream
from metarl.synonyms import NO_NOISE

MaybeCallback = BaseCallback | list[BaseCallback] | Any | None

INSTEAD = {
    "env": "get_env() returns its training tasks, and family is what it learns on",
    "n_envs": "n_episodes is how many episodes of a task are collected together",
    "stats_window_size": "every meta-iteration logs its own episodes",
    "n_steps": "n_transitions is how many env steps an inner step takes, or n_episodes how many episodes",
    "learning_rate": "inner_lr is the learning rate of the learner",
    "lr_schedule": "inner_lr is the learning rate of the learner",
    "replay_buffer": "each task starts with an empty buffer, which is not kept",
    "rollout_buffer": "the batches of a meta-iteration are not kept",
    "save_replay_buffer": "each task starts with an empty buffer, which is not kept",
    "load_replay_buffer": "each task starts with an empty buffer, which is not kept",
    "collect_rollouts": "train() does one meta-iteration, and metarl.agents.sampling.collect.collect collects episodes",
    "ep_info_buffer": "the log has the means of each meta-iteration, and callbacks find them in locals['stats']",
    "ep_success_buffer": "the log has the means of each meta-iteration, and callbacks find them in locals['stats']",
    "actor": "policy_params are the policy's tensors, and to_sb3() returns a stock model with modules",
    "critic": "policy_params are the policy's tensors, and to_sb3() returns a stock model with modules",
    "policy": "a stock learner has a policy of its own: to_sb3() returns a stock model with it",
    "policy_class": "policy_name is the policy's name",
    "start_time": "the log has time/time_elapsed",
    "load_parameters": "set_parameters() loads them",
    "deserialization_mode": "nothing is pickled in a file of ours, so nothing is unpickled",
    "exploration_rate": "a stock learner's rate starts over at every task",
    "action_noise": NO_NOISE,
    **dict.fromkeys(
        ("_last_obs", "_last_episode_starts", "_last_original_obs", "_episode_num"),
        "episodes of a meta-iteration are collected as a whole",
    ),
    "_n_updates": "n_iterations counts the meta-iterations",
    "_total_timesteps": "callbacks find it in locals['total_timesteps']",
    "_vec_normalize_env": "a stock learner normalises by itself, with learner_kwargs={'normalize': True}",
}
"""What SB3's models have and meta-algorithms have under another name, or not at all."""

OF_STOCK = frozenset(
    name
    for cls in ALGORITHMS.values()
    for names in (
        dir(cls),
        inspect.signature(cls.__init__).parameters,
        *(inspect.get_annotations(base) for base in cls.__mro__),
        ("num_timesteps", "log_ent_coef", "ent_coef_optimizer", "ent_coef_tensor"),
        (f"{net}batch_norm_stats{target}" for net in ("", "actor_", "critic_") for target in ("", "_target")),
    )
    for name in names
    if not name.startswith("__")
)
"""Names that stock algorithms' models have: those of their classes, and what their constructors keep."""


_STOCK_ONLY = "it is of a stock algorithm: to_sb3() returns a stock model, which has it"


class Locals(dict[str, Any]):
    """What callbacks find in ``locals``; a name of SB3's loops that is not there is refused with those that are."""

    def __missing__(self, key: str) -> Any:
        raise NoSuchNameError(
            f"locals has no {shorten(key)}: a callback is called once a meta-iteration, and finds {', '.join(self)}"
        )


class SB3Words:
    """The part of a meta-algorithm that is there so that SB3's callbacks, helpers and users find what they look for."""

    if TYPE_CHECKING:  # what a meta-algorithm has
        family: Family
        meta_batch_size: int
        params: Params
        seed: int

        @property
        def theta(self) -> Params: ...

        def _parameters_in(self, path: str) -> dict[str, Params]: ...

    else:

        def __getattr__(self, name: str) -> Any:
            """Say what there is instead of an attribute of SB3's; it is called for missing attributes only."""
            if (instead := self._instead(name)) is not None:
                raise NoSuchNameError(f"{type(self).__name__} has no {name}: {instead}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @staticmethod
    def _instead(name: str) -> str | None:
        """Return what there is instead of an attribute of SB3's; None where it is none."""
        return INSTEAD.get(name, _STOCK_ONLY if name in OF_STOCK else None)

    _logger: Logger | None = None
    _custom_logger = False

    # --------------------------------------------------------------------------------------------------- environments
    def get_env(self) -> VecEnv:
        """Return an SB3 view of the family, one copy of each of a meta-batch of training tasks.

        As in SB3 it is reset, and drawn where it can be. What is set on it stays there: training draws its own tasks.
        """
        from metarl.envs.views.vec_env import FamilyVecEnv

        tasks = draw_tasks(self.family, stream(self.seed, "get_env"), self.meta_batch_size)
        drawn = None if self.family.render_fps is None else "rgb_array"
        env = FamilyVecEnv(self.family, tasks, n_envs=1, seed=self.seed, render_mode=drawn)
        env.reset()
        env.seed(self.seed)
        return env

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Raise :class:`ConfigError`: a model learns on the family that it was built with.

        :param env: any.
        :param force_reset: as in SB3.
        """
        del env, force_reset
        name = type(self).__name__
        raise ConfigError(f"a {name} learns on the family that it was built with: metarl.load(path, env=…) has another")

    @property
    def n_envs(self) -> int:
        """Environments of :meth:`get_env`: one for each task of a meta-batch."""
        return self.meta_batch_size

    def get_vec_normalize_env(self) -> None:
        """Return None: nothing is normalised. SB3's callbacks ask."""
        return None

    # ------------------------------------------------------------------------------------------------------ parameters
    def get_parameters(self) -> dict[str, Params]:
        """Return copies of the policy's tensors θ, its context among them, in a dict of one entry, ``"policy"``."""
        return {"policy": {name: tensor.detach().clone() for name, tensor in self._of_policy().items()}}

    def _of_policy(self) -> Params:
        return {name: tensor for name, tensor in self.theta.items() if not name.startswith(STATISTICS)}

    def set_parameters(
        self,
        load_path_or_dict: str | os.PathLike[str] | Mapping[str, Mapping[str, torch.Tensor]],
        exact_match: bool = True,
        device: str = "auto",
    ) -> None:
        """Replace the policy's tensors.

        :param load_path_or_dict: what :meth:`get_parameters` returned, or a file that ``save`` wrote.
        :param exact_match: whether every tensor must be there.
        :param device: as in SB3; there is the CPU only.
        :raises ConfigError: tensors that do not fit.
        """
        del device
        if isinstance(load_path_or_dict, (str, os.PathLike)):
            load_path_or_dict = self._parameters_in(os.fspath(load_path_or_dict))
        given = load_path_or_dict.get("policy") if isinstance(load_path_or_dict, Mapping) else None
        if not isinstance(given, Mapping) or len(load_path_or_dict) != 1:
            raise ConfigError("parameters are a dict with one entry, 'policy', as get_parameters returns it")
        own = self._of_policy()
        if SWITCH("exact_match", exact_match) and set(given) != set(own):
            missing = sorted(own.keys() ^ given.keys(), key=str)[0]
            raise ConfigError(f"parameters do not fit the policy: {shorten(missing)} is in one of the two only")
        new = dict(self.params)
        for name, value in given.items():
            try:
                tensor = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise ConfigError(f"parameters do not fit the policy: {shorten(name)} is no tensor") from None
            if name not in own or tensor.shape != own[name].shape:
                raise ConfigError(f"parameters do not fit the policy: {shorten(name)} is {list(tensor.shape)}")
            new[meta_name(name)] = tensor.detach().to(own[name].dtype).clone()
        self.params = new

    # --------------------------------------------------------------------------------------------------------- logging
    @property
    def logger(self) -> Logger:
        """The SB3 logger; it exists once :meth:`learn` or :meth:`set_logger` was called."""
        if self._logger is None:
            raise ConfigError("there is no logger yet: call learn() or set_logger() first")
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Use ``logger`` instead of one made by :meth:`learn`."""
        if not isinstance(logger, Logger):
            raise ConfigError(
                f"logger={shorten(logger)} is no Logger, such as SB3's configure(folder, formats) returns"
            )
        self._logger = logger
        self._custom_logger = True


def callback_of(given: MaybeCallback, progress_bar: bool, model: SB3Words) -> BaseCallback:
    """Return one callback, ready to be called, of what ``learn`` takes.

    :param given: a callback, a list of them, a function of (locals, globals), or None.
    :raises ConfigError: something else.
    """
    parts: list[BaseCallback] = []
    for each in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(each, BaseCallback):
            parts.append(each)
        elif callable(each) and not isinstance(each, type):
            parts.append(ConvertCallback(each))
        elif each is not None:
            hint = f": make one, {each.__name__}(…)" if isinstance(each, type) else ""
            raise ConfigError(f"callback={shorten(each)} is neither a callback of SB3's nor a function{hint}")
    if progress_bar:
        parts.append(ProgressBar())
    result = CallbackList(parts)
    result.init_callback(model)  # type: ignore[arg-type]  # SB3's annotation wants its own base class
    return result
