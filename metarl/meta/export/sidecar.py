"""What lies beside an export, and what is asked of it and of the zip before anything is built from them.

A zip of Stable-Baselines3 holds pickles. Of those that :func:`read_tensors` opens, PyTorch's reader for weights takes
tensors and nothing else; the others stay closed.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from metarl.agents.networks.arguments import ACTIVATIONS
from metarl.agents.stock.learner import check_stock
from metarl.checks import check_arguments
from metarl.errors import CheckpointError, ConfigError, MetaRLError, shorten
from metarl.files.schema import LARGEST_SEED, Range, read_as
from metarl.files.untrusted import parse_json, read_bytes, read_text
from metarl.meta.export.settings import EXPORTED, OPTIMIZERS, Settings
from metarl.params import Params

FORMAT = "metarl-sb3-export"
VERSION = 1
MAX_SIDECAR = 2**23
"""Bytes of a sidecar; the bounds of large image spaces take one of them."""
MAX_UNPACKED = 2**31
"""Bytes of all members of a zip, unpacked."""
_PARAMETERS, _VARIABLES = "policy.pth", "pytorch_variables.pth"
Bound = float | Literal["inf", "-inf"]


@dataclass(frozen=True)
class SpaceDocument:
    """A space, as :func:`~metarl.meta.export.spaces.space_to_json` writes it; its fields go by the type."""

    type: str
    n: int | None = None
    start: int | None = None
    shape: list[Annotated[int, Range(0)]] | None = None
    dtype: str | None = None
    low: list[Bound] | None = None
    high: list[Bound] | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        """Look for the fields that a Box has."""
        if self.type == "Box" and None in (self.shape, self.dtype, self.low, self.high):
            raise ConfigError("a Box has shape, dtype, low and high")


@dataclass(frozen=True)
class SourceDocument:
    """Where an export comes from.

    :param env: the family's id.
    :param env_kwargs: its arguments.
    :param seed: of the training run.
    """

    env: str
    env_kwargs: dict[str, Any]
    seed: Annotated[int, Range(0, LARGEST_SEED)]
    rest: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NormalizeDocument:
    """``VecNormalize``: its arguments, and its statistics as nested lists."""

    arguments: dict[str, Any]
    statistics: dict[str, Any]


@dataclass(frozen=True)
class Sidecar:
    """The sidecar of an export.

    :param sha256: of the zip.
    :param algo: the stock algorithm.
    :param policy: one of its policies.
    :param policy_kwargs: the policy's arguments, classes by name.
    :param hyperparameters: the algorithm's.
    """

    format: str
    version: int
    sha256: str
    algo: str
    policy: str
    policy_kwargs: dict[str, Any]
    hyperparameters: dict[str, Any]
    observation_space: SpaceDocument
    action_space: SpaceDocument
    source: SourceDocument
    vec_normalize: NormalizeDocument | None = None
    rest: dict[str, Any] = field(default_factory=dict)


def read_export(path: Path, sidecar: Path) -> tuple[bytes, Sidecar, dict[str, Any]]:
    """Return the zip, its sidecar, and the sidecar as plain JSON.

    :raises CheckpointError: a file is missing, damaged or not ours, or the zip is not the sidecar's.
    """
    data = read_bytes(path)
    document = parse_json(read_text(sidecar, MAX_SIDECAR), f"cannot read {sidecar}: it")
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise CheckpointError(f"{sidecar} is not the sidecar of a metarl export of format {VERSION}")
    card = read_as(Sidecar, document, str(sidecar))
    if card.sha256 != hashlib.sha256(data).hexdigest():
        raise CheckpointError(f"{path} is not the file that {sidecar.name} describes: its SHA-256 differs")
    return data, card, document


def read_settings(card: Sidecar, source: str) -> Settings:
    """Return how the stock model of a sidecar is built.

    :param source: the sidecar, for the error message.
    :raises CheckpointError: an argument or a value that the stock class does not take.
    """
    cls = EXPORTED[card.algo]
    policy_kwargs = dict(card.policy_kwargs)
    # A file does not say where on this machine something is written.
    arguments = {name: value for name, value in card.hyperparameters.items() if name != "tensorboard_log"}
    try:
        for key, table in (("activation_fn", ACTIVATIONS), ("optimizer_class", OPTIMIZERS)):
            if key in policy_kwargs:
                name = policy_kwargs[key]
                if not isinstance(name, str) or name not in table:
                    raise ConfigError(f"{key}={shorten(name)} is unknown: use {', '.join(table)}")
                policy_kwargs[key] = table[name]
        if isinstance(arguments.get("train_freq"), list):
            arguments["train_freq"] = tuple(arguments["train_freq"])
        normalize = None if card.vec_normalize is None else card.vec_normalize.arguments
        own = ("policy", "env", "policy_kwargs", "device", "_init_setup_model")
        check_arguments(cls.__init__, arguments, f"argument of {card.algo}:", own)
        arguments["policy_kwargs"] = policy_kwargs
        check_stock(cls, card.policy, arguments, normalize)
    except MetaRLError as error:
        raise CheckpointError(f"{source} is damaged: {error}") from None
    return Settings(card.algo, card.policy, {**arguments, "device": "cpu"}, normalize)


def read_moments(card: Sidecar, source: str) -> Params:
    """Return the statistics of ``VecNormalize`` that a sidecar holds, none where nothing was normalised."""
    statistics = {} if card.vec_normalize is None else card.vec_normalize.statistics
    try:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in statistics.items()}
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise CheckpointError(f"{source} is damaged: vec_normalize.statistics are not numbers") from None


def read_tensors(data: bytes, source: str) -> tuple[Params, Params]:
    """Return the policy's tensors, and the learnt ones that belong to no module.

    :param data: a zip of Stable-Baselines3.
    :param source: where it is from, for the error message.
    :raises CheckpointError: it is damaged, unpacks to more than :data:`MAX_UNPACKED`, or holds something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _require_unpacked(archive)
            names = [name for name in (_PARAMETERS, _VARIABLES) if name in archive.namelist()]
            found = {name: _load(archive.read(name)) for name in names}
    except Exception as error:  # zipfile and PyTorch raise a dozen kinds for damaged files; each means the same here
        reason = shorten(str(error) or type(error).__name__, quote=False, limit=200)
        raise CheckpointError(f"{source} is damaged, or no zip of Stable-Baselines3: {reason}") from None
    if _PARAMETERS not in found:
        raise CheckpointError(f"{source} is damaged: {_PARAMETERS} is missing")
    for name, tensors in found.items():
        for key, value in tensors.items() if isinstance(tensors, dict) else [(None, None)]:
            if not isinstance(key, str) or type(value) is not torch.Tensor or value.layout is not torch.strided:
                raise CheckpointError(f"{source} is damaged: {name} is no mapping from names to tensors")
    return found[_PARAMETERS], found.get(_VARIABLES, {})


def _load(data: bytes) -> Any:
    # PyTorch unpacks the inner zip by itself.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _require_unpacked(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if isinstance(loaded, dict):
        return {k: v.detach() if isinstance(v, torch.nn.Parameter) else v for k, v in loaded.items()}
    return loaded


def _require_unpacked(archive: zipfile.ZipFile) -> None:
    if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
        raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
