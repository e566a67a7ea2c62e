"""Checkpoints: named tensors and a JSON document in one safetensors file.

A checkpoint is a safetensors file whose header metadata holds one entry, ``"metarl"``: a JSON object with the format's
name and version, the order of the tensors, a SHA-256 of the content and the caller's document. Nothing here reads or
writes pickle. Equal content gives equal bytes, and names and keys come back in the order they were given.

Files are written whole or not at all, see :mod:`metarl.files.writing`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError

from metarl.errors import CheckpointError, MetaRLError, shorten
from metarl.files.untrusted import parse_json, read_bytes
from metarl.files.writing import one_line, write_bytes_atomic

FORMAT = "metarl-checkpoint"
VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

MAX_HEADER = 4 * 2**20
"""Bytes of header, document included, that are read; a longer one is a damaged or hostile file."""

_METADATA_KEY = "metarl"


# ----------------------------------------------------------------------------------------------------------- checkpoint
def save_checkpoint(
    path: str | Path, tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any], within: Path | None = None
) -> None:
    """Write a checkpoint, replacing ``path`` in one step.

    :param path: the file; its folder is made if need be.
    :param tensors: named tensors of any shape, dtype and device; views and non-contiguous ones are copied.
    :param document: anything strict JSON holds: no NaN or infinity. Tuples come back as lists.
    :param within: see :func:`~metarl.files.writing.write_all_atomic`.
    :raises CheckpointError: a document that is not JSON, or a file that cannot be written (a full disk, no permission);
        the previous file is then whole.
    """
    path = Path(path)
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        text = _dump_json(dict(document))
        plain_document = parse_json(text, "it")  # so that nothing is written that is not read
    except (TypeError, ValueError, RecursionError, MetaRLError) as error:
        raise CheckpointError(f"cannot write {path}: the document is not JSON: {error}") from error
    header = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": _digest(plain, text),
        "tensors": list(plain),
        "document": plain_document,
    }
    data = safetensors.torch.save(plain, metadata={_METADATA_KEY: _dump_json(header)})
    if struct.unpack("<Q", data[:8])[0] > MAX_HEADER:
        raise CheckpointError(f"cannot write {path}: the document exceeds {MAX_HEADER // 2**20} MiB")
    write_bytes_atomic(path, data, within)


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote.

    :return: the tensors, on the CPU and owning their memory, and the document.
    :raises CheckpointError: a file that is missing, truncated, damaged, foreign or of another format version.
    """
    path = Path(path)
    data = read_bytes(path)
    header = _parse_header(path, data)
    if header.get("version") != VERSION:
        found = header.get("version")
        hint = "written by a newer metarl" if isinstance(found, int) and found > VERSION else "no longer read"
        raise CheckpointError(f"{path} has checkpoint format {shorten(found)}, {hint}: format {VERSION} is read")
    document, names = header.get("document"), header.get("tensors")
    if not isinstance(document, dict) or not isinstance(names, list):
        _refuse(path, "its document is missing")
    try:
        stored = safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error
    if sorted(names, key=str) != sorted(stored):
        _refuse(path, "its tensors are not the ones its document names")
    tensors = {name: stored[name].clone() for name in names}
    if header.get("sha256") != _digest(tensors, _dump_json(document)):
        _refuse(path, "its content does not match its checksum")
    return tensors, document


def _parse_header(path: Path, data: bytes) -> dict[str, Any]:
    """Return the ``"metarl"`` object of a safetensors header, having believed none of its lengths."""
    if data[:2] == b"PK":
        raise CheckpointError(f"{path} is a zip archive (a Stable-Baselines3 model?), not a metarl checkpoint")
    if len(data) < 8:
        _refuse(path, f"{len(data)} bytes are too few")
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{" or length > MAX_HEADER:
        raise CheckpointError(f"{path} is not a metarl checkpoint")
    if length > len(data) - 8:
        _refuse(path, f"its header of {length} bytes does not fit into {len(data)}")
    damaged = f"{path} is truncated or damaged: its header"
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{damaged} is not JSON") from None
    outer = parse_json(text, damaged)
    metadata = outer.get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_METADATA_KEY), str):
        raise CheckpointError(f"{path} is a safetensors file of another program, not a metarl checkpoint")
    header = parse_json(metadata[_METADATA_KEY], damaged)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file of another program, not a metarl checkpoint")
    return header


def _digest(tensors: Mapping[str, torch.Tensor], document: str) -> str:
    """Return the SHA-256 of names, dtypes, shapes, bytes and document, independent of how the file lays them out."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(document.encode())
    return digest.hexdigest()


def _dump_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _refuse(path: Path, why: str) -> NoReturn:
    raise CheckpointError(f"{path} is truncated or damaged: {why}")
