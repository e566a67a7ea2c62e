"""Where a run's TensorBoard events go: into the run folder, or with ``-tb`` into a folder elsewhere, which has a mark.

``args.yml`` of a run names the folder elsewhere, and so do its copies, and so may the ``args.yml`` of a stranger. The
mark says whose the folder is: a run that goes on writes there only if it is that run, where it lay or moved. Any other
goes on in its own run folder, with the events so far beside what it adds.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from metarl.errors import ConfigError, MetaRLError, shorten
from metarl.files.logging import cut_events
from metarl.files.untrusted import parse_json, read_text
from metarl.files.writing import write_all_atomic
from metarl.zoo.runs.folder import Run, file_name

MARK = "metarl_run.json"
"""The file of a folder elsewhere that says which run it belongs to."""


class Events(NamedTuple):
    """Where the events of a run go.

    :param folder: the folder elsewhere; None for the run folder itself.
    :param mark: what the run and that folder have in common.
    :param earlier: the folder that holds the events so far, where they are to be copied from it.
    """

    folder: Path | None = None
    mark: str | None = None
    earlier: Path | None = None

    def warning(self, run: Run) -> str:
        """Return the warning to print before the run goes on, empty where there is none."""
        if self.earlier is None:
            return ""
        there = self.earlier.is_dir()
        why = "nothing says that {} belongs to this run and not to another one" if there else "there is no {} any more"
        shown = shorten(self.earlier, quote=False)
        return f"TensorBoard's events of {run.folder} go on in it: {why.format(shown)}"

    def recorded(self) -> dict[str, Any]:
        """Return what args.yml is to hold of it."""
        return {"tensorboard": None if self.folder is None else str(self.folder), "tensorboard_mark": self.mark}


def claim(run: Run, parent: str | None) -> Events:
    """Make ``<parent>/<Env-v0>/<ALGO>_<k>`` for a run; without ``parent`` its events go into the run folder."""
    if not parent:
        return Events()
    number = run.number
    while True:
        place = Path(parent).resolve() / file_name(run.env_id) / f"{run.algo.upper()}_{number}"
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        events = Events(place, secrets.token_hex(16))
        try:
            write_all_atomic(settle(run, events, 0))
        except BaseException:
            place.rmdir()
            raise
        return events


def events_of(run: Run, folder: str | None, mark: str | None, typed: str | None) -> Events:
    """Return where the events of a run go on; nothing is written.

    :param folder: what args.yml says of it.
    :param mark: the same.
    :param typed: the folder that was given with ``-tb``, None or empty if there was none.
    :raises ConfigError: it contradicts the run.
    """
    shown = f"-tb {shorten(typed or '', quote=False)} contradicts the run {run.folder}"
    if folder is None:
        if typed:
            raise ConfigError(f"{shown}: its events go on in {run.folder}")
        return Events()
    place, parent = Path(folder), Path(typed or folder).resolve() / file_name(run.env_id)
    moved = bool(typed) and parent != place.parent
    if moved:
        if _owns(run, place, mark):
            raise ConfigError(f"{shown}: it has {place}")
        place = parent / place.name
    if _owns(run, place, mark):
        return Events(place, mark)
    if typed and not moved and place.is_dir() and not os.path.lexists(place / MARK):
        # A run of before there were marks, and a user who says that the folder is its own.
        return Events(place, secrets.token_hex(16))
    if typed:
        raise ConfigError(
            f"{shown}: {shorten(place, quote=False)} is not its own, and without -tb its events go on in {run.folder}"
        )
    return Events(earlier=place)


def settle(run: Run, events: Events, step: int) -> dict[Path, bytes]:
    """Return what is to be written before a run logs events: the mark, and copies of the events so far.

    :param step: the last step of which events are copied, in env steps.
    """
    contents: dict[Path, bytes] = {}
    if events.folder is not None:
        mark = {"run": str(run.folder.resolve()), "mark": events.mark}
        contents[events.folder / MARK] = (json.dumps(mark) + "\n").encode()
    if events.earlier is not None:
        contents |= cut_events(events.earlier, step, run.folder)
    return contents


def _owns(run: Run, place: Path, mark: str | None) -> bool:
    try:
        found = parse_json(read_text(place / MARK), MARK)
        if mark is None or found["mark"] != mark:
            return False
        home = Path(found["run"])
    except (MetaRLError, KeyError, TypeError):
        return False
    # Something where the run lay is the run that this one was copied from; nothing there: it was moved.
    return not os.path.lexists(home) or (home.exists() and home.samefile(run.folder))
