"""Loggers: Stable-Baselines3's Logger on files that can be resumed without a missing or double point.

The x-axis everywhere is env steps. A run that is killed has logged a little more than its last checkpoint knows;
:func:`make_logger` takes those points away again before it goes on, in the same files. For that to leave no gap,
callers dump and :func:`flush` before each checkpoint. A TensorBoard that is open meanwhile shows removed points
until it is restarted.

Everything is written at once, in the calling thread, so a full disk is one error where it happens. Nothing here reads
or writes pickle.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import struct
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    HumanOutputFormat,
    Image,
    JSONOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    Video,
    filter_excluded_keys,
)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from metarl.errors import CheckpointError, unknown_name
from metarl.files.untrusted import MAX_LOG, parse_csv, parse_json, read_bytes
from metarl.files.writing import open_to_write, write_all_atomic, write_text_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure as DrawnFigure  # importing it takes 0.5 s, before the first line of training

FORMATS = ("stdout", "log", "csv", "json", "tensorboard")
CSV, JSON = "progress.csv", "progress.json"
STEP_KEY = "time/total_timesteps"
"""The column that says at how many env steps a row was written; every row of CSV and JSON has it."""
TEXT_FORMATS = ("stdout", "log", "csv", "json")
"""The formats that cannot show figures: ``logger.record(..., exclude=TEXT_FORMATS)``."""


def make_logger(
    folder: str | Path,
    formats: Sequence[str] = ("stdout", "csv", "tensorboard"),
    tensorboard_folder: str | Path | None = None,
    resume_step: int | None = None,
) -> Logger:
    """Return a logger that writes into ``folder``.

    :param folder: where ``progress.csv``, ``progress.json`` and ``log.txt`` go; made if need be.
    :param formats: any of :data:`FORMATS`.
    :param tensorboard_folder: where TensorBoard's event files go; None for ``folder``.
    :param resume_step: None for a new run, which starts its text files afresh. Otherwise the env steps of the
        checkpoint that the run goes on from: later points are removed from events, CSV and JSON, and all files are
        appended to. ``log.txt``, a transcript, keeps everything.
    :raises UnknownNameError: a format that does not exist.
    :raises CheckpointError: a file that cannot be read or written.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("log format", name, FORMATS)
    folder = Path(folder)
    events = folder if tensorboard_folder is None else Path(tensorboard_folder)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if resume_step is not None:
        write_all_atomic(cut_logs(folder, formats, events, resume_step), [folder, events])
    outputs: list[KVWriter] = []
    for name in formats:
        if name == "stdout":
            outputs.append(HumanOutputFormat(sys.stdout))
        elif name == "log":
            outputs.append(_LogFormat(folder / "log.txt", resume_step is None))
        elif name == "csv":
            outputs.append(_CSVFormat(folder / CSV, resume_step is None))
        elif name == "json":
            outputs.append(_JSONFormat(folder / JSON, resume_step is None))
        else:
            outputs.append(_EventsFormat(events))
    return Logger(str(folder), outputs)


def cut_logs(folder: Path, formats: Sequence[str], events: Path, step: int) -> dict[Path, bytes]:
    """Return what the files of a run's log hold without what was logged after ``step``.

    :param folder: where ``progress.csv`` and ``progress.json`` are.
    :param formats: those of :data:`FORMATS` that are looked at.
    :param events: where TensorBoard's event files are; those that stay as they are are left out.
    :param step: the last step to keep, in env steps.
    :raises CheckpointError: a file that cannot be read.
    """
    contents: dict[Path, bytes] = {}
    # Files that are appended to are written anew in any case: they may share their content with a copy of the run.
    if "csv" in formats:
        contents[folder / CSV] = _cut_table(folder / CSV, step)
    if "json" in formats:
        lines = [line for line in _whole_lines(folder / JSON) if _json_step(line) <= step]
        contents[folder / JSON] = "".join(lines).encode()
    if "tensorboard" in formats:
        contents |= cut_events(events, step)
    return contents


def flush(logger: Logger) -> None:
    """Wait until everything logged so far is on the disk; call it after a dump and before a checkpoint."""
    for output in logger.output_formats:
        file = getattr(output, "file", None)
        if isinstance(file, _AppendFile):
            file.sync()


def log_hyperparameters(logger: Logger, hyperparameters: Mapping[str, Any], metrics: Iterable[str]) -> bool:
    """Write hyperparameters for TensorBoard's HParams page, unless the run's event files already hold some.

    :param hyperparameters: numbers, booleans and strings stay what they are, None is left out, the rest becomes text.
    :param metrics: the scalar keys to show beside them, at least one.
    :return: whether they were written: False for a resumed run, and for a logger without TensorBoard.
    """
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in hyperparameters.items()
        if value is not None
    }
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat) and not _has_hyperparameters(Path(output.writer.log_dir)):
            output.write({"hparams": HParam(plain, dict.fromkeys(metrics, 0.0))}, {"hparams": ("",)}, 0)
            return True
    return False


def record_figure(logger: Logger, key: str, figure: DrawnFigure) -> None:
    """Record a figure for the formats that show it.

    :param figure: made with ``matplotlib.figure.Figure`` rather than pyplot, so that no display is needed.
    """
    logger.record(key, Figure(figure, close=False), exclude=TEXT_FORMATS)


# --------------------------------------------------------------------------------------------------------- event files
def cut_events(folder: str | Path, step: int, into: Path | None = None) -> dict[Path, bytes]:
    """Return what the event files of a folder hold without the events after ``step``.

    A half-written record at the end of a file, left by a killed process, goes too.

    :param folder: looked at without its subfolders; may be missing.
    :param step: the last step to keep, in env steps.
    :param into: the folder of the files that are returned; None: those that change, where they are.
    """
    contents = {}
    for path in _event_files(Path(folder)):
        data = read_bytes(path)
        kept = [record for record, event in _records(data) if event.step <= step]
        content = b"".join(kept)
        if into is not None or content != data:
            contents[path if into is None else into / path.name] = content
    return contents


def _has_hyperparameters(folder: Path) -> bool:
    for path in _event_files(folder):
        for _, event in _records(read_bytes(path)):
            if any(value.metadata.plugin_data.plugin_name == "hparams" for value in event.summary.value):
                return True
    return False


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _records(data: bytes) -> Iterator[tuple[bytes, Event]]:
    """Yield each record of an event file and its event, up to the first that is incomplete or damaged.

    A record whose checksums are right and which holds no event is left out: it is nobody's point.

    A record is its payload's length (8 bytes, little-endian), that length's checksum (4), payload, its checksum (4).
    """
    position = 0
    while position + 12 <= len(data):
        length, length_check = struct.unpack_from("<QI", data, position)
        end = position + 12 + length + 4
        if masked_crc32c(data[position : position + 8]) != length_check or end > len(data):
            return
        payload = data[position + 12 : end - 4]
        if masked_crc32c(payload) != struct.unpack_from("<I", data, end - 4)[0]:
            return
        record, position = data[position:end], end
        try:
            event = Event.FromString(payload)
        except Exception:  # protobuf's own, which has a name of its own in every implementation
            continue
        yield record, event


def _frame(payload: bytes) -> bytes:
    """Return ``payload`` as a record; the inverse of :func:`_records`."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), payload, struct.pack("<I", masked_crc32c(payload)))
    )


# -------------------------------------------------------------------------------------------------------------- outputs
class _AppendFile:
    """A file that is only appended to, without a buffer: what was written survives the process, and errors come now.

    It is closed with its logger, or when nobody holds it any more: Stable-Baselines3 closes no logger by itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _disk_errors(path):
            self._descriptor = open_to_write(path, os.O_APPEND | os.O_CREAT)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def write(self, data: str | bytes) -> None:
        rest = memoryview(data.encode("utf-8") if isinstance(data, str) else data)
        with _disk_errors(self.path):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def sync(self) -> None:
        with _disk_errors(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        self._close()


class _EventFile:
    """Stands in for TensorBoard's writer thread, which reports a full disk late, as a traceback of its own."""

    def __init__(self, file: _AppendFile) -> None:
        self._file = file

    def add_event(self, event: Event) -> None:
        self._file.write(_frame(event.SerializeToString()))

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def reopen(self) -> None:
        """Do nothing: the file stays open until :meth:`close`."""

    def close(self) -> None:
        self._file.close()


class _EventsFormat(TensorBoardOutputFormat):
    def __init__(self, folder: Path) -> None:
        before = set(_event_files(folder))
        with _disk_errors(folder):
            super().__init__(str(folder))
            file_writer: Any = self.writer.file_writer
            file_writer.event_writer.close()
            (path,) = set(_event_files(folder)) - before
            path = path.rename(_name_after(path, before))
        self.file = _AppendFile(path)
        file_writer.event_writer = _EventFile(self.file)


def _name_after(path: Path, others: Iterable[Path]) -> Path:
    """Return a name for an event file that sorts behind ``others``: TensorBoard reads files in that order.

    Names hold the second of their making; two runs of one second, or a clock set back, would change places.
    """
    start, stamp, rest = re.split(r"(?<=tfevents\.)(\d+)", path.name, maxsplit=1)
    stamps = [int(found[1]) for other in others if (found := re.search(r"tfevents\.(\d+)", other.name))]
    return path.with_name(f"{start}{max([int(stamp), *(other + 1 for other in stamps)]):010d}{rest}")


class _LogFormat(HumanOutputFormat):
    def __init__(self, path: Path, fresh: bool) -> None:
        if fresh:
            write_text_atomic(path, "", path.parent)
        self.file: _AppendFile = _AppendFile(path)  # type: ignore[assignment]
        super().__init__(self.file)  # type: ignore[arg-type]
        self.own_file = True


class _JSONFormat(JSONOutputFormat):
    """One JSON object a line, each with its step."""

    def __init__(self, path: Path, fresh: bool) -> None:
        if fresh:
            write_text_atomic(path, "", path.parent)
        self.file: _AppendFile = _AppendFile(path)  # type: ignore[assignment]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        super().write({**key_values, STEP_KEY: step}, {**key_excluded, STEP_KEY: ("",)}, step)


class _CSVFormat(KVWriter):
    """A table with a column for each key ever recorded; a new key rewrites the file, in one step, with one more."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self._path = path
        if fresh:
            write_text_atomic(path, "", path.parent)
        self.keys, _ = _read_table(path)
        self.file = _AppendFile(path)

    def _rewrite(self, rows: list[list[str]]) -> None:
        header = [self.keys] if self.keys else []
        padded = [row + [""] * (len(self.keys) - len(row)) for row in rows]
        write_text_atomic(self._path, _csv_lines(header + padded), self._path.parent)
        self.file = _AppendFile(self._path)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        values = {**filter_excluded_keys(key_values, key_excluded, "csv"), STEP_KEY: step}
        for value in values.values():
            if isinstance(value, Video | Figure | Image | HParam):
                raise FormatUnsupportedError(["csv"], type(value).__name__.lower())
        # In the order of their names: a set's order would differ between processes.
        new = sorted(key for key in values if key not in self.keys)
        if new:
            self.file.close()
            _, rows = _read_table(self._path)
            self.keys += new
            self._rewrite(rows)
        self.file.write(_csv_lines([[str(values.get(key, "")) for key in self.keys]]))

    def close(self) -> None:
        self.file.close()


def _cut_table(path: Path, step: int) -> bytes:
    """Return a CSV file without the rows after a step."""
    keys, rows = _read_table(path)
    if STEP_KEY in keys:
        column = keys.index(STEP_KEY)
        rows = [row for row in rows if _number(row[column]) <= step]
    return _csv_lines([keys, *rows] if keys else []).encode()


def _csv_lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the whole rows of a CSV file; a half-written last row is left out."""
    rows = parse_csv("".join(_whole_lines(path)), str(path))
    if not rows:
        return [], []
    return rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a text file that end in a newline; none where there is no file."""
    if not path.exists():
        return []
    lines = read_bytes(path, MAX_LOG).decode("utf-8", errors="replace").split("\n")
    return [f"{line}\n" for line in lines[:-1]]


def _json_step(line: str) -> float:
    try:
        return _number(parse_json(line, "a row")[STEP_KEY])
    except (CheckpointError, KeyError, TypeError):
        return float("inf")


def _number(value: Any) -> float:
    """Return a step as a number; what is none belongs to no step and is later than all."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("inf")


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
