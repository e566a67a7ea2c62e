"""The header of a checkpoint, and reading one as NumPy arrays: neither needs PyTorch.

What a checkpoint is, :mod:`metarl.files.checkpoint` says.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from metarl.errors import CheckpointError, shorten
from metarl.files.untrusted import parse_json, read_bytes
from metarl.files.writing import one_line

FORMAT = "metarl-checkpoint"
VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

MAX_HEADER = 4 * 2**20
"""Bytes of header, document included, that are read; a longer one is a damaged or hostile file."""

METADATA_KEY = "metarl"


def load_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint as :func:`metarl.files.checkpoint.load_checkpoint` does, into NumPy arrays.

    :raises CheckpointError: a file that is missing, truncated, damaged, foreign or of another format version.
    """
    path = Path(path)
    data, header = read_header(path)
    try:
        stored = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error
    if sorted(header["tensors"], key=str) != sorted(stored):
        refuse(path, "its tensors are not the ones its document names")
    parts = {name: (f"torch.{array.dtype}", array.shape, array.tobytes()) for name, array in stored.items()}
    if header.get("sha256") != digest(parts, dump_json(header["document"])):
        refuse(path, "its content does not match its checksum")
    return {name: stored[name] for name in header["tensors"]}, header["document"]


def read_header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the content of a checkpoint, and the ``"metarl"`` object of its header, which has a document and names.

    :raises CheckpointError: a file that is missing, truncated, damaged, foreign or of another format version.
    """
    data = read_bytes(path)
    header = _parse_header(path, data)
    if header.get("version") != VERSION:
        found = header.get("version")
        hint = "written by a newer metarl" if isinstance(found, int) and found > VERSION else "no longer read"
        raise CheckpointError(f"{path} has checkpoint format {shorten(found)}, {hint}: format {VERSION} is read")
    if not isinstance(header.get("document"), dict) or not isinstance(header.get("tensors"), list):
        refuse(path, "its document is missing")
    return data, header


def _parse_header(path: Path, data: bytes) -> dict[str, Any]:
    """Return the ``"metarl"`` object of a safetensors header, having believed none of its lengths."""
    if data[:2] == b"PK":
        raise CheckpointError(f"{path} is a zip archive (a Stable-Baselines3 model?), not a metarl checkpoint")
    if len(data) < 8:
        refuse(path, f"{len(data)} bytes are too few")
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{" or length > MAX_HEADER:
        raise CheckpointError(f"{path} is not a metarl checkpoint")
    if length > len(data) - 8:
        refuse(path, f"its header of {length} bytes does not fit into {len(data)}")
    damaged = f"{path} is truncated or damaged: its header"
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{damaged} is not JSON") from None
    outer = parse_json(text, damaged)
    metadata = outer.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA_KEY), str):
        raise CheckpointError(f"{path} is a safetensors file of another program, not a metarl checkpoint")
    header = parse_json(metadata[METADATA_KEY], damaged)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file of another program, not a metarl checkpoint")
    return header


def digest(parts: Mapping[str, tuple[str, Sequence[int], bytes | memoryview]], document: str) -> str:
    """Return the SHA-256 of names, dtypes, shapes, bytes and document, independent of how the file lays them out.

    :param parts: the dtype, the shape and the bytes of each tensor, by name.
    :param document: as text.
    """
    found = hashlib.sha256()
    for name in sorted(parts):
        dtype, shape, data = parts[name]
        found.update(f"{name}\0{dtype}\0{list(shape)}\0".encode())
        found.update(data)
    found.update(document.encode())
    return found.hexdigest()


def dump_json(value: Any) -> str:
    """Return strict JSON without spaces."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def refuse(path: Path, why: str) -> NoReturn:
    """Raise :class:`~metarl.errors.CheckpointError` for a damaged file."""
    raise CheckpointError(f"{path} is truncated or damaged: {why}")
