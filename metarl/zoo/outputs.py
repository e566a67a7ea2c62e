"""Where commands write: names are looked at before anything is computed, and no file is overwritten unasked."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.errors import ConfigError, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("png", "svg", "pdf")


def require_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise :class:`ConfigError` if one of the files cannot be made, or exists and is not to be overwritten."""
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: choose another name")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir():
            raise ConfigError(f"cannot write {path}: {existing} is a file, not a folder")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists already: choose another name, or overwrite it with --overwrite")


def free_name(folder: Path, stem: str, suffixes: Sequence[str]) -> Path:
    """Return ``<folder>/<stem>_<number>``, without suffix, of the first number that no file of the suffixes has."""
    number = 1
    while any((folder / f"{stem}_{number}{suffix}").exists() for suffix in suffixes):
        number += 1
    return folder / f"{stem}_{number}"


def record_and_figure(args: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Return where a command's JSON record and figure go.

    :param args: with ``output``, ``figure``, ``overwrite`` and ``split``.
    :param folder: where they go unless said otherwise, under ``<split>_<number>``, the first that is free.
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
    require_new([record, figure], args.overwrite)
    return record, figure


def figure_format(path: Path) -> str:
    """Return a figure's format from its name.

    :raises ConfigError: it is none that can be written.
    """
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FIGURES:
        raise ConfigError(f"cannot write a figure as {shorten(str(path))}: use a name in .{', .'.join(FIGURES)}")
    return suffix


def figure_bytes(figure: Figure, format: str) -> bytes:
    """Return a figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=150)
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure in one step."""
    from metarl.checkpoint import write_bytes_atomic

    write_bytes_atomic(path, figure_bytes(figure, figure_format(path)))


def write_record(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON record in one step."""
    from metarl.checkpoint import write_text_atomic

    write_text_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
