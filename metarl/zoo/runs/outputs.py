"""Where commands write. Names are tried before anything is computed, and no file is overwritten unasked."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metarl.errors import CheckpointError, ConfigError, shorten
from metarl.files.writing import (
    make_place,
    open_to_write,
    readable_json,
    require_no_link,
    write_all_atomic,
    write_bytes_atomic,
)
from metarl.zoo.runs.folder import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # importing it takes 0.5 s, before the first line of training

FIGURES = ("png", "svg", "pdf")


class Outputs(NamedTuple):
    """Files that a command writes together.

    :param paths: their names. Where somebody takes one of them before they are written, all go to other names.
    :param overwrite: whether they replace files that exist.
    :param within: the run folder of which they are part: nothing in it is written through a link. None for names that
        the user typed, which may lead anywhere.
    """

    paths: list[Path]
    overwrite: bool
    within: Path | None

    def require_possible(self) -> Outputs:
        """Try, before the work, whether the files can be written when it is done; return this object.

        :raises ConfigError: one cannot, or exists and is not to be overwritten.
        """
        for path in self.paths:
            require_writable(path)
            require_no_link(path, self._roots)
        require_new(self.paths, self.overwrite)
        return self

    def write(self, contents: Sequence[bytes]) -> list[Path]:
        """Write the files and return their names."""
        paths, number = self.paths, 0
        if not self.overwrite:
            while not self._claim(paths):
                number += 1
                paths = [_later(path, number) for path in self.paths]
        try:
            write_all_atomic(dict(zip(paths, contents, strict=True)), self._roots)
        except BaseException:
            for path in () if self.overwrite else paths:
                path.unlink(missing_ok=True)
            raise
        return paths

    @property
    def _roots(self) -> list[Path]:
        return [] if self.within is None else [self.within]

    def _claim(self, paths: Sequence[Path]) -> bool:
        """Make empty files of these names, so that no other process takes one; return False if one is there already."""
        made: list[Path] = []
        path = Path()
        try:
            for path in paths:
                make_place(path, self._roots)
                os.close(open_to_write(path, os.O_CREAT | os.O_EXCL))
                made.append(path)
            return True
        except OSError as error:
            for claimed in made:
                claimed.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                return False
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None


def require_writable(path: Path) -> None:
    """Raise :class:`ConfigError` unless a file, or a folder, of a name could be made; nothing stays behind.

    Permissions do not say everything: a disk may be mounted for reading only, and a name may be too long for it.
    """
    shown = shorten(path, quote=False)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)
        place, missing = path.absolute(), []
        while not os.path.lexists(place):
            missing.append(place.name)
            place = place.parent
        if place.is_symlink() and not place.exists():
            raise ConfigError(f"cannot write {shown}: {shorten(place, quote=False)} is a link to what does not exist")
        if missing and not place.is_dir():
            raise ConfigError(f"cannot write {shown}: {shorten(place, quote=False)} is a file, not a folder")
        longest = max((len(os.fsencode(name)) for name in missing), default=0)
        if hasattr(os, "pathconf") and longest > os.pathconf(place, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot write {shown}: {getattr(error, 'strerror', None) or error}") from None


def require_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise :class:`ConfigError` if one of the files is a folder, or exists and is not to be overwritten."""
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: choose another name")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists already: choose another name, or overwrite it with --overwrite")


def free_name(folder: Path, stem: str, suffixes: Sequence[str]) -> Path:
    """Return ``<folder>/<stem>_<number>``, without suffix, of the first number that no file of the suffixes has."""
    number = 1
    while any(os.path.lexists(folder / f"{stem}_{number}{suffix}") for suffix in suffixes):
        number += 1
    return folder / f"{stem}_{number}"


def _later(path: Path, number: int) -> Path:
    """Return a name with a later number."""
    stem, own = re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", path.stem, re.DOTALL).groups()  # type: ignore[union-attr]
    return path.with_name(f"{stem}_{int(own or 0) + number}{path.suffix}")


def record_and_figure(args: argparse.Namespace, folder: Path, run: Run | None) -> Outputs:
    """Return where a command's JSON record and figure go, after trying whether they can be written.

    :param args: with ``output``, ``figure``, ``overwrite`` and ``split``.
    :param folder: where they go unless said otherwise, under ``<split>_<number>``, the first that is free.
    :param run: the run of that folder, None if it is of none.
    :raises ConfigError: a name that cannot be written, or a file that exists.
    """
    if args.output is not None:
        record = Path(args.output)
        if record.suffix != ".json":
            raise ConfigError(f"cannot write the record as {shorten(args.output)}: it is JSON, use a name in .json")
    else:
        record = free_name(folder, args.split, (".json", ".png")).with_suffix(".json")
    figure = record.with_suffix(".png") if args.figure is None else Path(args.figure)
    figure_format(figure)
    within = None if args.output is not None or run is None else run.folder
    return Outputs([record, figure], args.overwrite, within).require_possible()


def figure_format(path: Path) -> str:
    """Return a figure's format from its name.

    :raises ConfigError: it is none that can be written.
    """
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FIGURES:
        raise ConfigError(f"cannot write a figure as {shorten(str(path))}: use a name in .{', .'.join(FIGURES)}")
    return suffix


def figure_bytes(figure: Figure, format: str) -> bytes:
    """Return a figure as the content of a file of one of :data:`FIGURES`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=150)
    return buffer.getvalue()


def record_bytes(document: Mapping[str, Any]) -> bytes:
    """Return a JSON record as a file's content."""
    return readable_json(document).encode()


def write_record(path: Path, document: Mapping[str, Any], within: Path | None = None) -> None:
    """Write a JSON record in one step.

    :param within: see :func:`~metarl.files.writing.write_all_atomic`.
    """
    write_bytes_atomic(path, record_bytes(document), within)
