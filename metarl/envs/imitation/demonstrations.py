"""What experts show: pairs of a state and an action, made once for each task, in batch, and kept on the disk.

The pairs of a task are a function of the task and of what a :class:`Show` says; they do not depend on the batch in
which they are asked for. Files are named by what they were made from. They hold plain arrays with a SHA-256 of them,
are written in one step, and are made anew where they are damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from metarl.envs.family import Family
from metarl.envs.imitation.expert import Expert
from metarl.envs.promises import require_sound_step, sound_start
from metarl.envs.tasks import Tasks, n_tasks, one_task, take_tasks
from metarl.errors import CheckpointError, ConfigError, MetaRLWarning, NonFiniteError, shorten
from metarl.files.writing import MAX_ARRAYS, npz_bytes, read_npz, write_bytes_atomic
from metarl.streams import stream
from metarl.version import __version__

FOLDER = "METARL_CACHE"
"""The environment variable that says where files are kept; unset: ``metarl`` in the user's cache folder. Empty: nothing
is kept on the disk."""
MOST_KEPT = 2**28
"""Bytes of pairs that are kept in memory, and a quarter of what is kept on the disk; the oldest ones give way."""
MOST_TOGETHER = 64
"""Tasks that an expert shows together."""
_FORMAT = "metarl demonstrations 1"


class Pairs(NamedTuple):
    """What an expert showed in one task.

    :param obs: ``[pair, *observation]``, in the order of episodes and time.
    :param actions: ``[pair, *action]``: what it does there, without the noise it acted with.
    :param expert_return: the mean undiscounted return of its episodes.
    """

    obs: np.ndarray
    actions: np.ndarray
    expert_return: float

    @property
    def n_bytes(self) -> int:
        """How much memory it takes."""
        return self.obs.nbytes + self.actions.nbytes


@dataclass(frozen=True)
class Show:
    """What an expert is to show of every task.

    :param n_episodes: episodes.
    :param n_states: the first so many states of them; None: all.
    :param acting_noise: while it acts, a normal deviate of this many half ranges is added to its actions (of
        ``Discrete`` ones: this is the probability of a random action instead), so that it visits states beside its way.
    """

    n_episodes: int
    n_states: int | None
    acting_noise: float


class Shown(ABC):
    """Pairs of any task of a family, made in batch and kept in memory and on the disk; a subclass makes them.

    :param real: the family that they are made in.
    :param show: what is to be shown.
    :param origin: from what the family was made, as JSON holds it: its name and arguments. None: nothing is kept on the
        disk.
    :param pool: tasks that are asked for again and again: where one is wanted, its neighbours are made too.
    :param maker: its class, and its ``fingerprint``, tell what is made from what others make.
    """

    def __init__(
        self, real: Family, show: Show, origin: Mapping[str, Any] | None, pool: Tasks | None, maker: Any
    ) -> None:
        self._real = real
        self._show = show
        self._pool = pool
        self._places = {} if pool is None else {key: place for place, key in enumerate(_keys(pool))}
        self._known: dict[bytes, Pairs] = {}
        self._address = None if origin is None else _address(real, maker, show, origin)

    @abstractmethod
    def _shown(self, tasks: Tasks) -> list[Pairs]:
        """Make the pairs of each task, of each as if it were alone."""

    def of(self, tasks: Tasks) -> list[Pairs]:
        """Return the pairs of each task.

        :raises ConfigError: the expert's actions are not such of the family.
        :raises NonFiniteError: an action, an observation or a reward of its episodes is not finite.
        """
        keys = _keys(tasks)
        known = self._known
        found = {key: known[key] for key in keys if key in known}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        if self._pool is not None:
            for part in sorted({self._places[key] // MOST_TOGETHER for key in missing if key in self._places}):
                found |= self._made(take_tasks(self._pool, _part(part)))
        others = np.array([i for key, i in missing.items() if key not in found], dtype=int)
        for part in range(-(-len(others) // MOST_TOGETHER)):
            found |= self._made(take_tasks(tasks, others[_part(part)]))
        if missing:
            self._keep(found)
        return [found[key] for key in keys]

    def _keep(self, found: Mapping[bytes, Pairs]) -> None:
        """Keep pairs in memory, for as long as there is room.

        The dict is never changed, but replaced: threads may look at it meanwhile.
        """
        known = {**self._known, **found}
        size = sum(pairs.n_bytes for pairs in known.values())
        for key in list(known)[:-1]:
            if size <= MOST_KEPT:
                break
            size -= known.pop(key).n_bytes
        self._known = known

    # ----------------------------------------------------------------------------------------------------- on the disk
    def _made(self, tasks: Tasks) -> dict[bytes, Pairs]:
        """Return the pairs of tasks: from the disk where a file has them, or made and written there."""
        keys = _keys(tasks)
        path, name = self._file(keys)
        if path is not None and path.is_file():
            try:
                return dict(zip(keys, self._read(path, name, tasks), strict=True))
            except CheckpointError as error:
                warnings.warn(f"{error}: the expert shows it again", MetaRLWarning, stacklevel=2)
        together = max(1, (self._real.max_copies or len(keys) * self._show.n_episodes) // self._show.n_episodes)
        made: list[Pairs] = []
        for start in range(0, len(keys), together):
            made += self._shown(take_tasks(tasks, slice(start, start + together)))
        if path is not None:
            _write(path, name, made)
        return dict(zip(keys, made, strict=True))

    def _file(self, keys: Sequence[bytes]) -> tuple[Path | None, str]:
        """Return where the pairs of tasks are kept, and the name of what they were made from.

        A single task, such as that of one environment, is shown as quickly as it is read.
        """
        folder = cache_folder()
        if folder is None or self._address is None or len(keys) == 1:
            return None, ""
        name = hashlib.sha256(self._address + b"".join(keys)).hexdigest()
        return folder / "demonstrations" / f"{self._real.id}-{name[:32]}.npz", name

    def _read(self, path: Path, name: str, tasks: Tasks) -> list[Pairs]:
        """Return the pairs that a file holds.

        :raises CheckpointError: it is damaged, or was made from something else.
        """
        arrays = read_npz(path)
        obs, actions, counts, returns = (arrays.get(each, np.zeros(0)) for each in _ARRAYS)
        if str(arrays.get("format")) != _FORMAT or str(arrays.get("made_from")) != name:
            raise CheckpointError(f"{path} is not what {self._real.id} is shown")
        if str(arrays.get("sha256")) != _digest([obs, actions, counts, returns]):
            raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
        ends = np.cumsum(counts)[:-1]
        with contextlib.suppress(OSError):
            os.utime(path)  # it is not the oldest one any more
        return [
            Pairs(*each) for each in zip(np.split(obs, ends), np.split(actions, ends), returns.tolist(), strict=True)
        ]


class Demonstrations(Shown):
    """The pairs that an expert shows of any task of a family.

    :param real: the family in which the expert acts.
    :param expert: the expert.
    :param show: what it is to show.
    :param origin: see :class:`Shown`, as ``pool``.
    """

    def __init__(
        self, real: Family, expert: Expert, show: Show, origin: Mapping[str, Any] | None, pool: Tasks | None
    ) -> None:
        super().__init__(real, show, origin, pool, expert)
        self._expert = expert

    def _shown(self, tasks: Tasks) -> list[Pairs]:
        """Let the expert act in each task."""
        real, show, n = self._real, self._show, n_tasks(tasks)
        observation_space, action_space = real.spaces(one_task(tasks, 0))
        batch = (n, show.n_episodes)
        rngs = expert_streams(tasks)
        state, obs = sound_start(real, real.reset(tasks, rngs, show.n_episodes), batch, observation_space)
        active = np.ones(batch, dtype=bool)
        seen, done, taken = [], [], []
        returns = np.zeros(batch)
        for _ in range(real.horizon):
            actions = self._asked(tasks, obs, action_space)
            seen.append(obs)
            done.append(actions)
            taken.append(active)
            executed = noisy(actions, action_space, rngs, show.acting_noise)
            step = real.step(tasks, state, executed, rngs, active)
            require_sound_step(real, step, batch, observation_space)
            if not (np.isfinite(step.reward[active]).all() and np.isfinite(step.obs[active]).all()):
                raise NonFiniteError(f"{real.id} gives a number that is not finite where its expert acts")
            returns += np.where(active, step.reward, 0.0)
            active = active & ~step.terminated
            state, obs = step.state, step.obs
            if not active.any():
                break
        mask = np.stack(taken, axis=2)
        obs_all, actions_all = np.stack(seen, axis=2), np.stack(done, axis=2)
        return [
            Pairs(
                np.ascontiguousarray(obs_all[i][mask[i]][: show.n_states]),
                np.ascontiguousarray(actions_all[i][mask[i]][: show.n_states]),
                float(returns[i].mean()),
            )
            for i in range(n)
        ]

    def _asked(self, tasks: Tasks, obs: np.ndarray, space: spaces.Space[Any]) -> np.ndarray:
        """Return what the expert does, within the action space."""
        name = type(self._expert).__name__
        actions = np.asarray(self._expert.act(tasks, obs))
        shape, discrete = (*obs.shape[:2], *(space.shape or ())), isinstance(space, spaces.Discrete)
        if actions.shape != shape or actions.dtype.kind not in ("iu" if discrete else "iuf"):
            found = f"{actions.dtype} {list(actions.shape)}"
            raise ConfigError(f"{name} of {self._real.id} does {found}, not {list(shape)} in {shorten(space)}")
        if isinstance(space, spaces.Discrete):
            outside = (actions < space.start) | (actions >= space.start + space.n)
            if outside.any():
                raise ConfigError(f"{name} of {self._real.id} does {actions[outside][0]}, which {space} has not")
            return actions.astype(np.int64)
        assert isinstance(space, spaces.Box)
        if not np.isfinite(actions).all():
            raise NonFiniteError(f"{name} of {self._real.id} does something that is not finite")
        clipped: np.ndarray = np.clip(actions, space.low, space.high).astype(np.float32)
        return clipped


_ARRAYS = ("obs", "actions", "counts", "returns")
"""What a file holds of its tasks, one after the other."""


def expert_streams(tasks: Tasks) -> list[np.random.Generator]:
    """Return the generators of the episodes that an expert shows, one for each task."""
    return task_streams(tasks, "imitation/expert")


def noisy(
    actions: np.ndarray, space: spaces.Space[Any], rngs: Sequence[np.random.Generator], noise: float
) -> np.ndarray:
    """Return actions ``[task, env, *action]`` with noise of each task's own generator; without noise, nothing is drawn.

    :param noise: of a Box, the standard deviation in half ranges; of a Discrete space, the probability of a random
        action instead.
    """
    if not noise:
        return actions
    if isinstance(space, spaces.Discrete):
        replaced = np.stack([rng.random(actions.shape[1:]) < noise for rng in rngs])
        others = np.stack([rng.integers(space.start, space.start + space.n, actions.shape[1:]) for rng in rngs])
        result: np.ndarray = np.where(replaced, others, actions)
        return result
    assert isinstance(space, spaces.Box)
    half = (space.high.astype(np.float64) - space.low) / 2.0
    drawn = np.stack([rng.standard_normal(actions.shape[1:]) for rng in rngs])
    return np.asarray(actions + noise * half * drawn, dtype=np.float32)


def task_streams(tasks: Tasks, purpose: str) -> list[np.random.Generator]:
    """Return a stream for each task, from its parameters alone."""
    return [stream(int.from_bytes(key, "little"), purpose) for key in _keys(tasks)]


def cache_folder() -> Path | None:
    """Return the folder where files are kept that can be made again; None where nothing is to be kept."""
    given = os.environ.get(FOLDER)
    if given is not None:
        return Path(given) if given else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "metarl"
    except RuntimeError:  # there is no home
        return None


def _write(path: Path, name: str, made: Sequence[Pairs]) -> None:
    """Keep pairs on the disk, if they and the disk permit it: they can be made again."""
    if sum(pairs.n_bytes for pairs in made) > MAX_ARRAYS // 2:
        return
    obs, actions = (np.concatenate([getattr(pairs, each) for pairs in made]) for each in ("obs", "actions"))
    counts, returns = np.array([len(pairs.obs) for pairs in made]), np.array([pairs.expert_return for pairs in made])
    arrays = dict(zip(_ARRAYS, (obs, actions, counts, returns), strict=True))
    document = {"format": _FORMAT, "made_from": name, "sha256": _digest(list(arrays.values()))}
    with contextlib.suppress(CheckpointError, OSError):
        write_bytes_atomic(path, npz_bytes(path, {**document, **arrays}))
        files = {file: file.stat() for file in path.parent.glob("*.npz")}
        size = sum(stat.st_size for stat in files.values())
        for file in sorted(files, key=lambda file: files[file].st_mtime):
            if size <= 4 * MOST_KEPT or file == path:
                return
            file.unlink(missing_ok=True)
            size -= files[file].st_size


def _part(index: int) -> slice:
    """Return where the tasks of a part are that are shown together."""
    return slice(index * MOST_TOGETHER, (index + 1) * MOST_TOGETHER)


def _keys(tasks: Tasks) -> list[bytes]:
    """Return a name for each task of a batch, from its parameters alone."""
    names = sorted(tasks)
    kinds = json.dumps([[name, str(tasks[name].dtype), list(tasks[name].shape[1:])] for name in names]).encode()
    rows = ([np.ascontiguousarray(tasks[name][i]).tobytes() for name in names] for i in range(n_tasks(tasks)))
    return [hashlib.sha256(b"".join([kinds, *row])).digest() for row in rows]


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}\0{list(array.shape)}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _address(real: Family, maker: Any, show: Show, origin: Mapping[str, Any]) -> bytes | None:
    """Return a name for what all pairs are made from, but for the tasks; None where that cannot be seen."""
    try:
        code = sorted({_source(cls) for each in (real, maker) for cls in type(each).__mro__ if cls is not object})
    except (OSError, TypeError):  # typed in at a prompt
        return None
    made_from = {
        "format": _FORMAT,
        "metarl": __version__,
        "family": dict(origin),
        "expert": [type(maker).__qualname__, maker.fingerprint],
        "show": [show.n_episodes, show.n_states, show.acting_noise],
        "code": code,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).digest()


def _source(cls: type) -> str:
    """Return a name for the code of a class's module, so that what was changed is not taken for what it was."""
    return hashlib.sha256(inspect.getsource(sys.modules[cls.__module__]).encode()).hexdigest()
