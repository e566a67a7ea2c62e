"""Experts that were learnt: a network that sees the task, from a file of tensors, as functions of NumPy arrays.

A file is a checkpoint (:mod:`metarl.files.checkpoint`): safetensors with a JSON document and a SHA-256, and no pickle.
Its tensors are the linear layers of the actor, ``layers.0.weight``, ``layers.0.bias``, … in order, and ``obs.mean`` and
``obs.var`` where observations are normalised. Its document is a :class:`Card`, which says what it is for, where it
comes from, and the returns that it has by task. :mod:`metarl.meta.export.expert` writes such files, and
``metarl export --to expert``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family
from metarl.envs.imitation.expert import Expert
from metarl.envs.tasks import Tasks
from metarl.envs.views.oracle import Oracle
from metarl.errors import CheckpointError, shorten
from metarl.files.header import digest, dump_json, load_arrays
from metarl.files.schema import Range, read_as

EXPERT: Literal["expert"] = "expert"
VERSION: Literal[1] = 1
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "elu": lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
    "leaky_relu": lambda x: np.where(x > 0.0, x, 0.01 * x),
    "silu": lambda x: x / (1.0 + np.exp(-x)),
}
"""The functions between layers, by their names in ``policy_kwargs``."""


@dataclass(frozen=True)
class Normalization:
    """How observations are normalised, as by ``VecNormalize``: (obs − mean)/√(var + epsilon), clipped to ± clip."""

    epsilon: Annotated[float, Range(0.0)]
    clip: Annotated[float, Range(0.0)]


@dataclass(frozen=True)
class Card:
    """What an expert is.

    :param kind: says that the file is one.
    :param version: of this card.
    :param env: the id of the family that it acts in.
    :param env_kwargs: the arguments of the family that it learnt in.
    :param activation: between layers, a key of :data:`ACTIVATIONS`.
    :param split: of the tasks below.
    :param tasks: their parameters, each ``[task, …]``.
    :param returns: the mean return of its episodes in each of them, ``[task]``.
    :param source: where it comes from: algorithm, seed, env steps, versions.
    :param normalize: None where observations are seen as they are.
    """

    kind: Literal["expert"]
    version: Literal[1]
    env: str
    env_kwargs: dict[str, Any]
    activation: str
    split: str
    tasks: dict[str, list[Any]]
    returns: list[float]
    source: dict[str, Any] = field(default_factory=dict)
    normalize: Normalization | None = None

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


class NetworkExpert(Expert):
    """A multi-layer perceptron that observes what an oracle observes, and acts by its mode.

    :param path: the file.
    :param real: the family in which it is to act.
    :raises CheckpointError: a file that is missing, damaged or no expert, or one of another family or of other spaces.
    """

    def __init__(self, path: str | Path, real: Family) -> None:
        arrays, document = load_arrays(path)
        if document.get("kind") != EXPERT:
            raise CheckpointError(f"{path} is no expert: `metarl export --to expert` writes one")
        self.card = read_as(Card, document, str(path))
        """What it is."""
        if self.card.env != real.id:
            raise CheckpointError(f"{path} is an expert of {shorten(self.card.env)}: {real.id} needs one of its own")
        if self.card.activation not in ACTIVATIONS:
            found = shorten(self.card.activation)
            raise CheckpointError(f"{path} has activation function {found}: known: {', '.join(ACTIVATIONS)}")
        self._view = Oracle(real)
        self._moments = _moments(arrays, self.card, str(path))
        self._layers = _layers(arrays, str(path))
        self._activation = ACTIVATIONS[self.card.activation]
        self._require_fit(str(path))
        # Of what it does, not of what is said of it.
        parts = {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}
        self.fingerprint = digest(parts, dump_json([self.card.activation, document.get("normalize")]))

    def _require_fit(self, path: str) -> None:
        """Raise :class:`CheckpointError` unless the layers lead from an oracle's observation to an action."""
        (size,) = self._view.observation_space.shape
        space = self._view.action_space
        n_out = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))
        sizes = [size, *(len(bias) for _, bias in self._layers)]
        for (weight, _), n_in in zip(self._layers, sizes[:-1], strict=True):
            if weight.shape[1] != n_in:
                raise CheckpointError(
                    f"{path} takes {weight.shape[1]} inputs where there are {n_in}: an oracle of {self.card.env} "
                    f"observes {size} numbers, the task among them"
                )
        if sizes[-1] != n_out:
            raise CheckpointError(f"{path} has {sizes[-1]} outputs: {self.card.env} acts in {space}")
        if self._moments is not None and any(moment.shape != (size,) for moment in self._moments):
            raise CheckpointError(f"{path} normalises another number of observations than {size}")

    def act(self, tasks: Tasks, obs: np.ndarray) -> np.ndarray:
        told = np.broadcast_to(self._view.flatten_tasks(tasks)[:, None], (*obs.shape[:2], self._size - obs.shape[-1]))
        x = np.concatenate([obs, told], axis=-1, dtype=np.float32)
        if self._moments is not None and self.card.normalize is not None:
            mean, var = self._moments
            how = self.card.normalize
            x = np.clip((x - mean) / np.sqrt(var + how.epsilon), -how.clip, how.clip).astype(np.float32)
        # A stack is a product for each task, whose size does not depend on how many there are: so it rounds alike.
        for weight, bias in self._layers[:-1]:
            x = self._activation(x @ weight.T + bias).astype(np.float32, copy=False)
        weight, bias = self._layers[-1]
        outputs = x @ weight.T + bias
        space = self._view.action_space
        if isinstance(space, spaces.Discrete):
            return np.asarray(space.start + outputs.argmax(-1))
        assert isinstance(space, spaces.Box)
        return np.asarray(np.clip(outputs, space.low, space.high))

    @property
    def _size(self) -> int:
        return int(self._view.observation_space.shape[0])


def _layers(arrays: Mapping[str, np.ndarray], path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weight and bias of each layer."""
    n = sum(name.endswith(".weight") for name in arrays)
    names = [f"layers.{i}.{part}" for i in range(n) for part in ("weight", "bias")]
    others = sorted(set(arrays) - {*names, "obs.mean", "obs.var"})
    if n == 0 or others or not set(names) <= set(arrays):
        wrong = f"{shorten(others[0])} is none of its tensors" if others else "a layer is missing"
        raise CheckpointError(f"{path} is no network of an expert: {wrong}")
    found = []
    for i in range(n):
        weight, bias = arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"]
        sound = weight.ndim == 2 and bias.shape == weight.shape[:1] and weight.size > 0
        if not (sound and weight.dtype == bias.dtype == np.float32):
            raise CheckpointError(
                f"{path} is no network of an expert: layer {i} is {weight.dtype} {list(weight.shape)}"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise CheckpointError(f"{path} holds a number that is not finite, in layer {i}")
        found.append((weight, bias))
    return found


def _moments(arrays: Mapping[str, np.ndarray], card: Card, path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the mean and the variance of observations; None where they are seen as they are."""
    given = [name in arrays for name in ("obs.mean", "obs.var")]
    if any(given) != all(given) or all(given) != (card.normalize is not None):
        raise CheckpointError(f"{path} is no network of an expert: what normalises observations is not all there")
    if card.normalize is None:
        return None
    mean, var = (arrays[name].astype(np.float64) for name in ("obs.mean", "obs.var"))
    if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0.0).all()):
        raise CheckpointError(f"{path} normalises observations by moments that are no such")
    return mean, var
