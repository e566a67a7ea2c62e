"""What the files hold that meta-algorithms write, and what is asked of it before it is used.

A file says what is built when it is loaded, so every value in it is looked at as if a stranger had written it: types
against the constructor's, sizes against what can be had, numbers against NaN.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch

from metarl.errors import CheckpointError, ConfigError, shorten, unknown_name
from metarl.files.schema import LARGEST, Range, constructor_hints, convert, read_as

Count = Annotated[int, Range(0, LARGEST)]

NOT_SAVED = frozenset({"policy", "env", "tensorboard_log", "verbose", "device", "n_threads", "n_workers"})
"""Arguments of the constructors that are said elsewhere in a file, or belong to the machine."""


@dataclass(frozen=True)
class Saved:
    """The document of a checkpoint.

    :param algorithm: its name.
    :param policy: the policy's name.
    :param env: the family's id.
    :param arguments: the constructor's.
    :param num_timesteps: env steps of training.
    :param n_iterations: meta-iterations.
    :param env_by_name: False where the family was given as an object.
    :param versions: what it was written with.
    :param rest: what a later version may add.
    """

    algorithm: str
    policy: str
    env: str
    arguments: dict[str, Any]
    num_timesteps: Count
    n_iterations: Count
    env_by_name: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


def read_saved(document: Mapping[str, Any], path: Path) -> Saved:
    """Return a checkpoint's document.

    :param path: where it is from, for the error message.
    :raises CheckpointError: it is something else, or damaged.
    """
    if "algorithm" not in document:
        raise CheckpointError(f"{path} holds no meta-learnt initialisation")
    return read_as(Saved, document, str(path))


def convert_arguments(cls: type, name: str, arguments: Mapping[str, Any], known: list[str]) -> dict[str, Any]:
    """Return a file's constructor arguments in the types that the constructor takes.

    :param cls: the algorithm.
    :param name: its name, for the error message.
    :param known: the arguments that it takes.
    :raises UnknownNameError: one that it does not take.
    :raises ConfigError: one that no file says, or of a wrong type.
    """
    hints = constructor_hints(cls)
    result = {}
    for argument, value in arguments.items():
        if argument not in known:
            raise unknown_name(f"argument of {name!r}:", argument, known)
        if argument in NOT_SAVED:
            raise ConfigError(f"{argument}={shorten(value)} is not read from a file")
        result[argument] = convert(argument, value, hints.get(argument, Any))
    return result


def require_finite_tensors(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise :class:`CheckpointError` for the first tensor with a NaN or an infinity.

    :param source: where they are from, for the error message.
    """
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{source} cannot be used: {n_bad:,} of the {tensor.numel():,} numbers of tensor "
                f"{shorten(name)} are NaN or infinite; training had diverged when it was saved"
            )


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
