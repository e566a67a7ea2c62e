"""Live families: those whose state is in running instances of an environment, which cannot be copied.

Most families are arithmetic on arrays, and their state is arrays. That of a Gymnasium environment, or of an emulator,
is inside an object. Such a family sets ``live``; its state is still a dict of arrays ``[task, env]``, which collectors
and views index, cut and join as any other, but one of them holds a :class:`Run` for each copy. A run borrows an
instance from a :class:`Pool` and gives it back when its episode is over, or when no state holds the run any more. So
there are never more instances than copies that run at the same time, whoever steps them.

A family implements ``reset`` by a run for each copy and :func:`start_state`, ``step`` by :func:`runs_in`, which says
what has to be stepped and refuses a state that was stepped from already, and :func:`next_state`. What an instance had
before must not matter: every episode begins with a reset by a seed of the copy's stream, and with the task.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from metarl.envs.family import Family, State
from metarl.errors import ConfigError


class _Slot:
    """An instance, and who borrowed it last."""

    def __init__(self, key: Hashable, instance: Any) -> None:
        self.key, self.instance = key, instance
        self.user: object = None


class Run:
    """One copy's episode in an instance. Copies and pickles of it have none: they need a reset::

        from metarl.envs import Step
        from metarl.processes import ProcessLocal

        class Counter(Family):  # each copy is an object that counts, up to a number that the task hides
            live = True

            def __init__(self):
                self.id = "Counter-v0"
                self.task_space = Dict({"end": Box(1.0, 9.0, (), np.float64)})
                self.observation_space = Box(0.0, 99.0, (1,), np.float32)
                self.action_space = Discrete(2)
                self.horizon = 20
                self._pool = ProcessLocal(Pool)

            def reset(self, tasks, rngs, n_envs):
                runs = [[self._pool.get().run((), list) for _ in range(n_envs)] for _ in rngs]
                obs = np.zeros((len(rngs), n_envs, 1), np.float32)
                for row, copies in enumerate(runs):
                    for env, run in enumerate(copies):
                        run.instance[:] = [int(rngs[row].integers(3))]
                        obs[row, env] = run.instance
                return start_state(runs), obs

            def step(self, tasks, state, actions, rngs, active=None):
                shape = actions.shape
                obs, reward, ended = np.zeros((*shape, 1), np.float32), np.zeros(shape), np.zeros(shape, bool)
                for row, env, run in runs_in(self, state, active):
                    run.instance[0] += actions[row, env]
                    obs[row, env] = run.instance
                    ended[row, env] = run.instance[0] >= tasks["end"][row]
                    reward[row, env] = ended[row, env]
                    run.stepped(over=ended[row, env] or run.time + 1 == self.horizon)
                return Step(next_state(state), obs, reward, ended, {"reward_end": reward})

            def close(self):
                pool = self._pool.take()
                if pool is not None:
                    pool.close()

        check_family(Counter())

    :ivar time: env steps so far.
    :ivar over: whether the episode has ended.
    """

    def __init__(self, pool: Pool | None = None, slot: _Slot | None = None) -> None:
        self.time, self.over = 0, False
        self._pool, self._slot, self._token = pool, slot, object()
        if slot is not None:
            slot.user = self._token

    @property
    def instance(self) -> Any:
        """The instance; that of an episode which is over too, until another one has it.

        :raises ResetNeeded: another episode has it, or it belongs to another process.
        """
        slot = self._slot
        if slot is None or slot.user is not self._token or self._pool is None or self._pool.process != os.getpid():
            raise ResetNeeded("reset() starts an episode")
        return slot.instance

    @property
    def key(self) -> Hashable:
        """What the instance was made with, :meth:`Pool.run`'s ``key``."""
        return None if self._slot is None else self._slot.key

    def next_episode(self) -> Run:
        """Return a further episode in the same instance, which follows on this one; this one is over.

        :raises ResetNeeded: as :attr:`instance`.
        """
        assert self.instance is not None
        self.over = True
        return Run(self._pool, self._slot)

    def stepped(self, over: bool) -> None:
        """Count an env step.

        :param over: the episode ends with it; others may have the instance.
        """
        self.time += 1
        if over:
            self._give_back()

    def _give_back(self) -> None:
        if not self.over:
            self.over = True
            if self._pool is not None and self._slot is not None:
                self._pool._give_back(self._slot)

    def __del__(self) -> None:
        self._give_back()

    def __reduce__(self) -> tuple[Any, ...]:
        return Run, ()


class Pool:
    """The instances of a family in one process; keep it in a :class:`~metarl.processes.ProcessLocal`.

    There are as many as ever ran at the same time, and no more: one that fits no episode any more is closed before
    another is made. :meth:`close` closes those that nobody has, and the others when they come back.

    :param close: frees an instance.
    """

    def __init__(self, close: Callable[[Any], object] | None = None) -> None:
        self.process = os.getpid()
        self._close = close
        self._lock = threading.Lock()
        self._idle: list[_Slot] = []
        # An episode may be forgotten at any time, while the lock is held too: its instance is put down here.
        self._returned: deque[_Slot] = deque()
        self._closed = False
        self._n_running = self._peak = 0

    @property
    def n_instances(self) -> int:
        """How many instances there are, running or not."""
        return self._n_running + len(self._idle)

    def run(self, key: Hashable, make: Callable[[], Any]) -> Run:
        """Return a new episode in an instance that was made with this key, or in a new one.

        :param key: what an instance cannot change any more, such as arguments that it was made with.
        :param make: makes an instance.
        """
        with self._lock:
            self._collect()
            found = next((slot for slot in reversed(self._idle) if slot.key == key), None)
            self._n_running += 1
            self._peak = max(self._peak, self._n_running)
            if found is not None:
                self._idle.remove(found)
            surplus = self._idle[: max(0, self.n_instances - self._peak)]
            del self._idle[: len(surplus)]
        for slot in surplus:
            self._free(slot)
        if found is None:
            try:
                found = _Slot(key, make())
            except BaseException:
                with self._lock:
                    self._n_running -= 1
                raise
        return Run(self, found)

    def _collect(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())
            self._n_running -= 1

    def _give_back(self, slot: _Slot) -> None:
        self._returned.append(slot)
        if self._closed:
            self._drain()

    def _drain(self) -> None:
        while self._returned:
            self._free(self._returned.popleft())

    def _free(self, slot: _Slot) -> None:
        slot.user = None
        # What a parent's fork left here is the parent's to close.
        if self._close is not None and self.process == os.getpid():
            self._close(slot.instance)

    def close(self) -> None:
        """Close the instances that nobody has; the others follow when their episodes are over."""
        with self._lock:
            self._collect()
            idle, self._idle = self._idle, []
            self._closed = True
        for slot in idle:
            self._free(slot)


def start_state(runs: Sequence[Sequence[Run]]) -> State:
    """Return the state of episodes that have just begun.

    :param runs: ``[task][env]``.
    """
    held = np.empty((len(runs), len(runs[0])), dtype=object)
    for row, copies in enumerate(runs):
        held[row] = list(copies)
    return {"run": held, "time": np.zeros(held.shape, dtype=np.int64)}


def runs_in(family: Family, state: State, active: np.ndarray | None) -> Iterator[tuple[int, int, Run]]:
    """Return the episodes that a step is for, with their places ``(task, env)``: those active that are not over.

    :raises ConfigError: one that was stepped from this state already.
    :raises ResetNeeded: one of a copy or of a pickle, or of another process.
    """
    times = state["time"].tolist()
    wanted = None if active is None else active.tolist()
    for row, runs in enumerate(state["run"].tolist()):
        for env, run in enumerate(runs):
            if run.over or not (wanted is None or wanted[row][env]):
                continue
            if run.time != times[row][env]:
                raise ConfigError(
                    f"{family.id}: an episode at time step {run.time} cannot be stepped from time step "
                    f"{times[row][env]}: its state is a running environment"
                )
            yield row, env, run


def next_state(state: State) -> State:
    """Return the state after a step of the episodes in ``state``."""
    runs = state["run"]
    return {"run": runs, "time": np.array([[run.time for run in copies] for copies in runs.tolist()], dtype=np.int64)}
