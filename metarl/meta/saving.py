"""Writing a meta-algorithm to a file, and building it again from one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from metarl import synonyms
from metarl.agents.parallel import library_torch
from metarl.checks import Check
from metarl.envs.family import Family
from metarl.envs.registry import is_family
from metarl.errors import CheckpointError, ConfigError, MetaRLError, NonFiniteError, UnregisteredFamilyError, shorten
from metarl.files.checkpoint import load_checkpoint, save_checkpoint
from metarl.meta.documents import NOT_SAVED, convert_arguments, read_saved, require_finite_tensors, versions
from metarl.meta.environments import as_family
from metarl.meta.kept import without_sb3s_own
from metarl.meta.model import Model
from metarl.meta.outer.base import Outer
from metarl.meta.unfinished import UNFINISHED, Unfinished
from metarl.params import GROUPS, Params, group, grouped, meta_name, not_finite
from metarl.registry import Registry

Self = TypeVar("Self", bound="Saves")
PATH = Check("a path", Path)

ALGORITHMS: Registry[type[Any]] = Registry("algorithm", synonyms.ALGORITHMS)
"""Every meta-algorithm by its name on the command line."""


class Saves(Model):
    """A model that is written to a file and built again from one; classes that have a name are registered under it.

    The arguments are those of :class:`~metarl.meta.model.Model`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):  # a class of somebody's own that keeps the name of another is not that
            ALGORITHMS.add(cls.name, cls)

    def _parameters_in(self, path: str) -> dict[str, Params]:
        """Return what :meth:`get_parameters` of a saved model of any kind returns."""
        return Saves.load(path).get_parameters()

    # ------------------------------------------------------------------------------------------------ saving, loading
    @property
    def _outer(self) -> Outer | None:
        """The outer optimiser whose state is saved."""
        return None

    def save(self, path: str | Path, exclude: Any = None, include: Any = None) -> Path:
        """Write parameters, outer optimiser and counters to one file, atomically and without pickle.

        Inside a meta-iteration, or after it was stopped inside, what it has done so far is written too.

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
        outer, going_on = self._outer, self._unfinished
        params, state = self.params, {} if outer is None else outer.state()
        if going_on is not None:
            params, state = going_on.params, going_on.outer
        tensors = {**params, **grouped(state, "outer/")}
        if (name := not_finite(tensors)) is not None:
            raise NonFiniteError(f"{name!r} holds a NaN or infinity after {self.n_iterations} meta-iterations")
        tensors |= {} if going_on is None else going_on.state()
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
        if env is None and not (is_family(saved.env) and saved.env_by_name):
            if is_family(saved.env):
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
        if getattr(target, "id", target) != saved.env or not NOT_SAVED.issuperset(overrides):
            # What is learnt otherwise begins its meta-iteration anew.
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNFINISHED)}
        model._restore(path, tensors, (saved.num_timesteps, saved.n_iterations))
        return model

    def _restore(self, path: Path, tensors: Mapping[str, torch.Tensor], counters: tuple[int, int]) -> None:
        halfway = {name: tensor for name, tensor in tensors.items() if name.startswith(UNFINISHED)}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in halfway}
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
            if halfway:
                address = self.seed, self.n_iterations
                self._unfinished = Unfinished.of_file(address, self.params, self._outer.state(), halfway)


def with_groups(state: Params) -> Params:
    """Return an outer optimiser's state with the groups of meta-parameters in its names: older files have none."""
    named: Params = {}
    for name, tensor in state.items():
        kind, _, own = name.partition("/")
        named[f"{kind}/{meta_name(own)}" if own and not name.startswith(GROUPS) else name] = tensor
    return named


def with_suffix(path: str | Path) -> Path:
    """Return ``path`` ending in ``.safetensors``, in place of the ``.zip`` that SB3's callbacks append."""
    path = PATH("path", path)
    if not path.name:
        raise CheckpointError(f"{str(path)!r} is no name of a file")
    name = path.name.removesuffix(".zip").removesuffix(".safetensors")
    return path.with_name(f"{name}.safetensors")
