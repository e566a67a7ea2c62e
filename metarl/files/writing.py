"""Writing files whole or not at all, and arrays as ``.npz`` without pickle.

A file is written to a temporary one in the same folder, flushed to the disk, then renamed over the old one. Whatever
happens before the rename leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import json
import math
import os
import re
import secrets
import stat
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarl.errors import CheckpointError, shorten
from metarl.files.untrusted import read_bytes

MAX_ARRAYS = 2**28
"""Bytes of all arrays of an ``.npz``, unpacked."""

_STALE_AFTER = 3600.0
"""Seconds after which a temporary file belongs to a writer that was killed."""


def write_text_atomic(path: str | Path, text: str, within: Path | None = None) -> None:
    """Write UTF-8 text, replacing ``path`` in one step; see :func:`write_all_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"), within)


_ENDS = re.compile(r",\n\s+")


def readable_json(document: Any) -> str:
    """Return strict JSON on several lines, a list of numbers on one.

    :raises ValueError: NaN or infinity, or a circle.
    :raises TypeError: what is no JSON.
    """
    text = json.dumps(document, indent=1, allow_nan=False)
    # A string has no raw line break, so that a bracket before one is no part of it.
    return re.sub(r'\[\n\s+([^\[\]{}"]+?)\n\s+\]', lambda found: f"[{_ENDS.sub(', ', found[1])}]", text) + "\n"


def write_npz_atomic(path: str | Path, within: Path | None = None, /, **arrays: Any) -> None:
    """Write named arrays as an uncompressed ``.npz``, replacing ``path`` in one step; see :func:`write_all_atomic`.

    :raises CheckpointError: an array of Python objects (NumPy would pickle it), or a file that cannot be written.
    """
    write_bytes_atomic(path, npz_bytes(path, arrays), within)


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


def read_npz(path: str | Path, limit: int | None = None) -> dict[str, np.ndarray]:
    """Read an ``.npz`` of plain arrays: numbers, truth values or text.

    :param limit: bytes that it unpacks to, at most; :data:`MAX_ARRAYS` where nothing is said.
    :raises CheckpointError: a file that is missing, truncated, damaged, holds Python objects, or unpacks to more.
    """
    path, limit = Path(path), MAX_ARRAYS if limit is None else limit
    data = read_bytes(path, limit)
    try:
        if data.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("a single array")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("a name is given twice")
            # What a member says of its size is what is unpacked of it, at most.
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"it unpacks to more than {limit:,} bytes")
            return {member.filename.removesuffix(".npy"): _read_array(archive.read(member)) for member in members}
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged files; each means the same here
        raise CheckpointError(f"{path} is no .npz of plain arrays, or is damaged: {one_line(error)}") from error


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


def one_line(error: BaseException) -> str:
    """Return what an error says on one line, or what it is."""
    return shorten(str(error) or type(error).__name__, quote=False, limit=300)
