"""Checkpoints: named tensors and a JSON document in one safetensors file, and atomic writing for everything else.

A checkpoint is a safetensors file whose header metadata holds one entry, ``"metarl"``: a JSON object with the format's
name and version, the order of the tensors, a SHA-256 of the content and the caller's document. Nothing here reads or
writes pickle. Equal content gives equal bytes, and names and keys come back in the order they were given.

Files are written whole or not at all: to a temporary file in the same folder, flushed to the disk, then renamed over
the old one. Whatever happens before the rename leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import math
import os
import secrets
import stat
import struct
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from metarl.errors import CheckpointError, MetaRLError, shorten
from metarl.files.untrusted import parse_json, read_bytes

FORMAT = "metarl-checkpoint"
VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

MAX_HEADER = 4 * 2**20
"""Bytes of header, document included, that are read; a longer one is a damaged or hostile file."""
MAX_ARRAYS = 2**28
"""Bytes of all arrays of an ``.npz``, unpacked."""

_METADATA_KEY = "metarl"
_STALE_AFTER = 3600.0
"""Seconds after which a temporary file belongs to a writer that was killed."""


# ----------------------------------------------------------------------------------------------------------- checkpoint
def save_checkpoint(
    path: str | Path, tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any], within: Path | None = None
) -> None:
    """Write a checkpoint, replacing ``path`` in one step.

    :param path: the file; its folder is made if need be.
    :param tensors: named tensors of any shape, dtype and device; views and non-contiguous ones are copied.
    :param document: anything strict JSON holds: no NaN or infinity. Tuples come back as lists.
    :param within: see :func:`write_all_atomic`.
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
        raise CheckpointError(f"{path} is truncated or damaged: {_one_line(error)}") from error
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


# ---------------------------------------------------------------------------------------------------------- other files
def write_text_atomic(path: str | Path, text: str, within: Path | None = None) -> None:
    """Write UTF-8 text, replacing ``path`` in one step; see :func:`write_all_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"), within)


def write_npz_atomic(path: str | Path, **arrays: Any) -> None:
    """Write named arrays as an uncompressed ``.npz``, replacing ``path`` in one step.

    :raises CheckpointError: an array of Python objects (NumPy would pickle it), or a file that cannot be written.
    """
    write_bytes_atomic(path, npz_bytes(path, arrays))


def npz_bytes(path: str | Path, arrays: Mapping[str, Any]) -> bytes:
    """Return named arrays as the content of an uncompressed ``.npz``.

    :param path: what it is for, for the error message.
    :raises CheckpointError: an array of Python objects: NumPy would pickle it.
    """
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    for name, array in plain.items():
        if array.dtype.hasobject:
            why = f"array {shorten(name)} holds Python objects, not numbers or text"
            raise CheckpointError(f"cannot write {path}: {why}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in plain.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            # A ZipInfo of our own has a fixed date, so equal arrays give equal bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return buffer.getvalue()


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read an ``.npz`` of plain arrays: numbers, truth values or text.

    :raises CheckpointError: a file that is missing, truncated, damaged, holds Python objects, or unpacks to more than
        :data:`MAX_ARRAYS`.
    """
    path = Path(path)
    data = read_bytes(path, MAX_ARRAYS)
    try:
        if data.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("a single array")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("a name is given twice")
            # What a member says of its size is what is unpacked of it, at most.
            if sum(member.file_size for member in members) > MAX_ARRAYS:
                raise ValueError(f"it unpacks to more than {MAX_ARRAYS:,} bytes")
            return {member.filename.removesuffix(".npy"): _read_array(archive.read(member)) for member in members}
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files; each means the same here
        raise CheckpointError(f"{path} is no .npz of plain arrays, or is damaged: {_one_line(error)}") from error


def _read_array(data: bytes) -> np.ndarray:
    """Return the array of a ``.npy`` file, none of whose sizes is believed."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"arrays of version {version}")
    shape, _, dtype = readers[version](file)
    if dtype.kind not in "biufU" or dtype.itemsize == 0:
        raise ValueError(f"an array of {shorten(dtype, quote=False)}")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"shape {shorten(shape)} of {shorten(dtype, quote=False)} is not that of {len(data)} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def write_bytes_atomic(path: str | Path, data: bytes, within: Path | None = None) -> None:
    """Write ``data``, replacing ``path`` in one step, once it is on the disk: see :func:`write_all_atomic`."""
    write_all_atomic({Path(path): data}, () if within is None else [within])


def write_all_atomic(contents: Mapping[Path, bytes], within: Sequence[Path] = ()) -> None:
    """Write several files: all of them are on the disk before the first takes its place.

    A file that exists keeps its permissions, a new one has those that the umask leaves. Folders are made if need be.

    :param within: folders that are others' to fill, as a run folder is: a file below one of them is written through no
        link, and the folder itself is not made where it has gone.
    :raises CheckpointError: a file cannot be written; all previous ones are whole and no temporary file stays behind.
    """
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path, data in contents.items():
            make_place(path, within)
            _remove_stale(path)
            staged[path] = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
            _write_new(staged[path], data, path)
        for path, temporary in staged.items():
            os.replace(temporary, path)
        for path in {path.parent: path for path in staged}.values():
            _sync_folder(path.parent)
    except BaseException as error:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def make_place(path: Path, within: Sequence[Path] = ()) -> None:
    """Make the folder of a file that is to be written; parameters as of :func:`write_all_atomic`.

    :raises CheckpointError: the way from a folder of ``within`` to the file leads through a link.
    :raises OSError: the folder cannot be made, or the file is one.
    """
    way = require_no_link(path, within)
    for folder in way[:-1]:
        folder.mkdir(exist_ok=True)
    if not way:
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def require_no_link(path: Path, within: Sequence[Path]) -> list[Path]:
    """Return what lies between a folder of ``within`` and a file in it, the file included; nothing for other files.

    :raises CheckpointError: one of them is a link.
    """
    root = next((folder for folder in within if path.is_relative_to(folder)), path)
    parts = path.relative_to(root).parts
    way = [root.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    for place in way:
        if place.is_symlink():
            raise CheckpointError(f"cannot write {path}: {place} is a link, and {root} is written to through none")
    return way


def open_to_write(path: Path, flags: int) -> int:
    """Open a regular file for writing, whatever lies there, without emptying it; returns the descriptor.

    :param flags: further ones of ``os.open``.
    :raises OSError: it is a link or no regular file, or cannot be opened.
    """
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # without the second, opening a pipe may wait for ever
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def _write_new(path: Path, data: bytes, like: Path) -> None:
    """Write a file that must not exist, with the permissions of ``like``."""
    with open(open_to_write(path, os.O_CREAT | os.O_EXCL), "wb") as file:
        with contextlib.suppress(OSError, AttributeError):  # no such file, or a system without permissions
            os.fchmod(file.fileno(), stat.S_IMODE(like.stat().st_mode) & 0o777)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove_stale(path: Path) -> None:
    """Remove temporary files that writers of ``path`` left behind when they were killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.name[:40])}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.lstat().st_mtime > _STALE_AFTER:
                leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dump_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _one_line(error: BaseException) -> str:
    return shorten(str(error) or type(error).__name__, quote=False, limit=300)


def _refuse(path: Path, why: str) -> NoReturn:
    raise CheckpointError(f"{path} is truncated or damaged: {why}")
