"""Checkpoints: named tensors and a JSON document in one safetensors file.

A checkpoint is a safetensors file whose header metadata holds one entry, ``"metarl"``: a JSON object with the format's
name and version, the order of the tensors, a SHA-256 of the content and the caller's document. Nothing here reads or
writes pickle. Equal content gives equal bytes, and names and keys come back in the order they were given.

Files are written whole or not at all, see :mod:`metarl.files.writing`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from metarl.errors import CheckpointError, MetaRLError
from metarl.files.header import FORMAT, MAX_HEADER, METADATA_KEY, VERSION, digest, dump_json, read_header, refuse
from metarl.files.untrusted import parse_json
from metarl.files.writing import one_line, write_bytes_atomic


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
        text = dump_json(dict(document))
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
    data = safetensors.torch.save(plain, metadata={METADATA_KEY: dump_json(header)})
    if struct.unpack("<Q", data[:8])[0] > MAX_HEADER:
        raise CheckpointError(f"cannot write {path}: the document exceeds {MAX_HEADER // 2**20} MiB")
    write_bytes_atomic(path, data, within)


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote.

    :return: the tensors, on the CPU and owning their memory, and the document.
    :raises CheckpointError: a file that is missing, truncated, damaged, foreign or of another format version.
    """
    path = Path(path)
    data, header = read_header(path)
    document, names = header["document"], header["tensors"]
    try:
        stored = safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {one_line(error)}") from error
    if sorted(names, key=str) != sorted(stored):
        refuse(path, "its tensors are not the ones its document names")
    tensors = {name: stored[name].clone() for name in names}
    if header.get("sha256") != _digest(tensors, dump_json(document)):
        refuse(path, "its content does not match its checksum")
    return tensors, document


def _digest(tensors: Mapping[str, torch.Tensor], document: str) -> str:
    parts = {name: (str(tensor.dtype), tensor.shape, _bytes_of(tensor)) for name, tensor in tensors.items()}
    return digest(parts, document)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
